"""Packets of what has no operations of its own: signals, processes, changes of a directory."""
