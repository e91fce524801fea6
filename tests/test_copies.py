"""Copying a file by its name, in one go."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from completionport import Operation, OperationAborted, PortClosed
from support import (
    LONG,
    WINDOWS,
    WINE,
    Background,
    assert_quiet,
    needs_fifos,
    needs_links,
    pattern,
    run_python,
    take,
    take_one,
    wait_until,
    windows_has_no,
)

PIECE = 2**23
"""Bytes between two looks whether a copy is to go on."""
needs_modes = windows_has_no("mode of a file that says who may do what")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(pattern(12345))
    os.utime(path, ns=(1_000_000_000, 10**18 + 500))
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A file that is long to copy."""
    path = tmp_path_factory.mktemp("long") / "long"
    data = pattern(2**20)
    with path.open("wb") as file:
        if WINE:
            os.truncate(file.fileno(), 2**29)  # it does not ask whether it is to go on
        else:
            for _ in range(2**9):
                file.write(data)
    yield path
    path.unlink()


def assert_refused(port, source, target, kind, number=None):
    """The copy fails, names both files, and changes nothing."""
    was_there = target.exists()
    operation = port.copy_file(source, target)
    done = take_one(port)
    assert isinstance(done.error, kind)
    assert number is None or done.error.errno == number
    assert (done.error.filename, done.error.filename2) == (str(source), str(target))
    assert str(done.error).endswith(f": {str(source)!r} -> {str(target)!r}")
    assert done.transferred == 0
    with pytest.raises(kind):
        operation.result()
    assert target.exists() == was_there


def room(path):
    """Bytes that the file takes on the disk."""
    return path.stat().st_blocks * 512


MIB = 2**20
SPARSE = {
    "nothing": (300 * MIB, []),
    "one in the middle": (300 * MIB, [100 * MIB]),
    "at the start": (50 * MIB, [0]),
    "at the end": (50 * MIB, [50 * MIB - 5000]),
    "not at a block": (5 * MIB + 77, [MIB + 5, 3 * MIB - 4]),
    "many": (64 * MIB, [number * 2 * MIB + 100 for number in range(32)]),
}


@windows_has_no("holes in a file that it copies")
class TestHoles:
    @pytest.fixture(params=["", "/dev/shm"], ids=["on one file system", "between two"])
    def folder(self, request, tmp_path):
        """Where the copy goes."""
        with tempfile.TemporaryDirectory(dir=request.param or tmp_path) as folder:
            yield Path(folder)

    def make(self, path, size, places):
        with path.open("wb") as file:
            file.truncate(size)
            for place in places:
                os.pwrite(file.fileno(), pattern(5000, place), place)
        if room(path) > size / 2:
            pytest.skip("this file system has no holes")

    @pytest.mark.parametrize("name", SPARSE)
    def test_they_stay_holes(self, port, tmp_path, folder, name):
        size, places = SPARSE[name]
        source, target = tmp_path / "source", folder / "target"
        self.make(source, size, places)
        port.copy_file(source, target)
        done = take_one(port)
        assert (done.error, done.transferred) == (None, size)
        assert target.stat().st_size == size
        assert room(target) <= room(source) + 65536
        with target.open("rb") as copied, source.open("rb") as was:
            for place in [0, max(size - 20_000, 0), *places]:
                begin = max(place - 10_000, 0)
                assert os.pread(copied.fileno(), 30_000, begin) == os.pread(
                    was.fileno(), 30_000, begin
                )

    def test_any_mix_of_data_and_holes(self, port, tmp_path, folder):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        for number in range(20):
            source, target = tmp_path / f"source {number}", folder / f"target {number}"
            size = chance.randrange(1, 2_000_000)
            with source.open("wb") as file:
                file.truncate(size)
                for _ in range(chance.randrange(8)):
                    place = chance.randrange(size)
                    data = pattern(chance.randrange(1, 100_000), place)[: size - place]
                    os.pwrite(file.fileno(), data, place)
            port.copy_file(source, target)
            assert take_one(port).transferred == size
            assert target.read_bytes() == source.read_bytes()
            assert room(target) <= room(source) + 65536

    def test_the_limit_counts_them(self, port, tmp_path, folder):
        self.make(tmp_path / "source", 10 * MIB, [MIB])
        port.copy_file(tmp_path / "source", folder / "target", at_most=10 * MIB - 1)
        assert take_one(port).error.errno == errno.EFBIG
        port.copy_file(tmp_path / "source", folder / "target", at_most=10 * MIB)
        assert take_one(port).transferred == 10 * MIB

    def test_one_that_becomes_shorter_meanwhile(self, port, tmp_path, folder):
        source = tmp_path / "source"
        ended = threading.Event()
        self.make(source, 8 * MIB, [MIB * number for number in range(8)])

        def change():
            while not ended.is_set():
                os.truncate(source, MIB)
                os.truncate(source, 8 * MIB)

        other = Background(change)
        for number in range(100):
            target = folder / f"target {number}"
            port.copy_file(source, target)
            done = take_one(port)
            assert done.error is None
            assert done.transferred == target.stat().st_size
            target.unlink()
        ended.set()
        other.outcome()


