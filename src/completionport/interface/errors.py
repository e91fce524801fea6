"""Everything that completionport raises, one class for each reason."""

from __future__ import annotations

import errno
import os
from typing import Any

from .error_codes import add_codes

CANCELLED = "the operation was cancelled"
PORT_WAS_CLOSED = "the completion port was closed"
"""Why an operation was aborted."""
WHILE_WAITING = "this completion port was closed while a thread waited in it"
"""What a thread in `CompletionPort.get` is told."""
NO_THREAD = (
    "the system refuses the thread that it needs: raise the limits of threads and memory "
    "(ulimit -u, pids.max of the control group), or try again later"
)
"""What an operation is told that could not be carried out for want of a thread, with EAGAIN."""
BACKLOG_IS_FULL = (
    "the backlog of the Unix socket's listener is full, and the system does not tell when it has "
    "room: try again later, or give its listen() a larger backlog"
)
"""Why a connect fails with ``EAGAIN``."""
NOT_INITIALISED = (
    "this completion port was not initialised: the __init__ of its class must call "
    "super().__init__(concurrency, ...) before anything else is asked of it"
)
"""What a port of a subclass is told that forgot it, or that was made by ``__new__`` alone."""


class CompletionPortError(Exception):
    """Base of every error that this package defines."""


class PortClosed(CompletionPortError):
    """The port was closed: before the call, or while a thread waited in it.

    Win32 answers ``ERROR_ABANDONED_WAIT_0`` to a waiting thread and
    ``ERROR_INVALID_HANDLE`` to a later call.
    """

    def __init__(self, reason: str = "this completion port is closed") -> None:
        super().__init__(reason)


class HandleClosed(CompletionPortError, ValueError):
    """An operation was asked of a handle that is closed (``WSAENOTSOCK``)."""

    def __init__(
        self, reason: str = "this handle is closed: associate a new file with the port"
    ) -> None:
        super().__init__(reason)


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

    def __init__(self, reason: str = CANCELLED) -> None:
        super().__init__(errno.ECANCELED, reason)
        add_codes(self)

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle: its arguments are not those of OSError
        return type(self), (self.strerror,), vars(self)


def system_error(number: int, reason: str | None = None) -> OSError:
    """The `OSError` of an errno, with Windows' names for it: ``winerror`` and ``winsock_error``."""
    return add_codes(OSError(number, os.strerror(number) if reason is None else reason))


class ConnectionClosed(CompletionPortError, ConnectionError):
    """Something was to be sent on a server's connection after ``close()`` or ``abort()``.

    Or from an `Endpoint` whose server has ended.
    """


class PortForked(CompletionPortError, RuntimeError):
    """The port was made before ``fork()`` and belongs to the parent process."""

    def __init__(self) -> None:
        super().__init__(
            "this completion port was created before fork() and belongs to the parent process: "
            "create a new CompletionPort in the child"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), vars(self)


class PortOwned(CompletionPortError, RuntimeError):
    """Packets were to be put on, or taken from, the port that a server made for itself.

    The server's workers take every packet of that port, and its handler has no ``packet()`` for the
    program's. ``what`` was asked for; ``owner`` says whose port it is.
    """

    def __init__(self, what: str, owner: str) -> None:
        super().__init__(
            f"{what} can't be used on the port that belongs to {owner}, whose workers take every "
            "packet. Make a CompletionPort of your own and give it to the server "
            "(completion_port=port): then a WorkerPool or threads in get() take the program's "
            "packets. Or give the handler a packet(completion): it gets what post(), timers, "
            "associate() and submit() bring"
        )
        self.what = what
        """What was asked for."""
        self.owner = owner
        """Whose port it is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.owner), vars(self)


class EngineUnavailable(CompletionPortError, RuntimeError):
    """An engine asked for by name can't run here: why, and what to do.

    ``engine`` is its name, ``reason`` says what the system answered and
    ``remedy`` what would change that.
    """

    def __init__(self, engine: str, reason: str, remedy: str) -> None:
        super().__init__(f"engine {engine!r} can't run here: {reason}. {remedy}")
        self.engine = engine
        """The name of the engine."""
        self.reason = reason
        """What the system answered."""
        self.remedy = remedy
        """What would change that."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.engine, self.reason, self.remedy), vars(self)


def no_thread() -> OSError:
    """The error of an operation that could not be carried out for want of a thread."""
    return system_error(errno.EAGAIN, f"{os.strerror(errno.EAGAIN)}: {NO_THREAD}")
