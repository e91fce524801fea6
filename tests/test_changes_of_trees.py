"""Changes of a tree that is moved about: what is told leads to what is there, under its name."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import shutil
from pathlib import Path

import pytest

from completionport import Change, ChangeAction, open_directory
from support import WINDOWS, Background, take_one

SEED = int(os.environ.get("COMPLETIONPORT_SEED", "0")) or random.randrange(1, 1 << 32)
ADDED, REMOVED, MODIFIED = ChangeAction.ADDED, ChangeAction.REMOVED, ChangeAction.MODIFIED
OLD, NEW = ChangeAction.RENAMED_OLD_NAME, ChangeAction.RENAMED_NEW_NAME

pytestmark = pytest.mark.skipif(
    WINDOWS, reason="Windows itself follows trees, drops what has no room, and Wine misses folders"
)


def exchange(one: Path, other: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where the file system has none."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    return (
        hasattr(library, "renameat2") and library.renameat2(-100, names[0], -100, names[1], 2) == 0
    )


class Watched:
    """A watched tree, a place outside of it, and what the changes that were told make of it."""

    def __init__(self, port, folder: Path):
        self.port = port
        self.inside = folder / "inside"
        self.outside = folder / "outside"
        for made in (self.inside, self.outside):
            made.mkdir()
        self.handle = port.associate(open_directory(self.inside), "key")
        self.told: set[str] = set()
        self.changes: list[Change] = []
        self.untold: set[int] = set()  # inodes of what came along with a folder

    def first(self) -> None:
        """Begin to watch."""
        self.untold |= {path.lstat().st_ino for path in self.inside.rglob("*")}
        self.handle.read_changes(True)
        assert self.port.get(0) is None
        self.handle.cancel()
        take_one(self.port)

    def came(self, path: Path) -> None:
        """It was moved here: what is in it need not be told."""
        self.untold |= {one.lstat().st_ino for one in path.rglob("*")}

    def made(self, path: Path) -> None:
        """It is new, whatever had its inode before."""
        self.untold.discard(path.lstat().st_ino)

    def read(self, until: str | None = None, size: int = 65536) -> None:
        """What there is now, or until this one was told."""
        seen = len(self.changes)
        while True:
            operation = self.handle.read_changes(True, size=size)
            done = self.port.get(0) if until is None else take_one(self.port)
            if done is None:
                operation.cancel()
                done = take_one(self.port)
                if done.error is not None:
                    return
            assert done.error is None
            for change in done.overlapped.result():
                self.apply(change)
            if until is not None and any(one.name == until for one in self.changes[seen:]):
                return

    def apply(self, change: Change) -> None:
        self.changes.append(change)
        if change.action in (ADDED, NEW):
            self.told.add(change.name)
        if change.action is REMOVED:
            self.told -= {one for one in self.told if is_in(one, change.name)}
        elif change.action is OLD:
            self.old = change.name
        elif change.action is NEW:
            for one in [one for one in self.told if is_in(one, self.old) and one != change.name]:
                self.told.remove(one)
                self.told.add(change.name + one[len(self.old) :])

    def there(self) -> dict[str, int]:
        return {
            str(path.relative_to(self.inside)): path.lstat().st_ino
            for path in self.inside.rglob("*")
        }

    def check(self) -> None:
        """All that is there was told or came along, and what was told is there."""
        there = self.there()
        assert not self.told - set(there), "told and not there"
        missing = {
            name for name, inode in there.items()
            if name not in self.told and inode not in self.untold
        }  # fmt: skip
        assert not missing, "there and not told"

    def check_each_folder(self) -> None:
        """What is made in any folder now is told once, with its right name."""
        folders = [
            path for path in self.inside.rglob("*") if path.is_dir() and not path.is_symlink()
        ]
        for path in folders:
            (path / "probe").mkdir()
        (self.inside / "the last").mkdir()
        began = len(self.changes)
        self.read("the last")
        added = [one.name for one in self.changes[began:] if one.action is ADDED]
        expected = [str((path / "probe").relative_to(self.inside)) for path in folders]
        assert sorted(added) == sorted([*expected, "the last"])


def is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


@pytest.fixture
def watched(port, tmp_path, nothing_left):
    made = Watched(port, tmp_path)
    with made.handle:
        yield made


class TestMovedHere:
    def test_a_file_made_right_after_the_move_is_told(self, watched):
        (watched.outside / "tree" / "deep").mkdir(parents=True)
        (watched.outside / "tree" / "old").touch()
        watched.first()
        (watched.outside / "tree").rename(watched.inside / "tree")
        (watched.inside / "tree" / "deep" / "file").touch()
        (watched.inside / "tree" / "deep" / "more").mkdir()
        (watched.inside / "tree" / "deep" / "more" / "file").touch()
        watched.read()
        added = [one.name for one in watched.changes if one.action is ADDED]
        names = ["tree", "tree/deep/file", "tree/deep/more", "tree/deep/more/file"]
        assert sorted(added) == sorted(names)

    def test_a_file_made_beside_what_came_is_told(self, watched):
        (watched.outside / "tree").mkdir()
        watched.first()
        (watched.outside / "tree").rename(watched.inside / "tree")
        (watched.inside / "tree" / "file").touch()
        watched.read()
        assert [one for one in watched.changes if one.action is ADDED] == [
            (ADDED, "tree"),
            (ADDED, "tree/file"),
        ]

    def test_what_was_written_in_it_is_told(self, watched):
        (watched.outside / "tree").mkdir()
        (watched.outside / "tree" / "file").touch()
        watched.first()
        (watched.outside / "tree").rename(watched.inside / "tree")
        (watched.inside / "tree" / "file").write_bytes(b"x")
        watched.read()
        assert {one.name for one in watched.changes} == {"tree", "tree/file"}

    def test_what_was_moved_into_it_is_told(self, watched):
        (watched.outside / "tree" / "deep").mkdir(parents=True)
        (watched.outside / "file").touch()
        watched.first()
        (watched.outside / "tree").rename(watched.inside / "tree")
        (watched.outside / "file").rename(watched.inside / "tree" / "deep" / "file")
        watched.read()
        assert (ADDED, "tree/deep/file") in watched.changes

    def test_a_file_system_whose_clock_is_another_tells_all(self, watched):
        """As a server's does; here it is the folder whose change is told to be from before."""
        (watched.outside / "tree" / "deep").mkdir(parents=True)
        watched.first()
        watched.handle._companion._since += 10**15
        (watched.outside / "tree").rename(watched.inside / "tree")
        (watched.inside / "tree" / "deep" / "file").touch()
        watched.read()
        assert (ADDED, "tree/deep/file") in watched.changes


