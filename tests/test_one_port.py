"""Servers on a port that the program made: one queue, one concurrency, for everything there is."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from completionport import (
    CompletionPort,
    DatagramHandler,
    DatagramServer,
    Handler,
    PortClosed,
    PortOwned,
    Server,
    Strand,
    WorkerPool,
    open_directory,
)
from one_port_support import Echo, EchoDatagrams, echoes, echoes_datagram, is_worker, values
from server_support import Recorder
from support import (
    LONG,
    USER_SIGNAL,
    Background,
    descriptors,
    needs_concurrency,
    read_exactly,
    wait_for_stats,
    wait_until,
)


class TestBeside:
    def test_everything_at_once(self, make_port, serve_on, dial, send_to, tmp_path, taker):
        port = make_port(1)
        first, second = serve_on(port), serve_on(port, buffer_size=1 << 18)
        datagrams = serve_on(port, kind=DatagramServer)
        got = taker(port)
        path = tmp_path / "file"
        path.write_bytes(b"x" * 10000)
        clients = [dial(server) for server in (first, second) * 4]
        friends = [send_to(datagrams) for _ in range(3)]
        with open(path, "rb") as file:
            handle = port.associate(file, "file")
            for number in range(50):
                assert all(echoes(client, b"%06d" % number * 500) for client in clients)
                assert all(echoes_datagram(friend) for friend in friends)
                port.post(number, "post")
                port.post_after(0.001, number, "timer")
                handle.read(100, offset=number)
                port.submit(int, "7", key="call")
            wait_until(lambda: len(got) == 200, "all packets of the program's came")
            handle.close()
        by_key = {
            key: [packet for packet in got if packet.key == key]
            for key in ("post", "timer", "file", "call")
        }
        assert values(by_key["post"]) == list(range(50))
        assert sorted(values(by_key["timer"])) == list(range(50))
        assert all(packet.overlapped.result() == b"x" * 100 for packet in by_key["file"])
        assert [packet.overlapped.result() for packet in by_key["call"]] == [7] * 50
        port.close()

    def test_the_programs_packets_wait_for_the_program(self, make_port, serve_on, dial):
        port = make_port(1)
        server = serve_on(port)
        for number in range(100):
            port.post(number)
        client = dial(server)
        assert all(echoes(client) for _ in range(100))
        assert port.stats()["queued"] == 100
        assert [port.get(LONG).transferred for _ in range(100)] == list(range(100))
        assert port.get(0) is None

    def test_a_pool_takes_them(self, make_port, serve_on, dial):
        port, came = make_port(1), []
        server = serve_on(port, workers=2)
        with WorkerPool(port, came.append, 2):
            client = dial(server)
            for number in range(100):
                port.post(number)
                assert echoes(client)
            wait_until(lambda: len(came) == 100, "all were served")
        assert sorted(values(came)) == list(range(100))
        assert echoes(client)

    def test_a_strand_keeps_its_order(self, make_port, serve_on, dial):
        port, seen = make_port(2), []
        server, strand = serve_on(port), Strand(port)

        with WorkerPool(port, lambda packet: seen.append(packet.transferred), 4):
            client = dial(server)
            for number in range(300):
                port.post(number, strand=strand)
                if number % 10 == 0:
                    assert echoes(client)
        assert seen == list(range(300))

    def test_signals_processes_and_directories(self, make_port, serve_on, dial, tmp_path, taker):
        port = make_port(1)
        client, got = dial(serve_on(port)), taker(port)
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(3)"])
        with (
            port.associate_signal(USER_SIGNAL, "signal"),
            port.associate(open_directory(tmp_path), "changes") as changes,
        ):
            changes.read_changes()
            port.associate(process, "process")
            signal.raise_signal(USER_SIGNAL)
            (tmp_path / "file").write_bytes(b"x")
            wait_until(lambda: echoes(client) and len(got) >= 3, "all have come")
        process.wait()
        assert {packet.key for packet in got} == {"signal", "process", "changes"}
        port.close()

    def test_a_pool_grows_while_its_threads_serve(self, make_port, serve_on, dial):
        """They block in callbacks of the server, and nobody is left for the program's packets."""
        port, begun, end, came = make_port(3), [], threading.Event(), []

        class Blocking(Handler):
            def received(self, connection, data):
                begun.append(connection)
                assert end.wait(LONG)

        server = serve_on(port, Blocking(), workers=1)
        with WorkerPool(port, came.append, 1, maximum=2) as pool:
            for client in [dial(server) for _ in range(2)]:
                client.sendall(b"x")
            wait_until(lambda: len(begun) == 2, "two threads are at a callback")
            port.post("mine")
            wait_until(lambda: came, "a further thread takes it")
            assert pool.stats()["grown"] == 1
            end.set()

    def test_servers_of_any_buffer_size(self, make_port, serve_on, dial):
        port = make_port(1)
        sizes = (64, 1 << 20, 16384, 1000)

        class Longest(Handler):
            def __init__(self):
                self.longest = 0

            def received(self, connection, data):
                self.longest = max(self.longest, len(data))
                connection.send(data)

        handlers = [Longest() for _ in sizes]
        servers = [
            serve_on(port, handler, buffer_size=size)
            for handler, size in zip(handlers, sizes, strict=True)
        ]
        for server, handler, size in zip(servers, handlers, sizes, strict=True):
            assert echoes(dial(server), b"z" * 100_000)
            assert 0 < handler.longest <= size

    def test_one_that_comes_while_others_are_at_work(
        self, make_port, serve_on, dial, send_to, tcp, taker
    ):
        """Handles and operations are under way, and a thread waits in the kernel."""
        port = make_port(1)
        near, far = tcp
        got = taker(port)
        handle = port.associate(near, "handle")
        handle.recv(100)
        wait_for_stats(port, waiting=1)
        server = serve_on(port)
        client = dial(server)
        assert echoes(client)
        datagrams = serve_on(port, kind=DatagramServer)
        friend = send_to(datagrams)
        late = serve_on(port)
        for _ in range(20):
            assert echoes(client)
            assert echoes_datagram(friend)
            assert echoes(dial(late))
        far.sendall(b"there")
        wait_until(lambda: got, "the handle's packet came")
        assert got[0].overlapped.result() == b"there"
        handle.close()
        port.close()

    @pytest.mark.parametrize("first", [Server, DatagramServer])
    def test_answers_go_out_while_other_packets_wait(self, make_port, serve_on, dial, taker, first):
        """Short packets and many of them: an engine may send such answers together, a little later.

        All that a client sends fits the buffer, so nobody looks whether there is more, and an
        answer that is left behind stays there.
        """
        port = make_port(1)
        kinds = [Server, DatagramServer] if first is Server else [DatagramServer, Server]
        servers = {
            kind: serve_on(port, kind=kind, **({"buffer_size": 64} if kind is Server else {}))
            for kind in kinds
        }
        taker(port)
        clients = [dial(servers[Server]) for _ in range(16)]
        for _ in range(200):
            for _ in range(20):
                port.post()
            for client in clients:
                client.sendall(b"x" * 64)
            assert all(read_exactly(client, 64) == b"x" * 64 for client in clients)
        port.close()

    @needs_concurrency
    def test_one_concurrency_for_all(self, make_port, serve_on, dial, send_to):
        port = make_port(2)
        lock, most, now = threading.Lock(), [0], [0]

        def compute():
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            end = time.thread_time() + 0.002
            while time.thread_time() < end:
                pass
            with lock:
                now[0] -= 1

        class Busy(Handler):
            def received(self, connection, data):
                compute()
                connection.send(data)

        class BusyDatagrams(DatagramHandler):
            def received(self, endpoint, data, address):
                compute()
                endpoint.send(data, address)

        servers = [serve_on(port, Busy()), serve_on(port, Busy())]
        datagrams = serve_on(port, BusyDatagrams(), DatagramServer)
        with WorkerPool(port, lambda packet: compute(), 4):
            clients = [dial(server) for server in servers for _ in range(4)]
            friend = send_to(datagrams)
            for _ in range(10):
                for client in clients:
                    client.sendall(b"x")
                    port.post()
                friend.send(b"x")
                for client in clients:
                    assert read_exactly(client, 1) == b"x"
                assert friend.recv(10) == b"x"
        # A thread that waits for a processor or the GIL may count as blocked for a moment.
        assert most[0] <= 3 + port.stats()["replaced"]


