"""examples/file_copy.py, run as a program."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import WINDOWS, can_make_links, needs_descriptors, pattern

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


@needs_descriptors
def test_what_is_no_file_is_refused(engine, tmp_path):
    source = tmp_path / "pipe"
    os.mkfifo(source)
    done = copy(source, tmp_path / "copy", "--engine", engine, status=1)
    assert "neither a file" in done.stderr


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


@needs_descriptors
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
