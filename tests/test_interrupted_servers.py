"""A signal handler that raises while a server starts or stops: at each place in turn, as in
test_handlers_that_raise."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from completionport import CompletionPort, DatagramServer, Server
from completionport.servers import stream_server
from one_port_support import Echo, EchoDatagrams, echoes, echoes_datagram
from support import WINDOWS, Background, needs_unix_sockets, wait_until
from test_handlers_that_raise import At, Stop, each_place

pytestmark = pytest.mark.skipif(
    WINDOWS, reason="iocp is not held to it yet: CONTRIBUTING.md has it among the known flaws"
)

KINDS = ["tcp", "datagrams", pytest.param("unix", marks=needs_unix_sockets)]


@pytest.fixture(params=KINDS)
def make(request, tmp_path, engine):
    """What makes a server, on a port of its own where it is given None."""
    if engine == "selectors":
        pytest.skip("selectors is not held to it yet: an interrupted call keeps a lock")
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


UNSAFE = {threading.Thread.start.__code__, stream_server._make_room_for_descriptors.__code__}
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


@pytest.mark.parametrize("begun", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("name", ["completionport-worker-1", "completionport-server"])
def test_a_thread_whose_start_was_interrupted_is_not_waited_for(
    engine, make, monkeypatch, name, begun, nothing_left
):
    """It may not run yet, or never will, and its number is known already."""
    start, timers = threading.Thread.start, []

    def interrupted(self):
        if self.name != name:
            start(self)
            return
        self._ident = 1
        if begun:
            timers.append(threading.Timer(0.1, start, [self]))
            timers[0].start()
        raise Stop

    with CompletionPort(1, engine=engine) as port:
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        server = make(port)
        with pytest.raises(Stop):
            server.start()
        Background(server.stop, 0).outcome()
        for timer in timers:
            timer.join()
        wait_until(lambda: name not in [thread.name for thread in threading.enumerate()])
        monkeypatch.undo()
        with make(port) as other:
            assert works(other)
