"""Keep programs running: print what they write, and start them again when they end.

    python examples/supervisor.py [options] 'NAME=COMMAND' ['NAME=COMMAND' ...]

One thread waits at one port for everything: the output of each program, its end, the time at which
it is started again, and the signals that end them all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from completionport import Completion, CompletionPort, Handle

SIZE = 65536
MOST_DOUBLED = 60
"""So often at most the time before a restart is doubled: a number has an end."""
WINDOWS = sys.platform == "win32"
if sys.platform == "win32":
    import ctypes
    import msvcrt
    from asyncio import windows_utils

    STOP_SIGNALS = (signal.SIGINT, signal.SIGBREAK)
    # A group of its own: Ctrl-C is for the supervisor, which ends them in order.
    OPTIONS: dict[str, Any] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
    OPTIONS: dict[str, Any] = {"start_new_session": True}


def make_pipe() -> tuple[Any, int]:
    """What the port reads a program's output from, and what the program writes to."""
    if sys.platform == "win32":
        # An end that belongs to a port is overlapped, and those that subprocess makes are not.
        reading, writing = windows_utils.pipe(overlapped=(True, False))
        return windows_utils.PipeHandle(reading), msvcrt.open_osfhandle(writing, 0)
    reading, writing = os.pipe()
    return open(reading, "rb", 0), writing


