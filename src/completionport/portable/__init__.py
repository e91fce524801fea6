"""The completion port on the standard library alone."""
