"""read() and write() on regular files, pipes and other descriptors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from completionport import Operation, OperationAborted, open_directory
from support import (
    Background,
    assert_quiet,
    digits_file,
    make_pipe,
    needs_fifos,
    needs_modes,
    outcome,
    pattern,
    take,
    take_one,
    windows_has_no,
)


@pytest.fixture
def file(tmp_path, nothing_left):
    with digits_file(tmp_path) as opened:
        yield opened


@pytest.fixture
def pipe(nothing_left):
    with make_pipe() as ends:
        yield ends


another_pipe = pipe


def content(file):
    return Path(file.name).read_bytes()


class TestRegularFiles:
    def test_read_at_an_offset(self, port, file):
        with port.associate(file, "file") as handle:
            operation = handle.read(4, 3)
            assert operation.operation is Operation.READ
            assert tuple(take_one(port)) == (4, "file", operation, None)
            assert operation.result() == b"3456"

    def test_write_at_an_offset(self, port, file):
        with port.associate(file, "file") as handle:
            operation = handle.write(b"abc", 8)
            assert operation.operation is Operation.WRITE
            assert tuple(take_one(port)) == (3, "file", operation, None)
            with open(file.name, "rb") as other:
                assert other.read() == b"01234567abc"

    def test_an_offset_leaves_the_position_alone(self, port, file):
        with port.associate(file, "file") as handle:
            handle.read(4, 3)
            handle.write(b"x", 0)
            take(port, 2)
            assert file.tell() == 0

    def test_without_an_offset_the_position_moves(self, port, file):
        with port.associate(file, "file") as handle:
            operations = [handle.read(3) for _ in range(5)]
            take(port, 5)
            results = [operation.result() for operation in operations]
            assert results == [b"012", b"345", b"678", b"9", b""]
            assert file.tell() == 10
            handle.write(b"more")
            take_one(port)
            assert file.tell() == 14
            file.seek(0)
            assert file.read() == b"0123456789more"

    def test_the_end_of_the_file_is_a_read_of_nothing(self, port, file):
        with port.associate(file, "file") as handle:
            for offset in (10, 1000, 2**40, 2**62):
                operation = handle.read(5, offset)
                assert tuple(take_one(port)) == (0, "file", operation, None)
                assert operation.result() == b""

    def test_read_into_buffers(self, port, file):
        with port.associate(file, "file") as handle:
            buffer, parts = bytearray(4), [bytearray(2), bytearray(3)]
            handle.read(buffer, 1)
            handle.read(parts, 5)
            assert {done.transferred for done in take(port, 2)} == {4, 5}
            assert buffer == b"1234"
            assert parts == [b"56", b"789"]

    def test_write_of_several_buffers(self, port, file):
        with port.associate(file, "file") as handle:
            handle.write([b"ab", bytearray(b"cd"), memoryview(b"ef")], 2)
            assert take_one(port).transferred == 6
            assert content(file) == b"01abcdef89"

    def test_more_buffers_than_the_kernel_takes_at_once(self, port, file):
        data = pattern(3000)
        with port.associate(file, "file") as handle:
            handle.write([data[at : at + 1] for at in range(3000)], 0)
            assert take_one(port).transferred == 3000
            assert content(file) == data

    def test_a_big_file_goes_through_whole(self, port, file):
        data = pattern(20_000_000)
        with port.associate(file, "file") as handle:
            handle.write(data, 0)
            assert take_one(port).transferred == len(data)
            operation = handle.read(len(data), 0)
            assert take_one(port).transferred == len(data)
            assert operation.result() == data

    def test_writes_are_carried_out_in_order(self, port, file):
        with port.associate(file, "file") as handle:
            for number in range(100):
                handle.write(b"%03d" % number, 0)
            take(port, 100)
            assert content(file)[:3] == b"099"

    def test_many_reads_are_outstanding(self, port, file):
        data = pattern(100_000)
        Path(file.name).write_bytes(data)
        with port.associate(file, "file") as handle:
            operations = [handle.read(1000, at) for at in range(0, 100_000, 1000)]
            take(port, 100)
            assert b"".join(operation.result() for operation in operations) == data
            assert_quiet(port)

    def test_append_mode(self, port, tmp_path):
        path = tmp_path / "log"
        with path.open("ab", buffering=0) as log, port.associate(log, "log") as handle:
            for number in range(5):
                handle.write(b"%d" % number)
            take(port, 5)
            assert path.read_bytes() == b"01234"

    def test_writing_to_a_file_opened_for_reading_is_an_error(self, port, file):
        with open(file.name, "rb") as opened, port.associate(opened, "file") as handle:
            error = outcome(port, lambda: handle.write(b"x", 0))
            assert error.errno == errno.EBADF
            assert_quiet(port)

    def test_reading_a_directory_is_an_error(self, port, tmp_path):
        with port.associate(open_directory(tmp_path), "directory") as handle:
            assert isinstance(outcome(port, lambda: handle.read(10, 0)), IsADirectoryError)
            assert_quiet(port)

    @windows_has_no("device that is always full")
    def test_a_full_device_is_an_error(self, port):
        with open("/dev/full", "wb", 0) as full, port.associate(full, "full") as handle:
            error = outcome(port, lambda: handle.write(b"x"))
            assert error.errno == errno.ENOSPC

    @windows_has_no("device of endless zeros")
    def test_devices(self, port):
        with (
            open("/dev/zero", "rb", 0) as zero,
            open("/dev/null", "wb", 0) as null,
            port.associate(zero, "zero") as source,
            port.associate(null, "null") as sink,
        ):
            operation = source.read(1000)
            assert take_one(port).transferred == 1000
            assert operation.result() == bytes(1000)
            sink.write(bytes(1000))
            assert take_one(port).transferred == 1000

    @windows_has_no("device that tells a write at a place from one without")
    def test_a_device_has_no_places(self, port):
        """Those that can't be polled too, which an epoll instance refuses as it does files."""
        with open("/dev/null", "r+b", 0) as null, port.associate(null, "null") as handle:
            for start in (lambda: handle.read(1, 0), lambda: handle.write(b"x", 5)):
                assert outcome(port, start).errno == errno.ESPIPE
            for start in (handle.fsync, handle.stat, lambda: handle.allocate(0, 1)):
                assert outcome(port, start).errno == errno.EINVAL
            assert_quiet(port)

    def test_socket_operations_on_a_file_raise(self, port, file):
        with port.associate(file, "file") as handle:
            for start in (
                lambda: handle.recv(10),
                lambda: handle.send(b"x"),
                handle.accept,
                handle.disconnect,
            ):
                with pytest.raises(OSError, match=r"[Ss]ocket"):
                    start()
            assert_quiet(port)


