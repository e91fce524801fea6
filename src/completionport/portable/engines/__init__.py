"""What carries operations out."""
