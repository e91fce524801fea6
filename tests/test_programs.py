"""The command line and the examples, run as programs with real clients."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import completionport
from completionport.engines import ENGINES, probe
from support import (
    STOP_SIGNALS,
    WINDOWS,
    has_ipv6,
    stop_process,
)

# Windows has texts of its own.
TAKEN = "can't listen on 127.0.0.1" if WINDOWS else "Address already in use"
NOT_OURS = "can't listen on 203.0.113.1" if WINDOWS else "Cannot assign requested address"
ROOT = Path(__file__).parent.parent
COMPLETIONPORT = [sys.executable, "-m", "completionport"]


class Program:
    """A program that prints where it listens; ended by SIGINT."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        first = self.process.stdout.readline()
        found = re.search(r"(\d+)(?:, engine \w+)?$", first.strip())
        assert found, first + self.process.stderr.read()
        self.port = int(found[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def stop(self, number: int = signal.SIGINT) -> str:
        stop_process(self.process, number)
        output, errors = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, errors
        assert errors == ""
        return output

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.process.stdout.close()
        self.process.stderr.close()


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def echo(engine: str, *options: object) -> Program:
    return Program(*COMPLETIONPORT, "echo", "--port", 0, "--engine", engine, *options)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_echo_serves_clients_and_says_what_it_did(engine, number):
    with echo(engine, "--workers", 2) as program:
        names = []
        for data in (b"hello", b"x" * 100_000):
            with program.connect() as client:
                names.append(client.getsockname())
                sender = threading.Thread(target=client.sendall, args=(data,))
                sender.start()
                assert read(client, len(data)) == data
                sender.join()
        output = program.stop(number)
    for host, port in names:
        assert f"Accept Client:{host}:{port}\n" in output
    assert re.search(r"Served 2 clients, 100005 bytes in \d+ packets\n$", output)


def test_echo_can_be_quiet_and_limit_its_clients(engine):
    with echo(engine, "--quiet", "--max-connections", 1, "--idle-timeout", 30) as program:
        with program.connect() as first, program.connect() as second:
            first.sendall(b"1")
            assert read(first, 1) == b"1"
            second.sendall(b"2")
            first.close()
            assert read(second, 1) == b"2"
        output = program.stop()
    assert output == "Served 2 clients, 2 bytes in 2 packets\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--port", "TAKEN"], TAKEN),
        (["--host", "203.0.113.1"], NOT_OURS),
        (["--host", "no such host"], "can't listen on no such host"),
        (["--port", "70000"], "port must be a number from 0 to 65535"),
        (["--buffer-size", "0"], "buffer_size must be from 64"),
        (["--workers", "0"], "workers must be from 1"),
        (["--idle-timeout", "-1"], "idle_timeout must be more than 0"),
    ],
)
def test_what_echo_cant_do_is_one_line_and_status_1(options, says):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = [port if option == "TAKEN" else option for option in options]
        if "--port" not in options:
            options += ["--port", "0"]
        done = subprocess.run(
            [*COMPLETIONPORT, "echo", *options], capture_output=True, text=True, timeout=20
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("completionport: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_engines_prints_a_table():
    done = subprocess.run([*COMPLETIONPORT, "engines"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert re.search(r"^engine +usable +why not +what to do$", done.stdout, re.MULTILINE)
    for name in ("io_uring", "epoll", "selectors"):
        assert re.search(rf"^{name} +(yes|no) ", done.stdout, re.MULTILINE)


def test_engines_says_which_one_a_port_takes():
    for asked in (None, "selectors"):
        environment = {k: v for k, v in os.environ.items() if k != "COMPLETIONPORT_ENGINE"}
        if asked:
            environment["COMPLETIONPORT_ENGINE"] = asked
        table = subprocess.run(
            [*COMPLETIONPORT, "engines"],
            capture_output=True,
            text=True,
            timeout=20,
            env=environment,
        ).stdout
        (default,) = re.findall(r"^(\w+) +(?:yes|no) \(default\)", table, re.MULTILINE)
        assert default == (asked or next(name for name in ENGINES if probe(name).usable))
        assert ("COMPLETIONPORT_ENGINE" in table) == (asked is not None)


def test_the_command_alone_prints_its_help():
    done = subprocess.run(COMPLETIONPORT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in done.stdout for word in ("usage:", "echo", "engines", "--version"))


def test_the_command_tells_its_version():
    done = subprocess.run(
        [*COMPLETIONPORT, "--version"], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"completionport {completionport.__version__}, Python 3.")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", completionport.__version__)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_articles_program_echoes_and_ends_in_order(engine, number):
    with Program(
        sys.executable, ROOT / "examples/article_echo.py", "--port", 0, "--engine", engine
    ) as program:
        with program.connect() as one, program.connect() as two:
            for turn in range(20):
                for client in (one, two):
                    client.sendall(b"%04d" % turn)
                for client in (one, two):
                    assert read(client, 4) == b"%04d" % turn
        with program.connect() as waits:
            waits.sendall(b"x")
            assert read(waits, 1) == b"x"
            output = program.stop(number)
            assert waits.recv(1) == b""
    assert output.count("Accept Client:127.0.0.1:") == 3
    assert output.endswith("Closed\n")


def test_the_chat_server_tells_everybody_else(engine):
    with Program(
        sys.executable, ROOT / "examples/chat.py", "--port", 0, "--engine", engine
    ) as program:
        with program.connect() as ann, ann.makefile("rb") as ann_hears:
            assert b"has come" in ann_hears.readline()
            with program.connect() as bob, bob.makefile("rb") as bob_hears:
                assert b"has come" in ann_hears.readline()
                assert b"has come" in bob_hears.readline()
                bob.sendall(b"good ")
                bob.sendall(b"morning\n")
                name = str(bob.getsockname()[1]).encode()
                assert ann_hears.readline() == name + b": good morning\n"
            assert b"has gone" in ann_hears.readline()
        program.stop()


def test_the_proxy_carries_both_directions(engine):
    with (
        echo(engine, "--quiet") as target,
        Program(
            sys.executable, ROOT / "examples/tcp_proxy.py", "--port", 0, "--engine", engine,
            "--target", f"127.0.0.1:{target.port}",
        ) as proxy,
    ):  # fmt: skip
        data = os.urandom(1_000_000)
        with proxy.connect() as client:
            sender = threading.Thread(target=client.sendall, args=(data,))
            sender.start()
            assert read(client, len(data)) == data
            sender.join()
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        proxy.stop()
        target.stop()


def test_the_proxy_closes_a_client_whose_target_refuses(engine):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with Program(
            sys.executable, ROOT / "examples/tcp_proxy.py", "--port", 0, "--engine", engine,
            "--target", f"127.0.0.1:{nobody.getsockname()[1]}",
        ) as proxy:  # fmt: skip
            with proxy.connect() as client:
                assert client.recv(1) == b""
            proxy.stop()


def test_the_udp_echo_answers_and_says_what_it_did(engine):
    command = [sys.executable, ROOT / "examples" / "udp_echo.py", "--port", 0, "--engine", engine]
    with Program(*command) as program, socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        for data in (b"hello", b"", b"x" * 60_000):
            client.sendto(data, ("127.0.0.1", program.port))
            assert client.recv(70_000) == data
        output = program.stop()
    assert "3 datagrams of 60005 bytes received, 3 sent, 0 dropped" in output


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--port", "99999"], 1, "port must be a number from 0 to 65535"),
        (["--port", "x"], 2, "invalid int value"),
        (["--workers", "0"], 1, "workers must be from 1"),
        (["--engine", "none"], 1, "unknown engine"),
    ],
)
def test_what_the_udp_echo_can_not_do_is_one_line(options, status, says):
    command = [sys.executable, ROOT / "examples" / "udp_echo.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_an_address_that_is_taken_is_told_by_the_udp_echo():
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        command = [sys.executable, ROOT / "examples" / "udp_echo.py", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("udp_echo: ")
    assert f"can't listen on 127.0.0.1, port {port}: " in line


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("article_echo", []), ("chat", []), ("tcp_proxy", ["--target", "127.0.0.1:1"])],
)
def test_what_an_example_can_not_do_is_one_line(name, arguments):
    script = ROOT / "examples" / f"{name}.py"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for options in (["--port", taken.getsockname()[1]], ["--port", 99999], ["--engine", "no"]):
            command = [sys.executable, script, *arguments, *map(str, options)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 1
            [line] = done.stderr.splitlines()
            assert line.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("target", "status", "says"),
    [
        ("nowhere", 2, "'nowhere' is not HOST:PORT"),
        (":80", 2, "':80' is not HOST:PORT"),
        ("127.0.0.1:http", 2, "not HOST:PORT with a port from 1 to 65535"),
        ("127.0.0.1:70000", 2, "not HOST:PORT with a port from 1 to 65535"),
        ("127.0.0.1:-1", 2, "not HOST:PORT with a port from 1 to 65535"),
        ("name.invalid:80", 1, "tcp_proxy: can't find name.invalid: "),
    ],
)
def test_a_target_that_the_proxy_can_not_reach_is_told_before_it_listens(target, status, says):
    command = [sys.executable, ROOT / "examples/tcp_proxy.py", "--port", "0", "--target", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_the_proxy_reaches_a_target_of_ipv6(engine):
    with (
        echo(engine, "--quiet", "--host", "::1") as target,
        Program(
            sys.executable, ROOT / "examples/tcp_proxy.py", "--port", 0, "--engine", engine,
            "--target", f"[::1]:{target.port}",
        ) as proxy,
    ):  # fmt: skip
        with proxy.connect() as client:
            client.sendall(b"hello")
            assert read(client, 5) == b"hello"
        proxy.stop()
        target.stop()