class TestRenamed:
    """Before anybody has read of it."""

    def test_a_new_folder(self, watched):
        watched.first()
        (watched.inside / "a").mkdir()
        (watched.inside / "a").rename(watched.inside / "b")
        (watched.inside / "b" / "file").touch()
        watched.read()
        watched.check()
        watched.check_each_folder()

    def test_the_folder_in_which_a_new_one_lies(self, watched):
        (watched.inside / "p").mkdir()
        watched.first()
        (watched.inside / "p" / "a").mkdir()
        (watched.inside / "p" / "a" / "file").touch()
        (watched.inside / "p").rename(watched.inside / "q")
        watched.read()
        watched.check()
        watched.check_each_folder()

    def test_another_one_has_its_name(self, watched):
        (watched.inside / "p").mkdir()
        watched.first()
        (watched.inside / "p" / "a").mkdir()
        (watched.inside / "p").rename(watched.inside / "q")
        (watched.inside / "p" / "a").mkdir(parents=True)
        (watched.inside / "p" / "a" / "second").touch()
        (watched.inside / "q" / "a" / "first").touch()
        watched.read()
        watched.check()
        watched.check_each_folder()

    def test_two_folders_in_each_others_place(self, watched):
        (watched.inside / "a" / "in a").mkdir(parents=True)
        (watched.inside / "b" / "in b").mkdir(parents=True)
        watched.first()
        if not exchange(watched.inside / "a", watched.inside / "b"):
            pytest.skip("this file system exchanges no names")
        watched.read()
        watched.check_each_folder()


