"""Copies a file or a tree, with many reads and writes in flight on one completion port.

    python examples/file_copy.py SOURCE TARGET [--engine E] [--no-check] [--quiet]

TARGET must not exist. Times are kept, and who may read, write and execute (not the owner, and so
not set-user-ID and the like); links are copied as links. All that was written is read back and
compared unless ``--no-check`` says otherwise. With `rich` installed a progress bar is shown.

A copy that fails, or is asked to stop (Ctrl-C, SIGTERM, SIGHUP), takes away the files that it had
begun and not finished; those that are whole stay. The exit status is 1, or 128 and the number of
the signal.

A small file is one operation: `CompletionPort.copy_file`. A large one has its space on the disk set
aside, and is then copied by the kernel (copy_file_range(2)): in pieces, on the port's pool, so that
there is progress to show and one piece is checked while the next is copied. Where the kernel can't
(Windows, two file systems) blocks are read and written. Holes stay holes, as with `cp`. A block is
read into memory that the next one uses again, since to allocate it anew would take longer than to
read it, and 256 KiB stay in a processor's cache until they are written. docs/performance.md has
the figures beside `cp`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from completionport import CompletionPort, Handle, Overlapped

BLOCK = 1 << 18  # of one read or write, bytes
BLOCKS = 16  # in flight, of all files together
PIECE = 1 << 23  # that the kernel copies in one go, bytes: some milliseconds
PIECES = 2  # in flight: of one file the second is read while the first is written
FILES = 256  # being copied at a time: what is done meanwhile is taken together
LARGE_FILES = 8  # of them

KERNEL_COPIES = hasattr(os, "copy_file_range")
CAN_NOT_ALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS)
"""Of a file system that sets no space aside; the writes find theirs all the same."""
CAN_NOT_COPY = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)
"""Of a kernel that does not copy between these two files; they can be read and written."""


STOP_SIGNALS: list[signal.Signals] = [signal.SIGINT]
"""They ask to stop."""
if sys.platform == "win32":
    STOP_SIGNALS.append(signal.SIGBREAK)
else:
    STOP_SIGNALS += [signal.SIGTERM, signal.SIGHUP]


class Failed(Exception):
    """Something could not be copied; the message says what."""

    def __init__(self, what: str, status: int = 1) -> None:
        super().__init__(what)
        self.status = status  # of the program, at its exit


class Step(Overlapped):
    """One operation under way, and what comes next."""

    def __init__(
        self, after: Callable[[Step], None], what: str, expected: tuple[int, ...] = ()
    ) -> None:
        self.after = after
        self.what = what
        self.expected = expected  # errors that are its next step's business


class Part(Overlapped):
    """A part of a file under way, and what comes next; used for one part after another."""

    def __init__(self) -> None:
        self.after: Callable[[Any], None]
        self.what = ""
        self.expected: tuple[int, ...] = ()
        self.offset = 0
        self.size = 0


class Piece(Part):
    """A part that the kernel copies."""


class Block(Part):
    """A part that is read, written, read back, and its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray(BLOCK)
        self.back = bytearray()  # what was written, read again
        self.is_written = False  # the kernel has copied it: it is only to be compared

    def part(self, memory: bytearray) -> bytearray | memoryview:
        return memory if self.size == BLOCK else memoryview(memory)[: self.size]


def copy_piece(source: io.FileIO, target: io.FileIO, offset: int, size: int) -> int:
    """Have the kernel copy a part of a file; returned: the bytes copied, fewer where it can't."""
    copied = 0
    while copied < size:
        start = offset + copied
        try:
            count = os.copy_file_range(
                source.fileno(), target.fileno(), size - copied, start, start
            )
        except OSError as error:
            if error.errno not in CAN_NOT_COPY:
                raise
            break
        if count == 0:
            break
        copied += count
    return copied


def data_of(descriptor: int, status: os.stat_result) -> list[tuple[int, int]]:
    """Where the data of a file lies: from, to. One with as many blocks as bytes is one range."""
    size = status.st_size
    if not hasattr(os, "SEEK_DATA") or status.st_blocks * 512 >= size:
        return [(0, size)]
    found = []
    end = 0
    try:
        while end < size:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
            if start < end:
                found.append((start, end))
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that there is no more of it
            return [(0, size)]  # this file system does not tell
    return found


def same_data(source: str, target: str) -> int | None:
    """Compare two small files; returned: how many bytes they have, None when they differ."""
    with open(source, "rb", buffering=0) as one, open(target, "rb", buffering=0) as other:
        data = one.readall()
        return len(data) if data == other.readall() else None


