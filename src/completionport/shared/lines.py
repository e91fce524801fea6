"""Lines for the output, written by a thread of their own: nobody else waits for who reads them."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from typing import TextIO

MOST = 1000
"""Lines that may wait; what comes then is counted, and not printed."""


class Lines:
    """What is said goes to ``stream`` (None: nowhere), as soon as that takes it.

    The thread is a daemon and writes to the descriptor itself: an interpreter that ends waits for
    no lock of the stream's.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._descriptor: int | None = None
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._descriptor = stream.fileno()
        self._changed = threading.Condition()  # its lock guards what follows
        self._waiting: list[str] = []
        self._left_out = 0
        self._at_work = False
        if stream is not None:
            threading.Thread(target=self._write_all, name="lines", daemon=True).start()

    def say(self, line: str) -> None:
        """Have it written; it never waits and never fails."""
        with self._changed:
            if self._stream is None or len(self._waiting) >= MOST:
                self._left_out += 1
            else:
                self._waiting.append(line)
                self._changed.notify_all()

    def finish(self, seconds: float) -> None:
        """Wait until all is written, but not longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._at_work), seconds)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                lines, self._waiting = self._waiting, []
                if self._left_out:
                    lines.append(f"{self._left_out} lines were left out: nobody read them in time")
                    self._left_out = 0
                self._at_work = True
            # A reader that has gone, a full disk, a terminal that has hung up: nobody to tell it.
            with contextlib.suppress(OSError, ValueError):
                self._write("".join(f"{line}\n" for line in lines))
            with self._changed:
                self._at_work = False
                self._changed.notify_all()

    def _write(self, text: str) -> None:
        assert self._stream is not None
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        encoding = self._stream.encoding or "utf-8"
        rest = text.replace("\n", os.linesep).encode(encoding, "backslashreplace")
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody has made it non-blocking
                select.select([], [self._descriptor], [])


class LogLines(logging.Handler):
    """A log that holds up nobody who writes to it."""

    def __init__(self, lines: Lines) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.say(self.format(record))
