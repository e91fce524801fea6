"""A signal handler that raises while a server starts or stops: at each place in turn, as in
test_handlers_that_raise."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from completionport import CompletionPort, DatagramServer, Server, WorkerPool
from completionport.servers import stream_server
from one_port_support import Echo, EchoDatagrams, echoes, echoes_datagram
from support import LONG, WINDOWS, Background, needs_unix_sockets, wait_until
from test_handlers_that_raise import At, Stop, each_place

pytestmark = pytest.mark.skipif(
    WINDOWS, reason="iocp is not held to it yet: CONTRIBUTING.md has it among the known flaws"
)

KINDS = ["tcp", "datagrams", pytest.param("unix", marks=needs_unix_sockets)]


@pytest.fixture(params=KINDS)
def make(request, tmp_path, engine):
    """What makes a server, on a port of its own where it is given None."""
    made = 0

    def make(port):
        nonlocal made
        options = {"engine": engine} if port is None else {"completion_port": port}
        if request.param == "datagrams":
            return DatagramServer(EchoDatagrams(), port=0, workers=1, **options)
        if request.param == "tcp":
            return Server(Echo(), port=0, workers=1, idle_timeout=60, **options)
        made += 1
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / str(made)))
        listener.listen()
        return Server(Echo(), listener=listener, workers=1, **options)

    return make


UNSAFE = {
    *(threading.Thread.start.__code__, socket.socket.dup.__code__),
    stream_server._make_room_for_descriptors.__code__,
}
"""Where the interpreter itself does not get over it, or a bare descriptor would be lost."""


class AtSafePlaces(At):
    def look(self, frame, event, argument):
        outer = frame
        while outer is not None:
            if outer.f_code in UNSAFE:
                return
            outer = outer.f_back
        super().look(frame, event, argument)


def works(server):
    if isinstance(server, DatagramServer):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(server.address)
            return echoes_datagram(client)
    family = socket.AF_UNIX if isinstance(server.address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(10)
        client.connect(server.address)
        return echoes(client)


@pytest.mark.parametrize("given", [False, True], ids=["own port", "given port"])
def test_a_start_that_was_interrupted_is_a_stop(engine, make, given, nothing_left):
    """Whatever was begun ends, and the port goes on."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(CompletionPort(1, engine=engine)) if given else None
        for at in each_place(kind=AtSafePlaces):
            server = make(port)
            started = False
            with contextlib.suppress(Stop), at:
                server.start()
                started = True
            if started:
                assert works(server)
            Background(server.stop, 0).outcome()
            with make(port) as other:
                assert works(other)
            if given:
                assert port.stats()["handles"] == 0


class InterruptedStart:
    """Interrupts the start of one thread, which may not run yet then, or never will, though its
    number is known already."""

    def __init__(self, monkeypatch, name, begun):
        self._start = threading.Thread.start
        self._name = name
        self._begun = begun
        self._timers = []
        monkeypatch.setattr(threading.Thread, "start", lambda thread: self.start(thread))

    def start(self, thread):
        if thread.name != self._name:
            self._start(thread)
            return
        thread._ident = 1
        if self._begun:
            timer = threading.Timer(0.1, self._start, [thread])
            self._timers.append(timer)
            self._start(timer)
        raise Stop

    def has_ended(self):
        for timer in self._timers:
            timer.join()
        wait_until(lambda: self._name not in [thread.name for thread in threading.enumerate()])
        return True


begins = pytest.mark.parametrize("begun", [False, True], ids=["before", "behind"])


@begins
@pytest.mark.parametrize("name", ["completionport-worker-1", "completionport-server"])
def test_no_stop_waits_for_a_thread_whose_start_was_interrupted(
    engine, make, monkeypatch, name, begun, nothing_left
):
    with CompletionPort(1, engine=engine) as port:
        with monkeypatch.context() as patches:
            interrupted = InterruptedStart(patches, name, begun)
            server = make(port)
            with pytest.raises(Stop):
                server.start()
            Background(server.stop, 0).outcome()
            assert interrupted.has_ended()
        with make(port) as other:
            assert works(other)


@begins
@pytest.mark.parametrize("name", ["1", "2", "keeper"])
def test_nor_does_that_of_a_pool(make_port, monkeypatch, name, begun):
    port = make_port(1)
    pool = WorkerPool(port, lambda packet: None, 2, maximum=3)
    with monkeypatch.context() as patches:
        interrupted = InterruptedStart(patches, f"completionport-pool-{name}", begun)
        with pytest.raises(Stop):
            pool.start()
        assert Background(pool.stop).outcome()
        assert interrupted.has_ended()
    port.post("the program's")
    assert port.get(LONG).transferred == "the program's"
