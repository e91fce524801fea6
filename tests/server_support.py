"""What the tests of the server have in common: handlers that write down what they are told."""

from __future__ import annotations

import contextlib
import select
import socket
import time

from completionport import Handler
from support import LONG, RESET_ON_CLOSE, wait_until


class Silent(Handler):
    """Takes what comes, and says nothing."""

    def received(self, connection, data):
        pass


class Recorder(Handler):
    """Writes down every callback."""

    def __init__(self):
        self.events = []
        self.connections = []

    def connected(self, connection):
        self.connections.append(connection)
        self.events.append(("connected", connection, None))

    def received(self, connection, data):
        self.events.append(("received", connection, data))

    def end_of_stream(self, connection):
        self.events.append(("end_of_stream", connection, None))
        connection.close()

    def drained(self, connection):
        self.events.append(("drained", connection, None))

    def closed(self, connection, error):
        self.events.append(("closed", connection, error))

    def names(self, connection=None):
        """The callbacks in order, several of the same kind in a row as one."""
        names = [name for name, of, _ in self.events if connection in (None, of)]
        return [name for at, name in enumerate(names) if names[at - 1 : at] != [name]]

    def data(self, connection=None):
        return b"".join(
            value
            for name, of, value in self.events
            if name == "received" and connection in (None, of)
        )

    def count(self, name):
        return sum(event == name for event, _, _ in self.events)

    def first(self, timeout=LONG):
        return wait_until(lambda: self.connections, "a connection", timeout)[0]

    def end(self, connection=None):
        """The error of the last callback, once it has come."""
        wanted = wait_until(
            lambda: [
                event
                for event in self.events
                if event[0] == "closed" and connection in (None, event[1])
            ],
            "closed() was called",
        )
        return wanted[0][2]


class Echo(Recorder):
    def received(self, connection, data):
        super().received(connection, data)
        connection.send(data)


def reset(client):
    """Close with a RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()


def fill(client, most=64_000_000):
    """Send until the other side takes no more; how many bytes that were."""
    sent = 0
    client.setblocking(False)
    chunk = bytes(65536)
    quiet_since = time.monotonic()
    while sent < most and time.monotonic() - quiet_since < 0.3:
        with contextlib.suppress(BlockingIOError):
            sent += client.send(chunk)
            quiet_since = time.monotonic()
            continue
        select.select([], [client], [], 0.02)
    client.settimeout(LONG)
    return sent
