"""Check what a program sees of the types: with mypy and pyright, and the stubs with stubtest.

python tools/check_types.py

Checked are the programs of tests/typing, of the README and of docs/from-win32.md, and every
example. `make lint` runs it. Needs mypy and pyright (the extra "lint").
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PROGRAMS = sorted((ROOT / "tests/typing").glob("*.py"))
ANNOTATED = [path for path in EXAMPLES if path.name not in ("article_echo.py", "win32_echo.py")]
"""Programs whose every function says its types. The others have the article's form."""
MYPY = (sys.executable, "-m", "mypy", "--config-file=", "--warn-unused-ignores")
STUBTEST = (
    *(sys.executable, "-m", "mypy.stubtest", "completionport", "--concise"),
    *("--mypy-config-file", "pyproject.toml", "--ignore-missing-stub"),
    *("--allowlist", "tools/stubtest_allowed.txt", "--ignore-unused-allowlist"),
)


def programs_of(page: str, folder: Path) -> list[Path]:
    """The examples of a page, each as a file: a function, since some end with a loop."""
    found = []
    for number, text in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    ):
        found.append(folder / f"{Path(page).stem.lower().replace('-', '_')}_{number}.py")
        found[-1].write_text(text)
    return found


def run(what: str, *command: object) -> bool:
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    clean = done.returncode == 0
    print(f"{what}: {'clean' if clean else 'FAILED'}", flush=True)
    if not clean:
        print(done.stdout + done.stderr)
    return clean


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        readme, win32 = programs_of("README.md", folder), programs_of("docs/from-win32.md", folder)
        plain = [path for path in readme if "def " not in path.read_text()]
        settings = folder / "pyrightconfig.json"
        files = [*PROGRAMS, *EXAMPLES, *readme, *win32]
        settings.write_text(
            json.dumps(
                {
                    "include": [os.path.relpath(path, folder) for path in files],
                    "pythonVersion": "3.11",
                    "extraPaths": [str(ROOT / "src")],
                    "reportUnnecessaryTypeIgnoreComment": "error",
                }
            )
        )
        checks = [
            run("mypy --strict, programs", *MYPY, "--strict", *PROGRAMS),
            run("mypy --strict, examples", *MYPY, "--strict", *ANNOTATED),
            run("mypy, all examples", *MYPY, "--check-untyped-defs", *EXAMPLES),
            run("mypy, README", *MYPY, "--check-untyped-defs", *readme),
            run("mypy --strict, README", *MYPY, "--strict", *plain),
            run("mypy, docs/from-win32.md", *MYPY, "--check-untyped-defs", *win32),
            run(
                "pyright",
                Path(sys.executable).with_name("pyright"),
                "--pythonpath",
                sys.executable,
                "--project",
                settings,
            ),
            run("stubtest", *STUBTEST),
        ]
    return 0 if all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