class SmallFile:
    """One file that is copied in one go, and then compared in one."""

    def __init__(self, copier: Copier, source: str, target: str) -> None:
        self.copier = copier
        self.source = source
        self.target = target

    def start(self) -> None:
        copied = Step(self.copied, f"{self.source} to {self.target}", (errno.EFBIG,))
        self.copier.port.copy_file(self.source, self.target, at_most=PIECE, overlapped=copied)

    def copied(self, step: Step) -> None:
        if step.error is not None:
            self.copier.start_large(LargeFile(self.copier, self.source, self.target))
            self.copier.under_way.remove(self)
            return
        self.copier.moved(step.transferred)
        if self.copier.checks:
            compared = Step(self.compared, self.target)
            self.copier.port.submit(same_data, self.source, self.target, overlapped=compared)
        else:
            self.copier.under_way.remove(self)

    def compared(self, step: Step) -> None:
        size = step.result()
        if size is None:
            raise Failed(f"{self.target} differs from {self.source}")
        self.copier.moved(size)
        self.copier.under_way.remove(self)

    def close(self) -> None:
        """It keeps nothing open, and `copy_file` leaves nothing of what it has not finished."""


class LargeFile:
    """One file: opened, copied in pieces or blocks, closed."""

    def __init__(self, copier: Copier, source: str, target: str) -> None:
        self.copier = copier
        self.names = source, target
        self.status = os.stat(source)
        self.port = copier.port
        self.files: list[io.FileIO] = []  # from, to; the second one was made here
        self.handles: list[Handle] = []
        self.is_whole = False
        self.ranges: deque[tuple[int, int]] = deque()  # of its data: what no piece is for yet
        self.parts: deque[tuple[int, int, bool]] = deque()  # for blocks: from, to, and `is_written`
        self.left = self.status.st_size  # bytes that are not done yet

    def start(self) -> None:
        self.port.open(self.names[0], os.O_RDONLY, overlapped=Step(self.source_open, self.names[0]))

    def source_open(self, step: Step) -> None:
        self.files.append(io.FileIO(step.result()))
        # Made in this thread, as folders are: so it is known at any time which files are there.
        # Only for us until it has its mode.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self.files.append(io.FileIO(os.open(self.names[1], flags, 0o600), "r+"))
        self.handles += [self.port.associate(file, self) for file in self.files]
        size = self.status.st_size
        self.ranges += data_of(self.files[0].fileno(), self.status)
        self.left = sum(end - start for start, end in self.ranges)
        if self.left == size:
            self.set_aside()
            return
        # Holes stay holes: what lies between takes no room in the copy either.
        os.ftruncate(self.files[1].fileno(), size)
        self.copier.moved((size - self.left) * (2 if self.copier.checks else 1))
        self.begin()
        self.end_if_done()

    def set_aside(self) -> None:
        # A disk that is full says so now, and writes have less to do.
        allocated = Step(self.allocated, self.names[1], CAN_NOT_ALLOCATE)
        self.handles[1].allocate(0, self.left, allocated)

    def allocated(self, step: Step) -> None:
        self.begin()

    def begin(self) -> None:
        if KERNEL_COPIES:
            self.copier.pieces.wanted_by(self.next_piece)
        else:
            self.wants_the_rest()

    def wants_the_rest(self) -> None:
        while self.ranges:
            self.wants_blocks(*self.ranges.popleft(), False)

    def next_piece(self, piece: Piece) -> bool:
        """Start the next piece; False when there is none."""
        if not self.ranges:
            return False
        start, end = self.ranges.popleft()
        piece.after, piece.what = self.piece_copied, self.names[1]
        piece.offset, piece.size = start, min(PIECE, end - start)
        if start + piece.size < end:
            self.ranges.appendleft((start + piece.size, end))
        source, target = self.files
        self.port.submit(copy_piece, source, target, piece.offset, piece.size, overlapped=piece)
        return True

    def piece_copied(self, piece: Piece) -> None:
        copied = piece.offset + piece.result()
        end = piece.offset + piece.size
        if copied < end:
            # Blocks do the rest of the piece and all that follows.
            self.wants_blocks(copied, end, False)
            self.wants_the_rest()
        if self.copier.checks:
            # Copying may run ahead without limit: what waits is 200 bytes for a piece of 8 MiB, and
            # the check is no other where the page cache has let go of the piece meanwhile.
            self.wants_blocks(piece.offset, copied, True)
        else:
            self.left -= copied - piece.offset
        self.copier.moved(copied - piece.offset)
        self.copier.pieces.give_back(piece)
        self.end_if_done()

    def wants_blocks(self, start: int, end: int, is_written: bool) -> None:
        if start < end:
            self.parts.append((start, end, is_written))
            self.copier.blocks.wanted_by(self.next_block)

    def next_block(self, block: Block) -> bool:
        """Start the next block; False when there is none."""
        if not self.parts:
            return False
        start, end, block.is_written = self.parts.popleft()
        block.after, block.what = self.read, self.names[0]
        block.offset = start
        block.size = min(BLOCK, end - start)
        if start + block.size < end:
            self.parts.appendleft((start + block.size, end, block.is_written))
        self.handles[0].read(block.part(block.data), block.offset, block)
        return True

    def read(self, block: Block) -> None:
        if block.transferred < block.size:
            raise Failed(f"{self.names[0]} became shorter while it was copied")
        block.what = self.names[1]
        if block.is_written:
            self.read_back(block)
        else:
            block.after = self.written
            self.handles[1].write(block.part(block.data), block.offset, block)

    def written(self, block: Block) -> None:
        self.copier.moved(block.size)
        if self.copier.checks:
            self.read_back(block)
        else:
            self.block_done(block)

    def read_back(self, block: Block) -> None:
        block.after = self.checked
        if not block.back:
            block.back = bytearray(BLOCK)
        self.handles[1].read(block.part(block.back), block.offset, block)

    def checked(self, block: Block) -> None:
        if block.transferred < block.size or block.part(block.data) != block.part(block.back):
            raise Failed(f"{self.names[1]} differs from {self.names[0]} at {block.offset}")
        self.copier.moved(block.size)
        self.block_done(block)

    def block_done(self, block: Block) -> None:
        self.left -= block.size
        self.copier.blocks.give_back(block)
        self.end_if_done()

    def end_if_done(self) -> None:
        if not self.left:
            self.end()

    def end(self) -> None:
        by_number = os.chmod in os.supports_fd and os.utime in os.supports_fd
        try:
            if by_number:
                set_mode_and_times(self.files[1].fileno(), self.status)
            self.is_whole = True
            self.close()
            if not by_number:
                set_mode_and_times(self.names[1], self.status)
        except OSError as error:
            raise Failed(f"{self.names[1]}: {error.strerror}") from error
        self.copier.large_done(self)

    def close(self) -> None:
        """Close it, and take the target away unless it is whole.

        Nothing is under way any more. Whoever has put another file into its place keeps that.
        """
        is_there = False
        with contextlib.suppress(FileNotFoundError):
            is_there = (
                not self.is_whole
                and len(self.files) == 2
                and os.path.samestat(os.lstat(self.names[1]), os.fstat(self.files[1].fileno()))
            )
        for handle in self.handles:
            handle.close()
        for file in self.files:
            file.close()
        if is_there:
            os.unlink(self.names[1])


