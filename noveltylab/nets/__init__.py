"""What two or more methods share of their networks; torch only."""
