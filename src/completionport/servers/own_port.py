"""The port that a server made for itself, as the program sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol

from ..interface.errors import PortOwned
from ..interface.port import CompletionPort


class Owner(Protocol):
    """The server."""

    def stop(self, grace: float = 5.0) -> None:
        """End it, and with it the port."""


class OwnPort(CompletionPort):
    """What a server's port can be asked for; all else raises `PortOwned`.

    Its workers take every packet of the port. So nobody else waits there, and the program's packets
    are taken where the handler has a callback for them.
    """

    def __new__(cls, port: CompletionPort, server: Owner, takes_packets: bool) -> OwnPort:
        return object.__new__(cls)

    def __init__(self, port: CompletionPort, server: Owner, takes_packets: bool) -> None:
        self._port = port
        self._server = server
        self._takes_packets = takes_packets

    @property
    def concurrency(self) -> int:
        return self._port.concurrency

    @property
    def engine(self) -> str:
        return self._port.engine

    @property
    def closed(self) -> bool:
        return self._port.closed

    def stats(self) -> dict[str, Any]:
        return self._port.stats()

    def blocking(self) -> AbstractContextManager[None]:
        return self._port.blocking()

    def get(self, timeout: float | None = None) -> NoReturn:
        self._refuse("get()")

    def get_many(self, max_count: int, timeout: float | None = None) -> NoReturn:
        self._refuse("get_many()")

    def close(self) -> None:
        """``stop(0)`` of the server."""
        self._server.stop(0)

    def _refuse(self, what: str) -> NoReturn:
        """Raise what the program is told that asks for ``what``."""
        raise PortOwned(what, repr(self._server))

    def __repr__(self) -> str:
        return repr(self._port)


def _passing(name: str, what: str) -> Callable[..., Any]:
    @functools.wraps(getattr(CompletionPort, name))
    def method(self: OwnPort, *arguments: Any, **options: Any) -> Any:
        if not self._takes_packets:
            self._refuse(what)
        return getattr(self._port, name)(*arguments, **options)

    return method


def _pass_the_rest() -> None:
    """Whatever a port can do, also what it learns later; what is named above stays."""
    for name, value in vars(CompletionPort).items():
        if callable(value) and not name.startswith("_") and name not in vars(OwnPort):
            setattr(OwnPort, name, _passing(name, f"{name}()"))
    OwnPort._new_strand = _passing("_new_strand", "Strand()")  # type: ignore[method-assign]


_pass_the_rest()
