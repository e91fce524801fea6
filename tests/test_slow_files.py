"""Files whose system takes its time: what is under way there at once, and how it ends.

The file system is `slow_files`, where nothing is read or written before the test says so.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import weakref

import pytest

import slow_files
from completionport import CompletionPort, OperationAborted, Overlapped
from support import (
    LONG,
    Background,
    assert_quiet,
    pattern,
    read_exactly,
    read_to_end,
    read_within,
    take,
    take_one,
    wait_until,
    windows_has_no,
)

pytestmark = windows_has_no("FUSE")


@pytest.fixture
def files(tmp_path, nothing_left):
    if reason := slow_files.why_not():
        pytest.skip(reason)
    with slow_files.mounted(tmp_path) as served:
        yield served


@pytest.fixture
def associate(files, port, tmp_path):
    """A handle of the file with this name, which is its key as well."""

    def make(name):
        return port.associate(open(tmp_path / str(name), "r+b", 0), name)

    return make


class Mine(Overlapped):
    pass


def end_all(files, port, count, error=0):
    """Let all go on, or fail, until so many packets are there."""
    packets = []

    def collected():
        for request in files.held():
            files.answer(request, error)
        if (done := port.get(0)) is not None:
            packets.append(done)
        return len(packets) == count

    wait_until(collected, f"{count} packets")
    return packets


def end_reads(files, port):
    """The packet that comes when reads, and nothing else, go on."""

    def collected():
        for request in files.held():
            if request.opcode == slow_files.READ:
                files.answer(request)
        return port.get(0)

    return wait_until(collected, "the packet")


def answer_all_until(files, over, what):
    def answered():
        for request in files.held():
            files.answer(request)
        return over()

    wait_until(answered, what)


def test_reads_of_one_file_are_in_the_kernel_at_once_and_end_in_any_order(files, port, associate):
    """Four: as many threads as io_uring has with one processor, and the pool at once."""
    with associate(2) as handle:
        reads = [handle.read(10, slow_files.PAGE * number) for number in range(4)]
        requests = {request.offset // slow_files.PAGE: request for request in files.wait_for(4)}
        assert port.get(0) is None
        for number in (2, 0, 3, 1):
            files.answer(requests[number])
            done = take_one(port)
            assert done.overlapped is reads[number]
            assert reads[number].result() == bytes([number]) * 10
    assert_quiet(port)


@pytest.mark.parametrize("opcode", ["WRITE", "FSYNC"])
def test_changes_of_several_files_are_in_the_kernel_at_once(files, port, associate, opcode):
    handles = [associate(name) for name in (2, 3, 4, 5)]
    for handle in handles:
        if opcode == "WRITE":
            handle.write(b"content", 0)
        else:
            handle.fsync()
    requests = {request.node: request for request in files.wait_for(4)}
    assert {request.opcode for request in requests.values()} == {getattr(slow_files, opcode)}
    assert port.get(0) is None
    for handle in reversed(handles):
        files.answer(requests[handle.key])
        done = take_one(port)
        assert (done.key, done.error) == (handle.key, None)
    for handle in handles:
        handle.close()
    assert_quiet(port)


def test_what_is_cancelled_while_the_kernel_is_at_it_gives_one_packet(files, port, associate):
    with associate(2) as handle:
        operation = handle.read(10, 0)
        files.wait_for(1)
        assert operation.cancel()
        [done] = end_all(files, port, 1)
        assert done.overlapped is operation
        if done.error is None:
            assert operation.result() == bytes(10)
        else:
            assert isinstance(done.error, OperationAborted)
        following = handle.read(10, slow_files.PAGE)
        end_all(files, port, 1)
        assert following.result() == b"\1" * 10
    assert_quiet(port)


def test_a_handle_that_is_closed_meanwhile_lets_the_kernel_finish(files, port, associate):
    handle = associate(2)
    operation = handle.read(10, 0)
    files.wait_for(1)
    Background(handle.close).outcome()
    [done] = end_all(files, port, 1)
    assert done.overlapped is operation
    assert isinstance(done.error, OperationAborted)
    assert done.transferred == 0
    assert_quiet(port)


def test_buffers_that_nobody_refers_to_live_until_the_kernel_has_filled_them(
    files, port, associate
):
    with associate(2) as handle:
        mine = Mine()
        alive = weakref.ref(mine)
        handle.read(bytearray(slow_files.PAGE), 3 * slow_files.PAGE, mine)
        del mine
        [request] = files.wait_for(1)
        assert alive() is not None
        files.answer(request)
        done = take_one(port)
        assert done.overlapped is alive()
        assert done.transferred == slow_files.PAGE
        del done
    wait_until(lambda: alive() is None, "nothing has it any more")


def test_the_port_waits_until_the_kernel_lets_go_of_its_buffers(
    files, engine, tmp_path, nothing_left
):
    port = CompletionPort(engine=engine)
    with open(tmp_path / "2", "r+b", 0) as file:
        handle = port.associate(file, "file")
        buffer = bytearray(slow_files.PAGE)
        operation = handle.read(buffer, slow_files.PAGE)
        [request] = files.wait_for(1)
        closer = Background(port.close)
        wait_until(lambda: port.closed)
        with pytest.raises(BufferError):
            buffer.append(0)  # it can't be moved under the kernel
        files.answer(request)
        closer.outcome()
        assert isinstance(operation.error, OperationAborted)
        buffer.append(0)


def test_a_close_that_fails_is_told_once_and_ends_all(files, make_port, associate, tmp_path):
    """As that of a file whose last writes do not fit on the server any more."""
    handle = associate(slow_files.FAILS_TO_CLOSE)
    port = handle.port
    operation = handle.write(b"content", 0)
    files.wait_for(1)
    with pytest.raises(OSError, match="Input/output error") as raised:
        handle.close()
    assert raised.value.errno == errno.EIO
    assert handle.closed
    handle.close()
    [done] = end_all(files, port, 1)
    assert done.overlapped is operation
    assert isinstance(done.error, OperationAborted)
    descriptor = os.open(tmp_path / str(slow_files.FAILS_TO_CLOSE), os.O_RDWR)
    port.close_descriptor(descriptor, key="close")
    done = take_one(port)
    assert (done.key, done.error.errno) == ("close", errno.EIO)
    port.close()


def test_nobody_else_waits_for_a_close_that_takes_its_time(files, port, associate):
    """Whose duplicate is closed first, and then the file: the others have the interpreter."""
    handle = associate(slow_files.WAITS_TO_CLOSE)
    closer = Background(handle.close)
    for _ in range(2):
        [request] = files.wait_for(1)
        assert request.opcode == slow_files.FLUSH
        assert closer.is_alive()
        files.answer(request)
    closer.outcome(LONG)
    assert_quiet(port)


@pytest.fixture
def late_close(files, port, associate):
    """Of a handle closed before: its last request is over, its duplicate is being closed."""
    handle = associate(slow_files.WAITS_TO_CLOSE)
    operation = handle.read(10, 0)
    [read] = files.wait_for(1)
    closer = Background(handle.close)
    [flush] = [request for request in files.wait_for(2) if request.opcode == slow_files.FLUSH]
    files.answer(flush)  # of the program's own descriptor
    closer.outcome(LONG)
    files.answer(read)
    taker = Background(take_one, port)
    [request] = files.wait_for(1)
    assert request.opcode == slow_files.FLUSH
    yield taker, operation, request
    if request in files.held():
        files.answer(request)


def test_no_packet_waits_for_a_close_that_comes_late_and_takes_its_time(
    files, port, late_close, tcp
):
    """By a thread of its own, and with no lock that what asks about the port would wait for."""
    taker, operation, request = late_close
    done = taker.outcome(LONG)
    assert done.overlapped is operation
    assert isinstance(done.error, OperationAborted)
    near, far = tcp
    with port.associate(near, "another") as handle:
        handle.recv(10)
        far.sendall(b"hello")
        done = take_one(port)
        assert (done.key, done.transferred) == ("another", 5)
        assert port.stats()["pending"] == 0
    assert operation.handle.cancel() == 0
    assert files.held() == [request]
    files.answer(request)
    assert_quiet(port)


def test_the_port_waits_for_a_close_that_comes_late(files, port, late_close):
    taker, _, request = late_close
    taker.outcome(LONG)
    closer = Background(port.close)
    wait_until(lambda: port.closed)
    assert files.held() == [request]
    assert closer.is_alive()
    files.answer(request)
    closer.outcome(LONG)


def test_a_handle_that_is_dropped_while_its_port_waits_to_close_leaves_nothing(
    files, engine, tmp_path, tcp
):
    """The port waits for a thread inside, and has not come to that handle yet."""
    port = CompletionPort(engine=engine)
    slow = port.associate(open(tmp_path / str(slow_files.WAITS_TO_CLOSE), "r+b", 0), "slow")  # noqa: SIM115
    dropped = port.associate(tcp[0], "dropped")
    inside = Background(slow.close)
    files.wait_for(1)
    closer = Background(port.close)
    wait_until(lambda: port.closed)
    del dropped
    answer_all_until(files, lambda: not (inside.is_alive() or closer.is_alive()), "both are closed")
    inside.outcome()
    closer.outcome()


def test_a_port_with_one_thread_in_its_pool_is_closed_by_a_function_there(
    files, make_port, tmp_path
):
    """Which has the thread that would close the file."""
    port = make_port(pool_threads=1)
    descriptor = os.open(tmp_path / str(slow_files.WAITS_TO_CLOSE), os.O_RDWR)
    handle = port.associate(descriptor, "file")
    closed = threading.Event()

    def close_all():
        port.close()
        closed.set()

    port.submit(close_all)
    [request] = files.wait_for(1)
    assert request.opcode == slow_files.FLUSH
    assert not closed.is_set()
    assert port.stats()["queued"] == 0
    files.answer(request)
    assert closed.wait(LONG)
    assert handle.closed
    end = Background(os.close, descriptor)
    [request] = files.wait_for(1)
    files.answer(request)
    end.outcome(LONG)


def test_no_python_thread_waits_for_the_close_of_an_opened_file_that_nobody_took(
    files, make_port, tmp_path
):
    port = make_port()
    port.open(tmp_path / str(slow_files.WAITS_TO_CLOSE), os.O_RDONLY)
    wait_until(lambda: port.stats()["queued"] == 1)
    closing = Background(port.close)
    [request] = files.wait_for(1)
    assert request.opcode == slow_files.FLUSH
    files.answer(request)
    closing.outcome()


def test_nobody_else_waits_for_an_open_that_takes_its_time(files, port, tmp_path):
    """Of a name that the kernel has in memory."""
    path = tmp_path / str(slow_files.WAITS_TO_OPEN)
    assert path.stat().st_size == slow_files.SIZE
    operation = port.open(path, os.O_RDWR, key="open")
    [request] = files.wait_for(1)
    assert request.opcode == slow_files.OPEN
    assert port.get(0) is None
    files.answer(request)
    assert tuple(take_one(port)) == (0, "open", operation, None)
    os.close(operation.result())


@pytest.fixture
def send(port, make_pair, tmp_path):
    """Start sending a file from there: its operation, and where the bytes arrive."""
    near, far = make_pair("tcp")
    with port.associate(near, "socket") as handle:

        def start(name, offset=0, count=None):
            descriptor = os.open(tmp_path / str(name), os.O_RDONLY)
            try:
                return handle.sendfile(descriptor, offset, count, tail=b"tail"), far
            finally:
                Background(os.close, descriptor)  # which may wait for the server

        yield start


def test_a_file_is_sent_while_nobody_waits_for_its_server(files, port, send, tcp):
    operation, far = send(2)
    reader = Background(read_exactly, far, slow_files.SIZE + 4)
    near, other_far = tcp
    with port.associate(near, "another") as handle:
        handle.recv(10)
        other_far.sendall(b"hello")
        files.wait_for(1)
        assert take_one(port).key == "another"
        operation.handle.recv(10)
        far.sendall(b"answer")
        assert take_one(port).transferred == 6
        assert port.stats()["pending"] == 1
        [done] = end_all(files, port, 1)
        assert (done.overlapped, done.error) == (operation, None)
        assert operation.result() == slow_files.SIZE + 4
    assert reader.outcome() == slow_files.content() + b"tail"


def test_the_call_does_not_ask_the_server_what_its_file_system_is(files, port, send):
    operation, _ = send(slow_files.WAITS_TO_TELL)
    assert all(request.opcode == slow_files.READ for request in files.held())
    [done] = end_all(files, port, 1)
    assert done.overlapped is operation


def test_a_file_is_associated_without_asking_its_server_what_its_file_system_is(files, associate):
    associating = Background(associate, slow_files.WAITS_TO_TELL)
    wait_until(lambda: files.held() or not associating.is_alive(), "it asks, or is done")
    asked = [request.opcode for request in files.held()]
    for request in files.held():
        files.answer(request)
    associating.outcome().close()
    assert slow_files.STATFS not in asked


@pytest.mark.parametrize("pool_threads", [1, 8])
def test_a_file_goes_on_while_the_server_of_another_one_is_silent(
    files, make_port, make_pair, tmp_path, pool_threads
):
    """Also where the one who has read the first of them is at the other one now."""
    port = make_port(pool_threads=pool_threads)
    path = tmp_path.parent / "half cached"
    path.write_bytes(pattern(20_000_000))
    near, far = make_pair("tcp")
    other, _ = make_pair("tcp")
    with path.open("rb") as file, port.associate(near, "half") as half:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 1 << 20, os.POSIX_FADV_DONTNEED)
        taker = Background(take_one, port)
        half.sendfile(file)
        with port.associate(other, "slow") as slow, open(tmp_path / "2", "rb") as distant:
            silent = slow.sendfile(distant)
            files.wait_for(1)
            assert read_exactly(far, 20_000_000) == pattern(20_000_000)
            assert taker.outcome(LONG).key == "half"
            [done] = end_all(files, port, 1)
            assert done.overlapped is silent


def test_what_stands_behind_a_file_that_is_waited_for_keeps_its_order(files, port, send):
    first, far = send(2, slow_files.PAGE, 10)
    second = first.handle.send(b"second")
    files.wait_for(1)
    assert port.get(0) is None
    assert [done.overlapped for done in end_all(files, port, 2)] == [first, second]
    assert read_exactly(far, 20) == b"\1" * 10 + b"tail" + b"second"


@pytest.mark.parametrize("way", ["cancel", "cancel all", "close"])
def test_a_file_that_is_waited_for_can_be_given_up(files, port, send, way):
    operation, far = send(2)
    handle = operation.handle
    files.wait_for(1)
    if way == "cancel":
        assert operation.cancel()
    elif way == "cancel all":
        assert handle.cancel() == 1
    else:
        Background(handle.close).outcome()
    [done] = end_all(files, port, 1)
    assert done.overlapped is operation
    assert isinstance(done.error, OperationAborted)
    if way != "close":
        handle.send(b"behind")
        assert take_one(port).transferred == 6
        assert read_exactly(far, 6) == b"behind"
    closer = Background(port.close)
    # Where the packet did not wait for the read, the port does.
    answer_all_until(files, lambda: not closer.is_alive(), "the port is closed")
    closer.outcome()


def test_a_server_that_fails_to_read_a_file_that_is_sent_is_a_packet_with_an_error(
    files, port, send
):
    operation, far = send(2)
    [done] = end_all(files, port, 1, errno.EIO)
    assert done.overlapped is operation
    assert (done.error.errno, done.transferred) == (errno.EIO, 0)
    operation.handle.send(b"behind")
    assert take_one(port).transferred == 6
    assert read_exactly(far, 6) == b"behind"


def test_the_port_is_closed_while_a_file_to_be_sent_is_waited_for(files, port, send):
    operation, _ = send(2)
    [request] = files.wait_for(1)
    closer = Background(port.close)
    wait_until(lambda: port.closed)
    assert closer.is_alive()
    assert files.held() == [request]
    answer_all_until(files, lambda: not closer.is_alive(), "the port is closed")
    closer.outcome()
    assert isinstance(operation.error, OperationAborted)


def test_no_byte_is_kept_back_where_a_file_becomes_shorter(files, port, make_pair, tmp_path):
    near, far = make_pair("tcp")
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with port.associate(near, "socket") as handle, open(tmp_path / "2", "rb") as file:
        operation = handle.sendfile(file)

        def shorter():
            for request in files.held():
                is_there = request.offset < slow_files.PAGE
                files.answer(request, 0 if is_there else slow_files.NOTHING)
            return not operation.pending

        taker = Background(take_one, port)
        wait_until(shorter)
        taker.outcome(LONG)
        size = operation.result()
        assert 0 < size < slow_files.SIZE
        # The kernel keeps what is to be followed by more for 200 ms.
        assert read_within(far, size, 0.1) == slow_files.content(size)


def test_nobody_waits_for_the_close_of_a_file_that_could_not_be_sent(files, port, tcp, tmp_path):
    near, _ = tcp
    descriptor = os.open(tmp_path / str(slow_files.WAITS_TO_CLOSE), os.O_RDONLY)
    with port.associate(near, "socket") as handle:
        near.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError):
            Background(lambda: handle.sendfile(descriptor, head=b"head")).outcome(LONG)
        [request] = files.wait_for(1)
        assert request.opcode == slow_files.FLUSH
        files.answer(request)
    closer = Background(os.close, descriptor)
    answer_all_until(files, lambda: not closer.is_alive(), "the file is closed")


def test_the_peer_reads_the_end_while_the_file_that_was_sent_is_being_closed(files, port, send):
    operation, far = send(slow_files.WAITS_TO_CLOSE, 0, 10)
    assert end_reads(files, port).overlapped is operation
    files.wait_for(2)
    operation.handle.close()
    assert read_to_end(far) == bytes(10) + b"tail"
    closer = Background(port.close)
    answer_all_until(files, lambda: not closer.is_alive(), "the port is closed")


def test_nobody_waits_for_the_close_of_a_file_that_was_sent(files, port, send, tcp):
    operation, far = send(slow_files.WAITS_TO_CLOSE, 0, 10)
    assert end_reads(files, port).overlapped is operation
    assert read_exactly(far, 14) == bytes(10) + b"tail"
    # The program's own descriptor, and the duplicate of the operation.
    files.wait_for(2)
    near, other_far = tcp
    with port.associate(near, "another") as handle:
        handle.recv(10)
        other_far.sendall(b"hello")
        assert take_one(port).key == "another"
    operation.handle.send(b"behind")
    assert take_one(port).transferred == 6
    closer = Background(port.close)
    wait_until(lambda: port.closed)
    assert closer.is_alive()
    answer_all_until(files, lambda: not closer.is_alive(), "the port is closed")
    closer.outcome()


def test_several_threads_take_what_ends_in_the_kernel(files, make_port, tmp_path):
    port = make_port(4)
    handles = [port.associate(open(tmp_path / str(name), "r+b", 0), name) for name in (2, 3, 4, 5)]  # noqa: SIM115
    takers = [Background(take, port, 1) for _ in range(4)]
    for handle in handles:
        handle.read(10, slow_files.PAGE * handle.key)
    for request in files.wait_for(4):
        files.answer(request)
    for taker in takers:
        [done] = taker.outcome()
        assert done.overlapped.result() == bytes([done.key]) * 10
    for handle in handles:
        handle.close()


def test_a_file_system_that_can_not_set_space_aside_says_so(port, associate):
    """And nothing is written in its place, which could undo what others write meanwhile."""
    with associate(2) as handle:
        handle.allocate(0, 2 * slow_files.SIZE)
        done = take_one(port)
        assert done.error.errno == errno.EOPNOTSUPP
    assert_quiet(port)
