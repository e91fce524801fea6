"""One operation: what it needs, and which operations wait for which."""
