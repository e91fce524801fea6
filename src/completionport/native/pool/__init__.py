"""The threads for what would block the caller."""
