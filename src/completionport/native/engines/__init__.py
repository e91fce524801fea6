"""The kernel's mechanisms."""