class TestTakers:
    @pytest.mark.parametrize("take", ["get", "get_many"])
    def test_a_thread_that_takes_packets_serves(self, make_port, serve_on, dial, taker, take):
        port, threads = make_port(1), set()

        class Noting(Echo):
            def received(self, connection, data):
                threads.add(threading.current_thread())
                super().received(connection, data)

        # Its one worker is held by a callback, which blocks.
        begun, end = threading.Event(), threading.Event()

        class Holding(Handler):
            def received(self, connection, data):
                begun.set()
                assert end.wait(LONG)

        server, holder = serve_on(port, Noting(), workers=1), serve_on(port, Holding(), workers=1)
        holding = [dial(holder) for _ in range(2)]
        got = taker(port, take)
        for client in holding:
            client.sendall(b"x")
        assert begun.wait(LONG)
        end.set()
        client = dial(server)
        for number in range(300):
            assert echoes(client)
            port.post(number)
        wait_until(lambda: len(got) == 300, "the program's packets came out")
        assert values(got) == list(range(300))
        # Which thread comes for a message, a busy machine decides.
        wait_until(
            lambda: echoes(client) and not all(map(is_worker, list(threads))),
            "the thread in get serves",
        )
        port.close()

    def test_the_time_limit_of_get_holds_beside_a_busy_server(self, make_port, serve_on, dial):
        port = make_port(1)
        server = serve_on(port)
        over = threading.Event()

        def talk():
            with socket.create_connection(server.address, LONG) as client:
                client.settimeout(LONG)
                while not over.is_set():
                    assert echoes(client)

        talkers = [Background(talk) for _ in range(2)]
        for limit in (0, 0.01, 0.1):
            began = time.monotonic()
            assert port.get(limit) is None
            assert limit - 0.02 <= time.monotonic() - began < limit + 5  # a coarse clock
        port.post("mine")
        assert port.get(LONG).transferred == "mine"
        port.post("mine")
        assert wait_until(lambda: port.get(0)).transferred == "mine"
        over.set()
        with port.blocking():
            for talker in talkers:
                talker.outcome()

    @pytest.mark.parametrize("workers", [1, 4])
    def test_packets_of_the_program_come_through_beside_a_busy_server(
        self, make_port, serve_on, taker, workers
    ):
        port = make_port(1)
        server = serve_on(port, workers=workers)
        got = taker(port)
        over = threading.Event()

        def talk():
            with socket.create_connection(server.address, LONG) as client:
                client.settimeout(LONG)
                rounds = 0
                while not over.is_set():
                    assert echoes(client)
                    rounds += 1
                return rounds

        talkers = [Background(talk) for _ in range(3)]
        for number in range(50):
            port.post(number)
            wait_until(lambda number=number: len(got) == number + 1, "it came through")
        over.set()
        assert all(talker.outcome() > 0 for talker in talkers)
        port.close()

    def test_a_callback_takes_the_programs_packets_only(self, make_port, serve_on, dial):
        """With one thread: what comes for its server meanwhile waits until the callback is over."""
        port, events = make_port(1), []

        class Asking(Handler):
            def received(self, connection, data):
                if data == b"ask":
                    events.append("asks")
                    events.append(port.get(LONG).transferred)
                else:
                    events.append(data)
                connection.send(data)

        server = serve_on(port, Asking(), workers=1)
        asking, other = dial(server), dial(server)
        asking.sendall(b"ask")
        wait_until(lambda: events, "the callback asks")
        other.sendall(b"other")
        time.sleep(0.05)
        assert events == ["asks"]
        port.post("answer")
        assert read_exactly(asking, 3) == b"ask"
        assert read_exactly(other, 5) == b"other"
        assert events == ["asks", "answer", b"other"]

    @pytest.mark.parametrize("many", [False, True], ids=["get", "get_many"])
    def test_a_callback_that_waits_keeps_nobody_out(self, make_port, serve_on, dial, many):
        port, answers = make_port(1), []

        class Asking(Echo):
            def received(self, connection, data):
                if data == b"ask":
                    if many:
                        answers.extend(port.get_many(1, LONG))
                    else:
                        answers.append(port.get(LONG))
                super().received(connection, data)

        server = serve_on(port, Asking(), workers=2)
        asking, other = dial(server), dial(server)
        asking.sendall(b"ask")
        for _ in range(100):
            assert echoes(other)
        assert not answers
        port.post("answer")
        assert read_exactly(asking, 3) == b"ask"
        assert values(answers) == ["answer"]

    @pytest.mark.parametrize("many", [False, True], ids=["get", "get_many"])
    def test_a_look_takes_what_is_there(self, make_port, serve_on, dial, many):
        """Also behind packets of servers for which another thread waits."""
        port, answers, connections = make_port(1), [], []

        class Asking(Echo):
            def connected(self, connection):
                connections.append(connection)

            def received(self, connection, data):
                wait_for_stats(port, waiting=1)
                for other in connections:
                    if other is not connection:
                        other.abort()
                port.post("mine")
                answers.extend(port.get_many(2, 0) if many else [port.get(0)])
                super().received(connection, data)

        server = serve_on(port, Asking(), workers=2)
        clients = [dial(server) for _ in range(4)]
        wait_until(lambda: len(connections) == 4, "all are connected")
        assert echoes(clients[0])
        assert [answer and answer.transferred for answer in answers] == ["mine"]

    def test_all_workers_in_get_and_one_answer_for_each(self, make_port, serve_on, dial):
        port, lock, answers = make_port(1), threading.Lock(), []

        class Asking(Echo):
            def received(self, connection, data):
                packet = port.get(LONG)
                with lock:
                    answers.append(packet.transferred)
                super().received(connection, data)

        server = serve_on(port, Asking(), workers=3)
        clients = [dial(server) for _ in range(6)]
        for client in clients:
            client.sendall(b"ask")
        for number in range(6):
            port.post(number)
        for client in clients:
            assert read_exactly(client, 3) == b"ask"
        assert sorted(answers) == list(range(6))

    @pytest.mark.parametrize("kind", [Server, DatagramServer])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
    def test_what_ends_the_program_comes_out_of_get(
        self, make_port, serve_on, dial, send_to, kind, error
    ):
        main = threading.get_ident()
        port = make_port(1)

        class Raising(Handler if kind is Server else DatagramHandler):
            def received(self, connection, *_):
                # The workers leave it to the main thread.
                while threading.get_ident() != main:
                    return connection.send(b"again") if kind is Server else None
                raise error("of a signal's handler")

        server = serve_on(port, Raising(), kind, workers=1)
        client = dial(server) if kind is Server else send_to(server)
        ended = None
        with contextlib.suppress(OSError):
            for _ in range(1000):
                client.send(b"x")
                try:
                    port.get(0.01)
                except BaseException as caught:
                    ended = caught
                    break
        if error is ValueError:
            assert ended is None
        else:
            assert type(ended) is error
        assert port.get(0) is None

    def test_a_callback_waits_for_an_answer_of_the_program(self, make_port, serve_on, dial):
        """Whoever was called for the packet that became the callback, the post calls somebody."""
        port = make_port(2)

        class Asking(Echo):
            def received(self, connection, data):
                answered = threading.Event()
                port.post(answered)
                with port.blocking():
                    assert answered.wait(LONG)
                super().received(connection, data)

        def answer():
            with contextlib.suppress(PortClosed):
                while True:
                    port.get().transferred.set()

        answering = [Background(answer) for _ in range(2)]
        wait_for_stats(port, waiting=2)
        client = dial(serve_on(port, Asking(), workers=1))
        assert all(echoes(client) for _ in range(30))
        port.close()
        for thread in answering:
            thread.outcome()

    def test_a_time_limit_in_a_callback(self, make_port, serve_on, dial):
        port, answers = make_port(1), []

        class Asking(Echo):
            def received(self, connection, data):
                answers.extend((port.get(0), port.get(0.01), port.get_many(3, 0)))
                super().received(connection, data)

        assert echoes(dial(serve_on(port, Asking(), workers=1)))
        assert answers == [None, None, []]


