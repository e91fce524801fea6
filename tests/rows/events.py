"""Rows of posted packets, timers, processes, signals and directories."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any, ClassVar

from completionport import Change, ChangeAction, Overlapped, open_directory
from support import USER_SIGNAL, WINDOWS, raise_signal

from .base import (
    FAR_AWAY,
    KEY,
    NO_CANCEL,
    NO_FILE,
    NO_MODE,
    NO_OVERLAPPED,
    ONE_EACH,
    WITHOUT_HANDLE,
    Row,
    Wrong,
)

WITHOUT_OVERLAPPED = {
    "test_an_object_that_is_pending_is_refused": NO_OVERLAPPED,
    "test_one_object_can_be_used_again": NO_OVERLAPPED,
    "test_what_was_cancelled_leaves_its_object_and_its_followers_as_they_were": NO_OVERLAPPED,
    "test_what_was_refused_leaves_its_object_as_it_was": NO_OVERLAPPED,
    "test_what_is_dropped_lives_until_its_packet": NO_OVERLAPPED,
}


class Posted(Row):
    """Packets of the program's own, with their number in `transferred`."""

    has_overlapped = False
    cancel_gives_a_packet = False
    without: ClassVar[dict[str, str]] = {
        **WITHOUT_OVERLAPPED,
        **WITHOUT_HANDLE,
        "test_files_in_any_mode_work_alike": NO_MODE,
    }

    def set_up(self) -> None:
        self.waits = False
        self.begun = 0

    def value(self, done: Any) -> Any:
        return done.transferred

    def expected(self, number: int) -> Any:
        return number


class Post(Posted):
    id = "post"
    title = "`post`"
    without: ClassVar[dict[str, str]] = {
        **Posted.without,
        "test_a_cancel_may_meet_the_end": NO_CANCEL,
        "test_cancel_ends_it_with_one_packet": NO_CANCEL,
        "test_a_cancel_may_come_too_late": NO_CANCEL,
    }
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.post(1, 2, 3, 4), TypeError, "argument"),
        (lambda row: row.port.post(bytes=1), TypeError, "bytes"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        self.port.post(self.begun, KEY)
        self.begun += 1

    def complete(self) -> None:
        """It is there at once."""


class After(Posted):
    id = "post_after"
    title = "`post_after`, `post_at`"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.post_after(-1), ValueError, "seconds must be"),
        (lambda row: row.port.post_after(float("nan")), ValueError, "seconds must be"),
        (lambda row: row.port.post_after("1"), TypeError, "seconds must be"),
        (lambda row: row.port.post_at(float("inf")), ValueError, "when must be"),
        (lambda row: row.port.post_at(None), TypeError, "when must be"),
    ]

    def set_up(self) -> None:
        super().set_up()
        self.stays = True
        self.timers: list[Any] = []

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.set(0.005)

    def start_for_good(self) -> Any:
        return self.set(FAR_AWAY)

    def set(self, seconds: float) -> Any:
        number, self.begun = self.begun, self.begun + 1
        # A clock may stand still for 16 ms, and as a float its time may be a little less.
        seconds += number / 1_000_000
        if number % 2:
            timer = self.port.post_at(time.monotonic() + seconds, number, KEY)
        else:
            timer = self.port.post_after(seconds, number, KEY)
        self.timers.append(timer)
        return timer

    def complete(self) -> None:
        """Time does."""

    def close(self) -> None:
        for timer in self.timers:
            timer.cancel()


