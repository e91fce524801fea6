"""The port of the engine ``selectors``, on the standard library alone."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from ...interface.errors import PORT_WAS_CLOSED
from ...interface.handle import Handle
from ...interface.port import CompletionPort
from ...shared import association
from ..channels.requests import Request
from ..engines.selectors_engine import SelectorsChannel, SelectorsEngine
from ..scheduling.places import PortableStrand
from ..scheduling.scheduler import Scheduler
from .core import Core
from .handle import PortableHandle
from .port import PortablePort


def _rescue_in(scheduler: weakref.ref[Scheduler], seconds: float) -> None:
    # Not to hold it: the scheduler holds the pool.
    if (found := scheduler()) is not None:
        found.rescue_in(seconds)


class SelectorsCore(Core):
    """What a port of this engine consists of."""

    engine_name = "selectors"

    def __init__(self, port: CompletionPort, concurrency: int, pool_threads: int) -> None:
        super().__init__(port, pool_threads)
        self.engine = SelectorsEngine(self.deliver, self._gone, self.offload)
        self.scheduler = Scheduler(concurrency, self.engine)
        self.scheduler.rescue = self.offload.see_to_line
        self.offload.call_in = partial(_rescue_in, weakref.ref(self.scheduler))

    def associate(
        self, file: Any, key: Any, strand: PortableStrand | None, skips_on_success: bool = False
    ) -> Handle:
        self.check()
        token, number = association.register(file)
        channel: SelectorsChannel | None = None
        try:
            channel = SelectorsChannel(self.engine, number, token, skips_on_success)
            self.channels[channel] = None
            handle = PortableHandle(self, channel, file, number, key, strand)
        except BaseException:
            if channel is not None:
                channel.detach(PORT_WAS_CLOSED)
            else:
                association.release(token)
            raise
        # A close() that did not see the channel in its list is seen here.
        self.check()
        return handle

    def close(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing():
            # The names of modules may be gone, and threads may have stopped for good with a lock.
            # No kernel holds a buffer here, and the end of the process closes the files.
            self.scheduler.shut()
            return
        if self.forked:
            # Neither locks nor the selector: those are the parent's business.
            if not self.closed:
                self.scheduler.shut()
                while self.channels:
                    self.channels.popitem()[0].close_descriptor()
                self.engine.dispose()
            return
        try:
            self._close()
        except BaseException:
            self._close()  # a signal handler may have raised anywhere
            raise

    def _close(self) -> None:
        """It may be done twice, and by several threads."""
        self.scheduler.shut()
        for channel in list(self.channels):
            channel.detach(PORT_WAS_CLOSED)
        self.close_pool()
        self.scheduler.close()

    def wait_for_pool(self, channels: list[Any]) -> None:
        self.engine.source_works.finish()
        super().wait_for_pool(channels)

    def _gone(self, channel: SelectorsChannel, aborted: list[Request]) -> None:
        self.channels.pop(channel, None)
        for request in aborted:
            if not request.delivered:
                self.deliver(request)


class SelectorsPort(PortablePort):
    """A completion port on the standard library alone."""

    _ENGINE = "selectors"
    _CORE = SelectorsCore
