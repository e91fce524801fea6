"""Which engines run here, why not, and which one a new port takes."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import EngineUnavailable

if TYPE_CHECKING:
    from .interface import CompletionPort

ENGINES = ("iocp", "io_uring", "epoll", "selectors")
"""All engines, the preferred one first."""

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


@dataclass(frozen=True)
class EngineReport:
    """What is known of one engine on this machine."""

    name: str
    usable: bool
    reason: str = ""
    remedy: str = ""
    features: dict[str, bool] = field(default_factory=dict)


def probe(name: str) -> EngineReport:
    """Look whether the engine ``name`` runs here, by asking the kernel for it."""
    return _report(name, True)


def _report(name: str, thorough: bool) -> EngineReport:
    if name == "selectors":
        return EngineReport(name, *((False, *_NEEDS_UNIX) if _WINDOWS else (True,)))
    if _WINDOWS and name in ("io_uring", "epoll"):
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
        from .portable.selectors_port import SelectorsPort

        return SelectorsPort
    if wanted == "iocp":
        from .windows.port import IocpPort

        return IocpPort
    from .native.port import ports

    return ports.PORTS[wanted]
