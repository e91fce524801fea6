"""Signals that end a wait of the main thread.

Python calls handlers in the main thread, between two of its steps, and a wait in the kernel is one
step. But when a signal comes, Python writes a byte to a descriptor (`signal.set_wakeup_fd`). That
is here one end of a pair of sockets; at the other end the main thread has a read under way, whose
completion is told by a procedure call in that very thread (an APC), and this ends an alertable
wait. So nobody waits in slices, no packet is needed that another thread might take, and the thread
keeps its place among those that wait at a port for as long as no signal comes.

Source: the reference of the Windows API on alertable waits, `ReadFileEx` and `QueueUserAPC`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from typing import Any

from . import api
from .api import OVERLAPPED, STATUS_PENDING

_ROOM = 64
"""Bytes, one for each signal, that one read takes."""

_increase = ctypes.pythonapi.Py_IncRef
_increase.argtypes = [ctypes.py_object]
_increase.restype = None
_check_signals = ctypes.pythonapi.PyErr_CheckSignals


class Alerts:
    """The pair of sockets, and the read. The main thread's alone: no lock.

    A handler may itself wait, so every method may be entered again wherever Python looks for
    signals: that is behind each call, and nowhere else within an expression.
    """

    def __init__(self) -> None:
        near, far = socket.socketpair()
        far.setblocking(False)
        # They are the process's, which closes them: as numbers, that nobody takes for forgotten.
        self._near, self._far = near.detach(), far.detach()
        self._buffer = ctypes.create_string_buffer(_ROOM)
        self._read = OVERLAPPED()
        self._told = bytearray()  # numbers of the signals that came
        self._reads = 0  # how many were begun
        self._arguments = (
            self._near,
            ctypes.addressof(self._buffer),
            _ROOM,
            ctypes.addressof(self._read),
            # What is called does not matter, but no Python may run in there: what a handler
            # raises would be lost. This one has three arguments too, and only multiplies.
            ctypes.cast(api.kernel32.MulDiv, ctypes.c_void_p).value,
        )
        # The kernel has the read for good: not even the ending interpreter may free its memory.
        _increase(self._buffer)
        _increase(self._read)

    def wait(self, function: Any, *arguments: Any) -> tuple[Any, bool]:
        """See `wait`."""
        before: list[int] = []
        read, reading = self._read, self._arguments
        try:
            # One call, so that no handler runs while it is set and what was there is not known.
            before.extend(map(signal.set_wakeup_fd, [self._far]))
            while True:
                self._collect()
                # Whatever a handler has waited for meanwhile, the read is looked at last.
                if read.Internal != STATUS_PENDING:
                    if not api.ReadFileEx(*reading):
                        raise api.error(api.last_error())
                    self._reads += 1
                _check_signals()
                if read.Internal == STATUS_PENDING:
                    reads = self._reads
                    result = function(*arguments)
                    return result, read.Internal != STATUS_PENDING or self._reads != reads
        finally:
            if before:
                signal.set_wakeup_fd(before[0], warn_on_full_buffer=False)
                if before[0] != self._far:  # else it is another wait, around this one
                    self._pass_on(before[0])

    def _collect(self) -> None:
        """Remember what a read that is over has brought."""
        read = self._read
        if read.Internal != STATUS_PENDING:
            count, read.InternalHigh = read.InternalHigh, 0
            self._told += self._buffer.raw[:count]
            # What is left of its call would end the next wait for nothing.
            api.SleepEx(0, True)

    def _pass_on(self, descriptor: int) -> None:
        """Write to the program's own descriptor, if it has one, what Python would have written."""
        self._collect()
        told, self._told = bytes(self._told), bytearray()
        if not told or descriptor == -1:
            return
        if not api.is_socket(descriptor):
            os.write(descriptor, told)
            return
        its = socket.socket(fileno=descriptor)
        try:
            its.send(told)
        except BlockingIOError:
            pass  # it is full, and so its reader has enough to wake it
        finally:
            its.detach()


_alerts: Alerts | None = None
"""Made by the first wait of the main thread, and there until the process ends. Its alone."""


def prepare() -> None:
    """Make what the first wait would make. Main thread."""
    global _alerts
    if _alerts is None:
        _alerts = Alerts()


def is_main_thread() -> bool:
    """Whether signals are handled in this thread."""
    return threading.get_ident() == threading.main_thread().ident


def wait(function: Any, *arguments: Any) -> tuple[Any, bool]:
    """In the main thread, make a call of Windows that waits alertably; a signal ends it.

    ``function``: of ctypes, declared. ``arguments``: they ask it to wait alertably.
    Returned: what it returned, and whether a signal came: then its handler has run, an error of the
    call means nothing, and who still has to wait calls again. What the handler raised is raised.
    """
    prepare()
    assert _alerts is not None
    return _alerts.wait(function, *arguments)
