"""Handles of the engines in Python: arguments in, requests out."""

from __future__ import annotations

import errno
import socket
from typing import Any

from ...interface.error_codes import add_codes
from ...interface.errors import HandleClosed, PortClosed, system_error
from ...interface.handle import Handle, Meaning, Overlapped, check_overlapped
from ...interface.operation import Operation
from ...interface.port import CompletionPort
from ...shared import addresses
from ...shared.arguments import (
    LARGEST_ANCILLARY,
    LARGEST_OFFSET,
    MSG_TRUNC,
    check_count,
    check_shutdown,
    check_zero_copy,
    message_flags,
    refuse_discarding,
)
from ...watches.changes import read_changes
from ..channels.messages import prepared
from ..channels.requests import Request
from ..scheduling.places import Consumer, PortableStrand
from .core import Channel, Core

FILE_OPERATIONS = (Operation.FSYNC, Operation.ALLOCATE, Operation.STAT)


class PortableHandle(Handle):
    """A handle of an engine that is written in Python."""

    __slots__ = (
        "__weakref__",
        "_channel",
        "_companion",
        "_consumer",
        "_core",
        "_file",
        "_key",
        "_number",
        "_open",
        "_strand",
    )

    def __init__(
        self,
        core: Core,
        channel: Channel,
        file: Any,
        number: int,
        key: Any,
        strand: PortableStrand | None,
    ) -> None:
        self._file = file
        self._key = key
        self._strand = strand
        # What works for this handle on a descriptor of its own: cancelled and closed with it. Set
        # once, under the lock of completionport.watches.changes.
        self._companion: Any = None
        self._consumer: Consumer | None = None  # set before the first operation
        self._core = core
        self._channel = channel
        self._number = number
        self._open: list[None] = [None]  # one item; who pops it closes the handle

    @property
    def key(self) -> Any:
        return self._key

    @property
    def file(self) -> Any:
        return self._file

    def __del__(self) -> None:
        # Nothing is pending: a request under way would have kept the handle.
        if getattr(self, "_open", None):
            self._core.forget(self._channel, "the handle was dropped")

    @property
    def port(self) -> CompletionPort | None:
        return self._core.port()

    @property
    def closed(self) -> bool:
        return not self._open or self._core.closed

    def fileno(self) -> int:
        return -1 if self.closed else self._number

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"descriptor {self._number}"
        return f"<Handle {state}, key {self._key!r}>"

    def accept(self, overlapped: Overlapped | None = None) -> Overlapped:
        request = self._request(Operation.ACCEPT, overlapped)
        return self._start(request, overlapped)

    def connect(self, address: Any, overlapped: Overlapped | None = None) -> Overlapped:
        request = self._request(Operation.CONNECT, overlapped)
        request.address = self._checked_address(address)
        return self._start(request, overlapped)

    def recv(
        self, size_or_buffers: Any, flags: int = 0, overlapped: Overlapped | None = None
    ) -> Overlapped:
        request = self._request(Operation.RECV, overlapped)
        request.flags = self._receive_flags(flags, "recv")
        request.prepare_input(size_or_buffers)
        return self._start(request, overlapped)

    def send(
        self,
        data_or_buffers: Any,
        flags: int = 0,
        overlapped: Overlapped | None = None,
        *,
        zero_copy: bool = False,
    ) -> Overlapped:
        request = self._request(Operation.SEND, overlapped)
        request.flags = _checked_flags(flags)
        check_zero_copy(zero_copy)  # a permission, of which nothing is made here
        request.prepare_output(data_or_buffers)
        return self._start(request, overlapped)

    def _receive_flags(self, flags: int, caller: str) -> int:
        bits = _checked_flags(flags)
        if bits & MSG_TRUNC and self._channel.family()[1] == socket.SOCK_STREAM:
            refuse_discarding(caller)
        return bits

    def recvfrom(
        self, size_or_buffers: Any, flags: int = 0, overlapped: Overlapped | None = None
    ) -> Overlapped:
        request = self._request(Operation.RECVFROM, overlapped)
        request.flags = message_flags(self._receive_flags(flags, "recvfrom"), "recvfrom")
        request.prepare_input(size_or_buffers)
        return self._start(request, overlapped)

    def recvmsg(
        self,
        size_or_buffers: Any,
        ancillary_size: int = 0,
        flags: int = 0,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        request = self._request(Operation.RECVMSG, overlapped)
        check_count("ancillary_size", ancillary_size, 0, LARGEST_ANCILLARY)
        request.ancillary_size = ancillary_size
        request.flags = message_flags(self._receive_flags(flags, "recvmsg"), "recvmsg")
        request.prepare_input(size_or_buffers)
        return self._start(request, overlapped)

    def sendto(
        self,
        data_or_buffers: Any,
        address: Any,
        flags: int = 0,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        request = self._request(Operation.SENDTO, overlapped)
        request.flags = _checked_flags(flags)
        request.address = self._checked_address(address)
        request.prepare_output(data_or_buffers)
        return self._start(request, overlapped)

    def sendmsg(
        self,
        data_or_buffers: Any,
        ancillary: Any = (),
        flags: int = 0,
        address: Any = None,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        request = self._request(Operation.SENDMSG, overlapped)
        request.flags = _checked_flags(flags)
        if address is not None:
            request.address = self._checked_address(address)
        request.prepare_output(data_or_buffers)
        try:
            request.ancillary = prepared(ancillary)
        except BaseException:
            request.release()
            raise
        return self._start(request, overlapped)

    def sendfile(
        self,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        head: Any = b"",
        tail: Any = b"",
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        request = self._request(Operation.SENDFILE, overlapped)
        if self._channel.family()[1] != socket.SOCK_STREAM:
            raise system_error(errno.EOPNOTSUPP, "sendfile() needs a stream socket")
        request.prepare_output((head, tail))
        try:
            request.prepare_source(file, offset, count)
        except BaseException:
            request.release()
            raise
        return self._start(request, overlapped)

    def shutdown(
        self, how: int = socket.SHUT_WR, overlapped: Overlapped | None = None
    ) -> Overlapped:
        request = self._request(Operation.SHUTDOWN, overlapped)
        request.flags = check_shutdown(how)
        return self._start(request, overlapped)

    def read(
        self,
        size_or_buffers: Any,
        offset: int | None = None,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        request = self._request(Operation.READ, overlapped)
        request.offset = self._checked_offset(offset)
        if not self._channel.readable:
            raise system_error(errno.EBADF, "the file is not open for reading")
        request.prepare_input(size_or_buffers)
        return self._start(request, overlapped)

    def _read_for(
        self, meaning: Meaning, size: int, overlapped: Overlapped | None = None
    ) -> Overlapped:
        request = self._request(Operation.READ, overlapped)
        request.meaning = meaning
        request.prepare_input(size)
        return self._start(request, overlapped)

    def write(
        self,
        data_or_buffers: Any,
        offset: int | None = None,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        request = self._request(Operation.WRITE, overlapped)
        request.offset = self._checked_offset(offset)
        if not self._channel.writable:
            raise system_error(errno.EBADF, "the file is not open for writing")
        request.prepare_output(data_or_buffers)
        request.extent = sum(view.nbytes for view in request.views)
        return self._start(request, overlapped)

    def fsync(self, data_only: bool = False, overlapped: Overlapped | None = None) -> Overlapped:
        request = self._request(Operation.FSYNC, overlapped)
        request.flags = bool(data_only)
        return self._start(request, overlapped)

    def allocate(
        self, offset: int, length: int, overlapped: Overlapped | None = None
    ) -> Overlapped:
        check_count("offset", offset, 0, LARGEST_OFFSET)
        check_count("length", length, 1, LARGEST_OFFSET)
        request = self._request(Operation.ALLOCATE, overlapped)
        if not self._channel.writable:
            raise system_error(errno.EBADF, "the file is not open for writing")
        request.offset = offset
        request.extent = length
        return self._start(request, overlapped)

    def stat(self, overlapped: Overlapped | None = None) -> Overlapped:
        request = self._request(Operation.STAT, overlapped)
        return self._start(request, overlapped)

    def disconnect(self, overlapped: Overlapped | None = None) -> Overlapped:
        request = self._request(Operation.DISCONNECT, overlapped)
        return self._start(request, overlapped)

    def read_changes(
        self, recursive: bool = False, overlapped: Overlapped | None = None, *, size: int = 65536
    ) -> Overlapped:
        return read_changes(self, recursive, size, overlapped)

    def cancel(self, overlapped: Overlapped | None = None) -> int:
        check_overlapped(overlapped)
        try:
            self._core.check()
        except PortClosed:
            return 0
        count = self._channel.cancel(overlapped)
        if self._companion is not None:
            count += self._companion.cancel(overlapped)
        return count

    def close(self) -> None:
        if self._core.forked:
            self._core.check()
        step = map(self._open.pop, (-1,))
        try:
            [_] = step
        except IndexError:
            return
        try:
            self._close()
        except BaseException:
            self._close()  # a signal handler may have raised anywhere
            raise

    def _close(self) -> None:
        """It may be done twice."""
        if self._companion is not None:
            self._companion.close()
        # The program's own number goes first: operations are on the duplicate.
        self._channel.release_token()
        try:
            if not isinstance(self._file, int):
                close = getattr(self._file, "close", None)
                if close is not None:
                    close()
            else:
                self._channel.close_number(self._number)
        finally:
            self._core.forget(self._channel, "the handle was closed")

    def _request(self, operation: Operation, overlapped: Overlapped | None) -> Request:
        self._core.check()
        if not self._open:
            raise HandleClosed
        check_overlapped(overlapped)
        self._check_kind(operation)
        return Request(operation, self)

    def _check_kind(self, operation: Operation) -> None:
        """Raise where files of this kind have no such operation."""
        if operation in FILE_OPERATIONS:
            if not self._channel.is_regular:
                raise system_error(
                    errno.EINVAL,
                    f"{operation.name.lower()}() needs a regular file, a directory or a disk",
                )
        elif not self._channel.is_socket and operation not in (Operation.READ, Operation.WRITE):
            raise system_error(
                errno.ENOTSOCK,
                f"{operation.name.lower()}() needs a socket; use read() or write()",
            )

    def _start(self, request: Request, overlapped: Overlapped | None) -> Overlapped:
        operation = Overlapped() if overlapped is None else overlapped
        meaning = request.meaning
        handle: Handle = self if meaning is None else meaning.handle
        what = request.operation if meaning is None else meaning.operation
        step = map(operation._begin, (handle,), (what,))
        try:
            # No call, behind which a signal handler could raise.
            [_] = step
        except BaseException:
            request.release()
            raise
        request.overlapped = operation
        try:
            packet_comes = self._channel.start(request)
        except BaseException as error:
            if request.begun:
                raise  # a handler's; the packet comes
            request.release()
            operation._withdraw()
            if isinstance(error, OSError):
                add_codes(error)
            raise
        return operation if packet_comes else None  # type: ignore[return-value]

    def _checked_address(self, address: Any) -> Any:
        """The address in numbers: names are looked up here and not under a lock."""
        family, kind = self._channel.family()
        return addresses.unpack(addresses.pack(family, kind, address))

    def _checked_offset(self, offset: int | None) -> int | None:
        if offset is None:
            return None
        if not isinstance(offset, int):
            raise TypeError(f"offset must be an integer or None, not {type(offset).__name__}")
        if not 0 <= offset <= LARGEST_OFFSET:
            raise ValueError(f"offset must be from 0 to 2**63 - 1, not {offset}")
        if not self._channel.is_regular:
            raise system_error(errno.ESPIPE, "only a regular file takes an offset")
        return offset


def _checked_flags(flags: int) -> int:
    if not isinstance(flags, int):
        raise TypeError(f"flags must be an integer, not {type(flags).__name__}")
    if not -(2**31) <= flags < 2**31:
        raise ValueError(f"flags must fit into 32 bits, {flags} does not")
    return flags
