"""What `pip install` brings along where nothing can be compiled."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import completionport
from support import WINDOWS

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns("*.c", "*.so", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The sources alone, as a checkout has them."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this interpreter has no pip to build with")
    tree = tmp_path_factory.mktemp("sources") / "a tree"
    shutil.copytree(ROOT / "src", tree / "src", ignore=NOT_COPIED)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The package as a wheel, built as on Windows."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", ".", str(tree)],
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


class Installed:
    """An environment with nothing but the package, which pip has put there."""

    def __init__(self, folder, source, **environment):
        venv.create(folder, with_pip=True, symlinks=True)
        self.python = folder / ("Scripts/python.exe" if WINDOWS else "bin/python")
        self.run("-m", "pip", "install", "--quiet", "--no-deps", str(source), **environment)

    def run(self, *arguments, **environment):
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("COMPLETIONPORT", "PYTHON"))
        }
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=self.python.parent,
            env={**kept, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def remedy(self, engine):
        """What `completionport engines` says of one: why not, and what to do."""
        table = self.run("-m", "completionport", "engines").stdout
        (row,) = [line for line in table.splitlines() if line.startswith(engine)]
        _, usable, *why = re.split(r"  +", row)
        assert usable == "no"
        assert re.search(r"^selectors +yes \(default\)", table, re.MULTILINE)
        return why


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="nothing is compiled elsewhere")
FIRST_PORTS = """
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
import completionport as c
for _ in range(3):
    with c.CompletionPort() as port:
        port.post(7)
        print(port.engine, port.get().transferred)
"""
FROM_CHECKOUT = """
import sys
sys.path.insert(0, sys.argv[1])
from completionport.engines import probe
print(probe("epoll").remedy)
"""


@needs_linux
@pytest.mark.timeout(900)
def test_it_installs_without_a_compiler_and_says_what_to_do(tree, tmp_path):
    installed = Installed(tmp_path / "environment", tree, CC="false", CXX="false")
    for engine in ("io_uring", "epoll"):
        reason, remedy = installed.remedy(engine)
        assert "without a C compiler" in reason
        assert "python3-dev" in remedy
        command = shlex.split(remedy.partition("then: ")[2])
        assert command[:5] == ["python", "-m", "pip", "install", "--force-reinstall"]
        assert "--no-cache-dir" in command  # or pip takes the wheel that it has built just now
        assert Path(command[-1]) == tree
    done = installed.run("-c", FIRST_PORTS)
    assert done.stdout == "selectors 7\n" * 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("completionport INFO running on the engine selectors")
    assert "compiler" in line
    quiet = installed.run("-c", FIRST_PORTS, COMPLETIONPORT_ENGINE="selectors")
    assert quiet.stderr == ""
    version = installed.run("-m", "completionport", "--version").stdout.split()[1].rstrip(",")
    assert version == completionport.__version__
    script = "from importlib.metadata import version; print(version('completionport'))"
    assert installed.run("-c", script).stdout.strip() == version


@needs_linux
def test_one_that_came_from_a_wheel_is_told_to_get_the_sources(wheel, tmp_path):
    _, remedy = Installed(tmp_path / "environment", wheel).remedy("epoll")
    assert "get the sources of completionport" in remedy
    assert remedy.endswith("--no-cache-dir .")


@needs_linux
def test_one_that_runs_from_its_checkout_is_told_to_build_there(tree):
    done = subprocess.run(
        [sys.executable, "-S", "-c", FROM_CHECKOUT, str(tree / "src")],
        capture_output=True,
        text=True,
    )
    command = shlex.split(done.stdout.partition("then: ")[2])
    assert command[-2:] == ["--editable", str(tree)], done.stderr


@needs_linux
@pytest.mark.timeout(900)
def test_a_build_that_must_compile_fails_where_it_can_not(tree, tmp_path):
    shutil.copytree(tree, one := tmp_path / "one")
    for source in one.rglob("*.pyx"):
        if source.name != "guard.pyx":  # one module is enough
            source.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(one)],
        env={**os.environ, "CC": "false", "COMPLETIONPORT_COMPILED": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert re.search(r"error: [Cc]ommand .*false", done.stdout + done.stderr)
