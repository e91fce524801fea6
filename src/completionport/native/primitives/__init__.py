"""Atomic steps, locks, who is inside, and what a thread has of its own."""
