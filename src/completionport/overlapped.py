"""Overlapped and Completion: compiled where that was built, else in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .interface import Handle
    from .operation import Operation
    from .portable.overlapped import Completion as Completion
    from .portable.overlapped import OverlappedBase
else:
    try:
        from .native.port.operations import Completion, OverlappedBase
    except ImportError:
        from .portable.overlapped import Completion, OverlappedBase  # noqa: F401


class Overlapped(OverlappedBase):
    """One operation: what it is, whether it is under way, what came of it.

    Made to be subclassed: attributes of a subclass are the per-I/O data of the
    article's ``PER_IO_DATA``, and the packet gives the same object back, so there is no
    need for ``CONTAINING_RECORD``. One object can be used again once its packet was taken.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def operation(self) -> Operation:
            """What the object was last used for."""
            raise NotImplementedError

        @property
        def handle(self) -> Handle | None:
            """The handle it was last used with; None for an operation of the port itself."""
            raise NotImplementedError

        @property
        def pending(self) -> bool:
            """True from the call until the packet was taken."""
            raise NotImplementedError

        @property
        def transferred(self) -> int:
            """Bytes moved, as in the packet."""
            raise NotImplementedError

        @property
        def error(self) -> BaseException | None:
            """What went wrong, as in the packet."""
            raise NotImplementedError

        def result(self) -> Any:
            """What the operation gave (``GetOverlappedResult``).

            For ``accept`` the new socket, for ``recv`` and ``read`` of a size the bytes,
            for ``recvfrom`` and ``recvmsg`` a tuple, for ``stat`` an `os.stat_result`, for ``open``
            a descriptor number, for ``getaddrinfo`` and ``submit`` what the function returned, for
            all others the number of bytes.
            Raises the packet's error, and `OperationPending` while the packet was not taken.
            """
            raise NotImplementedError

        def cancel(self) -> bool:
            """Cancel the operation (``CancelIoEx``); False when it was not pending."""
            raise NotImplementedError