def test_a_file_that_takes_the_place_of_one_that_was_found_is_told(watched):
    (watched.inside / "folder").mkdir()
    (watched.inside / "folder" / "file").touch()
    (watched.outside / "other").touch()
    watched.first()
    os.replace(watched.outside / "other", watched.inside / "folder" / "file")
    watched.read()
    assert watched.changes == [(ADDED, "folder/file")]


class Changer:
    """Changes the tree at random, as a user may."""

    def __init__(self, watched: Watched, dice: random.Random):
        self.watched, self.dice = watched, dice
        self.numbers = itertools.count()

    def folders(self, root: Path) -> list[Path]:
        return [root, *(path for path in root.rglob("*") if path.is_dir())]

    def anything(self, root: Path) -> Path | None:
        return self.dice.choice([*root.rglob("*"), None])

    def name(self, folder: Path) -> Path:
        # Few names, so that they are used again.
        return folder / self.dice.choice("abcd")

    def make(self, root: Path) -> None:
        place = self.name(self.dice.choice(self.folders(root)))
        if place.exists():
            return
        if self.dice.random() < 0.6:
            place.mkdir()
        else:
            place.touch()
        self.watched.made(place)

    def move(self, source: Path | None, target: Path) -> bool:
        if source is None or target.exists() or is_in(str(target), str(source)):
            return False
        source.rename(target)
        return True

    def change(self) -> None:
        inside, outside = self.watched.inside, self.watched.outside
        what = self.dice.choice(
            ["make", "make", "make", "outside", "within", "within", "in", "out", "remove", "write"]
        )
        if what == "make":
            self.make(inside)
        elif what == "outside":
            self.make(outside)
        elif what == "within":
            self.move(self.anything(inside), self.name(self.dice.choice(self.folders(inside))))
        elif what == "in":
            target = self.name(self.dice.choice(self.folders(inside)))
            if self.move(self.anything(outside), target):
                self.watched.came(target)
        elif what == "out":
            self.move(self.anything(inside), outside / f"{next(self.numbers)}")
        else:
            chosen = self.anything(inside)
            if chosen is None:
                return
            if what == "write" and chosen.is_file():
                chosen.write_bytes(b"x")
            elif what == "remove":
                shutil.rmtree(chosen) if chosen.is_dir() else chosen.unlink()


@pytest.mark.parametrize("turn", range(12))
def test_any_changes_told_lead_to_what_is_there(watched, turn):
    print(f"COMPLETIONPORT_SEED={SEED}")
    dice = random.Random(SEED + turn)
    changer = Changer(watched, dice)
    for _ in range(10):
        changer.make(watched.inside)
        changer.make(watched.outside)
    watched.first()
    for _ in range(30):
        for _ in range(dice.choice([1, 2, 5, 15])):
            changer.change()
        watched.read(size=dice.choice([4096, 65536]))
        watched.check()
    watched.check_each_folder()


@pytest.mark.parametrize("turn", range(4))
def test_any_changes_made_meanwhile_lead_to_what_is_there(watched, turn):
    print(f"COMPLETIONPORT_SEED={SEED}")
    changer = Changer(watched, random.Random(SEED + turn))
    for _ in range(10):
        changer.make(watched.inside)
        changer.make(watched.outside)
    watched.first()
    other = Background(lambda: [changer.change() for _ in range(300)])
    while other.is_alive():
        watched.read()
    other.outcome()
    watched.read()
    watched.check()
    watched.check_each_folder()
