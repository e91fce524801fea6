"""A descriptor of the package's own, for what a process or a directory tells."""

from __future__ import annotations

import os
from collections.abc import Callable


class OwnDescriptor:
    """A descriptor that is closed with its last reference."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self, number: int) -> None:
        self._number = [number]  # who pops it closes it

    def fileno(self) -> int:
        try:
            return self._number[0]
        except IndexError:
            return -1

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        # At the end of the interpreter the names of this module may be gone.
        try:
            number = self._number.pop()
        except IndexError:
            return
        _close(number)

    def __del__(self) -> None:
        self.close()
