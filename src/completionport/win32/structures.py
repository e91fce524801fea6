"""Win32's structures as small classes: those that programs fill in, read or pass by reference."""

from __future__ import annotations

import socket
import sys
from array import array
from collections.abc import Sequence
from mmap import mmap
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

from ..shared.addresses import pack, unpack
from ..shared.arguments import check_count
from .constants import AF_INET, AF_INET6, STATUS_PENDING

Buffer: TypeAlias = "bytes | bytearray | memoryview | array[Any] | mmap"
WritableBuffer: TypeAlias = "bytearray | memoryview | array[Any] | mmap"


class IoStatus(Protocol):
    """How an operation stands: what the system keeps behind an OVERLAPPED."""

    @property
    def status(self) -> int:
        """NTSTATUS; `STATUS_PENDING` while the operation is under way."""

    @property
    def count(self) -> int:
        """Bytes moved."""


class Written:
    """What the program has written into an OVERLAPPED, as C programs do to empty it."""

    def __init__(self, status: int, count: int) -> None:
        self.status = status
        self.count = count


class OVERLAPPED:
    """One operation of the program: its place in the file, its event, and how it stands.

    Made to be subclassed, as C programs put more fields behind the structure (``PER_IO_DATA``).
    Where a packet is taken, the very same object comes back.

    The object and the buffers are kept alive until the operation's packet was taken, so it does
    no harm to let go of them early. It may be used again as soon as its operation has completed;
    a call with one that is under way fails with ``ERROR_INVALID_PARAMETER``.
    """

    __slots__ = ("__weakref__", "_event", "_io", "_offset", "_offset_high")

    _offset: int
    _offset_high: int
    _event: HANDLE | None
    _io: IoStatus | None  # set by the system that carries the operation out

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Not in __init__: subclasses need not call that.
        self = super().__new__(cls)
        self._offset = 0
        self._offset_high = 0
        self._event = None
        self._io = None
        return self

    @property
    def Offset(self) -> int:
        """Low 32 bits of the place in the file, for `ReadFile` and `WriteFile`."""
        return self._offset

    @Offset.setter
    def Offset(self, value: int) -> None:
        check_count("Offset", value, 0, 0xFFFFFFFF)
        self._offset = value

    @property
    def OffsetHigh(self) -> int:
        """High 32 bits of it."""
        return self._offset_high

    @OffsetHigh.setter
    def OffsetHigh(self, value: int) -> None:
        check_count("OffsetHigh", value, 0, 0xFFFFFFFF)
        self._offset_high = value

    @property
    def hEvent(self) -> HANDLE | None:
        """An event of `CreateEvent`: reset when the operation starts, set when it has completed.

        With its lowest bit set (``event | 1``) no packet comes for the operation.
        """
        return self._event

    @hEvent.setter
    def hEvent(self, value: HANDLE | None) -> None:
        if value is not None and not isinstance(value, HANDLE):
            raise TypeError(f"hEvent must be a HANDLE or None, not {type(value).__name__}")
        self._event = value

    @property
    def Internal(self) -> int:
        """The operation's NTSTATUS: ``STATUS_PENDING`` while it is under way, 0 for success.

        It can be set, as `InternalHigh`; while an operation is under way that has no effect.
        """
        return 0 if self._io is None else self._io.status

    @Internal.setter
    def Internal(self, value: int) -> None:
        self._write(value, self.InternalHigh)

    @property
    def InternalHigh(self) -> int:
        """Bytes moved, once it has completed."""
        return 0 if self._io is None else self._io.count

    @InternalHigh.setter
    def InternalHigh(self, value: int) -> None:
        self._write(self.Internal, value)

    def _write(self, status: int, count: int) -> None:
        for value in (status, count):
            check_count("a field of an OVERLAPPED", value, 0, 2**64 - 1)
        io = self._io
        if io is None or isinstance(io, Written) or io.status != STATUS_PENDING:
            self._io = Written(status & 0xFFFFFFFF, count)


WSAOVERLAPPED = OVERLAPPED


def HasOverlappedIoCompleted(lpOverlapped: OVERLAPPED) -> bool:
    """True unless the operation is under way (the macro of winbase.h)."""
    if not isinstance(lpOverlapped, OVERLAPPED):
        raise TypeError(f"an OVERLAPPED was expected, not {type(lpOverlapped).__name__}")
    return lpOverlapped.Internal != STATUS_PENDING


