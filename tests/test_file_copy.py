"""examples/file_copy.py, run as a program."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from support import (
    LONG,
    STOP_SIGNALS,
    WINDOWS,
    can_make_links,
    needs_fifos,
    pattern,
    stop_process,
    wait_until,
    windows_has_no,
)

PROGRAM = Path(__file__).parent.parent / "examples/file_copy.py"


def copy(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def assert_same(one: Path, other: Path) -> None:
    first, second = one.lstat(), other.lstat()
    assert first.st_mode == second.st_mode, one
    if one.is_symlink():
        assert os.readlink(one) == os.readlink(other)
        return
    assert first.st_mtime_ns == second.st_mtime_ns, one
    if one.is_dir():
        assert sorted(os.listdir(one)) == sorted(os.listdir(other))
        for name in os.listdir(one):
            assert_same(one / name, other / name)
    else:
        assert one.read_bytes() == other.read_bytes()


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "source"
    for number in range(200):
        folder = root / f"folder {number % 7}" / f"{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"file {number}"
        path.write_bytes(pattern(number * 100, number))
        path.chmod(0o600 | number % 0o100)
        os.utime(path, ns=(1_000_000_000, 10**18 + number))
    (root / "big").write_bytes(pattern(5_000_001))
    (root / "empty folder").mkdir()
    if can_make_links():
        (root / "link").symlink_to("big")
        (root / "link to nothing").symlink_to("nothing")
    os.chmod(root / "folder 1", 0o500)
    yield root
    os.chmod(root / "folder 1", 0o700)


def test_a_tree_is_copied_with_modes_and_times(engine, tree, tmp_path):
    target = tmp_path / "target"
    done = copy(tree, target, "--engine", engine)
    assert done.stdout == "201 files copied\n"
    assert_same(tree, target)
    os.chmod(target / "folder 1", 0o700)


@windows_has_no("set-user-ID, set-group-ID and sticky bits")
class TestBitsThatGoWithAnOwner:
    def test_they_are_not_copied(self, engine, tmp_path):
        root = tmp_path / "source"
        (root / "folder").mkdir(parents=True)
        (root / "small").write_bytes(b"small")
        (root / "large").write_bytes(pattern(2**23 + 1))
        for path in (root / "folder", root / "small", root / "large"):
            path.chmod(0o7751)
        copy(root, tmp_path / "copy", "--engine", engine)
        for name in ("folder", "small", "large"):
            status = (tmp_path / "copy" / name).stat()
            assert stat.S_IMODE(status.st_mode) == 0o751, name

    def test_a_folder_in_one_that_gives_its_group_to_what_is_made_there_does_so_too(
        self, engine, tmp_path
    ):
        (tmp_path / "source").mkdir(mode=0o750)
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o2755)
        (shared / "made").mkdir(mode=0o750)
        copy(tmp_path / "source", shared / "copy", "--engine", engine)
        assert (shared / "copy").stat().st_mode == (shared / "made").stat().st_mode


def test_one_file_is_copied(engine, tree, tmp_path):
    done = copy(tree / "big", tmp_path / "copy", "--engine", engine, "--no-check")
    assert done.stdout == "1 file copied\n"
    assert_same(tree / "big", tmp_path / "copy")


def test_what_can_not_be_copied_is_one_line(engine, tree, tmp_path):
    existing = tmp_path / "existing"
    existing.write_bytes(b"mine")
    not_there = "" if WINDOWS else "No such file"  # Windows has other words for it
    for source, target, reason in (
        (tmp_path / "nothing", tmp_path / "copy", not_there or "nothing"),
        (tree / "big", existing, "exists already"),
        (tree / "big", tmp_path / "no folder" / "copy", not_there or "no folder"),
        (tree, tree / "inside", "lies in"),
    ):
        done = copy(source, target, "--engine", engine, status=1)
        assert done.stderr.startswith("file_copy: ")
        assert done.stderr.count("\n") == 1
        assert reason in done.stderr
    assert existing.read_bytes() == b"mine"


@pytest.fixture
def big(tmp_path):
    """A file of several pieces and blocks, and a part of one."""
    path = tmp_path / "big"
    path.write_bytes(pattern(3 * 2**23 + 2**18 + 12345))
    return path


@pytest.mark.parametrize("options", [(), ("--no-check",)], ids=["checked", "not checked"])
class TestFileOfSeveralPieces:
    def test_it_is_copied(self, engine, big, tmp_path, options):
        copy(big, tmp_path / "copy", "--engine", engine, *options)
        assert_same(big, tmp_path / "copy")

    def test_it_is_copied_between_two_file_systems(self, engine, big, tmp_path, options):
        memory = Path("/dev/shm")
        if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no second file system here")
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            target = Path(folder) / "copy"
            copy(big, target, "--engine", engine, *options)
            assert_same(big, target)

    @windows_has_no("holes in a file that it copies")
    @pytest.mark.parametrize("places", [[], [0], [60], [10, 11, 35, 63]])
    @pytest.mark.parametrize("where", ["", "/dev/shm"], ids=["here", "two file systems"])
    def test_its_holes_stay_holes(self, engine, tmp_path, options, places, where):
        source = tmp_path / "sparse"
        with source.open("wb") as file:
            file.truncate(64 * 2**20 + 77)
            for place in places:
                os.pwrite(file.fileno(), pattern(3 * 2**18, place), place * 2**20 + 100)
        with tempfile.TemporaryDirectory(dir=where or tmp_path) as folder:
            target = Path(folder) / "copy"
            copy(source, target, "--engine", engine, *options)
            assert_same(source, target)
            assert target.stat().st_blocks <= source.stat().st_blocks + 128


@pytest.fixture(params=[True, False], ids=["kernel copies", "reads and writes"])
def program(request, monkeypatch):
    """The program as a module, so that a test can put itself between two of its steps."""
    spec = importlib.util.spec_from_file_location(PROGRAM.stem, PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not request.param:
        monkeypatch.setattr(module, "KERNEL_COPIES", False)
    elif not module.KERNEL_COPIES:
        pytest.skip("Windows copies files by name, not between two that are open (copy_file_range)")
    return module


def change_before_it_is_read_back(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> int:
    """Have one byte of each target changed after it was written; returned: its offset."""
    offset = 2**23 + 2**18 + 5
    read_back = program.LargeFile.read_back

    def meddling(self, block):
        if block.offset <= offset < block.offset + block.size:
            with open(self.names[1], "r+b", buffering=0) as file:
                file.seek(offset)
                (byte,) = file.read(1)
                file.seek(offset)
                file.write(bytes([byte ^ 1]))
        read_back(self, block)

    monkeypatch.setattr(program.LargeFile, "read_back", meddling)
    return offset


def test_what_was_not_written_as_it_was_read_is_found(engine, program, big, tmp_path, monkeypatch):
    offset = change_before_it_is_read_back(program, monkeypatch)
    with pytest.raises(program.Failed, match=f"differs from .* at {offset // 2**18 * 2**18}"):
        program.copy(str(big), str(tmp_path / "copy"), engine, True, True)


def test_a_source_that_became_shorter_is_told(engine, program, big, tmp_path, monkeypatch):
    allocated = program.LargeFile.allocated

    def shortening(self, step):
        os.truncate(big, 2**23 + 1000)
        allocated(self, step)

    monkeypatch.setattr(program.LargeFile, "allocated", shortening)
    with pytest.raises(program.Failed, match="became shorter"):
        program.copy(str(big), str(tmp_path / "copy"), engine, False, True)


@needs_fifos
def test_what_is_no_file_is_refused(engine, tmp_path):
    source = tmp_path / "pipe"
    os.mkfifo(source)
    done = copy(source, tmp_path / "copy", "--engine", engine, status=1)
    assert "neither a file" in done.stderr


def test_an_engine_that_there_is_not_is_one_line(tree, tmp_path):
    done = copy(tree / "big", tmp_path / "copy", "--engine", "none", status=1)
    [line] = done.stderr.splitlines()
    assert line.startswith("file_copy: unknown engine")


@windows_has_no("pipe that tells a writer at once that its reader has gone")
def test_a_reader_that_has_gone_is_no_error(engine, tree, tmp_path):
    command = [sys.executable, str(PROGRAM), tree / "big", tmp_path / "copy", "--engine", engine]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr
    assert done.returncode == 0
    assert_same(tree / "big", tmp_path / "copy")


def test_ctrl_c_before_there_is_anything_to_take_away_is_one_line(
    program, tree, tmp_path, monkeypatch, capsys
):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "copy", interrupted)
    monkeypatch.setattr(sys, "argv", ["file_copy.py", str(tree), str(tmp_path / "copy")])
    assert program.main() == 130
    assert capsys.readouterr().err == "file_copy: interrupted\n"


def assert_whole(source: Path, target: Path) -> set[str]:
    """Each file that a copy has left is as it was; returned: their names."""
    names = set(os.listdir(target))
    for name in names:
        assert (source / name).read_bytes() == (target / name).read_bytes(), name
    return names


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file that is long to copy."""
    path = tmp_path_factory.mktemp("large") / "large"
    data = pattern(2**20)
    with path.open("wb") as file:
        if WINDOWS:
            file.truncate(2**31)  # a second passes until it has sent a signal
        else:
            for _ in range(2**9):
                file.write(data)
    yield path
    path.unlink()


