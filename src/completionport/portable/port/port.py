"""The port of the engines in Python, whatever carries their operations out."""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, overload

from ...interface.error_codes import add_codes
from ...interface.errors import NOT_INITIALISED
from ...interface.handle import Handle, HasFileno, Overlapped
from ...interface.operation import Operation
from ...interface.port import (
    Arguments,
    Completion,
    CompletionPort,
    SignalWatch,
    Strand,
    check_engine,
    check_strand,
)
from ...interface.timer import Timer
from ...shared.arguments import (
    LARGEST_DESCRIPTOR,
    LARGEST_OFFSET,
    LARGEST_POOL,
    check_callable,
    check_concurrency,
    check_count,
    check_delay,
    check_lookup,
    check_open,
    check_when,
    path_bytes,
)
from ...shared.reports import ending
from ...shared.workers import default_concurrency
from ...watches.processes import is_process, watch_process
from ...watches.signals import watch_signal
from ..channels.requests import Post, lasts
from ..pool import copies
from ..pool.file_channel import executes_for
from ..scheduling.places import (
    ALL,
    PROGRAMS,
    SERVED,
    Blocking,
    Consumer,
    CrewMembers,
    PortableStrand,
    call_serving,
    new_strand,
    this_place,
)
from ..scheduling.timers import PortableTimer
from .core import Core
from .errands import new_request, start


