"""Its turn comes: while some keep a port or a server busy, others are heard of all the same.

tests/test_rules_for_every_row.py has the rule for everything that a port takes; here is what it
means for servers, for batches and for several threads.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time

import pytest

from completionport import DatagramHandler, DatagramServer, Handler
from support import LONG, Background, pattern, take_one

FLOODING = 3
MOST = 2000
"""Callbacks of the others, at most, until one is heard of that the kernel knows of: in the median
round, as the system may stop in any single one the thread that has taken it."""
ROUNDS = 11


@contextlib.contextmanager
def flood(send):
    """Threads that send without an end, each with a socket of its own."""
    over = threading.Event()

    def work(number):
        while not over.is_set():
            try:
                send(number)
            except TimeoutError:
                continue
            except OSError:
                return

    threads = [Background(work, number) for number in range(FLOODING)]
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.outcome()


@pytest.mark.parametrize("threads", [1, 4])
def test_a_quiet_client_is_answered_beside_some_that_flood(serve, dial, threads):
    class Counting(Handler):
        others = 0
        heard_at = 0

        def received(self, connection, data):
            if data == b"hello":
                self.heard_at = self.others
                connection.send(b"hello")
            else:
                self.others += 1

    handler = Counting()
    server = serve(handler, workers=threads)
    quiet = dial(server)
    clients = [dial(server) for _ in range(FLOODING)]
    for client in clients:
        client.settimeout(0.2)
    data = pattern(65536)
    with flood(lambda number: clients[number].send(data)):
        turns = []
        for _ in range(ROUNDS):
            quiet.sendall(b"hello")
            sent_at = handler.others
            assert quiet.recv(10) == b"hello"
            turns.append(handler.heard_at - sent_at)
        assert statistics.median(turns) < MOST, turns
        new = dial(server)  # and so is one that comes
        new.sendall(b"hello")
        assert new.recv(10) == b"hello"
        for client in clients:
            client.shutdown(socket.SHUT_WR)


def test_a_quiet_peer_is_answered_beside_some_that_flood(engine, nothing_left):
    class Answering(DatagramHandler):
        def received(self, endpoint, data, address):
            if data == b"hello":
                endpoint.send(data, address)

    server = DatagramServer(Answering(), host="127.0.0.1", port=0, engine=engine, workers=1)
    server.start()
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop, grace=0)
        clients = [
            stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(FLOODING + 1)
        ]
        for client in clients:
            client.connect(server.address)
            client.settimeout(0.05)
        quiet = clients.pop()
        data = pattern(1000)
        with flood(lambda number: clients[number].send(data)):
            answered = False
            for _ in range(int(LONG / 0.05)):
                quiet.send(b"hello")  # the system drops what the socket has no room for
                with contextlib.suppress(TimeoutError):
                    answered = quiet.recv(10) == b"hello"
                    break
            assert answered
            assert server.stop(grace=1) is None  # and so is the one that stops it


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_receive_is_heard_of_beside_posts(make_port, make_pair, batch, threads):
    port = make_port(threads)
    near, far = make_pair()
    with port.associate(near, "socket") as handle:
        over = threading.Event()
        taken: list[int] = []  # one for each other packet; append is one step
        heard_at: list[int] = []

        def work():
            while not over.is_set():
                for done in port.get_many(batch, LONG):
                    if done.key == "socket":
                        heard_at.append(len(taken))
                    else:
                        taken.append(0)
                        port.post(0, "other")

        for _ in range(2 * batch * threads):
            port.post(0, "other")
        workers = [Background(work) for _ in range(threads)]
        turns = []
        for number in range(ROUNDS):
            handle.recv(10)
            far.sendall(b"hello")
            sent_at = len(taken)
            end = time.monotonic() + LONG
            while len(heard_at) <= number:
                assert time.monotonic() < end, "it is not heard of"
            turns.append(heard_at[number] - sent_at)
        over.set()
        for worker in workers:
            worker.outcome()
    assert statistics.median(turns) < MOST * batch * threads, turns
    while port.get(0):
        pass
    near.close()


def test_a_timer_is_heard_of_beside_a_full_queue(port):
    for number in range(1000):
        port.post(number, "other")
    port.post_after(0, 0, "timer")
    for _ in range(1001 + MOST):
        done = take_one(port)
        if done.key == "timer":
            break
        port.post(0, "other")
    assert done.key == "timer"
    while port.get(0):
        pass