class TestStopped:
    """By a signal, in the midst of a large file."""

    @pytest.fixture
    def source(self, large, tmp_path):
        """With small files beside it."""
        root = tmp_path / "source"
        root.mkdir()
        for number in range(20):
            (root / f"{number}").write_bytes(pattern(number))
        os.link(large, root / "large")
        return root

    @pytest.fixture
    def begin(self, engine, tmp_path):
        """Starts a copy, and waits for the target."""
        with contextlib.ExitStack() as programs:

            def start(source, target, made):
                program = subprocess.Popen(
                    [sys.executable, str(PROGRAM), source, target, "--engine", engine],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
                programs.enter_context(program)
                programs.callback(program.kill)
                wait_until(lambda: made.exists() or program.poll() is not None)
                return program

            yield start

    @pytest.fixture
    def stopped(self, begin):
        """Stops a copy in its midst, once more where it was over before the signal came.

        Returned: its status, and what it said.
        """

        def stop(source, target, made, number=signal.SIGINT, meanwhile=lambda: None, times=1):
            for _ in range(10):
                program = begin(source, target, made)
                meanwhile()
                for _ in range(times):
                    stop_process(program, number)
                said = program.communicate(timeout=LONG)
                if program.returncode != 0:
                    return program.returncode, *said
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            raise AssertionError("each copy is over before the signal comes")

        return stop

    @pytest.mark.parametrize(
        "number", [*STOP_SIGNALS, *([] if WINDOWS else [signal.SIGHUP])], ids=lambda n: n.name
    )
    def test_it_leaves_only_what_is_whole(self, source, tmp_path, stopped, number):
        target = tmp_path / "copy"
        assert stopped(source, target, target / "large", number) == (
            128 + number,
            "",
            f"file_copy: stopped by {number.name}: {target} is not whole\n",
        )
        assert "large" not in assert_whole(source, target)

    @windows_has_no("Ctrl-C twice in so short a time")
    def test_two_signals_are_as_one(self, source, tmp_path, stopped):
        target = tmp_path / "copy"
        assert stopped(source / "large", target, target, times=2) == (
            130,
            "",
            f"file_copy: stopped by SIGINT: nothing of {target} is there\n",
        )
        assert not target.exists()

    @windows_has_no("name that can be given to another file while it is open")
    def test_who_has_put_another_file_there_keeps_it(self, source, tmp_path, stopped):
        def put_another():
            other.write_bytes(b"mine")
            os.replace(other, target)

        target, other = tmp_path / "copy", tmp_path / "other"
        said = stopped(source / "large", target, target, meanwhile=put_another)
        assert said[1:] == ("", "file_copy: stopped by SIGINT\n")
        assert target.read_bytes() == b"mine"

    @windows_has_no("signals that a program was told to ignore")
    def test_one_that_it_was_told_to_ignore_does_not_stop_it(self, source, tmp_path, begin):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            program = begin(source, tmp_path / "copy", tmp_path / "copy")
        finally:
            signal.signal(signal.SIGHUP, before)
        program.send_signal(signal.SIGHUP)
        assert program.communicate(timeout=LONG) == ("21 files copied\n", "")

    def test_it_is_noticed_where_there_are_only_folders(self, source, tmp_path, stopped):
        root = tmp_path / "folders"
        for number in range(3000):
            (root / f"{number}").mkdir(parents=True)
        target = tmp_path / "copy"
        _, _, errors = stopped(root, target, target)
        assert errors == f"file_copy: stopped by SIGINT: {target} is not whole\n"
        assert len(list(target.iterdir())) < 3000


@windows_has_no("limit of a file's size")
class TestNoRoom:
    @pytest.fixture
    def source(self, tmp_path):
        root = tmp_path / "source"
        root.mkdir()
        for number in range(24):
            (root / f"{number}").write_bytes(pattern(2**20, number))
        (root / "large").write_bytes(pattern(2**24 + 1))
        return root

    @pytest.fixture
    def limit(self):
        """Files of this process and its children may not become longer than 12 MiB."""
        resource = pytest.importorskip("resource")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def test_a_file_that_may_not_be_so_long_is_one_line(self, engine, source, tmp_path, limit):
        target = tmp_path / "copy"
        done = copy(source, target, "--engine", engine, status=1)
        large = target / "large"
        assert done.stderr == f"file_copy: {large}: File too large: {target} is not whole\n"
        assert "large" not in assert_whole(source, target)
        # The same of the file alone.
        done = copy(source / "large", tmp_path / "one", "--engine", engine, status=1)
        assert f"nothing of {tmp_path / 'one'} is there" in done.stderr
        assert not (tmp_path / "one").exists()

    def test_a_write_that_fails_in_the_midst_leaves_nothing(
        self, engine, program, source, tmp_path, monkeypatch, limit
    ):
        """Of a file system that can't set space aside."""
        monkeypatch.setattr(program.LargeFile, "set_aside", lambda self: self.allocated(None))
        target = tmp_path / "copy"
        with pytest.raises(program.Failed, match="File too large: nothing of"):
            program.copy(str(source / "large"), str(target), engine, True, True)
        assert not target.exists()

    def test_a_disk_that_is_full_is_one_line(self, engine, source, tmp_path):
        """A file system of 16 MiB, of this test alone."""
        disk = tmp_path / "disk"
        disk.mkdir()
        script = """
            import os, subprocess, sys

            disk, source, *command = sys.argv[1:]
            if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk]):
                sys.exit(77)
            for name in ("large", "."):
                target = os.path.join(disk, "copy")
                done = subprocess.run(
                    [*command, os.path.join(source, name), target], capture_output=True, text=True
                )
                print(done.returncode, os.path.exists(target), done.stderr, end="")
            for name in os.listdir(target):
                with (
                    open(os.path.join(source, name), "rb") as one,
                    open(os.path.join(target, name), "rb") as other,
                ):
                    print(name, one.read() == other.read())
            """
        command = [sys.executable, "-c", textwrap.dedent(script), str(disk), str(source)]
        command += [sys.executable, str(PROGRAM), "--engine", engine]
        unshare = shutil.which("unshare")
        if unshare is None:
            pytest.skip("there is no unshare(1) here")
        command = [unshare, "--user", "--map-root-user", "--mount", *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode == 77 or done.stderr.startswith("unshare"):
            pytest.skip(f"no file system can be mounted here: {done.stderr}")
        alone, tree, *files = done.stdout.splitlines()
        assert done.stderr == ""
        full = "No space left on device"
        target = disk / "copy"
        assert alone == f"1 False file_copy: {target}: {full}: nothing of {target} is there"
        assert tree.startswith("1 True file_copy: ")
        assert tree.endswith(f"{full}: {target} is not whole")
        assert not [line for line in files if not line.endswith(" True")]
        assert "large True" not in files


def on_a_terminal(*arguments: object) -> str:
    """What the program shows on standard error, which is a terminal of 100 columns."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    outside, inside = pty.openpty()
    with (
        open(outside, "rb", buffering=0) as terminal,
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *map(str, arguments)],
            stderr=inside,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        ) as program,
    ):
        os.close(inside)
        shown = b""
        # The end of the program is an error here: there is no other side any more.
        with contextlib.suppress(OSError):
            while piece := terminal.read(65536):
                shown += piece
        assert program.wait(60) == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


@windows_has_no("pseudo-terminals, on which it would be shown")
class TestProgressBar:
    def test_it_shows_how_much_is_copied_and_checked(self, engine, tree, tmp_path):
        pytest.importorskip("rich", reason="without rich there is no bar")
        shown = on_a_terminal(tree / "big", tmp_path / "copy", "--engine", engine)
        last = shown.rstrip().splitlines()[-1]
        assert last.startswith("copy, check")
        assert "100%" in last
        assert "10.0/10.0 MB" in last  # each byte counts once written and once read back
        assert_same(tree / "big", tmp_path / "copy")

    def test_without_the_check_each_byte_counts_once(self, engine, tree, tmp_path):
        pytest.importorskip("rich", reason="without rich there is no bar")
        shown = on_a_terminal(tree / "big", tmp_path / "copy", "--engine", engine, "--no-check")
        assert "5.0/5.0 MB" in shown.rstrip().splitlines()[-1]

    def test_quiet_shows_none(self, engine, tree, tmp_path):
        assert on_a_terminal(tree / "big", tmp_path / "copy", "--engine", engine, "--quiet") == ""
