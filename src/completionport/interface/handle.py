"""A file that belongs to a port, and what is asked of it: documented once, for every engine.

`Handle` and `Overlapped` carry the documentation. The work is done by classes that are derived from
them, in ``completionport.native`` (compiled: io_uring, epoll), ``completionport.windows`` (iocp)
and ``completionport.portable`` (the standard library only).
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Callable, Iterable, Sequence
from mmap import mmap
from typing import Any, ClassVar, Protocol, Self, TypeAlias

from .operation import Operation
from .unique import Unique

Buffer: TypeAlias = "bytes | bytearray | memoryview | array[Any] | mmap"
Buffers: TypeAlias = "Buffer | Sequence[Buffer]"
WritableBuffer: TypeAlias = "bytearray | memoryview | array[Any] | mmap"
WritableBuffers: TypeAlias = "WritableBuffer | Sequence[WritableBuffer]"
Path: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
Ancillary: TypeAlias = "Iterable[tuple[int, int, Buffer]]"


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Overlapped(Unique):
    """One operation: what it is, whether it is under way, what came of it.

    Made to be subclassed: attributes of a subclass are the per-I/O data of the
    article's ``PER_IO_DATA``, and the packet gives the same object back, so there is no
    need for ``CONTAINING_RECORD``. One object can be used again once its packet was taken.
    """

    __slots__ = ()

    _implementation: ClassVar[type[Overlapped]]
    """What a call of this class makes; `completionport.engines` says which."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls is Overlapped:
            return cls._implementation.__new__(cls._implementation)  # type: ignore[return-value]
        return super().__new__(cls)

    @property
    def operation(self) -> Operation:
        """What the object was last used for."""
        raise NotImplementedError

    @property
    def handle(self) -> Handle | None:
        """The handle it was last used with; None for an operation of the port itself."""
        raise NotImplementedError

    @property
    def pending(self) -> bool:
        """True from the call until the packet was taken."""
        raise NotImplementedError

    @property
    def transferred(self) -> int:
        """Bytes moved, as in the packet."""
        raise NotImplementedError

    @property
    def error(self) -> BaseException | None:
        """What went wrong, as in the packet."""
        raise NotImplementedError

    def result(self) -> Any:
        """What the operation gave (``GetOverlappedResult``).

        For ``accept`` the new socket, for ``recv`` and ``read`` of a size the bytes,
        for ``recvfrom`` and ``recvmsg`` a tuple, for ``stat`` an `os.stat_result`, for ``open``
        a descriptor number, for ``getaddrinfo`` and ``submit`` what the function returned, for
        ``read_changes`` a list of `Change`, for all others the number of bytes.
        Raises the packet's error, and `OperationPending` while the packet was not taken.
        """
        raise NotImplementedError

    def cancel(self) -> bool:
        """Cancel the operation (``CancelIoEx``); False when it was not pending."""
        raise NotImplementedError

    def _begin(self, handle: Handle, operation: Operation) -> None:
        """Claim the object for one operation; `OperationPending` when it is in use."""
        raise NotImplementedError

    def _finish(self, transferred: int, error: BaseException | None, value: Any) -> None:
        """Give the object back to the program with the outcome of its operation."""
        raise NotImplementedError

    def _prepare(
        self, transferred: int, error: BaseException | None, value: Any
    ) -> Callable[[], None]:
        """What does the same as `_finish` in one step of the interpreter, once it is called."""
        raise NotImplementedError

    def _withdraw(self) -> None:
        """Give the object back as if the operation had never been asked for."""
        raise NotImplementedError


