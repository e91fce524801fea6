"""Shutting one direction down, and sending files: the port's rules for both."""

from __future__ import annotations

import errno
import gc
import os
import re
import socket
import sys
import threading
from pathlib import Path

import pytest

from completionport import CompletionPort, HandleClosed, Operation, OperationAborted, Overlapped
from support import (
    WINDOWS,
    WINE,
    Background,
    assert_quiet,
    descriptors,
    needs_fork,
    outcome,
    pattern,
    read_exactly,
    read_to_end,
    reset,
    run_python,
    take,
    take_one,
    wait_for_stats,
    wait_until,
)

if WINDOWS:
    import windows_support

BIG = 8_000_000

wine_loses_files = pytest.mark.skipif(
    WINE,
    reason="Wine loses a TransmitFile now and then when it is cancelled, or when its thread ends: "
    "tools/wine_faults.py shows it",
)


@pytest.fixture(scope="module")
def content():
    return pattern(300_000)


@pytest.fixture(scope="module")
def path(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("files") / "content"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "big"
    path.write_bytes(pattern(BIG))
    return path


def names_of(path):
    if WINDOWS:
        return windows_support.handles_of_file(path)
    return [what for what in descriptors().values() if what.startswith(str(path))]


class TestShutdown:
    def test_the_peer_reads_the_end_and_can_still_answer(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            operation = handle.shutdown()
            assert operation.operation is Operation.SHUTDOWN
            assert tuple(take_one(port)) == (0, "key", operation, None)
            assert operation.result() == 0
            assert far.recv(10) == b""
            answer = handle.recv(10)
            far.sendall(b"answer")
            take_one(port)
            assert answer.result() == b"answer"
            with pytest.raises(OSError, match=r"pipe|shut down") as raised:
                handle.send(b"too late")
            assert raised.value.errno == errno.EPIPE
            assert_quiet(port)

    def test_it_comes_behind_what_was_sent_before(self, port, pair):
        near, far = pair
        data = pattern(BIG)
        with port.associate(near, "key") as handle:
            operations = [handle.send(data), handle.send(b"last"), handle.shutdown()]
            assert operations[2].pending
            reader = Background(read_to_end, far)
            assert [done.overlapped for done in take(port, 3)] == operations
            assert reader.outcome() == data + b"last"

    def test_reading_ends_too_where_that_is_asked_for(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            waiting = handle.recv(10)
            closing = handle.shutdown(socket.SHUT_RD)
            packets = {done.overlapped: done for done in take(port, 2)}
            assert packets[closing].error is None
            assert (packets[waiting].transferred, packets[waiting].error) == (0, None)
            handle.send(b"still open")
            take_one(port)
            assert far.recv(100) == b"still open"

    def test_both_directions_end(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            handle.shutdown(socket.SHUT_RDWR)
            take_one(port)
            assert far.recv(10) == b""
            operation = handle.recv(10)
            assert take_one(port).transferred == 0
            assert operation.result() == b""

    def test_a_socket_that_is_not_connected_refuses(self, port):
        with socket.socket() as sock, port.associate(sock, "key") as handle:
            with pytest.raises(OSError, match="not connected") as raised:
                handle.shutdown()
            assert raised.value.errno == errno.ENOTCONN
            assert_quiet(port)

    def test_a_cancelled_one_leaves_the_connection_open(self, port, pair):
        near, far = pair
        data = pattern(BIG)
        with port.associate(near, "key") as handle:
            sending = handle.send(data)
            operation = handle.shutdown()
            assert operation.cancel() is True
            done = take_one(port)
            assert done.overlapped is operation
            assert isinstance(done.error, OperationAborted)
            reader = Background(read_exactly, far, BIG)
            assert take_one(port).overlapped is sending
            reader.outcome()
            handle.send(b"more")
            take_one(port)
            assert far.recv(10) == b"more"

    @pytest.mark.parametrize(
        ("how", "error"), [(7, ValueError), (-1, ValueError), ("x", TypeError), (None, TypeError)]
    )
    def test_wrong_arguments_raise_at_the_call(self, port, tcp, how, error):
        with port.associate(tcp[0], "key") as handle:
            with pytest.raises(error, match="how must be"):
                handle.shutdown(how)
            assert_quiet(port)


class TestSendFile:
    def test_the_whole_file_is_sent(self, port, pair, path, content):
        near, far = pair
        with path.open("rb") as file, port.associate(near, "key") as handle:
            file.seek(17)
            operation = handle.sendfile(file)
            assert operation.operation is Operation.SENDFILE
            reader = Background(read_exactly, far, len(content))
            assert tuple(take_one(port)) == (len(content), "key", operation, None)
            assert operation.result() == len(content)
            assert reader.outcome() == content
            assert file.tell() == 17
            assert_quiet(port)

    @pytest.mark.parametrize(
        ("offset", "count"),
        [(0, 1), (1, 0), (5, 70_000), (299_999, None), (299_999, 50), (300_000, None), (10**12, 7)],
    )
    def test_a_part_is_sent(self, port, pair, path, content, offset, count):
        near, far = pair
        expected = content[offset:] if count is None else content[offset : offset + count]
        with path.open("rb") as file, port.associate(near, "key") as handle:
            handle.sendfile(file, offset, count)
            handle.shutdown()
            reader = Background(read_to_end, far)
            assert take_one(port).transferred == len(expected)
            take_one(port)
            assert reader.outcome() == expected

    @pytest.mark.parametrize("count", [None, 0, 1000])
    @pytest.mark.parametrize("head", [b"", b"head", bytearray(b"h" * 100_000)])
    @pytest.mark.parametrize("tail", [b"", b"tail", memoryview(b"t" * 100_000)])
    def test_head_and_tail_go_around_it(self, port, pair, path, content, head, tail, count):
        near, far = pair
        expected = bytes(head) + content[:count] + bytes(tail)
        with path.open("rb") as file, port.associate(near, "key") as handle:
            operation = handle.sendfile(file, 0, count, head=head, tail=tail)
            handle.shutdown()
            reader = Background(read_to_end, far)
            first, _ = take(port, 2)
            assert (first.overlapped, first.transferred) == (operation, len(expected))
            assert reader.outcome() == expected

    def test_the_file_may_be_closed_at_once(self, port, pair, big):
        near, far = pair
        with port.associate(near, "key") as handle:
            with big.open("rb") as file:
                operation = handle.sendfile(file.fileno(), head=b"head", tail=b"tail")
            assert operation.pending
            reader = Background(read_exactly, far, BIG + 8)
            assert take_one(port).error is None
            assert reader.outcome() == b"head" + pattern(BIG) + b"tail"
            wait_until(lambda: names_of(big) == [])

    def test_others_have_their_turn_although_the_peer_keeps_up(self, port, make_pair, tmp_path):
        path = tmp_path / "sparse"
        size = 500 << 20
        with path.open("wb") as file:
            file.truncate(size)

        def turns_of_the_others():
            near, far = make_pair()
            other, its_far = make_pair()

            def drain():
                left, space = size, bytearray(1 << 20)
                while left:
                    left -= far.recv_into(space)

            reader = Background(drain)
            with path.open("rb") as file, port.associate(near, "file") as sending:
                with port.associate(other, "other") as handle:
                    operation = sending.sendfile(file)
                    assert operation.pending
                    turns = 0
                    handle.recv(10)
                    its_far.sendall(b"x")
                    while take_one(port).key == "other":
                        turns += 1
                        handle.recv(10)
                        its_far.sendall(b"x")
                    assert operation.result() == size
                reader.outcome()
            take_one(port)  # the last receive, ended with its handle
            return turns

        # This thread may be stopped while the kernel sends.
        assert any(turns_of_the_others() > 10 for _ in range(4))

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what its page cache has")
    def test_what_is_not_in_the_page_cache_is_read_elsewhere(self, port, engine, tcp, tmp_path):
        """By the pool, or by the kernel's own threads, which are not counted."""
        path = tmp_path / "cold"
        path.write_bytes(pattern(BIG))
        near, far = tcp

        def read_by_pool():
            own = str(threading.get_native_id())
            numbers = [
                io.read_text()
                for io in Path("/proc/self/task").glob("*/io")
                if io.parent.name != own
            ]
            return sum(int(re.findall(r"rchar: (\d+)", text)[0]) for text in numbers)

        def sent(is_cold):
            before = read_by_pool()
            operation = handle.sendfile(file)
            reader = Background(read_exactly, far, BIG)
            assert take_one(port).overlapped is operation
            assert operation.result() == BIG
            assert reader.outcome() == pattern(BIG)
            by_pool = is_cold and engine != "io_uring"
            assert (read_by_pool() - before >= 100_000) == by_pool

        with path.open("rb") as file, port.associate(near, "key") as handle:
            port.submit(int)  # so that the pool has a thread
            take_one(port)
            number = file.fileno()
            os.fsync(number)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                os.preadv(number, [bytearray(1)], 0, os.RWF_NOWAIT)
                pytest.skip("what was just written stays in this system's page cache")
            except BlockingIOError:
                pass
            except OSError as error:
                pytest.skip(f"this file system does not tell what is in the page cache: {error}")
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)  # that may have begun to read
            sent(is_cold=True)
            sent(is_cold=False)

    def test_a_thread_that_only_waits_goes_on_with_what_was_read(self, port, tcp, tmp_path):
        """For a peer that takes its time, so that it is often waited for."""
        path = tmp_path / "cold"
        path.write_bytes(pattern(BIG))
        near, far = tcp
        with path.open("rb") as file, port.associate(near, "key") as handle:
            if not WINDOWS:
                os.fsync(file.fileno())
            if sys.platform == "linux":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            taker = Background(port.get)  # without a time at which it looks again
            wait_for_stats(port, waiting=1)
            operation = handle.sendfile(file)
            received = b""
            while len(received) < BIG:
                received += read_exactly(far, min(1_000_000, BIG - len(received)))
                # It waits again, for the disk or for the peer.
                wait_until(lambda: port.stats()["waiting"] == 1 or not operation.pending)
            assert received == pattern(BIG)
            assert taker.outcome().overlapped is operation

    @pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="it needs a cold page cache")
    def test_it_goes_on_where_no_thread_is_to_be_had_and_no_descriptor(self, engine, big):
        run_python(
            f"""
            import os, resource, socket, threading
            from completionport import CompletionPort
            from support import pattern, read_exactly, tcp_pair

            near, far = tcp_pair()
            received = []
            reader = threading.Thread(target=lambda: received.append(read_exactly(far, {BIG} + 6)))
            reader.start()
            file = os.open({str(big)!r}, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            port = CompletionPort(1)
            handle = port.associate(near, "key")
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            if os.geteuid() == 0:
                resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            handle.sendfile(file)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
            handle.send(b"behind")
            for name in ("SENDFILE", "SEND"):
                done = port.get(20)
                assert (done.overlapped.operation.name, done.error) == (name, None), done
            reader.join()
            assert received == [pattern({BIG}) + b"behind"]
            port.close()
            """,
            engine=engine,
        )

    def test_sends_and_files_keep_their_order(self, port, pair, path, content):
        near, far = pair
        with path.open("rb") as file, port.associate(near, "key") as handle:
            operations = []
            expected = b""
            for number in range(20):
                operations.append(handle.send(b"<%d>" % number))
                operations.append(handle.sendfile(file, number, 100_000, tail=b"."))
                expected += b"<%d>" % number + content[number : number + 100_000] + b"."
            reader = Background(read_exactly, far, len(expected))
            assert [done.overlapped for done in take(port, 40)] == operations
            assert reader.outcome() == expected
            assert_quiet(port)

    def test_a_file_that_becomes_shorter_ends_early_and_the_tail_follows(
        self, port, pair, tmp_path
    ):
        near, far = pair
        path = tmp_path / "shrinks"
        path.write_bytes(pattern(BIG))
        with path.open("rb+") as file, port.associate(near, "key") as handle:
            handle.send(pattern(BIG))
            operation = handle.sendfile(file, tail=b"the end")
            file.truncate(1000)
            handle.shutdown()
            reader = Background(read_to_end, far)
            take(port, 3)
            assert operation.transferred == 1007
            assert reader.outcome() == pattern(BIG) + pattern(BIG)[:1000] + b"the end"

    @pytest.mark.parametrize("timeout", [None, 0.0, 5.0], ids=["blocking", "polling", "timeout"])
    def test_sockets_in_any_mode_work_alike(self, port, pair, big, timeout):
        near, far = pair
        near.settimeout(timeout)
        with big.open("rb") as file, port.associate(near, "key") as handle:
            operation = handle.sendfile(file)
            assert operation.pending
            assert port.get(0.01) is None
            reader = Background(read_exactly, far, BIG)
            assert take_one(port).transferred == BIG
            assert reader.outcome() == pattern(BIG)
            assert near.gettimeout() == timeout
            assert WINDOWS or os.get_blocking(near.fileno()) is (timeout is None)

    def test_a_reset_is_a_packet_with_an_error(self, port, tcp, big):
        near, far = tcp
        with big.open("rb") as file, port.associate(near, "key") as handle:
            handle.sendfile(file)
            reset(far)
            error = take_one(port).error
            assert error.errno in (errno.ECONNRESET, errno.EPIPE)
            assert len(names_of(big)) == 1

    @wine_loses_files
    def test_cancel_gives_one_packet_and_lets_the_file_go(self, port, pair, big):
        near, _far = pair
        with port.associate(near, "key") as handle:
            with big.open("rb") as file:
                operations = [handle.sendfile(file), handle.sendfile(file)]
            assert handle.cancel() == 2
            packets = take(port, 2)
            assert {done.overlapped for done in packets} == set(operations)
            assert all(isinstance(done.error, OperationAborted) for done in packets)
            wait_until(lambda: names_of(big) == [])
            assert_quiet(port)

    def test_close_gives_one_packet_and_lets_the_file_go(self, port, pair, big):
        near, _far = pair
        handle = port.associate(near, "key")
        with big.open("rb") as file:
            operations = [handle.sendfile(file) for _ in range(5)]
        handle.close()
        packets = take(port, 5)
        assert {done.overlapped for done in packets} == set(operations)
        assert [type(done.error) for done in packets] == [OperationAborted] * 5, packets
        wait_until(lambda: names_of(big) == [])
        with pytest.raises(HandleClosed):
            handle.sendfile(0)

    def test_close_of_the_port_lets_the_file_go(self, engine, pair, big):
        near, _far = pair
        port = CompletionPort(engine=engine)
        with big.open("rb") as file:
            operation = port.associate(near, "key").sendfile(file)
        port.close()
        assert isinstance(operation.error, OperationAborted)
        assert names_of(big) == []

    @wine_loses_files
    def test_one_of_a_thread_that_has_ended_completes(self, port, pair, big):
        near, far = pair
        with port.associate(near, "key") as handle:
            with big.open("rb") as file:
                operation = Background(handle.sendfile, file).outcome()
            reader = Background(read_exactly, far, BIG)
            done = take_one(port)
            assert (done.overlapped, done.transferred) == (operation, BIG)
            assert reader.outcome() == pattern(BIG)

    def test_head_and_tail_are_kept_until_they_are_sent(self, port, pair, path, content):
        near, far = pair
        with path.open("rb") as file, port.associate(near, "key") as handle:
            handle.send(pattern(BIG))
            handle.sendfile(
                file, head=bytes(bytearray(b"head") * 10_000), tail=bytes(bytearray(b"tail") * 9)
            )
            gc.collect()
            trash = [b"%d" % number * 9 for number in range(10_000)]
            handle.shutdown()
            reader = Background(read_to_end, far)
            take(port, 3)
            expected = pattern(BIG) + b"head" * 10_000 + content + b"tail" * 9
            assert reader.outcome() == expected
            del trash

    def test_a_buffer_cannot_be_resized_meanwhile(self, port, pair, big):
        near, far = pair
        tail = bytearray(b"tail")
        with big.open("rb") as file, port.associate(near, "key") as handle:
            handle.sendfile(file, tail=tail)
            with pytest.raises(BufferError):
                tail.append(0)
            reader = Background(read_exactly, far, BIG + 4)
            take_one(port)
            reader.outcome()
            tail.append(0)

    def test_one_overlapped_can_be_used_again(self, port, pair, path, content):
        near, far = pair
        mine = Overlapped()
        with path.open("rb") as file, port.associate(near, "key") as handle:
            for number in range(5):
                handle.sendfile(file, number, 10, head=b"<", overlapped=mine)
                assert take_one(port).overlapped is mine
                assert mine.result() == 11
                assert read_exactly(far, 11) == b"<" + content[number : number + 10]

    @needs_fork
    def test_the_parent_goes_on_after_a_fork(self, engine, big):
        run_python(
            f"""
            import os, socket, threading
            from completionport import CompletionPort, PortForked

            near, far = socket.socketpair()
            with CompletionPort() as port, open({str(big)!r}, "rb") as file:
                handle = port.associate(near, "key")
                operation = handle.sendfile(file, tail=b"tail")
                assert operation.pending
                child = os.fork()
                if child == 0:
                    try:
                        handle.sendfile(file)
                    except PortForked:
                        os._exit(0)
                    os._exit(1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                size = 0
                def read():
                    global size
                    while size < {BIG} + 4:
                        size += len(far.recv(1 << 20))
                reader = threading.Thread(target=read)
                reader.start()
                assert port.get(20).transferred == {BIG} + 4
                reader.join()
            """,
            engine=engine,
        )


class TestArguments:
    @pytest.mark.parametrize(
        ("start", "error", "text"),
        [
            (lambda h, f: h.sendfile("x"), TypeError, "fileno"),
            (lambda h, f: h.sendfile(f, -1), ValueError, "offset must be from 0"),
            (lambda h, f: h.sendfile(f, 2**63), ValueError, "offset must be from 0"),
            (lambda h, f: h.sendfile(f, "x"), TypeError, "offset must be an integer"),
            (lambda h, f: h.sendfile(f, 0, -1), ValueError, "count must be from 0"),
            (lambda h, f: h.sendfile(f, 0, "x"), TypeError, "count must be an integer"),
            (lambda h, f: h.sendfile(f, head="x"), TypeError, "sendfile"),
            (lambda h, f: h.sendfile(f, tail=5), TypeError, "sendfile"),
            (lambda h, f: h.sendfile(f, overlapped="x"), TypeError, "overlapped must be"),
            (lambda h, f: h.sendfile(1 << 20), ValueError, "closed"),
        ],
    )
    def test_wrong_arguments_raise_at_the_call(self, port, tcp, path, start, error, text):
        with path.open("rb") as file, port.associate(tcp[0], "key") as handle:
            with pytest.raises(error, match=text):
                start(handle, file)
            assert len(names_of(path)) == 1
            assert_quiet(port)

    def test_only_a_regular_file_can_be_sent(self, port, make_pair):
        near, far = make_pair()
        with port.associate(near, "key") as handle:
            with pytest.raises(OSError, match="regular file") as raised:
                handle.sendfile(far)
            assert raised.value.errno == errno.EINVAL
            assert_quiet(port)

    def test_a_file_that_is_not_open_for_reading_is_refused(self, port, tcp, tmp_path):
        path = tmp_path / "written"
        with path.open("wb") as file, port.associate(tcp[0], "key") as handle:
            file.write(b"content")
            file.flush()
            assert outcome(port, lambda: handle.sendfile(file)).errno == errno.EBADF
            assert len(names_of(path)) == 1
            assert_quiet(port)

    def test_a_datagram_socket_is_refused(self, port, path):
        with socket.socket(type=socket.SOCK_DGRAM) as sock, path.open("rb") as file:
            handle = port.associate(sock, "key")
            with pytest.raises(OSError, match="stream socket") as raised:
                handle.sendfile(file)
            assert raised.value.errno == errno.EOPNOTSUPP
            assert_quiet(port)
