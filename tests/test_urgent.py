"""Urgent data and all else at which a receive stops before the socket is empty."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import threading

import pytest

from completionport import Operation
from server_support import Recorder
from support import (
    LONG,
    WINDOWS,
    pattern,
    read_exactly,
    take_one,
    wait_until,
)

pytestmark = pytest.mark.skipif(WINDOWS, reason="Windows' receives stop elsewhere")


def has_urgent_data(family):
    if family != socket.AF_UNIX:
        return True
    near, far = socket.socketpair()
    with near, far, contextlib.suppress(OSError):
        return far.send(b"!", socket.MSG_OOB) == 1
    return False


@pytest.fixture(params=["tcp", "unix"])
def family(request):
    return socket.AF_INET if request.param == "tcp" else socket.AF_UNIX


class Waiting(Recorder):
    """Its first callback waits, so that what follows is there when the server looks."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()

    def received(self, connection, data):
        super().received(connection, data)
        self.go_on.wait(LONG)


@pytest.fixture
def meet(serve, tmp_path):
    """A server whose first callback waits, and a client of it."""
    opened = []

    def make(family, concurrency):
        address = ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket")
        listener = (
            socket.create_server(address, family=family)
            if family == socket.AF_INET
            else (socket.socket(family))
        )
        if family != socket.AF_INET:
            listener.bind(address)
            listener.listen(10)
        handler = Waiting()
        server = serve(handler, listener=listener, concurrency=concurrency)
        client = socket.socket(family)
        opened.append((client, handler))
        client.settimeout(LONG)
        client.connect(server.address)
        return handler, client

    yield make
    for client, handler in opened:
        handler.go_on.set()
        client.close()


@pytest.mark.parametrize("concurrency", [1, 2])
class TestNothingStaysBehind:
    def send_behind_a_callback(self, meet, family, concurrency, *pieces):
        """Each a call that sends and returns the bytes that have to come."""
        handler, client = meet(family, concurrency)
        client.sendall(b"first")
        wait_until(lambda: handler.count("received"))
        expected = b"first" + b"".join(piece(client) for piece in pieces)
        handler.go_on.set()
        wait_until(lambda: len(handler.data()) == len(expected), "all has come")
        assert handler.data() == expected

    def plain(self, size):
        def send(client):
            client.sendall(pattern(size))
            return pattern(size)

        return send

    def urgent(self, client):
        client.send(b"!", socket.MSG_OOB)
        return b""

    def test_behind_an_urgent_byte(self, meet, family, concurrency):
        if not has_urgent_data(family):
            pytest.skip("no urgent data here")
        pieces = self.plain(1000), self.urgent, self.plain(1000)
        self.send_behind_a_callback(meet, family, concurrency, *pieces)

    def test_behind_many_urgent_bytes(self, meet, family, concurrency):
        """Only the last one is urgent; with TCP the others are bytes like all others."""
        if not has_urgent_data(family):
            pytest.skip("no urgent data here")
        seed = random.randrange(1 << 30)
        print("seed", seed)
        chance = random.Random(seed)
        handler, client = meet(family, concurrency)
        handler.go_on.set()
        sent = count = 0
        for _ in range(200):
            size = chance.choice((1, 10, 1000, 20_000))
            client.sendall(b"x" * size)
            sent += size
            if chance.random() < 0.3:
                client.send(b"!", socket.MSG_OOB)
                count += 1
        wait_until(lambda: handler.data().count(b"x") == sent, "all has come")
        assert handler.data().count(b"!") <= count
        client.sendall(b"the end")
        wait_until(lambda: handler.data().endswith(b"the end"))

    def test_behind_descriptors(self, meet, concurrency):
        """A Unix socket's receive ends with the bytes that descriptors came with."""

        def pass_one(client):
            read, write = os.pipe()
            socket.send_fds(client, [b"with a pipe"], [read, write])
            os.close(read)
            os.close(write)
            return b"with a pipe"

        pieces = pass_one, pass_one, self.plain(1000), pass_one
        self.send_behind_a_callback(meet, socket.AF_UNIX, concurrency, *pieces)