class Process(Row):
    id = "process"
    title = "the end of a process"
    has_overlapped = False
    without: ClassVar[dict[str, str]] = {
        **WITHOUT_OVERLAPPED,
        "test_they_are_carried_out_in_order": ONE_EACH,
        "test_a_file_may_be_closed_behind_the_ports_back": NO_FILE,
        "test_files_in_any_mode_work_alike": NO_MODE,
        "test_a_closed_handle_refuses": ONE_EACH,
    }
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.associate(row.processes[0]), TypeError, "argument"),
        (lambda row: row.handles[0].read(1), OSError, "only be waited for"),
        (lambda row: row.handles[0].cancel(5), TypeError, "Overlapped"),
    ]

    def set_up(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, overlapped: Overlapped | None = None) -> Any:
        if WINDOWS:
            command = ["cmd", "/c", f"set /p line= & exit {len(self.processes)}"]
        else:
            command = ["/bin/sh", "-c", f"read line; exit {len(self.processes)}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        self.processes.append(process)
        return self.associate(process)

    def complete(self) -> None:
        stdin = self.processes[self.completed].stdin
        assert stdin is not None
        stdin.close()
        self.completed += 1

    def value(self, done: Any) -> Any:
        assert done.overlapped.result() == done.transferred
        return done.transferred

    def expected(self, number: int) -> Any:
        return number

    def cancel(self, operation: Any) -> bool:
        return operation.cancel() == 1

    def absorb(self, done: Any) -> None:
        self.complete()  # it is still there


class Signal(Row):
    id = "signal"
    title = "a signal"
    several = 1
    has_overlapped = False
    cancel_gives_a_packet = False
    without: ClassVar[dict[str, str]] = {
        **WITHOUT_OVERLAPPED,
        **WITHOUT_HANDLE,
        "test_they_are_carried_out_in_order": "signals of one number count as one",
        "test_a_cancel_may_come_too_late": "a watch has no end of its own",
        "test_the_thread_that_began_it_may_end": "only the main thread may begin it",
        "test_files_in_any_mode_work_alike": NO_MODE,
    }
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.port.associate_signal("x", KEY), TypeError, "signum must be"),
        (lambda row: row.port.associate_signal(9999, KEY), ValueError, "signum must be"),
        (lambda row: row.port.associate_signal(USER_SIGNAL), TypeError, "key"),
    ]

    def set_up(self) -> None:
        before = signal.signal(USER_SIGNAL, lambda *_: None)
        self.stack.callback(signal.signal, USER_SIGNAL, before)

    def start(self, overlapped: Overlapped | None = None) -> Any:
        self.close()
        watch = self.port.associate_signal(USER_SIGNAL, KEY)
        self.handles.append(watch)
        return watch

    def complete(self) -> None:
        raise_signal(USER_SIGNAL)

    def value(self, done: Any) -> Any:
        return done.transferred

    def expected(self, number: int) -> Any:
        return int(USER_SIGNAL)

    def cancel(self, operation: Any) -> bool:
        operation.close()
        return True


class Changes(Row):
    id = "read_changes"
    title = "`read_changes` of a directory"
    several = 1
    without: ClassVar[dict[str, str]] = {
        "test_they_are_carried_out_in_order": "what happens meanwhile comes in one packet",
        "test_files_in_any_mode_work_alike": NO_MODE,
    }
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.read_changes(size=1), ValueError, "size must be"),
        (lambda row: row.handle.read_changes(size="x"), TypeError, "size must be"),
        (lambda row: row.handle.read_changes(True), ValueError, "recursive"),
        (lambda row: row.handle.read_changes(False, 5), TypeError, "Overlapped"),
    ]

    def set_up(self) -> None:
        self.folder = self.make_folder()
        self.handle = self.associate(open_directory(self.folder))

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.read_changes(overlapped=overlapped)

    def take(self, count: int) -> list[Any]:
        return [self.with_changes(done) for done in super().take(count)]

    def with_changes(self, done: Any) -> Any:
        """Now and then the kernel tells of the directory itself: a packet without changes."""
        while done.error is None and not done.overlapped.result():
            done.overlapped.handle.read_changes(overlapped=done.overlapped)
            [done] = super().take(1)
        return done

    def assert_nothing_comes(self, seconds: float = 0) -> None:
        done = self.port.get(seconds)
        if done is not None:
            assert (done.error, done.overlapped.result()) == (None, [])
            self.handle.read_changes(overlapped=done.overlapped)

    def complete(self) -> None:
        os.mkdir(os.path.join(self.folder, str(self.completed)))
        self.completed += 1

    def expected(self, number: int) -> Any:
        return [Change(ChangeAction.ADDED, str(number))]
