"""From files on disk to batches: readers, protocols, preprocessing."""
