"""The end of servers on a port of the program's: of one, of the port, in a callback, in a child."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time

import pytest

from completionport import (
    CompletionPort,
    ConnectionClosed,
    DatagramHandler,
    DatagramServer,
    Handler,
    PortClosed,
    Server,
    WorkerPool,
)
from completionport.engines import COMPILED
from one_port_support import Echo, EchoDatagrams, echoes, echoes_datagram, is_worker
from server_support import Recorder
from support import (
    LONG,
    Background,
    descriptors,
    needs_fork,
    read_exactly,
    refuse_threads,
    run_python,
    tcp_pair,
    wait_until,
)


class TestEnd:
    def test_one_of_two_servers_stops(self, make_port, serve_on, dial, send_to, taker):
        port = make_port(1)
        first, second = serve_on(port, workers=2), serve_on(port, workers=2)
        datagrams = serve_on(port, kind=DatagramServer, workers=1)
        got = taker(port)
        clients, friend = [dial(first), dial(second)], send_to(datagrams)
        assert all(map(echoes, clients))
        before = threading.active_count()
        first.stop()
        assert threading.active_count() <= before - 2
        assert clients[0].recv(10) == b""
        assert echoes(clients[1])
        assert echoes_datagram(friend)
        port.post("still there")
        wait_until(lambda: got, "the port goes on")
        assert not port.closed
        again = serve_on(port)
        assert echoes(dial(again))
        assert echoes(clients[1])
        datagrams.stop()
        assert echoes(clients[1])
        port.close()

    def test_the_last_server_leaves_the_port_open(self, make_port, serve_on, dial):
        port = make_port(1)
        server = serve_on(port)
        assert echoes(dial(server))
        server.stop()
        port.post("still there")
        assert port.get(LONG).transferred == "still there"
        assert port.stats()["handles"] == 0

    @pytest.mark.parametrize("grace", [0, 5.0])
    def test_a_stop_under_load(self, make_port, serve_on, grace):
        port = make_port(1)
        server, other = serve_on(port, workers=3), serve_on(port, workers=3)
        over = threading.Event()

        def talk(address):
            with contextlib.suppress(OSError), socket.create_connection(address, LONG) as client:
                client.settimeout(LONG)
                while not over.is_set():
                    client.sendall(b"hello")
                    if not client.recv(10):
                        return

        talkers = [Background(talk, one.address) for one in (server, other) * 3]
        wait_until(lambda: server.stats()["received_packets"] > 100, "they talk")
        server.stop(grace)
        before = other.stats()["received_packets"]
        wait_until(lambda: other.stats()["received_packets"] > before + 100, "the other goes on")
        over.set()
        for talker in talkers:
            talker.outcome()

    def test_the_port_is_closed_under_servers(self, make_port, serve_on, dial, send_to):
        port, recorder = make_port(1), Recorder()
        server = serve_on(port, recorder)
        datagrams = serve_on(port, kind=DatagramServer)
        clients = [dial(server) for _ in range(5)]
        wait_until(lambda: recorder.count("connected") == 5, "all are connected")
        assert echoes_datagram(send_to(datagrams))
        began = time.monotonic()
        port.close()
        assert recorder.count("closed") == 5
        assert all(error is None for name, _, error in recorder.events if name == "closed")
        server.stop()
        datagrams.stop()
        assert time.monotonic() - began < 3
        for client in clients:
            with contextlib.suppress(ConnectionError):
                assert client.recv(10) == b""

    def test_it_is_closed_while_a_callback_is_at_work(self, make_port, serve_on, dial):
        port, begun, end, events = make_port(1), threading.Event(), threading.Event(), []

        class Holding(Handler):
            def received(self, connection, data):
                begun.set()
                assert end.wait(LONG)
                events.append("received")

            def closed(self, connection, error):
                events.append("closed")

        server = serve_on(port, Holding(), workers=1)
        dial(server).sendall(b"x")
        assert begun.wait(LONG)
        port.close()
        assert not events
        end.set()
        server.stop(1)
        wait_until(lambda: len(events) == 2, "the callback's connection ended")
        assert events == ["received", "closed"]

    def test_a_callback_closes_it(self, make_port, serve_on, dial):
        port, closed = make_port(1), threading.Event()

        class Closing(Handler):
            def received(self, connection, data):
                port.close()

            def closed(self, connection, error):
                closed.set()

        server = serve_on(port, Closing())
        dial(server).sendall(b"x")
        assert closed.wait(LONG)
        server.stop()

    def test_a_stop_during_a_close(self, make_port, serve_on, dial):
        port = make_port(1)
        servers = [serve_on(port) for _ in range(3)]
        for server in servers:
            assert echoes(dial(server))
        enders = [Background(server.stop) for server in servers] + [Background(port.close)]
        for ender in enders:
            ender.outcome()

    def test_a_thread_in_get_stops_the_server_whose_callback_it_is_at(
        self, make_port, dial, engine
    ):
        port, stopped = make_port(1), threading.Event()

        class Stopping(Echo):
            def received(self, connection, data):
                connection.server.stop()
                stopped.set()
                super().received(connection, data)

        server = Server(Stopping(), port=0, completion_port=port, workers=1)
        # All that comes is this thread's: it says so by a callback that holds the only worker.
        server.start()
        taking = Background(lambda: port.get(LONG))
        client = dial(server)
        client.sendall(b"x")
        assert stopped.wait(LONG)
        server.stop()
        assert read_exactly(client, 1) == b"x"
        port.post("done")
        assert taking.outcome().transferred == "done"

    def test_an_end_that_is_nobodys_business(self, engine, nothing_left):
        """A server that was never started, and one on a port that is closed before."""
        before = descriptors()
        port = CompletionPort(1, engine=engine)
        first, second = (Server(Echo(), port=0, completion_port=port) for _ in range(2))
        first.stop()
        port.close()
        with pytest.raises(PortClosed):
            second.start()
        second.stop()
        wait_until(lambda: descriptors() == before, "the descriptors are as before")

    def test_dismissed_workers_are_those_that_are_dismissed(self, make_port, serve_on, dial):
        """Under load the threads of a server leave, and as many as it has brought."""
        port = make_port(1)
        rng = random.Random(7)
        stay = serve_on(port, workers=2)
        client = dial(stay)
        for _ in range(10):
            count = rng.randint(1, 5)
            before = threading.active_count()
            server = serve_on(port, workers=count)
            assert echoes(client)
            server.stop()
            wait_until(lambda before=before: threading.active_count() == before, "they have left")
        assert all(echoes(client) for _ in range(20))


@needs_fork
def test_a_forked_child_leaves_both_alone(engine):
    run_python(
        """
        import os, socket, sys
        from completionport import CompletionPort, Handler, PortForked, Server

        class Echo(Handler):
            def received(self, connection, data):
                connection.send(data)

        port = CompletionPort(1, engine=ENGINE)
        server = Server(Echo(), port=0, completion_port=port)
        server.start()
        child = os.fork()
        if child == 0:
            refused = 0
            again = lambda: Server(Echo(), port=0, completion_port=port)
            for ask in (port.get, server.stop, again):
                try:
                    ask()
                except PortForked:
                    refused += 1
            os._exit(0 if refused == 3 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with socket.create_connection(server.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        server.stop()
        port.close()
        """.replace("ENGINE", repr(engine))
    )


class Held:
    """Callbacks that stay until they are let go, one by one, in the order in which they began."""

    def __init__(self):
        self.begun = []
        self.over = []

    def stay(self):
        end = threading.Event()
        self.begun.append((threading.current_thread(), end))
        assert end.wait(3 * LONG)
        self.over.append(threading.current_thread())

    def let_go(self, wanted=lambda thread: True):
        for thread, end in self.begun:
            if wanted(thread):
                end.set()


class Holding(Handler, Held):
    def received(self, connection, data):
        self.stay()


class HoldingDatagrams(DatagramHandler, Held):
    def received(self, endpoint, data, address):
        self.stay()


class TestStop:
    def test_it_waits_for_no_callback_of_another_server(
        self, make_port, serve_on, dial, monkeypatch
    ):
        """The workers of both are in callbacks of the one; the other one stops meanwhile.

        Also where the system gives no thread any more.
        """
        port, held = make_port(3), Holding()
        server, busy = serve_on(port, workers=1), serve_on(port, held, workers=1)
        clients = [dial(busy) for _ in range(2)]
        for client in clients:
            client.sendall(b"x")
        wait_until(lambda: len(held.begun) == 2, "both workers are at a callback")
        before = threading.active_count()
        refuse_threads(monkeypatch, after=1)
        Background(server.stop).outcome()
        held.let_go()
        wait_until(lambda: threading.active_count() < before, "its worker has left behind that")
        third = dial(busy)
        third.sendall(b"x")
        wait_until(lambda: len(held.begun) == 3, "the other server goes on")
        held.let_go()

    def test_a_pool_stops_beside_a_busy_server(self, make_port, serve_on):
        """What others bring meanwhile does not keep it, nor an operation that is under way."""
        port, over, came = make_port(1), threading.Event(), []
        near, far = tcp_pair()

        class Slow(Echo):
            def received(self, connection, data):
                time.sleep(0.002)
                super().received(connection, data)

        server = serve_on(port, Slow(), workers=1)

        def talk():
            with socket.create_connection(server.address, LONG) as client:
                client.settimeout(LONG)
                while not over.is_set():
                    assert echoes(client)

        with near, far, port.associate(near, "pending") as handle:
            for _ in range(4):
                handle.recv(1)
            pool = WorkerPool(port, came.append, 2)
            pool.start()
            talkers = [Background(talk) for _ in range(16)]
            wait_until(lambda: server.stats()["received_packets"] > 100, "they talk")
            for number in range(20):
                port.post(number)
            assert Background(pool.stop, LONG).outcome(2 * LONG)
            assert len(came) == 20
            over.set()
            for talker in talkers:
                talker.outcome()

    @pytest.mark.parametrize("kind", [Server, DatagramServer])
    @pytest.mark.parametrize("grace", [0, 0.1])
    def test_it_waits_for_its_own_callbacks_whoever_is_at_them(
        self, make_port, serve_on, dial, send_to, taker, kind, grace
    ):
        port, held = make_port(2), Holding() if kind is Server else HoldingDatagrams()
        taker(port)
        server = serve_on(port, held, kind, workers=1)
        for _ in range(2):
            (dial if kind is Server else send_to)(server).sendall(b"x")
        wait_until(lambda: len(held.begun) == 2, "the worker and the thread in get are at one")
        assert sum(is_worker(thread) for thread, _ in held.begun) == 1
        stopping = Background(server.stop, grace)
        held.let_go(is_worker)
        # Longer than a stop waits for anything that may not come about.
        stopping.join(1.5)
        assert stopping.is_alive()
        held.let_go()
        stopping.outcome()
        assert len(held.over) == 2
        port.close()

    def test_a_thread_that_has_the_number_of_a_worker_that_ended_waits(self, make_port, serve_on):
        server = serve_on(make_port(1), workers=2)
        server._crew.dismiss(1)
        wait_until(lambda: not all(thread.is_alive() for thread in server._threads))
        [ended] = [thread.ident for thread in server._threads if not thread.is_alive()]
        begun: list[int] = []

        def stop_with_that_number():
            begun.append(threading.get_ident())
            if begun[-1] == ended or len(begun) == 100:
                server.stop()
                assert server._stopped.is_set()

        while ended not in begun and len(begun) < 100:
            Background(stop_with_that_number).outcome()

    def test_a_thread_with_a_packet_in_hand_stops_a_server(self, make_port, serve_on, dial):
        """It has the only place of the port, and what ends the connections needs one."""
        port, recorder = make_port(1), Recorder()
        server = serve_on(port, recorder, workers=1)
        client = dial(server)
        recorder.first()
        port.post("mine")
        assert port.get(LONG).transferred == "mine"
        began = time.monotonic()
        server.stop(LONG)
        assert time.monotonic() - began < LONG / 2
        assert recorder.names() == ["connected", "closed"]
        assert client.recv(1) == b""

    def test_a_thread_with_a_packet_in_hand_serves_for_ever(self, make_port, dial):
        port = make_port(1)
        server = Server(Echo(), port=0, completion_port=port, workers=1)
        port.post("mine")

        def serve():
            assert port.get(LONG).transferred == "mine"
            server.serve_forever()

        serving = Background(serve)
        assert echoes(dial(server))
        server.stop()
        serving.outcome()

    def test_a_callback_of_a_server_with_a_port_of_its_own_waits_for_another_one(self, engine):
        """That its thread serves somebody says nothing: the other one never needs it."""
        other = Server(Echo(), port=0, engine=engine)
        closed = []

        class Stopping(Handler):
            def received(self, connection, data):
                other.stop()
                closed.append(other.completion_port.closed)
                connection.close()

        other.start()
        with (
            Server(Stopping(), port=0, engine=engine) as server,
            socket.create_connection(server.address, LONG) as client,
        ):
            client.sendall(b"x")
            assert client.recv(1) == b""
        assert closed == [True]


class TestClose:
    def test_closed_may_stop_the_server(self, make_port, serve_on, dial):
        """It is called by the thread that closes the port, for which nobody waits then."""
        port, stopped = make_port(1), []

        class Stopping(Recorder):
            def closed(self, connection, error):
                super().closed(connection, error)
                connection.server.stop()
                stopped.append(connection)

        recorder = Stopping()
        server = serve_on(port, recorder)
        for _ in range(3):
            dial(server)
        wait_until(lambda: recorder.count("connected") == 3, "all are connected")
        Background(port.close).outcome(LONG / 2)
        server.stop()
        assert len(stopped) == 3

    @pytest.mark.parametrize("kind", [Server, DatagramServer])
    def test_a_server_is_stopped_by_it(self, make_port, dial, send_to, kind):
        port = make_port(1)
        handler = Echo() if kind is Server else EchoDatagrams()
        server = kind(handler, port=0, completion_port=port, workers=2)
        serving = Background(server.serve_forever)
        assert echoes(dial(server)) if kind is Server else echoes_datagram(send_to(server))
        port.close()
        serving.outcome()

    def test_a_datagram_that_was_sent_is_in_hand(self, make_port, send_to, engine, caplog):
        """Its packet was taken before the close, and is looked at behind that."""
        if engine in COMPILED:
            pytest.skip("the compiled engines have the same in C, and take both in one step")
        port = make_port(1)
        server = DatagramServer(EchoDatagrams(), port=0, completion_port=port, workers=1)
        core = server._core
        taken, closed, serve = threading.Event(), threading.Event(), core.serve

        def hold(*arguments):
            taken.set()
            assert closed.wait(LONG)
            serve(*arguments)

        with server:
            core.serve = hold
            address = send_to(server).getsockname()
            with core._changed:
                assert core._queue(b"x", address)
            assert taken.wait(LONG)
            port.close()
            closed.set()
        assert not caplog.records
        assert server.stats()["queued_bytes"] == 0

    @pytest.mark.parametrize("interrupted", [False, True], ids=["served", "interrupted"])
    def test_a_connection_that_was_accepted_is_in_hand(
        self, make_port, dial, engine, interrupted, nothing_left
    ):
        """Its packet was taken before the close, and is looked at behind that, or never."""
        if engine in COMPILED:
            pytest.skip("the compiled engines have the same in C, and take both in one step")
        port = make_port(1)
        server = Server(Echo(), port=0, completion_port=port, workers=1)
        core = server._core
        taken, closed, serve = [], threading.Event(), core.serve

        def hold(completions):
            taken.append(completions[0].overlapped.result())
            assert closed.wait(LONG)
            if interrupted:
                raise KeyboardInterrupt  # a signal handler's, before the packet is out of the list
            serve(completions)

        with server:
            core.serve = hold
            dial(server)
            wait_until(lambda: taken, "it was accepted")
            port.close()
            closed.set()
        assert server.stats()["connections"] == 0
        wait_until(lambda: taken[0].fileno() < 0, "it is closed")

    @pytest.mark.parametrize("kind", [Server, DatagramServer])
    def test_a_function_of_the_port_stops_the_server(self, make_port, serve_on, kind):
        port = make_port(1)
        server = serve_on(port, kind=kind)
        begun = threading.Event()

        def function():
            begun.set()
            server.stop()

        port.submit(function)
        assert begun.wait(LONG)
        Background(port.close).outcome()
        Background(server.stop).outcome()

    def test_a_function_stops_the_server_whose_port_carries_it_out(self, engine, nothing_left):
        class Told(Echo):
            def packet(self, completion):
                pass

        server = Server(Told(), port=0, engine=engine)
        serving = Background(server.serve_forever)
        server.completion_port.submit(server.stop)
        serving.outcome()
        assert server.completion_port.closed

    def test_no_thread_keeps_the_process(self, engine):
        run_python(
            """
            from completionport import CompletionPort, Handler, Server

            class Silent(Handler):
                def received(self, connection, data):
                    pass

            port = CompletionPort(1)
            Server(Silent(), port=0, completion_port=port).start()
            port.close()
            """,
            engine=engine,
        )

    def test_everything_is_told_of_it(self, engine, nothing_left):
        """At any moment: while clients come and talk, callbacks wait, pools and servers end."""
        seed = int(os.environ.get("COMPLETIONPORT_SEED", random.randrange(10**6)))
        print(f"COMPLETIONPORT_SEED={seed}")
        rng = random.Random(seed)
        for _ in range(15):
            port = CompletionPort(rng.choice([1, 2]), engine=engine)
            recorders = [Recorder() for _ in range(2)]

            def received(connection, data, port=port):
                if data.startswith(b"ask"):
                    with contextlib.suppress(PortClosed):
                        port.get(0.001)
                with contextlib.suppress(ConnectionClosed):
                    connection.send(data)

            servers = []
            for recorder in recorders:
                recorder.received = received
                options = {"idle_timeout": 0.05} if rng.random() < 0.5 else {}
                servers.append(
                    Server(
                        recorder, port=0, completion_port=port, workers=rng.randint(1, 3), **options
                    )
                )
            servers.append(DatagramServer(EchoDatagrams(), port=0, completion_port=port, workers=1))
            pool = WorkerPool(port, lambda packet: None, 1, maximum=2)
            for each in (*servers, pool):
                each.start()
            over = threading.Event()

            def talk(address, over=over):
                with contextlib.suppress(OSError):
                    while not over.is_set():
                        with socket.create_connection(address, LONG) as client:
                            client.settimeout(LONG)
                            for data in (b"x", b"ask", b"y" * 5000):
                                client.sendall(data)
                                client.recv(10)

            def ask(port=port):
                with contextlib.suppress(PortClosed):
                    while True:
                        port.get(0.01)

            talkers = [Background(talk, server.address) for server in servers[:2] * 2]
            asking = Background(ask)
            time.sleep(rng.random() * 0.05)
            enders = [Background(each.stop) for each in [*servers, pool] if rng.random() < 0.4]
            time.sleep(rng.random() * 0.002)
            port.close()
            for each in (*servers, pool):
                each.stop()
            for ender in enders:
                ender.outcome()
            over.set()
            for thread in (*talkers, asking):
                thread.outcome()
            for recorder in recorders:
                assert recorder.count("closed") == recorder.count("connected"), seed


@needs_fork
class TestFork:
    def test_a_child_drops_its_copies(self, engine):
        """Whatever lock another thread of the parent had at that moment."""
        run_python(
            """
            import gc, os, socket, threading, warnings
            warnings.simplefilter("ignore")  # fork() with threads running is what is tested here
            from completionport import CompletionPort, Handler, PortClosed, Server, WorkerPool

            class Echo(Handler):
                def received(self, connection, data):
                    connection.send(data)

            port = CompletionPort(1)
            server = Server(Echo(), port=0, completion_port=port)
            server.start()
            over = threading.Event()

            def talk():
                with socket.create_connection(server.address) as client:
                    while not over.is_set():
                        client.sendall(b"x")
                        assert client.recv(1) == b"x"

            def post():
                while not over.is_set():
                    port.post()
                    port.get()

            threads = [threading.Thread(target=target) for target in (talk, talk, post)]
            for thread in threads:
                thread.start()
            for _ in range(40):
                other = Server(Echo(), port=0, completion_port=port)
                pool = WorkerPool(port, print, 1)
                child = os.fork()
                if child == 0:
                    del other, pool, server, port
                    gc.collect()
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                other.stop()
                pool.stop()
            over.set()
            for thread in threads:
                thread.join()
            server.stop()
            port.close()
            """,
            engine=engine,
        )

    def test_a_callback_forks(self, engine):
        """The child returns from it: there `get` and a worker end, whatever served it."""
        run_python(
            """
            import os, socket, threading, warnings
            warnings.simplefilter("ignore")  # fork() with threads running is what is tested here
            from completionport import CompletionPort, Handler, PortForked, Server
            from support import read_exactly

            children = []

            class Echo(Handler):
                def received(self, connection, data):
                    if data == b"fork":
                        child = os.fork()
                        if child == 0:
                            return
                        children.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                    connection.send(data)

            port = CompletionPort(1)
            server = Server(Echo(), port=0, completion_port=port, workers=1)
            server.start()

            def take():
                try:
                    assert port.get().transferred == "end"
                except PortForked:
                    os._exit(0)

            taking = threading.Thread(target=take)
            taking.start()
            with socket.create_connection(server.address) as client:
                for _ in range(10):
                    client.sendall(b"fork")
                    assert read_exactly(client, 4) == b"fork"
                    client.sendall(b"x" * 1000)
                    assert read_exactly(client, 1000) == b"x" * 1000
            assert children == [0] * 10
            port.post("end")
            taking.join()
            server.stop()
            port.close()
            """,
            engine=engine,
        )

    def test_the_child_of_a_callback_serves_a_port_of_its_own(self, engine):
        run_python(
            """
            import os, socket, threading, warnings
            warnings.simplefilter("ignore")  # fork() with threads running is what is tested here
            from completionport import CompletionPort, Handler, Server
            from support import LONG, read_exactly

            class Echo(Handler):
                def received(self, connection, data):
                    connection.send(data)

            def child():
                port = CompletionPort(1)
                server = Server(Echo(), port=0, completion_port=port, workers=1)
                server.start()
                port.post("end")
                with socket.create_connection(server.address, LONG) as client:
                    client.sendall(b"x")
                    assert read_exactly(client, 1) == b"x"
                    assert port.get(LONG).transferred == "end"
                    server.stop()
                    # It has waited for that, as it does outside of callbacks.
                    assert port.stats()["handles"] == 0
                port.close()

            class Forking(Handler):
                def received(self, connection, data):
                    pid = os.fork()
                    if pid == 0:
                        try:
                            child()
                            os._exit(0)
                        except BaseException:
                            import traceback
                            traceback.print_exc()
                            os._exit(1)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    connection.send(b"%d" % code)

            port = CompletionPort(1)
            server = Server(Forking(), port=0, completion_port=port, workers=1)
            server.start()
            with socket.create_connection(server.address, LONG) as client:
                client.sendall(b"fork")
                assert read_exactly(client, 1) == b"0"
            server.stop()
            port.close()
            """,
            engine=engine,
        )

    def test_a_callback_forks_that_a_close_calls(self, engine):
        """The child is refused there, calls no other callback, and can have a port of its own."""
        run_python(
            """
            import os, socket, warnings
            warnings.simplefilter("ignore")  # fork() with threads running is what is tested here
            from completionport import CompletionPort, Handler, PortForked, Server
            from support import wait_until

            calls, children = [], []

            class Forking(Handler):
                def received(self, connection, data):
                    pass

                def closed(self, connection, error):
                    calls.append(os.getpid())
                    if len(calls) == 1:
                        children.append(os.fork())

            port = CompletionPort(1)
            server = Server(Forking(), port=0, completion_port=port, workers=1)
            server.start()
            clients = [socket.create_connection(server.address) for _ in range(3)]
            wait_until(lambda: server.stats()["connections"] == 3)
            parent, refused = os.getpid(), False
            try:
                port.close()
            except PortForked:
                refused = True
            if os.getpid() != parent:
                with CompletionPort(1) as own:
                    own.post("mine")
                    fine = own.get(1).transferred == "mine" and not own._serves()
                os._exit(0 if (refused, calls, fine) == (True, [parent], True) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
            assert not refused
            assert calls == [parent] * 3
            server.stop()
            """,
            engine=engine,
        )
