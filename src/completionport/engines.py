"""Which engines run here, why not, and which implementation stands behind what a program makes.

The interface imports no implementation: it asks this module, which stands above all of them.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from .interface import handle
from .interface.errors import EngineUnavailable
from .interface.port import CompletionPort
from .servers.datagram_server import DatagramServer
from .servers.service import Core
from .servers.stream_server import Server
from .shared.version import VERSION

if TYPE_CHECKING:
    from .interface.handle import Overlapped as Overlapped
    from .interface.port import Completion as Completion
else:
    # One for all engines of a process: what a program derives from Overlapped is good at any port.
    try:
        from .native.port.completions import Completion
        from .native.port.overlapped import Overlapped
    except ImportError:
        from .interface.port import Completion
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
_OTHER_INTERPRETER = (
    "its compiled modules can be loaded in one interpreter of a process, the main one, and this is "
    "another",
    "Make the port there, or in a process of its own; selectors runs in every interpreter",
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
    if name in COMPILED and not sys.platform.startswith("linux"):
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
        if name in COMPILED:
            # What a port and a server take besides: a build may have left out any module.
            from .native.port import ports  # noqa: F401
            from .native.server import datagram_core, server_core  # noqa: F401
    except ImportError as error:
        return EngineReport(name, False, *_not_loaded(error))
    reason, remedy, features = ask_kernel(thorough)
    return EngineReport(name, not reason, reason, remedy, features)


def _not_loaded(error: ImportError) -> tuple[str, str]:
    """Why the compiled part is not there, and what to do."""
    if isinstance(error, ModuleNotFoundError):
        reason = (
            "the compiled module is missing: what was installed was built without a C compiler, or "
            "for another Python"
        )
    elif "interpreter" in str(error):  # CPython's own words, and Cython's before 3.12
        return _OTHER_INTERPRETER
    else:
        reason = f"the compiled module can't be loaded: {error}"
    return reason, (
        "Have a C compiler and Python's headers (Debian: gcc and python3-dev), "
        f"{_how_to_build_anew()}"
    )


def _how_to_build_anew() -> str:
    """What builds the compiled part, for where this package has come from."""
    from importlib import metadata

    install = "python -m pip install --force-reinstall --no-cache-dir"
    checkout = Path(__file__).parents[2]
    if (checkout / "setup.py").exists():
        return f"then: {install} --editable {shlex.quote(str(checkout))}"
    try:
        # PEP 610: pip has noted what it was given, unless it was a name.
        noted = metadata.distribution("completionport").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        noted = None
    origin = json.loads(noted) if noted else {}
    url = str(origin.get("url", ""))
    if "vcs_info" in origin:
        given = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
        return f"then: {install} {shlex.quote(given)}"
    if url.startswith("file:"):
        path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
        url = path if os.path.exists(path) else ""
    if url and not url.endswith(".whl"):
        return f"then: {install} {shlex.quote(url)}"
    return (
        f"get the sources of completionport {VERSION} (a wheel does not hold them), and in their "
        f"folder: {install} ."
    )


_untold: list[None] = [None]
"""Who pops it tells the log on which engine the process runs."""


def _tell_slow() -> None:
    """Say once why nothing better was chosen than the engine in Python."""
    try:
        _untold.pop()
    except IndexError:
        return
    reports = [_report(name, False) for name in COMPILED]
    logging.getLogger("completionport").info(
        "running on the engine selectors, which is Python's own code and slow. %s",
        " ".join(f"{one.name}: {one.reason}. {one.remedy}." for one in reports),
    )


def default_engine() -> str:
    """What a port takes that was told no engine: a name, of which it is not said that it runs."""
    asked = os.environ.get("COMPLETIONPORT_ENGINE")
    return asked or next(name for name in ENGINES if _report(name, False).usable)


def port_class(engine: str | None) -> type[CompletionPort]:
    """The implementation of the engine asked for, or of the best one here."""
    wanted = engine if engine is not None else default_engine()
    if engine is None and wanted not in ENGINES:
        raise ValueError(
            f"unknown engine {wanted!r} in the environment variable COMPLETIONPORT_ENGINE: "
            f"it is one of {', '.join(ENGINES)}, or empty for the best one"
        )
    report = _report(wanted, False)
    if not report.usable:
        raise EngineUnavailable(wanted, report.reason, report.remedy)
    if wanted == "selectors":
        if engine is None and not os.environ.get("COMPLETIONPORT_ENGINE"):
            _tell_slow()
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
    from .portable.server.server_core import ServerCore as PortableCore

    return PortableCore


def datagram_core(port: CompletionPort) -> Callable[..., Core]:
    """What makes the core of a `DatagramServer` on this port."""
    if port.engine in COMPILED:
        from .native.server.datagram_core import DatagramCore

        return DatagramCore
    from .portable.server.datagram_core import DatagramCore as PortableCore

    return PortableCore


CompletionPort._choose = port_class
CompletionPort._completion = Completion
handle.Overlapped._implementation = Overlapped
Server._core_class = stream_core
DatagramServer._core_class = datagram_core