class TestCopy:
    def test_it_has_the_data_and_the_times(self, port, source, tmp_path):
        operation = port.copy_file(source, tmp_path / "target", key="copy")
        assert operation.operation is Operation.COPY
        assert tuple(take_one(port)) == (12345, "copy", operation, None)
        assert operation.result() == 12345
        status = (tmp_path / "target").stat()
        assert status.st_mtime_ns == 10**18 + 500
        assert WINDOWS or status.st_atime_ns == 1_000_000_000
        assert (tmp_path / "target").read_bytes() == source.read_bytes()

    @pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16 + 1, PIECE, 2 * PIECE + 12345])
    def test_of_any_size(self, port, tmp_path, size):
        data = pattern(size)
        (tmp_path / "source").write_bytes(data)
        port.copy_file(tmp_path / "source", tmp_path / "target")
        assert take_one(port).transferred == size
        assert (tmp_path / "target").read_bytes() == data

    @needs_modes
    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o444, 0o400, 0o777])
    def test_it_has_the_mode_whatever_the_umask(self, port, source, tmp_path, mode):
        source.chmod(mode)
        before = os.umask(0o077)
        try:
            port.copy_file(source, tmp_path / "target")
            assert take_one(port).error is None
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == mode

    @needs_modes
    def test_whoever_owns_it_does_not_lend_his_rights(self, port, source, tmp_path):
        source.chmod(0o6755)
        port.copy_file(source, tmp_path / "target")
        assert take_one(port).error is None
        assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o755

    @needs_links
    def test_a_link_is_followed(self, port, source, tmp_path):
        (tmp_path / "link").symlink_to(source)
        port.copy_file(tmp_path / "link", tmp_path / "target")
        assert take_one(port).error is None
        assert not (tmp_path / "target").is_symlink()
        assert (tmp_path / "target").read_bytes() == source.read_bytes()

    @windows_has_no("/proc, whose files say that they are empty")
    def test_a_file_that_says_it_is_empty_and_is_not(self, port, tmp_path):
        port.copy_file("/proc/self/limits", tmp_path / "target")
        assert take_one(port).transferred > 0
        assert (tmp_path / "target").read_bytes() == Path("/proc/self/limits").read_bytes()

    def test_between_two_file_systems(self, port, tmp_path):
        memory = Path("/dev/shm")
        if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system here")
        data = pattern(PIECE + 12345)
        (tmp_path / "source").write_bytes(data)
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            port.copy_file(tmp_path / "source", Path(folder) / "target")
            assert take_one(port).error is None
            assert (Path(folder) / "target").read_bytes() == data

    def test_many_at_a_time_by_several_threads(self, port, tmp_path):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        for number in range(300):
            data = pattern(chance.randrange(20000), number)
            (tmp_path / f"source {number}").write_bytes(data)

        def start(first: int) -> None:
            for number in range(first, first + 100):
                names = tmp_path / f"source {number}", tmp_path / f"target {number}"
                port.copy_file(*names, key=number)

        threads = [Background(start, first) for first in (0, 100, 200)]
        for done in take(port, 300):
            assert done.error is None
            copied = (tmp_path / f"target {done.key}").read_bytes()
            assert copied == (tmp_path / f"source {done.key}").read_bytes()
            assert done.transferred == len(copied)
        for thread in threads:
            thread.outcome()
        assert_quiet(port)

    def test_one_that_is_longer_than_wanted_is_not_begun(self, port, source, tmp_path):
        port.copy_file(source, tmp_path / "target", at_most=12344)
        error = take_one(port).error
        assert error.errno == errno.EFBIG
        assert not (tmp_path / "target").exists()
        port.copy_file(source, tmp_path / "target", at_most=12345)
        assert take_one(port).transferred == 12345

    @pytest.mark.parametrize(
        "name", ["/proc/self/limits", "/sys/kernel/mm/transparent_hugepage/enabled"]
    )
    @windows_has_no("/proc and /sys, whose files do not say how long they are")
    def test_the_limit_holds_for_what_is_copied(self, port, tmp_path, name):
        try:
            size = len(Path(name).read_bytes())
        except OSError:
            pytest.skip("there is no such file here")
        assert Path(name).stat().st_size != size
        for at_most in (0, 1, size - 1):
            port.copy_file(name, tmp_path / "target", at_most=at_most)
            assert take_one(port).error.errno == errno.EFBIG
            assert not (tmp_path / "target").exists()
        for at_most in (size, size + 1, 2**63 - 1):
            port.copy_file(name, tmp_path / "target", at_most=at_most)
            assert take_one(port).transferred == size
            assert (tmp_path / "target").read_bytes() == Path(name).read_bytes()
            (tmp_path / "target").unlink()

    @pytest.mark.parametrize("at_start", [0, 1000])
    def test_the_limit_holds_for_a_file_that_grows(self, port, tmp_path, at_start):
        most = 100_000
        (tmp_path / "source").write_bytes(pattern(at_start))
        ended = threading.Event()

        def grow():
            while not ended.is_set():
                if (tmp_path / "source").stat().st_size > most:
                    with contextlib.suppress(OSError):
                        os.truncate(tmp_path / "source", at_start)
                with contextlib.suppress(OSError), (tmp_path / "source").open("ab") as file:
                    file.write(bytes(5000))

        other = Background(grow)
        for number in range(200):
            target = tmp_path / f"target {number}"
            port.copy_file(tmp_path / "source", target, at_most=most)
            done = take_one(port)
            if done.error is None:
                assert done.transferred == target.stat().st_size <= most
            else:
                # Windows may refuse it for what the other thread is at.
                assert done.error.errno == errno.EFBIG or WINDOWS
                assert not target.exists()
        ended.set()
        other.outcome()

    def test_arguments(self, port):
        for at_most, kind in ((-1, ValueError), (2**63, ValueError), ("x", TypeError)):
            with pytest.raises(kind, match="at_most"):
                port.copy_file("x", "y", at_most=at_most)
        for arguments in ((3, "x"), ("x", 3), ("x", "y", 5)):
            with pytest.raises(TypeError):
                port.copy_file(*arguments)
        with pytest.raises(TypeError, match="Overlapped"):
            port.copy_file("x", "y", overlapped=5)
        with pytest.raises(ValueError, match="null byte"):
            port.copy_file("x", "y\0")
        assert_quiet(port)

    def test_a_closed_port_refuses(self, port, source, tmp_path):
        port.close()
        with pytest.raises(PortClosed):
            port.copy_file(source, tmp_path / "target")
        assert not (tmp_path / "target").exists()


