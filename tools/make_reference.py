"""Write docs/reference.md from the docstrings.

python tools/make_reference.py            writes it
python tools/make_reference.py --check    exit status 1 when it is out of date
"""

from __future__ import annotations

import inspect
import re
import sys

from made_page import write_or_check

import completionport
from completionport import win32
from completionport.interface.handle import Overlapped
from completionport.servers.service import Service, ServiceSocket

ORDER = [
    "CompletionPort",
    "Handle",
    "Overlapped",
    "Completion",
    "Operation",
    "Strand",
    "Timer",
    "SignalWatch",
    "Change",
    "ChangeAction",
    "Histogram",
    "WorkerPool",
    "Server",
    "Handler",
    "Connection",
    "DatagramServer",
    "DatagramHandler",
    "Endpoint",
]


def text(thing: object) -> str:
    """A docstring in Markdown."""
    doc = inspect.getdoc(thing) or ""
    doc = re.sub(r"``(.+?)``", r"`\1`", doc)
    return re.sub(r"(?<!`)`([A-Za-z_.]+)`(?!`)", r"`\1`", doc)


def members(cls: type) -> list[tuple[str, object]]:
    # What servers have in common, and their sockets, stands with each of them.
    own: dict[str, object] = {}
    for shared in (Service, ServiceSocket):
        if issubclass(cls, shared):
            own.update(vars(shared))
    own.update(vars(cls))
    return [
        (name, member)
        for name, member in own.items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property))
        and inspect.getdoc(member)
    ]


def signature(name: str, member: object) -> str:
    if isinstance(member, property):
        return name
    shown = inspect.signature(member)  # type: ignore[arg-type]
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for key, parameter in shown.parameters.items()
        if key != "self"
    ]
    return name + str(shown.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def documented(name: str) -> type:
    """The class that carries the documentation: of Overlapped the program gets a derived one."""
    return Overlapped if name == "Overlapped" else getattr(completionport, name)


def render() -> str:
    parts = ["# Reference\n\nMade from the docstrings by `tools/make_reference.py`.\n"]
    for name in ORDER:
        cls = getattr(completionport, name)
        parts.append(f"## {name}\n\n{text(cls)}\n")
        if name == "Operation":
            parts.append("\n".join(f"- `{member.name}`" for member in cls) + "\n")
        for member_name, member in members(documented(name)):
            parts.append(f"### `{name}.{signature(member_name, member)}`\n\n{text(member)}\n")
    parts.append("## Errors\n")
    for name in sorted(completionport.__all__):
        cls = getattr(completionport, name)
        if isinstance(cls, type) and issubclass(cls, Exception):
            parts.append(f"### {name}\n\n{text(cls)}\n")
    parts.append(f"## completionport.win32\n\n{text(win32)}\n")
    for name in sorted(win32.__all__, key=lambda name: (name.lower(), name)):
        thing = getattr(win32, name)
        if inspect.isfunction(thing):
            parts.append(f"### `{signature(name, thing)}`\n\n{text(thing)}\n")
        elif isinstance(thing, type) and thing.__name__ == name:
            parts.append(f"### `{name}`\n\n{text(thing)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(write_or_check("reference.md", render(), "make_reference.py"))
