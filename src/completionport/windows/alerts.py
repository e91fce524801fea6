"""Signals that end a wait of the main thread.

Python calls handlers in the main thread, between two of its steps, and a wait in the kernel is one
step. But when a signal comes, Python writes a byte to a descriptor (`signal.set_wakeup_fd`). That
is here one end of a pipe; at the other end the main thread has a read under way, whose completion
is told by a procedure call in that very thread (an APC), and this ends an alertable wait. So nobody
waits in slices, no packet is needed that another thread might take, and the thread keeps its place
among those that wait at a port for as long as no signal comes.

The descriptor is set as long as the thread waits, and the program's own, if there is one, is put
back. Whichever thread a signal comes in looks at it without the GIL, in two steps: its number, and
whether to send or to write to it. So a change from none or a file to a file, or from a socket to a
socket, can come between the two, and a change from one kind to the other can't: Python would write
to a socket, say that this failed, and who waits would not hear of it. Hence there are two that are
never closed, a pipe and a pair of sockets, and the one of the program's own kind is set. What is
still written to it when it is not set any more is passed on by the next wait.

Source: the reference of the Windows API on alertable waits, `ReadFileEx` and `QueueUserAPC`;
CPython's ``trip_signal`` and ``signal_set_wakeup_fd`` (Modules/signalmodule.c).
"""

from __future__ import annotations

import _winapi
import ctypes
import functools
import msvcrt
import os
import secrets
import signal
import socket
import threading
from typing import Any

from . import api
from .api import OVERLAPPED, STATUS_PENDING

_ROOM = 64
"""Bytes, one for each signal, that one read takes."""
_PIPE_SIZE = 65536
"""And that the pipe takes where nobody reads."""
_PIPE_NOWAIT = 1
_CERTAIN = 64
"""No socket has a handle as low as that, which Python could take a descriptor's number for."""

_increase = ctypes.pythonapi.Py_IncRef
_increase.argtypes = [ctypes.py_object]
_increase.restype = None
_check_signals = ctypes.pythonapi.PyErr_CheckSignals
# Whether the program wanted to be warned that its own is full can't be asked.
_put_back = functools.partial(signal.set_wakeup_fd, warn_on_full_buffer=False)


def _raise(error: OSError) -> None:
    raise error


_say = ctypes.PYFUNCTYPE(None, ctypes.py_object)(_raise)
"""Tells `sys.unraisablehook` of an error, as Python does where nobody is to suffer for it."""


class _WakeupDescriptor:
    """What Python is given to write to, and the main thread's read at the other end."""

    def __init__(self, number: int, near: int) -> None:
        self.number = number
        self.read = OVERLAPPED()
        self._buffer = ctypes.create_string_buffer(_ROOM)
        self._arguments = (
            near,
            ctypes.addressof(self._buffer),
            _ROOM,
            ctypes.addressof(self.read),
            # What is called does not matter, but no Python may run in there: what a handler
            # raises would be lost. This one has three arguments too, and only multiplies.
            ctypes.cast(api.kernel32.MulDiv, ctypes.c_void_p).value,
        )
        # The kernel has the read for good: not even the ending interpreter may free its memory.
        _increase(self._buffer)
        _increase(self.read)

    def begin(self) -> None:
        """Read, when the last one is over."""
        if not api.ReadFileEx(*self._arguments):
            raise api.error(api.last_error())

    def take(self) -> bytes:
        """What a read that is over has brought, once."""
        count, self.read.InternalHigh = self.read.InternalHigh, 0
        return self._buffer.raw[:count]


def _socket_pair() -> _WakeupDescriptor:
    near, far = socket.socketpair()
    far.setblocking(False)
    # They are the process's, which closes them: as numbers, that nobody takes for forgotten.
    return _WakeupDescriptor(far.detach(), near.detach())


def _pipe() -> _WakeupDescriptor:
    name = rf"\\.\pipe\completionport-{os.getpid()}-{secrets.token_hex(8)}"
    access = _winapi.PIPE_ACCESS_INBOUND | _winapi.FILE_FLAG_OVERLAPPED
    access |= _winapi.FILE_FLAG_FIRST_PIPE_INSTANCE
    near = _winapi.CreateNamedPipe(
        name, access, _winapi.PIPE_WAIT, 1, 0, _PIPE_SIZE, 0, _winapi.NULL
    )
    far = _winapi.CreateFile(
        name, _winapi.GENERIC_WRITE, 0, _winapi.NULL, _winapi.OPEN_EXISTING, 0, _winapi.NULL
    )
    # Who writes may hold the GIL, which the reader needs: it must not wait for room.
    _winapi.SetNamedPipeHandleState(far, _PIPE_NOWAIT, None, None)
    return _WakeupDescriptor(msvcrt.open_osfhandle(far, os.O_WRONLY | os.O_NOINHERIT), near)


