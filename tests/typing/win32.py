"""What type checkers say of a program under Win32's names. It is checked, and never run."""

from __future__ import annotations

from typing import assert_type

from completionport.win32 import *


class PER_IO_DATA(OVERLAPPED):
    def __init__(self) -> None:
        self.Buffer = WSABUF(1024, bytearray(1024))


def program() -> int:
    WSAStartup(MAKEWORD(2, 2), WSADATA())
    port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, 0)
    if port == NULL:
        return GetLastError()
    listener = WSASocket(AF_INET, SOCK_STREAM, IPPROTO_TCP)
    if listener == INVALID_SOCKET:
        return WSAGetLastError()
    local = SOCKADDR_IN()
    local.sin_family = AF_INET
    local.sin_port = htons(5050)
    local.sin_addr.s_addr = htonl(INADDR_ANY)
    if bind(listener, local) == SOCKET_ERROR or listen(listener, SOMAXCONN) == SOCKET_ERROR:
        return WSAGetLastError()
    client = accept(listener, local)
    assert_type(client, SOCKET)
    if client is INVALID_SOCKET:
        return WSAGetLastError()
    if CreateIoCompletionPort(client, port, client, 0) is NULL:
        return GetLastError()
    data = PER_IO_DATA()
    result, received = WSARecv(client, data.Buffer, 0, data)
    if result == SOCKET_ERROR and WSAGetLastError() != WSA_IO_PENDING:
        closesocket(client)
    ok, size, key, overlapped = GetQueuedCompletionStatus(port, INFINITE)
    assert_type(ok, bool)
    if not ok and overlapped is NULL:
        return WAIT_TIMEOUT
    PostQueuedCompletionStatus(port, 0, key, NULL)
    ok, entries = GetQueuedCompletionStatusEx(port, 64, INFINITE, FALSE)
    assert_type(entries, list[OVERLAPPED_ENTRY])
    file = CreateFile(
        "data", GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, FILE_FLAG_OVERLAPPED, NULL
    )
    assert_type(file, HANDLE)
    CreateIoCompletionPort("data", port, 0, 0)  # type: ignore[arg-type]
    CloseHandle(file)
    closesocket(listener)
    return WSACleanup()