def CONTAINING_RECORD(address: Any, type: type[Any], field: str = "") -> Any:
    """The structure around ``address``: the object itself, since a packet gives it back whole.

    ``type`` and ``field`` say what C code says there; nothing is made of them.
    """
    return address


class OVERLAPPED_ENTRY(NamedTuple):
    """A packet, as `GetQueuedCompletionStatusEx` gives it."""

    lpCompletionKey: Any
    """The key of the file, or what was posted."""
    lpOverlapped: Any
    """The OVERLAPPED of the operation, or what was posted."""
    Internal: int
    """The operation's NTSTATUS, 0 for success and for what was posted."""
    dwNumberOfBytesTransferred: int
    """Bytes moved, or what was posted."""


class HANDLE:
    """A port, a file, a thread or an event. What is in it is the library's business.

    As in Win32 nothing is closed because a handle is dropped: that takes `CloseHandle`.
    """

    __slots__ = ("__weakref__", "_object")

    _object: Any  # of the system that made it; None once closed
    _is_marked = False

    def __init__(self, kernel_object: Any) -> None:
        self._object = kernel_object

    def __repr__(self) -> str:
        if self is INVALID_HANDLE_VALUE:
            return "<INVALID_HANDLE_VALUE>"
        return "<HANDLE closed>" if self._object is None else f"<HANDLE {self._object!r}>"

    def __or__(self, bits: int) -> HANDLE:
        """The same handle with its lowest bit set: as ``hEvent`` it keeps the packet away."""
        check_count("what is set in a handle", bits, 0, 1)
        return MarkedHandle(self) if bits else self


class MarkedHandle(HANDLE):
    """A handle whose lowest bit is set, which the system does not look at but in ``hEvent``."""

    __slots__ = ("_handle",)

    _is_marked = True

    def __init__(self, handle: HANDLE) -> None:
        self._handle = handle

    @property
    def _object(self) -> Any:
        return self._handle._object

    @_object.setter
    def _object(self, value: Any) -> None:
        self._handle._object = value


INVALID_HANDLE_VALUE = HANDLE(None)
"""What `CreateFile` returns when it fails, and what makes a port in `CreateIoCompletionPort`."""


class WSABUF:
    """A piece of memory to send from or to receive into: the first ``len`` bytes of ``buf``.

    ``buf`` is any bytes-like object, writable for a receive; ``len`` None is all of it.
    """

    __slots__ = ("buf", "len")

    def __init__(self, len: int | None = None, buf: Buffer = b"") -> None:
        self.len = len
        """How many bytes of ``buf`` it is about; None for all."""
        self.buf = buf
        """The memory: a bytes-like object."""


Buffers: TypeAlias = "WSABUF | Buffer | Sequence[WSABUF | Buffer]"
"""What the functions take for an array of WSABUF: one, a bytes-like object, or a sequence."""


def views_of(buffers: Buffers, writable: bool) -> list[memoryview]:
    """The memory of ``buffers`` in single bytes, in order."""
    if isinstance(buffers, WSABUF) or not isinstance(buffers, (list, tuple)):
        return [_view(buffers, writable)]
    if not buffers:
        raise ValueError("at least one buffer was expected, the sequence is empty")
    return [_view(buffer, writable) for buffer in buffers]


def _view(buffer: Any, writable: bool) -> memoryview:
    size = None
    if isinstance(buffer, WSABUF):
        buffer, size = buffer.buf, buffer.len
    try:
        view = memoryview(buffer)
    except TypeError:
        raise TypeError(
            f"a WSABUF, a bytes-like object or a sequence of them was expected, "
            f"not {type(buffer).__name__}"
        ) from None
    if writable and view.readonly:
        raise TypeError(f"a writable buffer was expected, {type(buffer).__name__} is read-only")
    if not view.c_contiguous:
        raise TypeError("a contiguous buffer was expected")
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B") if view.nbytes else memoryview(bytearray())
    if size is None:
        return view
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"the len of a WSABUF must be an integer, not {type(size).__name__}")
    if not 0 <= size <= view.nbytes:
        raise ValueError(f"a WSABUF of {size} bytes has a buf of only {view.nbytes}")
    return view[:size]


