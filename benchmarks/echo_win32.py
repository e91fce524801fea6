"""The article's echo loop under Win32's names, in one thread: what `completionport.win32` costs.

Each packet goes through the module's own thread; a receive or send that can be done at once does
not. Per-handle data is the socket, per-I/O data the OVERLAPPED.
"""

from __future__ import annotations

import argparse
import os
import socket

from completionport import win32


class PerIo(win32.OVERLAPPED):
    """One operation with its buffer, used again and again."""

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)
        self.sends = False


def serve(port: win32.HANDLE) -> None:
    while True:
        ok, count, sock, io = win32.GetQueuedCompletionStatus(port, win32.INFINITE)
        if not ok or not (count or io.sends):
            win32.closesocket(sock)
            continue
        io.sends = not io.sends
        if io.sends:
            result = win32.WSASend(sock, io.view[:count], 0, io)
        else:
            result = win32.WSARecv(sock, io.buffer, 0, io)
        if result[0] and win32.WSAGetLastError() != win32.WSA_IO_PENDING:
            win32.closesocket(sock)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", help="the best one here when left out")
    parser.add_argument("--buffer-size", type=int, default=1024)
    options = parser.parse_args()
    if options.engine:
        os.environ["COMPLETIONPORT_ENGINE"] = options.engine
    port = win32.CreateIoCompletionPort(win32.INVALID_HANDLE_VALUE, None, 0, 1)
    assert port is not None
    win32.CreateThread(None, 0, serve, port)
    listener = win32.WSASocket(win32.AF_INET, win32.SOCK_STREAM)
    assert listener is not None
    listener.setsockopt(win32.SOL_SOCKET, win32.SO_REUSEADDR, 1)
    assert win32.bind(listener, ("127.0.0.1", options.port)) == 0
    assert win32.listen(listener, 4096) == 0
    while (client := win32.accept(listener)) is not None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        win32.CreateIoCompletionPort(client, port, client, 0)
        io = PerIo(options.buffer_size)
        win32.WSARecv(client, io.buffer, 0, io)


if __name__ == "__main__":
    main()
