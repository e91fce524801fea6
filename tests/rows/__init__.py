"""What a port takes, one description for each: how an operation begins, and how it ends.

tests/test_rules_for_every_row.py holds the port's rules for every row here: a new row gets them
all by one entry. docs/rules.md is made from both (tools/make_rules.py).
"""

from __future__ import annotations

from .base import Row
from .events import After, Changes, Post, Process, Signal
from .files import (
    CloseDescriptor,
    CopyFile,
    FileAllocate,
    FileRead,
    FileReadOn,
    FileScatter,
    FileStatus,
    FileSync,
    FileWrite,
    FileWriteOn,
    Lookup,
    NameStatus,
    Open,
    Submit,
)
from .pipes import (
    FifoRead,
    FifoWrite,
    PipeAccept,
    PipeRead,
    PipeWrite,
    TerminalRead,
    TerminalWrite,
)
from .sockets import (
    Accept,
    Connect,
    Disconnect,
    Receive,
    ReceiveFrom,
    ReceiveMessage,
    Scatter,
    Send,
    SendFile,
    SendMessage,
    SendTo,
    SendZeroCopy,
    Shutdown,
)

__all__ = ["GROUPS", "ROWS", "Row"]

GROUPS: dict[str, list[type[Row]]] = {
    "stream sockets": [
        Receive, Scatter, Accept, Connect, Send, SendZeroCopy, SendFile, Shutdown, Disconnect,
    ],
    "datagram sockets": [ReceiveFrom, SendTo, ReceiveMessage, SendMessage],
    "regular files": [
        FileRead, FileReadOn, FileScatter, FileWrite, FileWriteOn, FileSync, FileAllocate,
        FileStatus, NameStatus, Open, CopyFile, CloseDescriptor,
    ],
    "pipes, FIFOs, terminals": [
        PipeRead, PipeWrite, PipeAccept, FifoRead, FifoWrite, TerminalRead, TerminalWrite,
    ],
    "posted packets": [Post],
    "timers": [After],
    "processes": [Process],
    "signals": [Signal],
    "directories": [Changes],
    "names": [Lookup],
    "any callable": [Submit],
}  # fmt: skip
ROWS = {row.id: row for rows in GROUPS.values() for row in rows}