class TestPipes:
    def test_a_read_waits_for_data(self, port, pipe):
        reader, writer = pipe
        with port.associate(reader, "pipe") as handle:
            operation = handle.read(10)
            assert port.get(0.01) is None
            assert operation.pending
            writer.write(b"hello")
            assert tuple(take_one(port)) == (5, "pipe", operation, None)
            assert operation.result() == b"hello"

    def test_the_end_of_the_pipe_is_a_read_of_nothing(self, port, pipe):
        reader, writer = pipe
        with port.associate(reader, "pipe") as handle:
            operation = handle.read(10)
            writer.close()
            assert tuple(take_one(port)) == (0, "pipe", operation, None)
            assert operation.result() == b""

    def test_reads_are_filled_in_order(self, port, pipe):
        reader, writer = pipe
        with port.associate(reader, "pipe") as handle:
            operations = [handle.read(3) for _ in range(10)]
            writer.write(bytes(range(30)))
            take(port, 10)
            results = [operation.result() for operation in operations]
            assert b"".join(results) == bytes(range(30))

    def test_a_write_completes_when_all_of_it_was_taken(self, port, pipe):
        reader, writer = pipe
        data = pattern(1_000_000)
        with port.associate(writer, "pipe") as handle:
            operation = handle.write(data)
            assert port.get(0.02) is None
            assert operation.pending
            received = Background(read_exactly_from, reader, len(data))
            assert take_one(port).transferred == len(data)
            assert received.outcome() == data

    def test_a_gathered_write_completes_whole(self, port, pipe):
        reader, writer = pipe
        parts = [pattern(10_000, number) for number in range(50)]
        with port.associate(writer, "pipe") as handle:
            handle.write(parts)
            received = Background(read_exactly_from, reader, 500_000)
            assert take_one(port).transferred == 500_000
            assert received.outcome() == b"".join(parts)

    def test_a_write_nobody_will_read_is_an_error(self, port, pipe):
        reader, writer = pipe
        reader.close()
        with port.associate(writer, "pipe") as handle:
            assert isinstance(outcome(port, lambda: handle.write(b"x")), BrokenPipeError)
            assert_quiet(port)

    def test_a_write_under_way_ends_when_the_reader_goes(self, port, pipe):
        reader, writer = pipe
        with port.associate(writer, "pipe") as handle:
            handle.write(pattern(1_000_000))
            assert port.get(0.02) is None
            reader.close()
            assert isinstance(take_one(port).error, BrokenPipeError)

    def test_close_and_cancel_abort_what_waits(self, port, pipe, another_pipe):
        (reader, _), (_, writer) = pipe, another_pipe
        source, sink = port.associate(reader, "reader"), port.associate(writer, "writer")
        reading, writing = source.read(10), sink.write(pattern(1_000_000))
        assert port.get(0.02) is None
        assert source.cancel(reading) == 1
        done = take_one(port)
        assert (done.key, done.overlapped) == ("reader", reading)
        assert isinstance(done.error, OperationAborted)
        sink.close()
        done = take_one(port)
        assert (done.key, done.overlapped) == ("writer", writing)
        assert isinstance(done.error, OperationAborted)
        source.close()
        assert_quiet(port)

    def test_an_offset_in_a_pipe_is_an_error(self, port, pipe):
        reader, writer = pipe
        writer.write(b"hello")
        with port.associate(reader, "pipe") as handle:
            assert outcome(port, lambda: handle.read(5, 2)).errno == errno.ESPIPE
            assert_quiet(port)

    @needs_modes
    @pytest.mark.parametrize("blocking", [True, False])
    def test_blocking_pipes_do_not_block(self, port, pipe, blocking):
        reader, writer = pipe
        os.set_blocking(reader.fileno(), blocking)
        os.set_blocking(writer.fileno(), blocking)
        with port.associate(reader, 1) as source, port.associate(writer, 2) as sink:
            operation = source.read(100)
            sink.write(b"hello")
            assert {done.key for done in take(port, 2)} == {1, 2}
            assert operation.result() == b"hello"

    @needs_fifos
    def test_a_named_pipe(self, port, tmp_path):
        path = tmp_path / "fifo"
        os.mkfifo(path)
        descriptor = os.open(path, os.O_RDWR)
        with port.associate(descriptor, "fifo") as handle:
            operation = handle.read(10)
            handle.write(b"hello")
            take(port, 2)
            assert operation.result() == b"hello"

    @needs_fifos
    def test_a_named_pipe_from_its_writer_to_its_end(self, port, tmp_path):
        path = tmp_path / "fifo"
        os.mkfifo(path)
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with port.associate(reading, "fifo") as handle, open(path, "wb", 0) as writer:
            operation = handle.read(10)
            writer.write(b"hello")
            assert take_one(port).overlapped is operation
            assert operation.result() == b"hello"
            operation = handle.read(10)
            assert port.get(0) is None
            writer.close()
            assert tuple(take_one(port)) == (0, "fifo", operation, None)

    @needs_fifos
    def test_a_named_pipe_that_is_full_is_written_when_there_is_room(self, port, tmp_path):
        path = tmp_path / "fifo"
        os.mkfifo(path)
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with (
            open(reading, "rb", 0) as reader,
            port.associate(os.open(path, os.O_WRONLY), "fifo") as handle,
        ):
            data = pattern(500_000)
            operation = handle.write(data)
            assert port.get(0) is None
            os.set_blocking(reading, True)
            received = Background(read_exactly_from, reader, len(data))
            assert take_one(port).overlapped is operation
            assert operation.result() == len(data)
            assert received.outcome() == data


