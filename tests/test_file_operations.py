"""What a port does with files besides read and write, and what runs side by side."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import random
import stat
import threading
import time

import pytest

from completionport import (
    CompletionPort,
    HandleClosed,
    Operation,
    OperationAborted,
    Overlapped,
    PortClosed,
    open_directory,
)
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_quiet,
    digits_file,
    needs_fork,
    needs_links,
    outcome,
    pattern,
    read_at,
    run_python,
    take,
    take_one,
    windows_has_no,
    write_at,
)


@pytest.fixture
def file(tmp_path, nothing_left):
    with digits_file(tmp_path) as opened:
        yield opened


@pytest.fixture
def busy(busy_pool):
    """The same, of an engine whose pool reads and writes."""
    if busy_pool[0].engine == "iocp":
        pytest.skip("on Windows the kernel reads and writes, not the pool")
    return busy_pool


@pytest.fixture
def busy_pool(make_port):
    """A port whose pool of one thread is at work until the event is set."""
    port = make_port(pool_threads=1)
    if port.engine == "io_uring":
        pytest.skip("here the kernel does what the pool does on other engines")
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go.wait(LONG)

    port.submit(work, key="pool")
    assert begun.wait(LONG)
    yield port, go
    go.set()


class TestSync:
    @pytest.mark.parametrize("data_only", [False, True])
    def test_its_packet_comes_once_the_data_is_there(self, port, file, data_only):
        with port.associate(file, "file") as handle:
            operation = handle.fsync(data_only)
            assert operation.operation is Operation.FSYNC
            assert tuple(take_one(port)) == (0, "file", operation, None)

    def test_it_waits_for_the_writes_before_it(self, port, file):
        data = pattern(1 << 20)
        with port.associate(file, "file") as handle:
            writes = [handle.write(data, number << 20) for number in range(8)]
            sync = handle.fsync()
            order = [done.overlapped for done in take(port, 9)]
            assert order[-1] is sync
            assert set(map(id, order[:-1])) == set(map(id, writes))

    def test_a_file_opened_for_reading(self, port, file):
        """Linux writes what others have changed; Windows does not let one ask for that."""
        with open(file.name, "rb") as opened, port.associate(opened, "file") as handle:
            error = outcome(port, handle.fsync)
            assert (error and error.errno) == (errno.EBADF if WINDOWS else None)

    def test_what_is_no_file_has_nothing_to_sync(self, port, tcp):
        with port.associate(tcp[0], "socket") as handle:
            for start in (handle.fsync, handle.stat, lambda: handle.allocate(0, 1)):
                with pytest.raises(OSError, match="regular file") as raised:
                    start()
                assert raised.value.errno == errno.EINVAL


class TestAllocate:
    def test_the_file_becomes_longer_and_keeps_what_is_in_it(self, port, file):
        with port.associate(file, "file") as handle:
            operation = handle.allocate(5, 100_000)
            assert operation.operation is Operation.ALLOCATE
            assert tuple(take_one(port)) == (0, "file", operation, None)
            status = os.fstat(file.fileno())
            assert status.st_size == 100_005
            assert WINDOWS or status.st_blocks * 512 >= 100_000
            assert read_at(file, 12, 0) == b"0123456789\0\0"

    def test_a_file_opened_for_reading(self, port, file):
        with open(file.name, "rb") as opened, port.associate(opened, "file") as handle:
            assert outcome(port, lambda: handle.allocate(0, 10)).errno == errno.EBADF

    def test_arguments(self, port, file):
        with port.associate(file, "file") as handle:
            for offset, length in ((-1, 1), (0, 0), (0, -1), (2**63, 1)):
                with pytest.raises(ValueError, match=r"offset|length"):
                    handle.allocate(offset, length)
            with pytest.raises(TypeError):
                handle.allocate("0", 1)
            assert outcome(port, lambda: handle.allocate(2**62, 2**62)).errno == errno.EFBIG
            assert_quiet(port)


def assert_same_status(one: os.stat_result, other: os.stat_result) -> None:
    for name in dir(other):
        if name.startswith("st_") and "atime" not in name:
            assert getattr(one, name) == getattr(other, name), name


class TestStat:
    def test_of_an_open_file(self, port, file):
        with port.associate(file, "file") as handle:
            operation = handle.stat()
            assert operation.operation is Operation.STAT
            assert tuple(take_one(port)) == (0, "file", operation, None)
            assert_same_status(operation.result(), os.fstat(file.fileno()))

    def test_of_an_open_directory(self, port, tmp_path):
        with port.associate(open_directory(tmp_path), "directory") as handle:
            operation = handle.stat()
            assert take_one(port).key == "directory"
            assert_same_status(operation.result(), os.fstat(handle.fileno()))
            assert stat.S_ISDIR(operation.result().st_mode)

    @pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: path])
    def test_of_a_name(self, port, tmp_path, kind):
        operation = port.stat(kind(tmp_path), key="name")
        assert tuple(take_one(port)) == (0, "name", operation, None)
        assert_same_status(operation.result(), os.stat(tmp_path))

    @needs_links
    def test_of_a_link_and_of_what_it_leads_to(self, port, tmp_path, file):
        link = tmp_path / "link"
        link.symlink_to(file.name)
        through, of_itself = port.stat(link), port.stat(link, follow_symlinks=False)
        take(port, 2)
        assert_same_status(through.result(), os.stat(file.name))
        assert stat.S_ISLNK(of_itself.result().st_mode)

    @pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: path])
    def test_of_nothing(self, port, tmp_path, kind):
        operation = port.stat(kind(tmp_path / "nothing"))
        error = take_one(port).error
        assert isinstance(error, FileNotFoundError)
        assert error.filename == str(tmp_path / "nothing")
        with pytest.raises(FileNotFoundError, match="nothing"):
            operation.result()

    def test_arguments(self, port):
        with pytest.raises(TypeError, match="path"):
            port.stat(3)
        with pytest.raises(ValueError, match="null"):
            port.stat("a\0b")
        assert_quiet(port)


class TestOpenAndClose:
    def test_a_file_is_made_written_and_closed(self, port, tmp_path):
        path = tmp_path / "new"
        opening = port.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640, key="opening")
        assert opening.operation is Operation.OPEN
        assert tuple(take_one(port)) == (0, "opening", opening, None)
        descriptor = opening.result()
        assert opening.transferred == 0
        assert not os.get_inheritable(descriptor)
        with port.associate(descriptor, "file") as handle:
            handle.write(b"hello", 0)
            assert take_one(port).transferred == 5
        assert path.read_bytes() == b"hello"
        assert WINDOWS or path.stat().st_mode & 0o777 == 0o640 & ~_umask()
        with pytest.raises(OSError, match=r"descriptor|handle"):
            os.fstat(descriptor)

    def test_a_descriptor_is_closed(self, port, file):
        descriptor = os.dup(file.fileno())
        operation = port.close_descriptor(descriptor, key="close")
        assert operation.operation is Operation.CLOSE
        assert tuple(take_one(port)) == (0, "close", operation, None)
        with pytest.raises(OSError, match=r"descriptor|handle"):
            os.fstat(descriptor)

    @windows_has_no("file that is open and has no name")
    def test_the_caller_does_not_wait_for_what_a_last_descriptor_lets_go(self, port, tmp_path):
        """The space of a file that was removed; the quickest of several."""

        def nameless():
            descriptor = os.open(tmp_path / "big", os.O_RDWR | os.O_CREAT)
            os.write(descriptor, bytes(64 << 20))
            os.unlink(tmp_path / "big")
            return descriptor

        def taken_for(close):
            descriptor = nameless()
            began = time.thread_time()  # giving space back is work, which others do not add to
            close(descriptor)
            return time.thread_time() - began

        def posted(descriptor):
            port.close_descriptor(descriptor)

        waited = min(taken_for(os.close) for _ in range(5))
        assert min(taken_for(posted) for _ in range(5)) < waited / 2
        assert [done.error for done in take(port, 5)] == [None] * 5

    def test_a_descriptor_that_is_none(self, port, file):
        descriptor = os.dup(file.fileno())
        os.close(descriptor)
        port.close_descriptor(descriptor)
        assert take_one(port).error.errno == errno.EBADF

    @pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: path])
    def test_a_name_that_is_none(self, port, tmp_path, kind):
        operation = port.open(kind(tmp_path / "nothing"))
        error = take_one(port).error
        assert isinstance(error, FileNotFoundError)
        assert error.filename == str(tmp_path / "nothing")
        assert str(error).endswith(f": {error.filename!r}")
        assert error.winerror == 2
        with pytest.raises(FileNotFoundError, match="nothing"):
            operation.result()

    def test_many_at_a_time(self, port, tmp_path):
        for number in range(200):
            (tmp_path / str(number)).write_bytes(b"%d" % number)
        for number in range(200):
            port.open(tmp_path / str(number), key=number)
        for done in take(port, 200):
            assert os.read(done.overlapped.result(), 9) == b"%d" % done.key
            port.close_descriptor(done.overlapped.result())
        assert [done.error for done in take(port, 200)] == [None] * 200
        assert_quiet(port)

    def test_a_descriptor_that_nobody_takes_is_closed(self, make_port, file):
        """That none is left is looked after by a fixture of all tests."""
        port = make_port()
        operations = [port.open(file.name) for _ in range(20)]
        Background(lambda: [port.open(file.name) for _ in range(20)]).outcome()
        port.close()
        assert all(isinstance(operation.error, OperationAborted) for operation in operations)

    def test_arguments(self, port):
        for arguments in ((3,), ("x", "r"), ("x", os.O_RDONLY, "w")):
            with pytest.raises(TypeError):
                port.open(*arguments)
        with pytest.raises(ValueError, match="mode"):
            port.open("x", os.O_RDONLY, 0o10000)
        with pytest.raises(TypeError, match="fd"):
            port.close_descriptor("3")
        with pytest.raises(ValueError, match="fd"):
            port.close_descriptor(-1)
        assert_quiet(port)

    def test_a_closed_port_refuses(self, port, file):
        port.close()
        for start in (
            lambda: port.open(file.name),
            lambda: port.stat(file.name),
            lambda: port.close_descriptor(1000),
        ):
            with pytest.raises(PortClosed):
                start()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class TestSideBySide:
    def test_a_thousand_reads_are_outstanding(self, port, file):
        data = pattern(1_000_000)
        write_at(file, data, 0)
        with port.associate(file, "file") as handle:
            places = random.Random(5).sample(range(0, 1_000_000, 1000), 1000)
            reads = {handle.read(1000, place): place for place in places}
            for done in take(port, 1000):
                place = reads.pop(done.overlapped)
                assert done.overlapped.result() == data[place : place + 1000]
            assert_quiet(port)

    def test_writes_to_different_places(self, port, file):
        data = pattern(1_000_000)
        with port.associate(file, "file") as handle:
            for place in random.Random(6).sample(range(0, 1_000_000, 1000), 1000):
                handle.write(data[place : place + 1000], place)
            assert [done.transferred for done in take(port, 1000)] == [1000] * 1000
            assert read_at(file, 2_000_000, 0) == data

    @pytest.mark.parametrize("seed", range(5))
    def test_writes_that_overlap_leave_what_they_would_one_by_one(self, make_port, file, seed):
        """With allocations, syncs and writes at the file's own position between them."""
        chance = random.Random(seed)
        expected = bytearray(b"0123456789")
        position = 0
        count = 0
        port = make_port(pool_threads=8)
        with port.associate(file, "file") as handle:
            for number in range(300):
                kind = chance.random()
                data = bytes([number % 251]) * chance.randrange(1, 3000)
                if kind < 0.1:
                    expected[position : position + len(data)] = data
                    position += len(data)
                    handle.write(data)
                elif kind < 0.15:
                    handle.fsync(True)
                elif kind < 0.2:
                    handle.allocate(len(data), 20_000)
                    expected.extend(bytes(max(len(data) + 20_000 - len(expected), 0)))
                else:
                    offset = chance.randrange(20_000)
                    expected.extend(bytes(max(offset + len(data) - len(expected), 0)))
                    expected[offset : offset + len(data)] = data
                    if chance.random() < 0.5:
                        middle = len(data) // 2
                        handle.write([data[:middle], data[middle:]], offset)
                    else:
                        handle.write(data, offset)
                count += 1
            assert [done.error for done in take(port, count)] == [None] * count
            assert read_at(file, len(expected) + 1, 0) == expected
            assert file.tell() == position

    def test_ten_thousand_changes_are_pending(self, port, file):
        """First each at a place of its own, in no order; then all at one; then a sync."""
        places = list(range(10_000))
        random.Random(1).shuffle(places)
        with port.associate(file, "file") as handle:
            for place in places:
                handle.write(b"%04d" % place, 4 * place)
            for number in range(10_000):
                handle.write(b"%08d" % number, 100)
            sync = handle.fsync()
            packets = take(port, 20_001)
            assert {done.error for done in packets} == {None}
            assert packets[-1].overlapped is sync
            expected = bytearray(b"".join(b"%04d" % place for place in range(10_000)))
            expected[100:108] = b"00009999"
            assert read_at(file, 50_000, 0) == expected

    def test_reads_and_writes_at_the_position_keep_one_order(self, port, file):
        with port.associate(file, "file") as handle:
            first = handle.read(2)
            handle.write(b"ab")
            second = handle.read(2)
            handle.write(b"cd")
            take(port, 4)
            assert (first.result(), second.result()) == (b"01", b"45")
            assert read_at(file, 10, 0) == b"01ab45cd89"

    def test_appending_keeps_the_order_of_writes_at_offsets_too(self, port, tmp_path):
        path = tmp_path / "log"
        with path.open("ab", buffering=0) as log, port.associate(log, "log") as handle:
            for number in range(100):
                handle.write(b"%02d" % number, number * 1000)
            take(port, 100)
        assert path.read_bytes() == b"".join(b"%02d" % number for number in range(100))

    def test_what_is_appended_does_not_overtake_an_allocation(self, port, tmp_path):
        size = 10_000_000
        for number in range(60):
            path = tmp_path / f"{number}"
            with path.open("ab", buffering=0) as log, port.associate(log, "log") as handle:
                handle.allocate(0, 8192)
                handle.write(b"end", size)  # at the end all the same: the kernel ignores the offset
                assert {done.error for done in take(port, 2)} == {None}
            assert path.stat().st_size == 8195

    def test_an_operation_waits_for_no_thread_that_is_taken(self, busy, file):
        port, go = busy
        with port.associate(file, "file") as handle:
            operation = handle.read(3, 0)  # the call returns, though no thread is free
            assert operation.pending
            assert port.get(0.02) is None
            go.set()
            assert {done.key for done in take(port, 2)} == {"file", "pool"}
            assert operation.result() == b"012"


