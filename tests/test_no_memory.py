"""Where there is no memory, `get` raises `MemoryError`, and the packet stays."""

from __future__ import annotations

import os
import socket
import sys
import threading

import pytest

from completionport import Overlapped, Strand
from support import LONG, WINDOWS, tcp_pair, wait_until

testcapi = pytest.importorskip("_testcapi", reason="this interpreter can't fail its allocations")

pytestmark = [
    pytest.mark.usefixtures("no_collections"),
    pytest.mark.skipif(
        not getattr(sys, "_is_gil_enabled", lambda: True)(),
        reason="without a GIL another thread may allocate while the allocator is exchanged",
    ),
]

MAKE_SOMETHING = ("accept", "failed_stat")
"""Kinds whose packet takes memory that is there in no store."""
POOLED = ("submit", "getaddrinfo", "open")
"""Kinds that a thread of the pool carries out."""
MOST = 400
"""More allocations than any packet takes."""


class Kinds:
    """Each begins an operation, waits until its packet is there, and tells what it should bring."""

    def __init__(self, port):
        self.port = port
        self.left, self.right = tcp_pair()
        self.handle = port.associate(self.left, "left")
        self.open_files = [self.left, self.right]

    def close(self):
        self.handle.close()
        for file in self.open_files:
            file.close()

    def post(self):
        self.port.post(7, "key", "anything")
        return lambda packet: tuple(packet) == (7, "key", "anything", None)

    def timer(self):
        self.port.post_after(0, 8, "key")
        return lambda packet: tuple(packet) == (8, "key", None, None)

    def recv(self):
        self.right.send(b"some bytes")
        operation = self.handle.recv(9000)
        return lambda packet: packet.overlapped is operation and operation.result() == b"some bytes"

    def recv_little(self):
        self.right.send(b"some bytes")
        operation = self.handle.recv(10)
        return lambda packet: packet.overlapped is operation and operation.result() == b"some bytes"

    def recv_much(self):
        self.right.send(bytes(range(256)) * 30)
        operation = self.handle.recv(1_000_000)
        return lambda packet: operation.result() == (bytes(range(256)) * 30)[: packet.transferred]

    def end(self):
        self.right.close()
        operation = self.handle.recv(9000)
        return lambda packet: packet.overlapped is operation and operation.result() == b""

    def failed(self):
        operation = self.handle.recv(9000)
        operation.cancel()
        return lambda packet: packet.error is operation.error and packet.error is not None

    def sent(self):
        operation = self.handle.send(b"bytes")
        return lambda packet: packet.transferred == 5 and operation.result() == 5

    def accept(self):
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        accepting = self.port.associate(listener, "listener")
        self.open_files += [listener, client]
        operation = accepting.accept()

        def check(packet):
            accepted = operation.result()
            self.open_files += [accepted]
            accepted.settimeout(LONG)
            client.send(b"hello")
            return accepted.recv(100) == b"hello"

        return check

    def recvfrom(self):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(("127.0.0.1", 0))
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        other.bind(("127.0.0.1", 0))
        other.sendto(b"datagram", one.getsockname())
        self.open_files += [one, other]
        operation = self.port.associate(one, "datagrams").recvfrom(1000)
        name = other.getsockname()
        return lambda packet: operation.result() == (b"datagram", name)

    def recvmsg(self):
        one, other = socket.socketpair()
        read, write = os.pipe()
        socket.send_fds(other, [b"x"], [write])
        os.close(write)
        self.open_files += [one, other]
        operation = self.port.associate(one, "messages").recvmsg(10, socket.CMSG_SPACE(4))

        def check(packet):
            data, ancillary, _flags, _address = operation.result()
            number = int.from_bytes(ancillary[0][2], "little")
            os.write(number, b"alive")
            os.close(number)
            got = os.read(read, 10), os.read(read, 10)
            os.close(read)
            return data == b"x" and got == (b"alive", b"")

        return check

    def open(self):
        operation = self.port.open(os.devnull)

        def check(packet):
            os.close(operation.result())
            return packet.transferred == 0

        return check

    def stat(self):
        operation = self.port.stat(os.path.abspath(os.curdir))
        return lambda packet: operation.result().st_ino == os.stat(os.curdir).st_ino

    def failed_stat(self):
        operation = self.port.stat("/no/such/name")
        return lambda packet: packet.error.filename == "/no/such/name" and operation.error

    def submit(self):
        operation = self.port.submit(lambda: [1, 2])
        return lambda packet: operation.result() == [1, 2]

    def getaddrinfo(self):
        operation = self.port.getaddrinfo("127.0.0.1", 80)
        return lambda packet: operation.result()[0][4] == ("127.0.0.1", 80)


