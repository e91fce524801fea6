"""What others see of a file that a port is at, and what a process hears of it: mode and SIGPIPE."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from support import WINDOWS, Background, assert_quiet, run_python, take, take_one, wait_until

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
    """Another holder of the same open file, which looks at its mode all the time."""

    def __init__(self, number):
        self.other = os.dup(number)
        self.seen = set()
        self.ended = threading.Event()
        self.thread = Background(self.look)

    def look(self):
        while not self.ended.is_set():
            self.seen.add(os.get_blocking(self.other))

    def __enter__(self):
        wait_until(lambda: self.seen)
        return self

    def __exit__(self, *exc_info):
        self.ended.set()
        self.thread.outcome()
        os.close(self.other)


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
    assert watcher.seen == {True}


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
    assert watcher.seen == {True}


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
