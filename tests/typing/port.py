"""What type checkers say of a program on the port. It is checked, and never run.

A line with `type: ignore` is one that they have to refuse: both tell when it is not needed.
"""

from __future__ import annotations

import os
import socket
from typing import Any, assert_type

from completionport import (
    Completion,
    CompletionPort,
    Connection,
    DatagramHandler,
    Endpoint,
    Handler,
    Overlapped,
    Server,
    Strand,
    WorkerPool,
)


class Client:
    def __init__(self) -> None:
        self.count = 0


class Counting(Handler):
    def connected(self, connection: Connection[Client]) -> None:
        connection.state = Client()

    def received(self, connection: Connection[Client], data: bytes) -> None:
        connection.state.count += len(data)
        assert_type(connection.state, Client)
        connection.state = 5  # type: ignore[assignment]
        connection.send([data, memoryview(data)])


class Untyped(Handler):
    def received(self, connection: Connection, data: bytes) -> None:
        assert_type(connection.state, Any)
        connection.state = data


class Datagrams(DatagramHandler):
    def received(self, endpoint: Endpoint[Client], data: bytes, address: Any) -> None:
        endpoint.state.count += endpoint.send(data, address)


class PerIo(Overlapped):
    purpose = "greeting"


def add(first: int, second: int = 2) -> int:
    return first + second


def take(done: Completion[str]) -> None:
    assert_type(done.key, str)
    transferred, key, overlapped, error = done
    assert_type(key, str)


def program(port: CompletionPort, near: socket.socket, path: os.PathLike[str]) -> None:
    assert_type(port.get(), Completion[Any])
    assert_type(port.get(None), Completion[Any])
    assert_type(port.get(1), Completion[Any] | None)
    assert_type(port.get(timeout=0.5), Completion[Any] | None)
    assert_type(port.get_many(16), list[Completion[Any]])
    named: Completion[str] = port.get()
    take(named)
    handle = port.associate(near, "key", strand=Strand(port))
    handle.recv(1024)
    handle.recv(bytearray(16))
    handle.recv([bytearray(16), memoryview(bytearray(16))])
    handle.recv(b"what can't be written")  # type: ignore[arg-type]
    handle.recvfrom(b"nor this")  # type: ignore[arg-type]
    handle.recvmsg([b"nor these"])  # type: ignore[list-item]
    handle.read(b"nor this")  # type: ignore[arg-type]
    handle.send(b"this is read only")
    mine = PerIo()
    handle.send([b"so", bytearray(b"are"), memoryview(b"these")], overlapped=mine)
    port.submit(add, 1)
    port.submit(add, 1, 2, key="sum")
    port.submit(add, "1")  # type: ignore[arg-type]
    port.submit(add, 1, 2, 3)  # type: ignore[arg-type]
    port.open(path, os.O_RDONLY, key="file")
    WorkerPool(port, take, 4).stop()
    Server(Counting(), port=0).serve_forever()
    Server(Datagrams())  # type: ignore[arg-type]
