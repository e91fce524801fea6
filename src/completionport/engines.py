"""Which engines run here, why not, and which implementation stands behind what a program makes.

The interface imports no implementation: it asks this module, which stands above all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from .interface import handle
from .interface.errors import EngineUnavailable
from .interface.port import CompletionPort
from .servers.datagram_server import DatagramServer
from .servers.service import Core
from .servers.stream_server import Server

if TYPE_CHECKING:
    from .interface.handle import Overlapped as Overlapped
    from .interface.port import Completion as Completion
else:
    # One for all engines of a process: what a program derives from Overlapped is good at any port.
    try:
        from .native.port.operations import Completion
        from .native.port.overlapped import Overlapped
    except ImportError:
        from .interface.port import Completion  # noqa: F401
        from .portable.port.overlapped import Overlapped

ENGINES = ("iocp", "io_uring", "epoll", "selectors")
"""All engines, the preferred one first."""
COMPILED = ("io_uring", "epoll")
_WINDOWS = sys.platform == "win32"
_NEEDS_LINUX = (
    "it stands on the kernel of Linux",
    "Run it on Linux; on Windows the engine iocp does the same",
)
_NEEDS_UNIX = (
    "it needs the descriptors of a Unix and its calls that do not wait (fcntl, readv)",
    "On Windows the engine iocp does the same",
)
_NOT_COMPILED = (
    "the compiled module is missing",
    "Reinstall with a C compiler at hand: pip install --force-reinstall completionport",
)


class EngineReport(NamedTuple):
    """What is known of one engine on this machine."""

    name: str
    usable: bool
    reason: str = ""
    remedy: str = ""
    features: Mapping[str, bool] = MappingProxyType({})


def probe(name: str) -> EngineReport:
    """Look whether the engine ``name`` runs here, by asking the kernel for it."""
    return _report(name, True)


def _report(name: str, thorough: bool) -> EngineReport:
    if name == "selectors":
        return EngineReport(name, *((False, *_NEEDS_UNIX) if _WINDOWS else (True,)))
    if _WINDOWS and name in COMPILED:
        return EngineReport(name, False, *_NEEDS_LINUX)
    try:
        if name == "iocp":
            from .windows.probe import probe as ask_kernel
        elif name == "io_uring":
            from .native.engines.uring_probe import probe as ask_kernel
        elif name == "epoll":
            from .native.engines.epoll import probe as ask_kernel
        else:
            raise ValueError(f"unknown engine {name!r}: it is one of {', '.join(ENGINES)}")
    except ImportError:
        return EngineReport(name, False, *_NOT_COMPILED)
    reason, remedy, features = ask_kernel(thorough)
    return EngineReport(name, not reason, reason, remedy, features)


def port_class(engine: str | None) -> type[CompletionPort]:
    """The implementation of the engine asked for, or of the best one here."""
    wanted = engine if engine is not None else os.environ.get("COMPLETIONPORT_ENGINE") or None
    if wanted is None:
        wanted = next(name for name in ENGINES if _report(name, False).usable)
    else:
        report = _report(wanted, False)
        if not report.usable:
            raise EngineUnavailable(wanted, report.reason, report.remedy)
    if wanted == "selectors":
        from .portable.port.selectors_port import SelectorsPort

        return SelectorsPort
    if wanted == "iocp":
        from .windows.port import IocpPort

        return IocpPort
    from .native.port import ports

    return ports.PORTS[wanted]


def stream_core(port: CompletionPort) -> Callable[..., Core]:
    """What makes the core of a `Server` on this port."""
    if port.engine in COMPILED:
        from .native.server.server_core import ServerCore

        return ServerCore
    from .portable.server.connections import ServerCore as PortableCore

    return PortableCore


def datagram_core(port: CompletionPort) -> Callable[..., Core]:
    """What makes the core of a `DatagramServer` on this port."""
    if port.engine in COMPILED:
        from .native.server.datagram_core import DatagramCore

        return DatagramCore
    from .portable.server.datagram_core import DatagramCore as PortableCore

    return PortableCore


CompletionPort._choose = port_class
handle.Overlapped._implementation = Overlapped
Server._core_class = stream_core
DatagramServer._core_class = datagram_core
