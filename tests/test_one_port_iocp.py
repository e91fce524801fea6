"""Servers on a port of the engine iocp: what the kernel has, and what was taken out for others."""

from __future__ import annotations

import _thread
import signal

import pytest

from completionport import Strand
from one_port_support import echoes, values
from support import LONG, WINDOWS, wait_for_stats, wait_until

pytestmark = pytest.mark.skipif(not WINDOWS, reason="of the engine iocp")


@pytest.fixture
def unlocked(monkeypatch):
    """A channel is told of its operation's end under no lock of the scheduler's.

    A call at the channel takes both locks the other way round.
    """
    from completionport.windows.channel import IocpChannel

    land = IocpChannel.land

    def landing(channel, flight):
        assert not channel.scheduler._lock._is_owned()
        return land(channel, flight)

    monkeypatch.setattr(IocpChannel, "land", landing)


def test_a_server_comes_while_packets_wait(unlocked, make_port, serve_on, dial, tcp):
    port = make_port(1)
    near, far = tcp
    with port.associate(near, "handle") as handle:
        operations = [handle.recv(1) for _ in range(3)]
        strand = Strand(port)
        for number in range(5):
            port.post(number, strand=strand if number % 2 else None)
        far.sendall(b"abc")
        wait_until(lambda: port.stats()["queued"] == 8, "all are there")
        client = dial(serve_on(port))
        assert echoes(client)
        assert port.stats()["queued"] == 8
        packets = [port.get(LONG) for _ in range(8)]
        assert port.get(0) is None
    posts = values(packet for packet in packets if packet.overlapped is None)
    assert [number for number in posts if not number % 2] == [0, 2, 4]
    assert [number for number in posts if number % 2] == [1, 3]
    assert b"".join(one.result() for one in operations) == b"abc"
    assert echoes(client)


def test_the_kernel_says_who_may_take_a_packet_of_the_programs(monkeypatch, make_port):
    """It alone knows how many run. Wine lets everybody, so here it is said in its stead."""
    from completionport.windows.kernel_port import KernelPort

    port = make_port(1)
    crew = port._new_crew(False)  # of threads that leave them to others, as a server's
    for number in range(3):
        port.post(number)
    with monkeypatch.context() as patch:
        patch.setattr(KernelPort, "wait", lambda *_, **options: False)
        assert port.get(0) is None
        assert port.get_many(3, 0) == []
    assert port._take(crew, 0) is None
    assert [port.get(LONG).transferred for _ in range(3)] == [0, 1, 2]
    assert port.stats()["queued"] == 0


def test_many_packets_are_taken_at_once(make_port, serve_on, dial):
    """What has let them go is no packet for anybody later."""
    port = make_port(1)
    client = dial(serve_on(port, workers=1))
    assert echoes(client)
    for _ in range(20):
        for number in range(5):
            port.post(number)
        assert values(port.get_many(10, LONG)) == list(range(5))
        assert port.get(0) is None
        wait_for_stats(port, queued=0)
        assert echoes(client)
    assert port._wait_until_stuck(0.1) is False


def test_who_is_called_while_it_prepares_its_wait_looks_again(monkeypatch, make_port, serve_on):
    """The main thread, for which a signal comes at the same time."""
    from completionport.windows import alerts

    port = make_port(1)
    serve_on(port, workers=1)
    collect, called = alerts.Alerts._collect, []

    def collecting(descriptors):
        if not called:
            called.append(True)
            _thread.interrupt_main(signal.SIGINT)
            reads = (descriptors._for_files.read, descriptors._for_sockets.read)
            wait_until(lambda: any(one.Internal != alerts.STATUS_PENDING for one in reads))
            port.post("mine")
            wait_until(lambda: port._inside.scheduler._turns, "the worker calls this thread")
        collect(descriptors)

    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        assert port.get(0.01) is None  # its reads are under way
        monkeypatch.setattr(alerts.Alerts, "_collect", collecting)
        done = port.get(10 * LONG)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.transferred == "mine"
