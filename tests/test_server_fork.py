"""The child of a fork() and its parent's server: it sends, closes and takes nothing."""

from __future__ import annotations

import pytest

from support import needs_fork, run_python

pytestmark = needs_fork

PRELUDE = """
import os, socket, threading, warnings
warnings.simplefilter("ignore")  # fork() with threads running is what is tested here
from completionport import DatagramHandler, DatagramServer, Handler, PortForked, Server
from support import LONG, read_exactly, read_to_end, wait_until

def refuses(call, *arguments):
    try:
        call(*arguments)
    except PortForked:
        return True
    return False

def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def run(engine, script):
    done = run_python(PRELUDE + script, engine=engine, timeout=60)
    assert done.stderr == ""


def test_a_connection_is_refused(engine):
    run(
        engine,
        """
class Echo(Handler):
    def connected(self, connection):
        connections.append(connection)
    def received(self, connection, data):
        connection.send(data)

connections = []
with Server(Echo(), port=0) as server, socket.create_connection(server.address, LONG) as client:
    client.sendall(b"before")
    assert read_exactly(client, 6) == b"before"
    (connection,) = connections
    child = os.fork()
    if child == 0:
        refused = refuses(connection.send, b"from the child")
        for name in ("pause", "resume", "close", "abort"):
            refused &= refuses(getattr(connection, name))
        os._exit(not refused)
    assert status_of(child) == 0
    client.sendall(b"behind")
    assert read_exactly(client, 6) == b"behind"
    connection.close()
    assert read_to_end(client) == b""
""",
    )


def test_an_endpoint_is_refused(engine):
    run(
        engine,
        """
class Echo(DatagramHandler):
    def received(self, endpoint, data, address):
        endpoints.append(endpoint)
        endpoint.send(data, address)

endpoints = []
with DatagramServer(Echo(), port=0) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
    client.settimeout(LONG)
    client.sendto(b"before", server.address)
    assert client.recv(10) == b"before"
    child = os.fork()
    if child == 0:
        os._exit(not refuses(endpoints[0].send, b"from the child", client.getsockname()))
    assert status_of(child) == 0
    client.sendto(b"behind", server.address)
    assert client.recv(10) == b"behind"
""",
    )


def test_a_callback_that_forks_leaves_no_second_worker(engine):
    """The child returns from it, and ends: what it took would be lost for the parent."""
    run(
        engine,
        """
class Echo(Handler):
    def received(self, connection, data):
        if data == b"fork":
            child = os.fork()
            if child == 0:
                return
            children.append(status_of(child))
        connection.send(data)

children = []
with Server(Echo(), port=0) as server, socket.create_connection(server.address, LONG) as client:
    for _ in range(3):
        client.sendall(b"fork")
        assert read_exactly(client, 4) == b"fork"
        for _ in range(100):
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
assert children == [0] * 3
""",
    )


@pytest.mark.parametrize("ends", ["close", "abort"])
def test_the_child_of_a_callback_calls_no_other_one(engine, ends):
    run(
        engine,
        f"""
class Echo(Handler):
    def received(self, connection, data):
        connection.{ends}()
        child = os.fork()
        if child == 0:
            return
        children.append(status_of(child))

    def closed(self, connection, error):
        os.write(told, b"closed ")
        child = os.fork()
        if child == 0:
            return
        children.append(status_of(child))

children = []
telling, told = os.pipe()
with Server(Echo(), port=0) as server:
    for _ in range(10):
        with socket.create_connection(server.address, LONG) as client:
            client.sendall(b"data")
            assert read_to_end(client) == b""
assert children == [0] * 20
assert os.read(telling, 1000) == b"closed " * 10
""",
    )


def test_the_child_of_a_datagrams_callback_ends(engine):
    run(
        engine,
        """
class Echo(DatagramHandler):
    def received(self, endpoint, data, address):
        child = os.fork()
        if child == 0:
            return
        children.append(status_of(child))
        endpoint.send(data, address)

children = []
with DatagramServer(Echo(), port=0) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
    client.settimeout(LONG)
    for _ in range(10):
        client.sendto(b"data", server.address)
        assert client.recv(10) == b"data"
assert children == [0] * 10
""",
    )


def test_the_child_does_not_start_its_parents_server(engine):
    run(
        engine,
        """
class Echo(Handler):
    def received(self, connection, data):
        connection.send(data)

server = Server(Echo(), port=0)
child = os.fork()
if child == 0:
    for call in (server.start, server.serve_forever, server.stop):
        assert refuses(call), call
    assert threading.active_count() == 1
else:
    assert status_of(child) == 0  # its interpreter ends as usual
    server.stop()
""",
    )
