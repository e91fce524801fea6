"""Ports on reference cycles, with whatever can refer to what: all of it is collected."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref

import pytest

from completionport import (
    CompletionPort,
    DatagramHandler,
    DatagramServer,
    Handler,
    Operation,
    Overlapped,
    Server,
    Strand,
    WorkerPool,
    open_directory,
)
from support import (
    LONG,
    WINDOWS,
    Background,
    descriptors,
    needs_ancillary,
    tcp_pair,
    wait_for_stats,
    wait_until,
)

BIG = 30_000_000


class Node:
    """What is on the cycle: it has room for references to all the rest."""

    def __init__(self, **kept):
        vars(self).update(kept)


class Buffer(bytearray):
    """Memory that knows more."""


class Knowing(Overlapped):
    """A per-I/O structure of the program's."""


class KnowingSocket(socket.socket):
    """A file of the program's."""


def pair(cls=socket.socket):
    near, far = tcp_pair()
    if cls is not socket.socket:
        near = cls(near.family, near.type, near.proto, near.detach())
    return near, far


def receives(port, node):
    near, node.far = pair()
    node.handle = port.associate(near, node)
    node.operations = [node.handle.recv(100) for _ in range(3)]


def receives_into_memory(port, node):
    near, node.far = pair()
    buffer = Buffer(100)
    buffer.node = node
    port.associate(near, "key").recv(buffer)


def receives_into_a_list(port, node):
    near, node.far = pair()
    buffers = [bytearray(10), Buffer(10), bytearray(10)]
    buffers[1].node = node
    port.associate(near, "key").recv(buffers)


def receives_messages(port, node):
    near, node.far = pair()
    buffers = [Buffer(10), Buffer(10)]
    buffers[1].node = node
    port.associate(near, "key").recvmsg(buffers, 100)


def sends(port, node):
    near, node.far = pair()
    buffer = Buffer(BIG)
    buffer.node = node
    node.handle = port.associate(near, "key")
    node.handle.send([buffer, b"more"])
    node.handle.send(b"behind it")


def operations_of_the_programs_own(port, node):
    near, node.far = pair()
    overlapped = Knowing()
    overlapped.node = node
    port.associate(near, "key").recv(10, overlapped=overlapped)


def files(port, node):
    near, node.far = pair(KnowingSocket)
    near.node = node
    node.handle = port.associate(near, "key")


def files_with_operations(port, node):
    near, node.far = pair(KnowingSocket)
    near.node = node
    port.associate(near, "key").recv(10)


def the_port_as_key(port, node):
    near, node.far = pair()
    port.node = node
    port.associate(near, port).recv(10)


def accepts(port, node):
    listener = socket.create_server(("127.0.0.1", 0))
    port.associate(listener, node).accept()
    node.strand = Strand(port)


def results_that_nobody_took(port, node):
    listener = socket.create_server(("127.0.0.1", 0))
    node.client = socket.create_connection(listener.getsockname())
    node.operation = port.associate(listener, node).accept()
    near, node.far = pair()
    node.far.sendall(b"data")
    near_too, node.far_too = pair()
    node.far_too.sendall(b"data")
    for sock in (near, near_too):
        port.associate(sock, node).recv(100)
    # It has the kernel looked at; what else came then is in the queue.
    assert port.get(LONG).key is node


def posts(port, node):
    for values in ((node, 0, 0), (0, node, 0), (0, 0, node), (port, port, port)):
        port.post(*values)


def posts_on_strands(port, node):
    node.strand = Strand(port)
    for _ in range(3):
        port.post(node, node, node, strand=node.strand)


def posts_behind_a_packet_at_work(port, node):
    strand = Strand(port)
    for _ in range(3):
        port.post(node, node, node, strand=strand)
    assert Background(port.get).outcome().key is node


def timers(port, node):
    node.timers = [port.post_after(100 + number, node, node, node) for number in range(3)]
    node.strand = Strand(port)
    port.post_after(100, port, strand=node.strand)


def timers_that_are_due(port, node):
    port.post_after(0, node)
    port.post_after(0, 0, node)
    port.post_after(0, 0, 0, port)
    wait_for_stats(port, timers=0, queued=3)


def functions(port, node):
    node.result = port.submit(lambda: node, key=node)
    wait_for_stats(port, queued=1, pending=0)


def functions_in_line(port, node):
    begun, may_end = threading.Semaphore(0), threading.Event()

    def wait():
        begun.release()
        may_end.wait(LONG)

    for _ in range(8):
        port.submit(wait)
    for _ in range(4):
        assert begun.acquire(timeout=LONG)
    port.submit(vars, node, key=node)
    # They are waited for by who closes the port.
    threading.Timer(0.2, may_end.set).start()


