"""How many threads are useful on this machine and interpreter."""

from __future__ import annotations

import os
import sys


def default_concurrency() -> int:
    """As many threads as can run Python at once.

    The usable processors on a free-threaded interpreter, 1 where the GIL is held.
    """
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        return 1
    return usable_processors()


def usable_processors() -> int:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