class TestTerminals:
    @pytest.fixture
    def terminal(self, nothing_left):
        """The two ends of a pseudo-terminal: the program's outside, and the terminal."""
        pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
        tty = pytest.importorskip("tty")
        outside, inside = pty.openpty()
        tty.setraw(inside)
        with open(outside, "r+b", 0) as near, open(inside, "r+b", 0) as far:
            yield near, far

    def test_both_ends_are_read_and_written(self, port, terminal):
        near, far = terminal
        with port.associate(near, "near") as outside, port.associate(far, "far") as inside:
            for source, sink in ((outside, inside), (inside, outside)):
                operation = source.read(100)
                assert port.get(0) is None
                sink.write(b"hello")
                take(port, 2)
                assert operation.result() == b"hello"

    def test_a_line_is_read_when_it_is_whole(self, port, terminal):
        near, far = terminal
        termios = pytest.importorskip("termios")
        modes = termios.tcgetattr(far)
        modes[3] |= termios.ICANON
        termios.tcsetattr(far, termios.TCSANOW, modes)
        with port.associate(far, "key") as handle:
            operation = handle.read(100)
            near.write(b"hel")
            assert port.get(0) is None
            near.write(b"lo\nmore")
            take_one(port)
            assert operation.result() == b"hello\n"

    def test_a_read_is_cancelled(self, port, terminal):
        with port.associate(terminal[0], "key") as handle:
            operation = handle.read(100)
            assert operation.cancel()
            assert isinstance(take_one(port).error, OperationAborted)
            terminal[1].write(b"hello")
            operation = handle.read(100)
            take_one(port)
            assert operation.result() == b"hello"

    def test_the_last_one_inside_leaves(self, port, terminal):
        near, far = terminal
        with port.associate(near, "key") as handle:
            handle.read(100)
            far.close()
            # Linux tells it as an error, others as the end of the file.
            done = take_one(port)
            assert done.error.errno == errno.EIO if done.error else done.transferred == 0

    @pytest.mark.timeout(30)
    @pytest.mark.parametrize("parts", [1, 2])
    def test_a_write_that_finds_too_little_room_does_not_hold_up_its_caller(
        self, port, terminal, parts
    ):
        near, _far = terminal
        data = pattern(100_000)
        with port.associate(near, "key") as handle:
            operation = handle.write([data] if parts == 1 else [data[:9], data[9:]])
            assert port.get(0.05) is None
            assert operation.cancel()
            done = take_one(port)
            assert isinstance(done.error, OperationAborted)
            assert done.transferred < len(data)

    def test_what_a_terminal_has_no_room_for_is_written_later(self, port, terminal):
        near, far = terminal
        data = pattern(100_000)
        with port.associate(near, "key") as handle:
            operation = handle.write(data)
            received = Background(read_exactly_from, far, len(data))
            assert take_one(port).overlapped is operation
            assert operation.result() == len(data)
            assert received.outcome() == data