class TestPacket:
    """The program's packets of a port that a server made for itself."""

    @pytest.fixture(params=["Server", "DatagramServer"])
    def make(self, request, engine):
        """A started server of a kind, whose handler notes packets."""
        stack = contextlib.ExitStack()

        def make(packet=None):
            packets = []

            class Noting(Handler if request.param == "Server" else DatagramHandler):
                def received(self, *arguments):
                    pass

                def packet(self, completion):
                    packets.append(completion)
                    if packet is not None:
                        packet(completion)

            kind = Server if request.param == "Server" else DatagramServer
            server = stack.enter_context(kind(Noting(), port=0, engine=engine, workers=2))
            return server, packets

        with stack:
            yield make

    def test_they_go_to_the_handler(self, make, tcp):
        server, packets = make()
        port = server.completion_port
        near, far = tcp
        with port.associate(near, "handle") as handle:
            handle.recv(100)
            far.sendall(b"there")
            port.post(1, "post")
            port.post_after(0.001, 2, "timer")
            port.submit(int, "3", key="call")
            port.stat(__file__, key="stat")
            port.post(4, "strand", strand=Strand(port))
            wait_until(lambda: len(packets) == 6, "all have come")
            found = {packet.key: packet for packet in packets}
            assert found["handle"].overlapped.result() == b"there"
            assert found["call"].overlapped.result() == 3
            assert [found[key].transferred for key in ("post", "timer", "strand")] == [1, 2, 4]

    def test_its_exceptions_are_logged_and_it_goes_on(self, make, caplog):
        def fail(completion):
            if completion.transferred == "bad":
                raise KeyError("on purpose")

        server, packets = make(fail)
        with caplog.at_level(logging.ERROR, "completionport"):
            server.completion_port.post("bad")
            server.completion_port.post("good")
            wait_until(lambda: len(packets) == 2, "both have come")
            wait_until(lambda: "on purpose" in caplog.text, "the log has it")
        assert "exception in packet()" in caplog.text

    def test_nobody_else_takes_them(self, make):
        server, _ = make()
        for ask in (
            lambda: server.completion_port.get(0),
            lambda: server.completion_port.get_many(1, 0),
            lambda: WorkerPool(server.completion_port, print, 1),
        ):
            with pytest.raises(PortOwned):
                ask()

    def test_it_is_an_attribute_of_the_object_too(self, engine):
        came = []
        handler = Echo()
        handler.packet = came.append
        with Server(handler, port=0, engine=engine) as server:
            server.completion_port.post("x")
            wait_until(lambda: came, "it came")
        assert values(came) == ["x"]

    def test_it_is_not_called_on_a_port_that_was_given(self, make_port, serve_on):
        port, came = make_port(1), []

        class Noting(Echo):
            def packet(self, completion):
                came.append(completion)

        serve_on(port, Noting())
        port.post("mine")
        assert port.get(LONG).transferred == "mine"
        assert not came

    def test_it_must_be_a_plain_function(self, engine):
        class Wrong(Echo):
            async def packet(self, completion):
                pass

        with pytest.raises(TypeError, match="packet"):
            Server(Wrong(), port=0, engine=engine)


