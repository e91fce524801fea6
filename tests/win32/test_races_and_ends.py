"""Many threads at a time, and the end of the process with everything open."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import Counter

import pytest

from completionport import win32
from win32_support import (
    LONG,
    WINE,
    collect_garbage,
    connected_pair,
    started,
    take,
    wait_until,
)

SEED = int(os.environ.get("COMPLETIONPORT_SEED", "20261124"))


class Counted(win32.OVERLAPPED):
    """An operation that counts its packets."""

    def __init__(self):
        self.packets = 0


@pytest.mark.parametrize("number", range(3))
def test_each_operation_gives_one_packet_whatever_happens_to_it(make_port, closing, number):
    """Receives, sends, cancels and closes from several threads, on sockets that they share."""
    port = make_port()
    pairs = [connected_pair() for _ in range(6)]
    sockets = [closing(sock) for pair in pairs for sock in pair]
    for sock in sockets:
        assert win32.CreateIoCompletionPort(sock, port, sock, 0) is port
    begun: list[Counted] = []
    acted: list[str] = []
    over = threading.Event()
    lock = threading.Lock()

    def act(seed):
        choices = random.Random(seed)
        mine = []
        for _ in range(150):
            sock = choices.choice(sockets)
            what = choices.randrange(10)
            if what < 5:
                operation = Counted()
                if started(win32.WSARecv(sock, bytearray(choices.randrange(1, 50)), 0, operation)):
                    mine.append(operation)
            elif what < 8:
                operation = Counted()
                if started(win32.WSASend(sock, bytes(choices.randrange(1, 50)), 0, operation)):
                    mine.append(operation)
            elif what < 9:
                win32.CancelIoEx(sock, choices.choice(mine) if mine else None)
            elif choices.randrange(15) == 0 and not WINE:
                # Wine forgets a send that meets a closesocket of another thread.
                win32.closesocket(sock)
        with lock:
            begun.extend(mine)
            acted.append(seed)
        if WINE:
            # Its own heap breaks now and then when a thread ends with operations under way.
            over.wait(LONG / 1000)

    def work():
        while (packet := take(port)).key != "end":
            with lock:
                packet.overlapped.packets += 1

    workers = [threading.Thread(target=work) for _ in range(2)]
    actors = [
        threading.Thread(target=act, args=(f"{SEED} {number} {one}",), daemon=True)
        for one in range(4)
    ]
    for thread in (*workers, *actors):
        thread.start()
    wait_until(lambda: len(acted) == len(actors))
    for sock in sockets:
        win32.closesocket(sock)
    wait_until(lambda: all(operation.packets for operation in begun))
    over.set()
    for thread in actors:
        thread.join(LONG / 1000)
    for _ in workers:
        win32.PostQueuedCompletionStatus(port, 0, "end", None)
    for thread in workers:
        thread.join(LONG / 1000)
        assert not thread.is_alive()
    assert len(begun) > 100
    assert Counter(operation.packets for operation in begun) == {1: len(begun)}


def test_two_threads_that_close_one_socket(port, closing):
    for _ in range(50):
        near, far = connected_pair()
        closing(near)
        closing(far)
        win32.CreateIoCompletionPort(near, port, "key", 0)
        operation = Counted()
        assert started(win32.WSARecv(near, bytearray(1), 0, operation))
        answers = []

        def close(sock=near, answers=answers):
            answers.append(win32.closesocket(sock))

        threads = [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [win32.SOCKET_ERROR, 0]
        assert take(port).overlapped is operation
    assert win32.GetQueuedCompletionStatus(port, 0)[0] is False


def run(script, system):
    environment = dict(os.environ)
    if system != "windows":
        environment["COMPLETIONPORT_ENGINE"] = system
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG / 1000,
    )


OPEN = """
from completionport.win32 import *
sListen = WSASocket(AF_INET, SOCK_STREAM)
bind(sListen, ("127.0.0.1", 0))
listen(sListen, 5)
sPeer = WSASocket(AF_INET, SOCK_STREAM)
connect(sPeer, sListen.getsockname())
sClient = accept(sListen)
port = CreateIoCompletionPort(sClient, NULL, "key", 0)
overlapped, accepting = OVERLAPPED(), OVERLAPPED()
WSARecv(sClient, bytearray(10), 0, overlapped)
AcceptEx(sListen, WSASocket(AF_INET, SOCK_STREAM), bytearray(64), 0, 32, 32, accepting)
"""


def test_a_program_can_end_with_everything_open(system):
    script = f"""{OPEN}
CreateThread(NULL, 0, lambda port: GetQueuedCompletionStatus(port, INFINITE), port)
print("end", flush=True)
"""
    done = run(script, system)
    assert (done.returncode, done.stdout.strip()) == (0, "end"), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_a_child_of_fork_can_begin_anew(system):
    script = f"""
import os
OPEN = {OPEN!r}
exec(OPEN)
child = os.fork()
if child == 0:
    try:
        PostQueuedCompletionStatus(port, 0, 1, 2)
    except Exception as error:
        print(type(error).__name__, flush=True)
    exec(OPEN)
    send(sPeer, b"x")
    print(GetQueuedCompletionStatus(port, 5000)[1], flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
send(sPeer, b"xy")
print(GetQueuedCompletionStatus(port, 5000)[1])
"""
    done = run(script, system)
    assert done.stdout.split() == ["PortForked", "1", "0", "2"], done.stderr


def test_what_is_dropped_while_it_is_under_way_stays_until_the_system_is_done(closing):
    """No port, no reference of the program: and memory that the system still writes to."""
    for _ in range(30):
        near, far = connected_pair()
        for _ in range(5):
            assert started(win32.WSARecv(near, bytearray(1000), 0, win32.OVERLAPPED()))
        far.sendall(bytes(1000))
        win32.closesocket(near)
        win32.closesocket(far)
        collect_garbage()
        blocks = [bytearray(size) for size in (16, 32, 48, 64, 1000, 1048)] * 20
        assert not any(map(any, blocks))
