"""The end of a server, for callbacks that are at work: they answer still, within the grace."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from completionport import ConnectionClosed, DatagramHandler, DatagramServer
from datagram_support import bound_socket
from server_support import Recorder
from support import LONG, Background, needs_unix_sockets, pattern, read_to_end, wait_until


class Deliberate(Recorder):
    """Its callbacks take until `go_on` is set; then they answer."""

    def __init__(self, answer=b"answer"):
        super().__init__()
        self.answer = answer
        self.inside = threading.Event()
        self.go_on = threading.Event()
        self.refused = None

    def received(self, connection, data):
        super().received(connection, data)
        self.work(connection, lambda: connection.send(self.answer))

    def work(self, where, send):
        with where.server.completion_port.blocking():
            self.inside.set()
            assert self.go_on.wait(LONG)
        try:
            send()
        except ConnectionClosed as error:
            self.refused = error


class DeliberateGreeting(Deliberate):
    def connected(self, connection):
        super().connected(connection)
        self.work(connection, lambda: connection.send(self.answer))


class DeliberateDatagrams(Deliberate, DatagramHandler):
    def received(self, endpoint, data, address):
        self.events.append(("received", endpoint, data))
        self.work(endpoint, lambda: endpoint.send(self.answer, address))


class Core:
    """A server's core that tells when it is waited for."""

    def __init__(self, core):
        self.core = core
        self.waited_for = threading.Event()

    def __getattr__(self, name):
        return getattr(self.core, name)

    def wait_closed(self, timeout):
        self.waited_for.set()
        return self.core.wait_closed(timeout)


def stopping(server, grace=LONG):
    """A thread that stops the server, and has done all that it does before it waits."""
    server._core = core = Core(server._core)
    thread = Background(server.stop, grace)
    assert core.waited_for.wait(LONG)
    return thread


def ask(handler, serve, dial, **options):
    """A server, and a client with whose question a callback is at work."""
    server = serve(handler, workers=4)
    busy = dial(server, **options)
    busy.sendall(b"question")
    assert handler.inside.wait(LONG)
    return server, busy


class TestConnections:
    def test_a_callback_at_work_sends_its_answer(self, serve, dial):
        handler = Deliberate()
        server = serve(handler, workers=4)
        idle, busy = dial(server), dial(server)
        busy.sendall(b"question")
        assert handler.inside.wait(LONG)
        thread = stopping(server)
        assert read_to_end(idle) == b""
        (at_work,) = [one for name, one, _ in handler.events if name == "received"]
        assert not at_work.closing
        handler.go_on.set()
        assert read_to_end(busy) == b"answer"
        thread.outcome()
        assert handler.refused is None
        assert [error for name, _, error in handler.events if name == "closed"] == [None, None]

    def test_a_long_answer_goes_out_whole(self, serve, dial):
        handler = Deliberate(pattern(5_000_000))
        server, busy = ask(handler, serve, dial, buffer=65536)
        thread = stopping(server)
        handler.go_on.set()
        assert read_to_end(busy) == handler.answer
        thread.outcome()

    def test_what_has_come_meanwhile_is_not_received(self, serve, dial):
        handler = Deliberate()
        server, busy = ask(handler, serve, dial)
        busy.sendall(b"another one")
        thread = stopping(server)
        handler.go_on.set()
        thread.outcome()
        assert handler.data() == b"question"

    def test_a_callback_may_hold_the_peer_back_and_let_it_go_on(self, serve, dial):
        class Paused(Deliberate):
            def work(self, where, send):
                where.pause()
                super().work(where, send)
                where.resume()

        handler = Paused()
        server, busy = ask(handler, serve, dial)
        thread = stopping(server)
        busy.sendall(b"another one")
        handler.go_on.set()
        thread.outcome()
        assert handler.data() == b"question"
        assert handler.refused is None

    def test_who_has_just_been_welcomed_is_greeted(self, serve, dial):
        handler = DeliberateGreeting()
        server = serve(handler, workers=4)
        client = dial(server)
        assert handler.inside.wait(LONG)
        thread = stopping(server)
        handler.go_on.set()
        assert read_to_end(client) == b"answer"
        thread.outcome()
        assert handler.names() == ["connected", "closed"]

    def test_so_does_drained(self, serve, dial):
        class Drained(Deliberate):
            def received(self, connection, data):
                connection.send(pattern(8_000_000))
                sent.set()

            def drained(self, connection):
                self.work(connection, lambda: connection.send(self.answer))

        for workers in (1, 4):
            handler, sent = Drained(), threading.Event()
            server = serve(handler, workers=workers, concurrency=workers)
            busy = dial(server, buffer=65536)
            busy.sendall(b"question")
            # Before it reads: a quick reader makes room for all at once, and nothing is drained.
            assert sent.wait(LONG)
            reader = Background(read_to_end, busy)
            assert handler.inside.wait(LONG)
            began = time.monotonic()
            thread = stopping(server, 2 * LONG)
            handler.go_on.set()
            thread.outcome()
            assert time.monotonic() - began < LONG  # it did not wait for the end of the grace
            assert reader.outcome() == pattern(8_000_000) + b"answer"

    def test_who_is_at_work_has_the_grace(self, serve, dial):
        handler = Deliberate()
        server, busy = ask(handler, serve, dial)
        thread = stopping(server, 0.1)
        with contextlib.suppress(ConnectionResetError):
            assert read_to_end(busy) == b""
        handler.go_on.set()
        thread.outcome()
        assert isinstance(handler.refused, ConnectionClosed)

    def test_a_callback_may_close_and_abort(self, serve, dial):
        for name in ("close", "abort"):
            handler = Deliberate()
            server, busy = ask(handler, serve, dial)
            thread = stopping(server)
            getattr(handler.first(), name)()
            assert handler.first().closing
            handler.go_on.set()
            assert read_to_end(busy) == b""
            thread.outcome()
            assert isinstance(handler.refused, ConnectionClosed)

    def test_an_exception_ends_its_connection(self, serve, dial):
        class Failing(Deliberate):
            def work(self, where, send):
                super().work(where, send)
                raise ValueError("a mistake")

        handler = Failing()
        server, _busy = ask(handler, serve, dial)
        thread = stopping(server)
        handler.go_on.set()
        thread.outcome()
        assert isinstance(handler.end(), ValueError)


