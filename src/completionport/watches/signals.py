"""Signals on a port: `CompletionPort.associate_signal`.

Python's own handlers are used, which run in the main thread, and not signalfd(2): a signal goes to
its descriptor only while it is blocked in every thread. A library can't block it in threads that
it did not start, and the programs that are started would inherit the mask.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import weakref
from typing import Any

from ..interface.errors import CompletionPortError, system_error
from ..interface.port import CompletionPort, SignalWatch, Strand, check_strand

CONSOLE_SIGNALS = ("SIGINT", "SIGBREAK")
"""What Windows tells a process of: Ctrl-C, and Ctrl-Break or the end of its console."""

Previous = Any
"""What `signal.signal` returned: a function, SIG_DFL, SIG_IGN, None for a handler not of Python."""

# signum -> who is told, and what is done when nobody is left. Changed in the main thread only, but
# for `_Watchers.watches`, whose steps are atomic: close() may come from any thread.
_watched: dict[int, _Watchers] = {}


class _Watchers:
    def __init__(self, signum: int, previous: Previous) -> None:
        self.signum = signum
        self.previous = previous
        self.watches: dict[_Watch, None] = {}

    def handle(self, signum: int, frame: Any) -> None:
        """The handler. Python calls it in the main thread, between two of its steps."""
        told = False
        for watch in list(self.watches):
            told = watch._tell() or told
        if not told:
            self.retire()
            _apply(self.previous, signum, frame)

    def retire(self) -> None:
        """Nobody is left: put the handler back that was there before. Main thread."""
        if _watched.get(self.signum) is self:
            del _watched[self.signum]
        # Somebody may have set another one since: then that stays.
        if self.previous is not None and signal.getsignal(self.signum) == self.handle:
            signal.signal(self.signum, self.previous)


def _apply(previous: Previous, signum: int, frame: Any) -> None:
    """Do what would have been done without us."""
    if callable(previous):
        previous(signum, frame)
    elif previous == signal.SIG_DFL:
        signal.raise_signal(signum)  # os.kill would end the process on Windows, whatever the signal


class _Watch(SignalWatch):
    """One port's wish to be told of a signal."""

    __slots__ = ("__weakref__", "_port", "_strand", "_watchers", "key", "signum")

    def __init__(
        self, port: CompletionPort, watchers: _Watchers, key: Any, strand: Strand | None
    ) -> None:
        self._port = weakref.ref(port)
        self._watchers = watchers
        self._strand = strand
        self.key = key
        self.signum = watchers.signum

    @property
    def port(self) -> CompletionPort | None:
        return self._port()

    @property
    def closed(self) -> bool:
        port = self._port()
        return self not in self._watchers.watches or port is None or port.closed

    def close(self) -> None:
        if self._watchers.watches.pop(self, False) is None and _in_main_thread():
            _retire_unused(self._watchers)

    def _tell(self) -> bool:
        """Post a packet; False when there is nobody to take it."""
        port = self._port()
        try:
            if port is None:
                raise CompletionPortError
            port.post(self.signum, self.key, None, strand=self._strand)
        except CompletionPortError:
            self._watchers.watches.pop(self, None)
            return False
        return True

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"signal {self.signum}"
        return f"<SignalWatch {state}, key {self.key!r}>"


def watch_signal(port: CompletionPort, signum: int, key: Any, strand: Strand | None) -> SignalWatch:
    """`CompletionPort.associate_signal`."""
    port._check()
    check_strand(strand, port)
    if not isinstance(signum, int) or isinstance(signum, bool):
        raise TypeError(f"signum must be the number of a signal, not {type(signum).__name__}")
    number = int(signum)
    if number not in signal.valid_signals():
        raise ValueError(f"signum must be the number of a signal, not {number}")
    if sys.platform == "win32" and signal.Signals(number).name not in CONSOLE_SIGNALS:
        raise ValueError(
            f"no {signal.Signals(number).name} ever comes from outside on Windows, which tells a "
            "process of SIGINT (Ctrl-C) and SIGBREAK (Ctrl-Break, the console is closed) only: "
            "take one of these, or post() what this process has to tell itself"
        )
    if not _in_main_thread():
        raise RuntimeError(
            "associate_signal() works in the main thread only, as signal.signal() does"
        )
    for other in list(_watched.values()):
        _retire_unused(other)
    watchers = _watched.get(number)
    if watchers is None or signal.getsignal(number) != watchers.handle:
        watchers = _Watchers(number, signal.getsignal(number))
        try:
            signal.signal(number, watchers.handle)
        except OSError as error:
            name = signal.Signals(number).name
            raise system_error(
                error.errno or errno.EINVAL,
                f"{name} can't be caught: the system ends or stops the process itself; watch for "
                "a signal that asks for it, as SIGTERM or SIGTSTP",
            ) from None
        _watched[number] = watchers
    watch = _Watch(port, watchers, key, strand)
    watchers.watches[watch] = None
    return watch


def _retire_unused(watchers: _Watchers) -> None:
    """Main thread. A signal handler may come in between, and retires it as well."""
    for watch in list(watchers.watches):
        if watch.closed:
            watchers.watches.pop(watch, None)
    if not watchers.watches:
        watchers.retire()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _in_child() -> None:
    """The ports are the parent's: the signal is treated as before."""
    for watchers in list(_watched.values()):
        watchers.watches.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