def names(port, node):
    port.open(__file__, os.O_RDONLY, key=node)
    port.stat(__file__, key=node, strand=Strand(port))
    port.getaddrinfo("127.0.0.1", 80, key=node)
    taken = port.get(LONG)
    assert taken.key is node
    if taken.overlapped.operation is Operation.OPEN:
        os.close(taken.overlapped.result())


def processes(port, node):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    node.handle = port.associate(process, node)
    weakref.finalize(node, process.communicate)


def directories(port, node):
    number = open_directory(".")
    weakref.finalize(node, os.close, number)
    node.handle = port.associate(number, node)
    node.operations = [node.handle.read_changes() for _ in range(2)]


def signals(port, node):
    node.watch = port.associate_signal(signal.SIGINT, node)


def signals_that_came(port, node):
    port.associate_signal(signal.SIGINT, node)
    signal.raise_signal(signal.SIGINT)


def what_was_taken(port, node):
    port.post(0, node)
    port.submit(lambda: node, key=node)
    node.taken = [port.get(LONG), port.get(LONG)]
    node.blocking = port.blocking()


def worker_pools(port, node):
    node.pool = WorkerPool(port, lambda completion: node, 2, maximum=4)
    with node.pool:
        port.post()


def worker_pools_that_never_began(port, node):
    node.pool = WorkerPool(port, lambda completion: node, 2)


def threads_that_are_over(port, node):
    node.thread = threading.Thread(target=lambda: (port.get_many(10, LONG), node))
    node.thread.start()
    port.post(0, node)
    node.thread.join()


CYCLES = [
    receives,
    receives_into_memory,
    receives_into_a_list,
    pytest.param(receives_messages, marks=needs_ancillary),
    sends,
    operations_of_the_programs_own,
    files,
    files_with_operations,
    the_port_as_key,
    accepts,
    results_that_nobody_took,
    posts,
    posts_on_strands,
    posts_behind_a_packet_at_work,
    timers,
    timers_that_are_due,
    functions,
    functions_in_line,
    names,
    processes,
    directories,
    signals,
    signals_that_came,
    what_was_taken,
    worker_pools,
    worker_pools_that_never_began,
    threads_that_are_over,
]


def new_since(before):
    return descriptors().keys() - before.keys()


def collect(*references):
    """Whether all of these are gone, after a few rounds; what goes first may let others go."""
    for _ in range(3):
        gc.collect()
    return [thing for reference in references if (thing := reference()) is not None] == []


@contextlib.contextmanager
def warnings_kept():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@pytest.mark.parametrize("bind", CYCLES)
def test_a_port_on_a_cycle_is_collected(engine, bind):
    def once():
        port = CompletionPort(engine=engine)
        node = Node(port=port)
        bind(port, node)
        return weakref.ref(port), weakref.ref(node)

    with warnings_kept() as caught:
        collect(*once())
        before = descriptors()
        for _ in range(2):
            port, node = once()
            # Where a thread has ended, Python lets its last frame go a little later.
            wait_until(lambda: collect(port, node), "port and node are gone")  # noqa: B023
    told = [one for one in caught if one.category is ResourceWarning]
    ports = [one for one in told if "CompletionPort" in str(one.message)]
    assert len(ports) == 3
    assert all("was not closed" in str(one.message) for one in ports)
    wait_until(lambda: not new_since(before), "the descriptors are as before")


class Silent(CompletionPort):
    """One that says nothing of its own end."""

    def __del__(self):
        pass


class Own(CompletionPort):
    __slots__ = ()

    def __init__(self, **options):
        super().__init__(**options)
        self.me = self


@pytest.mark.parametrize("cls", [Silent, Own])
def test_a_subclass_is_collected_and_closed(engine, cls):
    before = descriptors()
    port = cls(engine=engine)
    node = Node(port=port)
    receives(port, node)
    timers(port, node)
    port, node = weakref.ref(port), weakref.ref(node)
    with warnings_kept():
        wait_until(lambda: collect(port, node), "port and node are gone")
    wait_until(lambda: descriptors() == before, "the descriptors are as before")


def test_a_warning_that_is_kept_keeps_no_port(engine, make_pair):
    before = descriptors()
    with warnings_kept() as caught:
        port = CompletionPort(engine=engine)
        alive = weakref.ref(port)
        del port
        assert collect(alive)
        assert len(caught) == 1
        assert caught[0].source is None
        wait_until(lambda: descriptors() == before, "the descriptors are as before")


def test_it_is_closed_when_it_warns(engine):
    closed = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        port = CompletionPort(engine=engine)
        strand, before = Strand(port), descriptors()

        def show(*_, **__):
            closed.append((len(descriptors()) < len(before), strand))

        warnings.showwarning = show
        del port
        gc.collect()
    assert [one for one, _ in closed] == [True]


