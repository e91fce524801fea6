"""Changes of a directory as packets: `Handle.read_changes`.

The kernel keeps what happens between two calls, in the queue of an inotify instance that the handle
gets with its first call. An instance knows folders, not trees: so for ``recursive`` there is a
watch for each folder, and new folders are watched, and looked through, when they are heard of.

By then there may be more in them, or they have another name, or another folder has theirs. So all
that the kernel has is read first, and a folder that has another name by then is looked through
under that. Each event that gives a folder a name has what lies there now watched, under that name:
behind the last one all of them are right. What is found in a folder that was made here is told. One
that came from elsewhere is told as it is on Windows, without what was in it; but what was changed
in it since is told, of which the file system's times tell.

That the directory itself is deleted the kernel tells of only once nobody has it open, and the
handle has. So the folder that it lies in is watched too, for what is deleted there.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..interface.errors import HandleClosed, system_error
from ..interface.handle import Handle, Overlapped
from ..interface.operation import Operation
from ..interface.port import CompletionPort
from ..shared.arguments import check_count
from . import inotify
from .own_descriptor import OwnDescriptor

WATCHED = (
    inotify.CREATE | inotify.DELETE | inotify.MODIFY | inotify.ATTRIB
    | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.ONLYDIR
)  # fmt: skip
LEAST_SIZE = 4096
"""Bytes; the longest name takes 272 in the kernel's queue."""
MOST_SIZE = 1 << 24
LOST = (
    "changes came faster than they were read, and some are lost: look through the directory again"
)

NO_DIRECTORY = "read_changes() needs a directory's handle: see open_directory()"
OTHER_TREE = "recursive must be the same in each call: the first one has decided it"
DELETED = "the directory was deleted: nothing changes any more"

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)
COARSE = 5
"""CLOCK_REALTIME_COARSE of clock_gettime(2): file systems go by it. A tick is 1 to 10 ms."""

_companions_lock = threading.Lock()


class Tell(enum.Enum):
    """What is told of what is found in a folder."""

    NOTHING = 0
    ALL = 1
    CHANGED = 2  # and only that


class ChangeAction(enum.IntEnum):
    """What happened to a file or a folder."""

    ADDED = 1
    """``FILE_ACTION_ADDED``: made, or moved here from elsewhere."""
    REMOVED = 2
    """``FILE_ACTION_REMOVED``: deleted, or moved elsewhere."""
    MODIFIED = 3
    """``FILE_ACTION_MODIFIED``: its contents, or its mode, owner or times."""
    RENAMED_OLD_NAME = 4
    """``FILE_ACTION_RENAMED_OLD_NAME``: renamed within what is watched; the new name comes next."""
    RENAMED_NEW_NAME = 5
    """``FILE_ACTION_RENAMED_NEW_NAME``"""


class Change(NamedTuple):
    """One change of a directory, as `Handle.read_changes` gives it."""

    action: ChangeAction
    """What happened."""
    name: str
    """The path of the file, from the directory on."""


def read_changes(
    handle: Handle, recursive: bool, size: int, overlapped: Overlapped | None
) -> Overlapped:
    """`Handle.read_changes`."""
    check_count("size", size, LEAST_SIZE, MOST_SIZE)
    if handle.closed:
        # PortClosed and PortForked where these are due.
        handle._read_for(_Changes(handle, None), 0)
        raise HandleClosed
    with _companions_lock:
        watch = handle._companion
        if watch is None:
            watch = handle._companion = DirectoryWatch(handle, bool(recursive))
    if watch.recursive != bool(recursive):
        raise ValueError(OTHER_TREE)
    if watch.is_deleted():
        raise system_error(errno.ENOENT, DELETED)
    inner: Handle = watch.inner
    return inner._read_for(_Changes(handle, watch), size, overlapped)


class _Changes:
    """What the read of an inotify instance means."""

    __slots__ = ("handle", "operation", "watch")

    def __init__(self, handle: Handle, watch: DirectoryWatch | None) -> None:
        self.handle = handle
        self.operation = Operation.CHANGES
        self.watch = watch

    def outcome(self, data: bytes) -> tuple[int, list[Change]]:
        assert self.watch is not None
        changes = self.watch.translate(data)
        return len(changes), changes


