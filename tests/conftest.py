"""Fixtures: the engines, ports that leave nothing behind, pairs of connected sockets."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from completionport import CompletionPort, Handler, PortClosed, Server
from completionport.engines import ENGINES
from datagram_support import bound_socket
from one_port_support import Echo, EchoDatagrams
from stalls import stalls
from support import (
    LONG,
    WINDOWS,
    Background,
    descriptors,
    has_ipv6,
    local_pair,
    native_threads,
    needs_unix_sockets,
    report_of,
    tcp_pair,
    unix_pair,
    wait_until,
)

ENGINES_HERE = [name for name in ENGINES if (name == "iocp") == (sys.platform == "win32")]
"""Those of this operating system. One of them that does not run is skipped, with its reason."""

PAIRS: dict[str, Callable[[], tuple[socket.socket, socket.socket]]] = {
    "tcp": tcp_pair,
    "tcp6": lambda: tcp_pair(socket.AF_INET6),
    "unix": unix_pair,
    "local": local_pair,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        action="append",
        choices=ENGINES,
        metavar="NAME",
        help=f"run the tests on this engine only (may be given again): {', '.join(ENGINES)}",
    )
    parser.addoption(
        "--stalls",
        metavar="SEED",
        help="stall the threads of each test now and then, as a busy machine does",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    seed = item.config.getoption("--stalls")
    with stalls(seed + item.nodeid) if seed else contextlib.nullcontext():
        return (yield)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" not in metafunc.fixturenames:
        return
    parameters = []
    for name in metafunc.config.getoption("--engine") or ENGINES_HERE:
        report = report_of(name)
        skip = pytest.mark.skip(reason=f"{name} does not run here: {report.reason}")
        parameters.append(pytest.param(name, marks=() if report.usable else (skip,)))
    metafunc.parametrize("engine", parameters, indirect=True, scope="module")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session", autouse=True)
def signals_do_what_they_do() -> None:
    """A shell's background job and a worker of pytest-xdist begin with SIGINT ignored, what nohup
    starts with SIGHUP.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def what_stays() -> None:
    """On Windows a process has a pipe and two sockets from its main thread's first wait on."""
    if sys.platform == "win32":
        from completionport.windows import alerts

        alerts.prepare()


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Collections, of which some tests make dozens, pass over what was there before their file."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_collections() -> Iterator[None]:
    """For tests in which any code of Python's may raise: a collection runs finalizers, and
    callbacks of others (hypothesis has one), and what is raised in those nobody hears of.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each usable engine in turn."""
    return request.param


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test ends with the threads and descriptors that it began with."""
    threads, files = set(threading.enumerate()), descriptors()
    natives = native_threads()
    yield
    if request.node.stash.get(FAILED, False):
        return  # the failed test's frames are kept for the report, and so are its sockets

    def left() -> list[Any]:
        more: list[Any] = [thread for thread in threading.enumerate() if thread not in threads]
        more += [item for item in native_threads().items() if item[0] not in natives]
        more += [item for item in descriptors().items() if item not in files.items()]
        return more

    if not left():
        return  # without a collection, which takes longer than most tests
    gc.collect()
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not left(), timeout=5)
    assert left() == []


@pytest.fixture
def make_port(engine: str, nothing_left: None) -> Iterator[Callable[..., CompletionPort]]:
    """Ports on the engine under test, closed at the end, with nothing under way afterwards."""
    ports: list[CompletionPort] = []

    def make(concurrency: int = 0, **options: Any) -> CompletionPort:
        port = CompletionPort(concurrency, engine=engine, **options)
        ports.append(port)
        return port

    yield make
    for port in ports:
        port.close()
        numbers = port.stats()
        assert (numbers["pending"], numbers["queued"]) == (0, 0), numbers
        wait_until(lambda port=port: port.stats()["waiting"] == 0, "no thread in get()")


@pytest.fixture
def port(make_port: Callable[..., CompletionPort]) -> CompletionPort:
    return make_port()


@pytest.fixture
def sees_who_blocks(engine: str) -> None:
    """Only on engines that find out by themselves."""
    if engine == "selectors":
        pytest.skip("this engine can't see who blocks")


@pytest.fixture
def make_pair(nothing_left: None) -> Iterator[Callable[..., tuple[socket.socket, socket.socket]]]:
    """Pairs of connected sockets: the first one for the port, the second one with a timeout."""
    with contextlib.ExitStack() as stack:

        def make(kind: str = "tcp") -> tuple[socket.socket, socket.socket]:
            near, far = PAIRS[kind]()
            stack.enter_context(contextlib.closing(near))
            stack.enter_context(contextlib.closing(far))
            return near, far

        yield make


@pytest.fixture
def tcp(make_pair: Callable[..., Any]) -> tuple[socket.socket, socket.socket]:
    return make_pair("tcp")


@pytest.fixture(
    params=[
        "tcp",
        pytest.param("tcp6", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
        pytest.param("unix", marks=needs_unix_sockets),
    ]
)
def pair(
    request: pytest.FixtureRequest, make_pair: Callable[..., Any]
) -> tuple[socket.socket, socket.socket]:
    """A pair of each kind in turn."""
    return make_pair(request.param)


@pytest.fixture
def listener(nothing_left: None) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as sock:
        yield sock


@pytest.fixture
def serve(engine: str, nothing_left: None) -> Iterator[Callable[..., Server]]:
    """Starts servers on the engine under test and stops them at the end."""
    servers: list[Server] = []

    def start(handler: Handler, **options: Any) -> Server:
        if "listener" not in options:
            options.setdefault("host", "127.0.0.1")
            options.setdefault("port", 0)
        server = Server(handler, engine=engine, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop(grace=0)


@pytest.fixture
def dial(nothing_left: None) -> Iterator[Callable[..., socket.socket]]:
    """Connects clients and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def connect(server: Server, buffer: int | None = None) -> socket.socket:
            client = stack.enter_context(socket.socket())
            if buffer is not None:
                # Through less than that, a megabyte takes Wine some seconds.
                least = 65536 if WINDOWS else 0
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(buffer, least))
            client.settimeout(LONG)
            client.connect(server.address)
            return client

        yield connect


