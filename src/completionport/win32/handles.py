"""Handles of one object: a second one, and the end of each."""

from __future__ import annotations

import os
import threading
from typing import Final

from .arguments import check_handle
from .constants import DUPLICATE_CLOSE_SOURCE, DUPLICATE_SAME_ACCESS, ERROR_INVALID_HANDLE, NULL
from .last_error import SetLastError
from .structures import HANDLE

_CURRENT_PROCESS: Final = HANDLE("this process")
_lock = threading.Lock()
_others: dict[int, int] = {}
"""How many handles an object has beside one, by its `id`: of those with more than one, which are
alive. `_lock` guards it, and the step from an open handle to a closed one."""


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that the child lacks may hold the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def GetCurrentProcess() -> HANDLE:
    """What stands for this process in `DuplicateHandle`; it need not be closed."""
    return _CURRENT_PROCESS


def DuplicateHandle(
    hSourceProcessHandle: HANDLE,
    hSourceHandle: HANDLE,
    hTargetProcessHandle: HANDLE,
    dwDesiredAccess: int = 0,
    bInheritHandle: bool = False,
    dwOptions: int = DUPLICATE_SAME_ACCESS,
) -> tuple[bool, HANDLE]:
    """Make one more handle for a port, a file, an event or a thread: ``(True, handle)``.

    Both processes are `GetCurrentProcess`, no handle is inherited, and the access is the same
    (``DUPLICATE_SAME_ACCESS``): anything else is a `ValueError`. With ``DUPLICATE_CLOSE_SOURCE``
    the source is closed. The object goes when its last handle is closed.

    ``(False, NULL)`` and ``ERROR_INVALID_HANDLE`` for a closed handle. A socket is no handle here:
    `socket.socket.dup` makes a second one.
    """
    for name, process in (
        ("hSourceProcessHandle", hSourceProcessHandle),
        ("hTargetProcessHandle", hTargetProcessHandle),
    ):
        check_handle(name, process)
        if process is not _CURRENT_PROCESS:
            raise ValueError(f"{name} must be GetCurrentProcess(): other processes are not reached")
    check_handle("hSourceHandle", hSourceHandle)
    if not dwOptions & DUPLICATE_SAME_ACCESS or bInheritHandle:
        raise ValueError("DuplicateHandle() makes handles with the same access, not inherited")
    with _lock:
        found = hSourceHandle._object
        if found is None or hSourceHandle is _CURRENT_PROCESS:
            SetLastError(ERROR_INVALID_HANDLE)
            return False, NULL
        if dwOptions & DUPLICATE_CLOSE_SOURCE:
            hSourceHandle._object = None
        else:
            _others[id(found)] = _others.get(id(found), 0) + 1
        return True, HANDLE(found)


def let_go(handle: HANDLE) -> bool:
    """Close a handle whose object has others, which goes on; False where it is the last one."""
    with _lock:
        found = handle._object
        others = _others.pop(id(found), 0)
        if others:
            handle._object = None
        if others > 1:
            _others[id(found)] = others - 1
        return others > 0
