"""The interpreters under test: this one, and a free-threaded one or one with a GIL beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from processes import HERE, Failed, apart, run_client

FREE_THREADED_NAMES = ("python3.15t", "python3.14t", "python3.13t")

# The port is made first: a compiled module that does not say otherwise turns the GIL on.
LOOK = """
import json, platform, sys
from completionport import CompletionPort
with CompletionPort() as port:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
print(json.dumps({"version": platform.python_version(), "gil": gil}))
"""


@dataclass
class Interpreter:
    """One that has completionport, and how fast it computes."""

    kind: str
    command: Sequence[str]
    version: str
    iterations_per_us: float = field(default=0.0)

    def calibrate(self) -> None:
        """Once, before all cases, so that what is compared does the same work."""
        found = run_client([*self.command, str(HERE / "work.py")], 10, apart().server)
        self.iterations_per_us = found["iterations_per_us"]

    def iterations(self, microseconds: float) -> int:
        return max(1, round(microseconds * self.iterations_per_us))


def look(command: Sequence[str]) -> Interpreter:
    """What kind of interpreter that is; `Failed` when it can't be measured."""
    try:
        asked = subprocess.run(
            [*command, "-P", "-c", LOOK], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError) as problem:
        raise Failed(str(problem)) from None
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"]
        raise Failed(f"{command[0]}: {said[-1]}")
    found = json.loads(asked.stdout)
    return Interpreter("GIL" if found["gil"] else "free-threaded", command, found["version"])


class Interpreters:
    """Those that were found, and why others were not."""

    def __init__(self, free_threaded: str | None) -> None:
        self.found: dict[str, Interpreter] = {}
        self.missing: dict[str, str] = {}
        self._add(look([sys.executable]))
        if "free-threaded" not in self.found:
            self._find_free_threaded(free_threaded)
        if "GIL" not in self.found:
            self.missing["GIL"] = "this interpreter has none: run it with one that has"
        for interpreter in self.found.values():
            interpreter.calibrate()

    def _add(self, interpreter: Interpreter) -> None:
        self.found[interpreter.kind] = interpreter

    def _find_free_threaded(self, asked_for: str | None) -> None:
        names = [asked_for] if asked_for else FREE_THREADED_NAMES
        paths = [path for name in names if (path := shutil.which(name))]
        if not paths:
            self.missing["free-threaded"] = f"no {' or '.join(names)} found; see --free-threaded"
            return
        try:
            # A PYTHONPATH is for this interpreter: modules compiled for it do not fit there.
            other = look([str(Path(paths[0]).absolute()), "-E"])
        except Failed as failure:
            self.missing["free-threaded"] = str(failure)
            return
        if other.kind == "free-threaded":
            self._add(other)
        else:
            self.missing["free-threaded"] = (
                f"{paths[0]} runs with the GIL once completionport is in"
            )

    def about(self) -> dict[str, str]:
        texts = {
            kind: f"{one.version} ({one.iterations(50)} iterations in 50 us)"
            for kind, one in self.found.items()
        }
        return texts | {kind: f"missing ({why})" for kind, why in self.missing.items()}
