"""Everything that completionport raises, one class for each reason."""

from __future__ import annotations

import errno
import os

from .error_codes import add_codes


class CompletionPortError(Exception):
    """Base of every error that this package defines."""


class PortClosed(CompletionPortError):
    """The port was closed: before the call, or while a thread waited in it.

    Win32 answers ``ERROR_ABANDONED_WAIT_0`` to a waiting thread and
    ``ERROR_INVALID_HANDLE`` to a later call.
    """


class HandleClosed(CompletionPortError, ValueError):
    """An operation was asked of a handle that is closed (``WSAENOTSOCK``)."""


class AlreadyAssociated(CompletionPortError, ValueError):
    """The file belongs to a port already (``ERROR_INVALID_PARAMETER``)."""


class OperationPending(CompletionPortError):
    """The Overlapped is in use: its packet has not been taken yet.

    Raised by a second operation on the same object, and by ``result()``
    (``ERROR_IO_INCOMPLETE``).
    """


class OperationAborted(CompletionPortError, OSError):
    """The operation was cancelled, or its handle or port was closed.

    It is the ``error`` of a packet. Its ``errno`` is ``ECANCELED``; Win32's
    code is ``ERROR_OPERATION_ABORTED``.
    """

    def __init__(self, reason: str = "the operation was cancelled") -> None:
        super().__init__(errno.ECANCELED, reason)
        add_codes(self)


def system_error(number: int, reason: str | None = None) -> OSError:
    """The `OSError` of an errno, with Windows' names for it: ``winerror`` and ``winsock_error``."""
    return add_codes(OSError(number, os.strerror(number) if reason is None else reason))


class ConnectionClosed(CompletionPortError, ConnectionError):
    """Something was to be sent on a server's connection after ``close()`` or ``abort()``."""


class PortForked(CompletionPortError, RuntimeError):
    """The port was made before ``fork()`` and belongs to the parent process."""

    def __init__(self) -> None:
        super().__init__(
            "this completion port was created before fork() and belongs to the parent process: "
            "create a new CompletionPort in the child"
        )


class EngineUnavailable(CompletionPortError, RuntimeError):
    """An engine asked for by name can't run here: why, and what to do.

    ``engine`` is its name, ``reason`` says what the system answered and
    ``remedy`` what would change that.
    """

    def __init__(self, engine: str, reason: str, remedy: str) -> None:
        super().__init__(f"engine {engine!r} can't run here: {reason}. {remedy}")
        self.engine = engine
        self.reason = reason
        self.remedy = remedy