class TRANSMIT_FILE_BUFFERS:
    """What `TransmitFile` sends before the file and behind it."""

    __slots__ = ("Head", "Tail")

    def __init__(self, Head: Buffer = b"", Tail: Buffer = b"") -> None:
        self.Head = Head
        """What is sent before the file: a bytes-like object."""
        self.Tail = Tail
        """What is sent behind it."""


class IN_ADDR:
    """An IPv4 address: ``s_addr`` is the number as it lies in memory, in network order."""

    __slots__ = ("_memory",)

    def __init__(self, memory: memoryview | None = None) -> None:
        self._memory = memoryview(bytearray(4)) if memory is None else memory

    @property
    def s_addr(self) -> int:
        """The address as the number that lies in memory: ``htonl`` makes one."""
        return int.from_bytes(self._memory, sys.byteorder)

    @s_addr.setter
    def s_addr(self, value: int) -> None:
        check_count("s_addr", value, 0, 0xFFFFFFFF)
        self._memory[:] = value.to_bytes(4, sys.byteorder)


class SOCKADDR:
    """The address of a socket, in the memory layout of the system.

    Functions fill in what they are given, as in C. ``address`` is the same in Python's form.
    """

    __slots__ = ("_memory",)

    SIZE = 128
    """Bytes that C has for it."""

    def __init__(self) -> None:
        self._memory = bytearray(128)

    @property
    def sa_family(self) -> int:
        """The family: ``AF_INET``, ``AF_INET6``; the members of other names are the same."""
        return int.from_bytes(self._memory[:2], sys.byteorder)

    @sa_family.setter
    def sa_family(self, value: int) -> None:
        check_count("the family", value, 0, 0xFFFF)
        self._memory[:2] = value.to_bytes(2, sys.byteorder)

    @property
    def address(self) -> Any:
        """As `socket.socket.getsockname` gives it: ``(host, port)`` for IPv4."""
        if self.sa_family == AF_INET:
            return unpack(bytes(self._memory[:16]))
        if self.sa_family == AF_INET6:
            return unpack(bytes(self._memory[:28]))
        return unpack(bytes(self._memory))

    def assign(self, family: int, address: Any) -> None:
        """Fill it in from Python's form of an address."""
        self.load(pack(family, socket.SOCK_STREAM, address))

    def load(self, data: bytes | memoryview) -> None:
        """Fill it in from the system's own form, as much of it as there is room for."""
        self._memory[:] = bytes(data)[:128].ljust(128, b"\0")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address!r}>"


class SOCKADDR_STORAGE(SOCKADDR):
    """An address of any family."""

    __slots__ = ()

    ss_family = SOCKADDR.sa_family
    """The family, as `SOCKADDR.sa_family`."""


class SOCKADDR_IN(SOCKADDR):
    """An IPv4 address and a port; numbers are in network order, as in C."""

    __slots__ = ()

    SIZE = 16
    """Bytes that C has for it."""
    sin_family = SOCKADDR.sa_family
    """The family, as `SOCKADDR.sa_family`: ``AF_INET``."""

    @property
    def sin_port(self) -> int:
        """The port in network order: ``htons`` makes it."""
        return int.from_bytes(self._memory[2:4], sys.byteorder)

    @sin_port.setter
    def sin_port(self, value: int) -> None:
        check_count("sin_port", value, 0, 0xFFFF)
        self._memory[2:4] = value.to_bytes(2, sys.byteorder)

    @property
    def sin_addr(self) -> IN_ADDR:
        """The address, in this structure's own memory: what is set there is set here."""
        return IN_ADDR(memoryview(self._memory)[4:8])


class IN6_ADDR:
    """An IPv6 address; ``inet_pton`` fills it in, ``inet_ntop`` makes a text of it."""

    __slots__ = ("_memory",)

    def __init__(self, memory: memoryview | None = None) -> None:
        self._memory = memoryview(bytearray(16)) if memory is None else memory


class SOCKADDR_IN6(SOCKADDR):
    """An IPv6 address and a port; numbers are in network order, as in C."""

    __slots__ = ()

    SIZE = 28
    """Bytes that C has for it."""
    sin6_family = SOCKADDR.sa_family
    """The family, as `SOCKADDR.sa_family`: ``AF_INET6``."""

    @property
    def sin6_port(self) -> int:
        """The port in network order: ``htons`` makes it."""
        return int.from_bytes(self._memory[2:4], sys.byteorder)

    @sin6_port.setter
    def sin6_port(self, value: int) -> None:
        check_count("sin_port", value, 0, 0xFFFF)
        self._memory[2:4] = value.to_bytes(2, sys.byteorder)

    @property
    def sin6_addr(self) -> IN6_ADDR:
        """The address, in this structure's own memory: what is set there is set here."""
        return IN6_ADDR(memoryview(self._memory)[8:24])

    @property
    def sin6_scope_id(self) -> int:
        """The number of the interface that a link-local address is of, else 0."""
        return int.from_bytes(self._memory[24:28], sys.byteorder)

    @sin6_scope_id.setter
    def sin6_scope_id(self, value: int) -> None:
        self._memory[24:28] = value.to_bytes(4, sys.byteorder)


