"""Work for `race_check.sh`: every part of a port and of a server from many threads at once.

It asserts little: the tests do that. It is there for ThreadSanitizer to watch.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import threading
import time

from completionport import (
    CompletionPort,
    ConnectionClosed,
    HandleClosed,
    Handler,
    OperationPending,
    Overlapped,
    PortClosed,
    Server,
    Strand,
)

SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0


def threads(*functions):
    """Run all of them at once, and pass on what one of them raises."""
    raised = []

    def call(function):
        try:
            function()
        except BaseException as error:
            raised.append(error)
            raise

    running = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if raised:
        raise raised[0]


def until(end):
    while time.monotonic() < end:
        yield random.random()


class Echo(Handler):
    """Sends back, and has connections meddle with each other."""

    def __init__(self):
        self.others = []

    def connected(self, connection):
        connection.state = [0]
        self.others.append(connection)

    def received(self, connection, data):
        connection.state = [connection.state[0] + len(data)]
        with contextlib.suppress(ConnectionClosed):
            connection.send(data)
            other = random.choice(self.others)
            chance = random.random()
            if chance < 0.05:
                other.pause()
                other.resume()
            elif chance < 0.07:
                other.send(b"y" * random.choice([10, 100_000]))
            elif chance < 0.075:
                other.abort()
            elif chance < 0.08:
                other.close()
            elif chance < 0.2:
                _ = (other.state, other.closing, other.send_queue_size, other.fileno())

    def drained(self, connection):
        connection.state = [0]


def serve(engine):
    """A server under load, its limits, and closing it with all of that under way."""
    end = time.monotonic() + SECONDS
    server = Server(
        Echo(),
        "127.0.0.1",
        0,
        workers=4,
        concurrency=4,
        engine=engine,
        idle_timeout=0.2,
        send_limit=50_000,
        max_connections=6,
    )
    server.start()

    def client():
        for chance in until(end):
            with contextlib.suppress(OSError), socket.create_connection(server.address, 5) as sock:
                sock.settimeout(0.5)
                for _ in range(int(chance * 40)):
                    sock.sendall(b"x" * random.choice([1, 100, 20_000]))
                    if chance < 0.9:
                        sock.recv(30_000)

    def watch():
        for _ in until(end):
            server.stats()
            time.sleep(0.001)

    def stop():
        time.sleep(SECONDS * 0.9)
        server.stop(0.1)

    threads(client, client, client, client, watch, stop)


def operate(engine):
    """Operations, strands and blocking in many threads; then the port is closed under them."""
    end = time.monotonic() + SECONDS
    port = CompletionPort(2, engine=engine)
    strand = Strand(port)
    pairs = [socket.socketpair() for _ in range(4)]
    handles = [
        (port.associate(one, 1, strand=strand), port.associate(two, 2)) for one, two in pairs
    ]
    shared = [Overlapped() for _ in range(4)]

    def take():
        with contextlib.suppress(PortClosed):
            while True:
                chance = random.random()
                done = port.get(random.choice([None, 0, 0.0005]))
                if done is None:
                    continue
                if chance < 0.1:
                    port.get_many(3, 0)
                elif chance < 0.15:
                    with port.blocking():
                        time.sleep(0.002)
                elif chance < 0.3:
                    with contextlib.suppress(RuntimeError):
                        strand.release()
                elif chance < 0.32:
                    time.sleep(0.003)  # so that the monitor has to find it
                _ = strand.queued

    def start():
        refused = (PortClosed, HandleClosed, OperationPending, OSError)
        for chance in until(end):
            one, two = random.choice(handles)
            overlapped = random.choice([None, *shared])
            with contextlib.suppress(*refused):
                if chance < 0.4:
                    one.send(b"x" * 100, overlapped=overlapped)
                elif chance < 0.8:
                    two.recv(random.choice([0, 50, 200]), overlapped=overlapped)
                elif chance < 0.85:
                    two.cancel()
                elif chance < 0.95:
                    port.post(chance, strand=random.choice([None, strand]))
                else:
                    time.sleep(0.001)

    def meddle():
        for _ in until(end):
            overlapped = random.choice(shared)
            overlapped.cancel()
            _ = (overlapped.error, overlapped.handle, overlapped.transferred, repr(overlapped))
            with contextlib.suppress(OSError, OperationPending, ValueError):
                overlapped.result()
            with contextlib.suppress(PortClosed):
                port.stats()
            time.sleep(0.0005)

    def set_timers():
        timers = []
        for chance in until(end):
            with contextlib.suppress(PortClosed):
                bound = random.choice([None, strand])
                timers.append(port.post_after(chance * 0.01, chance, strand=bound))
                if chance < 0.5:
                    random.choice(timers).cancel()
                elif chance < 0.6:
                    port.post_at(time.monotonic() - chance)
                elif chance < 0.61:
                    threads(*(timer.cancel for timer in timers[-3:] * 2))
            _ = [timer.pending for timer in timers[-5:]]
            del timers[:-50]

    def close_handles():
        time.sleep(SECONDS * 0.7)
        for one, two in handles[:2]:
            threads(one.close, one.close, two.close)
        time.sleep(SECONDS * 0.2)
        threads(port.close, port.close, handles[2][0].close, handles[3][0].close)

    threads(
        take, take, take, take, start, start, start, set_timers, set_timers, meddle, close_handles
    )
    for one, two in pairs:
        one.close()
        two.close()


def come_and_go(engine):
    """Short ports, each closed by another thread than those that wait in it."""
    for _ in until(time.monotonic() + SECONDS / 2):
        port = CompletionPort(1, engine=engine)

        def work(port=port):
            with contextlib.suppress(PortClosed):
                while True:
                    port.post(port.get(0.001) is not None)
                    port.get()

        threads(work, work, work, lambda port=port: (time.sleep(0.003), port.close()))


if __name__ == "__main__":
    for part in serve, operate, come_and_go:
        print(f"{part.__name__} on {sys.argv[1]}", flush=True)
        part(sys.argv[1])
