"""What is the same for every server: its threads, its signals, its orderly end, its sockets."""

from __future__ import annotations

import _thread
import abc
import contextlib
import functools
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self

from ..crew.crew import Crew, join
from ..interface.error_codes import add_codes
from ..interface.errors import PortForked
from ..interface.port import Completion, CompletionPort
from ..interface.unique import Unique
from ..shared.arguments import LARGEST_WORKERS, check_seconds
from ..shared.reports import SHORTAGE, tell
from .own_port import OwnPort

if TYPE_CHECKING:
    # Known to type checkers without being installed. `typing.TypeVar` takes a default from Python
    # 3.13 on only.
    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)
else:
    from typing import TypeVar

    S = TypeVar("S")

FEWEST_WORKERS = 8
"""Of a server that was told no number: so many callbacks may block before others wait for them."""

PRIVILEGED = 1024
"""Ports below it are not everybody's."""

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform == "win32":
    STOP_SIGNALS.append(signal.SIGBREAK)
else:
    STOP_SIGNALS.append(signal.SIGHUP)

LAST_PATIENCE = 0.5
"""Seconds that a second signal leaves for the end, and the end of a server on a port that was given
for its workers, before threads are left behind."""

_PORT_NUMBERS = (
    *("queued", "taken", "waiting", "running", "blocked", "replaced", "wakeups"),
    *("queue_time", "work_time"),
)
"""What a server tells of its port."""


class ServiceSocket(Unique, abc.ABC, Generic[S]):
    """A socket of a server, as its handler sees it."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def state(self) -> S:
        """Yours: any object (per-handle data), to be set as you like. None at first."""

    @state.setter
    @abc.abstractmethod
    def state(self, value: S) -> None: ...

    @property
    @abc.abstractmethod
    def sockname(self) -> Any:
        """This side's address."""

    @property
    @abc.abstractmethod
    def send_queue_size(self) -> int:
        """Bytes given to `send` that the kernel has not taken yet."""


