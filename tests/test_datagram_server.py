"""The datagram server: its callbacks, what it sends, its workers, and its end, on every engine."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import secrets
import socket
import threading
import weakref

import pytest

from completionport import ConnectionClosed, DatagramHandler, DatagramServer, Endpoint
from support import (
    HOST,
    LONG,
    STOP_SIGNALS,
    Background,
    descriptors,
    has_ipv6,
    needs_fork,
    needs_unix_sockets,
    pattern,
    python_process,
    run_python,
    send_signal,
    wait_until,
    wine_tells_no_refusal,
)


class Recorder(DatagramHandler):
    """Keeps what came; answers with it when it is told to."""

    def __init__(self, echo=False):
        self.echo = echo
        self.lock = threading.Lock()
        self.seen = []
        self.failures = []
        self.endpoint = None

    def received(self, endpoint, data, address):
        with self.lock:
            self.endpoint = endpoint
            self.seen.append((data, address))
        if self.echo:
            endpoint.send(data, address)

    def failed(self, endpoint, error):
        with self.lock:
            self.failures.append(error)

    def count(self):
        with self.lock:
            return len(self.seen)


@pytest.fixture
def serve(engine, nothing_left):
    """Servers on the engine under test, stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(handler, **options):
            options.setdefault("port", 0)
            server = DatagramServer(handler, engine=engine, **options)
            stack.callback(server.stop)
            server.start()
            return server

        yield start


@pytest.fixture
def client(nothing_left):
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(LONG)
        yield sock


def unix_socket():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(b"\0completionport-" + secrets.token_hex(8).encode())
    sock.settimeout(LONG)
    return sock


class TestReceiving:
    def test_each_datagram_is_one_callback_with_its_sender(self, serve, client):
        handler = Recorder()
        server = serve(handler)
        for number in range(50):
            client.sendto(b"%d" % number, server.address)
        wait_until(lambda: handler.count() == 50)
        sender = client.getsockname()
        assert sorted(handler.seen) == sorted((b"%d" % number, sender) for number in range(50))
        assert type(handler.seen[0][1]) is tuple
        endpoint = handler.endpoint
        assert isinstance(endpoint, Endpoint)
        assert (endpoint.server, endpoint.sockname) == (server, server.address)
        assert endpoint.closing is False

    def test_one_worker_is_given_them_in_order(self, serve, client):
        handler = Recorder()
        server = serve(handler, workers=1)
        for number in range(200):
            client.sendto(b"%d" % number, server.address)
        wait_until(lambda: handler.count() == 200)
        assert [data for data, _ in handler.seen] == [b"%d" % number for number in range(200)]

    def test_an_empty_datagram_is_delivered(self, serve, client):
        handler = Recorder(echo=True)
        server = serve(handler)
        client.sendto(b"", server.address)
        assert client.recvfrom(10) == (b"", server.address)
        assert handler.seen == [(b"", client.getsockname())]

    def test_the_longest_datagram_comes_whole(self, serve, client):
        server = serve(Recorder(echo=True))
        data = pattern(65_507)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        client.sendto(data, server.address)
        assert client.recv(70_000) == data

    def test_a_datagram_that_is_too_long_is_dropped_and_counted(self, serve, client):
        handler = Recorder(echo=True)
        server = serve(handler, buffer_size=100)
        client.sendto(bytes(101), server.address)
        client.sendto(pattern(100), server.address)
        assert client.recv(1000) == pattern(100)
        # Another worker may have the first one, and count it a little later.
        wait_until(lambda: server.stats()["truncated"] == 1)
        assert handler.count() == server.stats()["received_packets"] == 1

    @pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
    def test_ipv6_addresses_have_four_parts(self, serve):
        handler = Recorder(echo=True)
        server = serve(handler, host="::1")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.settimeout(LONG)
            client.bind(("::1", 0))
            client.sendto(b"hello", server.address)
            assert client.recvfrom(10) == (b"hello", server.address)
            assert handler.seen == [(b"hello", client.getsockname())]

    @needs_unix_sockets
    def test_a_unix_socket_of_ones_own_is_served(self, serve):
        handler = Recorder(echo=True)
        own = unix_socket()
        address = own.getsockname()
        serve(handler, sock=own)
        with unix_socket() as client:
            client.sendto(b"hello", address)
            assert client.recvfrom(10) == (b"hello", address)
            assert handler.seen == [(b"hello", client.getsockname())]

    def test_thousands_of_senders_keep_their_own_addresses(self, serve):
        """More than any table of known addresses holds."""
        handler = Recorder()
        server = serve(handler)
        senders = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(400)]
        try:
            expected = []
            for turn in range(3):
                for number, sock in enumerate(senders):
                    data = b"%d %d" % (turn, number)
                    sock.sendto(data, server.address)
                    expected.append((data, sock.getsockname()))
                    if number % 50 == 0:
                        wait_until(lambda: handler.count() == len(expected))
            wait_until(lambda: handler.count() == len(expected))
            assert [(data, ("127.0.0.1", port)) for data, (_, port) in sorted(handler.seen)] == (
                sorted((data, ("127.0.0.1", port)) for data, (_, port) in expected)
            )
        finally:
            for sock in senders:
                sock.close()

    def test_an_exception_is_logged_and_the_server_goes_on(self, serve, client, caplog):
        class Fails(DatagramHandler):
            def received(self, endpoint, data, address):
                if data == b"fail":
                    raise RuntimeError("on purpose")
                endpoint.send(data, address)

        server = serve(Fails())
        with caplog.at_level(logging.ERROR, "completionport"):
            client.sendto(b"fail", server.address)
            client.sendto(b"work", server.address)
            assert client.recv(10) == b"work"
            wait_until(lambda: "on purpose" in caplog.text)

    @wine_tells_no_refusal
    def test_what_receiving_reports_is_told_and_receiving_goes_on(self, serve, client):
        handler = Recorder(echo=True)
        own = socket.socket(type=socket.SOCK_DGRAM)
        own.bind(("127.0.0.1", 0))
        gone = socket.socket(type=socket.SOCK_DGRAM)
        gone.bind((HOST, 0))
        address = gone.getsockname()
        gone.close()
        own.connect(address)
        own.send(b"is anybody there?")
        server = serve(handler, sock=own)
        wait_until(lambda: handler.failures)
        assert handler.failures[0].errno == errno.ECONNREFUSED
        with socket.socket(type=socket.SOCK_DGRAM) as revived:
            revived.settimeout(LONG)
            revived.bind(address)
            revived.sendto(b"hello", server.address)
            assert revived.recv(10) == b"hello"


