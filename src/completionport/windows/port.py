"""The port of the engine ``iocp``."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

from .. import association
from ..errors import AlreadyAssociated
from ..interface import CompletionPort, Handle
from ..portable.handle import PortableHandle
from ..portable.port import Core, PortablePort
from ..portable.strand import PortableStrand
from . import api
from .channel import IocpChannel
from .files import Resolved, register
from .scheduler import KernelScheduler


class IocpCore(Core):
    """What a port of this engine consists of."""

    engine_name = "iocp"

    def __init__(self, port: CompletionPort, concurrency: int, pool_threads: int) -> None:
        super().__init__(port, pool_threads)
        self.scheduler: Any = KernelScheduler(concurrency)
        # Windows binds a file for as long as it is open; these it has bound to this port.
        self._bound: weakref.WeakSet[Any] = weakref.WeakSet()

    def associate(
        self, file: Any, key: Any, strand: PortableStrand | None, skips_on_success: bool = False
    ) -> Handle:
        assert not skips_on_success  # for Win32's names elsewhere: on Windows they are the system's
        self.check()
        token, number = register(file)
        try:
            source = Resolved(file, number)
            try:
                self._bind(file, source)
                channel = IocpChannel(self.scheduler, source, token, self._gone)
            except BaseException:
                source.let_go()
                raise
        except BaseException:
            association.release(token)
            raise
        self.channels[channel] = None
        handle = PortableHandle(self, channel, file, number, key, strand)
        # A close() that did not see the channel in its list is seen here.
        self.check()
        return handle

    def close(self) -> None:
        if self.scheduler.shut():
            for channel in list(self.channels):
                channel.detach("the completion port was closed")
            self.close_pool()
            self.scheduler.close()

    def numbers(self) -> dict[str, Any]:
        numbers = self.scheduler.numbers()
        numbers["pending"] += self.errands.pending()
        numbers["pending"] += sum(channel.pending() for channel in list(self.channels))
        return {"engine": self.engine_name, "handles": len(self.channels), **numbers}

    def _bind(self, file: Any, source: Resolved) -> None:
        code = self.scheduler.bind(source.handle)
        with contextlib.suppress(TypeError):  # what can't be referred to weakly
            if code == 0:
                self._bound.add(file)
            elif file in self._bound:
                return
        if code == api.ERROR_INVALID_PARAMETER:
            raise AlreadyAssociated(
                f"{file!r} belongs to a completion port already: Windows binds a file to its first "
                "port for as long as it is open"
            )
        if code:
            raise api.error(code)

    def _gone(self, channel: IocpChannel) -> None:
        self.channels.pop(channel, None)


class IocpPort(PortablePort):
    """A completion port of Windows."""

    ENGINE = "iocp"
    CORE = IocpCore