@pytest.fixture
def serve_on(nothing_left: None) -> Iterator[Callable[..., Any]]:
    """Starts servers on a port of the program's; they end in a moment."""
    with contextlib.ExitStack() as stack:

        def start(
            port: CompletionPort, handler: Any = None, kind: Any = Server, **options: Any
        ) -> Any:
            handler = handler or (Echo() if kind is Server else EchoDatagrams())
            server = kind(handler, port=0, completion_port=port, **options)
            stack.callback(server.stop, 0)
            server.start()
            return server

        yield start


@pytest.fixture
def send_to(nothing_left: None) -> Iterator[Callable[..., socket.socket]]:
    """Makes datagram sockets that are connected to a server."""
    with contextlib.ExitStack() as stack:

        def make(server: Any) -> socket.socket:
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.settimeout(LONG)
            client.connect(server.address)
            return client

        yield make


@pytest.fixture
def taker(nothing_left: None) -> Iterator[Callable[..., list[Any]]]:
    """Threads that take the program's packets until their port is closed, as the test does."""
    threads: list[Background] = []

    def start(port: CompletionPort, take: str = "get") -> list[Any]:
        packets: list[Any] = []

        def run() -> None:
            with contextlib.suppress(PortClosed):
                while True:
                    packets.extend(port.get_many(8) if take == "get_many" else [port.get()])

        threads.append(Background(run))
        return packets

    yield start
    for thread in threads:
        thread.outcome()


@pytest.fixture(
    params=[
        "udp",
        pytest.param("udp6", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
        pytest.param("unix", marks=needs_unix_sockets),
    ]
)
def datagrams(
    request: pytest.FixtureRequest, nothing_left: None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets with addresses, not connected: the first one for the port."""
    with bound_socket(request.param) as near, bound_socket(request.param) as far:
        far.settimeout(LONG)
        yield near, far


@pytest.fixture
def messages(nothing_left: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair of Unix datagram sockets, over which descriptors can be passed."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    far.settimeout(LONG)
    with near, far:
        yield near, far


@pytest.fixture
def pipe(nothing_left: None) -> Iterator[list[int]]:
    """The ends of a pipe, which a test may close."""
    ends = list(os.pipe())
    yield ends
    for number in ends:
        with contextlib.suppress(OSError):
            os.close(number)
