"""A connection that is reset is told of it when that happens, whatever state it is in."""

from __future__ import annotations

import socket
import threading

import pytest

from server_support import Recorder, reset
from support import LONG, needs_unix_sockets, pattern, wait_until


class Keeping(Recorder):
    """It goes on where the peer has ended its side."""

    pauses = False

    def received(self, connection, data):
        super().received(connection, data)
        if self.pauses:
            connection.pause()

    def end_of_stream(self, connection):
        self.events.append(("end_of_stream", connection, None))


class Pausing(Keeping):
    pauses = True


@pytest.fixture(params=[1, 4], ids=["one at a time", "several at a time"])
def served(request, serve):
    def served(handler, **options):
        return serve(handler, concurrency=request.param, workers=4, **options)

    return served


def is_reset(error):
    return isinstance(error, ConnectionResetError)


class TestHalfClosed:
    def test_one_that_was_kept(self, served, dial):
        handler = Keeping()
        client = dial(served(handler))
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: handler.count("end_of_stream"))
        reset(client)
        assert is_reset(handler.end())
        assert handler.names() == ["connected", "received", "end_of_stream", "closed"]

    def test_one_that_answers_still(self, served, dial):
        handler = Keeping()
        client = dial(served(handler))
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: handler.count("end_of_stream"))
        handler.first().send(pattern(1000))
        assert client.recv(1000, socket.MSG_WAITALL) == pattern(1000)
        reset(client)
        assert is_reset(handler.end())

    def test_with_the_reset_while_the_callback_is_at_work(self, served, dial):
        class Slow(Keeping):
            def end_of_stream(self, connection):
                super().end_of_stream(connection)
                with connection.server.completion_port.blocking():
                    assert go_on.wait(LONG)

        handler, go_on = Slow(), threading.Event()
        client = dial(served(handler))
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: handler.count("end_of_stream"))
        reset(client)
        go_on.set()
        assert is_reset(handler.end())

    def test_one_whose_callback_sends_to_who_has_gone(self, served, dial):
        class Sending(Keeping):
            def end_of_stream(self, connection):
                super().end_of_stream(connection)
                with connection.server.completion_port.blocking():
                    assert go_on.wait(LONG)
                connection.send(b"answer")

        handler, go_on = Sending(), threading.Event()
        client = dial(served(handler))
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: handler.count("end_of_stream"))
        reset(client)
        go_on.set()
        assert isinstance(handler.end(), ConnectionError)

    def test_many_at_a_time(self, served, dial):
        handler = Keeping()
        server = served(handler)
        clients = [dial(server) for _ in range(50)]
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        wait_until(lambda: handler.count("end_of_stream") == 50)
        for client in clients[::2]:
            reset(client)
        wait_until(lambda: handler.count("closed") == 25)
        for client in clients[1::2]:
            reset(client)
        wait_until(lambda: handler.count("closed") == 50)
        assert all(is_reset(error) for name, _, error in handler.events if name == "closed")


class TestPaused:
    def test_one_that_had_nothing_to_read(self, served, dial):
        handler = Pausing()
        client = dial(served(handler))
        client.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        reset(client)
        assert is_reset(handler.end())

    def test_one_with_input_unread(self, served, dial):
        handler = Pausing()
        client = dial(served(handler))
        client.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        client.sendall(pattern(200_000))
        reset(client)
        assert is_reset(handler.end())
        assert handler.data() == b"question"

    def test_one_that_another_thread_paused(self, served, dial):
        handler = Keeping()
        client = dial(served(handler))
        connection = handler.first()
        connection.pause()
        client.sendall(pattern(100_000))
        reset(client)
        assert is_reset(handler.end())

    def test_one_that_was_paused_and_resumed_before(self, served, dial):
        handler = Keeping()
        client = dial(served(handler))
        connection = handler.first()
        for _ in range(10):
            connection.pause()
            connection.resume()
        client.sendall(b"question")
        wait_until(lambda: handler.data() == b"question")
        connection.pause()
        client.sendall(b"more")
        reset(client)
        assert is_reset(handler.end())

    def test_one_with_the_end_of_stream_unread(self, served, dial):
        handler = Pausing()
        client = dial(served(handler))
        client.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        client.sendall(b"more")
        client.shutdown(socket.SHUT_WR)
        reset(client)
        assert is_reset(handler.end())

    def test_a_paused_one_is_not_told_of_the_end_of_the_stream(self, served, dial):
        """That is no reset: it is told once it is resumed, behind all that came before."""
        handler = Pausing()
        handler.pauses = True
        client = dial(served(handler))
        client.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        client.sendall(b"more")
        client.shutdown(socket.SHUT_WR)
        other = dial(handler.first().server)
        other.close()  # what came later was seen
        wait_until(lambda: handler.count("end_of_stream"))
        assert handler.names(handler.first()) == ["connected", "received"]
        handler.pauses = False
        handler.first().resume()
        wait_until(lambda: handler.count("end_of_stream") == 2)
        assert handler.data() == b"questionmore"


@needs_unix_sockets
def test_a_unix_connection_whose_peer_has_gone_is_half_closed(served, tmp_path):
    """As one of TCP: what it sends will fail, and is told then."""
    handler = Keeping()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        served(handler, listener=listener)
        client.connect(str(tmp_path / "socket"))
        client.close()
        wait_until(lambda: handler.count("end_of_stream"))
        assert handler.count("closed") == 0
        handler.first().send(b"anybody?")
        assert isinstance(handler.end(), ConnectionError)


def test_a_reset_of_a_server_that_stops_is_over(served, dial):
    handler = Pausing()
    server = served(handler)
    client = dial(server)
    client.sendall(b"question")
    wait_until(lambda: handler.count("received"))
    reset(client)
    handler.end()
    server.stop()
