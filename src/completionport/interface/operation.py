"""The kinds of operation that a handle, or the port, carries out."""

from __future__ import annotations

import enum


class Operation(enum.IntEnum):
    """What an Overlapped was last used for (the article's ``OperationType``)."""

    NONE = 0
    """Not used yet."""
    ACCEPT = 1
    """``AcceptEx``"""
    CONNECT = 2
    """``ConnectEx``"""
    RECV = 3
    """``WSARecv``"""
    SEND = 4
    """``WSASend``"""
    READ = 5
    """``ReadFile``"""
    WRITE = 6
    """``WriteFile``"""
    DISCONNECT = 7
    """``DisconnectEx``"""
    SHUTDOWN = 8
    """``shutdown``"""
    SENDFILE = 9
    """``TransmitFile``"""
    RECVFROM = 10
    """``WSARecvFrom``"""
    SENDTO = 11
    """``WSASendTo``"""
    RECVMSG = 12
    """``WSARecvMsg``"""
    SENDMSG = 13
    """``WSASendMsg``"""
    FSYNC = 14
    """``FlushFileBuffers``"""
    ALLOCATE = 15
    """``SetFileInformationByHandle`` with ``FileEndOfFileInfo``"""
    OPEN = 16
    """``CreateFile``"""
    STAT = 17
    """``GetFileInformationByHandle``"""
    CLOSE = 18
    """``CloseHandle``"""
    COPY = 19
    """``CopyFileEx``"""
    PROCESS = 20
    """``RegisterWaitForSingleObject`` with a process"""
    CHANGES = 22
    """``ReadDirectoryChangesW``"""
    RESOLVE = 23
    """``GetAddrInfoEx``"""
    CALL = 24
    """``QueueUserWorkItem``"""
