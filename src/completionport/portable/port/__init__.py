"""The port, its handles and what it consists of."""