Kind = TypeVar("Kind", bound=Part)


class Supply(Generic[Kind]):
    """What all files share: so many blocks, or pieces, and no more are in flight."""

    def __init__(self, parts: list[Kind]) -> None:
        self.free = parts  # not in flight
        self.hungry: deque[Callable[[Kind], bool]] = deque()  # start one; False: they need no more

    def wanted_by(self, start: Callable[[Kind], bool]) -> None:
        self.hungry.append(start)
        self.feed()

    def give_back(self, part: Kind) -> None:
        self.free.append(part)
        self.feed()

    def feed(self) -> None:
        while self.hungry and self.free:
            if self.hungry[0](self.free[-1]):
                self.free.pop()
            else:
                self.hungry.popleft()


class Copier:
    """Copies files side by side: so many at a time, so many blocks and pieces in flight."""

    def __init__(self, port: CompletionPort, checks: bool, moved: Callable[[int], None]) -> None:
        self.port = port
        self.checks = checks
        self.moved = moved
        self.under_way: set[SmallFile | LargeFile] = set()
        self.large = 0  # of them
        self.waiting: deque[LargeFile] = deque()  # large ones
        self.blocks = Supply([Block() for _ in range(BLOCKS)])
        self.pieces = Supply([Piece() for _ in range(PIECES)])

    def run(self, work: Iterator[tuple[str, str]]) -> int:
        """Copy all of it; returned: how many files."""
        count = 0
        for source, target in work:
            count += 1
            file = SmallFile(self, source, target)
            self.under_way.add(file)
            file.start()
            while len(self.under_way) + len(self.waiting) >= FILES:
                self.go_on()
        while self.under_way:
            self.go_on()
        return count

    def go_on(self, timeout: float | None = None) -> None:
        """Wait that long, or until a step is done, and take the next ones."""
        for done in self.port.get_many(64, timeout):
            step = done.overlapped
            if step is None:
                number = done.transferred
                raise Failed(f"stopped by {signal.Signals(number).name}", 128 + number)
            if isinstance(done.error, OSError):
                if done.error.errno not in step.expected:
                    raise Failed(f"{step.what}: {done.error.strerror}")
            elif done.error is not None:
                raise done.error
            step.after(step)

    def start_large(self, file: LargeFile) -> None:
        if self.large == LARGE_FILES:
            self.waiting.append(file)
            return
        self.large += 1
        self.under_way.add(file)
        file.start()

    def large_done(self, file: LargeFile) -> None:
        self.under_way.remove(file)
        self.large -= 1
        if self.waiting:
            self.start_large(self.waiting.popleft())

    def close(self) -> None:
        """Close what a failure has left, once nothing is under way any more."""
        for file in self.under_way:
            try:
                file.close()
            except OSError as error:
                print(
                    f"file_copy: {error.filename} is not whole: {error.strerror}", file=sys.stderr
                )