class TestRefused:
    def test_a_target_that_exists_stays_as_it_is(self, port, source, tmp_path):
        (tmp_path / "target").write_bytes(b"mine")
        assert_refused(port, source, tmp_path / "target", FileExistsError)
        assert (tmp_path / "target").read_bytes() == b"mine"

    def test_a_file_onto_itself(self, port, source):
        assert_refused(port, source, source, FileExistsError)
        assert source.read_bytes() == pattern(12345)

    def test_what_is_not_there(self, port, source, tmp_path):
        assert_refused(port, tmp_path / "nothing", tmp_path / "target", FileNotFoundError)
        assert_refused(port, source, tmp_path / "no folder" / "target", FileNotFoundError)

    def test_a_directory(self, port, tmp_path):
        assert_refused(port, tmp_path, tmp_path / "target", IsADirectoryError)

    @needs_fifos
    def test_a_named_pipe_whose_writer_goes_on_waiting(self, port, tmp_path):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)

        def write() -> None:
            with fifo.open("wb", buffering=0) as file:
                file.write(b"kept")

        writer = Background(write)
        assert_refused(port, fifo, tmp_path / "target", OSError, errno.EINVAL)
        with fifo.open("rb") as reader:
            assert reader.read() == b"kept"
        writer.outcome()

    @windows_has_no("limit of how large a file may become")
    def test_without_room_nothing_is_left_behind(self, engine, tmp_path):
        run_python(
            """
            import errno, os, resource
            from completionport import CompletionPort
            folder = os.environ["FOLDER"]
            with open(f"{folder}/source", "wb") as file:
                file.truncate(2**25)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))
            with CompletionPort() as port:
                port.copy_file(f"{folder}/source", f"{folder}/target")
                error = port.get(60).error
            assert error is not None and error.errno == errno.EFBIG, error
            assert os.listdir(folder) == ["source"], os.listdir(folder)
            """,
            engine=engine,
            FOLDER=str(tmp_path),
        )