class TestSending:
    def test_any_thread_can_send_at_any_time(self, serve, client):
        handler = Recorder()
        server = serve(handler)
        client.sendto(b"here I am", server.address)
        wait_until(lambda: handler.count() == 1)
        address = client.getsockname()

        def send(letter):
            return [handler.endpoint.send(b"%c%d" % (letter, n), address) for n in range(40)]

        senders = [Background(send, letter) for letter in b"abcd"]
        assert [sender.outcome() for sender in senders] == [[True] * 40] * 4
        received = sorted(client.recv(10) for _ in range(160))
        assert received == sorted(b"%c%d" % (letter, n) for letter in b"abcd" for n in range(40))
        numbers = server.stats()
        wait_until(lambda: server.stats()["sent_packets"] == 160)
        assert (numbers["dropped"], numbers["queued_bytes"]) == (0, 0)

    @pytest.mark.parametrize(
        "data", [b"hello", bytearray(b"hello"), memoryview(b"hello"), [b"he", bytearray(b"llo")]]
    )
    def test_every_kind_of_data_is_sent(self, serve, client, data):
        handler = Recorder()
        server = serve(handler)
        client.sendto(b"x", server.address)
        wait_until(lambda: handler.count() == 1)
        assert handler.endpoint.send(data, client.getsockname()) is True
        assert client.recv(10) == b"hello"

    def test_every_form_of_the_address_will_do(self, serve, client):
        handler = Recorder()
        server = serve(handler)
        client.sendto(b"x", server.address)
        wait_until(lambda: handler.count() == 1)
        host, port = client.getsockname()
        for address in (handler.seen[0][1], (host, port), ("localhost", port)):
            for _ in range(2):
                handler.endpoint.send(b"hello", address)
                assert client.recv(10) == b"hello"

    @pytest.mark.parametrize(
        ("data", "address", "error"),
        [
            ("text", ("127.0.0.1", 9), TypeError),
            (5, ("127.0.0.1", 9), TypeError),
            (b"x", "127.0.0.1", TypeError),
            (b"x", None, TypeError),
            (b"x", ("127.0.0.1", "9"), TypeError),
            (b"x", ("127.0.0.1", 70_000), OverflowError),
            (bytes(70_000), ("127.0.0.1", 9), OSError),
        ],
    )
    def test_wrong_arguments_raise(self, serve, client, data, address, error):
        handler = Recorder()
        server = serve(handler)
        client.sendto(b"x", server.address)
        wait_until(lambda: handler.count() == 1)
        with pytest.raises(error):
            handler.endpoint.send(data, address)

    @needs_unix_sockets
    def test_a_receiver_that_is_gone_raises(self, serve):
        handler = Recorder()
        own = unix_socket()
        address = own.getsockname()
        serve(handler, sock=own)
        with unix_socket() as client:
            client.sendto(b"x", address)
            wait_until(lambda: handler.count() == 1)
        with pytest.raises(OSError, match="refused"):
            handler.endpoint.send(b"x", handler.seen[0][1])

    @needs_unix_sockets
    def test_what_finds_a_full_receiver_is_dropped_and_counted(self, serve):
        handler = Recorder()
        own = unix_socket()
        address = own.getsockname()
        server = serve(handler, sock=own)
        with unix_socket() as client:
            client.sendto(b"x", address)
            wait_until(lambda: handler.count() == 1)
            peer = handler.seen[0][1]
            sent = [handler.endpoint.send(b"%d" % number, peer) for number in range(1000)]
            assert sent[0] is True
            assert sent[-1] is False
            for number in range(sent.index(False)):
                assert client.recv(10) == b"%d" % number
            assert server.stats()["dropped"] == sent.count(False)
            assert handler.endpoint.send(b"there is room again", peer) is True

    @needs_unix_sockets
    def test_what_finds_the_socket_full_is_queued_and_goes_out(self, serve):
        """A connected Unix socket tells when its receiver has room."""
        handler = Recorder()
        own, far = unix_socket(), unix_socket()
        with far:
            peer = far.getsockname()
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            address = own.getsockname()
            server = serve(handler, sock=own, send_limit=50_000)
            far.sendto(b"x", address)
            wait_until(lambda: handler.count() == 1)
            sent = [handler.endpoint.send(b"%04d" % n + bytes(996), peer) for n in range(100)]
            assert sent[0] is True
            queued = server.stats()["queued_bytes"]
            taken = [far.recv(2000)[:4] for _ in range(sent.count(True))]
            assert taken == [b"%04d" % number for number, ok in enumerate(sent) if ok]
            wait_until(lambda: server.stats()["queued_bytes"] == 0)
            numbers = server.stats()
            assert numbers["dropped"] == sent.count(False)
            assert numbers["sent_packets"] == sent.count(True)
            assert queued <= 50_000

    @needs_unix_sockets
    def test_a_changed_buffer_does_not_change_what_is_queued(self, serve):
        handler = Recorder()
        own, far = unix_socket(), unix_socket()
        with far:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            serve(handler, sock=own)
            far.sendto(b"x", own.getsockname())
            wait_until(lambda: handler.count() == 1)
            peer = handler.seen[0][1]
            buffer = bytearray(1000)
            count = 0
            for number in range(5):
                buffer[:4] = b"%04d" % number
                count += handler.endpoint.send(buffer, peer)
                buffer[:4] = b"lost"
            assert [far.recv(2000)[:4] for _ in range(count)] == [b"%04d" % n for n in range(count)]


