"""A chat server: every line of one client goes to all others.

    python examples/chat.py [--port 5050] [--engine NAME]

All connections share one set, guarded by a lock, because callbacks of different connections may run
on different workers at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading

from completionport import Connection, ConnectionClosed, Handler, Server

LONGEST_LINE = 4096


class Chat(Handler):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.members: set[Connection] = set()

    def connected(self, connection: Connection) -> None:
        connection.state = b""  # the beginning of a line whose end has not come yet
        with self.lock:
            self.members.add(connection)
        self.tell(f"* {self.name(connection)} has come\n".encode())

    def received(self, connection: Connection, data: bytes) -> None:
        *lines, rest = (connection.state + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            connection.close()
            return
        connection.state = rest
        for line in lines:
            self.tell(f"{self.name(connection)}: ".encode() + line + b"\n", but=connection)

    def closed(self, connection: Connection, error: Exception | None) -> None:
        with self.lock:
            self.members.discard(connection)
        self.tell(f"* {self.name(connection)} has gone\n".encode())

    def tell(self, text: bytes, but: Connection | None = None) -> None:
        with self.lock:
            members = [member for member in self.members if member is not but]
        for member in members:
            with contextlib.suppress(ConnectionClosed):  # its closed() is on the way
                member.send(text)

    @staticmethod
    def name(connection: Connection) -> str:
        # One that has gone before it was welcomed has no address.
        return str(connection.peername[1] if connection.peername else "somebody")


class ChatServer(Server):
    def start(self) -> None:
        # Here and not before serve_forever: who reads it may end the server by a signal.
        print(f"Listening on port {self.address[1]}", flush=True)
        super().start()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=5050)
    parser.add_argument("--engine")
    options = parser.parse_args()
    ChatServer(Chat(), port=options.port, engine=options.engine).serve_forever()


if __name__ == "__main__":
    try:
        main()
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        sys.exit(f"chat: {error}")