class PortablePort(CompletionPort):
    """A completion port in Python."""

    _CORE: Callable[[CompletionPort, int, int], Core]

    _core: Core | None = None

    def __init__(
        self, concurrency: int = 0, *, engine: str | None = None, pool_threads: int = 64
    ) -> None:
        if self._core is not None:
            raise RuntimeError("a completion port is initialised once")
        check_engine(engine, self)
        check_count("pool_threads", pool_threads, 1, LARGEST_POOL)
        count = check_concurrency(concurrency)
        self._core = type(self)._CORE(self, count or default_concurrency(), pool_threads)

    def __del__(self) -> None:
        core = self._core
        if core is None or core.closed:
            return
        try:
            # When the interpreter ends, the names of modules may be gone.
            if not core.forked and warnings is not None:
                warnings.warn(
                    f"unclosed completion port {self!r}", ResourceWarning, stacklevel=2, source=self
                )
        finally:
            core.close()

    @property
    def concurrency(self) -> int:
        return self._inside.scheduler.concurrency

    @property
    def engine(self) -> str:
        return self._inside.engine_name

    @property
    def closed(self) -> bool:
        return self._inside.closed

    @property
    def _inside(self) -> Core:
        if self._core is None:
            raise RuntimeError(NOT_INITIALISED)
        return self._core

    def associate(self, file: Any, key: Any, *, strand: Strand | None = None) -> Handle:
        if not hasattr(file, "fileno") and is_process(file):
            return watch_process(self, file, key, strand)
        return self._inside.associate(file, key, self._own(strand))

    def _associate_skipping(self, file: HasFileno | int, key: Any) -> Handle:
        return self._inside.associate(file, key, None, True)

    @overload
    def get(self, timeout: None = None) -> Completion: ...
    @overload
    def get(self, timeout: float | None) -> Completion | None: ...
    def get(self, timeout: float | None = None) -> Completion | None:
        packets = self._next(1, timeout, ALL, None)
        return packets[0] if packets else None

    def get_many(self, max_count: int, timeout: float | None = None) -> list[Completion]:
        if not isinstance(max_count, int):
            raise TypeError(f"max_count must be an integer, not {type(max_count).__name__}")
        if max_count < 1:
            raise ValueError(f"max_count must be 1 or more, not {max_count}")
        return self._next(min(max_count, sys.maxsize), timeout, ALL, None) or []

    def _next(
        self, count: int, timeout: float | None, takes: int, crew: CrewMembers | None
    ) -> list[Completion] | None:
        """The program's next packets. Those of consumers, taken meanwhile, are served here.

        An empty list when the time is over; None when the thread is dismissed.
        """
        scheduler = self._inside.scheduler
        seconds = None if timeout is None else checked_timeout(timeout)
        end = None if seconds is None else time.monotonic() + seconds
        in_main = crew is None and threading.get_ident() == threading.main_thread().ident
        while True:
            hand = scheduler.take(count, seconds, takes, crew)
            consumer = hand[0].consumer if hand else None
            try:
                completions = [packet.take() for packet in hand]
                if hand:
                    scheduler.hand_out(hand, lasts(hand))
            except BaseException:
                # A signal handler's: no packet is lost.
                try:
                    scheduler.put_back(hand)
                except BaseException:
                    scheduler.put_back(hand)
                    raise
                raise
            if hand.dismissed:
                return None
            if consumer is None:
                return completions
            try:
                if in_main:
                    ending.clear()
                call_serving(crew, consumer.serve, completions)
            except BaseException:
                if completions:
                    scheduler.put(Post(completions[0], None, consumer))
                raise
            if in_main and ending:
                raise ending.pop()
            if end is not None and crew is None:
                # A thread of a crew begins anew: it was not idle.
                seconds = max(end - time.monotonic(), 0.0)
                if not seconds:
                    # What is there of the program's is not passed by, however much there is of
                    # others'.
                    takes &= PROGRAMS

    def _new_crew(self, takes_programs: bool) -> CrewMembers:
        crew = CrewMembers(ALL if takes_programs else SERVED)
        self._inside.scheduler.check_fork()
        self._inside.scheduler.add_crew(crew)
        return crew

    def _take(self, crew: CrewMembers, timeout: float | None) -> Completion | Literal[False] | None:
        packets = self._next(1, timeout, crew.takes, crew)
        if packets is None:
            return False
        return packets[0] if packets else None

    def _dismiss(self, crew: CrewMembers, count: int) -> None:
        self._inside.scheduler.dismiss(crew, count)

    def _serves(self) -> bool:
        return this_place().serving > 0

    def _executes(self) -> bool:
        return executes_for(self._inside.errands)

    def _serving(self, crew: CrewMembers) -> int:
        return len(crew.serving)

    def _join(self, consumer: Consumer) -> None:
        """A consumer is to hear of the port's end."""
        core = self._inside
        core.consumers.add(consumer)
        core.check()

    def _part(self, consumer: Consumer) -> None:
        """It has ended before."""
        self._inside.consumers.discard(consumer)

    def _associate_for(self, consumer: Consumer, file: HasFileno, key: Any) -> Handle:
        """For a consumer: a handle whose packets it gets."""
        handle = self._inside.associate(file, key, None)
        handle._consumer = consumer  # type: ignore[attr-defined]
        return handle

    def _post_for(self, consumer: Consumer, key: Any) -> None:
        """A packet that it gets."""
        core = self._inside
        core.check()
        core.scheduler.put(Post(Completion(0, key, None), None, consumer))

    def _call_for(self, consumer: Consumer, seconds: float, transferred: Any, key: Any) -> None:
        """A packet that it gets in so many seconds."""
        core = self._inside
        core.check()
        when_ns = time.monotonic_ns() + math.ceil(seconds * 1e9)
        post = Post(Completion(transferred, key, None), None, consumer)
        core.scheduler.set_timer(PortableTimer(core.scheduler, when_ns, post))

    def post(
        self,
        transferred: Any = 0,
        key: Any = None,
        overlapped: Any = None,
        *,
        strand: Strand | None = None,
    ) -> None:
        core = self._inside
        core.check()
        core.scheduler.put(Post(self._completion(transferred, key, overlapped), self._own(strand)))

    def post_after(
        self,
        seconds: float,
        transferred: Any = 0,
        key: Any = None,
        overlapped: Any = None,
        *,
        strand: Strand | None = None,
    ) -> Timer:
        check_delay(seconds)
        when_ns = time.monotonic_ns() + math.ceil(seconds * 1e9)
        return self._set_timer(when_ns, self._completion(transferred, key, overlapped), strand)

    def post_at(
        self,
        when: float,
        transferred: Any = 0,
        key: Any = None,
        overlapped: Any = None,
        *,
        strand: Strand | None = None,
    ) -> Timer:
        check_when(when, time.monotonic())
        when_ns = max(math.ceil(when * 1e9), 0)
        return self._set_timer(when_ns, self._completion(transferred, key, overlapped), strand)

    def _set_timer(self, when_ns: int, completion: Completion, strand: Strand | None) -> Timer:
        core = self._inside
        core.check()
        timer = PortableTimer(core.scheduler, when_ns, Post(completion, self._own(strand)))
        core.scheduler.set_timer(timer)
        return timer

    def submit(
        self,
        function: Callable[[*Arguments], Any],
        /,
        *args: *Arguments,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        check_callable(function)
        own = self._own(strand)
        return self._call(Operation.CALL, partial(function, *args), key, overlapped, own)

    def getaddrinfo(
        self,
        host: bytes | str | None,
        service: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
        *,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        checked = check_lookup(host, service, family, type, proto, flags)
        call = partial(_look_up, *checked, family, type, proto, flags)
        return self._call(Operation.RESOLVE, call, key, overlapped, self._own(strand))

    def _call(
        self,
        operation: Operation,
        call: Callable[[], Any],
        key: Any,
        overlapped: Overlapped | None,
        strand: PortableStrand | None,
    ) -> Overlapped:
        core = self._inside
        core.check()
        request = new_request(core.errands, operation, key, overlapped, strand)
        request.call = call
        return start(core.errands, request)

    def open(
        self,
        path: Any,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        check_open(flags, mode)
        core, name = self._inside, path_bytes(path)
        core.check()
        request = new_request(core.errands, Operation.OPEN, key, overlapped, self._own(strand))
        request.path, request.flags, request.extent = os.fsdecode(name), flags, mode
        return start(core.errands, request)

    def stat(
        self,
        path: Any,
        *,
        follow_symlinks: bool = True,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        core, name = self._inside, path_bytes(path)
        core.check()
        request = new_request(core.errands, Operation.STAT, key, overlapped, self._own(strand))
        request.path, request.flags = os.fsdecode(name), not follow_symlinks
        return start(core.errands, request)

    def copy_file(
        self,
        source: Any,
        target: Any,
        *,
        at_most: int = LARGEST_OFFSET,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        check_count("at_most", at_most, 0, LARGEST_OFFSET)
        core, names = self._inside, (path_bytes(source), path_bytes(target))
        core.check()
        request = new_request(core.errands, Operation.COPY, key, overlapped, self._own(strand))
        request.path, request.address = map(os.fsdecode, names)
        request.extent = at_most
        request.call = self._system_copy
        return start(core.errands, request)

    _system_copy = staticmethod(copies.copy_file)
    """How the operating system copies a file."""

    def close_descriptor(
        self,
        fd: int,
        *,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        check_count("fd", fd, 0, LARGEST_DESCRIPTOR)
        core = self._inside
        core.check()
        request = new_request(core.errands, Operation.CLOSE, key, overlapped, self._own(strand))
        request.offset = fd
        return start(core.errands, request)

    def blocking(self) -> AbstractContextManager[None]:
        scheduler = self._inside.scheduler
        scheduler.check_fork()
        return Blocking(scheduler)

    def associate_signal(
        self, signum: int, key: Any, *, strand: Strand | None = None
    ) -> SignalWatch:
        return watch_signal(self, signum, key, strand)

    def stats(self) -> dict[str, Any]:
        return self._inside.numbers()

    def _check(self) -> None:
        self._inside.check()

    def _new_strand(self) -> Strand:
        core = self._inside
        core.check()
        return new_strand(core.port, core.scheduler)

    def _own(self, strand: Strand | None) -> PortableStrand | None:
        check_strand(strand, self)
        assert strand is None or isinstance(strand, PortableStrand)
        return strand

    def _dismiss_keepers(self) -> None:
        self._inside.scheduler.dismiss_watchers()

    def _wait_until_stuck(self, timeout: float | None) -> bool:
        return self._inside.scheduler.wait_until_stuck(
            None if timeout is None else checked_timeout(timeout)
        )

    def close(self) -> None:
        core = self._inside
        channels = list(core.channels)
        core.close()
        if core.forked:
            core.check()
        else:
            core.wait_for_pool(channels)
            # Each is there until it is over: a handler may interrupt it, and close comes again.
            for consumer in list(core.consumers):
                call_serving(None, consumer.port_closed)
                core.consumers.discard(consumer)

    def __repr__(self) -> str:
        if self._core is None:
            return "<CompletionPort, not initialised>"
        state = "closed" if self._core.closed else f"concurrency {self.concurrency}"
        return f"<CompletionPort {self._core.engine_name}, {state}>"


def checked_timeout(timeout: float) -> float | None:
    """The timeout in seconds; None for one without end."""
    if not isinstance(timeout, (int, float)):
        raise TypeError(
            f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
        )
    if not timeout >= 0:
        raise ValueError(f"timeout must be 0 or more seconds, not {timeout}")
    return None if math.isinf(timeout) else timeout


def _look_up(*arguments: Any) -> Any:
    try:
        return socket.getaddrinfo(*arguments)
    except OSError as error:
        add_codes(error)
        raise
