"""A TCP proxy: two handles for each client, one to it and one to the target.

    python examples/tcp_proxy.py --target HOST:PORT [--port 5050] [--engine NAME]

Low-level API: accept and connect are operations like any other, so one thread serves everybody.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
from typing import Any

from completionport import Completion, CompletionPort, Handle, Operation, Overlapped

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGBREAK", signal.SIGTERM)}
SIZE = 16384


class Pipe:
    """One direction: what comes from `source` goes to `sink`. It is the key of its source."""

    def __init__(self) -> None:
        self.source: Handle
        self.sink: Handle
        self.back: Pipe
        self.ended = False


class Transfer(Overlapped):
    """Per-I/O data: the direction, and the buffer that is received into and sent from."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.buffer = bytearray(SIZE)


class Proxy:
    def __init__(
        self, port: CompletionPort, listener: socket.socket, family: int, target: Any
    ) -> None:
        self.port = port
        self.family = family
        self.target = target
        self.listener = port.associate(listener, None)
        self.listener.accept()

    def run(self) -> None:
        while True:
            packet = self.port.get()
            if packet is not None:
                self.serve(packet)

    def serve(self, packet: Completion) -> None:
        transferred, _, overlapped, error = packet
        if overlapped.operation is Operation.ACCEPT:
            self.listener.accept()
            if error is None:
                self.open(overlapped.result())
            return
        if overlapped.operation is Operation.DISCONNECT:
            return
        pipe = overlapped.pipe
        try:
            if error is not None:
                self.close(pipe)
            elif overlapped.operation is Operation.CONNECT:
                for direction in (pipe, pipe.back):
                    transfer = Transfer(direction)
                    direction.source.recv(transfer.buffer, overlapped=transfer)
            elif overlapped.operation is Operation.SEND:
                pipe.source.recv(overlapped.buffer, overlapped=overlapped)
            elif transferred:
                pipe.sink.send(memoryview(overlapped.buffer)[:transferred], overlapped=overlapped)
            else:
                self.end(pipe)
        except (OSError, ValueError):  # a peer has gone, or the other direction closed both
            self.close(pipe)

    def open(self, client: socket.socket) -> None:
        upstream = socket.socket(self.family)
        for sock in (client, upstream):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        to, back = Pipe(), Pipe()
        to.source = back.sink = self.port.associate(client, to)
        to.sink = back.source = self.port.associate(upstream, back)
        to.back, back.back = back, to
        try:
            to.sink.connect(self.target, overlapped=Transfer(to))
        except OSError:
            self.close(to)

    def end(self, pipe: Pipe) -> None:
        """The source sends no more: say so to the sink; after both directions, close."""
        pipe.ended = True
        if pipe.back.ended:
            self.close(pipe)
        else:
            pipe.sink.file.shutdown(socket.SHUT_WR)

    @staticmethod
    def close(pipe: Pipe) -> None:
        pipe.source.close()
        pipe.sink.close()


def host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT with a port from 1 to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", required=True, type=host_and_port, metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=5050)
    parser.add_argument("--engine")
    options = parser.parse_args()
    # Once, and not for each client: it may take long, and one thread serves them all.
    host, number = options.target
    try:
        found = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)
    except OSError as error:
        sys.exit(f"tcp_proxy: can't find {host}: {error.strerror}")
    family, *_, target = found[0]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)
    with (
        CompletionPort(engine=options.engine) as port,
        socket.create_server(("127.0.0.1", options.port), backlog=128) as listener,
    ):
        print(f"Listening on port {listener.getsockname()[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            Proxy(port, listener, family, target).run()


if __name__ == "__main__":
    try:
        main()
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        sys.exit(f"tcp_proxy: {error}")
