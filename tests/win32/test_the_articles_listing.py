"""examples/win32_echo.py as a program of its own, on Windows and on each engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from support import read_exactly
from win32_support import LONG, in_order, reset

EXAMPLE = Path(__file__).parents[2] / "examples" / "win32_echo.py"


@pytest.fixture
def program(system):
    """The server, and the address on which it listens."""
    environment = dict(os.environ)
    if system != "windows":
        environment["COMPLETIONPORT_ENGINE"] = system
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        try:
            line = process.stdout.readline()
            assert line.startswith("Listening on port "), process.stderr.read()
            yield process, ("127.0.0.1", int(line.split()[-1]))
        finally:
            if process.poll() is None:
                process.kill()


def end(process):
    """Say that it is to end; its output."""
    output, errors = process.communicate("\n", timeout=LONG / 1000)
    assert (process.returncode, errors) == (0, "")
    return output.splitlines()


def dial(address):
    return socket.create_connection(address, timeout=LONG / 1000)


def test_it_sends_back_what_it_receives_and_tells_who_came(program):
    process, address = program
    with dial(address) as client:
        for message in (b"hello", b"x" * 1024, b"y" * 1025):
            client.sendall(message)
            assert read_exactly(client, len(message)) == message
        name = client.getsockname()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert end(process) == [f"Accept Client:{name[0]}:{name[1]}", "Closed"]


def test_a_megabyte_comes_back_in_order(program):
    process, address = program
    data = in_order(1 << 20)
    with dial(address) as client:
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        assert read_exactly(client, len(data)) == data
        sender.join()
    end(process)


def test_many_clients_at_a_time(program):
    process, address = program
    clients = [dial(address) for _ in range(30)]
    for round_ in range(5):
        for number, client in enumerate(clients):
            client.sendall(f"{round_}:{number};".encode())
        for number, client in enumerate(clients):
            expected = f"{round_}:{number};".encode()
            assert read_exactly(client, len(expected)) == expected
    for client in clients:
        client.close()
    assert len(end(process)) == 31


def test_a_client_that_resets_does_no_harm(program):
    process, address = program
    client = dial(address)
    client.sendall(b"x")
    assert client.recv(1) == b"x"
    reset(client)
    with dial(address) as other:
        other.sendall(b"y")
        assert other.recv(1) == b"y"
    end(process)


def test_it_ends_with_clients_connected(program):
    process, address = program
    with dial(address) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert end(process)[-1] == "Closed"
        assert client.recv(1) == b""


@pytest.mark.parametrize("arguments", [["x"], ["70000"], ["-1"], ["1.5"], ["1", "2"]], ids=str)
def test_a_wrong_port_is_told(arguments):
    command = [sys.executable, str(EXAMPLE), *arguments]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONG / 1000
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("usage: ")
    assert arguments[-1] in done.stderr.splitlines()[-1]


def test_a_port_that_is_taken_is_one_line(program):
    port = program[1][1]
    command = [sys.executable, str(EXAMPLE), str(port)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONG / 1000
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"win32_echo: can't listen on port {port}: another program does\n"
    end(program[0])