class TestClocks:
    def test_idle_connections_of_two_servers(self, make_port, serve_on, dial):
        port, recorders = make_port(1), (Recorder(), Recorder())
        servers = [
            serve_on(port, recorder, idle_timeout=seconds)
            for recorder, seconds in zip(recorders, (0.1, 100.0), strict=True)
        ]
        clients = [dial(server) for server in servers]
        assert clients[0].recv(10) == b""
        assert isinstance(recorders[0].end(), TimeoutError)
        assert not recorders[1].count("closed")

    def test_a_thread_in_get_keeps_the_time(self, make_port, engine):
        """No packet of the clock comes out of get, and the thread there is the only one."""
        port, recorder = make_port(2), Recorder()
        begun, end = threading.Event(), threading.Event()

        def received(connection, data):
            begun.set()
            assert end.wait(LONG)

        recorder.received = received
        server = Server(recorder, port=0, completion_port=port, workers=1, idle_timeout=0.2)
        server.start()
        try:
            with (
                socket.create_connection(server.address) as busy,
                socket.create_connection(server.address) as idle,
            ):
                wait_until(lambda: recorder.count("connected") == 2, "both are connected")
                busy.sendall(b"x")
                taking = Background(lambda: port.get(LONG))
                assert begun.wait(LONG)
                idle.settimeout(LONG)
                assert idle.recv(1) == b""
                end.set()
                port.post("mine")
                assert taking.outcome().transferred == "mine"
        finally:
            end.set()
            server.stop(0)

    def test_a_connection_lingers_no_longer_than_it_should(self, make_port, serve_on, dial):
        port = make_port(1)

        class Closing(Handler):
            def received(self, connection, data):
                connection.close()

        recorder = Closing()
        closed = threading.Event()
        recorder.closed = lambda connection, error: closed.set()
        client = dial(serve_on(port, recorder))
        client.sendall(b"x")
        assert client.recv(10) == b""
        assert not closed.wait(0.3)
        assert closed.wait(5)


