"""One operation under way, as the engines in Python see it."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, dropwhile, repeat, takewhile
from operator import call
from typing import Any, ClassVar, Protocol

from ...interface.error_codes import add_codes
from ...interface.errors import PORT_WAS_CLOSED, OperationAborted
from ...interface.handle import Meaning, Overlapped
from ...interface.operation import Operation
from ...interface.port import Completion, CompletionPort
from ...shared.sources import open_source
from ..scheduling.places import Consumer, PortableStrand
from ..scheduling.recorder import NOT_MEASURED
from .messages import Items, close_descriptors, descriptors_in
from .sources import Source, close_source

LARGEST_SIZE = 2**31 - 1
LARGEST_VECTOR: int = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16
if LARGEST_VECTOR <= 0:
    LARGEST_VECTOR = 16

READING = frozenset(
    {
        *(Operation.ACCEPT, Operation.RECV, Operation.READ, Operation.CHANGES),
        *(Operation.RECVFROM, Operation.RECVMSG),
    }
)


BRINGS_VALUE = frozenset(
    {Operation.ACCEPT, Operation.OPEN, Operation.STAT, Operation.CALL, Operation.RESOLVE}
)


class Owner(Protocol):
    """What a request is asked of: a handle, or what an operation without one has in its place."""

    @property
    def key(self) -> Any:
        """The key of its packet."""

    @property
    def _strand(self) -> PortableStrand | None:
        """What its packet is bound to."""

    @property
    def _consumer(self) -> Consumer | None:
        """Who its packet is for."""


def after(request: Request, queue: Iterable[Request]) -> list[Request]:
    """Those that stand behind it in its queue."""
    return list(dropwhile(lambda one: one is not request, queue))[1:]


def behind_connect(following: Iterable[Request], kind: int) -> list[Request]:
    """Of those that stand behind a connect the ones that are for its connection.

    Another connect has a try of its own. On what is no stream (``kind``, the type of the socket) a
    datagram may have an address of its own.
    """
    mine = takewhile(lambda one: one.operation is not Operation.CONNECT, following)
    return [one for one in mine if kind == socket.SOCK_STREAM or one.address is None]


class Request:
    """What an operation needs besides its Overlapped.

    It belongs to the thread that makes it, then to its channel (guarded by the channel's
    lock), then, once it is complete, to whoever takes it out of the packet queue. It holds the
    buffers, the handle and the Overlapped until then.
    """

    is_operation: ClassVar[bool] = True

    __slots__ = (
        "accepted",
        "address",
        "alone",
        "ancillary",
        "ancillary_size",
        "asked",
        "begun",
        "call",
        "cancelled",
        "complete",
        "connecting",
        "consumer",
        "count",
        "delivered",
        "direct",
        "error",
        "extent",
        "flags",
        "flight",
        "handle",
        "last",
        "meaning",
        "message",
        "number",
        "offset",
        "operation",
        "overlapped",
        "parts",
        "path",
        "place",
        "reason",
        "since",
        "size",
        "source",
        "space",
        "strand",
        "transferred",
        "value",
        "views",
    )

    def __init__(self, operation: Operation, handle: Owner) -> None:
        self.operation = operation
        self.handle = handle
        self.strand = handle._strand
        self.consumer = handle._consumer
        self.number = 0
        self.since = NOT_MEASURED  # when it came into the packet queue
        self.overlapped: Overlapped  # set before the request goes anywhere
        self.meaning: Meaning | None = None  # what a read stands for
        self.flags = 0
        self.offset: int | None = None
        self.address: Any = None
        self.connecting = False  # the kernel has the connect
        self.size: int | None = None  # None: into or out of `views`
        self.views: list[memoryview] = []  # what is still to be filled or sent
        self.parts: list[bytes] = []  # what came for `size` so far
        self.transferred = 0
        self.error: BaseException | None = None
        # cancel() or close() asked for its end: set under the lock of its line; a copy only asks.
        self.cancelled = False
        # Bytes from `offset` that a write or an allocation covers; the mode of an open; the most
        # that is copied.
        self.extent = 0
        self.path = ""
        self.direct = False  # the file is read and written past the page cache
        # A function with its arguments; or how the system copies a file.
        self.call: Callable[..., Any] | None = None
        self.ancillary: Items = []  # to be sent; descriptors in it are duplicates of our own
        self.ancillary_size = 0  # room for what comes
        self.source: Source | None = None  # of a sendfile
        # The new socket; the address of a message; its ancillary data, flags and address.
        self.value: Any = None
        self.last: Callable[[], None]  # gives the outcome to the Overlapped; set by `take`
        self.begun = False  # it is in a queue: its packet comes, whatever a handler raises
        self.complete = False
        self.delivered = False  # it is in the packet queue, or was
        # Where it is carried out by calls that do not wait (``engines.attempts``):
        self.count = -1  # what the last call gave, -1 before the first one
        self.asked = 0  # how much that call was asked for; the error of a connect
        self.place = (0, 0)  # the first view that is not done, and the bytes before it
        self.accepted: socket.socket | None = None  # the new socket, which may not have its number
        self.message: Any = None  # what came
        self.space: bytearray | None = None  # and where to
        # Where the kernel carries it out:
        self.flight: Any = None  # what the kernel has of it now
        self.alone = False  # nothing else of its direction may be in the kernel meanwhile
        self.reason: str | None = None  # why it was asked to stop

    def prepare_input(self, size_or_buffers: Any) -> None:
        """Check and keep what is to be filled."""
        if hasattr(size_or_buffers, "__index__"):
            size = operator.index(size_or_buffers)
            if not 0 <= size <= LARGEST_SIZE:
                raise ValueError(
                    f"{self._name}() takes a size of 0 to {LARGEST_SIZE} bytes, not {size}"
                )
            self.size = size
            return
        self.views = self._views(
            size_or_buffers, True, "a size in bytes, a writable buffer or a sequence of them"
        )

    def prepare_output(self, data_or_buffers: Any) -> None:
        """Check and keep what is to be sent."""
        self.views = self._views(
            data_or_buffers, False, "a bytes-like object or a sequence of them"
        )

    def prepare_source(self, file: Any, offset: Any, count: Any) -> None:
        """Check and keep the part of a file that goes out between the two views."""
        self.source = Source(*open_source(file, offset, count))
        self.advance(0)  # an empty head goes

    def let_sources_go(self) -> None:
        """Close the duplicates that a sendfile or a sendmsg works on."""
        if self.source is not None:
            self.source.close()
        if self.ancillary:
            step = map(os.close, descriptors_in(self.ancillary))
            self.ancillary = []
            _ = [*step]

    def release(self) -> None:
        """Let the buffers go."""
        self.let_sources_go()
        for view in self.views:
            view.release()
        self.views = []

    def abort(self, reason: str) -> None:
        """Complete it as cancelled."""
        self.error = OperationAborted(reason)
        self.complete = True

    def fail(self, error: BaseException) -> None:
        """Complete it with an error."""
        if not isinstance(error, OSError):
            code = errno.ENOMEM if isinstance(error, MemoryError) else errno.EINVAL
            error = OSError(code, str(error) or os.strerror(code))
        add_codes(error)
        # The frames behind it hold this request: they would be a reference cycle.
        error.__traceback__ = None
        error.__context__ = None
        self.error = error
        self.complete = True

    def finish(self) -> None:
        """Give the outcome to the Overlapped, and that to the program.

        Its packet is taken, or never will be.
        """
        self.overlapped._finish(*self.outcome())

    def outcome(self) -> tuple[int, BaseException | None, Any]:
        """The bytes moved, the error, the result: for the Overlapped. It may be asked twice."""
        self.release()
        if self.error is not None:
            value: Any = None
        elif self.operation in BRINGS_VALUE:
            value = self.value
        elif self.size is None:
            value = self.transferred
        elif len(self.parts) == 1:
            value = self.parts[0]
        else:
            value = b"".join(self.parts)
        if self.error is None and self.operation is Operation.RECVFROM:
            value = value, self.value
        elif self.error is None and self.operation is Operation.RECVMSG:
            value = value, *self.value
        transferred = self.transferred
        if self.error is None and self.meaning is not None:
            try:
                transferred, value = self.meaning.outcome(value)
            except OSError as error:
                transferred = 0
                self.fail(error)
                value = None
        return transferred, self.error, value

    def take(self) -> Completion:
        """Its packet, which is the program's behind the steps of `lasts`. It may be made twice."""
        outcome = self.outcome()
        self.last = self.overlapped._prepare(*outcome)
        return CompletionPort._completion(outcome[0], self.handle.key, self.overlapped, outcome[1])

    def drop(self) -> None:
        """The packet will not be taken: the port is closed. It may be done twice."""
        if self.value is not None and self.operation is Operation.ACCEPT:
            self.value.close()  # before it is forgotten: done again, it is harmless
        value, self.value = self.value, None
        try:
            if value is not None and self.operation is Operation.RECVMSG:
                close_descriptors(value[0])
            elif value is not None and self.operation is Operation.OPEN:
                close_source(value)
        finally:
            self._dropped()

    def _dropped(self) -> None:
        if not hasattr(self, "overlapped"):
            return
        if self.error is None:
            self.abort(PORT_WAS_CLOSED)
        self.finish()
        # What a submitted function raised has frames behind it that hold this request: it would be
        # a reference cycle.
        del self.overlapped
        self.error = None

    def discard(self) -> None:
        """The value of a request that succeeded is not wanted any more."""
        if self.value is not None and self.operation is Operation.OPEN:
            with contextlib.suppress(OSError):
                os.close(self.value)
        self.value = None

    def advance(self, count: int) -> None:
        """So many bytes of the views are done."""
        self.transferred += count
        views = self.views
        done = 0
        while done < len(views) and count >= views[done].nbytes:
            count -= views[done].nbytes
            views[done].release()
            done += 1
        if count and done < len(views):
            rest = views[done][count:]
            views[done].release()
            views[done] = rest
        del views[:done]

    @property
    def _name(self) -> str:
        return self.operation.name.lower()

    def _views(self, value: Any, writable: bool, expected: str) -> list[memoryview]:
        views: list[memoryview] = []
        try:
            view = self._view(value, writable)
            if view is not None:
                views.append(view)
                return views
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise TypeError(f"{self._name}() takes {expected}, not {type(value).__name__}")
            if not value:
                raise ValueError(f"{self._name}() takes at least one buffer, the sequence is empty")
            for buffer in value:
                view = self._view(buffer, writable)
                if view is None:
                    raise TypeError(
                        f"{self._name}() takes a sequence of bytes-like objects (buffers), "
                        f"one of them is {type(buffer).__name__}"
                    )
                views.append(view)
        except BaseException:
            for view in views:
                view.release()
            raise
        return views

    def _view(self, buffer: Any, writable: bool) -> memoryview | None:
        """A view of single bytes; None for what is no buffer at all."""
        try:
            view = memoryview(buffer)
        except TypeError:
            return None
        if writable and view.readonly:
            view.release()
            raise TypeError(
                f"{self._name}() needs a writable buffer, {type(buffer).__name__} is read-only"
            )
        if not view.c_contiguous:
            view.release()
            raise TypeError(f"{self._name}() needs a contiguous buffer")
        if view.format == "B" and view.ndim == 1:
            return view
        with view:
            # Empty ones can't be cast.
            return view.cast("B") if view.nbytes else memoryview(b"")


def lasts(packets: list[Any]) -> Iterator[Any]:
    """To be iterated through: the last steps of handing out packets, of which none is a call.

    The Overlapped becomes the program's, and what a submitted function raised has frames behind it
    that hold its request, which would be a reference cycle.
    """
    requests = [one for one in packets if one.is_operation]
    if not requests:
        return iter(())
    return chain(
        map(call, [one.last for one in requests]),
        map(setattr, requests, repeat("error"), repeat(None)),
        map(delattr, requests, repeat("overlapped")),
        map(delattr, requests, repeat("last")),
    )


class Post:
    """A packet that was posted."""

    is_operation: ClassVar[bool] = False

    __slots__ = ("completion", "consumer", "delivered", "number", "since", "strand")

    def __init__(
        self,
        completion: Completion,
        strand: PortableStrand | None,
        consumer: Consumer | None = None,
    ) -> None:
        self.completion = completion
        self.strand = strand
        self.consumer = consumer
        self.number = 0
        self.delivered = False
        self.since = NOT_MEASURED  # when it came into the packet queue

    def take(self) -> Completion:
        """The packet is taken."""
        return self.completion

    def drop(self) -> None:
        """The packet will not be taken: the port is closed."""
