"""What fails ends at most the connection at hand: logs and hooks that raise, no memory."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time

import pytest

from completionport import DatagramHandler, DatagramServer, Handler, Server, WorkerPool
from support import LONG, wait_until

WORKERS = 3
FAILURES = 3 * WORKERS


class BrokenLog(logging.Handler):
    """A handler of the log that raises, whatever it is given."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.asked = 0

    def emit(self, record):
        self.asked += 1
        raise self.error("the log is broken")


@pytest.fixture(params=[ValueError, MemoryError, SystemExit])
def broken_log(request, monkeypatch):
    """The library's log raises, and so do the hooks that Python has for such a case."""
    log = logging.getLogger("completionport")
    broken = BrokenLog(request.param)

    def raises(arguments):
        raise request.param("the hook is broken")

    monkeypatch.setattr(sys, "unraisablehook", raises)
    log.addHandler(broken)
    yield broken
    log.removeHandler(broken)


def alive(prefix="completionport-worker"):
    return sum(thread.name.startswith(prefix) for thread in threading.enumerate())


class Fails(Handler):
    """Raises where it is told to by the first byte, else it echoes."""

    def __init__(self, where):
        self.where = where

    def connected(self, connection):
        if self.where == "connected":
            raise ValueError("connected")

    def received(self, connection, data):
        if data.startswith(b"good"):
            connection.send(data)
        elif self.where == "received":
            raise ValueError("received")
        elif self.where == "drained":
            connection.send(bytes(30_000_000))
        else:
            connection.close()

    def drained(self, connection):
        raise ValueError("drained")

    def end_of_stream(self, connection):
        connection.close()
        if self.where == "end_of_stream":
            raise ValueError("end_of_stream")

    def closed(self, connection, error):
        if self.where == "closed":
            raise ValueError("closed")


def fail_once(address, where):
    with socket.create_connection(address, LONG) as client:
        client.settimeout(LONG)
        if where == "end_of_stream":
            client.shutdown(socket.SHUT_WR)
        else:
            with contextlib.suppress(OSError):
                client.sendall(b"bad")
        with contextlib.suppress(OSError):
            while client.recv(1 << 20):
                pass


@pytest.mark.parametrize("where", ["connected", "received", "drained", "end_of_stream", "closed"])
def test_a_log_that_raises_ends_no_worker_of_a_server(engine, broken_log, where):
    handler = Fails(where)
    with Server(handler, port=0, workers=WORKERS, engine=engine) as server:
        for _ in range(FAILURES):
            fail_once(server.address, where)
        wait_until(lambda: broken_log.asked >= FAILURES)
        handler.where = ""
        with socket.create_connection(server.address, LONG) as client:
            client.sendall(b"good day")
            assert client.recv(100) == b"good day"
        assert alive() == WORKERS


def test_a_log_that_raises_ends_no_worker_of_a_datagram_server(engine, broken_log):
    class Datagrams(DatagramHandler):
        def received(self, endpoint, data, address):
            if data == b"bad":
                raise ValueError("received")
            endpoint.send(data, address)

    with DatagramServer(Datagrams(), port=0, workers=WORKERS, engine=engine) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(LONG)
            client.connect(server.address)
            for count in range(FAILURES):
                client.send(b"bad")
                wait_until(lambda count=count: broken_log.asked > count)
            client.send(b"good day")
            assert client.recv(100) == b"good day"
        assert alive() == WORKERS


@pytest.mark.parametrize("hook", [False, True], ids=["log", "excepthook"])
def test_a_log_that_raises_ends_no_thread_of_a_pool(make_port, broken_log, monkeypatch, hook):
    port = make_port()
    done = []

    def target(completion):
        if completion.key == "bad":
            raise ValueError("target")
        done.append(completion.key)

    # What the program's hook raises goes to the log, which raises as well.
    monkeypatch.setattr(
        threading, "excepthook", sys.unraisablehook if hook else threading.__excepthook__
    )
    with WorkerPool(port, target, WORKERS, name="poor-pool"):
        for _ in range(FAILURES):
            port.post(0, "bad")
        wait_until(lambda: broken_log.asked >= FAILURES)
        port.post(0, "good")
        wait_until(lambda: done == ["good"])
        assert alive("poor-pool") == WORKERS


def test_a_server_whose_log_raises_stops_at_once(engine, broken_log):
    server = Server(Fails("received"), port=0, workers=WORKERS, engine=engine)
    server.start()
    for _ in range(FAILURES):
        fail_once(server.address, "received")
    begun = time.monotonic()
    server.stop(LONG)
    assert time.monotonic() - begun < LONG / 2