def test_a_port_that_somebody_needs_stays(engine):
    """A collection takes nothing that a packet may still bring."""
    port = CompletionPort(engine=engine)
    near, far = tcp_pair()
    keys = {}
    with port, near, far:
        for name in ("receive", "post", "timer", "function"):
            keys[name] = weakref.ref(key := Node(name=name))
            key.me = key
            if name == "receive":
                key.handle = port.associate(near, key)
                key.operation = key.handle.recv([Buffer(10), Buffer(10)])
            elif name == "post":
                port.post(key, key, key)
            elif name == "timer":
                key.timer = port.post_after(0.01, key, key, key)
            else:
                port.submit(vars, key, key=key)
            del key
        gc.collect()
        assert all(keys.values())
        far.sendall(b"data")
        deadline = time.monotonic() + LONG
        taken = {}
        while len(taken) < 4 and time.monotonic() < deadline:
            gc.collect()
            completion = port.get(1)
            if completion is not None:
                assert completion.key.me is completion.key
                taken[completion.key.name] = completion
        assert set(taken) == set(keys)
        assert taken["receive"].key.handle.closed is False
        assert taken["receive"].transferred == 4


def test_collections_beside_threads_that_take(engine):
    """Each packet comes with what belongs to it, whenever a collection looked."""
    seed = os.environ.get("COMPLETIONPORT_SEED") or random.randrange(1 << 32)
    print(f"COMPLETIONPORT_SEED={seed}")
    over = threading.Event()
    port = CompletionPort(4, engine=engine)

    def collector():
        while not over.wait(0.002):  # or who stops the world holds up all others
            gc.collect()

    def use(number):
        chance = random.Random(f"{seed} {number}")
        near, far = tcp_pair()
        handle = port.associate(near, Node(number=number, made="handle"))
        with near, far:
            for turn in range(150):
                what = chance.choice(["post", "timer", "receive", "strand", "function"])
                key = Node(number=number, turn=turn, made=what)
                key.me = key
                if what == "post":
                    port.post(key, key, [key])
                elif what == "timer":
                    port.post_after(chance.choice([0, 0.001]), key, key, [key])
                elif what == "strand":
                    strand = Strand(port)
                    for _ in range(3):
                        port.post(key, key, [key], strand=strand)
                elif what == "function":
                    port.submit(Node, key=key)
                else:
                    overlapped = Knowing()
                    overlapped.node = key
                    handle.recv([Buffer(2), Buffer(2)], overlapped=overlapped)
                    far.sendall(b"data")
                for _ in range(3 if what == "strand" else 1):
                    check(port.get(LONG))

    def check(completion):
        key = completion.key
        if key.made == "handle":
            assert completion.transferred == 4
            assert completion.overlapped.node.me is completion.overlapped.node
            assert completion.overlapped.handle.key is key
        elif key.made == "function":
            assert isinstance(completion.overlapped.result(), Node)
        else:
            assert completion.transferred is key.me is key
            assert completion.overlapped[0] is key

    with port:
        looking = Background(collector)
        users = [Background(lambda number=number: use(number)) for number in range(4)]
        try:
            for user in users:
                user.outcome()
        finally:
            over.set()
            looking.outcome()


class Keeping(Handler):
    """It refers to its server and to its connections, and they to it."""

    server = None

    def __init__(self):
        self.connections = []

    def connected(self, connection):
        connection.state = self
        self.connections.append(connection)

    def received(self, connection, data):
        connection.send(data)


class KeepingDatagrams(DatagramHandler):
    server = None

    def received(self, endpoint, data, address):
        endpoint.state = self
        self.endpoint = endpoint
        endpoint.send(data, address)


@pytest.mark.parametrize("life", ["never started", "stopped"])
@pytest.mark.parametrize("kind", [Server, DatagramServer])
def test_a_server_on_a_cycle_is_collected(engine, kind, life):
    def once():
        handler = Keeping() if kind is Server else KeepingDatagrams()
        server = handler.server = kind(handler, port=0, engine=engine)
        if life == "stopped":
            with server:
                stream = socket.SOCK_STREAM if kind is Server else socket.SOCK_DGRAM
                with socket.socket(socket.AF_INET, stream) as client:
                    client.settimeout(LONG)
                    client.connect(server.address)
                    client.send(b"hello")
                    assert client.recv(100) == b"hello"
        return [weakref.ref(thing) for thing in (server, handler, server.completion_port)]

    with warnings_kept():
        collect(*once())
        before = descriptors()
        gone = once()
        wait_until(lambda: collect(*gone), "server, handler and port are gone")
    wait_until(lambda: not new_since(before), "the descriptors are as before")


@pytest.mark.skipif(WINDOWS, reason="Windows has one process, and no fork")
def test_a_child_leaves_what_its_parent_has_under_way(engine):
    port = CompletionPort(engine=engine)
    near, far = tcp_pair()
    with port, near, far:
        node = Node(port=port)
        node.operation = port.associate(near, node).recv(10)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                del node, port
                gc.collect()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        gc.collect()
        far.sendall(b"data")
        assert port.get(LONG).key is node
