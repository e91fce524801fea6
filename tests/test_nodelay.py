"""Answers of several sends wait for no acknowledgement: TCP_NODELAY, whoever made the listener."""

from __future__ import annotations

import socket
import time

import pytest

from server_support import Recorder
from support import LONG, has_ipv6, needs_unix_sockets, read_exactly

FAMILIES = [
    socket.AF_INET,
    pytest.param(socket.AF_INET6, marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
]


class Twice(Recorder):
    """Answers with two sends: the second would wait for the acknowledgement of the first."""

    def received(self, connection, data):
        super().received(connection, data)
        connection.send(b"head")
        connection.send(b"body")


def bound(family):
    sock = socket.socket(family)
    sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    return sock


def round_trips(address, family, count=15):
    """The median of how long question and answer take, seconds."""
    times = []
    with socket.socket(family) as client:
        client.settimeout(LONG)
        client.connect(address)
        for _ in range(count):
            began = time.monotonic()
            client.sendall(b"question")
            assert read_exactly(client, 8) == b"headbody"
            times.append(time.monotonic() - began)
    return sorted(times)[count // 2]


@pytest.mark.alone
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
class TestListeners:
    def test_one_of_the_program(self, serve, family, concurrency):
        with bound(family) as listener:
            listener.listen()
            serve(Twice(), listener=listener, concurrency=concurrency, workers=4)
            assert round_trips(listener.getsockname(), family) < 0.02

    def test_one_that_had_clients_before_it_had_the_option(self, serve, family, concurrency):
        with bound(family) as listener, socket.socket(family) as client:
            listener.listen()
            client.settimeout(LONG)
            client.connect(listener.getsockname())
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve(Twice(), listener=listener, concurrency=concurrency, workers=4)
            times = []
            for _ in range(15):
                began = time.monotonic()
                client.sendall(b"question")
                assert read_exactly(client, 8) == b"headbody"
                times.append(time.monotonic() - began)
            assert sorted(times)[7] < 0.02

    def test_the_listener_of_the_program_is_left_as_it_was(self, serve, family, concurrency):
        """Others may have it too."""
        with bound(family) as listener:
            listener.listen()
            with listener.dup() as other:
                serve(Twice(), listener=listener, concurrency=concurrency, workers=4)
                round_trips(listener.getsockname(), family, 1)
                assert not other.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_one_of_the_server(self, serve, family, concurrency):
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        server = serve(Twice(), host=host, port=0, concurrency=concurrency, workers=4)
        assert round_trips(server.address, family) < 0.02


@needs_unix_sockets
def test_a_unix_socket_does_without(serve, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        serve(Twice(), listener=listener)
        round_trips(str(tmp_path / "socket"), socket.AF_UNIX)
