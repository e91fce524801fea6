"""Rows of pipes, FIFOs and pseudo-terminals."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any, ClassVar

from completionport import Overlapped
from support import pattern

from .base import BIG, Row, Wrong, message


class PipeRead(Row):
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
        self.stack.callback(os.close, self.other)
        self.handle = self.associate(reading)

    def make(self) -> tuple[int, int]:
        return os.pipe()

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.read(4, overlapped=overlapped)

    def complete(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self.other, message(self.completed))
        self.completed += 1

    def expected(self, number: int) -> Any:
        return message(number)


class PipeWrite(Row):
    id = "pipe-write"
    title = "`write` to a full pipe"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.write("text"), TypeError, r"write\(\) takes"),
        (lambda row: row.handle.write([]), ValueError, "at least one buffer"),
        (lambda row: row.handle.write(b"x", 0), OSError, "offset"),
    ]

    def set_up(self) -> None:
        self.other, writing = self.make()
        self.stack.callback(os.close, self.other)
        self.begun = 0
        self.handle = self.associate(writing)

    def make(self) -> tuple[int, int]:
        return os.pipe()

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
    folder = row.stack.enter_context(tempfile.TemporaryDirectory())
    path = os.path.join(folder, "fifo")
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return reading, os.open(path, os.O_WRONLY)


class FifoRead(PipeRead):
    id = "fifo-read"
    title = "`read` of a FIFO"

    def make(self) -> tuple[int, int]:
        return make_fifo(self)


class FifoWrite(PipeWrite):
    id = "fifo-write"
    title = "`write` to a full FIFO"

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

    def make(self) -> tuple[int, int]:
        return make_terminal()

    def complete(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the outside is gone
            os.write(self.other, message(self.completed))
        self.completed += 1


class TerminalWrite(PipeWrite):
    id = "terminal-write"
    title = "`write` to a full pseudo-terminal"

    def make(self) -> tuple[int, int]:
        inside, outside = make_terminal()[::-1]
        return inside, outside
