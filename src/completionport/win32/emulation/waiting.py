"""What threads wait for one at a time or several at once: events, threads, operations.

All of it is guarded by one lock, as it is in Windows' kernel: a wait for several objects looks at
all of them at one moment.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from ...portable.scheduling.scheduler import SIGNAL_SLICE
from ..constants import STATUS_PENDING, STILL_ACTIVE, WAIT_OBJECT_0, WAIT_TIMEOUT
from ..structures import OVERLAPPED, IoStatus, Written

_changed = threading.Condition()
_waiting = 0  # threads in `wait_for`; the lock guards it


def _after_fork() -> None:
    global _changed, _waiting
    _changed = threading.Condition()  # a thread that the child lacks may hold the old one
    _waiting = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Waitable:
    """Something that is signalled or not. The module's lock guards the fields."""

    def __init__(self, signalled: bool = False) -> None:
        self._signalled = signalled

    def set(self) -> None:
        """Signal it, and wake whoever waits for it."""
        with _changed:
            self._signalled = True
            if _waiting:
                _changed.notify_all()

    def reset(self) -> None:
        """It is not signalled any more."""
        with _changed:
            self._signalled = False

    def is_set(self) -> bool:
        """Lock held, or just a look."""
        return self._signalled

    def consume(self) -> None:
        """A wait for it has ended. Lock held."""


def set_both(one: Waitable, other: Waitable | None) -> None:
    """Signal them at one moment, and wake whoever waits for one."""
    with _changed:
        one._signalled = True
        if other is not None:
            other._signalled = True
        if _waiting:
            _changed.notify_all()


def wake() -> None:
    """Have whoever waits look again: something is signalled that says so itself."""
    with _changed:
        if _waiting:
            _changed.notify_all()


class Event(Waitable):
    """What `CreateEvent` makes: with ``manual`` it stays signalled when a wait has ended."""

    def __init__(self, manual: bool, signalled: bool) -> None:
        super().__init__(signalled)
        self._manual = manual

    def __repr__(self) -> str:
        return "event"

    def consume(self) -> None:
        if not self._manual:
            self._signalled = False


class Thread(Waitable):
    """What `CreateThread` makes: it is signalled when the thread has ended."""

    def __init__(self, function: Callable[[Any], Any], argument: Any) -> None:
        super().__init__()
        self.exit_code = STILL_ACTIVE  # written before it is signalled
        self._work: tuple[Callable[[Any], Any], Any] | None = (function, argument)
        # As with Win32, the program does not wait for its threads at its end.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"thread {self._thread.name}"

    def _run(self) -> None:
        assert self._work is not None
        function, argument = self._work
        self._work = None
        code = 1  # of a thread that an exception has ended
        try:
            value = function(argument)
            code = value if isinstance(value, int) else 0
        finally:
            self.exit_code = code
            self.set()


def claim(overlapped: OVERLAPPED, operation: IoStatus, file: Waitable) -> bool:
    """Make an OVERLAPPED stand for an operation; False when another one is under way with it.

    Its file is not signalled from here on.
    """
    with _changed:
        before = overlapped._io
        is_busy = before is not None and before.status == STATUS_PENDING
        if is_busy and not isinstance(before, Written):
            return False
        overlapped._io = operation
        file._signalled = False
        return True


def wait_for(waitables: list[Waitable], everything: bool, milliseconds: int | None) -> int:
    """Wait for one of them, or for all; the index that ended the wait, or ``WAIT_TIMEOUT``."""
    global _waiting
    deadline = None if milliseconds is None else time.monotonic() + milliseconds / 1000
    is_main = threading.get_ident() == threading.main_thread().ident
    with _changed:
        while True:
            if everything and all(one.is_set() for one in waitables):
                for one in waitables:
                    one.consume()
                return WAIT_OBJECT_0
            if not everything:
                for index, one in enumerate(waitables):
                    if one.is_set():
                        one.consume()
                        return WAIT_OBJECT_0 + index
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return WAIT_TIMEOUT
            if is_main:
                left = SIGNAL_SLICE if left is None else min(left, SIGNAL_SLICE)
            _waiting += 1
            try:
                _changed.wait(left)
            finally:
                _waiting -= 1