class TestArguments:
    @pytest.mark.parametrize("kind", [Server, DatagramServer])
    def test_what_does_not_go_with_a_port(self, make_port, engine, kind):
        port = make_port(1)
        handler = Echo() if kind is Server else EchoDatagrams()
        with pytest.raises(ValueError, match="concurrency"):
            kind(handler, port=0, completion_port=port, concurrency=2)
        with pytest.raises(ValueError, match="engine"):
            kind(handler, port=0, completion_port=port, engine=engine)
        with pytest.raises(TypeError, match="completion_port"):
            kind(handler, port=0, completion_port="port")
        port.close()
        with pytest.raises(PortClosed):
            kind(handler, port=0, completion_port=port)

    def test_the_port_of_a_server_is_its_own(self, engine):
        with Server(Echo(), port=0, engine=engine) as server, pytest.raises(PortOwned):
            Server(Echo(), port=0, completion_port=server.completion_port)

    def test_it_is_the_servers_port(self, make_port, serve_on):
        port = make_port(1)
        server = serve_on(port)
        assert server.completion_port is port
        assert server.stats()["waiting"] >= 0


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_program_of_all_sorts(engine, concurrency, nothing_left):
    """Threads in get, pools and servers come and go, callbacks wait in get: nothing is lost."""
    seed = int(os.environ.get("COMPLETIONPORT_SEED", random.randrange(10**6)))
    print(f"COMPLETIONPORT_SEED={seed}")
    rng = random.Random(seed)
    before = descriptors()
    port = CompletionPort(concurrency, engine=engine)
    lock, got, asked = threading.Lock(), [], []

    def note(packet):
        with lock:
            got.append(packet.transferred)

    class Asking(Echo):
        def received(self, connection, data):
            if data.startswith(b"ask"):
                packet = port.get(0.002)
                if packet is not None:
                    note(packet)
                with lock:
                    asked.append(packet)
            super().received(connection, data)

    def take(limit):
        while not over.is_set():
            for packet in port.get_many(3, limit):
                note(packet)

    over = threading.Event()
    stay = Server(Asking(), port=0, completion_port=port, workers=3, buffer_size=1000)
    datagrams = DatagramServer(EchoDatagrams(), port=0, completion_port=port, workers=1)
    stay.start()
    datagrams.start()
    takers = [Background(take, 0.005) for _ in range(2)]

    def talk(seed):
        mine = random.Random(seed)
        with socket.create_connection(stay.address, LONG) as client:
            client.settimeout(LONG)
            for number in range(60):
                data = b"ask" if mine.random() < 0.2 else b"%d" % number * mine.randint(1, 500)
                assert echoes(client, data)

    talkers = [Background(talk, seed + number) for number in range(4)]
    posted = 0
    while any(talker.is_alive() for talker in talkers):
        choice = rng.random()
        if choice < 0.6:
            port.post(posted)
            posted += 1
        elif choice < 0.8:
            port.post_after(rng.random() * 0.005, posted)
            posted += 1
        elif choice < 0.9:
            with WorkerPool(port, note, rng.randint(1, 3)):
                port.post(posted)
                posted += 1
        else:
            with (
                Server(Echo(), port=0, completion_port=port, workers=rng.randint(1, 3)) as server,
                socket.create_connection(server.address, LONG) as client,
            ):
                client.settimeout(LONG)
                assert echoes(client)
    for talker in talkers:
        talker.outcome()
    wait_until(lambda: len(got) == posted, f"all packets came, {seed}")
    over.set()
    for taker in takers:
        taker.outcome()
    assert sorted(got) == list(range(posted))
    stay.stop()
    datagrams.stop()
    port.close()
    wait_until(lambda: descriptors() == before, "the descriptors are as before")
