"""The article's echo server, step for step, with the low-level API.

    python examples/article_echo.py [--port 5050] [--engine NAME]

What the article's listing leaves out is here too: the orderly end, on Ctrl-C. Close the listening
socket and every connection, so that all operations complete; one packet for each worker, so that
it ends; then close the port.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any

from completionport import CompletionPort, Handle, Operation, Overlapped

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGBREAK", signal.SIGTERM)}
MESSAGE_SIZE = 1024
QUIT = 0xFFFFFFFF  # the article's number for "this thread ends"


class PerHandleData:
    """What belongs to one connection: it is the completion key (step 6)."""

    def __init__(self, address: Any) -> None:
        self.address = address
        self.handle: Handle | None = None


class PerIoData(Overlapped):
    """What belongs to one operation; the packet gives it back (the article's PER_IO_DATA)."""

    def __init__(self) -> None:
        self.buffer = bytearray(MESSAGE_SIZE)


def worker(port: CompletionPort, connections: set[PerHandleData]) -> None:
    """Serve completed operations until the packet comes that says to end."""
    while True:
        packet = port.get()
        assert packet is not None  # there is no timeout
        transferred, per_handle, per_io, error = packet
        if transferred == QUIT:
            return
        handle = per_handle.handle
        received = per_io.operation is Operation.RECV
        try:
            if error is not None or (received and transferred == 0):
                handle.close()
                connections.discard(per_handle)
            elif received:
                # The same object again: its packet was taken, so it is free.
                handle.send(memoryview(per_io.buffer)[:transferred], overlapped=per_io)
            else:
                handle.recv(per_io.buffer, overlapped=per_io)
        except OSError:  # the peer had gone before the call
            handle.close()
            connections.discard(per_handle)
        except ValueError:  # the main thread has closed the handle: this is the end
            pass


lines: queue.Queue[str] = queue.Queue(1000)


def say(line: str) -> None:
    """Have it printed. Where nobody reads the output, that holds up no client."""
    with contextlib.suppress(queue.Full):
        lines.put_nowait(line)


def printer() -> None:
    while True:
        with contextlib.suppress(OSError):
            # Not by print(): the program's end would wait for a lock that this thread holds.
            os.write(1, f"{lines.get()}{os.linesep}".encode())
        lines.task_done()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=5050)
    parser.add_argument("--engine")
    options = parser.parse_args()
    threading.Thread(target=printer, name="printer", daemon=True).start()

    # Step 1: the port. Steps 2 and 3: one worker for each processor.
    port = CompletionPort(0, engine=options.engine)
    connections: set[PerHandleData] = set()
    workers = [
        threading.Thread(
            # A daemon: where this thread fails, the program ends.
            target=worker,
            args=(port, connections),
            name=f"worker-{number}",
            daemon=True,
        )
        for number in range(os.cpu_count() or 1)
    ]
    for thread in workers:
        thread.start()

    # Step 4: the listening socket.
    listener = socket.create_server(("127.0.0.1", options.port), backlog=128)
    # A signal may reach a worker, and then it does not interrupt accept(): look up now and then.
    listener.settimeout(0.5)
    say(f"Listening on port {listener.getsockname()[1]}")

    ending = threading.Event()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: ending.set())
    while not ending.is_set():
        # Step 5: accept. As in the article this thread blocks here, and never calls get().
        try:
            client, address = listener.accept()
        except TimeoutError:
            continue
        say(f"Accept Client:{address[0]}:{address[1]}")
        client.settimeout(None)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Steps 6 and 7: per-handle data, and its association with the port.
        per_handle = PerHandleData(address)
        per_handle.handle = port.associate(client, per_handle)
        connections.add(per_handle)
        # Step 8: the first receive, with its per-I/O data.
        per_io = PerIoData()
        try:
            per_handle.handle.recv(per_io.buffer, overlapped=per_io)
        except OSError:
            per_handle.handle.close()
            connections.discard(per_handle)
    listener.close()
    for per_handle in list(connections):
        if per_handle.handle is not None:
            per_handle.handle.close()
    for _ in workers:
        port.post(QUIT, None, None)
    for thread in workers:
        thread.join()
    port.close()
    say("Closed")
    deadline = time.monotonic() + 1
    while lines.unfinished_tasks and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    try:
        main()
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        sys.exit(f"article_echo: {error}")
