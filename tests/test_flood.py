"""A client that sends more than its callback takes: it holds up itself, and nobody else."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

import pytest

from completionport import DatagramHandler, DatagramServer, Handler
from datagram_support import bound_socket
from server_support import Recorder, fill
from support import LONG, Background, assert_idle, pattern, read_exactly, resident, wait_until

MOST = 24 << 20
"""Bytes that a client may send to somebody who takes none. Most of it lies in the system's own
buffers: Linux gives a socket up to 6 MiB for what it receives and 4 for what it sends.
"""


class Desk(Handler):
    """Blocks with each client that floods, and echoes what the others say."""

    def __init__(self, how):
        self.how = how
        self.at_work = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.taken = 0
        self.lock = threading.Lock()  # guards `taken`

    def received(self, connection, data):
        if connection.state is None:
            connection.state = "floods" if data[:1] == b"f" else "talks"
            if connection.state == "floods":
                self.at_work.release()
                if self.how == "blocks":
                    self.go_on.wait(LONG)
                elif self.how == "pauses":
                    connection.pause()
                elif self.how == "is not read":
                    connection.send(bytes(16 << 20))
        if connection.state == "talks":
            connection.send(data)
        else:
            with self.lock:
                self.taken += len(data)


def quickest_answer(client, tries=5):
    """Seconds. Each try is one round; a busy machine may be late with some."""
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        times.append(time.perf_counter() - began)
    return min(times)


@pytest.fixture
def desk():
    """A handler for each way, whose callbacks end with the test."""
    made = []

    def make(how):
        made.append(Desk(how))
        return made[-1]

    yield make
    for handler in made:
        handler.go_on.set()


def has_a_place_left(engine, concurrency):
    """Skip where a callback that blocks holds up all the others until it ends."""
    if engine == "selectors" and concurrency == 1:
        pytest.skip("this engine can't see who blocks")


@pytest.mark.alone
@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("how", ["blocks", "pauses", "is not read"])
def test_a_client_that_floods_holds_up_nobody(engine, serve, dial, desk, how, concurrency):
    if how == "blocks":
        has_a_place_left(engine, concurrency)
    handler = desk(how)
    server = serve(handler, concurrency=concurrency)
    talks, floods = dial(server), dial(server)
    floods.sendall(b"f")
    assert handler.at_work.acquire(timeout=LONG)
    assert fill(floods, most=100 << 20) < MOST
    assert quickest_answer(talks) < 0.05
    assert_idle(1, most=0.1)


@pytest.mark.parametrize("concurrency", [1, 2])
def test_nothing_of_a_flood_is_lost_and_its_memory_comes_back(serve, dial, desk, concurrency):
    handler = desk("blocks")
    server = serve(handler, concurrency=concurrency)
    before = resident()
    for _ in range(2):
        floods = dial(server)
        handler.go_on.clear()
        handler.taken = 0
        floods.sendall(b"f")
        assert handler.at_work.acquire(timeout=LONG)
        sent = 1 + fill(floods, most=100 << 20)
        handler.go_on.set()
        wait_until(lambda sent=sent: handler.taken == sent, "all was received")
    wait_until(lambda: resident() < before + (6 << 20), "the memory is the system's again")


@pytest.mark.alone
@pytest.mark.parametrize("buffer_size", [16384, 1 << 20])
@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.usefixtures("sees_who_blocks")
def test_many_clients_that_flood_hold_up_nobody(serve, dial, desk, concurrency, buffer_size):
    """Together they send more than the memory into which a port receives can hold."""
    handler = desk("blocks")
    count = 100 if buffer_size == 16384 else 12
    server = serve(handler, workers=count + 8, concurrency=concurrency, buffer_size=buffer_size)
    talks, *floods = (dial(server) for _ in range(count + 1))
    for client in floods:
        client.sendall(b"f")
    for _ in floods:
        assert handler.at_work.acquire(timeout=LONG)
    sent = len(floods)
    for client in floods:
        sent += client_fills(client, 32 * buffer_size)
    assert quickest_answer(talks) < 0.05
    newcomer = dial(server)
    assert quickest_answer(newcomer) < 0.05
    assert_idle(1, most=0.1)
    handler.go_on.set()
    wait_until(lambda: handler.taken == sent, "all was received")


def client_fills(client, most):
    """As `fill`, without a pause to see whether more goes: how many bytes were sent."""
    sent = 0
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sent < most:
            sent += client.send(bytes(min(65536, most - sent)))
    client.settimeout(LONG)
    return sent


@pytest.mark.parametrize("buffer_size", [300, 16384, 1 << 20])
@pytest.mark.parametrize("concurrency", [1, 2])
def test_every_byte_of_many_floods_comes_in_order(serve, dial, concurrency, buffer_size):
    """Callbacks that stop now and then for different times, with clients that do the same."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    size = 1_500_000 if buffer_size > 300 else 50_000

    class Slow(Recorder):
        def received(self, connection, data):
            # Bytes objects are kept, their place in the stream is checked at the end.
            super().received(connection, data)
            if chance.random() < 0.02:
                time.sleep(chance.random() / 50)  # a callback that blocks
            elif chance.random() < 0.01:
                connection.pause()
                connection.resume()

    handler = Slow()
    server = serve(handler, concurrency=concurrency, workers=32, buffer_size=buffer_size)
    clients = [dial(server) for _ in range(24)]

    def talk(number, client):
        dice = random.Random(seed + number)
        data = pattern(size, number)
        while data:
            piece = dice.choice((1, 100, 5000, 100_000, 400_000))
            client.sendall(data[:piece])
            data = data[piece:]
            if dice.random() < 0.1:
                time.sleep(dice.random() / 50)  # so that receives begin and end
        client.shutdown(socket.SHUT_WR)

    for thread in [Background(talk, *item) for item in enumerate(clients)]:
        thread.outcome(LONG)
    wait_until(lambda: handler.count("closed") == len(clients), "all have ended")
    texts = {handler.data(connection) for connection in handler.connections}
    assert texts == {pattern(size, number) for number in range(len(clients))}


@pytest.mark.alone
@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_flood_of_datagrams_holds_up_nobody(engine, nothing_left, concurrency):
    has_a_place_left(engine, concurrency)
    at_work, go_on = threading.Event(), threading.Event()

    class Answers(DatagramHandler):
        def received(self, endpoint, data, address):
            if data == b"block":
                at_work.set()
                go_on.wait(LONG)
            elif data[:1] == b"h":
                endpoint.send(data, address)

    server = DatagramServer(Answers(), port=0, engine=engine, concurrency=concurrency)
    with server, bound_socket("udp") as floods, bound_socket("udp") as talks:
        talks.settimeout(LONG)
        floods.sendto(b"block", server.address)
        assert at_work.wait(LONG)
        try:
            for _ in range(20_000):
                floods.sendto(bytes(1000), server.address)
            times = []
            for _ in range(5):
                began = time.perf_counter()
                answer = None
                while answer is None:
                    talks.sendto(b"hello", server.address)
                    talks.settimeout(0.2)
                    with contextlib.suppress(TimeoutError):
                        answer = talks.recv(100)
                times.append(time.perf_counter() - began)
            assert min(times) < 0.05
            assert_idle(1, most=0.1)
        finally:
            go_on.set()
