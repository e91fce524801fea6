"""The life of a server: its listening socket, its worker threads, and its orderly end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .arguments import check_count, check_seconds
from .handler import Handler
from .interface import CompletionPort

FEWEST_WORKERS = 8
"""Of a server that was told no number: so many callbacks may block before others wait for them."""

DESCRIPTORS = 16384
"""For so many (as far as the limit allows) there is room in the process's table from the start."""

_PORT_NUMBERS = (
    *("queued", "taken", "waiting", "running", "blocked", "replaced", "wakeups"),
    *("queue_time", "work_time"),
)
"""What a server tells of its port."""


class Server:
    """A TCP server on a completion port.

    ``handler``: a `Handler`; one object for all connections.
    ``host``, ``port``: where to listen; port 0 takes a free one, see `address`. ``listener``, a
    listening socket of your own, takes their place; it is closed with the server.
    ``workers``: threads, 1 or more; None for 8, or twice ``concurrency`` where that is more. At
    most ``concurrency`` of them run callbacks; the others step in for those whose callback blocks.
    ``concurrency``, ``engine``: as for `CompletionPort`.
    ``backlog``: connections that may wait to be accepted.
    ``buffer_size``: the most bytes that one `Handler.received` gets, 64 to 2**20.
    ``max_connections``: more clients than that wait in the backlog; None for no limit.
    ``idle_timeout``: seconds without a byte after which a connection is closed, or None.
    ``send_limit``: bytes queued for a peer that does not read, after which nothing is received
    from it until they have gone out.
    ``reuse_port``: SO_REUSEPORT, so that several processes can share the port.

    Raised: `TypeError` and `ValueError` for wrong arguments, `OSError` when the address can't be
    had, `EngineUnavailable`.

    Running out of descriptors pauses accepting, says so once in the log ``completionport``,
    and goes on when there are some again.
    """

    def __init__(
        self,
        handler: Handler,
        host: str = "127.0.0.1",
        port: int = 5050,
        *,
        workers: int | None = None,
        concurrency: int = 0,
        backlog: int = 4096,
        buffer_size: int = 16384,
        max_connections: int | None = None,
        idle_timeout: float | None = None,
        send_limit: int = 1 << 20,
        engine: str | None = None,
        reuse_port: bool = False,
        listener: socket.socket | None = None,
    ) -> None:
        if not isinstance(handler, Handler):
            raise TypeError(f"handler must be a Handler, not {type(handler).__name__}")
        check_count("workers", workers, 1, optional=True)
        check_count("backlog", backlog, 0)
        check_count("buffer_size", buffer_size, 64, 1 << 20)
        check_count("max_connections", max_connections, 1, optional=True)
        check_count("send_limit", send_limit, 0)
        if idle_timeout is not None:
            if not isinstance(idle_timeout, (int, float)):
                raise TypeError(
                    f"idle_timeout must be seconds or None, not {type(idle_timeout).__name__}"
                )
            if not 0 < idle_timeout < 1e9:
                raise ValueError(f"idle_timeout must be more than 0 seconds, not {idle_timeout}")
        if listener is not None and not isinstance(listener, socket.socket):
            raise TypeError(f"listener must be a socket, not {type(listener).__name__}")
        self.handler = handler
        self._listener = listener or _listen(host, port, backlog, reuse_port)
        try:
            self.completion_port = CompletionPort(concurrency, engine=engine)
            try:
                self._core = _core_class(self.completion_port)(
                    self.completion_port,
                    handler,
                    self,
                    buffer_size=buffer_size,
                    max_connections=max_connections,
                    idle_timeout=idle_timeout,
                    send_limit=send_limit,
                )
            except BaseException:
                self.completion_port.close()
                raise
        except BaseException:
            if listener is None:
                self._listener.close()
            raise
        self.address: Any = self._listener.getsockname()
        self._threads = [
            threading.Thread(target=self._core.work, name=f"completionport-worker-{number}")
            for number in range(1, (workers or self._default_workers()) + 1)
        ]
        # Guards `_started`, `_stopping` and `_waker`.
        self._lock = threading.Lock()
        self._waker: socket.socket | None = None
        self._signalled = False  # written by the signal handler only
        self._started = False
        self._stopping = False
        self._stop_asked = threading.Event()
        self._stopped = threading.Event()

    def _default_workers(self) -> int:
        return max(FEWEST_WORKERS, 2 * self.completion_port.concurrency)

    def __repr__(self) -> str:
        return f"<Server {self.address} on {self.completion_port.engine}>"

    def start(self) -> None:
        """Listen, and let the workers go; returns at once. A server is started once."""
        with self._lock:
            if self._started or self._stopping:
                raise RuntimeError("a server is started once: make a new one")
            self._started = True
            _make_room_for_descriptors(self._listener.fileno())
            for thread in self._threads:
                thread.start()
            self._core.listen(self._listener)

    def serve_forever(self, grace: float = 5.0) -> None:
        """Start, and serve until `stop` is called or SIGINT or SIGTERM comes; then stop.

        ``grace`` as for `stop`. Signals end it only in the main thread, where their handlers are
        restored afterwards.
        """
        with self._signals() as wait:
            if not self._started:
                self.start()
            wait()
        self.stop(grace)

    def stop(self, grace: float = 5.0) -> None:
        """Stop listening, close every connection, end the workers, close the port.

        ``grace``: seconds, 0 or more, that what is queued for the peers has to go out; then the
        connections are aborted. The call returns when all is over; called in a
        callback, it returns at once and the rest is done behind it. Calling again waits for
        the end, and does nothing more.
        """
        check_seconds("grace", grace)
        self._stop_asked.set()
        with self._lock:
            first, self._stopping = not self._stopping, True
            if self._waker is not None:
                with contextlib.suppress(BlockingIOError):
                    self._waker.send(b"\0")
        if threading.current_thread() in self._threads:
            # A worker can't wait for itself.
            if first:
                threading.Thread(
                    target=self._stop, args=(grace,), name="completionport-stop"
                ).start()
            return
        if first:
            self._stop(grace)
        self._stopped.wait()

    def _stop(self, grace: float) -> None:
        try:
            if self._started:
                self._core.stop_listening()
                self._listener.close()
                self._core.close_connections()
                if not self._core.wait_closed(grace):
                    self._core.abort_connections()
                    # A callback that does not come back must not hold the end up for ever.
                    self._core.wait_closed(max(grace, 1.0))
                for _ in self._threads:
                    self._core.post_stop()
                for thread in self._threads:
                    thread.join()
        finally:
            self._listener.close()
            self.completion_port.close()
            self._stopped.set()

    def stats(self) -> dict[str, Any]:
        """Numbers for a look inside.

        ``connections`` now; so far ``accepted``, ``received_packets`` (calls of
        `Handler.received`), ``received_bytes``, ``sent_bytes``. And of `CompletionPort.stats`:
        ``queued``, ``taken``, ``waiting``, ``running``, ``blocked``, ``replaced``, ``wakeups``,
        ``queue_time`` (how long connections with something to tell waited for a worker) and
        ``work_time`` (how long callbacks took).
        """
        port = self.completion_port.stats()
        return {**self._core.stats(), **{name: port[name] for name in _PORT_NUMBERS}}

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
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
            before = {
                number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)
            }
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


