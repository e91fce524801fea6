"""A close that lingers: the answer arrives, and nobody waits for nothing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from queue import SimpleQueue

import pytest

from completionport import ConnectionClosed
from server_support import Echo, Recorder, Silent, reset
from support import (
    LONG,
    Background,
    assert_quickest_below,
    has_ipv6,
    needs_unix_sockets,
    pattern,
    read_to_end,
    wait_until,
)

LINGER = 2.0
SOON = 1.2  # seconds: well before the end of a linger


def assert_soon(once):
    assert_quickest_below(SOON, once)


class Answering(Recorder):
    """Answers what comes first, and closes."""

    closed_at = None

    def __init__(self, answer=b"answer", how="close"):
        super().__init__()
        self.answer = answer
        self.how = how

    def received(self, connection, data):
        super().received(connection, data)
        connection.send(self.answer)
        getattr(connection, self.how)()

    def closed(self, connection, error):
        self.closed_at = time.monotonic()
        super().closed(connection, error)


@pytest.fixture
def answered(serve, dial, concurrency):
    """An answering server that has just closed: its handler, and the client that has the answer."""

    def make(**options):
        handler = Answering(**options)
        client = dial(serve(handler, concurrency=concurrency, workers=4))
        client.sendall(b"question")
        assert read_to_end(client) == b"answer"
        return handler, client

    return make


@pytest.fixture(params=[1, 4], ids=["one at a time", "several at a time"])
def concurrency(request):
    return request.param


@pytest.fixture(
    params=[
        "tcp",
        pytest.param("tcp6", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
        pytest.param("unix", marks=needs_unix_sockets),
    ]
)
def listener(request, tmp_path):
    """A listening socket, and how to connect to it."""
    if request.param == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "socket"))
    else:
        sock = socket.socket(socket.AF_INET6 if request.param == "tcp6" else socket.AF_INET)
        sock.bind(("::1" if request.param == "tcp6" else "127.0.0.1", 0))
    sock.listen()
    with sock, contextlib.ExitStack() as clients:

        def connect():
            client = clients.enter_context(socket.socket(sock.family))
            client.settimeout(LONG)
            client.connect(address)
            return client

        address = sock.getsockname()
        yield sock, connect


class TestTheAnswerArrives:
    def test_where_the_peer_goes_on_sending(self, serve, listener, concurrency):
        sock, connect = listener
        handler = Answering(pattern(3_000_000))
        serve(handler, listener=sock, concurrency=concurrency, workers=4)
        for _ in range(5):
            client = connect()

            def go_on(client=client):
                with contextlib.suppress(OSError):
                    for _ in range(20):
                        client.sendall(bytes(10_000))
                        time.sleep(0.002)

            client.sendall(b"question")
            sender = Background(go_on)
            assert read_to_end(client) == handler.answer
            sender.outcome()
            client.close()
        wait_until(lambda: handler.count("closed") == 5)
        assert [error for name, _, error in handler.events if name == "closed"] == [None] * 5

    def test_where_input_lies_unread(self, serve, listener, concurrency):
        class Hasty(Answering):
            def connected(self, connection):
                super().connected(connection)
                assert sent.wait(LONG)
                connection.send(self.answer)
                connection.close()

        sock, connect = listener
        handler, sent = Hasty(pattern(200_000)), threading.Event()
        serve(handler, listener=sock, concurrency=concurrency, workers=4)
        client = connect()
        client.sendall(bytes(100_000))
        sent.set()
        assert read_to_end(client) == handler.answer
        client.sendall(bytes(100_000))  # nor is it reset then
        client.close()
        assert handler.end() is None

    def test_by_a_thread_that_is_no_worker(self, serve, dial, concurrency):
        handler = Recorder()
        server = serve(handler, concurrency=concurrency, workers=4)
        client = dial(server)
        connection = handler.first()
        connection.send(b"bye")
        connection.close()
        assert connection.closing
        with pytest.raises(ConnectionClosed):
            connection.send(b"more")
        assert read_to_end(client) == b"bye"
        client.sendall(bytes(50_000))
        client.shutdown(socket.SHUT_WR)
        assert handler.end() is None
        assert handler.names() == ["connected", "closed"]

    def test_while_a_worker_receives_nothing_is_mixed_up(self, serve, concurrency):
        """Each client sends one byte again and again: whatever is delivered holds that one."""

        class Reading(Recorder):
            def received(self, connection, data):
                if connection.state is None:
                    connection.state = True
                    queue.put(connection)
                if data.count(data[:1]) != len(data):
                    mixed.append(len(data))

        def talk(number):
            piece = bytes([number]) * 65536
            while time.monotonic() < until:
                client = socket.create_connection(server.address, LONG)
                with client, contextlib.suppress(OSError):
                    for _ in range(20):
                        client.sendall(piece)
                    read_to_end(client)

        def close():
            while (connection := queue.get()) is not None:
                time.sleep(random.random() / 10000)
                connection.close()

        seed = random.randrange(10**6)
        print(f"seed {seed}")
        random.seed(seed)
        queue, mixed = SimpleQueue(), []
        server = serve(Reading(), concurrency=concurrency, workers=4, buffer_size=32000)
        until = time.monotonic() + 2
        closers = [Background(close) for _ in range(3)]
        for client in [Background(talk, number) for number in range(1, 7)]:
            client.outcome()
        for _ in closers:
            queue.put(None)
        for closer in closers:
            closer.outcome()
        wait_until(lambda: server.stats()["connections"] == 0)
        assert not mixed

    def test_of_a_connection_that_was_paused(self, serve, dial, concurrency):
        class Paused(Recorder):
            def received(self, connection, data):
                super().received(connection, data)
                connection.pause()

        handler = Paused()
        server = serve(handler, concurrency=concurrency, workers=4)
        client = dial(server)
        client.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        client.sendall(bytes(300_000))
        connection = handler.first()
        connection.send(pattern(100_000))
        connection.close()
        assert read_to_end(client) == pattern(100_000)
        client.close()
        assert handler.end() is None

    def test_of_a_server_that_stops(self, serve, dial, concurrency):
        class Long(Recorder):
            def received(self, connection, data):
                super().received(connection, data)
                if data[:1] == b"q":
                    connection.send(pattern(3_000_000))

        handler = Long()
        server = serve(handler, concurrency=concurrency, workers=4)
        client = dial(server)
        client.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        thread = Background(server.stop, LONG)
        wait_until(lambda: handler.first().closing)
        client.sendall(bytes(50_000))
        assert read_to_end(client) == pattern(3_000_000)
        client.close()
        thread.outcome()
        assert handler.end() is None


class TestHowLong:
    def test_until_the_peer_ends_its_side_too(self, answered):
        def once():
            handler, client = answered()
            began = time.monotonic()
            client.close()
            assert handler.end() is None
            return handler.closed_at - began

        assert_soon(once)

    def test_for_two_seconds_at_most(self, serve, dial, concurrency, capfd):
        handler = Answering()
        server = serve(handler, concurrency=concurrency, workers=4)
        clients = [dial(server) for _ in range(3)]
        began = time.monotonic()
        for client in clients:
            client.sendall(b"question")
            assert read_to_end(client) == b"answer"
        wait_until(lambda: handler.count("closed") == 3)
        # This side has ended before, and went on reading meanwhile.
        took = [handler.closed_at - began]
        assert server.stats()["connections"] == 0
        # And once more, when nobody has lingered for a while.
        began = time.monotonic()
        client = dial(server)
        client.sendall(b"question")
        assert read_to_end(client) == b"answer"
        wait_until(lambda: handler.count("closed") == 4)
        took.append(handler.closed_at - began)
        assert LINGER - 0.5 < min(took) < LINGER + 2
        assert "ignored" not in capfd.readouterr().err

    def test_also_where_there_was_no_memory_for_the_timer(self, serve, dial, engine, monkeypatch):
        if engine != "selectors":
            pytest.skip("the compiled engines have the same in C")
        handler = Answering()
        server = serve(handler)
        kind = type(server._port)
        call_for, failures = kind._call_for, iter((True, False, True, True, False))

        def short(port, *arguments):
            if next(failures, False):
                raise MemoryError
            return call_for(port, *arguments)

        monkeypatch.setattr(kind, "_call_for", short)
        client = dial(server)
        client.sendall(b"question")
        assert read_to_end(client) == b"answer"
        assert handler.end() is None
        assert next(failures, None) is None

    def test_for_a_mebibyte_at_most(self, answered):
        def once():
            handler, client = answered()
            began = time.monotonic()
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 100_000_000:
                    sent += client.send(bytes(65536))
            assert handler.end() is None
            assert sent < 16_000_000  # what the buffers of the system take besides
            took = handler.closed_at - began
            assert sent > 1_000_000 or took > SOON
            return took

        assert_soon(once)

    def test_not_where_the_peer_has_ended_its_side(self, serve, dial, concurrency):
        def once():
            handler = Echo()
            server = serve(handler, concurrency=concurrency, workers=4)
            clients = [dial(server) for _ in range(20)]  # open until all have ended
            began = time.monotonic()
            for client in clients:
                client.sendall(b"question")
                client.shutdown(socket.SHUT_WR)
                assert read_to_end(client) == b"question"
            wait_until(lambda: handler.count("closed") == 20)
            return time.monotonic() - began

        assert_soon(once)

    def test_not_where_the_end_is_there_and_not_read_yet(self, serve, dial, concurrency):
        class Slow(Answering):
            def received(self, connection, data):
                assert ended.wait(LONG)
                super().received(connection, data)

        def once():
            handler.events.clear()
            ended.clear()
            client = dial(server)
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            began = time.monotonic()
            ended.set()
            assert read_to_end(client) == b"answer"
            assert handler.end() is None
            return handler.closed_at - began

        handler, ended = Slow(), threading.Event()
        server = serve(handler, concurrency=concurrency, workers=4)
        assert_soon(once)

    def test_not_behind_an_abort(self, serve, dial, concurrency):
        def once():
            handler = Answering(how="abort")
            client = dial(serve(handler, concurrency=concurrency, workers=4))
            began = time.monotonic()
            client.sendall(b"question")
            assert handler.end() is None
            return handler.closed_at - began

        assert_soon(once)

    def test_an_abort_ends_it(self, answered):
        def once():
            handler, _client = answered()
            began = time.monotonic()
            handler.first().abort()
            assert handler.end() is None
            return handler.closed_at - began

        assert_soon(once)

    def test_a_reset_ends_it(self, answered):
        def once():
            handler, client = answered()
            began = time.monotonic()
            reset(client)
            assert handler.end() is None  # it was closed before
            return handler.closed_at - began

        assert_soon(once)

    @pytest.fixture
    def idle(self, serve, dial, concurrency):
        """A server with a client that has said nothing: its handler too."""

        def make():
            handler = Recorder()
            server = serve(handler, concurrency=concurrency, workers=4)
            client = dial(server)
            handler.first()
            return server, handler, client

        return make

    def test_within_the_grace_of_a_stop(self, idle):
        def once():
            server, handler, client = idle()
            began = time.monotonic()
            server.stop(0.2)
            took = time.monotonic() - began
            assert handler.end() is None
            with contextlib.suppress(ConnectionResetError):
                assert read_to_end(client) == b""
            return took

        assert_soon(once)

    def test_a_stop_is_over_once_all_have_ended_their_side(self, idle):
        def once():
            server, _, client = idle()
            began = time.monotonic()
            thread = Background(server.stop, LONG)
            assert read_to_end(client) == b""
            client.close()
            thread.outcome()
            return time.monotonic() - began

        assert_soon(once)

    def test_stop_of_no_grace_waits_for_nobody(self, idle):
        def once():
            server, handler, _client = idle()
            began = time.monotonic()
            server.stop(0)
            took = time.monotonic() - began
            assert handler.end() is None
            return took

        assert_soon(once)

    def test_while_all_workers_but_one_are_busy(self, serve, dial, concurrency):
        """What bounds it needs no worker that waits."""

        class Busy(Answering):
            def received(self, connection, data):
                if data == b"work":
                    with connection.server.completion_port.blocking():
                        assert go_on.wait(LONG)
                    connection.abort()
                else:
                    super().received(connection, data)

        handler, go_on = Busy(), threading.Event()
        server = serve(handler, concurrency=concurrency, workers=2)
        busy, client = dial(server), dial(server)
        busy.sendall(b"work")
        client.sendall(b"question")
        assert read_to_end(client) == b"answer"
        assert handler.end() is None
        go_on.set()
        wait_until(lambda: handler.count("closed") == 2)


def test_a_silent_peer_that_is_closed_leaves_nothing(serve, dial, concurrency):
    server = serve(Silent(), concurrency=concurrency, workers=4)
    for _ in range(3):
        client = dial(server)
        client.sendall(os.urandom(1000))
    server.stop(0.1)
    assert server.stats()["connections"] == 0


def test_nothing_is_set_once_nobody_lingers(serve, dial, concurrency):
    """The timer that ends them does not go on for its own sake."""
    handler = Answering()
    server = serve(handler, concurrency=concurrency, workers=4)
    client = dial(server)
    client.sendall(b"question")
    assert read_to_end(client) == b"answer"
    wait_until(lambda: handler.count("closed"))

    def quiet():
        before = server.stats()["taken"]
        later = time.monotonic() + 1
        wait_until(lambda: time.monotonic() > later)
        return server.stats()["taken"] == before

    wait_until(quiet)
