"""Threads, events, and waiting for them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from .arguments import check_dword, check_file, check_handle, succeed
from .constants import MAXIMUM_WAIT_OBJECTS, WAIT_FAILED
from .structures import HANDLE, SYSTEM_INFO
from .system import system


def CreateThread(
    lpThreadAttributes: None,
    dwStackSize: int,
    lpStartAddress: Callable[[Any], Any],
    lpParameter: Any,
    dwCreationFlags: int = 0,
    lpThreadId: None = None,
) -> HANDLE:
    """Start a thread that calls ``lpStartAddress(lpParameter)``: its handle.

    `CloseHandle` lets go of the handle, not of the thread. As on Windows the end of the main thread
    ends the program and does not wait for it. An exception in it is reported as in any thread.
    ``lpThreadAttributes`` and ``lpThreadId`` must be None, ``dwCreationFlags`` 0; the stack has
    Python's size (`threading.stack_size`) whatever ``dwStackSize`` says.
    """
    if not callable(lpStartAddress):
        raise TypeError(f"lpStartAddress must be a function, not {type(lpStartAddress).__name__}")
    if lpThreadAttributes is not None or lpThreadId is not None or dwCreationFlags:
        raise ValueError("CreateThread() takes no attributes, no place for an id, and no flags")
    return system.create_thread(lpStartAddress, lpParameter)


def GetExitCodeThread(hThread: HANDLE) -> tuple[bool, int]:
    """``(ok, code)``: the integer that the function returned, ``STILL_ACTIVE`` until then."""
    check_handle("hThread", hThread)
    error, code = system.exit_code(hThread)
    return succeed(error), code


def CreateEvent(
    lpEventAttributes: None, bManualReset: bool, bInitialState: bool, lpName: None = None
) -> HANDLE:
    """A new event: its handle. With ``bManualReset`` a wait that ends leaves it signalled.

    ``lpEventAttributes`` and ``lpName`` must be None.
    """
    if lpEventAttributes is not None or lpName is not None:
        raise ValueError("CreateEvent() takes no attributes and no name: give None")
    return system.create_event(bool(bManualReset), bool(bInitialState))


def SetEvent(hEvent: HANDLE) -> bool:
    """Signal an event."""
    check_handle("hEvent", hEvent)
    return succeed(system.set_event(hEvent, True))


def ResetEvent(hEvent: HANDLE) -> bool:
    """Make an event not signalled."""
    check_handle("hEvent", hEvent)
    return succeed(system.set_event(hEvent, False))


def WaitForSingleObject(hHandle: HANDLE | socket.socket, dwMilliseconds: int) -> int:
    """Wait for the end of a thread, for an event, for a file or a socket, or for a port.

    A file or a socket is signalled when an operation without an event of its own has completed, and
    not any more when the next one is started; a port is signalled while it has packets, and the
    wait takes none.

    Returned: ``WAIT_OBJECT_0``; ``WAIT_TIMEOUT``; ``WAIT_FAILED`` and the last error.
    """
    return WaitForMultipleObjects([hHandle], False, dwMilliseconds)


def WaitForMultipleObjects(
    lpHandles: Sequence[HANDLE | socket.socket], bWaitAll: bool, dwMilliseconds: int
) -> int:
    """Wait for one of up to 64 objects (`WaitForSingleObject`), or with ``bWaitAll`` for all.

    Returned: ``WAIT_OBJECT_0`` plus the index of the first one that is signalled (plus 0 for all);
    ``WAIT_TIMEOUT``; ``WAIT_FAILED`` and the last error.
    """
    handles = list(lpHandles)
    for handle in handles:
        check_file("each of lpHandles", handle)
    check_dword("dwMilliseconds", dwMilliseconds)
    if not 1 <= len(handles) <= MAXIMUM_WAIT_OBJECTS:
        raise ValueError(f"1 to {MAXIMUM_WAIT_OBJECTS} handles were expected, not {len(handles)}")
    error, answer = system.wait(handles, bool(bWaitAll), dwMilliseconds)
    succeed(error)
    return WAIT_FAILED if error else answer


def GetSystemInfo() -> SYSTEM_INFO:
    """The number of processors that this process may use, and the sizes of memory pages."""
    return system.system_info()