class TestWholeReads:
    def test_a_read_is_short_only_at_the_end(self, port, file):
        data = pattern(300_000)
        write_at(file, data, 0)
        with port.associate(file, "file") as handle:
            buffers = [bytearray(100) for _ in range(4000)]  # more than one call takes
            handle.read(buffers, 0)
            assert take_one(port).transferred == 300_000
            assert b"".join(buffers)[:300_000] == data
            handle.read(bytearray(1000), 299_990)
            assert take_one(port).transferred == 10

    @windows_has_no("files that the kernel makes up as they are read")
    def test_a_file_that_comes_in_pieces_is_read_whole(self, port):
        """What the kernel makes up as it is read comes a page at a time."""
        with open("/proc/kallsyms", "rb", 0) as made_up:
            first = made_up.read(1 << 16)
            made_up.seek(0)
            if len(first) == 1 << 16:
                pytest.skip("this kernel gives it at once")
            with port.associate(made_up, "file") as handle:
                operation = handle.read(1 << 16, 0)
                take_one(port)
                assert len(operation.result()) == 1 << 16

    @pytest.mark.skipif(WINDOWS, reason="files have no non-blocking mode there")
    def test_a_file_in_non_blocking_mode(self, port, file):
        os.set_blocking(file.fileno(), False)
        with port.associate(file, "file") as handle:
            operation = handle.read(4, 2)
            handle.write(b"x", 9)
            take(port, 2)
            assert operation.result() == b"2345"


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")
class TestDirect:
    @pytest.fixture
    def direct(self, tmp_path, nothing_left):
        path = tmp_path / "direct"
        path.write_bytes(pattern(1 << 20))
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError:
            pytest.skip("this file system has no O_DIRECT")
        with open(descriptor, "r+b", 0) as opened:
            yield opened

    def test_reads_of_a_size(self, port, direct):
        data = pattern(1 << 20)
        with port.associate(direct, "file") as handle:
            reads = {handle.read(4096, place): place for place in range(0, 1 << 20, 4096)}
            for done in take(port, len(reads)):
                place = reads[done.overlapped]
                assert done.overlapped.result() == data[place : place + 4096]

    def test_reads_and_writes_with_memory_of_ones_own(self, port, direct):
        with mmap.mmap(-1, 8192) as memory, port.associate(direct, "file") as handle:
            memory[:] = bytes(range(256)) * 32
            handle.write(memory, 8192)
            assert take_one(port).transferred == 8192
            memory[:] = bytes(8192)
            handle.read(memory, 8192)
            assert take_one(port).transferred == 8192
            assert memory[:] == bytes(range(256)) * 32

    def test_what_is_not_aligned_is_told(self, port, direct):
        with port.associate(direct, "file") as handle:
            error = outcome(port, lambda: handle.read(4096, 1))
            assert error.errno == errno.EINVAL
            assert "O_DIRECT" in str(error)
            assert "multiples of" in str(error)

    def test_the_end_of_the_file(self, port, direct):
        os.ftruncate(direct.fileno(), 5000)
        with port.associate(direct, "file") as handle:
            operation = handle.read(8192, 0)
            assert take_one(port).transferred == 5000
            assert operation.result() == pattern(1 << 20)[:5000]


