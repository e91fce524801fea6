"""What the tests of servers on one port have in common."""

from __future__ import annotations

from completionport import DatagramHandler, Handler
from support import read_exactly


class Echo(Handler):
    def received(self, connection, data):
        connection.send(data)


class EchoDatagrams(DatagramHandler):
    def received(self, endpoint, data, address):
        endpoint.send(data, address)


def echoes(client, data=b"hello"):
    client.sendall(data)
    return read_exactly(client, len(data)) == data


def echoes_datagram(client, data=b"hello"):
    client.send(data)
    return client.recv(65536) == data


def values(packets):
    return [packet.transferred for packet in packets]


def is_worker(thread):
    return thread.name.startswith("completionport-worker")
