"""The port of the engine ``iocp``."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable
from typing import Any

from ..interface.errors import PORT_WAS_CLOSED, AlreadyAssociated
from ..interface.handle import Handle
from ..interface.port import CompletionPort, Strand
from ..portable.port.core import NO_ZERO_COPY, Channel, Core
from ..portable.port.handle import PortableHandle
from ..portable.port.port import PortablePort
from ..portable.scheduling.places import PortableStrand
from ..shared import association
from ..watches.processes import is_process, watch_process
from . import api
from .channel import IocpChannel
from .copies import copy_file
from .files import Resolved, register
from .handle import IocpHandle
from .scheduler import KernelScheduler
from .waits import ProcessEnd, WaitChannel


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
        if isinstance(file, ProcessEnd):
            return self._watch(file, key, strand)
        token, number = register(file)
        try:
            source = Resolved(file, number)
            try:
                self._bind(file, source)
                channel = IocpChannel(self.scheduler, self.offload, source, token, self._gone)
            except BaseException:
                source.let_go()
                raise
        except BaseException:
            association.release(token)
            raise
        self.channels[channel] = None
        handle = IocpHandle(self, channel, file, number, key, strand)
        # A close() that did not see the channel in its list is seen here.
        self.check()
        return handle

    def close(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():
            # The names of modules may be gone, and threads may have stopped for good with a lock.
            # What the kernel holds stays where it is, and the end of the process takes it back.
            return
        if self.scheduler.shut():
            for channel in list(self.channels):
                channel.detach(PORT_WAS_CLOSED)
            self.close_pool()
            self.scheduler.close()

    def wait_for_pool(self, channels: list[Any]) -> None:
        # Those of handles that were closed before are in no list any more.
        flights = list(self.scheduler.flights.values())
        super().wait_for_pool([*channels, *(flight.channel for flight in flights)])

    def numbers(self) -> dict[str, Any]:
        numbers = self.scheduler.numbers()
        numbers["pending"] += self.errands.pending()
        numbers["pending"] += sum(channel.pending() for channel in list(self.channels))
        return {
            "engine": self.engine_name,
            "handles": len(self.channels),
            **numbers,
            **NO_ZERO_COPY,
        }

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

    def _watch(self, end: ProcessEnd, key: Any, strand: PortableStrand | None) -> Handle:
        channel = WaitChannel(self.scheduler, end.fileno(), self._gone)
        self.channels[channel] = None
        handle = PortableHandle(self, channel, end, end.fileno(), key, strand)
        self.check()
        return handle

    def _gone(self, channel: Channel) -> None:
        self.channels.pop(channel, None)


class IocpPort(PortablePort):
    """A completion port of Windows."""

    _ENGINE = "iocp"
    _CORE = IocpCore

    _system_copy = staticmethod(copy_file)

    def associate(self, file: Any, key: Any, *, strand: Strand | None = None) -> Handle:
        if not hasattr(file, "fileno") and is_process(file):
            return watch_process(self, file, key, strand, ProcessEnd(file))
        return super().associate(file, key, strand=strand)
