"""The command `echo`, whose output holds up no client, and the signals that end a server."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from support import LONG, PACKAGE, TESTS, WINDOWS, python_process, read_exactly, wait_until

unix_only = pytest.mark.skipif(WINDOWS, reason="signals and pipes of Unix")
ROOT = TESTS.parent


def free_port():
    """One that no client is given: who dials it before anybody listens may else meet itself."""
    while True:
        with contextlib.suppress(OSError):
            sock = socket.create_server(("127.0.0.1", random.randrange(20000, 32000)))
            with sock:
                return sock.getsockname()[1]


def dial(port):
    """A client of a program that is about to listen."""

    def connect():
        with contextlib.suppress(ConnectionError):
            return socket.create_connection(("127.0.0.1", port), LONG)
        return None

    return wait_until(connect, "the program listens")


@contextlib.contextmanager
def program(command, **streams):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen([sys.executable, *map(str, command)], env=environment, **streams)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def commands(engine, port):
    yield ["-m", "completionport", "echo", "--port", port, "--engine", engine]
    yield [ROOT / "examples" / "article_echo.py", "--port", port, "--engine", engine]


def serves(port, count):
    for _ in range(count):
        with dial(port) as client:
            client.settimeout(LONG)
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"


def filled_pipe():
    """A pipe that takes nothing more; nobody reads it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1000))
    os.set_blocking(writer, True)
    return reader, writer


@unix_only
@pytest.mark.parametrize("which", [0, 1], ids=["echo", "article_echo"])
class TestOutput:
    def start(self, engine, which, port):
        return list(commands(engine, port))[which]

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_that_nobody_reads(self, engine, which, stream):
        reader, writer = filled_pipe()
        port = free_port()
        with program(self.start(engine, which, port), **{stream: writer}) as process:
            os.close(writer)
            serves(port, 300)
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG) == 0
        os.close(reader)

    def test_whose_reader_has_gone(self, engine, which):
        reader, writer = os.pipe()
        port = free_port()
        with program(
            self.start(engine, which, port), stdout=writer, stderr=subprocess.PIPE
        ) as process:
            os.close(writer)
            os.close(reader)
            serves(port, 50)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=LONG)
            assert process.returncode == 0
            assert errors == b""

    def test_that_is_closed(self, engine, which):
        port = free_port()
        command = " ".join(map(str, [sys.executable, *self.start(engine, which, port)]))
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        process = subprocess.Popen(["sh", "-c", f"exec {command} >&- 2>&-"], env=environment)
        try:
            serves(port, 50)
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG) == 0
        finally:
            process.kill()
            process.wait()

    def test_on_a_full_disk(self, engine, which):
        port = free_port()
        with (
            open("/dev/full", "wb") as full,
            program(self.start(engine, which, port), stdout=full) as process,
        ):
            serves(port, 20)
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG) == 0


@unix_only
def test_what_nobody_read_in_time_is_counted(engine):
    reader, writer = os.pipe()
    port = free_port()
    with program(next(commands(engine, port)), stdout=writer) as process:
        os.close(writer)
        serves(port, 4000)
        parts = []

        def read():
            while part := os.read(reader, 65536):
                parts.append(part)

        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: b"left out" in b"".join(parts))
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 0
        thread.join(LONG)
    os.close(reader)
    text = b"".join(parts).decode()
    left_out = int(re.search(r"(\d+) lines were left out", text)[1])
    assert text.count("Accept Client") + left_out == 4000
    assert re.search(r"Served 4000 clients, 20000 bytes in 4000 packets\n$", text)


SERVER = """
import os, signal, sys, threading, time
from completionport import DatagramHandler, DatagramServer, Handler, Server

class Keeping(Handler):
    def received(self, connection, data):
        print("received", data, flush=True)
        if data == b"block":
            time.sleep(60)

    def stopping(self, connection):
        print("stopping", flush=True)

    def closed(self, connection, error):
        print("closed", error, flush=True)

server = Server(Keeping(), "127.0.0.1", 0)
print(server.address[1], flush=True)
server.serve_forever(grace=60)
print("behind it", flush=True)
"""
STOPS = [signal.SIGINT, signal.SIGTERM, *([] if WINDOWS else [signal.SIGHUP])]


def line(process):
    return process.stdout.readline().strip()


def one_after_the_other(process):
    """Two signals; of what comes at the same time, Python runs the lower number's handler first."""
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)