class TestWorkers:
    def test_others_go_on_while_callbacks_block(self, serve, client, engine):
        gate = threading.Event()
        waiting = []

        class Blocks(DatagramHandler):
            def received(self, endpoint, data, address):
                if data == b"block":
                    waiting.append(1)
                    with endpoint.server.completion_port.blocking():
                        assert gate.wait(LONG)
                endpoint.send(data, address)

        server = serve(Blocks(), workers=4)
        try:
            for _ in range(3):
                client.sendto(b"block", server.address)
            wait_until(lambda: len(waiting) == 3)
            for number in range(20):
                client.sendto(b"%d" % number, server.address)
                assert client.recv(10) == b"%d" % number
        finally:
            gate.set()
        assert [client.recv(10) for _ in range(3)] == [b"block"] * 3

    def test_callbacks_run_side_by_side_up_to_the_concurrency(self, serve, client):
        barrier = threading.Barrier(3)

        class Meets(DatagramHandler):
            def received(self, endpoint, data, address):
                barrier.wait(LONG)
                endpoint.send(data, address)

        server = serve(Meets(), workers=4, concurrency=3)
        for number in range(3):
            client.sendto(b"%d" % number, server.address)
        assert sorted(client.recv(10) for _ in range(3)) == [b"0", b"1", b"2"]

    def test_an_idle_server_waits(self, serve, client):
        server = serve(Recorder(echo=True), workers=3)
        client.sendto(b"x", server.address)
        client.recv(10)
        wait_until(lambda: server.stats()["waiting"] == 3)
        before = server.stats()["taken"]
        assert server.stats()["taken"] == before