class Run:
    """One run of a program: a process and its output. It is the key of both handles."""

    def __init__(self, program: Program, port: CompletionPort) -> None:
        self.program = program
        self.began = time.monotonic()
        self.rest = b""  # of a line that is not whole yet
        source, end = make_pipe()
        try:
            self.process = subprocess.Popen(
                program.command,
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=subprocess.STDOUT,
                **OPTIONS,
            )
        except BaseException:
            source.close()
            raise
        finally:
            os.close(end)
        self.output: Handle = port.associate(source, self)
        self.end: Handle = port.associate(self.process, self)
        self.output.read(SIZE)

    @property
    def over(self) -> bool:
        """It has ended, and all that it wrote was printed."""
        return self.output.closed and self.end.closed

    def terminate(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                # Not os.kill, which ends the process where the console can't pass it on.
                ctypes.windll.kernel32.GenerateConsoleCtrlEvent(
                    signal.CTRL_BREAK_EVENT, self.process.pid
                )
            else:
                os.killpg(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, and on Unix what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)


class Program:
    def __init__(self, text: str) -> None:
        name, found, command = text.partition("=")
        if not found or not name or not command.strip():
            raise ValueError(f"{text!r} is not of the form NAME=COMMAND")
        self.name = name
        # Windows takes the line as it is, with its own rules for what is quoted.
        self.command = command.strip() if WINDOWS else shlex.split(command)
        first = shlex.split(command, posix=not WINDOWS)[0].strip('"')
        if shutil.which(first) is None:
            raise ValueError(f"{name}: there is no program {first!r}")
        self.failures = 0  # in a row
        self.finished = False


class Supervisor:
    def __init__(self, port: CompletionPort, options: argparse.Namespace) -> None:
        self.port = port
        self.options = options
        self.programs: list[Program] = options.program
        self.runs: set[Run] = set()
        self.stopping = False
        for number in STOP_SIGNALS:
            port.associate_signal(number, self)

    def run(self) -> None:
        for program in self.programs:
            self.start(program)
        while self.runs or not (self.stopping or all(one.finished for one in self.programs)):
            packet = self.port.get()
            if packet is None:
                continue
            if packet.key is self:
                self.stop()
            elif isinstance(packet.key, Program):
                self.start(packet.key)
            elif packet.key is None:
                for run in self.runs:
                    run.kill()
                    if run.end.closed:
                        # What it started in another group has its output still. The packet says so.
                        run.output.close()
                if self.runs:
                    self.port.post_after(max(self.options.grace, 0.1), key=None)
            else:
                self.serve(packet.key, packet)

    def say(self, program: Program, text: str) -> None:
        print(f"{program.name}: {text}", flush=True)

    def start(self, program: Program) -> None:
        if self.stopping:
            return
        try:
            run = Run(program, self.port)
        except OSError as error:
            self.say(program, f"can't be started: {error}")
            self.again(program, failed=True)
            return
        self.runs.add(run)
        self.say(program, f"started as process {run.process.pid}")

    def serve(self, run: Run, packet: Completion) -> None:
        if packet.overlapped.handle is run.output:
            if packet.error is None and packet.transferred:
                *lines, run.rest = (run.rest + packet.overlapped.result()).split(b"\n")
                self.print(run, lines)
                run.output.read(SIZE, overlapped=packet.overlapped)
                return
            self.print(run, [run.rest] if run.rest else [])
            run.output.close()
        else:
            run.end.close()
            self.ended(run, packet.transferred)
        if run.over:
            self.runs.discard(run)

    def print(self, run: Run, lines: list[bytes]) -> None:
        name = run.program.name.encode()
        write(b"".join(b"%b | %b\n" % (name, line) for line in lines))

    def ended(self, run: Run, status: int) -> None:
        how = f"ended with status {status}"
        if status < 0:
            how = f"was ended by {signal_name(-status)}"
        self.say(run.program, how)
        if time.monotonic() - run.began >= self.options.healthy:
            run.program.failures = 0
        self.again(run.program, failed=status != 0)

    def again(self, program: Program, failed: bool) -> None:
        """Start the program again in a while, if wanted; each failure doubles the time."""
        restart = self.options.restart
        if self.stopping or restart == "never" or (restart == "on-failure" and not failed):
            program.finished = True
            return
        pause = min(self.options.backoff * 2**program.failures, self.options.longest)
        program.failures = min(program.failures + 1, MOST_DOUBLED)
        self.port.post_after(pause, key=program)
        self.say(program, f"starts again in {pause:g} s")

    def stop(self) -> None:
        """End all; who does not go in time is killed, and at a second signal at once."""
        again, self.stopping = self.stopping, True
        for run in self.runs:
            if again:
                run.kill()
            else:
                run.terminate()
        self.port.post_after(self.options.grace, key=None)


def write(data: bytes) -> None:
    """Print bytes. Where stdout is not buffered (``python -u``) one write may take a part only."""
    left = memoryview(data)
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of those for programs, SIGRTMIN and up, has no name
        return f"signal {number}"


def seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"invalid time {text!r}: from 0 to 1e6 seconds")
    return value


def program(text: str) -> Program:
    try:
        return Program(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("program", nargs="+", type=program, metavar="NAME=COMMAND")
    parser.add_argument("--restart", choices=["always", "on-failure", "never"], default="always")
    times = {
        "backoff": (0.5, "before the first restart; each further one takes twice as long"),
        "longest": (60.0, "the longest time before a restart"),
        "healthy": (10.0, "who ran for so long begins with the first time again"),
        "grace": (5.0, "at the end: the time from SIGTERM to SIGKILL"),
    }
    for name, (default, text) in times.items():
        parser.add_argument(
            f"--{name}", type=seconds, default=default, metavar="SECONDS", help=text
        )
    parser.add_argument("--engine", help="the best one here when left out")
    options = parser.parse_args()
    try:
        if sys.stdout is None:
            raise ValueError("standard output is closed: there is nowhere to print to")
        with CompletionPort(engine=options.engine) as port:
            supervisor = Supervisor(port, options)
            try:
                supervisor.run()
            finally:
                for run in supervisor.runs:
                    run.kill()
    except BrokenPipeError:
        # Nothing must be left to be written at the end of the program.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print("supervisor: nobody reads the output any more: all are ended", file=sys.stderr)
        return 1
    except (OSError, RuntimeError, ValueError) as error:
        print(f"supervisor: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