@unix_only
class TestSignals:
    @pytest.mark.parametrize("second", STOPS, ids=lambda number: number.name)
    @pytest.mark.parametrize("first", STOPS, ids=lambda number: number.name)
    def test_the_second_one_ends_it(self, engine, first, second):
        with python_process(SERVER, engine=engine) as process:
            client = dial(int(line(process)))
            client.sendall(b"hello")
            assert line(process) == "received b'hello'"
            process.send_signal(first)
            assert line(process) == "stopping"
            process.send_signal(second)
            output, errors = process.communicate(timeout=LONG)
            client.close()
        assert process.returncode == 128 + second
        assert output == "closed None\n"
        assert errors == ""

    def test_also_where_a_callback_does_not_come_back(self, engine):
        with python_process(SERVER, engine=engine) as process:
            client = dial(int(line(process)))
            client.sendall(b"block")
            assert line(process) == "received b'block'"
            one_after_the_other(process)
            _, errors = process.communicate(timeout=LONG)
            client.close()
        assert process.returncode == 128 + signal.SIGTERM
        assert errors == ""

    @pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
    def test_one_is_a_stop_in_order(self, engine, number):
        with python_process(SERVER, engine=engine) as process:
            client = dial(int(line(process)))
            client.sendall(b"hello")
            assert line(process) == "received b'hello'"
            process.send_signal(number)
            assert line(process) == "stopping"
            client.close()
            output, errors = process.communicate(timeout=LONG)
        assert process.returncode == 0
        assert output == "closed None\nbehind it\n"
        assert errors == ""

    @pytest.mark.parametrize("count", [1, 2])
    def test_while_the_workers_are_being_started(self, engine, count):
        script = SERVER.replace(
            'Server(Keeping(), "127.0.0.1", 0)', 'Slow(Keeping(), "127.0.0.1", 0, workers=100)'
        ).replace(
            "server =",
            """
class Slow(Server):
    def _prepare(self):
        for thread in self._threads:
            thread.start = lambda start=thread.start: (
                print("one", flush=True), time.sleep(0.5), start()
            )

server =""",
        )
        with python_process(script, engine=engine) as process:
            line(process)
            assert line(process) == "one"
            for _ in range(count):
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=LONG)
        assert process.returncode in (0, 130)
        assert errors == ""

    def test_a_hang_up_that_the_program_ignores_stays_ignored(self, engine):
        script = SERVER.replace(
            "server =", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nserver ="
        )
        with python_process(script, engine=engine) as process:
            client = dial(int(line(process)))
            process.send_signal(signal.SIGHUP)
            client.sendall(b"hello")
            assert line(process) == "received b'hello'"
            client.close()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=LONG)
        assert process.returncode == 0

    def test_datagrams(self, engine):
        script = """
        import time
        from completionport import DatagramHandler, DatagramServer

        class Blocking(DatagramHandler):
            def received(self, endpoint, data, address):
                print("received", flush=True)
                time.sleep(60)

        server = DatagramServer(Blocking(), port=0)
        print(server.address[1], flush=True)
        server.serve_forever(grace=60)
        """
        with (
            python_process(script, engine=engine) as process,
            socket.socket(type=socket.SOCK_DGRAM) as client,
        ):
            client.sendto(b"hello", ("127.0.0.1", int(line(process))))
            assert line(process) == "received"
            one_after_the_other(process)
            _, errors = process.communicate(timeout=LONG)
        assert process.returncode == 128 + signal.SIGTERM
        assert errors == ""


@unix_only
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_the_command_ends_with_its_summary(engine, number):
    port = free_port()
    with program(next(commands(engine, port)), stdout=-1, stderr=-1) as process:
        serves(port, 2)
        process.send_signal(number)
        output, errors = process.communicate(timeout=LONG)
    assert process.returncode == 0
    assert re.search(rb"Served 2 clients, 10 bytes in 2 packets\n$", output)
    assert errors == b""


@unix_only
def test_the_command_ends_with_a_second_signal(engine):
    port = free_port()
    with program(next(commands(engine, port)), stdout=-1, stderr=-1) as process:
        client = dial(port)  # it stays: a stop lingers for it
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        process.send_signal(signal.SIGTERM)
        assert client.recv(1) == b""
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=LONG)
        client.close()
    assert process.returncode == 130
    assert re.search(rb"Served 1 clients", output)
    assert errors == b""


@unix_only
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("command", "first", "last"),
    [
        (["-m", "completionport", "echo"], b"Echo server on 127.0.0.1:", b"Served 0 clients"),
        ([ROOT / "examples/chat.py"], b"Listening on port ", b""),
        ([ROOT / "examples/udp_echo.py"], b"UDP echo on 127.0.0.1 port ", b"0 datagrams"),
    ],
    ids=["echo", "chat", "udp_echo"],
)
def test_a_signal_is_heeded_once_a_program_has_said_that_it_serves(
    engine, command, first, last, number
):
    """It said so before: a signal right behind that ended it at once, without its summary."""
    for _ in range(3):
        arguments = [*command, "--port", "0", "--engine", engine]
        with program(arguments, stdout=-1, stderr=-1) as process:
            assert process.stdout.readline().startswith(first)
            process.send_signal(number)
            output, errors = process.communicate(timeout=LONG)
        assert process.returncode == 0
        assert output.startswith(last)
        assert errors == b""
