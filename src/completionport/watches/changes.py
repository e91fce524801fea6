"""Changes of a directory as packets: `Handle.read_changes`.

The kernel keeps what happens between two calls, in the queue of an inotify instance that the handle
gets with its first call. An instance knows folders, not trees: so for ``recursive`` there is a
watch for each folder, and new folders are watched, and looked through, when they are heard of.

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

_companions_lock = threading.Lock()


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
        self._lock = threading.Lock()  # guards the five below
        # The numbers of these two while they are held, -1 where the handle was closed before.
        self._root = self._instance = -1
        self._folders: dict[int, str] = {}  # watch -> path from the root on, "" for the root
        # watch -> names that were told of because they were found there: the kernel may tell again.
        self._found: dict[int, set[str]] = {}
        self._parent: int | None = None  # the watch of the folder that the root lies in
        with self._held():
            self._add("", [])
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
            if is_open and events and events[-1].mask & inotify.MOVED_FROM:
                # The new name may come right behind it.
                events += self._read_on()
            if any(event.mask & inotify.Q_OVERFLOW for event in events):
                if is_open:
                    self._start_again()
                raise system_error(errno.EOVERFLOW, LOST)
            changes: list[Change] = []
            moves = {event.cookie: event for event in events if event.mask & inotify.MOVED_TO}
            paired = {
                event.cookie for event in events
                if event.mask & inotify.MOVED_FROM and event.cookie in moves
            }  # fmt: skip
            for event in events:
                self._translate(event, event.cookie in paired, moves, changes)
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
        paired: bool,
        moves: dict[int, inotify.Event],
        changes: list[Change],
    ) -> None:
        """One event. Lock held."""
        if event.watch == self._parent and event.mask & (inotify.IGNORED | inotify.UNMOUNT):
            self._parent = None
        folder = self._folders.get(event.watch)
        if folder == "" and event.mask & inotify.MOVE_SELF:
            self._watch_parent()
        if folder is None:
            return
        if event.mask & (inotify.IGNORED | inotify.UNMOUNT):
            self._folders.pop(event.watch, None)
            self._found.pop(event.watch, None)
            return
        if not event.name:
            return  # of the folder itself, which its parent tells as well
        path = f"{folder}/{event.name}" if folder else event.name
        is_folder = bool(event.mask & inotify.ISDIR)
        found = self._found.get(event.watch)
        if (
            found is not None
            and event.name in found
            and not event.mask & (inotify.MODIFY | inotify.ATTRIB)
        ):
            found.discard(event.name)
            if event.mask & (inotify.CREATE | inotify.MOVED_TO) and not paired:
                return  # told already
        if event.mask & inotify.MOVED_FROM and paired:
            changes.append(Change(ChangeAction.RENAMED_OLD_NAME, path))
            if is_folder:
                new = moves[event.cookie]
                parent = self._folders.get(new.watch, "")
                self._rename(path, f"{parent}/{new.name}" if parent else new.name)
        elif event.mask & inotify.MOVED_TO and paired:
            changes.append(Change(ChangeAction.RENAMED_NEW_NAME, path))
        elif event.mask & (inotify.CREATE | inotify.MOVED_TO):
            changes.append(Change(ChangeAction.ADDED, path))
            if is_folder and self.recursive:
                # Windows tells of a folder that is moved here, and not of what is in it.
                self._add(path, changes if event.mask & inotify.CREATE else [])
        elif event.mask & (inotify.DELETE | inotify.MOVED_FROM):
            changes.append(Change(ChangeAction.REMOVED, path))
            if is_folder and event.mask & inotify.MOVED_FROM:
                self._forget(path)
        elif event.mask & (inotify.MODIFY | inotify.ATTRIB):
            changes.append(Change(ChangeAction.MODIFIED, path))

    def _add(self, path: str, changes: list[Change]) -> None:
        """Watch a folder, and those in it where that is wanted; tell what is there. Lock held."""
        if self._root < 0:
            return
        where = f"/proc/self/fd/{self._root}"
        mask = WATCHED | inotify.MOVE_SELF
        if path:
            where = f"{where}/{path}"
            mask = WATCHED | inotify.DONT_FOLLOW
        try:
            watch = inotify.add(self._instance, where, mask)
        except OSError as error:
            # A folder that is gone again, or no folder any more, is told of by its parent.
            if path and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                return
            raise
        known = self._folders.get(watch)
        self._folders[watch] = path
        if not self.recursive or known == path:
            return
        for name, is_folder in _entries(where):
            inside = f"{path}/{name}" if path else name
            if path:
                self._found.setdefault(watch, set()).add(name)
                changes.append(Change(ChangeAction.ADDED, inside))
            if is_folder:
                self._add(inside, changes)

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
            if path == old or path.startswith(old + "/"):
                self._folders[watch] = new + path[len(old) :]

    def _forget(self, path: str) -> None:
        """A folder was moved away: it is not watched any more, nor are those in it. Lock held."""
        for watch, other in list(self._folders.items()):
            if other == path or other.startswith(path + "/"):
                inotify.remove(self._instance, watch)
                del self._folders[watch]
                self._found.pop(watch, None)

    def _start_again(self) -> None:
        """Events are lost: which folders there are has to be looked up. Lock held."""
        for watch in self._folders:
            inotify.remove(self._instance, watch)
        if self._parent is not None:
            inotify.remove(self._instance, self._parent)
        self._parent = None
        self._folders.clear()
        self._found.clear()
        self._add("", [])
        self._watch_parent()
        self._found.clear()


def _entries(where: str) -> Iterable[tuple[str, bool]]:
    """What is in a folder, and which of it is a folder; nothing when it is gone."""
    with contextlib.suppress(OSError), os.scandir(where) as found:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    return []
