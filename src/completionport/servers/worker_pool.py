"""`WorkerPool`: threads that take the packets of a port and call a function with each."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from ..crew.crew import Crew, join
from ..interface.errors import PortClosed
from ..interface.port import Completion, CompletionPort
from ..interface.unique import Unique
from ..shared.arguments import LARGEST_WORKERS, check_count, check_seconds
from ..shared.reports import SHORTAGE, persist, tell
from .callbacks import check_callback
from .own_port import OwnPort

KEEPER_LOOKS_UP = 1.0
"""Seconds until the keeper sees that the pool is stopped, if it was told just before it waited."""
WORKER_COMES = 0.01
"""Seconds until the keeper looks again when a worker is on its way to the port."""
RETRY_GROWING = 1.0
"""Seconds until the keeper tries again after the system refused a thread."""


class _Worker:
    """One thread of a pool."""

    __slots__ = ("busy", "came", "pool", "thread")

    def __init__(self, pool: WorkerPool, name: str, daemon: bool) -> None:
        self.pool = pool
        self.busy = False  # in the target; written by its own thread only
        self.came = threading.Event()  # it runs
        self.thread = threading.Thread(target=self.work, name=name, daemon=daemon)

    def work(self) -> None:
        """The body of the thread, under a name that says something in a stack dump."""
        pool = self.pool
        self.came.set()
        try:
            pool._crew.work(
                pool.name, self._call, pool._idle_timeout, lambda: pool._may_leave(self)
            )
        finally:
            persist(pool._ended, self)

    def _call(self, completion: Completion) -> None:
        self.busy = True
        try:
            self.pool._target(completion)
        except BaseException as error:
            self.pool._failed(error)
        finally:
            self.busy = False


class WorkerPool(Unique):
    """Threads that take packets from a port and call ``target(completion)`` with each of them.

    ``port``: a `CompletionPort`. The pool does not close it, and several pools can share it, also
    with threads that call `CompletionPort.get` themselves. On a port with servers its threads serve
    their connections too, as each thread does that takes packets there.
    ``target``: called with each `Completion`, in several threads at a time: as many as the port's
    ``concurrency`` lets run. Packets that must not be worked on at the same time are bound to a
    `Strand`.
    ``threads``: how many threads there always are, 1 to 32768.
    ``maximum``: how many there may be, ``threads`` or more; None for ``threads``. While packets
    wait and all workers are blocked, threads are added, one at a time. The engine ``selectors``
    can't see who blocks: there a thread is added when none comes for the packets that wait, and
    the concurrency (less the threads in `CompletionPort.blocking`) leaves room for it.
    ``idle_timeout``: seconds, more than 0, after which a thread above ``threads`` that had nothing
    to do ends.
    ``name``: the threads are called ``name-1``, ``name-2`` and so on, and the one that adds threads
    ``name-keeper``.
    ``daemon``: whether the program may end while the threads run.

    An exception in the target is written to the log ``completionport`` with its traceback, and
    the thread goes on with the next packet. If the program has set `threading.excepthook`, that is
    called in place of the log. When the port is closed, the threads end.

    Raised: `TypeError` and `ValueError` for wrong arguments, `PortOwned` for the port of a server.

    Use it as a context manager, or call `start` and `stop`.
    Win32: ``CreateThreadpoolIo``, ``BindIoCompletionCallback``, ``SetThreadpoolThreadMaximum``.
    """

    def __init__(
        self,
        port: CompletionPort,
        target: Callable[[Completion], object],
        threads: int,
        *,
        maximum: int | None = None,
        idle_timeout: float = 10.0,
        name: str = "completionport-pool",
        daemon: bool = False,
    ) -> None:
        if not isinstance(port, CompletionPort):
            raise TypeError(f"port must be a CompletionPort, not {type(port).__name__}")
        if isinstance(port, OwnPort):
            port._refuse("a WorkerPool")
        if not callable(target):
            raise TypeError(
                f"target must be callable with a Completion, {type(target).__name__} is not"
            )
        check_callback("target", target)
        check_count("threads", threads, 1, LARGEST_WORKERS)
        check_count("maximum", maximum, threads, optional=True)
        check_seconds("idle_timeout", idle_timeout, positive=True)
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {type(name).__name__}")
        if not isinstance(daemon, bool):
            raise TypeError(f"daemon must be True or False, not {type(daemon).__name__}")
        self.port = port
        """The port whose packets it takes."""
        self.name = name
        """What the names of its threads begin with."""
        self._target = target
        self._crew = Crew(port, target)
        self._threads = threads
        self._maximum = threads if maximum is None else maximum
        self._idle_timeout = idle_timeout
        self._daemon = daemon
        self._changed = threading.Condition()  # its lock guards what follows
        self._workers: dict[threading.Thread, _Worker] = {}
        self._keeper: threading.Thread | None = None
        self._named = 0  # threads so far
        self._started = False
        self._stopping = False
        self._ending: list[threading.Thread] = []  # whom `stop` waits for
        self._grown = 0
        self._shrunk = 0
        self._failures = 0

    def __repr__(self) -> str:
        state = "stopped" if self._stopping else f"{len(self._workers)} threads"
        return f"<WorkerPool {self.name}: {state}>"

    def start(self) -> None:
        """Let the threads go; returns at once.

        Raised: `RuntimeError` when it was started or stopped before, or when the system refuses
        a thread (and then those that run are stopped); `PortClosed`.
        """
        with self._changed:
            if self._started or self._stopping:
                raise RuntimeError("a pool is started once: make a new one")
            if self.port.closed:
                raise PortClosed
            self._started = True
        try:
            with self._changed:
                if self._stopping:
                    return  # another thread was quicker
                for _ in range(self._threads):
                    self._add()
                if self._maximum > self._threads:
                    keeper = threading.Thread(
                        target=self._keep, name=f"{self.name}-keeper", daemon=self._daemon
                    )
                    keeper.start()
                    self._keeper = keeper
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout: float | None = None) -> bool:
        """End the threads, once the packets that are queued now have been served.

        ``timeout``: the most seconds to wait, 0 or more; None to wait until all have ended.
        Returned: whether all have ended. Called in the target, it returns False at once and
        the threads end behind it. Calling again waits for the end, and does nothing more.

        Packets that come later stay in the port's queue.
        Win32: ``CloseThreadpoolIo``, ``WaitForThreadpoolIoCallbacks``.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            first, self._stopping = not self._stopping, True
            workers = len(self._workers)
            if first:
                self._ending = [*self._workers]
                if self._keeper is not None:
                    self._ending.append(self._keeper)
                self._changed.notify_all()
        if first and self._keeper is not None:
            self.port._dismiss_keepers()
        if first and workers:
            self._crew.dismiss(workers)
        if threading.current_thread() in self._ending:
            return False  # a worker can't wait for itself
        # The caller may hold a place, which the workers need to come to their end.
        with contextlib.ExitStack() as aside:
            with contextlib.suppress(PortClosed):
                aside.enter_context(self.port.blocking())
            for thread in self._ending:
                remaining = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                join(thread, None if remaining is None else min(remaining, threading.TIMEOUT_MAX))
        return not any(thread.is_alive() for thread in self._ending)

    def stats(self) -> dict[str, int]:
        """Numbers for a look inside.

        ``threads`` that are alive, of which ``working`` are in the target and ``idle`` are not,
        though they may serve a connection; so far ``grown`` and ``shrunk``: threads added and ended
        above the constant number; and ``failures``: exceptions in the target.
        """
        with self._changed:
            working = sum(worker.busy for worker in self._workers.values())
            return {
                "threads": len(self._workers),
                "idle": len(self._workers) - working,
                "working": working,
                "grown": self._grown,
                "shrunk": self._shrunk,
                "failures": self._failures,
            }

    def __enter__(self) -> WorkerPool:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _add(self) -> _Worker:
        """Start one more thread. Lock held."""
        self._named += 1
        worker = _Worker(self, f"{self.name}-{self._named}", self._daemon)
        self._workers[worker.thread] = worker
        # One whose start a signal has interrupted may come yet, and is to be dismissed then.
        try:
            worker.thread.start()
        except (RuntimeError, MemoryError):
            del self._workers[worker.thread]
            raise
        return worker

    def _ended(self, worker: _Worker) -> None:
        with self._changed:
            self._workers.pop(worker.thread, None)
            self._changed.notify_all()

    def _may_leave(self, worker: _Worker) -> bool:
        """Whether a worker that waited in vain ends."""
        with self._changed:
            # One that is to stop is dismissed.
            if self._stopping or len(self._workers) <= self._threads:
                return False
            self._shrunk += 1
            del self._workers[worker.thread]
            return True

    def _failed(self, error: BaseException) -> None:
        """The target raised this."""
        if isinstance(error, PortClosed) and self.port.closed:
            return  # the target met the end that this thread is about to meet
        with self._changed:
            self._failures += 1
        if threading.excepthook is threading.__excepthook__:
            tell(
                logging.ERROR,
                "%s: exception in the target, the thread goes on",
                threading.current_thread().name,
                error=error,
            )
            return
        try:
            threading.excepthook(
                threading.ExceptHookArgs(
                    (type(error), error, error.__traceback__, threading.current_thread())
                )
            )
        except BaseException:
            tell(logging.ERROR, "exception in threading.excepthook", error=True)

    def _keep(self) -> None:
        """Add a thread whenever all are blocked and packets wait."""
        with contextlib.suppress(PortClosed):
            while True:
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._stopping or len(self._workers) < self._maximum
                    )
                    if self._stopping:
                        return
                try:
                    if self.port._wait_until_stuck(KEEPER_LOOKS_UP):
                        self._grow()
                except MemoryError:
                    time.sleep(SHORTAGE)

    def _grow(self) -> None:
        with self._changed:
            if self._stopping:
                return
            busy = sum(worker.busy for worker in self._workers.values())
            if busy + self._crew.serving() < len(self._workers):
                self._changed.wait(WORKER_COMES)
                return
            try:
                worker = self._add()
            except (RuntimeError, MemoryError):
                tell(logging.ERROR, "%s: no further thread could be started", self.name, error=True)
                self._changed.wait(RETRY_GROWING)
                return
            self._grown += 1
        worker.came.wait()
