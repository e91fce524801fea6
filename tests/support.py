"""What the tests share: waiting for a condition, sockets, threads, other interpreters."""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import completionport
from completionport.engines import probe

if sys.platform == "win32":
    import windows_support

LONG = 20.0
"""Seconds after which something that has to happen counts as not happening."""

HOST = f"127.{1 + (os.getpid() >> 16) % 250}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
"""An address of this process's own: a port of it that has become free is given to no other one."""

TESTS = Path(__file__).parent
PACKAGE = Path(completionport.__file__).parents[1]
WINDOWS = sys.platform == "win32"
RESET_ON_CLOSE = struct.pack("hh" if WINDOWS else "ii", 1, 0)

needs_unix_sockets = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="this Python has no Unix sockets"
)
WINE = WINDOWS and windows_support.is_wine()
USER_SIGNAL: int = signal.SIGBREAK if sys.platform == "win32" else signal.SIGUSR1
"""One that a test may use as it likes."""

STOP_SIGNALS = [signal.SIGINT]
"""What ends a server in order. Wine sends no Ctrl-Break."""
if not WINE:
    STOP_SIGNALS.append(signal.SIGBREAK if sys.platform == "win32" else signal.SIGTERM)

needs_concurrency = pytest.mark.skipif(
    WINE, reason="Wine lets any number of threads go, whatever was given as the concurrency"
)
wine_serves_the_first = pytest.mark.skipif(
    WINE, reason="Wine serves the thread that came first; documented is the one that came last"
)
wine_keeps_ports = pytest.mark.skipif(
    WINE, reason="Wine has no FileReplaceCompletionInformation, which takes a file from its port"
)
wine_tells_no_refusal = pytest.mark.skipif(
    WINE, reason="Wine's sockets do not tell of a refused datagram (WSAECONNRESET is documented)"
)


def windows_has_no(what: str) -> pytest.MarkDecorator:
    """For a test of something that is not there on Windows."""
    return pytest.mark.skipif(WINDOWS, reason=f"Windows has no {what}")


needs_fifos = windows_has_no("FIFOs: its named pipes have tests of their own")
needs_plain_pipes = windows_has_no("overlapped pipe that os.pipe() makes: tests/rows has those")
needs_modes = windows_has_no("mode of a pipe that its holders share")
needs_reuse_port = pytest.mark.skipif(
    not hasattr(socket, "SO_REUSEPORT"), reason="this system has no SO_REUSEPORT"
)
needs_ancillary = pytest.mark.skipif(
    not hasattr(socket, "CMSG_SPACE"), reason="Windows tells Python no ancillary data and lengths"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_posix_signals = pytest.mark.skipif(
    not hasattr(signal, "pthread_kill"), reason="this system can't send a signal to a thread"
)


report_of = functools.cache(probe)
"""Whether an engine runs here. Asked once: the kernel may take its time."""


def shown(value: object) -> str:
    """What names a test of this value: its repr, the same in each run and each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def wait_until(condition: Callable[[], Any], what: str = "", timeout: float = LONG) -> Any:
    """Look again and again until the condition holds; the one place that polls."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come about in {timeout} s: {what or condition}")
        time.sleep(0.0005)
    return value


def wait_for_stats(port: Any, timeout: float = LONG, **expected: int) -> None:
    """Wait until the port's numbers are these."""
    seen: dict[str, Any] = {}

    def reached() -> bool:
        seen.update(port.stats())
        return all(seen[name] == value for name, value in expected.items())

    deadline = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > deadline:
            raise AssertionError(f"expected {expected}, the port has {seen}")
        time.sleep(0.0005)


def take(port: Any, count: int, timeout: float = LONG) -> list[Any]:
    """Take exactly so many packets, each within the time."""
    packets: list[Any] = []
    while len(packets) < count:
        done = port.get(timeout)
        assert done is not None, f"{len(packets)} of {count} packets came; {port.stats()}"
        packets.append(done)
    return packets


def take_one(port: Any, timeout: float = LONG) -> Any:
    return take(port, 1, timeout)[0]


def assert_quiet(port: Any) -> None:
    """No packet is there and none can come any more."""
    assert port.get(0) is None
    numbers = port.stats()
    assert (numbers["pending"], numbers["queued"]) == (0, 0), numbers


def outcome(port: Any, start: Callable[[], Any]) -> Any:
    """The error of an operation, None without one: raised at the call or in its packet.

    Which of the two it is depends on whether the kernel knows at once.
    """
    try:
        operation = start()
    except OSError as error:
        return error
    done = take_one(port)
    assert done.overlapped is operation
    return done.error


def read_exactly(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        assert part, f"the stream ended {size} bytes early"
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_to_end(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every place differs from its neighbourhood: a shift or a swap shows."""
    step = 251
    block = bytes((index * 7 + seed + index // step) % 256 for index in range(step * 64))
    return (block * (size // len(block) + 1))[:size]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def tcp_pair(family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.create_server((host, 0), family=family) as listener:
        near = socket.create_connection(listener.getsockname()[:2])
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    near.settimeout(None)
    far.settimeout(LONG)
    return near, far


def unix_pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    far.settimeout(LONG)
    return near, far


def local_pair() -> tuple[socket.socket, socket.socket]:
    """The pair that costs least, for tests to which its kind does not matter."""
    return unix_pair() if hasattr(socket, "AF_UNIX") else tcp_pair()


@contextlib.contextmanager
def digits_file(folder: Path) -> Iterator[Any]:
    """A file with ten digits in it, to read from and to write to, unbuffered."""
    path = folder / "file"
    path.write_bytes(b"0123456789")
    with path.open("r+b", buffering=0) as opened:
        yield opened


@contextlib.contextmanager
def make_pipe() -> Iterator[tuple[Any, Any]]:
    """A pipe: a file to read from and one to write to, unbuffered."""
    if WINDOWS:
        with windows_support.make_pipe() as ends:
            yield ends
        return
    reading, writing = os.pipe()
    with open(reading, "rb", 0) as reader, open(writing, "wb", 0) as writer:
        yield reader, writer


@contextlib.contextmanager
def make_output() -> Iterator[tuple[Any, Any]]:
    """A pipe for what a program writes: a file to read from for a port, and one for `Popen`."""
    if WINDOWS:
        with windows_support.make_output() as ends:
            yield ends
        return
    with make_pipe() as ends:
        yield ends


def read_at(file: Any, size: int, offset: int) -> bytes:
    """What a file with a name has there; its own position stays."""
    with open(file.name, "rb", 0) as other:
        other.seek(offset)
        return other.read(size)


def write_at(file: Any, data: bytes, offset: int) -> None:
    """Write to a file with a name; its own position stays."""
    with open(file.name, "r+b", 0) as other:
        other.seek(offset)
        assert other.write(data) == len(data)


def can_make_links() -> bool:
    """Whether there are symbolic links, and they may be made."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.symlink("nothing", os.path.join(folder, "link"))
        except OSError:
            return False
        return os.path.islink(os.path.join(folder, "link"))


needs_links = pytest.mark.skipif(
    WINDOWS and not can_make_links(),
    reason="symbolic links take a privilege on Windows, and Wine has none",
)


def read_within(source: Any, size: int, seconds: float) -> bytes | None:
    """Up to so many bytes of a socket or a descriptor; None when none come in that time."""
    if isinstance(source, socket.socket) or not WINDOWS:
        if not select.select([source], [], [], seconds)[0]:
            return None
        if isinstance(source, socket.socket):
            return source.recv(size)
        return os.read(source, size)
    part: bytes | None = source.read_within(size, seconds)
    return part


def readable(sock: socket.socket) -> bool:
    """Whether there is something to receive."""
    return bool(select.select([sock], [], [], 0)[0])


def reset(sock: socket.socket) -> None:
    """Close a TCP socket so that its peer gets a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


class Background(threading.Thread):
    """A function on a thread of its own; `outcome` returns or raises what it did."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._work: Callable[[], Any] | None = lambda: function(*args)
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            assert self._work is not None
            self._value = self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._work = None

    def outcome(self, timeout: float = LONG) -> Any:
        self.join(timeout)
        assert not self.is_alive(), f"the thread did not end in {timeout} s"
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None
        return self._value


def refuse_threads(monkeypatch: Any, after: int) -> list[threading.Thread]:
    """Have the system refuse threads once so many were started; the list tells which those are."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        if len(started) == after:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return started


def descriptors() -> dict[int, str]:
    """The descriptors of this process and what they stand for; on Windows files and ports.

    Those of a look into /proc are left out, this one and those of the monitor at the threads.
    """
    found = {}
    if WINDOWS:
        return windows_support.handles()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return {
        number: what
        for number, what in found.items()
        if not re.match(r"/proc/\d+/(fd|task)(/|$)", what)
    }


def assert_nothing_opened_since(before: dict[int, str]) -> None:
    """Wait until no descriptor is there that was not there then."""

    def opened() -> list[tuple[int, str]]:
        return [one for one in descriptors().items() if one not in before.items()]

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not opened(), timeout=5)
    assert opened() == []


def resident() -> int:
    """Bytes of this process that are in memory."""
    if WINDOWS:
        return windows_support.resident()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the kernel does not tell")


def under_number(sock: socket.socket, number: int) -> socket.socket:
    """The same socket under a descriptor number that has become free, as chance might have it."""
    if number in descriptors():
        return sock  # chance had it: this socket or its peer took the number
    if WINDOWS:
        return windows_support.under_number(sock, number)
    os.dup2(sock.fileno(), number, inheritable=False)
    sock.close()
    return socket.socket(fileno=number)


def native_threads() -> dict[int, str]:
    """The threads of this process as the kernel sees them.

    io_uring's own workers are left out: the kernel keeps one around for later. So is the monitor,
    of which a process has one from its first busy port to its end.
    """
    found = {}
    if WINDOWS:
        # The engine iocp has none but Python's. Windows may start others, for itself.
        return {thread.native_id or 0: thread.name for thread in threading.enumerate()}
    for name in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            found[int(name)] = Path(f"/proc/self/task/{name}/comm").read_text().strip()
    return {
        number: what
        for number, what in found.items()
        if not what.startswith(("iou-", "cp-monitor"))
    }


def assert_quickest_below(limit: float, once: Callable[[], float], tries: int = 4) -> None:
    """``once`` gives how long it took, seconds. The quickest counts: the machine may be busy."""
    took: list[float] = []
    while len(took) < tries:
        took.append(once())
        if took[-1] < limit:
            return
    raise AssertionError(f"{took} s, none below {limit}")


def assert_idle(
    seconds: float = 0.3, *, most: float = 0.02, wait: Callable[[float], Any] = time.sleep
) -> None:
    """The process uses at most so many seconds of a processor while it waits for so long.

    What spins does so at each look. On a busy machine what came before may end only at the first.
    """

    def used() -> float:
        began = time.process_time()
        wait(seconds)
        return time.process_time() - began

    assert_quickest_below(most, used, 3)


def compute_until(done: Callable[[], Any], timeout: float = LONG) -> None:
    """Use a processor until ``done()``: a thread that blocked instead would be replaced."""
    end = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < end, "it took too long"


def signal_main_thread(number: int) -> None:
    """Have a signal come in the main thread, whatever it is at."""
    if WINDOWS:
        _thread.interrupt_main(number)
    else:
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, number)


def raise_signal(number: int) -> None:
    """Have a signal come to the main thread.

    The kernel may give one that is for the process to a thread that takes another signal just then:
    the main thread, if it waits, does not hear of it.
    """
    if WINDOWS:
        _thread.interrupt_main(number)
    else:
        signal.pthread_kill(threading.main_thread().ident, number)


def send_signal(number: int, process: int | None = None) -> None:
    """Send a signal to a process, this one by default, whose main thread is about to wait.

    CPython loses sight, until its system call ends, of a signal that comes between its last look
    and that call. So this waits until the thread has been asleep for a while.
    """
    if WINDOWS:
        if process is None:
            _thread.interrupt_main(number)
        else:
            windows_support.send_ctrl_event(number, process)
        return
    if process is None:
        process = os.getpid()
    status = Path(f"/proc/{process}/task/{process}/stat")
    seen = 0

    def asleep() -> bool:
        nonlocal seen
        state = status.read_text().rpartition(")")[2].split()[0]
        seen = seen + 1 if state == "S" else 0
        time.sleep(0.001)
        return seen > 10

    wait_until(asleep, f"the main thread of {process} waits")
    os.kill(process, number)


def process_runs(pid: int) -> bool:
    """Whether there is a process of this number."""
    return windows_support.process_runs(pid) if WINDOWS else os.path.exists(f"/proc/{pid}")


def stop_process(process: subprocess.Popen[str], number: int = signal.SIGINT) -> None:
    """Send a signal to a program; on Windows to one that has a console of its own."""
    if WINDOWS:
        send_signal(number, process.pid)
    else:
        process.send_signal(number)


def _environment(engine: str | None, extra: dict[str, str]) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("COMPLETIONPORT_ENGINE", None)
    environment.pop("PYTHONWARNINGS", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE), str(TESTS)])
    environment["PYTHONFAULTHANDLER"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    if engine is not None:
        environment["COMPLETIONPORT_ENGINE"] = engine
    environment.update(extra)
    return environment


def _command(script: str, options: tuple[str, ...]) -> list[str]:
    return [sys.executable, *options, "-c", textwrap.dedent(script)]


def run_python(
    script: str,
    *,
    engine: str | None = None,
    options: tuple[str, ...] = (),
    status: int = 0,
    timeout: float = 60,
    **extra: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own and check how it ends."""
    done = subprocess.run(
        _command(script, options),
        env=_environment(engine, extra),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@contextlib.contextmanager
def python_process(
    script: str, *, engine: str | None = None, **extra: str
) -> Iterator[subprocess.Popen[str]]:
    """A script that runs next to the test; it is killed when it is still there at the end."""
    process = subprocess.Popen(
        _command(script, ()),
        env=_environment(engine, extra),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # On Windows a console of its own, to press Ctrl-C in.
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