class ADDRINFO:
    """One address of `getaddrinfo`, or what is wanted of it (its ``pHints``).

    There is no ``ai_next``: `getaddrinfo` returns a list.
    """

    __slots__ = (
        *("ai_addr", "ai_addrlen", "ai_canonname", "ai_family", "ai_flags", "ai_protocol"),
        "ai_socktype",
    )

    def __init__(self) -> None:
        self.ai_flags = 0
        """``AI_PASSIVE``, ``AI_CANONNAME``, ``AI_NUMERICHOST``, ``AI_NUMERICSERV``."""
        self.ai_family = 0
        """``AF_INET``, ``AF_INET6``; 0 for either."""
        self.ai_socktype = 0
        """``SOCK_STREAM``, ``SOCK_DGRAM``; 0 for any."""
        self.ai_protocol = 0
        """``IPPROTO_TCP``, ``IPPROTO_UDP``; 0 for any."""
        self.ai_addrlen = 0
        """Bytes that C has for ``ai_addr``."""
        self.ai_canonname: str | None = None
        """The host's own name, of the first address with ``AI_CANONNAME``."""
        self.ai_addr: SOCKADDR | None = None
        """The address."""

    def __repr__(self) -> str:
        numbers = f"{self.ai_family}, {self.ai_socktype}, {self.ai_protocol}"
        return f"<ADDRINFO {numbers}, {self.ai_canonname!r}, {self.ai_addr!r}>"


class tcp_keepalive:
    """How an idle connection is looked at: what ``SIO_KEEPALIVE_VALS`` takes."""

    __slots__ = ("keepaliveinterval", "keepalivetime", "onoff")

    def __init__(
        self, onoff: int = 0, keepalivetime: int = 7_200_000, keepaliveinterval: int = 1000
    ) -> None:
        self.onoff = onoff
        """0 to leave it alone, else to ask the other side now and then."""
        self.keepalivetime = keepalivetime
        """Milliseconds without data before the first question, 1 to 0xFFFFFFFF."""
        self.keepaliveinterval = keepaliveinterval
        """Milliseconds between questions that are not answered, 1 to 0xFFFFFFFF."""


def sockaddr_of(data: bytes | memoryview) -> SOCKADDR:
    """The structure of the right kind for an address in the system's own form."""
    kinds = {AF_INET: SOCKADDR_IN, AF_INET6: SOCKADDR_IN6}
    structure = kinds.get(int.from_bytes(data[:2], sys.byteorder), SOCKADDR_STORAGE)()
    structure.load(data)
    return structure


def sizeof(structure: SOCKADDR | type[SOCKADDR]) -> int:
    """Bytes that an address structure has in C; `AcceptEx` wants 16 more for each address."""
    if not isinstance(structure, SOCKADDR) and not (
        isinstance(structure, type) and issubclass(structure, SOCKADDR)
    ):
        raise TypeError(f"an address structure was expected, not {type(structure).__name__}")
    return structure.SIZE


class SYSTEM_INFO(NamedTuple):
    """What `GetSystemInfo` tells."""

    dwNumberOfProcessors: int
    """Processors that the process may use."""
    dwPageSize: int
    """Bytes of a page of memory."""
    dwAllocationGranularity: int
    """Bytes that addresses of allocated memory are multiples of."""


class WSADATA:
    """What `WSAStartup` tells."""

    __slots__ = ("szDescription", "szSystemStatus", "wHighVersion", "wVersion")

    def __init__(self) -> None:
        self.wVersion = 0
        """The version that was asked for: ``MAKEWORD(2, 2)``."""
        self.wHighVersion = 0
        """The highest version there is."""
        self.szDescription = ""
        """Whose implementation it is."""
        self.szSystemStatus = ""
        """How it is: ``Running``."""
