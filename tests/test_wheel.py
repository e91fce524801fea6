"""What `pip install` brings along where nothing can be compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns("*.c", "*.so", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as a wheel, built as on Windows, and from its sources alone."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this interpreter has no pip to build with")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "src", folder / "tree/src", ignore=NOT_COPIED)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", ".", "./tree"],
        cwd=folder,
        env={**os.environ, "COMPLETIONPORT_PURE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_it_is_for_every_system(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_it_holds_each_module_and_none_of_the_c_that_is_made(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("completionport/")}
    package = ROOT / "src"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert modules <= held
    assert "completionport/py.typed" in held
    assert not [name for name in held if name.endswith((".c", ".so"))]


def test_it_runs_without_being_compiled(wheel):
    script = (
        "import completionport as c, sys\n"
        "assert sys.path[0].endswith('.whl'), sys.path\n"
        "with c.CompletionPort() as port:\n"
        "    port.post(7, 'key', None)\n"
        "    print(port.engine, port.get().transferred)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(wheel)!r})\n{script}"],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "COMPLETIONPORT_ENGINE"},
    )
    assert done.stdout == "selectors 7\n", done.stderr
