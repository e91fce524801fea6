"""Threads that take a port's packets."""
