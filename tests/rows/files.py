"""Rows of regular files, names and functions: what the pool does where the kernel does not."""

from __future__ import annotations

import os
import threading
from typing import Any, ClassVar

from completionport import Overlapped
from support import LONG, pattern, wait_until

from .base import (
    KEY,
    NO_MODE,
    SIDE_BY_SIDE,
    WITHOUT_HANDLE,
    Row,
    Wrong,
    close_if_same,
    message,
)
from .sockets import Scatter


class Pooled(Row):
    """The port's pool has one thread, which is at work until `complete`: the row's wait in line."""

    kernel_on: ClassVar[tuple[str, ...]] = ("io_uring", "iocp")
    """Engines that have the kernel do it."""
    without: ClassVar[dict[str, str]] = {
        "test_they_are_carried_out_in_order": SIDE_BY_SIDE,
        "test_files_in_any_mode_work_alike": NO_MODE,
    }

    def set_up(self) -> None:
        self.go = threading.Event()
        self.begun = 0
        self.waits = self.port.engine not in self.kernel_on
        if self.waits:
            at_work = threading.Event()

            def work() -> None:
                at_work.set()
                assert self.go.wait(LONG)

            self.asides.append(self.port.submit(work))
            assert at_work.wait(LONG)

    def next(self) -> int:
        number, self.begun = self.begun, self.begun + 1
        return number

    def complete(self) -> None:
        self.go.set()

    def release(self) -> None:
        self.go.set()


class File(Pooled):
    content = pattern(400)

    def set_up(self) -> None:
        folder = self.make_folder()
        self.path = os.path.join(folder, "file")
        with open(self.path, "wb") as file:
            file.write(self.content)
        # It stays with the row: the operation would have the last reference otherwise.
        self.file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
        self.handle = self.associate(self.file)
        super().set_up()

    def part(self, number: int) -> bytes:
        return self.content[4 * number : 4 * number + 4]


class FileRead(File):
    id = "file-read"
    title = "`read` of a file at an offset"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.read("x", 0), TypeError, r"read\(\) takes"),
        (lambda row: row.handle.read(1, -1), ValueError, "offset must be"),
        (lambda row: row.handle.read(1, 2**63), ValueError, "offset must be"),
        (lambda row: row.handle.read(1, "x"), TypeError, "offset must be"),
        (lambda row: row.handle.recv(1), OSError, "socket"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.read(4, 4 * self.next(), overlapped)

    def expected(self, number: int) -> Any:
        return self.part(number)


class FileReadOn(FileRead):
    id = "file-read-on"
    title = "`read` of a file at its position"
    without: ClassVar[dict[str, str]] = {"test_files_in_any_mode_work_alike": NO_MODE}

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.read(4, overlapped=overlapped)


class FileScatter(File):
    id = "file-read-buffers"
    title = "`read` of a file into several buffers"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.read([], 0), ValueError, "at least one buffer"),
        (lambda row: row.handle.read([b"x"], 0), TypeError, "writable"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        if overlapped is None:
            overlapped = Scatter.Buffered()
        buffers = [bytearray(3), bytearray(1)]
        operation = self.handle.read(buffers, 4 * self.next(), overlapped)
        overlapped.buffers = buffers
        return operation

    def value(self, done: Any) -> Any:
        assert done.overlapped.result() == 4
        return b"".join(done.overlapped.buffers)

    def expected(self, number: int) -> Any:
        return self.part(number)


class FileWrite(File):
    id = "file-write"
    title = "`write` to a file at an offset"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.write("x", 0), TypeError, r"write\(\) takes"),
        (lambda row: row.handle.write(b"x", -1), ValueError, "offset must be"),
        (lambda row: row.handle.write([], 0), ValueError, "at least one buffer"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        number = self.next()
        return self.handle.write(message(number), 4 * number, overlapped)

    def expected(self, number: int) -> Any:
        return 4

    def check_end(self, count: int) -> None:
        written = b"".join(message(number) for number in range(count))
        with open(self.path, "rb") as file:
            assert file.read() == written + self.content[4 * count :]


class FileWriteOn(FileWrite):
    id = "file-write-on"
    title = "`write` to a file at its position"
    without: ClassVar[dict[str, str]] = {"test_files_in_any_mode_work_alike": NO_MODE}

    def start(self, overlapped: Overlapped | None = None) -> Any:
        data = message(self.next())
        return self.handle.write([data[:2], data[2:]], overlapped=overlapped)


class FileSync(File):
    id = "fsync"
    title = "`fsync`"
    kernel_on = ("io_uring",)
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.fsync(overlapped=5), TypeError, "Overlapped"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.fsync(overlapped=overlapped)

    def expected(self, number: int) -> Any:
        return 0


class FileAllocate(File):
    id = "allocate"
    title = "`allocate`"
    kernel_on = ("io_uring",)
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.allocate(-1, 1), ValueError, "offset must be"),
        (lambda row: row.handle.allocate(0, 0), ValueError, "length must be"),
        (lambda row: row.handle.allocate(0, None), TypeError, "length must be an integer"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.allocate(0, 1000 * (self.next() + 1), overlapped)

    def expected(self, number: int) -> Any:
        return 0

    def check_end(self, count: int) -> None:
        assert os.stat(self.path).st_size == 1000 * count


class FileStatus(File):
    id = "stat"
    title = "`stat` of an open file"
    kernel_on = ("io_uring",)
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.stat("x"), TypeError, "Overlapped"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.stat(overlapped)

    def value(self, done: Any) -> Any:
        return done.overlapped.result().st_size

    def expected(self, number: int) -> Any:
        return len(self.content)


class Errand(Pooled):
    """An operation of the port itself."""

    kernel_on = ("io_uring",)
    without: ClassVar[dict[str, str]] = {
        **Pooled.without,
        **WITHOUT_HANDLE,
    }


class NameStatus(Errand):
    id = "stat-name"
    title = "`port.stat`"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.stat(None), TypeError, "path must be"),
        (lambda row: row.port.stat("a\0b"), ValueError, "null byte"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.port.stat(__file__, key=KEY, overlapped=overlapped)

    def value(self, done: Any) -> Any:
        return done.overlapped.result().st_ino

    def expected(self, number: int) -> Any:
        return os.stat(__file__).st_ino


class Open(Errand):
    id = "open"
    title = "`port.open`"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.open(5), TypeError, "path must be"),
        (lambda row: row.port.open(__file__, -1), ValueError, "flags must be"),
        (lambda row: row.port.open(__file__, 0, "x"), TypeError, "mode must be"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.port.open(__file__, key=KEY, overlapped=overlapped)

    def value(self, done: Any) -> Any:
        number = done.overlapped.result()
        found = os.fstat(number).st_ino
        os.close(number)
        return found

    def expected(self, number: int) -> Any:
        return os.stat(__file__).st_ino


class CopyFile(Errand):
    id = "copy"
    title = "`copy_file`"
    kernel_on = ()
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.copy_file(5, "x"), TypeError, "path must be"),
        (lambda row: row.port.copy_file("x", None), TypeError, "path must be"),
        (lambda row: row.port.copy_file("x", "a\0b"), ValueError, "null byte"),
    ]
    content = pattern(100)

    def set_up(self) -> None:
        self.folder = self.make_folder()
        # Before the folder goes: what nobody took is copied all the same.
        self.stack.callback(wait_until, self.is_over, "the end of the copies")
        with open(self.name("source"), "wb") as file:
            file.write(self.content)
        super().set_up()

    def is_over(self) -> bool:
        return self.port is None or self.port.closed or not self.port.stats()["pending"]

    def name(self, last: object) -> str:
        return os.path.join(self.folder, str(last))

    def start(self, overlapped: Overlapped | None = None) -> Any:
        names = self.name("source"), self.name(self.next())
        return self.port.copy_file(*names, key=KEY, overlapped=overlapped)

    def expected(self, number: int) -> Any:
        return len(self.content)

    def check_end(self, count: int) -> None:
        for number in range(count):
            with open(self.name(number), "rb") as file:
                assert file.read() == self.content


