"""The end of servers on a port of the program's: of one, of the port, in a callback, in a child."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

import pytest

from completionport import CompletionPort, DatagramServer, Handler, PortClosed, Server
from one_port_support import Echo, echoes, echoes_datagram
from server_support import Recorder
from support import LONG, Background, descriptors, needs_fork, read_exactly, run_python, wait_until


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
