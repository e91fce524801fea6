"""The port that a server made for itself: what it is good for, and that all else is refused."""

from __future__ import annotations

import copy
import pickle
import signal
import socket
import threading

import pytest

from completionport import (
    CompletionPort,
    DatagramHandler,
    DatagramServer,
    Handler,
    PortOwned,
    Server,
    Strand,
    WorkerPool,
)
from support import LONG, Background, assert_nothing_opened_since, descriptors, read_exactly


class Echo(Handler):
    def received(self, connection, data):
        connection.send(data)


class EchoDatagrams(DatagramHandler):
    def received(self, endpoint, data, address):
        endpoint.send(data, address)


def stream_server(engine):
    return Server(Echo(), port=0, workers=2, engine=engine)


def datagram_server(engine):
    return DatagramServer(EchoDatagrams(), port=0, workers=2, engine=engine)


def stream_round(server):
    with socket.create_connection(server.address) as client:
        client.settimeout(20)
        client.sendall(b"hello")
        return read_exactly(client, 5)


def datagram_round(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.sendto(b"hello", server.address)
        return client.recv(100)


KINDS = {
    "Server": (stream_server, stream_round),
    "DatagramServer": (datagram_server, datagram_round),
}
GOOD = {"blocking", "close", "closed", "concurrency", "engine", "stats"}
"""What a server's port can be asked for."""


def nothing():
    pass


ASKED = {
    # Whatever is given: it is refused before anybody looks at that.
    "associate": lambda port: port.associate(0, "key"),
    "associate_signal": lambda port: port.associate_signal(signal.SIGINT, "key"),
    "close_descriptor": lambda port: port.close_descriptor(1 << 20),
    "copy_file": lambda port: port.copy_file(__file__, "/nowhere/at all"),
    "get": lambda port: port.get(),
    "get with a timeout": lambda port: port.get(0),
    "get_many": lambda port: port.get_many(10),
    "getaddrinfo": lambda port: port.getaddrinfo("127.0.0.1", 1),
    "open": lambda port: port.open(__file__),
    "post": lambda port: port.post(1, "key", None),
    "post_after": lambda port: port.post_after(0),
    "post_at": lambda port: port.post_at(0),
    "stat": lambda port: port.stat(__file__),
    "submit": lambda port: port.submit(nothing),
    "Strand": Strand,
    "WorkerPool": lambda port: WorkerPool(port, nothing, 1),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def server(kind, engine):
    server = kind[0](engine)
    yield server
    server.stop(0)


@pytest.fixture
def round_trip(kind):
    return kind[1]


def test_every_method_of_a_port_is_asked_for_here():
    public = {name for name in dir(CompletionPort) if not name.startswith("_")}
    assert public - GOOD == {name.partition(" ")[0] for name in ASKED} - {"Strand", "WorkerPool"}


def refused(server):
    for what, ask in ASKED.items():
        with pytest.raises(PortOwned, match="CompletionPort of your own") as caught:
            ask(server.completion_port)
        assert what.partition(" ")[0] in str(caught.value)
        assert repr(server) in str(caught.value)
        assert isinstance(caught.value, RuntimeError)


def test_what_its_workers_would_lose_is_refused(server, round_trip):
    refused(server)
    server.start()
    assert round_trip(server) == b"hello"
    refused(server)
    assert round_trip(server) == b"hello"
    server.stop()
    refused(server)


def test_threads_that_ask_it_for_packets_take_none_from_its_clients(server, round_trip):
    server.start()
    over = threading.Event()

    def take():
        while not over.is_set():
            for ask in (server.completion_port.get, lambda: server.completion_port.get_many(8, 0)):
                with pytest.raises(PortOwned):
                    ask()
            refused.release()

    refused = threading.Semaphore(0)
    takers = [Background(take) for _ in range(2)]
    for _ in range(2):
        assert refused.acquire(timeout=LONG)
    assert [round_trip(server) for _ in range(50)] == [b"hello"] * 50
    over.set()
    for taker in takers:
        taker.outcome()


def test_a_callback_is_told_as_well(engine):
    told = []

    class Posting(Echo):
        def received(self, connection, data):
            try:
                connection.server.completion_port.post(1, "key", None)
            except PortOwned as error:
                told.append(error)
            super().received(connection, data)

    with Server(Posting(), port=0, engine=engine) as server:
        assert stream_round(server) == b"hello"
    assert len(told) == 1


def test_what_it_is_good_for(server, round_trip):
    port = server.completion_port
    assert isinstance(port, CompletionPort)
    assert port.engine in repr(port)
    assert port.concurrency >= 1
    assert not port.closed
    server.start()
    assert round_trip(server) == b"hello"
    assert port.stats()["taken"] > 0
    with port.blocking():
        assert round_trip(server) == b"hello"
    with pytest.raises(TypeError, match="copied"):
        copy.copy(port)
    server.stop()
    assert port.closed
    port.close()


def test_to_close_it_is_to_stop_the_server(kind, engine, nothing_left):
    before = descriptors()
    make, round_trip = kind
    for started in (True, False):
        server = make(engine)
        if started:
            server.start()
            assert round_trip(server) == b"hello"
        with server.completion_port as port:
            pass
        assert port.closed
        server.stop()
    assert_nothing_opened_since(before)


def test_the_error_can_be_pickled():
    error = PortOwned("post()", "<Server>")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.what, again.owner) == (str(error), "post()", "<Server>")
