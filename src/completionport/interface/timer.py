"""`Timer`: a packet that comes at its time."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .unique import Unique


class Timer(Unique, ABC):
    """A packet that will be posted at its time, unless it is cancelled before.

    Made by `CompletionPort.post_after` and `CompletionPort.post_at`. The port keeps a pending
    timer alive: the program may drop it. Any thread may call any method.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def when(self) -> float:
        """When the packet is due, in seconds of `time.monotonic`'s clock."""

    @property
    @abstractmethod
    def pending(self) -> bool:
        """True while `cancel` can still stop the packet."""

    @abstractmethod
    def cancel(self) -> bool:
        """Stop the packet (``SetThreadpoolTimer`` with NULL, ``CancelWaitableTimer``).

        Returned: True when it was stopped, and then no packet comes and what was to be posted is
        let go. False when it is too late: the packet is in the queue or was taken, or the timer
        was cancelled before, or the port is closed. Of several threads that cancel it, one is
        told True.
        """
