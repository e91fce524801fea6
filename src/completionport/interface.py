"""What every engine offers: the port and its handles, documented once.

The classes here carry the documentation and choose the implementation. The
work is done in ``completionport.native`` (compiled: io_uring, epoll) and in
``completionport.portable`` (the standard library only).
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from mmap import mmap
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .overlapped import Completion, Overlapped
from .strand import Strand, check_strand
from .timer import Timer

if TYPE_CHECKING:
    import subprocess

    from .meaning import Meaning
    from .signals import SignalWatch

Buffer: TypeAlias = "bytes | bytearray | memoryview | array[Any] | mmap"
Buffers: TypeAlias = "Buffer | Sequence[Buffer]"
Path: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
Ancillary: TypeAlias = "Iterable[tuple[int, int, Buffer]]"


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Handle:
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

    key: Any
    """The completion key given to `CompletionPort.associate` (per-handle data)."""
    file: Any
    """The object given to `CompletionPort.associate`."""

    @property
    def port(self) -> CompletionPort | None:
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
        where that matters. Sends may be posted right behind it; receives only once the
        packet has come.
        """
        raise NotImplementedError

    def recv(
        self, size_or_buffers: int | Buffers, flags: int = 0, overlapped: Overlapped | None = None
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
        """
        raise NotImplementedError

    def recvfrom(
        self, size_or_buffers: int | Buffers, flags: int = 0, overlapped: Overlapped | None = None
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
        size_or_buffers: int | Buffers,
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
        self, data_or_buffers: Buffers, flags: int = 0, overlapped: Overlapped | None = None
    ) -> Overlapped:
        """Send all of the data (``WSASend``).

        ``data_or_buffers``: a bytes-like object, or a sequence of them that goes out in
        order. They must not change until the packet has come.

        The packet comes when the kernel has taken everything, or with an error;
        ``transferred`` is the number of bytes that were taken. On a datagram socket each call
        is one datagram.
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
        all the same. The bytes go from the page cache to the socket without a copy of the
        program's: they must not change before the peer has them. What is not in the page cache is
        read from the disk by the thread that carries the operation on, 4 MiB in one go.
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
        size_or_buffers: int | Buffers,
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
        from .changes import read_changes

        return read_changes(self, recursive, size, overlapped)

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
        handle's key. The file object is closed at once; the connection itself ends as
        soon as the kernel has let go of the pending operations. Closing again does nothing.
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


class CompletionPort:
    """A queue of completion packets, and the threads that wait for them.

    ``concurrency``: how many threads that have taken a packet may run at a time;
    0 means as many as can run Python at once: the usable processors on a
    free-threaded interpreter, 1 under the GIL. A thread that has taken a packet holds
    its place until it calls `get` again (here or at another port) or ends. While it blocks (a
    lock, a sleep, a database call, anything in the kernel) it does not count, and within a few
    milliseconds another one is let go; when it runs again it counts again, and the port may be
    over its concurrency for that while. The engine ``selectors`` can't see who blocks: there
    only `blocking` tells. On ``iocp`` all of this is the kernel's own. More than one under the GIL
    helps for nothing but threads that compute outside of it.

    ``engine``: ``"iocp"`` (Windows), ``"io_uring"``, ``"epoll"``, ``"selectors"``, or None for
    the best one that runs here. The environment variable ``COMPLETIONPORT_ENGINE`` decides in
    place of None.

    ``pool_threads``: the most threads, 1 to 1024, of the port's pool, which runs `submit` and
    `getaddrinfo`, and what of files the engine can't do by itself. Up to four are started as they
    are needed; more where those at work block while others wait in line. They end after some
    seconds without work, and count for nobody's concurrency.

    Raised: `EngineUnavailable` when the engine asked for can't run, `ValueError` for an
    unknown engine, a negative concurrency or a number of threads out of range.

    Use it as a context manager, or call `close`. A port that is dropped without that gives
    a `ResourceWarning` and is closed. After ``fork()`` the child's calls raise `PortForked`.

    Win32: ``CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, concurrency)``.
    """

    def __new__(
        cls, concurrency: int = 0, *, engine: str | None = None, pool_threads: int = 64
    ) -> CompletionPort:
        if cls is CompletionPort:
            from .engines import port_class

            chosen = port_class(engine)
            return chosen.__new__(chosen)
        return super().__new__(cls)

    @property
    def concurrency(self) -> int:
        """How many threads that have taken packets may run at a time."""
        raise NotImplementedError

    @property
    def engine(self) -> str:
        """``"iocp"``, ``"io_uring"``, ``"epoll"`` or ``"selectors"``."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        raise NotImplementedError

    def associate(
        self,
        file: HasFileno | int | subprocess.Popen[Any],
        key: Any,
        *,
        strand: Strand | None = None,
    ) -> Handle:
        """Bind a file to this port (``CreateIoCompletionPort(file, port, key, 0)``).

        ``file``: a socket or any object with ``fileno()``, or a descriptor number. It may be
        blocking, non-blocking or have a timeout: that makes no difference here. Or a
        `subprocess.Popen`: see below.
        ``key``: any object; it comes with every packet of this file (per-handle data).
        ``strand``: a `Strand` of this port that all packets of this file are bound to.

        A process gives one packet when it ends: its ``transferred`` and ``overlapped.result()`` are
        ``returncode``, which is set by then, and nothing is left of the process
        (``RegisterWaitForSingleObject``, ``UnregisterWait``). The handle's ``file`` is the Popen,
        and its ``close()`` only ends the watch: then, or at ``cancel()``, the packet comes with
        `OperationAborted`. The program may wait for the process as well. One that has ended already
        gives its packet at once. Several handles may watch one process. Its pipes are files of
        their own.

        Raised: `TypeError` for an object with no descriptor, `ValueError` for a closed one,
        `AlreadyAssociated` when a port has this file already, `OSError` with ``ENOSYS`` for a
        process where the system can't tell of its end (Linux and Windows can).
        """
        raise NotImplementedError

    def get(self, timeout: float | None = None) -> Completion | None:
        """Take the packet that has waited longest, waiting for one if need be.

        ``timeout``: seconds, 0 to look without waiting, None to wait without end.
        Returned: the `Completion`, or None when the time is over.

        Any number of threads may wait; the one that came last is served first.
        Raised: `PortClosed`, also in threads that wait when the port is closed.
        Signals are handled while the main thread waits (Ctrl-C raises `KeyboardInterrupt`).
        Win32: ``GetQueuedCompletionStatus``.
        """
        raise NotImplementedError

    def get_many(self, max_count: int, timeout: float | None = None) -> list[Completion]:
        """Take up to ``max_count`` (at least 1) packets at once.

        It waits as `get` does for the first one and takes what else is there; an empty
        list when the time is over. Win32: ``GetQueuedCompletionStatusEx``.
        """
        raise NotImplementedError

    def post(
        self,
        transferred: Any = 0,
        key: Any = None,
        overlapped: Any = None,
        *,
        strand: Strand | None = None,
    ) -> None:
        """Put a packet into the queue: the three values come out of `get` unchanged.

        ``strand``: a `Strand` of this port that the packet is bound to.

        Raised: `PortClosed`. Win32: ``PostQueuedCompletionStatus``.
        """
        raise NotImplementedError

    def post_after(
        self,
        seconds: float,
        transferred: Any = 0,
        key: Any = None,
        overlapped: Any = None,
        *,
        strand: Strand | None = None,
    ) -> Timer:
        """Post a packet once a time has passed (``SetThreadpoolTimer``).

        ``seconds``: 0 to 3.2e9 (a hundred years). The other arguments are as for `post`. The
        packet is never early; how much later it comes is up to the engine (about 0.1 ms compiled,
        1 ms on ``selectors``) and to the threads, which have to be free to take it.

        Returned: a `Timer`, to cancel it. No thread is needed for it: those that wait in `get`
        wait no longer than until the next timer, and with no thread there the packet is in the
        queue for the next one that comes. Timers of the same time come in the order in which they
        were set. A port that is closed drops them.

        Raised: `TypeError`, `ValueError` (negative, too large, not a number), `PortClosed`.
        """
        raise NotImplementedError

    def post_at(
        self,
        when: float,
        transferred: Any = 0,
        key: Any = None,
        overlapped: Any = None,
        *,
        strand: Strand | None = None,
    ) -> Timer:
        """Post a packet at a time of `time.monotonic`'s clock; otherwise as `post_after`.

        ``when``: a time that has passed means at once.
        """
        raise NotImplementedError

    def associate_signal(
        self, signum: int, key: Any, *, strand: Strand | None = None
    ) -> SignalWatch:
        """Get a packet for each signal of this number that arrives (``SetConsoleCtrlHandler``).

        ``signum``: as for `signal.signal`. ``key``, ``strand``: as for `post`. The packet's
        ``transferred`` is the number of the signal.

        Returned: a `SignalWatch`, whose ``close()`` ends it. Several, of this port or of others,
        may watch one signal: each gets a packet. The handler that was there before is not called
        meanwhile, so ``SIGINT`` raises no `KeyboardInterrupt`; it is put back with the last watch.
        The child of a fork gets none, and treats the signal as before.

        It stands on `signal.signal`: the packet is posted by the main thread, as soon as that runs
        Python or waits in `get`, a lock, a join. Signals that arrive before it does so count as
        one, as they do for the kernel.

        Windows has two: ``SIGINT`` for Ctrl-C, ``SIGBREAK`` for Ctrl-Break and for a console that
        is closed. There the main thread comes to it within 50 ms while it waits in `get`.

        Raised: `RuntimeError` in another thread than the main one, `ValueError` for a number that
        is no signal, or one that Windows never sends, `OSError` for one that can't be caught
        (``SIGKILL``), `PortClosed`.
        """
        self._check()
        check_strand(strand, self)
        from .signals import watch_signal

        return watch_signal(self, signum, key, strand)

    def submit(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        key: Any = None,
        overlapped: Overlapped | None = None,
        strand: Strand | None = None,
    ) -> Overlapped:
        """Run ``function(*args)`` on the port's pool and post its result (``QueueUserWorkItem``).

        ``key``: any object, which comes with the packet. ``overlapped``: as for a `Handle`'s
        operations. ``strand``: a `Strand` of this port that the packet is bound to; the function
        itself is not.

        Returned: the Overlapped. ``overlapped.result()`` is what the function returned, or raises
        what it raised; the packet's ``error`` is that exception.

        The pool is for what blocks: up to ``pool_threads`` of the port run at a time, and what is
        more waits in line, where ``overlapped.cancel()`` takes it out. Four run at once; behind
        functions that block another one starts every 5 ms, but none behind those that compute, or
        wait for the GIL: they would be no quicker. A function that runs can't be cancelled, and
        `close` waits for it; the end of the interpreter does not. One that closes its own port is
        not waited for, and its packet is dropped.

        Raised: `TypeError` for what can't be called, `PortClosed`.
        """
        raise NotImplementedError

    def getaddrinfo(
        self,
        host: bytes | str | None,
        service: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
        *,
        key: Any = None,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Look a host and a service up, on the pool (``GetAddrInfoEx``).

        The arguments and ``overlapped.result()`` are those of `socket.getaddrinfo`; a failure is
        the packet's ``error``, a `socket.gaierror`.

        A lookup can't be interrupted. One that is cancelled, or whose port is closed, gives its
        packet at once all the same: its thread is left behind, and ends by itself when the name
        server has answered or the resolver gives up.
        """
        raise NotImplementedError

    def open(
        self,
        path: Path,
        flags: int = os.O_RDONLY,
        mode: int = 0o666,
        *,
        key: Any = None,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Open a file without waiting for the disk (``CreateFile``).

        The arguments are those of `os.open`. ``overlapped.result()`` is the number of a descriptor,
        not inheritable, which is the program's once the packet was taken: `associate` it, and
        close it with the handle. That of a packet that is never taken is closed. A named pipe
        waits for its other side, but on ``io_uring``: there the kernel opens it as with
        ``os.O_NONBLOCK``.

        An open that is cancelled, or whose port is closed, gives its packet at once. On the pool
        its thread is left behind, and closes what it may still come to open; with ``os.O_CREAT``
        the file may have been made all the same.
        """
        raise NotImplementedError

    def stat(
        self,
        path: Path,
        *,
        follow_symlinks: bool = True,
        key: Any = None,
        overlapped: Overlapped | None = None,
    ) -> Overlapped:
        """Ask for the size, times and so on of what has this name (``GetFileAttributesEx``).

        ``overlapped.result()`` is an `os.stat_result`; ``follow_symlinks`` as for `os.stat`.
        """
        raise NotImplementedError

    def close_descriptor(
        self, fd: int, *, key: Any = None, overlapped: Overlapped | None = None
    ) -> Overlapped:
        """Close a descriptor that belongs to no handle, without waiting for the disk.

        ``fd``: its number. It must not be used any more, whatever the packet says.
        """
        raise NotImplementedError

    def blocking(self) -> AbstractContextManager[None]:
        """For ``with port.blocking():`` around what blocks: another thread may run meanwhile.

        The port finds out by itself within a few milliseconds that a thread blocks; this
        tells it at once. At the end of the block the thread counts again, and the port may be over
        its concurrency for a while. In a thread that has taken no packet it does nothing.
        """
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """Numbers for a look inside.

        ``engine``, ``concurrency``; ``queued``: packets in the queue now; ``posted``, ``completed``
        and ``taken``: packets so far; ``pending``: operations under way; ``timers``: timers whose
        time has not come; ``handles``: open handles; ``waiting``: threads in `get`; ``running``:
        threads that hold a place; ``blocked``: threads at work on a packet that do not count,
        because they block; ``replaced``: how often a thread was let go in the place of one that
        blocks; ``wakeups``: how often a thread was woken. ``queue_time`` and ``work_time`` are
        `Histogram` objects: how long packets waited, and how long threads took from `get` to `get`.
        """
        raise NotImplementedError

    def _check(self) -> None:
        """Raise `PortForked` or `PortClosed` where one of them is due."""
        raise NotImplementedError

    def _new_strand(self) -> Strand:
        """For `Strand`."""
        raise NotImplementedError

    def _associate_skipping(self, file: HasFileno | int, key: Any) -> Handle:
        """For `completionport.win32`: a handle whose operations skip the port on success.

        An operation that succeeds at once gives no packet: its call returns None and not the
        Overlapped, which has the outcome and is free again. All else is as with `associate`.
        """
        raise NotImplementedError

    def _wait_until_stuck(self, timeout: float | None) -> bool:
        """For `WorkerPool`: wait until packets wait and every thread at work blocks.

        False when the time (seconds, None for no limit) is over, or at `_dismiss_keepers`, where it
        may be True as well; `PortClosed`. It holds no place.
        """
        raise NotImplementedError

    def _dismiss_keepers(self) -> None:
        """Make every `_wait_until_stuck` return."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the port (``CloseHandle``).

        Every waiting thread gets `PortClosed`. Operations under way are cancelled, and the
        call returns when the kernel has let go of their buffers, and the pool's threads have
        done what they are at. Packets that were not taken are dropped. The files stay open: they
        belong to the program. Closing again does nothing.
        """
        raise NotImplementedError

    def __enter__(self) -> CompletionPort:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
