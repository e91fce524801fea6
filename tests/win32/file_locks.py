"""Watches in which order threads take the locks of files, where the system is not Windows."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import traceback
import types
from collections.abc import Iterator
from typing import Any

import pytest

from completionport.win32.emulation import files


class FileLock:
    """The lock of one file object, which tells of each thread that takes it behind another one."""

    held = threading.local()
    """``locks``: those that the thread has, in the order in which it took them; its own."""

    def __init__(self, faults: list[str]) -> None:
        self._lock = threading.RLock()
        self._faults = faults

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        locks = FileLock.held.__dict__.setdefault("locks", [])
        if self not in locks:
            for other in locks:
                self._look_at(other)
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            locks.append(self)
        return taken

    def release(self) -> None:
        locks = FileLock.held.locks
        del locks[len(locks) - 1 - locks[::-1].index(self)]
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _look_at(self, held: FileLock) -> None:
        first, second = file_of(held), file_of(self)
        if not (is_listening(first) and not is_listening(second)):
            self._faults.append(
                f"the lock of {second} was taken by a thread that has the lock of {first}:\n"
                + "".join(traceback.format_stack()[:-2])
            )


def file_of(lock: FileLock) -> Any:
    while True:
        with contextlib.suppress(RuntimeError):  # without a GIL, when another thread makes a file
            return next((one for one in list(files._files) if one.lock is lock), None)


def is_listening(file: Any) -> bool:
    if file is None or file.closed or not file.is_socket:
        return False
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(file.number)) as sock:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return False


@contextlib.contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Files that are made in this block have such a lock. What was wrong is in the list."""
    faults: list[str] = []
    with monkeypatch.context() as patch:
        threads = types.SimpleNamespace(RLock=lambda: FileLock(faults))
        patch.setattr(files, "threading", threads)
        yield faults
