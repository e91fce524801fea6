"""The end of a server, for callbacks that are at work: they answer still, within the grace."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from completionport import ConnectionClosed, DatagramHandler, DatagramServer, Server
from datagram_support import bound_socket
from server_support import Recorder
from support import HOST, LONG, Background, needs_unix_sockets, pattern, read_to_end, wait_until


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


class Keeping(Recorder):
    """It is asked, and keeps the connection."""

    def stopping(self, connection):
        self.events.append(("stopping", connection, None))


@pytest.fixture(params=[1, 4], ids=["one at a time", "several at a time"])
def served(request, serve):
    def served(handler, **options):
        return serve(handler, concurrency=request.param, workers=4, **options)

    return served


class TestStopping:
    def test_who_keeps_it_answers_from_another_thread(self, served, dial):
        handler = Keeping()
        server = served(handler)
        client = dial(server)
        client.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        thread = Background(server.stop, LONG)
        wait_until(lambda: handler.count("stopping"))
        connection = handler.first()
        assert not connection.closing
        connection.send(b"answer")
        connection.close()
        assert read_to_end(client) == b"answer"
        client.close()
        thread.outcome()
        assert handler.names() == ["connected", "received", "stopping", "closed"]
        assert handler.end() is None

    def test_it_is_served_on(self, served, dial):
        class Echoing(Keeping):
            def received(self, connection, data):
                super().received(connection, data)
                connection.send(data)

        handler = Echoing()
        server = served(handler)
        client = dial(server)
        handler.first()
        thread = Background(server.stop, LONG)
        wait_until(lambda: handler.count("stopping"))
        for _ in range(3):
            client.sendall(b"question")
            assert client.recv(100) == b"question"
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b""
        client.close()
        thread.outcome()
        assert handler.names()[-3:] == ["received", "end_of_stream", "closed"]

    def test_a_long_answer_is_streamed_to_its_end(self, served, dial):
        whole = pattern(20_000_000)

        class Streaming(Keeping):
            def received(self, connection, data):
                super().received(connection, data)
                connection.state = 0
                self.go_on(connection)

            def drained(self, connection):
                self.go_on(connection)

            def go_on(self, connection):
                while connection.state < len(whole) and connection.send_queue_size < 300_000:
                    connection.send(whole[connection.state : connection.state + 100_000])
                    connection.state += 100_000
                if connection.state == len(whole):
                    connection.close()

        handler = Streaming()
        server = served(handler)
        client = dial(server, buffer=65536)
        client.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        thread = Background(server.stop, LONG)
        wait_until(lambda: handler.count("stopping"))
        assert read_to_end(client) == whole
        client.close()
        thread.outcome()

    def test_it_comes_in_order_behind_the_callback_at_work(self, served, dial):
        class Slow(Keeping):
            def received(self, connection, data):
                super().received(connection, data)
                with connection.server.completion_port.blocking():
                    inside.set()
                    assert go_on.wait(LONG)
                self.events.append(("over", connection, None))

            def stopping(self, connection):
                super().stopping(connection)
                connection.close()

        handler, inside, go_on = Slow(), threading.Event(), threading.Event()
        server = served(handler)
        client = dial(server)
        client.sendall(b"question")
        assert inside.wait(LONG)
        thread = stopping(server)
        go_on.set()
        assert read_to_end(client) == b""
        client.close()
        thread.outcome()
        assert handler.names() == ["connected", "received", "over", "stopping", "closed"]

    def test_who_is_just_being_welcomed_is_asked_behind_it(self, served, dial):
        class Slow(Keeping):
            def connected(self, connection):
                super().connected(connection)
                with connection.server.completion_port.blocking():
                    inside.set()
                    assert go_on.wait(LONG)

            def stopping(self, connection):
                super().stopping(connection)
                connection.send(b"bye")
                connection.close()

        handler, inside, go_on = Slow(), threading.Event(), threading.Event()
        server = served(handler)
        client = dial(server)
        assert inside.wait(LONG)
        thread = stopping(server)
        go_on.set()
        assert read_to_end(client) == b"bye"
        client.close()
        thread.outcome()
        assert handler.names() == ["connected", "stopping", "closed"]

    def test_everybody_is_asked_once(self, served, dial):
        handler = Keeping()
        server = served(handler)
        clients = [dial(server) for _ in range(50)]
        wait_until(lambda: handler.count("connected") == 50)
        thread = Background(server.stop, LONG)
        wait_until(lambda: handler.count("stopping") == 50)
        for client in clients:
            client.close()
        thread.outcome()
        asked = [connection for name, connection, _ in handler.events if name == "stopping"]
        assert len(set(asked)) == len(asked) == 50

    def test_a_paused_one_is_asked_too(self, served, dial):
        class Paused(Keeping):
            def received(self, connection, data):
                super().received(connection, data)
                if data == b"question":
                    connection.pause()

        handler = Paused()
        server = served(handler)
        client = dial(server)
        client.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        client.sendall(b"more")
        thread = Background(server.stop, LONG)
        wait_until(lambda: handler.count("stopping"))
        handler.first().resume()
        wait_until(lambda: handler.data() == b"questionmore")
        client.close()
        thread.outcome()

    def test_one_whose_peer_has_ended_its_side_is_asked_too(self, served, dial):
        class HalfClosed(Keeping):
            def end_of_stream(self, connection):
                self.events.append(("end_of_stream", connection, None))

        handler = HalfClosed()
        server = served(handler)
        client = dial(server)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: handler.count("end_of_stream"))
        thread = Background(server.stop, LONG)
        wait_until(lambda: handler.count("stopping"))
        handler.first().send(b"answer")
        handler.first().close()
        assert read_to_end(client) == b"answer"
        thread.outcome()

    def test_one_that_is_closing_is_not_asked(self, served, dial):
        class Long(Keeping):
            def received(self, connection, data):
                super().received(connection, data)
                connection.send(pattern(8_000_000))
                connection.close()

        handler = Long()
        server = served(handler)
        busy, lingering = dial(server, buffer=65536), dial(server)
        busy.sendall(b"question")
        wait_until(lambda: handler.count("received"))
        wait_until(lambda: handler.count("connected") == 2)
        (sender,) = [one for name, one, _ in handler.events if name == "received"]
        wait_until(lambda: sender.closing)
        (other,) = [one for one in handler.connections if one is not sender]
        other.close()
        assert read_to_end(lingering) == b""
        thread = stopping(server)
        assert read_to_end(busy) == pattern(8_000_000)
        busy.close()
        lingering.close()
        thread.outcome()
        assert handler.count("stopping") == 0

    def test_what_is_left_after_the_grace_is_aborted(self, served, dial):
        handler = Keeping()
        server = served(handler)
        clients = [dial(server) for _ in range(3)]
        wait_until(lambda: handler.count("connected") == 3)
        began = time.monotonic()
        server.stop(0.5)
        assert 0.4 < time.monotonic() - began < LONG / 2
        assert [error for name, _, error in handler.events if name == "closed"] == [None] * 3
        for client in clients:
            with contextlib.suppress(ConnectionResetError):
                assert read_to_end(client) == b""

    def test_no_grace_asks_nobody(self, served, dial):
        handler = Keeping()
        server = served(handler)
        _clients = [dial(server) for _ in range(3)]
        wait_until(lambda: handler.count("connected") == 3)
        server.stop(0)
        assert handler.count("stopping") == 0
        assert handler.count("closed") == 3

    def test_an_exception_ends_its_connection(self, served, dial, caplog):
        class Failing(Keeping):
            def stopping(self, connection):
                super().stopping(connection)
                raise ValueError("a mistake")

        handler = Failing()
        server = served(handler)
        _client = dial(server)
        handler.first()
        began = time.monotonic()
        server.stop(LONG)
        assert time.monotonic() - began < LONG / 2
        assert isinstance(handler.end(), ValueError)
        assert "exception in a callback" in caplog.text

    def test_it_may_be_an_attribute_of_the_object(self, served, dial):
        handler = Recorder()
        handler.stopping = lambda connection: (connection.send(b"bye"), connection.close())
        server = served(handler)
        client = dial(server)
        handler.first()
        thread = Background(server.stop, LONG)
        assert read_to_end(client) == b"bye"
        client.close()
        thread.outcome()

    def test_it_may_do_as_the_base_does(self, served, dial):
        class Telling(Keeping):
            def stopping(self, connection):
                Keeping.stopping(self, connection)
                connection.send(b"bye")
                super(Keeping, self).stopping(connection)

        handler = Telling()
        server = served(handler)
        client = dial(server)
        handler.first()
        thread = Background(server.stop, LONG)
        assert read_to_end(client) == b"bye"
        client.close()
        thread.outcome()

    def test_a_stop_by_a_callback_asks_as_well(self, served, dial):
        class Stopping(Keeping):
            def received(self, connection, data):
                super().received(connection, data)
                connection.server.stop(LONG)

            def stopping(self, connection):
                super().stopping(connection)
                connection.send(b"bye")
                connection.close()

        handler = Stopping()
        server = served(handler)
        client, other = dial(server), dial(server)
        wait_until(lambda: handler.count("connected") == 2)
        client.sendall(b"stop")
        assert read_to_end(client) == read_to_end(other) == b"bye"
        client.close()
        other.close()
        server.stop()
        assert handler.count("stopping") == 2

    def test_no_new_connection_comes_meanwhile(self, served, dial):
        handler = Keeping()
        server = served(handler, host=HOST)
        client = dial(server)
        handler.first()
        thread = Background(server.stop, LONG)
        wait_until(lambda: handler.count("stopping"))
        with pytest.raises((ConnectionError, TimeoutError)):
            dial(server)
        client.close()
        thread.outcome()
        assert handler.count("connected") == 1


class StopsWithoutThreads(Recorder, DatagramHandler):
    """Stops its server in a callback, while the system gives no thread."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.monkeypatch = monkeypatch
        self.outcome = []

    def received(self, where, data, *address):
        self.monkeypatch.setattr(threading.Thread, "start", refuse_a_thread)
        try:
            self.outcome += [where.server.stop(LONG)]
        except BaseException as error:
            self.outcome += [error]
        where.send(b"answer", *address)


def refuse_a_thread(thread):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("kind", [Server, DatagramServer])
@pytest.mark.parametrize("way", ["nobody waits", "a stop behind it", "serve_forever"])
def test_a_stop_in_a_callback_needs_no_thread(engine, monkeypatch, nothing_left, way, kind):
    handler = StopsWithoutThreads(monkeypatch)
    server = kind(handler, "127.0.0.1", 0, engine=engine)
    serving = Background(server.serve_forever) if way == "serve_forever" else server.start()
    type_ = socket.SOCK_STREAM if kind is Server else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, type_) as client:
        client.settimeout(LONG)
        client.connect(server.address)
        client.send(b"please")
        assert client.recv(100) == b"answer"
        assert handler.outcome == [None]
    if way == "a stop behind it":
        server.stop()
        assert server.completion_port.closed
    wait_until(lambda: server.completion_port.closed, "the server has ended")
    if serving is not None:
        serving.outcome()
