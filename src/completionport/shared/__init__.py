"""What every engine checks and does the same way."""