def cancelled(port, source, target, meanwhile=lambda: None):
    """Cancel a copy while it is under way, once more where it was over before that."""
    for _ in range(10):
        operation = port.copy_file(source, target)
        wait_until(target.exists, "the copy under way")
        meanwhile()
        if operation.cancel():
            assert isinstance(take_one(port).error, OperationAborted)
            return
        assert take_one(port).error is None
        target.unlink(missing_ok=True)
    raise AssertionError("each copy is over before it can be cancelled")


class TestCancelAndClose:
    def test_one_that_waits_in_line(self, make_port, source, tmp_path):
        port = make_port(pool_threads=1)
        begun, go = threading.Event(), threading.Event()

        def work() -> bool:
            begun.set()
            return go.wait(LONG)

        port.submit(work)
        assert begun.wait(LONG)
        operation = port.copy_file(source, tmp_path / "target")
        assert operation.cancel()
        assert isinstance(take_one(port).error, OperationAborted)
        go.set()
        assert take_one(port).overlapped.result()
        assert not (tmp_path / "target").exists()

    def test_one_under_way_leaves_no_target(self, port, long, tmp_path):
        target = tmp_path / "target"
        cancelled(port, long, target)
        assert not target.exists()
        assert_quiet(port)

    @windows_has_no("new name for a file that is being written")
    @windows_has_no("way to put a file into the place of one that is being written")
    def test_what_somebody_else_has_put_into_the_targets_place_stays(self, port, long, tmp_path):
        def put_another():
            (tmp_path / "other").write_bytes(b"mine")
            (tmp_path / "other").replace(target)

        target = tmp_path / "target"
        cancelled(port, long, target, put_another)
        assert target.read_bytes() == b"mine"

    @windows_has_no("other name for a file that is being written")
    def test_one_whose_target_got_another_name_is_aborted_all_the_same(self, port, long, tmp_path):
        target = tmp_path / "target"
        cancelled(port, long, target, lambda: target.replace(tmp_path / "elsewhere"))
        assert_quiet(port)

    def test_a_port_closed_under_way_leaves_no_target(self, make_port, long, tmp_path):
        port = make_port()
        target = tmp_path / "target"
        for _ in range(10):
            operation = port.copy_file(long, target)
            wait_until(target.exists, "the copy under way")
            if port.stats()["queued"] == 0:
                break
            take_one(port)
            target.unlink()
        port.close()
        assert isinstance(operation.error, OperationAborted)
        wait_until(lambda: not target.exists(), "no target", LONG)

    def test_cancelled_at_any_moment_there_is_a_whole_copy_or_none(self, port, tmp_path):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        data = pattern(3 * PIECE)
        (tmp_path / "source").write_bytes(data)
        target = tmp_path / "target"
        for _ in range(20):
            operation = port.copy_file(tmp_path / "source", target)
            for _ in range(chance.randrange(2000)):
                pass
            if chance.random() < 0.7:
                wait_until(lambda: target.exists() or port.stats()["queued"], "it under way")
            operation.cancel()
            done = take_one(port)
            if done.error is None:
                assert target.read_bytes() == data
                target.unlink()
            else:
                assert isinstance(done.error, OperationAborted)
                assert not target.exists()
        assert_quiet(port)
