"""Copies a file or a tree, with many reads and writes in flight on one completion port.

    python examples/file_copy.py SOURCE TARGET [--engine E] [--no-check] [--quiet]

TARGET must not exist. Modes and times are kept, links are copied as links. Every block that was
written is read back and compared unless ``--no-check`` says otherwise. With `rich` installed a
progress bar is shown.

A block is read into memory that the next one uses again, since to allocate it anew would take
longer than to read it, and 256 KiB stay in a processor's cache until they are written. The space on
the disk is set aside first. docs/performance.md has the figures beside `cp`, which has the kernel
copy (copy_file_range(2)).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from completionport import CompletionPort, Handle, Operation, Overlapped

BLOCK = 1 << 18  # of one read or write, bytes
BLOCKS = 16  # in flight, of all files together
FILES = 32  # being copied at a time

CAN_NOT_ALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS)
"""Of a file system that sets no space aside; the writes find theirs all the same."""


class Failed(Exception):
    """Something could not be copied; the message says what."""


class Step(Overlapped):
    """One operation under way, and what comes next."""

    def __init__(self, after: Callable[[Step], None], what: str) -> None:
        self.after = after
        self.what = what


class Block(Overlapped):
    """A part of a file: read, written, read back. Its memory is used for one after another."""

    def __init__(self) -> None:
        self.after: Callable[[Block], None]
        self.what = ""
        self.offset = 0
        self.size = 0
        self.data = bytearray(BLOCK)
        self.back = bytearray()  # what was written, read again

    def part(self, memory: bytearray) -> bytearray | memoryview:
        return memory if self.size == BLOCK else memoryview(memory)[: self.size]


class Copy:
    """One file: opened, copied block by block, closed."""

    def __init__(self, copier: Copier, source: str, target: str, status: os.stat_result) -> None:
        self.copier = copier
        self.names = source, target
        self.status = status
        self.port = copier.port
        self.handles: list[Handle] = []
        self.next_offset = 0  # of the next block to be read
        self.left = status.st_size  # bytes that are not done yet

    def start(self) -> None:
        self.port.open(self.names[0], os.O_RDONLY, overlapped=Step(self.source_open, self.names[0]))

    def source_open(self, step: Step) -> None:
        self.handles.append(self.port.associate(step.result(), self))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        # Only for us until it has its mode.
        self.port.open(
            self.names[1], flags, 0o600, overlapped=Step(self.target_open, self.names[1])
        )

    def target_open(self, step: Step) -> None:
        self.handles.append(self.port.associate(step.result(), self))
        if self.left > BLOCK:
            # A disk that is full says so now, and writes have less to do.
            self.handles[1].allocate(0, self.left, Step(self.allocated, self.names[1]))
        else:
            self.allocated(step)

    def allocated(self, step: Step) -> None:
        if self.left:
            self.copier.wants_blocks(self)
        else:
            self.end()

    def next_block(self, block: Block) -> bool:
        """Start the next block; False when there is none."""
        if self.next_offset >= self.status.st_size:
            return False
        block.after, block.what = self.read, self.names[0]
        block.offset = self.next_offset
        block.size = min(BLOCK, self.status.st_size - self.next_offset)
        self.next_offset += block.size
        self.handles[0].read(block.part(block.data), block.offset, block)
        return True

    def read(self, block: Block) -> None:
        if block.transferred < block.size:
            raise Failed(f"{self.names[0]} became shorter while it was copied")
        block.after, block.what = self.written, self.names[1]
        self.handles[1].write(block.part(block.data), block.offset, block)

    def written(self, block: Block) -> None:
        if not self.copier.checks:
            self.block_done(block)
            return
        self.copier.moved(block.size)
        block.after = self.checked
        if not block.back:
            block.back = bytearray(BLOCK)
        self.handles[1].read(block.part(block.back), block.offset, block)

    def checked(self, block: Block) -> None:
        if block.transferred < block.size or block.part(block.data) != block.part(block.back):
            raise Failed(f"{self.names[1]} differs from {self.names[0]} at {block.offset}")
        self.block_done(block)

    def block_done(self, block: Block) -> None:
        self.left -= block.size
        self.copier.block_done(block)
        if not self.left:
            self.end()

    def end(self) -> None:
        by_number = os.chmod in os.supports_fd and os.utime in os.supports_fd
        if by_number:
            set_mode_and_times(self.handles[1].fileno(), self.status)
        for handle in self.handles:
            handle.close()
        if not by_number:
            set_mode_and_times(self.names[1], self.status)
        self.copier.file_done(self)


class Copier:
    """Copies files side by side: so many at a time, so many blocks in flight."""

    def __init__(self, port: CompletionPort, checks: bool, moved: Callable[[int], None]) -> None:
        self.port = port
        self.checks = checks
        self.moved = moved
        self.files = 0  # under way
        self.free = [Block() for _ in range(BLOCKS)]  # not in flight
        self.hungry: deque[Copy] = deque()  # files that have blocks to be started

    def wants_blocks(self, copy: Copy) -> None:
        self.hungry.append(copy)
        self.feed()

    def feed(self) -> None:
        while self.hungry and self.free:
            if self.hungry[0].next_block(self.free[-1]):
                self.free.pop()
            else:
                self.hungry.popleft()

    def block_done(self, block: Block) -> None:
        self.free.append(block)
        self.moved(block.size)
        self.feed()

    def file_done(self, copy: Copy) -> None:
        self.files -= 1

    def run(self, work: Iterator[tuple[str, str, os.stat_result]]) -> int:
        """Copy all of it; returned: how many files."""
        count = 0
        more = True
        while more or self.files:
            while more and self.files < FILES:
                following = next(work, None)
                if following is None:
                    more = False
                    break
                self.files += 1
                count += 1
                Copy(self, *following).start()
            if self.files:
                for done in self.port.get_many(64):
                    step = done.overlapped
                    if done.error is not None and not (
                        step.operation is Operation.ALLOCATE
                        and done.error.errno in CAN_NOT_ALLOCATE
                    ):
                        raise Failed(f"{step.what}: {done.error.strerror}")
                    step.after(step)
        return count


def files_of(
    source: str, target: str, directories: list[tuple[str, os.stat_result]]
) -> Iterator[tuple[str, str, os.stat_result]]:
    """The regular files of a tree; directories and links are made on the way."""
    status = os.lstat(source)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(status.st_mode):
        yield source, target, status
    elif stat.S_ISDIR(status.st_mode):
        os.mkdir(target, 0o700)
        directories.append((target, status))
        with os.scandir(source) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            yield from files_of(os.path.join(source, name), os.path.join(target, name), directories)
    else:
        raise Failed(f"{source} is neither a file, a directory nor a link")


def total_size(source: str) -> int:
    status = os.lstat(source)
    if stat.S_ISDIR(status.st_mode):
        with os.scandir(source) as entries:
            return sum(total_size(entry.path) for entry in entries)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


@contextlib.contextmanager
def progress(source: str, checks: bool, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar of what is read and written, where that can be shown."""
    if not quiet and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

            columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
            with Progress(*columns, console=Console(stderr=True)) as bar:
                task = bar.add_task(
                    "copy, check" if checks else "copy", total=total_size(source) * (1 + checks)
                )
                yield lambda size: bar.advance(task, size)
            return
    yield lambda size: None


