"""Rows of pipes, FIFOs and pseudo-terminals."""

from __future__ import annotations

import contextlib
import os
from typing import Any, ClassVar

from completionport import Overlapped
from support import WINDOWS, pattern

from .base import BIG, NO_MODE, ONE_EACH, WINDOWS_ONLY, Row, Wrong, message

if WINDOWS:
    import windows_support

NO_FIFO = "Windows has no FIFOs: its named pipes are rows of their own"
NO_TERMINAL = "Windows has no pseudo-terminals: its consoles are not overlapped"
NO_MODE_OF_PIPES = {"test_files_in_any_mode_work_alike": NO_MODE}


class Pipe(Row):
    """On Unix its ends are descriptors, on Windows files."""

    without_on_windows: ClassVar[dict[str, str]] = NO_MODE_OF_PIPES

    def make(self) -> tuple[Any, Any]:
        """Both ends, the reading one first."""
        if WINDOWS:
            return self.stack.enter_context(windows_support.make_pipe())
        return os.pipe()

    def keep(self, end: Any) -> None:
        """Close the end that is not the port's with the row."""
        if not WINDOWS:
            self.stack.callback(os.close, end)


class PipeRead(Pipe):
    id = "pipe-read"
    title = "`read` of a pipe"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.read(None), TypeError, r"read\(\) takes"),
        (lambda row: row.handle.read(1, 0), OSError, "offset"),
        (lambda row: row.handle.read(1, -1), ValueError, "offset must be"),
        (lambda row: row.handle.recv(1), OSError, "socket"),
    ]

    def set_up(self) -> None:
        reading, self.other = self.make()
        self.keep(self.other)
        self.handle = self.associate(reading)

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.read(4, overlapped=overlapped)

    def complete(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            if WINDOWS:
                self.other.write(message(self.completed))
            else:
                os.write(self.other, message(self.completed))
        self.completed += 1

    def expected(self, number: int) -> Any:
        return message(number)


class PipeWrite(Pipe):
    id = "pipe-write"
    title = "`write` to a full pipe"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.write("text"), TypeError, r"write\(\) takes"),
        (lambda row: row.handle.write([]), ValueError, "at least one buffer"),
        (lambda row: row.handle.write(b"x", 0), OSError, "offset"),
    ]

    def set_up(self) -> None:
        self.other, writing = self.make()
        self.keep(self.other)
        self.begun = 0
        self.handle = self.associate(writing)

    def start(self, overlapped: Overlapped | None = None) -> Any:
        data = pattern(BIG, self.begun)
        operation = self.handle.write([data[:9], data[9:]], overlapped=overlapped)
        self.begun += 1
        return operation

    def complete(self) -> None:
        self.pull(self.other, pattern(BIG, self.completed))
        self.completed += 1

    def absorb(self, done: Any) -> None:
        self.pull(self.other, pattern(BIG, self.completed)[: done.transferred])
        self.completed += 1

    def expected(self, number: int) -> Any:
        return BIG


def make_fifo(row: Row) -> tuple[int, int]:
    folder = row.make_folder()
    path = os.path.join(folder, "fifo")
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return reading, os.open(path, os.O_WRONLY)


class FifoRead(PipeRead):
    id = "fifo-read"
    title = "`read` of a FIFO"
    not_on_windows = NO_FIFO

    def make(self) -> tuple[int, int]:
        return make_fifo(self)


class FifoWrite(PipeWrite):
    id = "fifo-write"
    title = "`write` to a full FIFO"
    not_on_windows = NO_FIFO

    def make(self) -> tuple[int, int]:
        return make_fifo(self)


def make_terminal() -> tuple[int, int]:
    import pty
    import tty

    outside, inside = pty.openpty()
    tty.setraw(inside)
    return outside, inside


class TerminalRead(PipeRead):
    id = "terminal-read"
    title = "`read` of a pseudo-terminal"
    not_on_windows = NO_TERMINAL

    def make(self) -> tuple[int, int]:
        return make_terminal()

    def complete(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the outside is gone
            os.write(self.other, message(self.completed))
        self.completed += 1


class TerminalWrite(PipeWrite):
    id = "terminal-write"
    title = "`write` to a full pseudo-terminal"
    not_on_windows = NO_TERMINAL

    def make(self) -> tuple[int, int]:
        inside, outside = make_terminal()[::-1]
        return inside, outside


class PipeAccept(Row):
    id = "pipe-accept"
    title = "`accept` of a named pipe"
    not_on_unix = WINDOWS_ONLY
    without: ClassVar[dict[str, str]] = {
        "test_they_are_carried_out_in_order": ONE_EACH,
        **NO_MODE_OF_PIPES,
    }
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handles[0].accept(5), TypeError, "Overlapped"),
        (lambda row: row.handles[0].recv(1), OSError, "socket"),
    ]

    def set_up(self) -> None:
        self.pipes: list[Any] = []

    def start(self, overlapped: Overlapped | None = None) -> Any:
        pipe = windows_support.NamedPipe(self.stack)
        handle = self.associate(pipe.server)
        operation = handle.accept(overlapped=overlapped)
        self.pipes.append(pipe)
        return operation

    def start_again(self) -> Any:
        return self.handles[0].accept()

    def complete(self) -> None:
        with contextlib.suppress(OSError):  # the server's end may be closed by then
            self.pipes[self.completed].client()
        self.completed += 1

    def value(self, done: Any) -> Any:
        return [pipe.server for pipe in self.pipes].index(done.overlapped.result())

    def expected(self, number: int) -> Any:
        return number

    def absorb(self, done: Any) -> None:
        self.complete()  # it is still there
