"""The article's full listing, line for line: an echo server on a completion port.

    python examples/win32_echo.py [PORT]

It runs unchanged on Windows, where `completionport.win32` is the real thing, and on Linux. A line
on its standard input ends it. Output arguments are returned values here, and what HeapAlloc made is
an object; all else stands as and where it does in the listing, but for its slips:

1. ``GetQueuedCompletionStatus`` gets the value of ``sClient`` where it should get its address, so
   the key never arrives. Here the key is returned.
2. ``accept``'s result goes to ``sCient`` and the per-I/O data to ``lpPetIoData``, which nothing
   reads; ``PostQueuedCompletionStauts``, ``winsow2.h``, ``MSGSIE`` and ``OpetationType`` are
   misspelt, and a semicolon is missing.
3. The accepting loop never ends, so nothing behind it is ever reached. Here the listening socket
   is closed when a line comes, and ``accept`` returns.
4. One packet says "end", for however many threads there are, and the port is closed under them;
   the threads' handles stay open. Here there is one packet for each, they are waited for, and their
   handles are closed. Before that every connection is closed.
5. What came is used before anything says that there is a packet. At the end of the port there is
   none.
6. Whether an operation has failed is not looked at: a reset passes for a graceful end, because it
   has no bytes either.
7. ``send`` may take fewer bytes than it is given, which is not noticed, and it blocks the thread.
   Here ``WSASend`` sends all of it, and its completion posts the next receive; so there is a second
   type of operation.
8. When ``WSARecv`` fails at the call no packet comes. Unnoticed, the connection would stay open
   for good, served by nobody.
9. A message that fills the buffer has its zero written behind it. Python needs no zero.
10. Whether ``bind`` and ``listen`` have failed is not looked at: with a port that is taken it is a
    server that nobody reaches.

11. ``printf`` waits for who reads the output, and the accepting loop with it. Here a thread prints.

Two lines of output are new, which say where it listens and that it has ended.
"""

import argparse
import contextlib
import os
import queue
import sys
import threading
import time

from completionport.win32 import *

PORT = 5050
MSGSIZE = 1024

RECV_POSTED = 0
SEND_POSTED = 1  # slip 7


class PER_IO_OPERATION_DATA(OVERLAPPED):
    def __init__(self):
        self.szMessage = bytearray(MSGSIZE)
        self.Buffer = WSABUF(MSGSIZE, self.szMessage)
        self.OperationType = RECV_POSTED


Clients: set[SOCKET] = set()  # slip 4; each step on it is atomic


# slip 11
Lines: queue.Queue[str] = queue.Queue(1000)


def Say(line):
    """Have it printed. Where nobody reads the output, that holds up no client."""
    with contextlib.suppress(queue.Full):
        Lines.put_nowait(line)


def Printer():
    while True:
        with contextlib.suppress(OSError):
            # Not by print(): the program's end would wait for a lock that this thread holds.
            os.write(1, f"{Lines.get()}{os.linesep}".encode())
        Lines.task_done()


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("port", metavar="PORT", nargs="?", type=PortNumber, default=PORT)
    options = parser.parse_args()
    threading.Thread(target=Printer, daemon=True).start()

    wsaData = WSADATA()
    local, client = SOCKADDR_IN(), SOCKADDR_IN()
    Threads = []  # slip 4

    WSAStartup(MAKEWORD(2, 2), wsaData)
    CompletionPort = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, 0)
    sysinfo = GetSystemInfo()
    for _ in range(sysinfo.dwNumberOfProcessors):
        Threads.append(CreateThread(NULL, 0, WorkerThread, CompletionPort, 0, NULL))

    sListen = socket(AF_INET, SOCK_STREAM, 0)
    local.sin_family = AF_INET
    local.sin_port = htons(options.port)
    local.sin_addr.s_addr = htonl(INADDR_ANY)
    # slip 10
    if bind(sListen, local) == SOCKET_ERROR or listen(sListen, 5) == SOCKET_ERROR:
        error = WSAGetLastError()
        reason = "another program does" if error == WSAEADDRINUSE else f"error {error}"
        sys.exit(f"win32_echo: can't listen on port {options.port}: {reason}")
    getsockname(sListen, local)
    Say(f"Listening on port {ntohs(local.sin_port)}")
    CloseHandle(CreateThread(NULL, 0, CloseWhenTold, sListen, 0, NULL))  # slip 3
    while TRUE:
        sClient = accept(sListen, client)
        if sClient is INVALID_SOCKET:  # slip 3
            break
        Say(f"Accept Client:{inet_ntoa(client.sin_addr)}:{ntohs(client.sin_port)}")
        CreateIoCompletionPort(sClient, CompletionPort, sClient, 0)
        Clients.add(sClient)
        lpPerIoData = PER_IO_OPERATION_DATA()
        result, _ = WSARecv(sClient, lpPerIoData.Buffer, 0, lpPerIoData)
        if result == SOCKET_ERROR and WSAGetLastError() != WSA_IO_PENDING:  # slip 8
            Close(sClient)

    for sClient in list(Clients):  # slip 4
        Close(sClient)
    for _ in Threads:
        PostQueuedCompletionStatus(CompletionPort, 0xFFFFFFFF, 0, NULL)
    WaitForMultipleObjects(Threads, TRUE, INFINITE)
    for ThreadHandle in Threads:
        CloseHandle(ThreadHandle)
    CloseHandle(CompletionPort)
    closesocket(sListen)
    WSACleanup()
    Say("Closed")
    deadline = time.monotonic() + 1
    while Lines.unfinished_tasks and time.monotonic() < deadline:
        time.sleep(0.01)
    return 0


def PortNumber(text):
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port number: it is from 0 to 65535")
    return int(text)


def WorkerThread(lpParam):
    CompletionPort = lpParam
    while TRUE:
        ok, dwBytesTransferred, sClient, lpPerIoData = GetQueuedCompletionStatus(
            CompletionPort, INFINITE
        )
        if dwBytesTransferred == 0xFFFFFFFF or lpPerIoData is NULL:  # slip 5
            return 0
        if not ok or (lpPerIoData.OperationType == RECV_POSTED and dwBytesTransferred == 0):
            Close(sClient)  # slip 6
            continue
        if lpPerIoData.OperationType == RECV_POSTED:
            lpPerIoData.OperationType = SEND_POSTED  # slip 7
            lpPerIoData.Buffer.len = dwBytesTransferred
            result, _ = WSASend(sClient, lpPerIoData.Buffer, 0, lpPerIoData)
        else:
            lpPerIoData.OperationType = RECV_POSTED
            lpPerIoData.Buffer.len = MSGSIZE
            result, _ = WSARecv(sClient, lpPerIoData.Buffer, 0, lpPerIoData)
        if result == SOCKET_ERROR and WSAGetLastError() != WSA_IO_PENDING:  # slip 8
            Close(sClient)
    return 0


def Close(sClient):
    Clients.discard(sClient)
    closesocket(sClient)


def CloseWhenTold(sListen):
    if os.read(0, 1):
        closesocket(sListen)


if __name__ == "__main__":
    sys.exit(main())