def read_exactly_from(file, size):
    parts = []
    while size:
        part = file.read(min(size, 65536))
        assert part
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def test_read_and_write_work_on_sockets(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        operation = handle.read(10)
        handle.write([b"hel", b"lo"])
        assert take_one(port).transferred == 5
        assert far.recv(10) == b"hello"
        far.sendall(b"answer")
        assert tuple(take_one(port)) == (6, "key", operation, None)
        assert operation.result() == b"answer"


def test_read_and_recv_keep_their_order(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        operations = [handle.recv(2), handle.read(2), handle.recv(2), handle.read(2)]
        far.sendall(b"abcdefgh")
        take(port, 4)
        assert [operation.result() for operation in operations] == [b"ab", b"cd", b"ef", b"gh"]


def test_an_offset_on_a_socket_is_an_error(port, pair):
    near, far = pair
    far.sendall(b"hello")
    with port.associate(near, "key") as handle:
        assert outcome(port, lambda: handle.read(5, 2)).errno == errno.ESPIPE
        assert_quiet(port)


@needs_modes
def test_a_pipe_keeps_its_mode_once_its_handle_is_gone(port, pipe):
    """The flags belong to everybody who has the pipe open, in other processes too."""
    reader, writer = pipe
    fcntl = pytest.importorskip("fcntl")
    flags = fcntl.fcntl(reader, fcntl.F_GETFL)
    same = os.dup(reader.fileno())
    try:
        with port.associate(reader, "pipe") as handle:
            handle.read(10)
            writer.write(b"x")
            take_one(port)
        assert fcntl.fcntl(same, fcntl.F_GETFL) == flags
    finally:
        os.close(same)
