"""The methods: one file each, whole story in paper order; `base` holds the contract."""