KINDS = [name for name in vars(Kinds) if not name.startswith("_") and name != "close"]


def get_without_memory(port, start, stop):
    """`get` with those allocations failing: a packet, or None for a `MemoryError`."""
    get = port.get
    testcapi.set_nomemory(start, stop)
    try:
        return get(LONG)
    except MemoryError:
        return None
    finally:
        testcapi.remove_mem_hooks()


@pytest.mark.skipif(WINDOWS, reason="the packets of iocp are the kernel's")
@pytest.mark.parametrize("forever", [False, True], ids=["one", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_packet_stays_when_there_is_no_memory_for_it(make_port, kind, forever):
    port = make_port()
    if port.engine == "selectors" and forever:
        pytest.skip("the interpreter needs memory to leave a try statement, and tries for ever")
    kinds = Kinds(port)
    check = getattr(kinds, kind)()
    if kind in POOLED or (port.engine == "selectors" and "stat" in kind):
        # The pool's thread is to have memory.
        wait_until(lambda: port.stats()["queued"] == 1)
    failures = 0
    packet = None
    while packet is None and failures < MOST:
        packet = get_without_memory(port, failures, 0 if forever else failures + 1)
        failures += packet is None
    assert packet is not None
    assert check(packet)
    assert failures or kind not in MAKE_SOMETHING
    assert port.get(0) is None
    kinds.close()


@pytest.mark.skipif(WINDOWS, reason="the packets of iocp are the kernel's")
def test_get_many_gives_what_there_is_memory_for_and_the_rest_stays(make_port):
    port = make_port()
    left, right = tcp_pair()
    handle = port.associate(left, "key")
    for start in range(60):
        operations = [handle.send(b"x" * size) for size in range(1, 6)]
        wait_until(lambda: port.stats()["queued"] == 5)
        taken = []
        get_many = port.get_many
        testcapi.set_nomemory(start, start + 1)
        try:
            taken = get_many(10, 0)
        except MemoryError:
            pass
        finally:
            testcapi.remove_mem_hooks()
        while len(taken) < 5:
            taken += port.get_many(10, LONG)
        assert [packet.overlapped for packet in taken] == operations
        assert [packet.transferred for packet in taken] == [1, 2, 3, 4, 5]
    handle.close()
    left.close()
    right.close()


@pytest.mark.skipif(WINDOWS, reason="the packets of iocp are the kernel's")
def test_a_packet_of_a_strand_stays_in_its_order(make_port):
    port = make_port()
    left, right = tcp_pair()
    strand = Strand(port)
    handle = port.associate(left, "key", strand=strand)
    operations = [handle.send(b"x" * size, overlapped=Overlapped()) for size in range(1, 6)]
    wait_until(lambda: port.stats()["queued"] == 5)
    taken = []
    start = 0
    while len(taken) < 5:
        packet = get_without_memory(port, start % MOST, start % MOST + 1)
        start += 1
        if packet is not None:
            taken.append(packet.overlapped)
    assert taken == operations
    handle.close()
    left.close()
    right.close()


@pytest.mark.skipif(WINDOWS, reason="the packets of iocp are the kernel's")
def test_a_thread_that_found_no_memory_goes_on(make_port):
    port = make_port()
    got = []

    def take():
        start = 0
        while not got:
            packet = get_without_memory(port, start, start + 1)
            start += 1
            if packet is not None:
                got.append(packet.key)

    thread = threading.Thread(target=take)
    port.post(0, "key")
    thread.start()
    thread.join(LONG)
    assert got == ["key"]
