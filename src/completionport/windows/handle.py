"""A handle of the engine ``iocp``: what Windows' files can do besides."""

from __future__ import annotations

import errno

from ..interface.errors import system_error
from ..interface.handle import Overlapped
from ..interface.operation import Operation
from ..portable.port.handle import PortableHandle
from ..shared.arguments import check_count
from ..watches.changes import LEAST_SIZE, MOST_SIZE, NO_DIRECTORY
from .changes import Changes
from .channel import IocpChannel


class IocpHandle(PortableHandle):
    """A handle whose channel is an `IocpChannel`."""

    __slots__ = ()

    _channel: IocpChannel

    def read_changes(
        self, recursive: bool = False, overlapped: Overlapped | None = None, *, size: int = 65536
    ) -> Overlapped:
        check_count("size", size, LEAST_SIZE, MOST_SIZE)
        request = self._request(Operation.CHANGES, overlapped)
        request.meaning = Changes(self)
        request.flags = bool(recursive)
        request.prepare_input(size)
        return self._start(request, overlapped)

    def _check_kind(self, operation: Operation) -> None:
        if operation is Operation.CHANGES:
            if not self._channel.is_directory:
                raise system_error(errno.ENOTDIR, NO_DIRECTORY)
            if not self._channel.readable:
                raise system_error(errno.EBADF, "the directory is not open for reading")
        elif operation is Operation.FSYNC and self._channel.is_regular:
            if not self._channel.writable:
                raise system_error(
                    errno.EBADF, "fsync() on Windows needs a file that is open for writing"
                )
        elif operation is Operation.READ and self._channel.is_directory:
            raise system_error(errno.EISDIR, "it is a directory: read_changes() is what it has")
        elif not (
            self._channel.is_pipe_server and operation in (Operation.ACCEPT, Operation.DISCONNECT)
        ):
            super()._check_kind(operation)
