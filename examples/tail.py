"""Print the end of files, and what is appended to them, also when they are replaced (log rotation).

    python examples/tail.py [-n LINES] [--every SECONDS] [--engine NAME] FILE [FILE ...]

One thread waits at one port for everything: changes of the directories, reads of the files, a timer
for what the system tells nobody of (files on another machine), and the signals that end it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import stat
import sys

from completionport import (
    ChangeAction,
    Completion,
    CompletionPort,
    Handle,
    Operation,
    open_directory,
)

SIZE = 65536
if sys.platform == "win32":
    import ctypes
    import msvcrt

    STOP_SIGNALS = (signal.SIGINT, signal.SIGBREAK)
else:
    STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def open_file(path: str) -> int:
    """A descriptor to read from."""
    if sys.platform == "win32":
        # os.open would keep others from renaming and deleting the file.
        create = ctypes.WinDLL("kernel32", use_last_error=True).CreateFileW
        create.restype = ctypes.c_void_p
        create.argtypes = [ctypes.c_wchar_p, *[ctypes.c_uint32] * 2, ctypes.c_void_p]
        create.argtypes += [ctypes.c_uint32] * 2 + [ctypes.c_void_p]
        read, share_all, open_existing, normal = 0x80000000, 7, 3, 0x80
        handle = create(path, read, share_all, None, open_existing, normal, None)
        if handle == ctypes.c_void_p(-1).value:
            raise OSError(0, "", path, ctypes.get_last_error())
        return msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_NOINHERIT)
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


class File:
    """One file that is followed, by its name. It is the key of its handle."""

    def __init__(self, path: str, lines: int) -> None:
        self.path = path
        self.directory, self.name = os.path.split(os.path.abspath(path))
        self.lines = lines  # to be printed of what is there already
        self.handle: Handle | None = None
        self.position = 0
        self.reading = False
        self.look_again = False
        self.left = False  # another file was seen to have the name, before the read under way

    def open(self, port: CompletionPort) -> None:
        """Follow the file that has the name now."""
        try:
            number = open_file(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            what = "a directory" if os.path.isdir(self.path) else "no regular file"
            raise ValueError(f"{self.path} is {what}, and has no end that could be followed")
        self.position = start_of_lines(number, self.lines)
        self.lines = sys.maxsize  # a file that comes later is printed from its beginning
        self.handle = port.associate(number, self)
        self.left = False

    def replaced(self) -> bool:
        """Whether another file has the name than the one that is followed."""
        if self.handle is None:
            return True
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.handle.fileno()))
        except FileNotFoundError:
            return False  # until there is a new one

    def look(self, port: CompletionPort) -> None:
        """Read what is new; one read at a time, so that nothing is printed twice."""
        if self.reading:
            self.look_again = True
            return
        self.look_again = False
        if self.handle is None:
            self.open(port)
        if self.handle is not None:
            self.handle.read(SIZE, self.position)
            self.reading = True

    def have_read(self, port: CompletionPort, data: bytes) -> None:
        self.reading = False
        self.position += len(data)
        assert self.handle is not None
        if data or self.look_again:
            self.look(port)
        elif os.fstat(self.handle.fileno()).st_size < self.position:
            self.position = 0  # it was cut off, and is written anew
            self.look(port)
        elif not self.replaced():
            return
        elif not self.left:
            self.left = True  # what was written before is read first
            self.look(port)
        else:
            self.handle.close()
            self.handle = None
            self.look(port)


class Tail:
    def __init__(self, port: CompletionPort, files: list[File], every: float) -> None:
        self.port = port
        self.files = files
        self.every = every
        self.printed: File | None = None
        self.unwatched: set[str] = set()  # directories that were deleted
        for number in STOP_SIGNALS:
            port.associate_signal(number, self)
        for directory in sorted({file.directory for file in files}):
            self.watch(directory)
        port.post_after(0, key=None)

    def run(self) -> None:
        while (packet := self.port.get()) is None or packet.key is not self:
            if packet is not None:
                self.serve(packet)

    def serve(self, packet: Completion) -> None:
        if packet.key is None:
            for directory in list(self.unwatched):
                with contextlib.suppress(FileNotFoundError):
                    self.watch(directory)
            for file in self.files:
                file.look(self.port)
            self.port.post_after(self.every, key=None)
        elif packet.overlapped.operation is Operation.CHANGES:
            self.changed(packet)
        elif packet.error is None:
            self.print(packet.key, packet.overlapped.result())
            packet.key.have_read(self.port, packet.overlapped.result())
        elif isinstance(packet.error, OSError):
            raise OSError(packet.error.errno, packet.error.strerror, packet.key.path)
        else:
            raise packet.error

    def watch(self, directory: str) -> None:
        """Be told what changes in it."""
        handle = self.port.associate(open_directory(directory), directory)
        try:
            handle.read_changes()
        except BaseException:
            handle.close()
            raise
        self.unwatched.discard(directory)

    def lost(self, handle: Handle) -> None:
        """A directory was deleted; it may come again."""
        handle.close()
        self.unwatched.add(handle.key)

    def changed(self, packet: Completion) -> None:
        names: set[str] | None = None
        if packet.error is None:
            names = {
                change.name
                for change in packet.overlapped.result()
                if change.action is not ChangeAction.RENAMED_OLD_NAME
            }
        elif isinstance(packet.error, OSError) and packet.error.errno == errno.ENOENT:
            self.lost(packet.overlapped.handle)
            return
        elif not isinstance(packet.error, OSError) or packet.error.errno != errno.EOVERFLOW:
            raise packet.error
        for file in self.files:
            # With changes lost, all are looked at.
            if file.directory == packet.key and (names is None or file.name in names):
                file.look(self.port)
        try:
            packet.overlapped.handle.read_changes(overlapped=packet.overlapped)
        except FileNotFoundError:
            self.lost(packet.overlapped.handle)

    def print(self, file: File, data: bytes) -> None:
        if not data:
            return
        if len(self.files) > 1 and self.printed is not file:
            gap = "\n" if self.printed else ""
            write(f"{gap}==> {file.path} <==\n".encode(errors="surrogateescape"))
        self.printed = file
        write(data)


def write(data: bytes) -> None:
    """Print bytes. Where stdout is not buffered (``python -u``) one write may take a part only."""
    left = memoryview(data)
    try:
        while left:
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.buffer.flush()
    except OSError as error:
        if error.errno == errno.EINVAL:  # what Windows says when nobody reads any more
            raise BrokenPipeError from None
        raise


def start_of_lines(number: int, lines: int) -> int:
    """Where the last lines of a file begin."""
    position = os.fstat(number).st_size
    if lines == sys.maxsize:
        return 0
    wanted = lines + 1  # the newline at the end belongs to the last one
    while position > 0:
        size = min(SIZE, position)
        os.lseek(number, position - size, os.SEEK_SET)
        block = os.read(number, size)
        while (found := block.rfind(b"\n")) >= 0:
            wanted -= 1
            if wanted == 0:
                return position - size + found + 1
            block = block[:found]
        position -= size
    return 0


def whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"invalid number of lines {text!r}: 0 or more was expected"
        )
    return int(text)


def seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"invalid time {text!r}: from 0.01 to 1e6 seconds")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="+", metavar="FILE")
    parser.add_argument("-n", dest="lines", type=whole_number, default=10, help="lines of the end")
    parser.add_argument(
        "--every", type=seconds, default=5.0, metavar="SECONDS", help="look at all files so often"
    )
    parser.add_argument("--engine", help="the best one here when left out")
    options = parser.parse_args()
    files = [File(path, options.lines) for path in dict.fromkeys(options.file)]
    try:
        if sys.stdout is None:
            raise ValueError("standard output is closed: there is nowhere to print to")
        with CompletionPort(engine=options.engine) as port:
            tail = Tail(port, files, options.every)
            for file in files:
                if not os.path.exists(file.path):
                    print(f"tail: {file.path} is not there yet: it is waited for", file=sys.stderr)
            tail.run()
    except BrokenPipeError:
        # Who read it has gone: nothing is left to be said, at the end of the program neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (OSError, RuntimeError, ValueError) as error:
        with contextlib.suppress(BrokenPipeError):
            print(f"tail: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