class TestCancelAndClose:
    def test_what_waits_in_line_is_aborted(self, busy, file):
        port, go = busy
        with port.associate(file, "file") as handle:
            operations = [handle.read(1, place) for place in range(3)]
            opening = port.open(file.name, key="open")
            assert handle.cancel(operations[1]) == 1
            done = take_one(port)
            assert done.overlapped is operations[1]
            assert isinstance(done.error, OperationAborted)
            assert opening.cancel()
            assert isinstance(take_one(port).error, OperationAborted)
            assert handle.cancel() == 2
            assert all(isinstance(done.error, OperationAborted) for done in take(port, 2))
            go.set()
            assert take_one(port).key == "pool"
            assert_quiet(port)

    def test_what_the_pool_has_in_line_is_aborted(self, busy_pool, file):
        port, go = busy_pool
        with port.associate(file, "file") as handle:
            operations = [handle.allocate(0, 20), handle.fsync(), handle.stat()]
            for operation in (operations[2], operations[1], operations[0]):
                assert operation.cancel()
                done = take_one(port)
                assert (done.key, done.overlapped) == ("file", operation)
                assert isinstance(done.error, OperationAborted)
            assert os.fstat(file.fileno()).st_size == 10
            under_way = [handle.fsync(), handle.stat()]
        assert all(isinstance(done.error, OperationAborted) for done in take(port, 2))
        assert not any(operation.pending for operation in under_way)
        go.set()
        assert take_one(port).key == "pool"
        assert_quiet(port)

    def test_what_stood_behind_a_cancelled_write_goes_on(self, busy, file):
        port, go = busy
        with port.associate(file, "file") as handle:
            first, second = handle.write(b"first", 0), handle.write(b"second", 2)
            assert handle.cancel(first) == 1
            go.set()
            errors = {done.overlapped: done.error for done in take(port, 3)}
            assert isinstance(errors[first], OperationAborted)
            assert errors[second] is None
            assert read_at(file, 20, 0) == b"01second89"

    def test_a_closed_handle_gives_each_operation_its_packet(self, port, file):
        for _ in range(30):
            descriptor = os.open(file.name, os.O_RDWR | getattr(os, "O_BINARY", 0))
            handle = port.associate(descriptor, "file")
            operations = [handle.read(1, place) for place in range(10)]
            operations += [handle.write(b"x", 20), handle.write(b"y", 20), handle.fsync()]
            handle.close()
            with pytest.raises(HandleClosed):
                handle.read(1, 0)
            packets = take(port, len(operations))
            assert {id(done.overlapped) for done in packets} == set(map(id, operations))
            assert {done.key for done in packets} == {"file"}
            for done in packets:
                assert done.error is None or isinstance(done.error, OperationAborted)
            assert_quiet(port)

    def test_the_port_is_closed_with_work_in_flight(self, make_port, file):
        for _ in range(30):
            port = make_port()
            handle = port.associate(os.dup(file.fileno()), "file")
            operations = [handle.read(bytearray(10), 0) for _ in range(20)]
            operations += [handle.write(b"0", 0), handle.fsync(), port.stat(file.name)]
            port.close()
            assert not any(operation.pending for operation in operations)
            os.close(handle.file)

    def test_a_dropped_port_lets_everything_go(self, engine, file):
        port = CompletionPort(engine=engine)
        handle = port.associate(file, "file")
        operations = [handle.read(100_000, 0) for _ in range(50)]
        ports = [port]
        del port
        with pytest.warns(ResourceWarning, match=r"[Pp]ort"):
            ports.clear()
        del handle, operations
        gc.collect()

    def test_buffers_live_until_the_packet_is_taken(self, port, file):
        data = pattern(500_000)
        write_at(file, data, 0)
        with port.associate(file, "file") as handle:
            for place in range(0, 500_000, 5000):
                handle.read(bytearray(5000), place, KeepsBuffer(place))
                handle.write(data[place : place + 5000], place)
            gc.collect()
            assert sum(done.transferred for done in take(port, 200)) == 1_000_000
            assert read_at(file, 500_000, 0) == data

    def test_what_a_thread_that_has_ended_posted_completes(self, port, file):
        with port.associate(file, "file") as handle:

            def post() -> None:
                for number in range(50):
                    handle.read(10, 0)
                    handle.fsync()
                    port.stat(file.name, key=number)

            Background(post).outcome()
            assert [done.error for done in take(port, 150)] == [None] * 150
            assert_quiet(port)

    def test_threads_post_take_and_cancel_at_will(self, make_port, file):
        port = make_port(4)
        os.ftruncate(file.fileno(), 100_000)
        posted = [0] * 3
        with port.associate(file, "file") as handle:

            def post(which: int) -> None:
                chance = random.Random(which)
                for _ in range(300):
                    kind = chance.randrange(6)
                    if kind == 0:
                        handle.write(bytes(100), chance.randrange(90_000))
                    elif kind == 1:
                        handle.fsync(True)
                    elif kind == 2:
                        port.stat(file.name)
                    else:
                        operation = handle.read(1000, chance.randrange(90_000))
                        if kind == 3:
                            operation.cancel()
                    posted[which] += 1

            posters = [Background(post, which) for which in range(3)]
            packets = take(port, 900)
            for poster in posters:
                poster.outcome()
            assert sum(posted) == 900
            assert len({id(done.overlapped) for done in packets}) == 900
            for done in packets:
                assert done.error is None or isinstance(done.error, OperationAborted)
            assert_quiet(port)


class KeepsBuffer(Overlapped):
    def __init__(self, place: int) -> None:
        self.place = place


@needs_fork
def test_a_child_of_fork_can_not_use_the_port_and_the_parent_can(engine, tmp_path):
    script = """
        import os, sys
        from completionport import CompletionPort, PortForked

        path = os.environ["FILE"]
        with open(path, "w+b", 0) as file, CompletionPort() as port:
            handle = port.associate(file, "file")
            operations = [handle.write(bytes(1000), 1000 * number) for number in range(50)]
            child = os.fork()
            if child == 0:
                refused = 0
                for start in (
                    lambda: port.open(path), lambda: port.stat(path), handle.fsync,
                    lambda: port.close_descriptor(file.fileno()),
                ):
                    try:
                        start()
                    except PortForked:
                        refused += 1
                os._exit(refused)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
            for _ in operations:
                assert port.get(20).transferred == 1000
            assert os.path.getsize(path) == 50_000
    """
    run_python(script, engine=engine, FILE=str(tmp_path / "file"))