def receive(handle):
    return handle.recv(100)


def receive_into(handle):
    return handle.recv([bytearray(50), bytearray(50)])


def receive_all(handle):
    return handle.recv(100, socket.MSG_WAITALL)


def receive_from(handle):
    return handle.recvfrom(100)


def receive_message(handle):
    return handle.recvmsg(100, 100)


def read(handle):
    return handle.read(100)


RECEIVES = [receive, receive_into, receive_all, receive_from, receive_message, read]


@pytest.mark.parametrize("start", RECEIVES, ids=lambda start: start.__name__)
class TestTheUrgentByteStays:
    """A receive that is under way leaves it where it is, for MSG_OOB."""

    def urgent_byte_of(self, sock):
        return wait_until(lambda: taken_out_of_band(sock), "the urgent byte", 5)

    def test_when_nothing_else_comes(self, port, tcp, start):
        near, far = tcp
        with port.associate(near, None) as handle:
            operation = start(handle)
            assert port.get(0.02) is None
            far.send(b"!", socket.MSG_OOB)
            assert port.get(0.02) is None
            assert self.urgent_byte_of(near) == b"!"
            assert port.get(0.02) is None
            far.sendall(b"x" * 100)
            done = take_one(port)
            assert done.overlapped is operation
            assert done.error is None
            assert done.transferred == 100

    def test_behind_data(self, port, tcp, start):
        near, far = tcp
        with port.associate(near, None) as handle:
            operation = start(handle)
            assert port.get(0.02) is None
            far.sendall(b"x" * 10)
            if start is not receive_all:
                assert take_one(port).transferred == 10
                operation = start(handle)
            assert port.get(0.02) is None
            far.send(b"!", socket.MSG_OOB)
            assert port.get(0.02) is None
            assert self.urgent_byte_of(near) == b"!"
            far.sendall(b"y" * 90)
            done = take_one(port)
            assert done.overlapped is operation
            assert done.transferred == (100 if start is receive_all else 90)

    def test_with_data_before_it_and_a_second_receive_in_line(self, port, tcp, start):
        """The first receive stops at the urgent byte; the second one must not go over it."""
        near, far = tcp
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        with port.associate(near, None) as handle:
            first = start(handle)
            second = start(handle)
            assert port.get(0.02) is None
            far.sendall(b"x" * 10)
            far.send(b"!", socket.MSG_OOB)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
            if start is not receive_all:
                done = take_one(port)
                assert (done.overlapped, done.transferred) == (first, 10)
            assert port.get(0.02) is None
            assert self.urgent_byte_of(near) == b"!"
            rest = 190 if start is receive_all else 100
            far.sendall(b"y" * rest)
            assert take_one(port).overlapped is (first if start is receive_all else second)
            if start is receive_all:
                assert take_one(port).overlapped is second


def taken_out_of_band(sock):
    """The urgent byte, or None when none is there or it has not come yet."""
    with contextlib.suppress(BlockingIOError):
        try:
            return sock.recv(1, socket.MSG_OOB | socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return None


def test_a_receive_of_the_urgent_byte(port, tcp):
    near, far = tcp
    with port.associate(near, None) as handle:
        far.send(b"!", socket.MSG_OOB)
        wait_until(lambda: select.select([], [], [near], 0)[2])
        operation = handle.recv(1, socket.MSG_OOB)
        done = take_one(port)
        assert done.overlapped is operation
        assert (operation.operation, operation.result()) == (Operation.RECV, b"!")
        handle.recv(10)
        far.sendall(b"x")
        assert take_one(port).overlapped.result() == b"x"
        handle.send(b"bye")
        take_one(port)
        assert read_exactly(far, 3) == b"bye"