class DirectoryWatch:
    """The inotify instance of one directory's handle, and which folder each of its watches is."""

    def __init__(self, handle: Handle, recursive: bool) -> None:
        number = handle.fileno()
        if not stat.S_ISDIR(os.fstat(number).st_mode):
            raise system_error(errno.ENOTDIR, NO_DIRECTORY)
        port: CompletionPort | None = handle.port
        if port is None:
            raise HandleClosed("the port of this handle is gone")
        self.recursive = recursive
        self.root = OwnDescriptor(os.dup(number))
        self.instance = OwnDescriptor(inotify.new())
        self._lock = threading.Lock()  # guards all below
        # The numbers of these two while they are held, -1 where the handle was closed before.
        self._root = self._instance = -1
        self._folders: dict[int, str] = {}  # watch -> path from the root on, "" for the root
        # watch -> what was told of because it was found there, with its inode: the kernel may tell
        # of it again.
        self._found: dict[int, dict[str, int]] = {}
        # watch -> the folders in it that were told of, or were there from the beginning.
        self._inner: dict[int, set[str]] = {}
        # Events to come, of those that are read, that take a folder's name away.
        self._leaving: list[inotify.Event] = []
        # Of those that give a name to what will be told then: watch and name, and how many.
        self._coming: Counter[tuple[int, str]] = Counter()
        # Of folders that were told as moved away: the new names may still come.
        self._away: set[int] = set()
        self._parent: int | None = None  # the watch of the folder that the root lies in
        # What is older than that was there before.
        self._since = next_tick_ns() if self.recursive else 0
        with self._held():
            self._add("", Tell.NOTHING, [])
            self._watch_parent()
        self.inner = port.associate(self.instance, handle.key, strand=handle._strand)

    def cancel(self, overlapped: Overlapped | None = None) -> int:
        return self.inner.cancel(overlapped)

    def close(self) -> None:
        self.inner.close()
        self.root.close()

    def translate(self, data: bytes) -> list[Change]:
        """What a read has brought; `OSError` when something was lost.

        Of a handle that is closed by now as well, for which nothing more is read or watched.
        """
        with self._held() as is_open:
            events = list(inotify.events(data))
            if is_open and unpaired(events):
                # The new name may come right behind it.
                events += self._read_on()
            if is_open and self.recursive and any(map(names_folder, events)):
                while more := self._read_on():
                    events += more
            if any(event.mask & inotify.Q_OVERFLOW for event in events):
                if is_open:
                    self._start_again()
                raise system_error(errno.EOVERFLOW, LOST)
            changes: list[Change] = []
            targets = {event.cookie: event for event in events if event.mask & inotify.MOVED_TO}
            sources: dict[int, tuple[str, inotify.Event]] = {}
            away, self._away = self._away, set()
            self._leaving = [event for event in events if takes_folder_away(event)]
            self._coming = Counter(
                (event.watch, event.name) for event in events if gives_name(event)
            )
            for event in events:
                if self._leaving and self._leaving[0] is event:
                    del self._leaving[0]
                if gives_name(event):
                    self._coming[event.watch, event.name] -= 1
                self._translate(event, targets, sources, away, changes)
            if is_open and self.is_deleted():
                # Whoever else waits is told as well, after what has changed before.
                self._wake_next()
                if not changes:
                    raise system_error(errno.ENOENT, DELETED)
            return changes

    def is_deleted(self) -> bool:
        """Whether the directory is; it may be moved all the same, and still be watched."""
        with self.root.held() as number:
            return number >= 0 and os.fstat(number).st_nlink == 0

    @contextlib.contextmanager
    def _held(self) -> Iterator[bool]:
        """With the lock, and with the descriptors if none of them is closed: whether it is so."""
        with self._lock, self.root.held() as root, self.instance.held() as instance:
            is_open = root >= 0 and instance >= 0
            if is_open:
                self._root, self._instance = root, instance
            try:
                yield is_open
            finally:
                self._root = self._instance = -1

    def _read_on(self) -> list[inotify.Event]:
        with contextlib.suppress(BlockingIOError):
            return list(inotify.events(os.read(self._instance, LEAST_SIZE)))
        return []

    def _translate(
        self,
        event: inotify.Event,
        targets: dict[int, inotify.Event],
        sources: dict[int, tuple[str, inotify.Event]],
        away: set[int],
        changes: list[Change],
    ) -> None:
        """One event. Lock held.

        ``targets``: the new names, by cookie. ``sources``: the old paths of those that were told
        with their new name. ``away``: what was told as moved away before.
        """
        if event.watch == self._parent and event.mask & (inotify.IGNORED | inotify.UNMOUNT):
            self._parent = None
        folder = self._folders.get(event.watch)
        if folder == "" and event.mask & inotify.MOVE_SELF:
            self._watch_parent()
        if folder is None:
            return
        if event.mask & (inotify.IGNORED | inotify.UNMOUNT):
            self._drop(event.watch)
            return
        if not event.name:
            return  # of the folder itself, which its parent tells as well
        path = join(folder, event.name)
        is_folder = bool(event.mask & inotify.ISDIR)
        if not event.mask & (inotify.MODIFY | inotify.ATTRIB) and self._was_told(event, path):
            return
        if is_folder and event.mask & (inotify.CREATE | inotify.MOVED_TO):
            self._inner.setdefault(event.watch, set()).add(event.name)
        elif is_folder and event.mask & (inotify.DELETE | inotify.MOVED_FROM):
            self._inner.get(event.watch, set()).discard(event.name)
        target = targets.get(event.cookie)
        if event.mask & inotify.MOVED_FROM and target is not None and target.watch in self._folders:
            changes.append(Change(ChangeAction.RENAMED_OLD_NAME, path))
            sources[event.cookie] = path, event
            if is_folder:
                self._rename(path, join(self._folders[target.watch], target.name))
        elif event.mask & inotify.MOVED_TO and event.cookie in sources:
            changes.append(Change(ChangeAction.RENAMED_NEW_NAME, path))
            if is_folder and self.recursive and self._stays(path):
                self._add(path, Tell.ALL, changes)
                self._follow(*sources[event.cookie], changes)
        elif event.mask & (inotify.CREATE | inotify.MOVED_TO):
            changes.append(Change(ChangeAction.ADDED, path))
            if is_folder and self.recursive and self._stays(path):
                came = event.mask & inotify.MOVED_TO and event.cookie not in away
                self._add(
                    path, Tell.CHANGED if came and self._times_hold(path) else Tell.ALL, changes
                )
        elif event.mask & (inotify.DELETE | inotify.MOVED_FROM):
            changes.append(Change(ChangeAction.REMOVED, path))
            if is_folder and event.mask & inotify.MOVED_FROM:
                self._away.add(event.cookie)
                self._forget(path)
        elif event.mask & (inotify.MODIFY | inotify.ATTRIB):
            changes.append(Change(ChangeAction.MODIFIED, path))

    def _times_hold(self, path: str) -> bool:
        """Whether what was just moved here is told to be changed since: by one clock. Lock held."""
        try:
            return os.lstat(self._place(path)).st_ctime_ns >= self._since
        except OSError:
            return False

    def _stays(self, path: str) -> bool:
        """Whether a folder has this name still, as far as is known. Lock held."""
        for event in self._leaving:
            folder = self._folders.get(event.watch)
            if folder is not None and is_in(path, join(folder, event.name)):
                return False
        return True

    def _was_told(self, event: inotify.Event, path: str) -> bool:
        """Whether it was, because it was found there before the kernel's event came. Lock held."""
        inode = self._found.get(event.watch, {}).pop(event.name, None)
        if inode is None or not event.mask & (inotify.CREATE | inotify.MOVED_TO):
            return False
        with contextlib.suppress(OSError):
            # Another one may have taken its place.
            return self._root < 0 or os.lstat(self._place(path)).st_ino == inode
        return True

    def _place(self, path: str) -> str:
        return join(f"/proc/self/fd/{self._root}", path)

    def _add(self, path: str, tell: Tell, changes: list[Change]) -> None:
        """Watch a folder, and those in it where that is wanted; tell what is there. Lock held."""
        if self._root < 0:
            return
        where = self._place(path)
        try:
            watch = self._watch(path)
        except OSError as error:
            # A folder that is gone again, or no folder any more, is told of by its parent.
            if path and error.errno in GONE:
                return
            raise
        known = self._folders.get(watch)
        self._folders[watch] = path
        if not self.recursive:
            return
        if known == path:
            # Its own events tell what is in it. But where it had another name when it was told of
            # them, those in it could not be watched, or others were.
            for name in list(self._inner.get(watch, ())):
                self._add(join(path, name), Tell.ALL, changes)
            return
        inner = self._inner[watch] = set()
        tell, has_new = self._what_to_tell(where, tell)
        for name, is_folder, inode, changed in _entries(where):
            if self._coming[watch, name] > 0:
                continue
            inside = join(path, name)
            if is_folder:
                inner.add(name)
            if tell is Tell.ALL or (has_new and changed >= self._since):
                self._found.setdefault(watch, {})[name] = inode
                changes.append(Change(ChangeAction.ADDED, inside))
            elif tell is Tell.CHANGED and changed >= self._since and not is_folder:
                changes.append(Change(ChangeAction.MODIFIED, inside))
            if is_folder:
                self._add(inside, tell, changes)

    def _what_to_tell(self, where: str, tell: Tell) -> tuple[Tell, bool]:
        """And whether something new may be in the folder. Lock held."""
        if tell is not Tell.CHANGED:
            return tell, False
        with contextlib.suppress(OSError):
            status = os.stat(where)
            return tell, status.st_mtime_ns >= self._since
        return tell, True

    def _watch(self, path: str) -> int:
        mask = WATCHED | (inotify.DONT_FOLLOW if path else inotify.MOVE_SELF)
        return inotify.add(self._instance, self._place(path), mask)

    def _follow(self, path: str, source: inotify.Event, changes: list[Change]) -> None:
        """Two folders may have changed their names: the other one is here. Lock held."""
        if self._root < 0 or self._coming[source.watch, source.name] > 0:
            return
        with contextlib.suppress(OSError):
            watch = self._watch(path)
            if watch in self._folders:  # else it is new, and told of later
                self._folders[watch] = path
                self._add(path, Tell.ALL, changes)

    def _watch_parent(self) -> None:
        """Watch what is deleted where the directory lies now. Lock held."""
        instance = self._instance
        here = f"/proc/self/fd/{self._root}"
        with contextlib.suppress(OSError):  # a folder that may not be read, or is gone again
            while True:
                path = os.readlink(here)
                mask = inotify.DELETE | inotify.ONLYDIR
                # A folder has one watch of an instance, which may be one of the tree's.
                watch = inotify.add(instance, os.path.dirname(path), mask | inotify.MASK_ADD)
                if self._parent not in (None, watch) and self._parent not in self._folders:
                    inotify.remove(instance, self._parent)
                self._parent = watch
                if os.readlink(here) == path:
                    return

    def _wake_next(self) -> None:
        """Have the read that waits next see that the directory is deleted. Lock held."""
        # The end of a watch is an event, as often as one is set and ended.
        watch = inotify.add(self._instance, f"/proc/self/fd/{self._root}", WATCHED)
        inotify.remove(self._instance, watch)

    def _rename(self, old: str, new: str) -> None:
        """A folder that is watched has another name, and so have those in it. Lock held."""
        for watch, path in list(self._folders.items()):
            if is_in(path, old):
                self._folders[watch] = new + path[len(old) :]

    def _forget(self, path: str) -> None:
        """A folder was moved away: it is not watched any more, nor are those in it. Lock held."""
        for watch, other in list(self._folders.items()):
            if is_in(other, path):
                inotify.remove(self._instance, watch)
                self._drop(watch)

    def _drop(self, watch: int) -> None:
        """A watch has ended. Lock held."""
        for about in (self._folders, self._found, self._inner):
            about.pop(watch, None)

    def _start_again(self) -> None:
        """Events are lost: which folders there are has to be looked up. Lock held."""
        for watch in self._folders:
            inotify.remove(self._instance, watch)
        if self._parent is not None:
            inotify.remove(self._instance, self._parent)
        self._parent = None
        for about in (self._folders, self._found, self._inner):
            about.clear()
        self._add("", Tell.NOTHING, [])
        self._watch_parent()


