"""The port, its handles and operations as Python sees them."""
