"""What a connection of a `Server` and the socket of a `DatagramServer` have in common."""

from __future__ import annotations

import abc
from typing import Any


class ServiceSocket(abc.ABC):
    """A socket of a server, as its handler sees it."""

    __slots__ = ()

    state: Any
    """Yours: any object (per-handle data). None at first."""

    @property
    @abc.abstractmethod
    def sockname(self) -> Any:
        """This side's address."""

    @property
    @abc.abstractmethod
    def send_queue_size(self) -> int:
        """Bytes given to `send` that the kernel has not taken yet."""