def _entries(where: str) -> Iterable[tuple[str, bool, int, int]]:
    """What is in a folder, which of it is a folder, its inode, and when that was changed, ns.

    Nothing when the folder is gone.
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(where) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # it is gone again
                changed = entry.stat(follow_symlinks=False).st_ctime_ns
                is_folder = entry.is_dir(follow_symlinks=False)
                found.append((entry.name, is_folder, entry.inode(), changed))
    return found


def join(folder: str, name: str) -> str:
    """The path of what is in a folder of this path, "" for the root."""
    return f"{folder}/{name}" if folder and name else folder or name


def is_in(path: str, folder: str) -> bool:
    """Whether it is this folder, or lies in it."""
    return path == folder or path.startswith(folder + "/")


def gives_name(event: inotify.Event) -> bool:
    """Whether something has that name from then on."""
    return bool(event.mask & (inotify.CREATE | inotify.MOVED_TO))


def names_folder(event: inotify.Event) -> bool:
    """Whether it gives a folder a name."""
    return bool(event.mask & inotify.ISDIR) and gives_name(event)


def takes_folder_away(event: inotify.Event) -> bool:
    """Whether a folder has that name no more."""
    return bool(event.mask & inotify.ISDIR and event.mask & (inotify.DELETE | inotify.MOVED_FROM))


def unpaired(events: list[inotify.Event]) -> bool:
    """Whether something was moved away, and it is not told where to."""
    targets = {event.cookie for event in events if event.mask & inotify.MOVED_TO}
    return any(event.mask & inotify.MOVED_FROM and event.cookie not in targets for event in events)


def next_tick_ns() -> int:
    """The time that files are given, ns, once it is behind all that they were given so far.

    That is the time of the last tick, or, since Linux 6.13, an exact one that a file got since
    then: so the clock of the ticks has to reach what the exact clock says now.
    """
    begun = time.clock_gettime_ns(COARSE)
    exact = time.clock_gettime_ns(time.CLOCK_REALTIME)
    while begun <= (now := time.clock_gettime_ns(COARSE)) <= exact:  # or the clock was set back
        time.sleep(0.0005)
    return now
