"""The calls that wait: for packets, for an outcome, for events and threads.

The main thread waits alertably, so that a signal ends the wait in the kernel. What its handler
raises ends the call; otherwise the wait goes on for the rest of its time.
"""

# The relative imports stand behind the assertion, for type checkers on other systems.
# ruff: noqa: E402
from __future__ import annotations

import math
import sys
import time
from ctypes import addressof
from ctypes.wintypes import DWORD, ULONG
from typing import Any

assert sys.platform == "win32"

from ctypes import set_last_error

from ...windows import alerts
from ...windows.api import (
    INFINITE,
    OVERLAPPED_ENTRY,
    WAIT_IO_COMPLETION,
    WAIT_TIMEOUT,
    GetQueuedCompletionStatusEx,
    PostQueuedCompletionStatus,
    RtlNtStatusToDosError,
    last_error,
)
from ..constants import FALSE
from ..outcomes import Taken
from .api import POSTED, get_result_alertably, get_status, wait_for_alertably
from .objects import Port, file_of_key, operations_of_key, settle

MOST = 1024
"""Packets that are taken at once: more makes nothing faster, and takes memory."""


def take(port: Port, count: int, milliseconds: int, alertable: bool) -> tuple[int, list[Taken]]:
    """Take packets: a code and those that came."""
    # Every packet has an address, so the entries that stay empty can be told apart.
    entries, found = (OVERLAPPED_ENTRY * min(count, MOST))(), ULONG()
    some = port.value, addressof(entries), len(entries), addressof(found)
    # In the main thread what is there costs no preparation for signals.
    wait = 0 if alerts.is_main_thread() else milliseconds
    try:
        if count == 1 and not alertable:
            code = _take_one(port.value, addressof(entries), wait)
        else:
            code = _code_unless(GetQueuedCompletionStatusEx(*some, wait, alertable))
        if code == WAIT_TIMEOUT and wait != milliseconds:
            code = _code_unless(
                _wait(FALSE, alertable, milliseconds, GetQueuedCompletionStatusEx, *some)
            )
        here = [entry for entry in entries if entry.lpOverlapped]
        taken = [_look_up(port, entry) for entry in here]
        for entry in here:
            _strike_out(port, entry)
    except BaseException:
        # A signal handler has raised with packets in hand.
        for entry in entries:
            _give_back(port, entry)
        raise
    return code, taken


def _take_one(port: int, entry: int, milliseconds: int) -> int:
    done = get_status(
        port,
        entry + OVERLAPPED_ENTRY.dwNumberOfBytesTransferred.offset,
        entry + OVERLAPPED_ENTRY.lpCompletionKey.offset,
        entry + OVERLAPPED_ENTRY.lpOverlapped.offset,
        milliseconds,
    )
    return _code_unless(done)


def _look_up(port: Port, entry: OVERLAPPED_ENTRY) -> Taken:
    """What a packet stands for."""
    count, address = entry.dwNumberOfBytesTransferred, entry.lpOverlapped
    if entry.lpCompletionKey == POSTED:
        key, overlapped = port.posted[address]
        return Taken(count, key, overlapped, 0, 0)
    file = file_of_key(entry.lpCompletionKey)
    io = file.under_way[address]
    return Taken(count, file.key, io.overlapped, io.status, code_of(io.status))


def _strike_out(port: Port, entry: OVERLAPPED_ENTRY) -> None:
    """The packet is taken for good."""
    if entry.lpCompletionKey == POSTED:
        del port.posted[entry.lpOverlapped]
    else:
        settle(file_of_key(entry.lpCompletionKey).under_way[entry.lpOverlapped])


def _give_back(port: Port, entry: OVERLAPPED_ENTRY) -> None:
    """Put a packet that was not taken for good back into the kernel's queue."""
    key, address = entry.lpCompletionKey, entry.lpOverlapped
    if address in (port.posted if key == POSTED else operations_of_key(key)):
        PostQueuedCompletionStatus(port.value, entry.dwNumberOfBytesTransferred, key, address)


def wait_for_result(file: int, address: int) -> None:
    """In the main thread, wait until an operation is over; how it has ended is asked afterwards."""
    count = DWORD()
    _wait(FALSE, False, INFINITE, get_result_alertably, file, address, addressof(count))


def wait_for_objects(handles: Any, everything: bool, milliseconds: int) -> int:
    """Wait for events and threads, an array of their handles: what Windows answers."""
    arguments = len(handles), handles, everything
    if alerts.is_main_thread() and milliseconds:
        call = milliseconds, wait_for_alertably, *arguments
        return int(_wait(WAIT_IO_COMPLETION, False, *call))
    return int(wait_for_alertably(*arguments, milliseconds, False))


def _wait(no: int, alertable: bool, milliseconds: int, function: Any, *arguments: Any) -> int:
    """In the main thread, make a call that a signal ends, and make it again until it says more.

    ``function``: its last arguments are how long it waits, and that it does so alertably.
    ``no``: what it returns when a procedure call ends it. ``alertable``: the program wants to know.
    """
    deadline = time.monotonic() + milliseconds / 1000
    while True:
        answer, was_alerted = alerts.wait(function, *arguments, milliseconds, True)
        if answer is not None and answer != no:
            return int(answer)
        if not was_alerted and no == FALSE and last_error() != WAIT_IO_COMPLETION:
            return no
        if alertable:
            set_last_error(WAIT_IO_COMPLETION)
            return no
        if milliseconds != INFINITE:
            milliseconds = max(math.ceil((deadline - time.monotonic()) * 1000), 0)
            if not milliseconds:
                return int(function(*arguments, 0, False))  # however many signals still come


def _code_unless(done: int) -> int:
    return 0 if done else int(last_error())


def code_of(status: int) -> int:
    """The Windows code of an operation's status, as `GetQueuedCompletionStatus` sets it."""
    return int(RtlNtStatusToDosError(status)) if status & 0x80000000 else 0
