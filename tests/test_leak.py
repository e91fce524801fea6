"""Memory stays flat over very many packets."""

from __future__ import annotations

import gc
import threading

from completionport import Strand, WorkerPool
from support import LONG, resident

ROOM = 4 << 20
"""Bytes that the process may grow by, as allocators keep some."""
TURNS = 10
BATCH = 1000
"""Packets that are queued at a time."""


SLOWER = {"selectors": 10, "iocp": 25}
"""By how much an engine in Python has fewer packets; each is a call of the kernel on ``iocp``."""


def test_a_million_packets_through_four_workers_leave_nothing(engine, make_port):
    """Posts, some of them bound to strands, in ten turns of which the first one is the warm-up."""
    port = make_port(4)
    batches = 100 // SLOWER.get(engine, 1)
    counts = [0] * 4  # one for each strand: no lock is needed
    batch_over = threading.Semaphore(0)

    def target(completion):
        if completion.key is not None:
            counts[completion.key] += 1
        elif completion.transferred:
            batch_over.release()

    strands = [Strand(port) for _ in counts]
    with WorkerPool(port, target, 4):
        for turn in range(TURNS):
            for _ in range(batches):
                for number in range(BATCH):
                    which = number & 15
                    if which < 4:
                        port.post(0, which, bytearray(100), strand=strands[which])
                    else:
                        port.post(0, None, bytearray(100))
                for strand in strands:
                    port.post(1, strand=strand)  # behind what stays back
                    assert batch_over.acquire(timeout=LONG)
            if turn == 0:
                gc.collect()
                before = resident()
        gc.collect()
        after = resident()
    assert sum(counts) == TURNS * batches * sum(number & 15 < 4 for number in range(BATCH))
    assert after - before < ROOM, f"{before} bytes before, {after} after"


def test_echoes_through_four_workers_leave_nothing(engine, make_port, make_pair):
    port = make_port(4)
    each = 3000 // SLOWER.get(engine, 1)
    near, far = make_pair("local")
    received = threading.Semaphore(0)

    def target(completion):
        if completion.key is not None and completion.overlapped is not None:
            received.release()

    with port.associate(near, "key") as handle, WorkerPool(port, target, 4):
        for turn in range(TURNS):
            for _ in range(each):
                handle.recv(100)
                far.sendall(b"x" * 100)
                assert received.acquire(timeout=LONG)
            if turn == 0:
                gc.collect()
                before = resident()
        gc.collect()
        after = resident()
    assert after - before < ROOM, f"{before} bytes before, {after} after"