def copy(source: str, target: str, engine: str | None, checks: bool, quiet: bool) -> int:
    if os.path.lexists(target):
        raise Failed(f"{target} exists already")
    directories: list[tuple[str, os.stat_result]] = []
    with CompletionPort(1, engine=engine) as port, progress(source, checks, quiet) as moved:
        count = Copier(port, checks, moved).run(files_of(source, target, directories))
    # From the innermost outwards: what is made in a directory changes its times.
    for name, status in reversed(directories):
        set_mode_and_times(name, status)
    return count


def set_mode_and_times(target: str | int, status: os.stat_result) -> None:
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--engine", help="the best one here when left out")
    parser.add_argument("--no-check", action="store_true", help="do not read what was written")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    options = parser.parse_args()
    source, target = options.source, options.target
    if Path(target).resolve().is_relative_to(Path(source).resolve()):
        print(f"file_copy: {target} lies in {source}", file=sys.stderr)
        return 1
    try:
        count = copy(source, target, options.engine, not options.no_check, options.quiet)
    except Failed as error:
        print(f"file_copy: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"file_copy: {error.filename or source}: {error.strerror}", file=sys.stderr)
        return 1
    if not options.quiet:
        print(f"{count} files copied" if count != 1 else "1 file copied")
    return 0


if __name__ == "__main__":
    sys.exit(main())
