"""What is the same for every server: its threads, its signals, its orderly end, its sockets."""

from __future__ import annotations

import abc
import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self

from ..interface.error_codes import add_codes
from ..interface.errors import PortForked
from ..interface.port import CompletionPort
from ..interface.unique import Unique
from ..shared.arguments import LARGEST_WORKERS, check_seconds
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

    def work(self) -> None:
        """The body of a worker thread."""

    def post_stop(self) -> None:
        """End one worker."""

    def stats(self) -> dict[str, int]:
        """Numbers for a look inside."""


class Service(Unique):
    """A socket, a port, and the threads that work for it, until `stop`."""

    address: Any
    """The address that it serves, as ``getsockname()`` gives it."""
    completion_port: CompletionPort
    """The port that its workers wait at, for ``stats()`` and ``blocking()``; ``close()`` is `stop`.

    What would put packets of the program's there, or take some, raises `PortOwned`: the workers
    take them all and know only the server's. The program makes a `CompletionPort` of its own.
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
        make_core: Callable[[CompletionPort], Core],
    ) -> None:
        """``own_socket``: it was made for this service, and is closed if that fails."""
        self._socket = sock
        try:
            self._port = CompletionPort(concurrency, engine=engine)
            try:
                self._core = make_core(self._port)
            except BaseException:
                self._port.close()
                raise
        except BaseException:
            if own_socket:
                sock.close()
            raise
        self.completion_port = OwnPort(self._port, self)
        self.address = sock.getsockname()
        self._threads = [
            threading.Thread(target=self._core.work, name=f"completionport-worker-{number}")
            for number in range(1, (workers or self._default_workers()) + 1)
        ]
        # Guards `_started`, `_stopping` and `_waker`. The handler of a signal may call `stop` too.
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._waker: socket.socket | None = None
        self._signalled = False  # written by the signal handler only
        self._started = False
        self._stopping = False
        self._stop_asked = threading.Event()
        self._stopped = threading.Event()

    def _default_workers(self) -> int:
        return min(max(FEWEST_WORKERS, 2 * self._port.concurrency), LARGEST_WORKERS)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address} on {self._port.engine}>"

    def _prepare(self) -> None:
        """What is to be done before there are threads."""

    def start(self) -> None:
        """Serve, and let the workers go; returns at once. A server is started once.

        The workers keep the process alive until `stop`, also when the main thread has ended.

        Raised: `RuntimeError` when it was started or stopped before, or when the system refuses a
        thread; whatever else is raised, it is stopped then too.
        """
        with self._lock:
            if self._started or self._stopping:
                raise RuntimeError("a server is started once: make a new one")
            self._started = True
            try:
                if self._socket.fileno() < 0:
                    raise ValueError("the server's socket was closed before the start")
                self._prepare()
                self._start_workers()
                self._core.listen(self._socket)
            except BaseException:
                # Workers for whom nothing will come would keep the process alive.
                self.stop(0)
                raise

    def _start_workers(self) -> None:
        for number, thread in enumerate(self._threads, 1):
            try:
                thread.start()
            except RuntimeError as error:
                raise RuntimeError(
                    f"{error}: the system refuses number {number} of {len(self._threads)} workers. "
                    "Ask for fewer, or raise the limits of threads and memory (ulimit -a)"
                ) from error

    def serve_forever(self, grace: float = 5.0) -> None:
        """Start, and serve until `stop` is called or SIGINT or SIGTERM (on Windows also
        SIGBREAK, which is Ctrl-Break) comes; then stop.

        ``grace`` as for `stop`. Signals end it only in the main thread, where their handlers are
        restored afterwards.
        """
        with self._signals() as wait:
            if not self._started:
                self.start()
            wait()
        self.stop(grace)

    def stop(self, grace: float = 5.0) -> None:
        """Take nothing new, end what there is, end the workers, close the port.

        ``grace``: seconds, 0 or more, that callbacks at work have for their answers, and what is
        queued for the peers has to go out; then it is dropped, and what is sent is refused
        (`ConnectionClosed`), as it is at once where no callback is at work. Nothing more is
        received. The call returns when all is over, which takes as long as the callbacks do;
        called in a callback, it returns at once and the rest is done behind it. Calling again
        waits for the end, and does nothing more. An exception of a signal handler ends the
        waiting only.

        Raised: `PortForked` in the child of a ``fork()``: the server is the parent's.
        """
        check_seconds("grace", grace)
        if os.getpid() != self._process:
            raise PortForked
        self._stop_asked.set()
        with self._lock:
            first, self._stopping = not self._stopping, True
            if self._waker is not None:
                with contextlib.suppress(BlockingIOError):
                    self._waker.send(b"\0")
        if first:
            # By a thread of its own: a worker can't wait for itself, nor can a signal's handler for
            # what it has interrupted.
            stopping = threading.Thread(
                target=self._stop, args=(grace,), name="completionport-stop"
            )
            try:
                stopping.start()
            except RuntimeError:  # no thread can be had, or the interpreter ends
                if threading.current_thread() in self._threads:
                    raise
                self._stop(grace)
        if threading.current_thread() not in self._threads:
            self._stopped.wait()

    def _stop(self, grace: float) -> None:
        try:
            if self._started:
                self._core.stop_listening()
                self._socket.close()
                self._core.close_connections()
                if not self._core.wait_closed(grace):
                    self._core.abort_connections()
                    # A callback that does not come back must not hold the end up for ever.
                    self._core.wait_closed(max(grace, 1.0))
                for _ in self._threads:
                    self._core.post_stop()
                for thread in self._threads:
                    if thread.ident is not None:  # it was started
                        thread.join()
        finally:
            self._socket.close()
            self._port.close()
            self._stopped.set()

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
    def _signals(self) -> Iterator[Callable[[], object]]:
        """Let SIGINT and SIGTERM ask for the end, in the main thread; gives how to wait for it."""
        if threading.current_thread() is not threading.main_thread():
            yield self._stop_asked.wait
            return

        # The operating system may give the signal to a worker, and then nothing would interrupt
        # a lock that the main thread waits for. A descriptor is written to in any case.
        def ask(number: int, frame: FrameType | None) -> None:
            self._signalled = True

        def wait() -> None:
            while not (self._signalled or self._stop_asked.is_set()):
                select.select([reader], [], [])
                with contextlib.suppress(BlockingIOError):
                    reader.recv(4096)

        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)
            before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
            descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            with self._lock:
                self._waker = writer
            try:
                yield wait
            finally:
                with self._lock:
                    self._waker = None
                signal.set_wakeup_fd(descriptor)
                for number, handler in before.items():
                    signal.signal(number, handler)


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