class TestDatagrams:
    @pytest.fixture
    def client(self, nothing_left):
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(LONG)
            yield sock

    def test_a_callback_at_work_sends_its_answer(self, engine, client):
        handler = DeliberateDatagrams()
        with DatagramServer(handler, port=0, engine=engine, workers=4) as server:
            client.sendto(b"question", server.address)
            assert handler.inside.wait(LONG)
            client.sendto(b"another one", server.address)
            thread = stopping(server)
            handler.go_on.set()
            assert client.recv(100) == b"answer"
            thread.outcome()
        assert handler.refused is None

    def test_who_is_at_work_has_the_grace(self, engine, client):
        handler = DeliberateDatagrams()
        with DatagramServer(handler, port=0, engine=engine, workers=4) as server:
            client.sendto(b"question", server.address)
            assert handler.inside.wait(LONG)
            thread = stopping(server, 0.1)
            wait_until(lambda: handler.events[0][1].closing)
            handler.go_on.set()
            thread.outcome()
        assert isinstance(handler.refused, ConnectionClosed)

    @needs_unix_sockets
    def test_who_is_told_of_a_failure_sends_too(self, engine, nothing_left):
        class Failures(DeliberateDatagrams):
            def received(self, endpoint, data, address):
                self.sent = sum(endpoint.send(bytes(1000), address) for _ in range(10))
                self.events.append("sent")

            def failed(self, endpoint, error):
                if not self.inside.is_set():
                    self.work(endpoint, lambda: endpoint.send(self.answer, other.getsockname()))

        own, far, other = (bound_socket("unix") for _ in range(3))
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        handler = Failures()
        with other, DatagramServer(handler, sock=own, engine=engine, workers=4) as server:
            other.settimeout(LONG)
            far.sendto(b"question", server.address)
            wait_until(lambda: handler.events)
            far.close()  # what is queued for it is refused
            assert handler.inside.wait(LONG)
            thread = stopping(server)
            handler.go_on.set()
            assert other.recv(100) == b"answer"
            thread.outcome()
        assert handler.refused is None

    def test_several_at_work_send_theirs(self, engine, client):
        handler = DeliberateDatagrams()
        with DatagramServer(handler, port=0, engine=engine, workers=4) as server:
            for _ in range(3):
                client.sendto(b"question", server.address)
            wait_until(lambda: len(handler.events) == 3)
            thread = stopping(server)
            handler.go_on.set()
            assert [client.recv(100) for _ in range(3)] == [b"answer"] * 3
            thread.outcome()
        assert handler.refused is None