class CloseDescriptor(Errand):
    id = "close"
    title = "`port.close_descriptor`"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.close_descriptor(-1), ValueError, "fd must be"),
        (lambda row: row.port.close_descriptor("x"), TypeError, "fd must be an integer"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        number = os.open(__file__, os.O_RDONLY)
        # Nobody has closed it when this fails or is cancelled.
        self.stack.callback(close_if_same, number, os.stat(__file__))
        return self.port.close_descriptor(number, key=KEY, overlapped=overlapped)

    def expected(self, number: int) -> Any:
        return 0


class Lookup(Errand):
    id = "getaddrinfo"
    title = "`getaddrinfo`"
    kernel_on = ()
    without: ClassVar[dict[str, str]] = {
        name: why
        for name, why in Errand.without.items()
        if name != "test_they_are_carried_out_in_order"
    }
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.getaddrinfo(5, 80), TypeError, "host must be"),
        (lambda row: row.port.getaddrinfo("a", 1.5), TypeError, "service must be"),
        (lambda row: row.port.getaddrinfo("a\0b", 80), ValueError, "null character"),
        (lambda row: row.port.getaddrinfo("a", 80, -1), ValueError, "family must be"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        number = 1000 + self.next()
        return self.port.getaddrinfo("127.0.0.1", number, key=KEY, overlapped=overlapped)

    def value(self, done: Any) -> Any:
        return done.overlapped.result()[0][4]

    def expected(self, number: int) -> Any:
        return "127.0.0.1", 1000 + number


class Submit(Lookup):
    id = "submit"
    title = "`submit`"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.submit(None), TypeError, "function must be callable"),
        (lambda row: row.port.submit(int, strand=5), TypeError, "Strand"),
        (lambda row: row.port.submit(int, overlapped=5), TypeError, "Overlapped"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.port.submit(divmod, 1000 + self.next(), 1000, key=KEY, overlapped=overlapped)

    def value(self, done: Any) -> Any:
        return done.overlapped.result()

    def expected(self, number: int) -> Any:
        return divmod(1000 + number, 1000)
