"""Write docs/reference.md from the docstrings.

python tools/make_reference.py            writes it
python tools/make_reference.py --check    exit status 1 when it is out of date
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

from made_page import write_or_check

import completionport
from completionport import win32
from completionport.interface.handle import Overlapped
from completionport.interface.port import Completion
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


SOURCE = Path(completionport.__file__).parent
DEFINITIONS = {
    # Not by `inspect`: public classes name the package as their module.
    part.name: part
    for room in ("interface", "servers", "watches", "win32")
    for path in sorted((SOURCE / room).glob("*.py"))
    for part in ast.parse(path.read_text()).body
    if isinstance(part, ast.ClassDef)
}
"""The classes that are documented, by name."""


def text(thing: object) -> str:
    """A docstring in Markdown."""
    return markdown(inspect.getdoc(thing) or "")


def markdown(doc: str) -> str:
    doc = re.sub(r"``(.+?)``", r"`\1`", doc)
    return re.sub(r"(?<!`)`([A-Za-z_.]+)`(?!`)", r"`\1`", doc)


def attributes(cls: type) -> dict[str, str]:
    """The attributes that a class declares, by name, each with the string behind it.

    In its body, or where ``__init__`` sets them. One without a string is an error: whoever reads
    the reference has nothing else.
    """
    body = DEFINITIONS[cls.__name__]
    blocks = [body.body]
    blocks += [
        part.body
        for part in body.body
        if isinstance(part, ast.FunctionDef) and part.name == "__init__"
    ]
    found = {}
    for block in blocks:
        for statement, behind in zip(block, [*block[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign):
                target = statement.target
            elif isinstance(statement, ast.Assign):
                target = statement.targets[0]
            else:
                continue
            if isinstance(target, ast.Name) and block is body.body:
                name = target.id
            elif isinstance(target, ast.Attribute):
                name = target.attr
            else:
                continue
            if name.startswith("_") or name in found:
                continue
            if not (isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)):
                raise ValueError(f"{cls.__name__}.{name} has no string behind it that documents it")
            found[name] = inspect.cleandoc(str(behind.value.value))
    return found


def members(cls: type) -> list[tuple[str, object]]:
    """What a class offers, in order: attributes as their texts, then methods and properties."""
    # What servers have in common, and their sockets, stands with each of them.
    own: dict[str, object] = {}
    kinds = [kind for kind in (Service, ServiceSocket) if issubclass(cls, kind)]
    for kind in (*kinds, cls):
        own.update(attributes(kind))
        for name, member in vars(kind).items():
            if name.startswith("_") or (name in own and kind is cls and isinstance(own[name], str)):
                continue
            if not (inspect.isfunction(member) or isinstance(member, property)):
                continue
            if not inspect.getdoc(member):
                raise ValueError(f"{cls.__name__}.{name} has no docstring")
            own[name] = member
    return list(own.items())


def signature(name: str, member: object) -> str:
    if isinstance(member, (property, str)):
        return name
    shown = inspect.signature(member)  # type: ignore[arg-type]
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for key, parameter in shown.parameters.items()
        if key != "self"
    ]
    return name + str(shown.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def documented(cls: type) -> type:
    """The class that carries the documentation: the program gets a derived or compiled one."""
    return {"Overlapped": Overlapped, "Completion": Completion}.get(cls.__name__, cls)


def entry(name: str, cls: type, mark: str = "#") -> list[str]:
    """A class and what it offers."""
    parts = [f"{mark}# {name}\n\n{text(cls)}\n"]
    for member_name, member in members(documented(cls)):
        words = markdown(member) if isinstance(member, str) else text(member)
        parts.append(f"{mark}## `{name}.{signature(member_name, member)}`\n\n{words}\n")
    return parts


def contents(parts: list[str]) -> str:
    """A list of the chapters, with the methods and attributes of each."""
    lines: list[str] = []
    seen: dict[str, int] = {}
    for part in parts:
        found = re.match(r"(#+) (.*)", part)
        assert found is not None
        title = found[2]
        link = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        # Names that differ by case only: the page's own headings get numbers, in order.
        seen[link] = seen.get(link, -1) + 1
        if seen[link]:
            link += f"-{seen[link]}"
        if found[1] == "##":
            lines.append(f"\n- [{title}](#{link})")
        else:
            short = re.sub(r"\(.*", "", title.strip("`")).rpartition(".")[2]
            comma = ":" if lines[-1].startswith("\n") else ","
            lines[-1] += comma
            lines.append(f" [{short}](#{link})")
    return "".join(lines).strip() + "\n"


def render() -> str:
    parts: list[str] = []
    for name in ORDER:
        parts += entry(name, getattr(completionport, name))
    parts.append("## Functions\n")
    for name in sorted(completionport.__all__):
        thing = getattr(completionport, name)
        if inspect.isfunction(thing):
            parts.append(f"### `{signature(name, thing)}`\n\n{text(thing)}\n")
    parts.append("## Errors\n")
    for name in sorted(completionport.__all__):
        cls = getattr(completionport, name)
        if isinstance(cls, type) and issubclass(cls, Exception):
            parts += entry(name, cls, "##")
    parts.append(f"## completionport.win32\n\n{text(win32)}\n")
    for name in sorted(win32.__all__, key=lambda name: (name.lower(), name)):
        thing = getattr(win32, name)
        if inspect.isfunction(thing):
            parts.append(f"### `{signature(name, thing)}`\n\n{text(thing)}\n")
        elif isinstance(thing, type) and thing.__name__ == name:
            parts += entry(name, thing, "##")
    head = "# Reference\n\nMade from the docstrings by `tools/make_reference.py`.\n"
    return "\n".join([head, contents(parts), *parts])


if __name__ == "__main__":
    sys.exit(write_or_check("reference.md", render(), "make_reference.py"))
