"""Threads at work for a port: pools of them, and servers with callbacks."""
