"""What a compiled class does at its end, by its source: the collector clears an object's Python
attributes before ``__dealloc__`` runs."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import completionport

NATIVE = Path(completionport.__file__).parent / "native"
CLASS = re.compile(
    r"^((?:@[\w.()]+\n)*)cdef class (\w+)(?:\((\w+)\))?:\n((?:[ \t]+.*\n|\n)*)", re.MULTILINE
)
METHOD = re.compile(r"^    c?p?def [^(\n]*?(\w+)\((?:.*\n)+?(?=    \S|\Z)", re.MULTILINE)
ATTRIBUTE = re.compile(
    r"^    cdef (?:readonly |public )?(\w+) (\w+(?:, \w+)*)(?: .*)?$", re.MULTILINE
)
PYTHON = {"object", "bytes", "list", "dict", "set", "tuple", "str"}


class Class:
    def __init__(self):
        self.decorators = ""
        self.base = None
        self.attributes = {}
        self.methods = {}


def classes() -> dict[str, Class]:
    found = defaultdict(Class)
    for path in [*NATIVE.rglob("*.pxd"), *NATIVE.rglob("*.pyx")]:
        for decorators, name, base, body in CLASS.findall(path.read_text()):
            one = found[name]
            one.decorators += decorators
            one.base = base or one.base
            for kind, names in ATTRIBUTE.findall(body):
                one.attributes.update(dict.fromkeys(names.split(", "), kind))
            one.methods.update((match[1], match[0]) for match in METHOD.finditer(body))
    return found


def test_no_finalizer_uses_what_the_collector_has_cleared():
    known = classes()
    looked_at = []
    for name, one in known.items():
        if "__dealloc__" not in one.methods or "no_gc" in one.decorators:
            continue
        looked_at.append(name)
        methods, attributes, base = {}, {}, one
        while base is not None:
            methods = base.methods | methods
            attributes = base.attributes | attributes
            base = known.get(base.base)
        todo, seen = ["__dealloc__"], set()
        while todo:
            method = todo.pop()
            seen.add(method)
            for used in re.findall(r"\bself\.(\w+)", methods[method]):
                kind = attributes.get(used)
                assert kind not in {*PYTHON, *known}, (
                    f"{name}.{method} uses self.{used}, which the collector may have cleared: "
                    "see Strand (no_gc_clear) and Port.last_core"
                )
                if used in methods and used not in seen:
                    todo.append(used)
    assert {"Port", "Handle", "Core", "Connection"} <= set(looked_at)
