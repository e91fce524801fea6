"""What every row has."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from completionport import Overlapped
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_quiet,
    local_pair,
    read_within,
    under_number,
)

if WINDOWS:
    import windows_support

KEY = "the row's key"
BIG = 400_000
"""Bytes, more than a pipe or a Unix socket keeps: what is sent waits for its reader."""
FAR_AWAY = 3600.0

Wrong = tuple[Callable[[Any], Any], "type[BaseException] | tuple[type[BaseException], ...]", str]

NO_HANDLE = "it belongs to no handle"
NO_CANCEL = "what is posted is not taken back"
NO_FILE = "the program has no descriptor that it could close"
NO_MODE = "there is no mode that would make it wait or not"
SIDE_BY_SIDE = "these run side by side, in any order"
NO_OVERLAPPED = "it has no Overlapped"
ONE_EACH = "a handle has one of them"

WITHOUT_HANDLE = {
    "test_a_handle_that_is_closed_ends_them": NO_HANDLE,
    "test_a_closed_handle_refuses": NO_HANDLE,
    "test_a_close_may_meet_the_end": NO_HANDLE,
    "test_what_was_refused_leaves_its_object_as_it_was": NO_HANDLE,
    "test_a_file_may_be_closed_behind_the_ports_back": NO_FILE,
}

NOT_ON_WINDOWS = {"test_a_child_of_fork_is_refused_and_the_parent_goes_on": "Windows has no fork"}
"""Tests of rules that are about nothing there, and why."""
WINDOWS_ONLY = "only Windows has such a thing"


class Row:
    """One kind of operation on a port, and what it needs around it."""

    id = ""
    title = ""
    several = 4
    """How many are begun at a time."""
    has_overlapped = True
    open_at_exit = False
    """Whether its files may be open when the interpreter ends: Windows deletes no such file."""
    cancel_gives_a_packet = True
    without: ClassVar[dict[str, str]] = {}
    """Rules that do not apply, and why: the names of their tests."""
    not_on_windows = ""
    not_on_unix = ""
    """Why there is nothing of the kind."""
    without_on_windows: ClassVar[dict[str, str]] = {}
    """Rules that do not apply there, and why."""
    wrong: ClassVar[list[Wrong]] = []
    """Calls that raise at once, what they raise, and what the message says."""

    def __init__(self, port: Any) -> None:
        self.port = port
        self.waits = True  # an operation is under way until `complete`
        self.stays = False  # it may be under way for good although it does not wait
        self.stack = contextlib.ExitStack()
        self.handle: Any = None  # where one is enough
        self.handles: list[Any] = []
        self.asides: list[Overlapped] = []  # operations that others wait behind
        self.completed = 0
        self.giving_up = threading.Event()  # what is waited for in `complete` may never come
        with contextlib.ExitStack() as undo:
            undo.push(self.stack)
            self.set_up()
            undo.pop_all()

    def set_up(self) -> None:
        """Make what it needs; `stack` undoes it."""

    def start(self, overlapped: Overlapped | None = None) -> Any:
        """Begin the next one."""
        raise NotImplementedError

    def start_again(self) -> Any:
        """Begin one on the handle that there is."""
        return self.start()

    def start_for_good(self) -> Any:
        """Begin one that stays under way until it is cancelled, where there is such a thing."""
        return self.start()

    def complete(self) -> None:
        """Let the oldest one come to its end."""
        raise NotImplementedError

    def value(self, done: Any) -> Any:
        """What a packet has brought. Belongs it to the program, it is let go."""
        return done.overlapped.result()

    def expected(self, number: int) -> Any:
        """What the packet of this one brings."""
        raise NotImplementedError

    def cancel(self, operation: Any) -> bool:
        return operation.cancel()

    @classmethod
    def why_not_on_windows(cls, test: str) -> str | None:
        """Why the rule of this test does not apply there; None where it does."""
        return cls.not_on_windows or NOT_ON_WINDOWS.get(test) or cls.without_on_windows.get(test)

    def set_mode(self, blocking: bool) -> None:
        """Put the program's file into blocking or non-blocking mode."""
        os.set_blocking(self.number(), blocking)

    def mode(self) -> bool:
        """Whether the program's file is in blocking mode."""
        return os.get_blocking(self.number())

    def number(self) -> int:
        """The number of the program's descriptor."""
        file = self.handles[0].file
        return file if isinstance(file, int) else file.fileno()

    def close_file(self) -> None:
        """Close the program's file without telling the handle."""
        file = self.handles[0].file
        os.close(file) if isinstance(file, int) else file.close()

    @contextlib.contextmanager
    def another_under(self, number: int) -> Iterator[Callable[[], None]]:
        """Another file under a number that has become free, and a look at whether it works."""
        if WINDOWS and windows_support.is_descriptor(self.handles[0].file):
            with windows_support.file_under_number(number) as works:
                yield works
            return
        near, far = local_pair()
        with far, under_number(near, number) as other:

            def works() -> None:
                far.sendall(b"hello")
                assert other.recv(10) == b"hello"
                other.sendall(b"hello")
                assert far.recv(10) == b"hello"

            yield works

    def release(self) -> None:
        """Let what is no part of the row come to its end as well."""
        for aside in self.asides:
            aside.cancel()

    # -- the same for every row

    def make_folder(self) -> str:
        """A folder of its own."""
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=self.open_at_exit)
        return self.stack.enter_context(folder)

    def associate(self, file: Any) -> Any:
        """A handle, whose file is closed with the row whatever becomes of the handle."""
        if isinstance(file, int):
            identity = os.fstat(file)
            self.stack.callback(close_if_same, file, identity)
        elif hasattr(file, "close"):
            self.stack.callback(file.close)
        handle = self.port.associate(file, KEY)
        self.handles.append(handle)
        return handle

    def take(self, count: int) -> list[Any]:
        """Take so many packets of the row's own."""
        packets: list[Any] = []
        while len(packets) < count:
            done = self.port.get(LONG)
            assert done is not None, f"{len(packets)} of {count} came; {self.port.stats()}"
            if not any(done.overlapped is aside for aside in self.asides):
                packets.append(done)
        return packets

    def assert_nothing_comes(self, seconds: float = 0) -> None:
        """No packet comes in that time."""
        done = self.port.get(seconds)
        assert done is None, done

    def carry_out(self, count: int) -> list[Any]:
        """Let so many come to their end, and take their packets meanwhile.

        What waits behind another one is begun by a thread that takes packets.
        """
        other = Background(lambda: [self.complete() for _ in range(count)])
        packets = self.take(count)
        other.outcome()
        return packets

    def assert_quiet(self) -> None:
        """No other packet comes, and nothing is left under way."""
        self.release()
        while any(aside.pending for aside in self.asides):
            done = self.port.get(LONG)
            assert any(done.overlapped is aside for aside in self.asides), done
        assert_quiet(self.port)

    def pull(self, source: Any, expected: bytes) -> None:
        """Read from the other side what is to come there."""
        data = bytearray()
        end = time.monotonic() + LONG
        while len(data) < len(expected):
            try:
                part = read_within(source, min(len(expected) - len(data), 65536), 0.02)
            except OSError:  # a reset, or a terminal whose other side is gone
                part = b""
            if part is not None:
                if not part:
                    break
                data += part
            elif self.giving_up.is_set():
                break
            else:
                assert time.monotonic() < end, f"{len(data)} of {len(expected)} bytes came"
        assert data == expected[: len(data)], "what came is not what was sent"

    def absorb(self, done: Any) -> None:
        """Take from the other side what an aborted one has moved already, as its packet says."""

    def check_end(self, count: int) -> None:
        """After so many: look whether they have done what they were to do."""

    def forget(self) -> None:
        """Drop the handles, and what goes with them."""
        self.handles.clear()
        self.handle = None
        self.asides.clear()

    def close(self) -> None:
        for handle in self.handles:
            handle.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()
        self.close()
        self.stack.close()
        # What a failed test has left under way, and those that stayed.
        while self.port is not None and not self.port.closed and self.port.stats()["pending"]:
            done = self.port.get(1)
            if done is None:
                break
            if done.error is None and not any(done.overlapped is aside for aside in self.asides):
                self.value(done)  # it may have brought a descriptor


def close_if_same(number: int, identity: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(number), identity):
            os.close(number)


def message(number: int) -> bytes:
    return b"%04d" % number