class TestTheEnd:
    def test_stop_closes_the_socket_and_ends_the_threads(self, engine, nothing_left):
        server = DatagramServer(Recorder(), host=HOST, port=0, engine=engine)
        server.start()
        address = server.address
        server.stop()
        assert server.completion_port.closed
        with socket.socket(type=socket.SOCK_DGRAM) as again:
            again.bind(address)
        server.stop()

    def test_a_server_that_was_never_started_stops(self, engine, nothing_left):
        DatagramServer(Recorder(), port=0, engine=engine).stop()

    def test_it_is_a_context_manager(self, engine, client):
        with DatagramServer(Recorder(echo=True), port=0, engine=engine) as server:
            client.sendto(b"hello", server.address)
            assert client.recv(10) == b"hello"
        assert server.completion_port.closed

    def test_a_callback_can_stop_it(self, engine, client):
        class Stops(DatagramHandler):
            def received(self, endpoint, data, address):
                endpoint.send(b"bye", address)
                endpoint.server.stop()

        server = DatagramServer(Stops(), port=0, engine=engine)
        server.start()
        client.sendto(b"stop", server.address)
        assert client.recv(10) == b"bye"
        server.stop()

    def test_sending_after_the_end_raises(self, engine, client):
        handler = Recorder()
        server = DatagramServer(handler, port=0, engine=engine)
        server.start()
        client.sendto(b"x", server.address)
        wait_until(lambda: handler.count() == 1)
        server.stop()
        assert handler.endpoint.closing is True
        with pytest.raises(ConnectionClosed):
            handler.endpoint.send(b"x", client.getsockname())

    def test_it_stops_under_load(self, engine, nothing_left):
        for _ in range(10):
            handler = Recorder(echo=True)
            server = DatagramServer(handler, port=0, engine=engine, workers=4, concurrency=2)
            server.start()
            stop = threading.Event()

            def flood(address=server.address, stop=stop):
                with socket.socket(type=socket.SOCK_DGRAM) as sock:
                    while not stop.is_set():
                        with contextlib.suppress(OSError):
                            sock.sendto(b"x" * 100, address)

            floods = [Background(flood) for _ in range(2)]
            wait_until(lambda handler=handler: handler.count() > 100)
            server.stop()
            stop.set()
            for thread in floods:
                thread.outcome()

    @needs_unix_sockets
    def test_what_is_queued_has_its_grace(self, engine, nothing_left):
        handler = Recorder()
        own, far = unix_socket(), unix_socket()
        with far:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            server = DatagramServer(handler, sock=own, engine=engine)
            server.start()
            far.sendto(b"x", server.address)
            wait_until(lambda: handler.count() == 1)
            peer = handler.seen[0][1]
            count = sum(handler.endpoint.send(b"%04d" % n + bytes(996), peer) for n in range(50))
            stopping = Background(server.stop, LONG)
            assert [far.recv(2000)[:4] for _ in range(count)] == [b"%04d" % n for n in range(count)]
            stopping.outcome()

    def test_nothing_keeps_a_stopped_server_alive(self, engine, client):
        handler = Recorder(echo=True)
        server = DatagramServer(handler, port=0, engine=engine)
        server.start()
        client.sendto(b"x", server.address)
        client.recv(10)
        server.stop()
        alive = weakref.ref(server)
        handler.endpoint = None
        del server
        gc.collect()
        # The thread that has stopped it ends behind that.
        wait_until(lambda: gc.collect() is not None and alive() is None, "nothing has it")

    @pytest.mark.parametrize("number", STOP_SIGNALS)
    def test_serve_forever_ends_with_a_signal(self, engine, client, number):
        script = """
            from completionport import DatagramHandler, DatagramServer

            class Echo(DatagramHandler):
                def received(self, endpoint, data, address):
                    endpoint.send(data, address)

            server = DatagramServer(Echo(), port=0)
            print(server.address[1], flush=True)
            server.serve_forever()
            print("ended", flush=True)
        """
        with python_process(script, engine=engine) as process:
            address = ("127.0.0.1", int(process.stdout.readline()))
            client.settimeout(0.2)

            def answered():
                client.sendto(b"hello", address)
                with contextlib.suppress(OSError):
                    return client.recv(10) == b"hello"

            wait_until(answered)
            send_signal(number, process.pid)
            assert process.stdout.readline() == "ended\n"
            assert process.wait(LONG) == 0, process.stderr.read()

    def test_the_interpreter_ends_with_a_server_at_work(self, engine):
        run_python(
            """
            import os, socket, threading
            from completionport import DatagramHandler, DatagramServer

            class Echo(DatagramHandler):
                def received(self, endpoint, data, address):
                    endpoint.send(data, address)

            server = DatagramServer(Echo(), port=0)
            for thread in [*server._threads, server._keeper]:
                thread.daemon = True
            server.start()
            sock = socket.socket(type=socket.SOCK_DGRAM)
            sock.settimeout(20)
            for _ in range(100):
                sock.sendto(b"x", server.address)
                sock.recv(10)
            """,
            engine=engine,
        )

    @needs_fork
    def test_fork_leaves_the_parent_unharmed(self, engine):
        run_python(
            """
            import os, socket
            from completionport import DatagramHandler, DatagramServer

            class Echo(DatagramHandler):
                def received(self, endpoint, data, address):
                    endpoint.send(data, address)

            with DatagramServer(Echo(), port=0) as server:
                sock = socket.socket(type=socket.SOCK_DGRAM)
                sock.settimeout(20)
                child = os.fork()
                if child == 0:
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                for _ in range(100):
                    sock.sendto(b"x", server.address)
                    assert sock.recv(10) == b"x"
            """,
            engine=engine,
        )


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"handler": object()}, TypeError, "DatagramHandler"),
            ({"host": 5}, TypeError, "host must be"),
            ({"port": "5050"}, TypeError, "port must be"),
            ({"port": 70_000}, ValueError, "port must be a number from 0 to 65535"),
            ({"workers": 0}, ValueError, "workers must be"),
            ({"workers": 10**9}, ValueError, "workers must be from 1 to 32768, not 1000000000"),
            ({"concurrency": -1}, ValueError, "concurrency"),
            ({"buffer_size": 10}, ValueError, "buffer_size must be"),
            ({"buffer_size": 70_000}, ValueError, "buffer_size must be"),
            ({"receive_buffer": 0}, ValueError, "receive_buffer must be"),
            ({"receive_buffer": 2**31}, ValueError, "receive_buffer must be from 1 to 2147483647"),
            ({"send_limit": -1}, ValueError, "send_limit must be"),
            ({"engine": "none"}, ValueError, "engine"),
            ({"sock": 5}, TypeError, "sock must be"),
        ],
    )
    def test_wrong_ones_raise(self, engine, nothing_left, options, error, text):
        arguments = {"handler": Recorder(), "port": 0, "engine": engine, **options}
        with pytest.raises(error, match=text):
            DatagramServer(arguments.pop("handler"), **arguments)

    def test_a_stream_socket_is_refused_and_stays_open(self, engine, nothing_left):
        with socket.socket() as sock:
            with pytest.raises(ValueError, match="datagram"):
                DatagramServer(Recorder(), sock=sock, engine=engine)
            assert sock.fileno() >= 0

    def test_a_port_in_use_is_told(self, engine, client, nothing_left):
        port = client.getsockname()[1]
        with pytest.raises(OSError, match=rf"listen on 127\.0\.0\.1, port {port}: .") as caught:
            DatagramServer(Recorder(), port=port, engine=engine)
        assert caught.value.errno == errno.EADDRINUSE

    def test_the_receive_buffer_is_set(self, serve):
        server = serve(Recorder(), receive_buffer=100_000)
        assert server._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 100_000

    @pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
    def test_several_servers_share_a_port(self, serve, client):
        first = serve(Recorder(echo=True), reuse_port=True)
        serve(Recorder(echo=True), port=first.address[1], reuse_port=True)
        client.sendto(b"hello", first.address)
        assert client.recv(10) == b"hello"

    def test_a_handler_without_failed_takes_everything(self, serve, client):
        class Silent(DatagramHandler):
            def received(self, endpoint, data, address):
                pass

        server = serve(Silent())
        client.sendto(b"hello", server.address)
        wait_until(lambda: server.stats()["received_packets"] == 1)

    def test_many_servers_leave_nothing_behind(self, engine, nothing_left):
        before = len(descriptors())
        for _ in range(20):
            with DatagramServer(Recorder(), port=0, engine=engine, workers=2):
                pass
        gc.collect()
        assert len(descriptors()) <= before + 1
