"""A descriptor of the package's own, for what a process or a directory tells."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator


class OwnDescriptor:
    """A descriptor that is closed with its last reference, or by `close`.

    Whoever uses its number while another thread may close it does so in `held`: the number may be
    another file's as soon as it is closed.
    """

    # Finalizers and signal handlers close it too, so no lock: each step is one of a list's, in this
    # order. Who uses it enters its name, then looks whether it is closed; who closes it says so,
    # then takes its own name away. So one of the two sees the other, and the last one out closes.
    __slots__ = ("__weakref__", "_number", "_open", "_users")

    def __init__(self, number: int) -> None:
        self._number = [number]  # who pops it closes it
        self._users: list[None] = [None]
        self._open = [None]  # who pops it takes the first user's name away

    def fileno(self) -> int:
        """The number, or -1 once it is closed."""
        try:
            return self._number[0] if self._open else -1
        except IndexError:
            return -1

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """Its number, which stays this file's for so long; -1 when it was closed before."""
        self._users.append(None)
        try:
            yield self.fileno()
        finally:
            self._leave()

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        # At the end of the interpreter the names of this module may be gone.
        try:
            self._open.pop()
        except IndexError:
            return
        self._leave(_close)

    def _leave(self, _close: Callable[[int], None] = os.close) -> None:
        self._users.pop()
        if self._users:
            return
        try:
            number = self._number.pop()
        except IndexError:
            return
        _close(number)

    def __del__(self) -> None:
        self.close()
