"""Operations that are a read below: what a process or a directory tells through a descriptor.

They are written once, above the engines. An engine carries the read out, and asks for its meaning
when the packet is taken.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .interface import Handle
    from .operation import Operation


class Meaning(Protocol):
    """What a read stands for."""

    @property
    def operation(self) -> Operation:
        """What the Overlapped says that it is used for."""

    @property
    def handle(self) -> Handle:
        """What the Overlapped says that it belongs to. It is kept alive until then."""

    def outcome(self, data: Any) -> tuple[int, Any]:
        """The packet's ``transferred`` and the result, from what was read.

        Called once, by the thread that takes the packet; not for one that failed or was
        cancelled. An `OSError` that it raises becomes the packet's error.
        """


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
