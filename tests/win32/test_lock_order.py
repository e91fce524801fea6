"""Locks of two files at a time: a listening socket and the one that it accepts into."""

from __future__ import annotations

import contextlib
import os
import random
import threading

import pytest

from completionport import win32
from win32_support import LONG, ROOM, Packet, assert_quiet, take, wait_until

SEED = int(os.environ.get("COMPLETIONPORT_SEED", "20261130"))


@pytest.fixture
def bound(listener, port):
    assert win32.CreateIoCompletionPort(listener, port, "listener", 0) is port
    return listener


def accept_ex(listener, sock, overlapped, room=0):
    return win32.AcceptEx(
        listener, sock, bytearray(room + 2 * ROOM), room, ROOM, ROOM, overlapped
    ) or (win32.GetLastError() == win32.ERROR_IO_PENDING)


def object_of(system, sock):
    if system == "windows":
        pytest.skip("Windows has locks of its own")
    from completionport.win32.emulation.lookup import file_of_socket

    return file_of_socket(sock)


def test_a_thread_that_closes_the_accepting_socket_waits_for_the_listener_without_its_lock(
    system, port, bound, closing
):
    """The manager's thread has both while it makes a connection of the accepting socket."""
    sock = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
    overlapped = win32.OVERLAPPED()
    assert accept_ex(bound, sock, overlapped)
    listener, accepting = object_of(system, bound), object_of(system, sock)
    thread = threading.Thread(target=win32.closesocket, args=(sock,), daemon=True)
    with listener.lock:  # as the manager's thread has it
        thread.start()
        wait_until(lambda: accepting.closed)
        assert accepting.lock.acquire(timeout=LONG / 1000), "the two wait for each other"
        accepting.lock.release()
    thread.join(LONG / 1000)
    assert not thread.is_alive()
    assert take(port) == Packet(False, 0, "listener", overlapped, win32.ERROR_OPERATION_ABORTED)
    assert_quiet(port)


def test_two_listeners_that_are_to_accept_into_each_other(listener, closing):
    other = closing(win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM))
    assert win32.bind(other, ("127.0.0.1", 0)) == 0
    assert win32.listen(other, 5) == 0
    answers = []

    def work(one, two):
        for _ in range(200):
            answers.append(accept_ex(one, two, win32.OVERLAPPED()))

    pairs = [(listener, other), (other, listener)]
    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG / 1000)
        assert not thread.is_alive()
    assert len(answers) == 400


@pytest.mark.parametrize("room", [0, 20])
def test_each_accept_gives_its_packet_whichever_socket_is_closed_while_clients_come(
    port, bound, closing, room
):
    """closesocket of accepting sockets, and of the listener at the end, while clients connect."""
    choices = random.Random(f"{SEED} {room}")
    print(f"seed {SEED}")
    begun, taken = [], []
    over = threading.Event()

    def dial():
        while not over.is_set():
            sock = win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM)
            sock.settimeout(1)
            with contextlib.suppress(OSError):
                sock.connect(address)
                sock.send(b"hello")
            win32.closesocket(sock)

    def collect():
        while (packet := take(port)).key != "end":
            taken.append(packet)

    address = bound.getsockname()
    threads = [threading.Thread(target=work, daemon=True) for work in (dial, collect)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        sock = win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM)
        overlapped = win32.OVERLAPPED()
        if accept_ex(bound, sock, overlapped, room):
            begun.append(overlapped)
        if choices.randrange(2):
            wait_until(lambda: len(taken) >= len(begun) - choices.randrange(1, 4))
        win32.closesocket(sock)
    win32.closesocket(bound)
    wait_until(lambda: len(taken) >= len(begun))
    over.set()
    win32.PostQueuedCompletionStatus(port, 0, "end", None)
    for thread in threads:
        thread.join(LONG / 1000)
        assert not thread.is_alive()
    assert len(begun) == 300
    assert {packet.overlapped for packet in taken} == set(begun)
    assert len(taken) == len(begun)
    expected = {0, win32.ERROR_OPERATION_ABORTED}
    expected |= {win32.ERROR_CONNECTION_ABORTED, win32.ERROR_NETNAME_DELETED} if room else set()
    assert {packet.error for packet in taken} <= expected
