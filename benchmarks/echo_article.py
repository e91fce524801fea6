"""The article's echo loop on the low-level API, in one thread.

One `get()` for each packet, every receive and send posted from Python, and for each connection
one object for its handle (the completion key) and one for its I/O (the Overlapped), both kept
for as long as the connection lives.
"""

from __future__ import annotations

import argparse
import socket

from completionport import CompletionPort, Handle, Operation, Overlapped


class PerHandle:
    """The completion key: what belongs to one connection."""

    __slots__ = ("handle",)

    handle: Handle


class PerIo(Overlapped):
    """One operation with its buffer, used again and again."""

    __slots__ = ("buffer", "view")

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)


def welcome(port: CompletionPort, client: socket.socket, size: int) -> None:
    """Bind a new connection to the port and post its first receive."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = PerHandle()
    key.handle = port.associate(client, key)
    io = PerIo(size)
    try:
        key.handle.recv(io.buffer, 0, io)
    except OSError:
        key.handle.close()


def serve(port: CompletionPort, listener: socket.socket, size: int) -> None:
    listening = port.associate(listener, None)
    accepting = listening.accept()
    get = port.get
    while True:
        done = get()
        assert done is not None
        transferred, key, io, error = done
        if io is accepting:
            if error is None:
                welcome(port, io.result(), size)
            listening.accept(accepting)
            continue
        try:
            # A broken connection shows in the packet, or at once when the next operation is posted.
            if error is not None or not (transferred or io.operation is Operation.SEND):
                key.handle.close()
            elif io.operation is Operation.RECV:
                key.handle.send(io.view[:transferred], 0, io)
            else:
                key.handle.recv(io.buffer, 0, io)
        except OSError:
            key.handle.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", help="the best one here when left out")
    parser.add_argument("--buffer-size", type=int, default=1024)
    options = parser.parse_args()
    address = ("127.0.0.1", options.port)
    with (
        socket.create_server(address, backlog=4096) as listener,
        CompletionPort(engine=options.engine) as port,
    ):
        serve(port, listener, options.buffer_size)


if __name__ == "__main__":
    main()
