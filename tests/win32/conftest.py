"""Fixtures of the conformance suite: the system under test, ports and sockets.

On Windows there is one system, the real one. Elsewhere it is each engine in turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from completionport import win32
from support import report_of
from win32_support import LONG, connected_pair

SYSTEMS = ["windows"] if sys.platform == "win32" else ["io_uring", "epoll", "selectors"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "system" not in metafunc.fixturenames:
        return
    asked = metafunc.config.getoption("--engine", None)
    parameters = []
    for name in SYSTEMS:
        if asked and name not in asked and name != "windows":
            continue
        marks = []
        if name != "windows" and not (report := report_of(name)).usable:
            marks.append(pytest.mark.skip(reason=f"{name} does not run here: {report.reason}"))
        parameters.append(pytest.param(name, marks=marks))
    metafunc.parametrize("system", parameters, indirect=True, scope="module")


@pytest.fixture(scope="module")
def system(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def lock_order(system: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test of the suite may take the locks of two files in another order than the only one."""
    if system == "windows":
        yield
        return
    import file_locks

    with file_locks.watched(monkeypatch) as faults:
        yield
    assert not faults


@pytest.fixture(autouse=True)
def winsock(
    request: pytest.FixtureRequest,
    system: str,
    monkeypatch: pytest.MonkeyPatch,
    lock_order: None,
) -> Iterator[None]:
    """Each test begins and ends Winsock, which ends what the module has running."""
    if "nothing_left" in request.fixturenames:
        request.getfixturevalue("nothing_left")
    if system != "windows":
        monkeypatch.setenv("COMPLETIONPORT_ENGINE", system)
    assert win32.WSAStartup(win32.MAKEWORD(2, 2)) == 0
    win32.SetLastError(0)
    yield
    assert win32.WSACleanup() == 0


@pytest.fixture
def make_port(winsock: None) -> Iterator[Callable[..., win32.HANDLE]]:
    ports: list[win32.HANDLE] = []

    def make(concurrency: int = 0) -> win32.HANDLE:
        port = win32.CreateIoCompletionPort(win32.INVALID_HANDLE_VALUE, win32.NULL, 0, concurrency)
        assert port is not None
        ports.append(port)
        return port

    yield make
    for port in ports:
        win32.CloseHandle(port)


@pytest.fixture
def port(make_port: Callable[..., win32.HANDLE]) -> win32.HANDLE:
    return make_port()


@pytest.fixture
def closing(winsock: None) -> Iterator[Callable[[Any], Any]]:
    """Sockets and handles given to it are closed at the end, where that was not done before."""
    things: list[Any] = []

    def add(thing: Any) -> Any:
        assert thing is not win32.INVALID_SOCKET
        assert thing is not win32.INVALID_HANDLE_VALUE
        things.append(thing)
        return thing

    yield add
    for thing in things:
        if isinstance(thing, win32.HANDLE):
            win32.CloseHandle(thing)
        else:
            win32.closesocket(thing)


@pytest.fixture
def listener(closing: Callable[[Any], Any]) -> win32.SOCKET:
    sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
    assert win32.bind(sock, ("127.0.0.1", 0)) == 0
    assert win32.listen(sock, 100) == 0
    return sock


@pytest.fixture
def pair(closing: Callable[[Any], Any]) -> tuple[win32.SOCKET, win32.SOCKET]:
    """A connection: the side under test, and its peer with a timeout for blocking calls."""
    near, far = connected_pair()
    far.settimeout(LONG / 1000)
    return closing(near), closing(far)


@pytest.fixture
def near(pair: tuple[win32.SOCKET, win32.SOCKET], port: win32.HANDLE) -> win32.SOCKET:
    """The side under test, which belongs to the port with the key ``"key"``."""
    assert win32.CreateIoCompletionPort(pair[0], port, "key", 0) is port
    return pair[0]


@pytest.fixture
def far(pair: tuple[win32.SOCKET, win32.SOCKET]) -> win32.SOCKET:
    return pair[1]
