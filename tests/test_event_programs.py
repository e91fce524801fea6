"""examples/tail.py and examples/supervisor.py, run as programs."""

from __future__ import annotations

import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support import (
    LONG,
    STOP_SIGNALS,
    WINDOWS,
    WINE,
    needs_links,
    process_runs,
    stop_process,
    wait_until,
)

if not (WINDOWS or sys.platform.startswith("linux")):
    pytest.skip("they live from inotify(7) and pidfd_open(2)", allow_module_level=True)

EXAMPLES = Path(__file__).parent.parent / "examples"


class Program:
    """A program whose output is read line by line, each within the time."""

    def __init__(self, name, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, EXAMPLES / name, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            # On Windows a console of its own, to press Ctrl-C in.
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self.lines = queue.Queue()
        self.errors = queue.Queue()
        self.readers = [
            threading.Thread(target=self.read, args=(stream, lines))
            for stream, lines in (
                (self.process.stdout, self.lines), (self.process.stderr, self.errors),
            )
        ]  # fmt: skip
        for reader in self.readers:
            reader.start()

    @staticmethod
    def read(stream, lines):
        for line in stream:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    def line(self):
        line = self.lines.get(timeout=LONG)
        assert line is not None, "the output has ended"
        return line

    def until(self, pattern):
        """The lines up to one that matches, and what its groups matched."""
        seen = []
        while True:
            seen.append(self.line())
            if found := re.fullmatch(pattern, seen[-1]):
                return seen, found

    def stop(self, number=STOP_SIGNALS[-1]):
        """What it still printed."""
        stop_process(self.process, number)
        return self.end()

    def end(self, status=0):
        assert self.process.wait(LONG) == status
        left = list(iter(lambda: self.lines.get(timeout=LONG), None))
        errors = list(iter(lambda: self.errors.get(timeout=LONG), None))
        assert errors == []
        return left

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self.readers:
            reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


def run(name, *arguments):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


class TestTail:
    @pytest.mark.parametrize("number", STOP_SIGNALS)
    def test_the_last_lines_and_what_is_appended(self, engine, tmp_path, number):
        log = tmp_path / "log"
        log.write_text("".join(f"line {n}\n" for n in range(30_000)))
        with Program("tail.py", "-n", 3, "--every", 1000, "--engine", engine, log) as program:
            assert [program.line() for _ in range(3)] == [
                "line 29997", "line 29998", "line 29999",
            ]  # fmt: skip
            append(log, "more\n")
            assert program.line() == "more"
            append(log, "".join(f"many {n}\n" for n in range(30_000)))
            assert [program.line() for _ in range(30_000)][-1] == "many 29999"
            assert program.stop(number) == []

    def test_a_file_that_is_replaced_is_followed_by_its_name(self, engine, tmp_path):
        log = tmp_path / "log"
        log.write_text("old\n")
        with Program("tail.py", "--every", 1000, "--engine", engine, log) as program:
            assert program.line() == "old"
            for turn in range(3):
                append(log, f"last {turn}\n")
                log.rename(tmp_path / f"log.{turn}")
                append(log, f"first {turn}\n")
                assert [program.line(), program.line()] == [f"last {turn}", f"first {turn}"]
            assert program.stop() == []

    def test_a_file_that_is_cut_off_is_read_from_its_beginning(self, engine, tmp_path):
        log = tmp_path / "log"
        log.write_text("a long first line\n")
        with Program("tail.py", "--every", 0.05, "--engine", engine, log) as program:
            assert program.line() == "a long first line"
            log.write_text("anew\n")
            assert program.line() == "anew"
            assert program.stop() == []

    def test_several_files_have_headers_and_one_may_come_later(self, engine, tmp_path):
        one, other = tmp_path / "one", tmp_path / "other"
        one.write_text("1\n")
        with Program("tail.py", "--every", 1000, "--engine", engine, one, other) as program:
            assert program.errors.get(timeout=LONG).endswith(
                "other is not there yet: it is waited for"
            )
            assert [program.line(), program.line()] == [f"==> {one} <==", "1"]
            append(other, "2\n")
            assert [program.line() for _ in range(3)] == ["", f"==> {other} <==", "2"]
            append(other, "3\n")
            assert program.line() == "3"
            assert program.stop() == []

    @pytest.mark.skipif(WINDOWS, reason="a directory with an open file can't be deleted there")
    def test_a_directory_that_is_deleted_and_made_again(self, engine, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "log").write_text("old\n")
        with Program("tail.py", "--every", 0.05, "--engine", engine, folder / "log") as program:
            assert program.line() == "old"
            shutil.rmtree(folder)
            folder.mkdir()
            for turn in range(3):
                append(folder / "log", f"{turn}\n")
                assert program.line() == f"{turn}"
            assert program.stop() == []

    @needs_links
    def test_what_nobody_tells_of_is_found_by_the_timer(self, engine, tmp_path):
        folder, aside = tmp_path / "folder", tmp_path / "aside"
        folder.mkdir()
        aside.write_text("first\n")
        # The link's own folder does not change with what it leads to.
        (folder / "link").symlink_to(aside)
        with Program("tail.py", "--every", 0.05, "--engine", engine, folder / "link") as program:
            assert program.line() == "first"
            append(aside, "second\n")
            assert program.line() == "second"
            assert program.stop() == []

    def test_a_reader_that_goes_is_no_error(self, engine, tmp_path):
        log = tmp_path / "log"
        log.write_text("first\n")
        command = [sys.executable, EXAMPLES / "tail.py", "--every", "0.05", "--engine", engine, log]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout.readline().split() == [b"first"]
            process.stdout.close()
            append(log, "second\n")
            assert process.wait(LONG) == 0
            assert process.stderr.read() == b""

    @pytest.mark.parametrize(
        ("arguments", "status", "says"),
        [
            # Windows has texts of its own.
            (["/no/such/folder/file"], 1, "folder" if WINDOWS else "No such file or directory"),
            (["/dev"], 1, "dev" if WINDOWS else "/dev is a directory"),
            (["--engine", "none", "/etc/passwd"], 1, "unknown engine"),
            (["-n", "-1", "/etc/passwd"], 2, "invalid number of lines '-1'"),
            (["-n", "x", "/etc/passwd"], 2, "invalid number of lines 'x'"),
            (["--every", "0", "/etc/passwd"], 2, "invalid time '0'"),
            (["--every", "nan", "/etc/passwd"], 2, "invalid time 'nan'"),
        ],
    )
    def test_what_it_can_not_do_is_one_line(self, arguments, status, says):
        done = run("tail.py", *arguments)
        assert done.returncode == status
        assert says in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows' named pipes have no path here")
    def test_what_has_no_end_is_refused(self, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path / "fifo", os.devnull):
            done = run("tail.py", path)
            assert done.returncode == 1
            [line] = done.stderr.splitlines()
            assert f"{path} is no regular file" in line


def python(name, script):
    """A program for the supervisor."""
    command = [sys.executable, "-c", script]
    return f"{name}={subprocess.list2cmdline(command) if WINDOWS else shlex.join(command)}"


def waiting(name, on_terminate):
    """A program that says when it is ready, and waits to be ended."""
    number = "SIGBREAK" if WINDOWS else "SIGTERM"
    # Ctrl-Break does not end a sleep.
    wait = "time.sleep(0.05)" if WINDOWS else "signal.pause()"
    return python(
        name,
        f"import signal, sys, time; signal.signal(signal.{number}, {on_terminate}); "
        f"print('ready', flush=True); [None for _ in iter(lambda: {wait}, 0)]",
    )


def shell(name, unix, windows):
    """A command of the system's shell."""
    return f'{name}=cmd /c "{windows}"' if WINDOWS else f"{name}=/bin/sh -c {shlex.quote(unix)}"


class TestSupervisor:
    def test_a_program_that_ends_is_started_again(self, engine):
        command = shell("again", "echo hello; exit 3", "echo hello& exit 3")
        with Program("supervisor.py", "--backoff", 0.05, "--engine", engine, command) as program:
            seen, pauses = [], []
            while len(pauses) < 3:
                lines, found = program.until(r"again: starts again in (\S+) s")
                seen += lines
                pauses.append(float(found[1]))
            assert pauses == [0.05, 0.1, 0.2]
            assert seen.count("again: ended with status 3") == 3
            assert seen.count("again | hello") >= 2
            program.stop()

    def test_the_output_of_all_comes_in_whole_lines(self, engine):
        unix = "for i in 1 2 3; do printf a; echo b $i; done"
        windows = "echo ab 1& echo ab 2& echo ab 3"
        commands = [shell(f"p{n}", unix, windows) for n in range(5)]
        done = run("supervisor.py", "--restart", "never", "--engine", engine, *commands)
        assert (done.returncode, done.stderr) == (0, "")
        for number in range(5):
            lines = [line for line in done.stdout.splitlines() if line.startswith(f"p{number} | ")]
            assert lines == [f"p{number} | ab {i}" for i in (1, 2, 3)]
            assert f"p{number}: ended with status 0" in done.stdout

    def test_on_failure_starts_only_what_fails(self, engine, tmp_path):
        # The first run fails, the second one does not.
        seen = tmp_path / "seen"
        command = shell(
            "once",
            f"test -e {seen} && exit 0; touch {seen}; exit 1",
            f"if exist {seen} (exit 0) else (echo x>{seen}& exit 1)",
        )
        done = run(
            "supervisor.py",
            "--restart",
            "on-failure",
            "--backoff",
            0.01,
            "--engine",
            engine,
            command,
        )
        assert done.returncode == 0
        assert done.stdout.count("started as process") == 2
        assert done.stdout.endswith("once: ended with status 0\n")

    @pytest.mark.skipif(WINE, reason="Wine sends no Ctrl-Break, which asks a program to end")
    @pytest.mark.parametrize("number", STOP_SIGNALS)
    def test_a_signal_ends_all_in_order(self, engine, number):
        command = waiting("waits", "lambda *_: (print('bye'), sys.exit(0))")
        options = ("--engine", engine, "--grace", 60)  # for a busy machine
        with Program("supervisor.py", *options, command) as program:
            program.until(r"waits \| ready")
            left = program.stop(number)
            assert sorted(left) == ["waits | bye", "waits: ended with status 0"]

    def test_who_does_not_go_is_killed(self, engine):
        command = waiting("stays", "signal.SIG_IGN")
        with Program("supervisor.py", "--grace", 0.05, "--engine", engine, command) as program:
            program.until(r"stays \| ready")
            # TerminateProcess gives it this status.
            how = "ended with status 1" if WINDOWS else "was ended by SIGKILL"
            assert program.stop() == [f"stays: {how}"]

    def test_nothing_is_left_behind(self, engine):
        command = python("sleeps", "import time; time.sleep(1000)")
        options = ("--grace", 0.5, "--engine", engine)
        with Program("supervisor.py", *options, command) as program:
            _, found = program.until(r"sleeps: started as process (\d+)")
            program.stop()
        pid = int(found[1])
        wait_until(lambda: not process_runs(pid))

    @pytest.mark.skipif(WINDOWS, reason="a program that runs can't be deleted on Windows")
    def test_a_program_that_is_gone_later_is_tried_again(self, engine, tmp_path):
        script = tmp_path / "script"
        script.write_text(f"#!/bin/sh\nrm {script}\n")
        script.chmod(0o755)
        with Program(
            "supervisor.py", "--backoff", 0.01, "--engine", engine, f"it={script}"
        ) as program:
            lines, _ = program.until(r"it: can't be started: .*")
            assert "it: ended with status 0" in lines
            program.until(r"it: starts again in \S+ s")
            script.write_text("#!/bin/sh\necho back\n")
            script.chmod(0o755)
            program.until(r"it \| back")
            program.stop()

    @pytest.mark.parametrize(
        ("arguments", "status", "says"),
        [
            (["nonsense"], 2, "is not of the form NAME=COMMAND"),
            (["a=no-such-program x"], 2, "there is no program 'no-such-program'"),
            (["--engine", "none", f"a={sys.executable}"], 1, "unknown engine"),
            (["--backoff", "-1", f"a={sys.executable}"], 2, "invalid time '-1'"),
            (["--restart", "sometimes", f"a={sys.executable}"], 2, "invalid choice"),
        ],
    )
    def test_what_it_can_not_do_is_one_line(self, arguments, status, says):
        done = run("supervisor.py", *arguments)
        assert done.returncode == status
        assert says in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr

    @pytest.mark.skipif(WINDOWS, reason="this is how Unix names what ended a process")
    def test_a_signal_without_a_name_is_told_by_its_number(self):
        number = signal.SIGRTMIN + 6
        command = python("dies", f"import os; os.kill(os.getpid(), {number})")
        done = run("supervisor.py", "--restart", "never", command)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(f"dies: was ended by signal {number}\n")

    @pytest.mark.skipif(WINDOWS, reason="to start so many programs takes minutes there")
    def test_a_program_may_end_any_number_of_times(self):
        """What doubles with each restart is no number any more after a thousand."""
        with Program("supervisor.py", "--longest", 0, "a=true") as program:
            for _ in range(1100):
                program.until("a: ended with status 0")
            program.stop()

    @pytest.mark.skipif(WINDOWS, reason="what a process has started is killed with it on Unix only")
    def test_what_left_its_group_holds_nobody_up(self, engine):
        """It keeps the output open when its parent has ended."""
        command = python(
            "leaves",
            "import subprocess, sys; "
            "child = subprocess.Popen(['sleep', '1000'], start_new_session=True); "
            "print('child', child.pid, flush=True)",
        )
        options = ("--grace", 0.05, "--restart", "never", "--engine", engine)
        with Program("supervisor.py", *options, command) as program:
            lines, found = program.until(r"leaves \| child (\d+)")
            try:
                if "leaves: ended with status 0" not in lines:
                    program.until("leaves: ended with status 0")
                assert program.stop() == []
            finally:
                os.kill(int(found[1]), signal.SIGKILL)

    @pytest.mark.skipif(
        WINDOWS, reason="there a write to a pipe without a reader is told otherwise"
    )
    def test_a_reader_that_goes_ends_all_in_one_line(self, engine):
        command = python("writes", "import itertools; [print(n) for n in itertools.count()]")
        arguments = [sys.executable, EXAMPLES / "supervisor.py", "--engine", engine, command]
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            found = re.fullmatch(r"writes: started as process (\d+)\n", process.stdout.readline())
            process.stdout.close()
            assert process.wait(LONG) == 1
            assert process.stderr.read() == (
                "supervisor: nobody reads the output any more: all are ended\n"
            )
        wait_until(lambda: not process_runs(int(found[1])))


@pytest.mark.skipif(WINDOWS, reason="a program has its standard streams there, whatever was closed")
@pytest.mark.parametrize(
    ("name", "argument"), [("tail.py", "/etc/passwd"), ("supervisor.py", "a=true")]
)
def test_a_closed_output_is_told_in_one_line(name, argument):
    command = f"exec {shlex.join([sys.executable, str(EXAMPLES / name), argument])} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert "standard output is closed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["tail.py", "supervisor.py"])
def test_help_says_what_it_is_for(name):
    done = run(name, "--help")
    assert done.returncode == 0
    assert "--engine" in done.stdout