def _make_room_for_descriptors(descriptor: int) -> None:
    """Have the process's table of descriptors grow now, and at once to what a server may need.

    While it grows in a process with threads, the kernel makes the thread that opens a file wait
    for all processors (synchronize_rcu in its expand_fdtable), 10 to 70 ms for each doubling;
    by then thousands of clients may have come. Before there are threads it takes nothing.
    """
    if sys.platform != "linux":
        return
    import fcntl
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    highest = DESCRIPTORS if limit == resource.RLIM_INFINITY else min(limit, DESCRIPTORS)
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, highest - 1))


def _core_class(port: CompletionPort) -> Any:
    if port.engine in ("io_uring", "epoll"):
        from .native.server_core import ServerCore

        return ServerCore
    from .portable.connections import ServerCore as PortableCore

    return PortableCore


def _listen(host: str, port: int, backlog: int, reuse_port: bool) -> socket.socket:
    if not isinstance(host, str):
        raise TypeError(f"host must be a name or an address, not {type(host).__name__}")
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port must be a number, not {type(port).__name__}")
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"port must be a number from 0 to 65535, not {port}")
    found = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(found[0], socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Linux hands it on to the accepted sockets. Without it an answer of several
        # segments waits for the acknowledgement of the first.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(found[4])
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock
