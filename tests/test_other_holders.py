"""What others see of a file that a port is at, and what a process hears of it: mode and SIGPIPE."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile

import pytest

from completionport import DatagramHandler, DatagramServer
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_quiet,
    read_exactly,
    run_python,
    take,
    take_one,
)

pytestmark = pytest.mark.skipif(WINDOWS, reason="Windows has no such modes, and no SIGPIPE")


@contextlib.contextmanager
def ends_of(kind, folder):
    """A descriptor to read from and one to write to, which others may have as well."""
    if kind == "pipe":
        ends = os.pipe()
    elif kind == "named pipe":
        os.mkfifo(folder / "fifo")
        reader = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        ends = reader, os.open(folder / "fifo", os.O_WRONLY)
        os.set_blocking(reader, True)
    else:
        import tty

        master, slave = os.openpty()
        tty.setraw(slave)
        ends = (master, slave) if kind == "output of a terminal" else (slave, master)
    try:
        yield ends
    finally:
        for number in ends:
            with contextlib.suppress(OSError):
                os.close(number)


class Watcher:
    """Another process with the same open file, which looks at its mode all the time."""

    LOOK = """if True:
        import fcntl, os, select, sys
        number, seen = int(sys.argv[1]), set()
        os.write(1, b"looking")
        while not select.select([0], [], [], 0)[0]:
            seen.update(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_NONBLOCK for _ in range(1000))
        os.write(1, b"!" if any(seen) else b".")
    """

    def __init__(self, number):
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", self.LOOK, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[number],
            bufsize=0,
        )

    def __enter__(self):
        assert os.read(self.process.stdout.fileno(), 7) == b"looking"
        return self

    def __exit__(self, *exc_info):
        said, _ = self.process.communicate(b"the end")
        self.saw_another_mode = {b"!": True, b".": False}[said]


KINDS = ["pipe", "named pipe", "output of a terminal"]


@pytest.mark.parametrize("kind", KINDS)
def test_another_holder_never_sees_the_ports_mode_while_it_writes(port, tmp_path, kind):
    data = b"x" * 300_000  # more than it holds: the write waits for its reader
    with (
        ends_of(kind, tmp_path) as (reader, writer),
        Watcher(writer) as watcher,
        port.associate(os.dup(writer), "key") as handle,
    ):
        for _ in range(20):
            operation = handle.write(data)
            collected = Background(take_one, port)
            left = len(data)
            while left:
                left -= len(os.read(reader, min(left, 65536)))
            assert collected.outcome().overlapped is operation
            assert operation.result() == len(data)
    assert not watcher.saw_another_mode


@pytest.mark.parametrize("kind", ["pipe", "named pipe", "input of a terminal"])
@pytest.mark.parametrize("into", [False, True], ids=["a size", "a buffer"])
def test_another_holder_never_sees_the_ports_mode_while_it_reads(port, tmp_path, kind, into):
    with (
        ends_of(kind, tmp_path) as (reader, writer),
        Watcher(reader) as watcher,
        port.associate(os.dup(reader), "key") as handle,
    ):
        for number in range(200):
            buffer = bytearray(100)
            if number % 2:
                os.write(writer, b"%04d" % number)
            operation = handle.read(buffer if into else 100)
            if not number % 2:
                os.write(writer, b"%04d" % number)
            take_one(port)
            got = bytes(buffer[: operation.result()]) if into else operation.result()
            assert got == b"%04d" % number
    assert not watcher.saw_another_mode


@pytest.mark.parametrize("kind", KINDS)
def test_a_print_of_another_holder_waits_while_the_port_writes(port, tmp_path, kind):
    """It got BlockingIOError, and what it printed was lost."""
    data = b"p" * 100_000
    with ends_of(kind, tmp_path) as (reader, writer):
        other = os.dup(writer)
        with port.associate(os.dup(writer), "key") as handle:
            operations = [handle.write(data) for _ in range(5)]

            def write_past_it():
                for _ in range(300):
                    assert os.write(other, b"o" * 500) == 500

            printing = Background(write_past_it)
            left = len(data) * 5 + 300 * 500
            collected = Background(take, port, 5)
            count = {b"p": 0, b"o": 0}
            while left:
                part = os.read(reader, 65536)
                left -= len(part)
                for one in count:
                    count[one] += part.count(one)
            printing.outcome()
            collected.outcome()
            assert all(one.result() == len(data) for one in operations)
            assert count == {b"p": len(data) * 5, b"o": 300 * 500}
        os.close(other)


def test_the_ports_own_open_file_ends_with_the_handle(port, tmp_path):
    """The reader of a named pipe sees its end, and its writer that nobody reads."""
    with ends_of("named pipe", tmp_path) as (reader, writer):
        handle = port.associate(writer, "key")
        handle.write(b"hello")
        assert take_one(port).error is None
        handle.close()
        assert os.read(reader, 100) == b"hello"
        assert os.read(reader, 100) == b""
        assert_quiet(port)


def receives(port, handle, far, call):
    for number in range(200):
        far.send(b"%04d" % number)
        call(handle)
        assert take_one(port).error is None


def sends(port, handle, far, call):
    """More than there is room for, again and again."""
    for _ in range(20):
        operation = call(handle)
        collected = Background(take_one, port)
        assert collected_from(far, BIG) == BIG
        assert collected.outcome().error is None
        assert operation.result() == BIG


def collected_from(sock, size):
    left = size
    while left:
        left -= len(sock.recv(min(left, 1 << 16)))
    return size


@contextlib.contextmanager
def a_file():
    with tempfile.TemporaryFile() as file:
        file.write(b"f" * (BIG - 8))
        file.flush()
        yield file


def sendfiles(port, handle, far, call):
    with a_file() as file:
        sends(port, handle, far, lambda handle: call(handle, file))


BIG = 2_000_000
ON_STREAMS = {
    "recv": (receives, lambda handle: handle.recv(100)),
    "recv into": (receives, lambda handle: handle.recv([bytearray(2), bytearray(2)])),
    "recv all": (receives, lambda handle: handle.recv(4, socket.MSG_WAITALL)),
    "recvfrom": (receives, lambda handle: handle.recvfrom(100)),
    "recvmsg": (receives, lambda handle: handle.recvmsg(100, 100)),
    "read": (receives, lambda handle: handle.read(100)),
    "send": (sends, lambda handle: handle.send(b"s" * BIG)),
    "send of two": (sends, lambda handle: handle.send([b"s" * 8, b"t" * (BIG - 8)])),
    "zero copy": (sends, lambda handle: handle.send(b"z" * BIG, zero_copy=True)),
    "sendmsg": (sends, lambda handle: handle.sendmsg(b"m" * BIG)),
    "write": (sends, lambda handle: handle.write(b"w" * BIG)),
    "sendfile": (
        sendfiles, lambda handle, file: handle.sendfile(file, head=b"head", tail=b"tail"),
    ),
}  # fmt: skip


def stream_pair(family):
    if family == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


@pytest.mark.parametrize("name", ON_STREAMS)
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_another_holder_of_a_stream_never_sees_another_mode(port, family, name):
    near, far = stream_pair(family)
    way, call = ON_STREAMS[name]
    with near, far, Watcher(near.fileno()) as watcher, port.associate(near, "key") as handle:
        way(port, handle, far, call)
        handle.shutdown(socket.SHUT_WR)
        take_one(port)
    assert not watcher.saw_another_mode


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_another_holder_of_a_listener_sees_no_mode_while_nobody_connects(port, family, tmp_path):
    with (
        listener_of(family, tmp_path) as listener,
        Watcher(listener.fileno()) as watcher,
        port.associate(listener, "key") as handle,
    ):
        for _ in range(500):
            handle.accept().cancel()
            take_one(port)
    assert not watcher.saw_another_mode


@contextlib.contextmanager
def listener_of(family, folder):
    if family == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "listener"))
        listener.listen(5)
    with listener:
        yield listener


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_another_holder_of_a_listener_never_sees_another_mode(port, family, tmp_path):
    if port.engine != "io_uring":
        pytest.skip("where accept4(2) is called the mode changes for that call")
    with (
        listener_of(family, tmp_path) as listener,
        Watcher(listener.fileno()) as watcher,
        port.associate(listener, "key") as handle,
    ):
        for _ in range(200):
            operation = handle.accept()
            with socket.socket(listener.family) as client:
                client.connect(listener.getsockname())
                take_one(port)
                operation.result().close()
    assert not watcher.saw_another_mode


@pytest.mark.parametrize("family", ["udp", "unix"])
def test_another_holder_of_datagrams_that_connect_never_sees_another_mode(port, family, tmp_path):
    """It may be receiving meanwhile; on a stream that is not connected yet all else fails."""
    unix = family == "unix"
    kind = socket.SOCK_DGRAM
    with (
        socket.socket(socket.AF_UNIX if unix else socket.AF_INET, kind) as peer,
        socket.socket(peer.family, kind) as near,
        Watcher(near.fileno()) as watcher,
        port.associate(near, "key") as handle,
    ):
        peer.bind(str(tmp_path / "peer") if unix else ("127.0.0.1", 0))
        for _ in range(300):
            operation = handle.connect(peer.getsockname())
            take_one(port)
            assert operation.result() == 0
        assert near.getpeername() == peer.getsockname()
    assert not watcher.saw_another_mode


def test_a_datagram_server_leaves_the_mode_of_a_socket_that_others_have(engine):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        mine.bind(("127.0.0.1", 0))
        client.settimeout(LONG)
        with (
            Watcher(mine.fileno()) as watcher,
            DatagramServer(Echo(), sock=mine.dup(), engine=engine),
        ):
            for number in range(100):
                client.sendto(b"%d" % number, mine.getsockname())
                assert client.recv(100) == b"%d" % number
        assert not watcher.saw_another_mode


class Echo(DatagramHandler):
    def received(self, endpoint, data, address):
        endpoint.send(data, address)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_file_that_cannot_be_mapped_is_sent_all_the_same(port, blocking):
    """Those of sysfs are made as they are read, and say that they have 4096 bytes."""
    name = "/sys/devices/system/cpu/possible"
    if not os.path.exists(name):
        pytest.skip("there is no such file")
    near, far = stream_pair("tcp")
    with near, far, open(name, "rb") as file, port.associate(near, "key") as handle:
        near.setblocking(blocking)
        expected = file.read()
        operation = handle.sendfile(file, tail=b"tail")
        assert take_one(port).error is None
        assert operation.result() == len(expected) + 4
        assert read_exactly(far, len(expected) + 4) == expected + b"tail"


def test_a_file_that_becomes_shorter_while_it_is_sent_ends_there(port):
    """The socket is in blocking mode, or not: what is behind the new end is not made up."""
    for blocking in (True, False):
        near, far = stream_pair("tcp")
        with near, far, a_file() as file, port.associate(near, "key") as handle:
            near.setblocking(blocking)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
            operation = handle.sendfile(file, tail=b"tail")
            assert port.get(0) is None
            file.truncate(BIG // 2 + 5)
            collected = Background(take_one, port)
            assert collected_from(far, BIG // 2 + 5) == BIG // 2 + 5
            assert far.recv(100) == b"tail"
            assert collected.outcome().error is None
            assert operation.result() == BIG // 2 + 5 + 4


DISPOSITIONS = {
    "default": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "ignored": "signal.signal(signal.SIGPIPE, signal.SIG_IGN)",
    "a handler": "signal.signal(signal.SIGPIPE, lambda *_: print('the handler ran'))",
    "not by Python": "import ctypes; ctypes.CDLL(None).signal(int(signal.SIGPIPE), None)",
}
BROKEN = {
    "send": "handle.send(b'x' * 1000)",
    "sends of a sequence": "handle.send([b'x', b'y'])",
    "zero copy": "handle.send(b'x' * 100_000, zero_copy=True)",
    "sendmsg": "handle.sendmsg(b'x')",
    "sendfile": "handle.sendfile(file)",
    "sendfile with a head": "handle.sendfile(file, head=b'head', tail=b'tail')",
    "write": "handle.write(b'x')",
    "write of a sequence": "handle.write([b'x', b'y'])",
}


@pytest.mark.parametrize("disposition", DISPOSITIONS)
@pytest.mark.parametrize("kind", ["tcp", "unix", "pipe", "named pipe"])
def test_what_nobody_reads_is_an_error_and_no_signal(engine, tmp_path, kind, disposition):
    """At once, behind a write that waits, and with a signal that was pending before."""
    calls = {
        name: call for name, call in BROKEN.items()
        if "pipe" not in kind or name.startswith("write")
    }  # fmt: skip
    done = run_python(
        f"""
        import os, signal, socket, sys
        from completionport import CompletionPort
        {DISPOSITIONS[disposition]}
        port = CompletionPort(engine={engine!r})
        file = open({__file__!r}, "rb")

        def pair():
            if {kind!r} == "tcp":
                with socket.create_server(("127.0.0.1", 0)) as listener:
                    near = socket.create_connection(listener.getsockname())
                    return near, listener.accept()[0]
            if {kind!r} == "unix":
                return socket.socketpair()
            if {kind!r} == "pipe":
                reader, writer = os.pipe()
            else:
                os.path.exists("fifo") or os.mkfifo("fifo")
                reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
                writer = os.open("fifo", os.O_WRONLY)
            return os.fdopen(writer, "wb", 0), os.fdopen(reader, "rb", 0)

        os.chdir({str(tmp_path)!r})
        broken = BrokenPipeError, ConnectionResetError
        for call in {list(calls.values())!r}:
            for waits in (False, True):
                near, far = pair()
                handle = port.associate(near, "key")
                waiting = None
                if waits:
                    waiting = handle.write(b"x" * 10_000_000)
                    assert port.get(0.01) is None
                far.close()
                for _ in range(2):
                    try:
                        eval(call)
                    except broken:
                        continue
                    done = port.get(20)
                    # The first send after its peer has gone may still be taken.
                    assert done.error is None or isinstance(done.error, broken), done
                while port.stats()["pending"] or port.stats()["queued"]:
                    done = port.get(20)
                    assert isinstance(done.error, broken), done
                handle.close()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert not blocked, blocked
        assert not signal.sigpending()
        port.close()
        print("the end")
        """,
        engine=engine,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("the end\n", "", 0)


def test_a_signal_that_was_pending_before_stays(engine):
    done = run_python(
        f"""
        import os, signal
        from completionport import CompletionPort
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGPIPE}})
        signal.pthread_kill(__import__("threading").get_ident(), signal.SIGPIPE)
        with CompletionPort(engine={engine!r}) as port:
            reader, writer = os.pipe()
            os.close(reader)
            with port.associate(writer, "key") as handle:
                try:
                    handle.write(b"x")
                except BrokenPipeError:
                    pass
                else:
                    raise AssertionError("it was written")
        assert signal.sigpending() == {{signal.SIGPIPE}}
        print("the end")
        """,
        engine=engine,
    )
    assert (done.stdout, done.stderr) == ("the end\n", "")
