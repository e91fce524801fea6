"""The I/O manager: the engine that carries operations out, and the thread that passes on.

In Windows an operation belongs to a file object, and only when it completes the I/O manager looks
whether that has a port. Here it is the same: all files' operations run on one completion port of
the library that the program never sees. A thread takes its packets and completes the program's
operations: their status, their event, and a packet at the program's port, where there is one by
then. The program's ports are completion ports too, on which packets are only posted.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from typing import Protocol

from ...crew.crew import Crew
from ...engines import Overlapped
from ...interface.handle import Handle
from ...interface.port import Completion, CompletionPort

logger = logging.getLogger(__name__)


class Arrival(Protocol):
    """Who is told of a packet that the manager has taken."""

    def arrived(self, packet: Completion) -> None:
        """On the manager's thread."""


class Step(Overlapped):
    """An operation of the engine on behalf of one of the program's, which may take several."""

    __slots__ = ("target",)

    target: Arrival


class Manager:
    """One hidden port, and the thread that takes its packets."""

    def __init__(self) -> None:
        self.port = CompletionPort(1)
        crew, name = Crew(self.port, complete), "win32-io-manager"
        self._thread = threading.Thread(target=crew.work, args=(name,), name=name, daemon=True)
        self._thread.start()

    def associate(self, number: int, key: object) -> Handle:
        """The engine's handle for a file of the program."""
        return self.port._associate_skipping(number, key)

    def pass_on(self, target: Arrival) -> None:
        """Have the target told behind everything that has completed so far."""
        self.port.post(overlapped=target)

    def close(self) -> None:
        """End the thread. Whatever is under way is lost."""
        self.port.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()


def complete(packet: Completion) -> None:
    """Tell the operation that the packet belongs to."""
    step = packet.overlapped
    try:
        (step.target if isinstance(step, Step) else step).arrived(packet)
    except Exception:
        # One operation is lost; those of others must go on.
        logger.exception("a completion could not be passed on")


_lock = threading.Lock()  # guards the two below
_manager: Manager | None = None
_users = 0  # files that have a handle of the manager


def join() -> Manager:
    """The manager of this process, for one more file."""
    global _manager, _users
    with _lock:
        if _manager is None:
            _manager = Manager()
        _users += 1
        return _manager


def leave(manager: Manager) -> None:
    """A file has no handle any more."""
    global _users
    with _lock:
        if manager is _manager:
            _users -= 1


def close_if_unused() -> None:
    """End the thread unless a file is open; the next file starts it again."""
    global _manager
    with _lock:
        if _manager is None or _users:
            return
        manager, _manager = _manager, None
    manager.close()


@atexit.register
def _close() -> None:
    global _manager, _users
    with _lock:
        manager, _manager, _users = _manager, None, 0
    if manager is not None:
        manager.close()


def _after_fork() -> None:
    # The child has neither the thread nor the port.
    global _lock, _manager, _users
    _lock = threading.Lock()
    _manager, _users = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