class Alerts:
    """The two descriptors, and their reads. The main thread's alone: no lock.

    A handler may itself wait, so every method may be entered again wherever Python looks for
    signals: that is behind each call, and nowhere else within an expression.
    """

    def __init__(self) -> None:
        self._for_sockets = self._for_files = _socket_pair()
        pipe = _pipe()
        if pipe.number < _CERTAIN:
            self._for_files = pipe
        self._likely = self._for_files  # of the kind that the program's own was at the last wait
        self._told = bytearray()  # numbers of the signals that came
        self._reads = 0  # how many were begun

    def wait(self, function: Any, *arguments: Any) -> tuple[Any, bool] | None:
        """See `wait`; None: not waited, since the program's own descriptor is of another kind."""
        one, other = self._for_files.read, self._for_sockets.read
        ours = self._likely.number
        before: list[int] = []
        last: list[int] = []
        put_back = map(_put_back, before)
        try:
            # One call, so that no handler runs while it is set and what was there is not known.
            before.extend(map(signal.set_wakeup_fd, [ours]))
            if not self._fits(before[0]):
                return None
            reads = self._reads
            self._collect()
            if one.Internal != STATUS_PENDING:
                self._for_files.begin()
                self._reads += 1
            if other.Internal != STATUS_PENDING:
                self._for_sockets.begin()
                self._reads += 1
            _check_signals()
            # Whatever a handler has waited for meanwhile, the reads are looked at last. The next
            # one may come before this one is over, so who has waited long enough is to say so.
            # Where one was over before, a call of somebody else's may have come with its end.
            is_quiet = one.Internal == STATUS_PENDING and other.Internal == STATUS_PENDING
            if not is_quiet or self._reads != reads:
                return None, True
            result = function(*arguments)
            is_quiet = one.Internal == STATUS_PENDING and other.Internal == STATUS_PENDING
            return result, not is_quiet or self._reads != reads
        finally:
            last.extend(put_back)  # in one call too
            if last and last[0] != ours:
                # A handler has set another one, which is the program's from now on.
                signal.set_wakeup_fd(last[0])
                self._pass_on(last[0])
            elif before and before[0] not in (self._for_files.number, self._for_sockets.number):
                # Else it is another wait, around this one.
                self._pass_on(before[0])

    def _fits(self, descriptor: int) -> bool:
        """Whether the program's own was of the likely kind; the one that it was is likely now."""
        likely, self._likely = self._likely, self._for_files
        if descriptor == self._for_sockets.number or (
            descriptor not in (-1, self._for_files.number) and api.is_socket(descriptor)
        ):
            self._likely = self._for_sockets
        return self._likely is likely

    def _collect(self) -> None:
        """Remember what reads that are over have brought."""
        one, other = self._for_files, self._for_sockets
        if one.read.Internal != STATUS_PENDING or other.read.Internal != STATUS_PENDING:
            for descriptor in (one, other):
                if descriptor.read.Internal != STATUS_PENDING:
                    self._told += descriptor.take()
            # What is left of their calls would end the next wait for nothing.
            api.SleepEx(0, True)

    def _pass_on(self, descriptor: int) -> None:
        """Write to the program's own descriptor, if it has one, what Python would have written."""
        self._collect()
        told, self._told = bytes(self._told), bytearray()
        if not told or descriptor == -1:
            return
        try:
            if not api.is_socket(descriptor):
                os.write(descriptor, told)
                return
            its = socket.socket(fileno=descriptor)
            try:
                its.send(told)
            finally:
                its.detach()
        except BlockingIOError:
            pass  # it is full, and so its reader has enough to wake it
        except OSError as error:
            # As Python does: who waits has nothing to do with it.
            text = (
                f"descriptor {descriptor} of signal.set_wakeup_fd() was not told of a signal, "
                f"whose handler has run: {error.strerror}; set another one, or -1"
            )
            _say(OSError(error.errno, text))


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
    call means nothing, and who still has to wait calls again. None and True: it was not called,
    since a signal came before. What the handler raised is raised.
    """
    prepare()
    assert _alerts is not None
    while (outcome := _alerts.wait(function, *arguments)) is None:
        pass
    return outcome