class Handle(Unique):
    """A file that belongs to a port: a socket, a pipe, a regular file.

    Made by `CompletionPort.associate`. Each operation returns at once with its
    `Overlapped`; the result arrives as one packet at the port. Any thread may
    call any method.

    On regular files what does not depend on each other runs side by side: reads at an offset, and
    writes at an offset unless they cover a part of what an earlier one covers that is still
    pending. Reads and writes at the file's own position keep their order, and so does every
    write to a file that was opened to append; `fsync` waits for the writes before it.

    On everything else operations are carried out in the order in which they were posted: accepts,
    receives and reads among themselves, connects, sends, writes, shutdowns and disconnects
    among themselves. The packets of several operations may be taken in another
    order when several threads take them.

    The handle works on a duplicate of the file's descriptor. So an operation can
    never reach another file that was given the same number, even when the program
    closes ``file`` without telling the handle.

    Common to all operations:

    - ``overlapped``: an `Overlapped` of your own (per-I/O data), or None for a new one.
    - Returned: that Overlapped. It, its handle and its buffers are kept alive until
      its packet was taken.
    - Raised at the call, and then no packet follows: `TypeError` and `ValueError` for
      wrong arguments, `HandleClosed`, `PortClosed`, `OperationPending` when
      ``overlapped`` is in use, and `OSError` when the operating system refuses the
      operation at once (``ENOTCONN`` for a receive on a socket that is not connected).
      What fails later is the ``error`` of the packet.
    """

    __slots__ = ()

    @property
    def key(self) -> Any:
        """The completion key given to `CompletionPort.associate` (per-handle data)."""
        raise NotImplementedError

    @property
    def file(self) -> Any:
        """The object given to `CompletionPort.associate`."""
        raise NotImplementedError

    @property
    def port(self) -> Any:
        """The port, or None once the port object is gone. A handle does not keep its port alive."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """True once `close` was called or the port was closed."""
        raise NotImplementedError

    def fileno(self) -> int:
        """The number of the descriptor of ``file``, -1 once the handle is closed."""
        raise NotImplementedError

    def accept(self, overlapped: Overlapped | None = None) -> Overlapped:
        """Take the next connection of a listening socket (``AcceptEx``).

        The packet's ``transferred`` is 0 and ``overlapped.result()`` is the new
        `socket.socket`, in blocking mode and not inheritable. It belongs to no port yet.

        On Windows also for the server's end of a named pipe: wait for a client
        (``ConnectNamedPipe``). The result is the handle's ``file``, and reads that are posted
        behind it wait for the client.
        """
        raise NotImplementedError

    def connect(self, address: Any, overlapped: Overlapped | None = None) -> Overlapped:
        """Connect the socket to ``address``, given as for `socket.socket.connect` (``ConnectEx``).

        A host name is looked up at the call, which may block: give a numeric address
        where that matters. What is posted right behind it waits for it, and fails with it
        (``ENOTCONN``) where it fails or is cancelled; on Windows receives are refused until the
        packet has come. After either the socket can be connected anew. A Unix socket whose listener
        has a full backlog is refused at once (`BlockingIOError`), since the system does not tell
        when there is room.
        """
        raise NotImplementedError

    def recv(
        self,
        size_or_buffers: int | WritableBuffers,
        flags: int = 0,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Receive from the socket (``WSARecv``).

        ``size_or_buffers``: a number of bytes from 0 to 2**31 - 1, and then
        ``overlapped.result()`` is a bytes object; or a writable buffer, or a sequence of
        them that is filled in order (a WSABUF array), and then it is the number of bytes.
        ``flags``: ``socket.MSG_PEEK``, ``MSG_WAITALL``, ``MSG_OOB`` and the like.

        The packet's ``transferred`` is the number of bytes; 0 is the end of the stream.
        With a size of 0 the packet comes when there is data (or the end) to receive, and
        nothing is taken.

        On a datagram socket it takes one datagram, which may be empty; what does not fit is lost.
        ``MSG_WAITALL`` makes no difference there.

        Raised: `OSError` (``EOPNOTSUPP``) for ``MSG_TRUNC`` on a stream, in `recvfrom` and
        `recvmsg` too: it throws bytes away and fills no memory (tcp(7)).
        """
        raise NotImplementedError

    def recvfrom(
        self,
        size_or_buffers: int | WritableBuffers,
        flags: int = 0,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Receive one datagram and who sent it (``WSARecvFrom``).

        ``size_or_buffers`` and ``flags`` as for `recv`, without ``MSG_WAITALL``; what of the
        datagram does not fit is lost. With ``MSG_TRUNC`` the number of bytes is the datagram's
        own.

        ``overlapped.result()`` is a tuple: the bytes (or their number, where buffers were given),
        and the sender's address as `socket.socket.recvfrom` gives it. With a size of 0 the packet
        comes when a datagram is there, with its sender, and it is not taken.
        """
        raise NotImplementedError

    def recvmsg(
        self,
        size_or_buffers: int | WritableBuffers,
        ancillary_size: int = 0,
        flags: int = 0,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Receive one message with its ancillary data (``WSARecvMsg``).

        ``size_or_buffers`` and ``flags`` as for `recvfrom`. ``ancillary_size``: bytes of room for
        ancillary data, 0 to 2**20: a sum of `socket.CMSG_SPACE`.

        ``overlapped.result()`` is a tuple as of `socket.socket.recvmsg`: the bytes (or their
        number, where buffers were given), a list of ``(level, type, data)``, the flags
        (``MSG_TRUNC``, ``MSG_CTRUNC``), the address.

        Descriptors that come with ``SCM_RIGHTS`` are not inheritable, and belong to the program
        once the packet was taken. Those of a packet that is never taken are closed.
        With a size of 0 the message is not taken, and there is no ancillary data.

        On Windows no ancillary data comes, whatever room there is: Python has none there.
        """
        raise NotImplementedError

    def send(
        self,
        data_or_buffers: Buffers,
        flags: int = 0,
        overlapped: Overlapped | None = None,
        *,
        zero_copy: bool = False,
    ) -> Overlapped:
        """Send all of the data (``WSASend``).

        ``data_or_buffers``: a bytes-like object, or a sequence of them that goes out in
        order. They must not change until the packet has come.

        The packet comes when the kernel has taken everything, or with an error;
        ``transferred`` is the number of bytes that were taken. On a datagram socket each call
        is one datagram.

        ``zero_copy``: True lets the kernel send from the buffers themselves, in place of a copy.
        That pays for large buffers and a network card; on loopback it is slower, since the kernel
        copies all the same: `CompletionPort.stats` tells how often. io_uring does it (Linux 6.7),
        over TCP and UDP, from 10 KiB on. Everywhere else, and where the user may not pin so much
        memory (``RLIMIT_MEMLOCK``), it is a send like any other. With it:

        - The packet comes when the kernel has let go of the buffers, over TCP when the peer has
          acknowledged every byte. What is posted behind goes on meanwhile, but its packet does not
          overtake: who has the packet of a `shutdown` knows that nothing before it can get lost.
        - What the network refuses is the packet's error, not raised at the call.
        - A cancelled one gives its packet when what was taken by then is acknowledged.
        - Closing the handle or the port while bytes are not acknowledged resets the connection,
          whoever else has the socket: a peer that does not read could keep the buffers for as long
          as it likes. Take the packet first. What the network itself holds back (a datagram whose
          receiver's address is still asked for, a queue) it gives back when it has sent or dropped
          it, and closing the port waits for that.

        On Windows, ``SO_SNDBUF`` 0 makes a socket send from the buffers themselves. Source:
        io_uring_prep_send_zc(3); Documentation/networking/msg_zerocopy.rst of the kernel.
        """
        raise NotImplementedError

    def sendto(
        self,
        data_or_buffers: Buffers,
        address: Any,
        flags: int = 0,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Send one datagram to ``address``, given as for `connect` (``WSASendTo``).

        ``data_or_buffers`` and ``flags`` as for `send`. When the socket's buffer is full the
        datagram waits in the handle's queue; the packet says that the kernel has it, not that it
        arrived. A Unix socket whose receiver's queue is full fails with ``ENOBUFS``, since the
        operating system does not tell when there is room: `connect` it, and it waits.
        """
        raise NotImplementedError

    def sendmsg(
        self,
        data_or_buffers: Buffers,
        ancillary: Ancillary = (),
        flags: int = 0,
        address: Any = None,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Send a message with ancillary data (``WSASendMsg``).

        ``data_or_buffers`` and ``flags`` as for `send`, ``address`` as for `sendto`, or None on a
        connected socket. ``ancillary``: ``(level, type, data)`` tuples, as for
        `socket.socket.sendmsg`; they go with the first byte.

        Descriptors in ``SCM_RIGHTS`` are duplicated at the call: the program may close its own
        at once.

        Raised: `OSError` (``EOPNOTSUPP``) for ancillary data on Windows, where sockets carry no
        descriptors: send what `socket.socket.share` gives, as data.
        """
        raise NotImplementedError

    def sendfile(
        self,
        file: HasFileno | int,
        offset: int = 0,
        count: int | None = None,
        *,
        head: Buffer = b"",
        tail: Buffer = b"",
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Send a part of a regular file on a stream socket (``TransmitFile``).

        ``file``: an object with ``fileno()`` or a descriptor number, open for reading. The call
        duplicates the descriptor, so the program may close it at once; its position stays.
        ``offset``: bytes from the start, 0 to 2**63 - 1. ``count``: how many bytes; None for all
        that the file has at the call. ``head`` and ``tail`` are sent before and behind.

        The packet comes when the kernel has taken everything, or with an error. ``transferred``
        counts head, file and tail; a file that ends early makes it smaller, and the tail follows
        all the same. On a socket in non-blocking mode the bytes go from the page cache to the
        socket without a copy (sendfile(2)): they must not change before the peer has them. On one
        in blocking mode they are copied (send(2)), since sendfile(2) would wait, and the mode is
        for all who have the socket. Over loopback that is no slower; a network card may take less
        of the processor without the copy.

        No thread of the program's waits for a disk: what is not in the page cache is read into it
        by the port's pool, on io_uring by the kernel's threads. What lies on a file server (FUSE,
        NFS, SMB and the like) they read as well, it is sent by a copy, and the pool closes it. So
        a pool that is busy keeps a file waiting. Where nobody tells what is in the page cache
        (tmpfs, file systems on top of others, a file that is open with ``O_DIRECT``, macOS), where
        the pool gets no thread, and on Windows, the system reads while it sends, as it likes.
        """
        raise NotImplementedError

    def shutdown(
        self, how: int = socket.SHUT_WR, overlapped: Overlapped | None = None
    ) -> Overlapped:
        """Shut one direction of the connection down, or both, after what was sent before.

        ``how``: ``socket.SHUT_WR``, and the peer reads the end of the stream; ``SHUT_RD``;
        ``SHUT_RDWR``. It answers to ``shutdown`` of Winsock.
        """
        raise NotImplementedError

    def read(
        self,
        size_or_buffers: int | WritableBuffers,
        offset: int | None = None,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Read from a file, a pipe or a socket (``ReadFile``).

        ``size_or_buffers`` as for `recv`. ``offset``: bytes from the start of a regular
        file, 0 to 2**63 - 1; None reads at the file's own position and moves it.
        ``transferred`` 0 is the end of the file.
        """
        raise NotImplementedError

    def write(
        self,
        data_or_buffers: Buffers,
        offset: int | None = None,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Write all of the data to a file, a pipe or a socket (``WriteFile``).

        ``data_or_buffers`` as for `send`, ``offset`` as for `read`.
        """
        raise NotImplementedError

    def fsync(self, data_only: bool = False, overlapped: Overlapped | None = None) -> Overlapped:
        """Have the writes that were posted before reach the disk (``FlushFileBuffers``).

        ``data_only``: leave out what is not needed to read the data again, as the time of the
        last change (``fdatasync``). A packet without an error says that the data is there.

        Raised: `OSError` (``EINVAL``) for what is no file, on Windows (``EBADF``) for one that is
        not open for writing.
        """
        raise NotImplementedError

    def allocate(
        self, offset: int, length: int, overlapped: Overlapped | None = None
    ) -> Overlapped:
        """Set space on the disk aside, so that writes there do not fail for want of it.

        ``offset``, ``length``: bytes, 0 or 1 to 2**63 - 1. A file that ends earlier becomes
        longer, and reads as zeros there; what is in it stays. Win32: ``SetFileInformationByHandle``
        with ``FileEndOfFileInfo``; on Windows nobody else may append to the file meanwhile, and
        the holes of a sparse file stay.

        Raised: `OSError` (``EINVAL``) for what is no file, (``EBADF``) for one that is not open
        for writing. A file system that can't do it says so in the packet (``EOPNOTSUPP``).
        """
        raise NotImplementedError

    def stat(self, overlapped: Overlapped | None = None) -> Overlapped:
        """Ask for the file's size, times and so on (``GetFileInformationByHandle``).

        ``overlapped.result()`` is an `os.stat_result`. It waits for no write posted before it.
        """
        raise NotImplementedError

    def disconnect(self, overlapped: Overlapped | None = None) -> Overlapped:
        """Shut the connection down, both ways, after what was sent before (``DisconnectEx``).

        On Windows also for the server's end of a named pipe (``DisconnectNamedPipe``): another
        client may come then. What the last one has not read by now is lost.
        """
        raise NotImplementedError

    def read_changes(
        self, recursive: bool = False, overlapped: Overlapped | None = None, *, size: int = 65536
    ) -> Overlapped:
        """Wait for changes of a directory and take them (``ReadDirectoryChangesW``).

        For the handle of a directory, which `open_directory` opens. ``recursive``: the folders in
        it as well, and those that are made later; the same in each call. ``size``: 4096 to 2**24,
        bytes of the kernel's events that are taken at once.

        ``overlapped.result()`` is a list of `Change`, in their order, and the packet's
        ``transferred`` is how many there are: 1 or more, or 0 when nothing that happened is to be
        told, as when something was deleted that lies beside the directory. The two names of a file
        that was renamed come one behind the other. What changes between two calls is not lost, and
        comes with the next one; what changes before the first call is not told. With several calls
        under way at a time each change comes once, in any of their packets.

        When more happens than the kernel keeps (``fs.inotify.max_queued_events``, on Windows the
        ``size`` of the first call), or a name comes up that can't be watched, the packet's error is
        an `OSError`, for the former with ``EOVERFLOW``: look through the directory again, and call
        again. When the directory is deleted, it is a `FileNotFoundError`, for every call that is
        under way (on Linux only where the folder that it lies in may be read). Where a folder comes
        with much in it, the thread that takes the packet on Linux looks through it, and takes as
        long as that.

        Raised: `NotADirectoryError`, `FileNotFoundError` for a directory that was deleted,
        `ValueError`, and `OSError` where there is no inotify or its limits are reached.
        """
        raise NotImplementedError

    def cancel(self, overlapped: Overlapped | None = None) -> int:
        """Cancel one pending operation of this handle, or all of them (``CancelIoEx``).

        Returned: how many operations were asked to stop; 0 where Win32 says
        ``ERROR_NOT_FOUND``. Each gives its one packet all the same: with
        `OperationAborted`, or with its own result where that came first.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the handle and its file (``closesocket``, ``CloseHandle``).

        Every pending operation gives its packet with `OperationAborted` and the
        handle's key, also when another handle has that key by then. The file object is closed at
        once; the connection itself ends as soon as the kernel has let go of the pending
        operations. A close that takes long (a file
        server, ``SO_LINGER``) is waited for here when nothing is pending, else by a thread of the
        port's pool. Closing again does nothing.
        """
        raise NotImplementedError

    _companion: Any
    _strand: Any

    def _read_for(
        self, meaning: Meaning, size: int, overlapped: Overlapped | None = None
    ) -> Overlapped:
        """A read whose packet says what its ``meaning`` makes of the data."""
        raise NotImplementedError

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def not_an_overlapped(value: object) -> TypeError:
    """What is raised for an ``overlapped`` that is none."""
    return TypeError(f"overlapped must be an Overlapped or None, not {type(value).__name__}")


def check_overlapped(overlapped: object) -> None:
    """Raise what is due when it is neither None nor an Overlapped."""
    if overlapped is not None and not isinstance(overlapped, Overlapped):
        raise not_an_overlapped(overlapped)


class Meaning(Protocol):
    """What a read stands for: what a process or a directory tells through a descriptor.

    Such operations are written once, above the engines. An engine carries the read out, and asks
    for its meaning when the packet is taken.
    """

    @property
    def operation(self) -> Operation:
        """What the Overlapped says that it is used for."""

    @property
    def handle(self) -> Handle:
        """What the Overlapped says that it belongs to. It is kept alive until then."""

    def outcome(self, data: Any) -> tuple[int, Any]:
        """The packet's ``transferred`` and the result, from what was read.

        Called once, by the thread that takes the packet; not for one that failed or was
        cancelled. An `OSError` that it raises becomes the packet's error.
        """