class Core(Protocol):
    """Packets to callbacks, as a service sees it."""

    def listen(self, sock: socket.socket) -> None:
        """Begin to serve what comes to the socket."""

    def stop_listening(self) -> None:
        """Take nothing new."""

    def close_connections(self) -> None:
        """End what there is, once callbacks at work are over and what is queued has gone out."""

    def abort_connections(self) -> None:
        """End what there is at once."""

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Wait until all has ended; False when the time is over before."""

    def end(self) -> None:
        """All has ended: let go of what the port has of it."""

    def stats(self) -> dict[str, int]:
        """Numbers for a look inside."""


def check_port(port: object, concurrency: int, engine: str | None) -> None:
    """Of the arguments of a server: the port that it is given, if it is given one."""
    if port is None:
        return
    if not isinstance(port, CompletionPort):
        raise TypeError(f"completion_port must be a CompletionPort, not {type(port).__name__}")
    if isinstance(port, OwnPort):
        port._refuse("completion_port=")
    for name, value in (("concurrency", concurrency), ("engine", engine)):
        if value:
            raise ValueError(
                f"{name}={value!r} beside completion_port: that port has a {name} of its own. "
                f"Leave {name} out, or give it to CompletionPort()"
            )
    port._check()


class Service(Unique):
    """A socket, a port, and the threads that work for it, until `stop`."""

    address: Any
    """The address that it serves, as ``getsockname()`` gives it."""
    completion_port: CompletionPort
    """The port that its workers wait at: the one that was given.

    Or the one that the server made for itself: for ``stats()`` and ``blocking()``; ``close()`` is
    `stop`. What puts packets of the program's there is for handlers with a `Handler.packet`, else
    it raises `PortOwned`, as what takes packets always does: the workers take them all.
    """
    _core_class: ClassVar[Callable[[CompletionPort], Callable[..., Core]]]
    """What makes the core for a port: `completionport.engines` gives it to each kind of server."""

    def __init__(
        self,
        sock: socket.socket,
        own_socket: bool,
        workers: int | None,
        concurrency: int,
        engine: str | None,
        completion_port: CompletionPort | None,
        packet: Callable[[Completion], object] | None,
        make_core: Callable[[CompletionPort], Core],
    ) -> None:
        """``own_socket``: it was made for this service, and is closed if that fails.

        ``packet``: gets the program's packets of a port that is made here.
        """
        self._socket = sock
        self._given_port = completion_port
        try:
            if completion_port is not None:
                self._port = completion_port
                self._crew = Crew(completion_port)
                self._core = make_core(completion_port)
            else:
                self._port = CompletionPort(concurrency, engine=engine)
                try:
                    call = None if packet is None else functools.partial(self._call, packet)
                    self._crew = Crew(self._port, call)
                    self._core = make_core(self._port)
                except BaseException:
                    self._port.close()
                    raise
        except BaseException:
            if own_socket:
                sock.close()
            raise
        self.completion_port = completion_port or OwnPort(self._port, self, packet is not None)
        self.address = sock.getsockname()
        self._stop_asked = threading.Event()
        numbers = range(1, (workers or self._default_workers()) + 1)
        self._threads = [self._new_thread(f"worker-{number}", self._work) for number in numbers]
        if completion_port is not None:
            # All workers may be at callbacks of others, and the end takes a thread.
            self._threads.append(self._new_thread("worker-at-the-end", self._work_at_the_end))
        self._let_go = threading.Event()  # the process may end
        self._keeper = threading.Thread(target=self._keep, name="completionport-server")
        # Carries the stop out: a worker can't wait for itself, nor can a signal's handler for what
        # it has interrupted. It is there from the start, since a stop may come where the system
        # has no thread and no memory any more.
        self._stopper = threading.Thread(target=self._carry_stop_out, name="completionport-stop")
        # Guards `_started`, `_stopping` and `_waker`. The handler of a signal may call `stop` too.
        self._lock = threading.RLock()
        self._started = False
        self._stopping = False
        self._waker: socket.socket | None = None
        # The grace of a stop that no thread has taken on yet; no lock, since `start` may hold it.
        self._grace: list[float] = []
        self._stop_taken_by: int | None = None  # a thread; written once
        self._process = os.getpid()
        self._signals = _NO_SIGNALS  # written by `serve_forever` only
        self._stopped = threading.Event()

    def _call(self, packet: Callable[[Completion], object], completion: Completion) -> None:
        """Give the handler one of the program's packets."""
        try:
            packet(completion)
        except BaseException as error:
            tell(logging.ERROR, "%r: exception in packet(), the server goes on", self, error=error)

    def _new_thread(self, name: str, work: Callable[[str], None]) -> threading.Thread:
        name = f"completionport-{name}"
        return threading.Thread(target=work, args=(name,), name=name)

    def _work(self, name: str) -> None:
        self._crew.work(name)
        if os.getpid() == self._process and self._port.closed:
            self._let_go.set()

    def _work_at_the_end(self, name: str) -> None:
        self._stop_asked.wait()
        self._work(name)

    def _default_workers(self) -> int:
        return min(max(FEWEST_WORKERS, 2 * self._port.concurrency), LARGEST_WORKERS)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address} on {self._port.engine}>"

    def _prepare(self) -> None:
        """What is to be done before there are threads."""

    def start(self) -> None:
        """Serve, and let the workers go; returns at once. A server is started once.

        The workers keep the process alive until `stop`, also when the main thread has ended. They
        are daemons all the same, and so is a `threading.Thread` that a callback makes, unless it is
        told ``daemon=False``: the end of the program does not wait for it.

        Raised: `RuntimeError` when it was started or stopped before, or when the system refuses a
        thread; whatever else is raised, it is stopped then too. `PortForked` in the child of a
        ``fork()``: the server is the parent's.
        """
        if os.getpid() != self._process:
            raise PortForked
        with self._lock:
            if self._started or self._stopping:
                raise RuntimeError("a server is started once: make a new one")
            self._started = True
            try:
                if self._socket.fileno() < 0:
                    raise ValueError("the server's socket was closed before the start")
                self._prepare()
                if self._start_workers():
                    self._core.listen(self._socket)
            except BaseException:
                # Workers for whom nothing will come would keep the process alive.
                self.stop(0)
                raise

    def _start_workers(self) -> bool:
        """False: a signal says that they are not wanted any more.

        They are daemons, which end with the process where a second signal finds one in a callback
        that does not come back. Until then another thread keeps the process, unless the thread that
        has made the server is a daemon itself.
        """
        threads = [self._stopper, *self._threads, self._keeper]
        # An isolated subinterpreter has no daemons, and gets no signals.
        if getattr(_thread, "daemon_threads_allowed", lambda: True)():
            for thread in (self._stopper, *self._threads):
                thread.daemon = True
        for number, thread in enumerate(threads):
            if self._signals.count:
                return False
            try:
                thread.start()
            except RuntimeError as error:
                which = "one more"
                if thread in self._threads:
                    which = f"number {number} of {len(self._threads)} workers"
                raise RuntimeError(
                    f"{error}: the system refuses {which}. "
                    "Ask for fewer, or raise the limits of threads and memory (ulimit -a)"
                ) from error
        return True

    def serve_forever(self, grace: float = 5.0) -> None:
        """Start, and serve until `stop` is called, the port is closed or a signal comes; then stop.

        ``grace`` as for `stop`. The signals are SIGINT, SIGTERM and SIGHUP (on Windows SIGBREAK,
        which is Ctrl-Break, in its place); SIGHUP only where the program has left it what the
        system does with it. They end it only in the main thread, where their handlers are restored
        afterwards. A second signal, whichever, cuts the grace off: the connections are aborted, and
        where that does not end the server at once, since a callback does not come back, the
        process need not wait for its threads any more.

        Raised: `SystemExit` with 128 and the number of the second signal, within a second;
        otherwise as for `start` and `stop`.
        """
        check_seconds("grace", grace)
        # On a port that was given the calling thread may hold a place, which the workers need.
        with self._heeding_signals() as signals, self._port.blocking():
            self._signals = signals
            if not self._started:
                self.start()
            signals.wait(self._stop_asked, 1)
            self._ask_to_stop(grace)
            if not signals.wait(self._stopped, 2):
                self._cut_short()
                raise SystemExit(128 + signals.number)

    def stop(self, grace: float = 5.0) -> None:
        """Take nothing new, end what there is, end the workers, close the port that it made.

        A port that was given stays open, and everything else on it at work. A worker that is at a
        callback of another server there ends behind that.

        ``grace``: seconds, 0 or more, for what there is to come to its end. A `Server` calls
        `Handler.stopping` for each connection that is open, in its order: behind the callback that
        is at work, which may still answer. Unless overridden that closes the connection: nothing
        more is received, and what is queued goes out. Who overrides it may keep it, to answer
        later. A `DatagramServer` receives no more, and closes when its callbacks are over. After
        the grace the rest is aborted: what is queued is dropped, and what is sent is refused
        (`ConnectionClosed`). With 0 that is at once, and nobody is asked.

        The call returns when all is over, which takes as long as the callbacks do. Called in a
        callback (on a port that was given, of any server) or in a function that the port carries
        out (`CompletionPort.submit`), it returns at once and the rest is done behind it. Calling
        again waits for the end, and does nothing more. An exception of a signal handler ends the
        waiting only.

        Raised: `PortForked` in the child of a ``fork()``: the server is the parent's.
        """
        check_seconds("grace", grace)
        if os.getpid() != self._process:
            raise PortForked
        self._ask_to_stop(grace)
        if not self._in_callback():
            with self._port.blocking():
                self._stopped.wait()

    def _in_callback(self) -> bool:
        """Whether the end would wait for the calling thread."""
        # On a port that was given any thread may serve. Of its own, besides the workers, the one
        # that closes it calls what is left.
        # `current_thread` would make an object for a thread that is not Python's, as the pool's.
        # The number of a thread that has ended may be another one's.
        mine = threading.get_ident()
        return (
            mine in [thread.ident for thread in self._threads if thread.is_alive()]
            or mine == self._stop_taken_by
            or (self._given_port is not None and self._port._serves())
            # The end of the port waits for its functions.
            or self._port._executes()
        )

    def _ask_to_stop(self, grace: float) -> None:
        with self._lock:
            if not self._stopping:
                self._stopping = True
                self._grace += [grace]
            self._stop_asked.set()
            self._wake()
        if self._stopper.ident is None:  # it was not started, and so no worker was
            self._take_stop_on()

    def _carry_stop_out(self) -> None:
        self._stop_asked.wait()
        self._take_stop_on()

    def _keep(self) -> None:
        self._let_go.wait()
        # The program has closed the port under the server. `start` may hold the lock, and wait for
        # this thread in a stop of its own.
        while self._port.closed and not self._stopping:
            if self._lock.acquire(timeout=SHORTAGE):
                try:
                    self._ask_to_stop(0)
                finally:
                    self._lock.release()

    def _take_stop_on(self) -> None:
        """Whoever comes first carries the stop out."""
        try:
            grace = self._grace.pop()
        except IndexError:
            return
        self._stop_taken_by = threading.get_ident()
        with self._port.blocking():
            self._stop(grace)

    def _wake(self) -> None:
        """Have `serve_forever` look up. Lock held."""
        if self._waker is not None:
            with contextlib.suppress(BlockingIOError):
                self._waker.send(b"\0")

    def _cut_short(self) -> None:
        """A second signal: nobody has time any more."""
        self._core.abort_connections()
        if not self._stopped.wait(LAST_PATIENCE):
            self._let_go.set()

    def _stop(self, grace: float) -> None:
        try:
            if self._started:
                self._core.stop_listening()
                self._socket.close()
                if grace:
                    self._core.close_connections()
                if not grace or not self._core.wait_closed(grace):
                    self._core.abort_connections()
                    # Of a port of its own, whose workers are waited for below, a callback that does
                    # not come back must not hold up the others' end.
                    self._core.wait_closed(max(grace, 1.0) if self._given_port is None else None)
                self._end_workers()
                self._core.end()
        finally:
            self._socket.close()
            if self._given_port is None:
                self._port.close()
            self._let_go.set()
            join(self._keeper)
            self._stopped.set()
            with self._lock:
                self._wake()

    def _end_workers(self) -> None:
        self._crew.dismiss(len(self._threads))
        # One that does not come is at a callback of another server, and leaves behind that.
        end = None if self._given_port is None else time.monotonic() + LAST_PATIENCE
        for thread in self._threads:
            join(thread, None if end is None else max(end - time.monotonic(), 0.0))

    def stats(self) -> dict[str, Any]:
        """The core's numbers, and those of the port that tell of the workers."""
        port = self._port.stats()
        return {**self._core.stats(), **{name: port[name] for name in _PORT_NUMBERS}}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The child of a fork leaves its parent's server alone.
        if os.getpid() == self._process:
            self.stop()

    @contextlib.contextmanager
    def _heeding_signals(self) -> Iterator[_Signals]:
        """Count the signals that ask for the end, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield _Signals(None)
            return
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)
            signals = _Signals(reader)
            before = {
                number: signal.signal(number, signals.came)
                for number in STOP_SIGNALS
                # A program that knows what it means goes on, as one under nohup does.
                if number != _HANG_UP or signal.getsignal(number) is signal.SIG_DFL
            }
            descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            with self._lock:
                self._waker = writer
            try:
                yield signals
            finally:
                with self._lock:
                    self._waker = None
                signal.set_wakeup_fd(descriptor)
                for number, handler in before.items():
                    signal.signal(number, handler)


class _Signals:
    """The signals that have asked a server for its end, and the wait for them."""

    def __init__(self, reader: socket.socket | None) -> None:
        self.count = 0  # written by the handler only
        self.number = 0  # of the last one
        # The operating system may give a signal to a worker, and then nothing would interrupt a
        # lock that the main thread waits for. A descriptor is written to in any case.
        self._reader = reader

    def came(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        self.number = number
        self.count += 1

    def wait(self, event: threading.Event, most: int) -> bool:
        """Until the event is set: True. False: so many signals have come, and it is not."""
        if self._reader is None:
            return event.wait()
        while not event.is_set():
            if self.count >= most:
                return False
            select.select([self._reader], [], [])
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(4096)
        return True


_HANG_UP = getattr(signal, "SIGHUP", None)
_NO_SIGNALS = _Signals(None)


def bound_socket(
    host: str,
    port: int,
    kind: int,
    *options: tuple[int, int],
    reuse_port: bool,
    backlog: int | None = None,
) -> socket.socket:
    """A new socket with that address; ``options`` are switched on before it has it.

    It listens where a ``backlog`` is given.
    """
    if not isinstance(host, str):
        raise TypeError(f"host must be a name or an address, not {type(host).__name__}")
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port must be a number, not {type(port).__name__}")
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"port must be a number from 0 to 65535, not {port}")
    with _telling_where(host, port):
        found = socket.getaddrinfo(host or None, port, type=kind, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(found[0], kind)
    try:
        for level, option in options:
            sock.setsockopt(level, option, 1)
        if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
            raise ValueError("reuse_port: this system has no SO_REUSEPORT")
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with _telling_where(host, port):
            sock.bind(found[4])
            if backlog is not None:
                sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _telling_where(host: str, port: int) -> Iterator[None]:
    """What the system refuses says for which address that was, and keeps its class and numbers."""
    try:
        yield
    except OSError as error:
        where = f"{host or 'every address'}, port {port}"
        text = f"can't listen on {where}: {error.strerror or error}"
        if isinstance(error, PermissionError) and port < PRIVILEGED and sys.platform != "win32":
            text += f". Ports below {PRIVILEGED} need a privilege: choose another"
        error.strerror = text
        error.args = error.errno, text  # what pickle keeps
        add_codes(error)
        raise