class StopSignals:
    """Has the signals that ask to stop come as packets while the copier is at work.

    So none comes between two steps, when it is not known which files are made. Who was told to
    ignore one ignores it.
    """

    def __enter__(self) -> StopSignals:
        self.before = {
            number: handler
            for number in STOP_SIGNALS
            if (handler := signal.getsignal(number)) != signal.SIG_IGN
        }
        return self

    @contextlib.contextmanager
    def come_to(self, port: CompletionPort) -> Iterator[None]:
        """Have them come to this port, and be of no effect afterwards, while things are closed."""
        for number in self.before:
            port.associate_signal(number, None)
        try:
            yield
        finally:
            for number in self.before:
                signal.signal(number, lambda *_: None)

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def files_of(
    source: str,
    target: str,
    directories: list[tuple[str, os.stat_result]],
    go_on: Callable[[float], None],
) -> Iterator[tuple[str, str]]:
    """The regular files of a tree, from and to; directories and links are made on the way."""
    go_on(0)  # a signal may have come, and where there are no files nobody else looks
    status = os.lstat(source)
    if stat.S_ISREG(status.st_mode):
        yield source, target
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISDIR(status.st_mode):
        os.mkdir(target, 0o700)
        directories.append((target, status))
        with os.scandir(source) as entries:
            inside = [
                (entry.is_file(follow_symlinks=False), entry.path, entry.name) for entry in entries
            ]
        for is_file, path, name in inside:
            copy = f"{target}{os.sep}{name}"
            if is_file:
                # Nothing more is asked about it here, since its copy is quicker than the answer.
                yield path, copy
            else:
                yield from files_of(path, copy, directories, go_on)
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
    try:
        with (
            StopSignals() as signals,
            contextlib.ExitStack() as behind_the_port,  # whose end waits for what is under way
            # The page cache keeps no thread waiting: more than there are processors only meet each
            # other at a directory's lock.
            CompletionPort(1, engine=engine, pool_threads=os.cpu_count() or 1) as port,
            progress(source, checks, quiet) as moved,
            signals.come_to(port),
        ):
            copier = Copier(port, checks, moved)
            behind_the_port.callback(copier.close)
            count = copier.run(files_of(source, target, directories, copier.go_on))
            # From the innermost outwards: what is made in a directory changes its times.
            for name, status in reversed(directories):
                set_mode_and_times(name, status)
    except Failed as error:
        raise Failed(f"{error}{what_is_left(target, directories)}", error.status) from error
    except OSError as error:
        what = f"{error.filename or source}: {error.strerror}"
        raise Failed(what + what_is_left(target, directories)) from error
    return count


def what_is_left(target: str, directories: list[Any]) -> str:
    """Behind a failure, for who reads of it."""
    if directories:
        return f": {target} is not whole"
    return "" if os.path.lexists(target) else f": nothing of {target} is there"


def set_mode_and_times(target: str | int, status: os.stat_result) -> None:
    # As `copy_file` does it: who may read, write and execute it, but not set-user-ID and the like,
    # which go with an owner. Those that the system gave to the new one stay.
    given = stat.S_IMODE(os.stat(target).st_mode) & ~0o777
    os.chmod(target, given | (status.st_mode & 0o777))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def be_patient() -> None:
    """Let this thread take no processor away from the pool's threads, which do the work.

    It would do so for each file that is copied, to start the next one; so it comes later and takes
    many at a time: sched(7), SCHED_BATCH.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
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
    be_patient()
    try:
        count = copy(source, target, options.engine, not options.no_check, options.quiet)
        if not options.quiet:
            print(f"{count} files copied" if count != 1 else "1 file copied", flush=True)
    except Failed as error:
        print(f"file_copy: {error}", file=sys.stderr)
        return error.status
    except (RuntimeError, ValueError) as error:
        print(f"file_copy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Before there was anything to take away, or behind the end.
        print("file_copy: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Nobody reads it: nothing is left to be said, at the end of the program neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"file_copy: the summary was not written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
