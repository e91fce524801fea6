"""A machine that is busy with something else: the threads of a test get on late, now and then.

``pytest --stalls SEED`` lets a thread compute for a while between two lines of a test, so that it
comes later than the other threads. It computes instead of sleeping, since who sleeps with a packet
is replaced, as it should be.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

EACH = 0.03
"""Seconds: longer than the monitor takes to find out who blocks."""

PART = 0.2
"""Of the lines."""

MOST = 15
"""In one test, which so takes half a second longer."""


@contextlib.contextmanager
def stalls(seed: str) -> Iterator[None]:
    """While it lasts, the lines of tests stall in threads that begin now and in this one."""
    chance = random.Random(seed)
    # Threads may count past each other: a few more or less do not matter.
    left = MOST

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line" and left > 0 and chance.random() < PART:
            left -= 1
            end = time.monotonic() + EACH
            while time.monotonic() < end:
                pass
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if os.path.basename(frame.f_code.co_filename).startswith("test_") else None

    threading.settrace(call)
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        left = 0
