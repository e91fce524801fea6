"""The processes of a benchmark: building, starting, pinning, measuring and ending them.

Everything here has a limit in time, and every process that was started is ended by its own id.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
SERVER_CORE, CLIENT_CORE = 0, 1
START_SECONDS = 20.0
END_SECONDS = 8.0
MARGIN_SECONDS = 40.0
"""How much longer than asked a client may take before it is ended."""


class Failed(Exception):
    """A program did not do what it should; the text says what, and what it said itself."""


def build(name: str) -> Path:
    """Compile ``name``.c when the program is missing or older than its sources."""
    source, program = HERE / f"{name}.c", BUILD / name
    changed = max(path.stat().st_mtime for path in (source, *HERE.glob("*.h")))
    if not program.exists() or program.stat().st_mtime < changed:
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            raise Failed("no C compiler found: install one, or name it in CC")
        BUILD.mkdir(exist_ok=True)
        made = subprocess.run(
            [*compiler.split(), "-O2", "-Wall", "-Wextra", "-o", program, source],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if made.returncode:
            raise Failed(f"{source.name} does not compile:\n{made.stderr}")
    return program


def raise_descriptor_limit() -> None:
    """For the servers too: they inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Places(NamedTuple):
    """The processors for the server and those for the client, None for any."""

    server: set[int] | None
    client: set[int] | None


def apart() -> Places:
    """A core for the server and one for the client, where there are two of them."""
    usable = os.sched_getaffinity(0)
    if {SERVER_CORE, CLIENT_CORE} <= usable:
        return Places({SERVER_CORE}, {CLIENT_CORE})
    first_two = sorted(usable)[:2]
    return Places({first_two[0]}, {first_two[1]}) if len(first_two) == 2 else Places(None, None)


def together() -> Places:
    """The same two cores for both."""
    both = set().union(*(part or () for part in apart())) or None
    return Places(both, both)


def busy_seconds() -> float:
    """CPU time that all processors together have spent at work."""
    ticks = [int(tick) for tick in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = ticks[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    command: list[str], cores: set[int] | None, **streams: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process on ``cores``; asked to end when the block is left, and killed if it does not."""

    def pin() -> None:
        if cores is not None:
            os.sched_setaffinity(0, cores)

    process = subprocess.Popen(command, preexec_fn=pin, text=True, **streams)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()


class EchoServer:
    """A server under test, that has answered once."""

    def __init__(
        self, process: subprocess.Popen[str], port: int, errors: Any, places: Places, kind: int
    ) -> None:
        self.process = process
        self.kind = kind
        self.pid = process.pid
        self.port = port
        self.places = places
        self._errors = errors

    def said(self) -> str:
        """The end of what it wrote to standard error."""
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return " / ".join(line.strip() for line in lines[-2:])

    def wait_until_it_answers(self) -> None:
        limit = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                status = self.process.returncode
                raise Failed(f"the server ended with status {status}: {self.said()}")
            if time.monotonic() > limit:
                raise Failed(f"the server did not answer in {START_SECONDS:.0f} s: {self.said()}")
            with contextlib.suppress(OSError), socket.socket(type=self.kind) as probe:
                probe.settimeout(2)
                probe.connect(("127.0.0.1", self.port))
                probe.send(b"?")
                if probe.recv(1) == b"?":
                    return
            time.sleep(0.05)

    def processes(self) -> list[int]:
        """The one that was started, and those that it has forked."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [self.pid, *map(int, children.read_text().split() if children.exists() else ())]

    def cpu_seconds(self) -> float:
        ticks = 0
        for pid in self.processes():
            # Behind the closing bracket of the name, which may hold anything.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes that only this process has: its heap, and mapped memory without a file.

        Pages of files (code, libraries) are left out: how many of them count as its own
        changes with what other processes have open.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(0.5)
        fields = {}
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value = line.split(":")
            fields[name] = int(value.split()[0]) * 1024
        if "Pss_Anon" in fields:
            return fields["Pss_Anon"] + fields["Pss_Shmem"]
        return fields["Private_Clean"] + fields["Private_Dirty"]


@contextlib.contextmanager
def echo_server(
    command: list[str], places: Places, kind: int = socket.SOCK_STREAM
) -> Iterator[EchoServer]:
    """A fresh server on its own port. ``{port}`` in the command is replaced."""
    port = free_port()
    with (
        tempfile.TemporaryFile("w+") as errors,
        running(
            [part.format(port=port) for part in command],
            places.server,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        ) as process,
    ):
        server = EchoServer(process, port, errors, places, kind)
        server.wait_until_it_answers()
        yield server


def run_client(command: list[str], seconds: float, cores: set[int] | None) -> dict[str, Any]:
    """Run a program that prints one line of JSON."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with running(command, cores, stdin=subprocess.DEVNULL, **pipes) as process:
        try:
            out, errors = process.communicate(timeout=seconds + MARGIN_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"{Path(command[0]).name} did not end in time") from None
    if process.returncode:
        lines = errors.strip().splitlines() or [f"exit status {process.returncode}"]
        raise Failed(lines[-1])
    return dict(json.loads(out))


def load(
    server: EchoServer, connections: int, size: int, seconds: float, *arguments: str
) -> dict[str, Any]:
    """One round of load; connecting and a moment after it are not measured.

    ``arguments``: further ones for the client.
    """
    warmup = max(0.1, seconds / 8)
    command = [str(build("client")), "127.0.0.1", str(server.port), str(connections), str(size)]
    command += [str(seconds), str(warmup), *arguments]
    if server.kind == socket.SOCK_DGRAM:
        command.append("--udp")
    for pid in server.processes():
        command += ["--server-pid", str(pid)]

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return server.cpu_seconds() + children.ru_utime + children.ru_stime

    busy, ours, start = busy_seconds(), spent(), time.monotonic()
    try:
        found = run_client(command, seconds + warmup, server.places.client)
    except Failed as failure:
        raise Failed(f"{failure}; server: {server.said() or 'nothing said'}") from None
    others = busy_seconds() - busy - (spent() - ours)
    return {**found, "others": max(0.0, others / (time.monotonic() - start))}


def read_line(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    assert process.stdout
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise Failed("the client said nothing in time")
    line = process.stdout.readline()
    if not line:
        raise Failed("the client ended before its time")
    return dict(json.loads(line))


def hold_idle(server: EchoServer, connections: int) -> dict[str, Any]:
    """Connect clients that say nothing; what each of them costs in memory."""
    before = server.memory()
    command = [str(build("idle")), str(connections), "127.0.0.1", str(server.port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with running(command, server.places.client, **pipes) as client:
        connected = read_line(client, MARGIN_SECONDS)
        each = (server.memory() - before) / connections
        assert client.stdin
        client.stdin.close()
        client.stdin = None
        end = read_line(client, MARGIN_SECONDS)
        client.wait(END_SECONDS)
    return {**connected, **end, "bytes_each": each}
