"""Rows of stream and datagram sockets."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import tempfile
import threading
from typing import Any, ClassVar

from completionport import Overlapped
from support import LONG, WINDOWS, Background, local_pair, pattern, read_within, tcp_pair

from .base import BIG, ONE_EACH, Row, Wrong, message

RIGHTS = (socket.SOL_SOCKET, getattr(socket, "SCM_RIGHTS", -1))


class Socket(Row):
    def set_mode(self, blocking: bool) -> None:
        self.handles[0].file.settimeout(None if blocking else 0)

    def mode(self) -> bool:
        sock = self.handles[0].file
        # Winsock tells nobody what mode a socket is in.
        return bool(sock.getblocking() if WINDOWS else os.get_blocking(sock.fileno()))


class Stream(Socket):
    kind = "tcp"

    def set_up(self) -> None:
        near, self.far = tcp_pair() if self.kind == "tcp" else local_pair()
        self.stack.enter_context(self.far)
        self.handle = self.associate(near)

    def limit_room(self) -> None:
        """Have what is sent wait for its reader."""
        if WINDOWS:
            # Without it Windows may take a send of any size into its memory.
            self.handles[0].file.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)


class Receive(Stream):
    id = "recv"
    title = "`recv` on TCP"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.recv(-1), ValueError, r"recv\(\) takes a size"),
        (lambda row: row.handle.recv("x"), TypeError, r"recv\(\) takes a size"),
        (lambda row: row.handle.recv(b"constant"), TypeError, "writable"),
        (lambda row: row.handle.recv(memoryview(bytearray(9))[::2]), TypeError, "contiguous"),
        (lambda row: row.handle.recv(1, "x"), TypeError, "flags must be an integer"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.recv(4, overlapped=overlapped)

    def complete(self) -> None:
        with contextlib.suppress(ConnectionError):  # the handle may be closed by then
            self.far.sendall(message(self.completed))
        self.completed += 1

    def expected(self, number: int) -> Any:
        return message(number)


class Scatter(Receive):
    id = "recv-buffers"
    title = "`recv` into several buffers"
    kind = "local"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.recv([]), ValueError, "at least one buffer"),
        (lambda row: row.handle.recv([bytearray(1), None]), TypeError, "bytes-like"),
        (lambda row: row.handle.recv([bytearray(1), b"x"]), TypeError, "writable"),
    ]

    class Buffered(Overlapped):
        """So that the packet leads to the buffers."""

        buffers: list[bytearray]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        if overlapped is None:
            overlapped = self.Buffered()
        buffers = [bytearray(1), bytearray(3)]
        operation = self.handle.recv(buffers, overlapped=overlapped)
        overlapped.buffers = buffers
        return operation

    def value(self, done: Any) -> Any:
        assert done.overlapped.result() == 4
        return b"".join(done.overlapped.buffers)


class Accept(Socket):
    id = "accept"
    title = "`accept`"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.accept(5), TypeError, "Overlapped"),
        (lambda row: row.handle.connect("name"), TypeError, "address"),
    ]

    def set_up(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.names: list[Any] = []
        self.handle = self.associate(listener)

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.accept(overlapped=overlapped)

    def complete(self) -> None:
        client = socket.socket()
        self.stack.enter_context(client)
        # The listener may be closed by then, when the two meet.
        with contextlib.suppress(ConnectionError):
            client.connect(self.address)
            self.names.append(client.getsockname())

    def value(self, done: Any) -> Any:
        with done.overlapped.result() as accepted:
            return accepted.getpeername()

    def expected(self, number: int) -> Any:
        return self.names[number]


class Connect(Socket):
    id = "connect"
    title = "`connect`"
    without: ClassVar[dict[str, str]] = {
        "test_they_are_carried_out_in_order": ONE_EACH,
        "test_one_object_can_be_used_again": ONE_EACH,
    }
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.unconnected().connect("name"), TypeError, "address"),
        (lambda row: row.unconnected().connect(("127.0.0.1", "x")), TypeError, "address"),
        (lambda row: row.unconnected().connect(("127.0.0.1", -1)), OverflowError, "port"),
    ]

    def set_up(self) -> None:
        # A listener whose queue is full answers a second later: too long to wait for in each test.
        self.waits = False
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.stack.enter_context(self.listener)
        self.blocking = True

    def unconnected(self) -> Any:
        sock = socket.socket()
        sock.setblocking(self.blocking)
        return self.associate(sock)

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.unconnected().connect(self.listener.getsockname(), overlapped=overlapped)

    def start_again(self) -> Any:
        return self.handles[0].connect(self.listener.getsockname())

    def complete(self) -> None:
        self.completed += 1

    def value(self, done: Any) -> Any:
        assert done.overlapped.result() == 0
        handle = done.overlapped.handle
        return self.listener.getsockname() if handle.closed else handle.file.getpeername()

    def expected(self, number: int) -> Any:
        return self.listener.getsockname()

    def set_mode(self, blocking: bool) -> None:
        self.blocking = blocking


class Send(Stream):
    id = "send"
    title = "`send` of more than there is room for"
    kind = "local"
    size = BIG
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.send("text"), TypeError, r"send\(\) takes"),
        (lambda row: row.handle.send([]), ValueError, "at least one buffer"),
        (lambda row: row.handle.send(b"x", 2**31), ValueError, "flags must fit"),
    ]

    def set_up(self) -> None:
        super().set_up()
        self.limit_room()
        self.begun = 0

    def start(self, overlapped: Overlapped | None = None) -> Any:
        data = pattern(BIG, self.begun)
        operation = self.handle.send([data[:7], data[7:]], overlapped=overlapped)
        self.begun += 1
        return operation

    def complete(self) -> None:
        self.pull(self.far, self.sent(self.completed))
        self.completed += 1

    def absorb(self, done: Any) -> None:
        self.pull(self.far, self.sent(self.completed)[: done.transferred])
        self.completed += 1

    def sent(self, number: int) -> bytes:
        return pattern(BIG, number)

    def expected(self, number: int) -> Any:
        return self.size


class SendZeroCopy(Send):
    id = "send-zero-copy"
    title = "`send` with `zero_copy`"
    kind = "tcp"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.send(b"x", zero_copy=1), TypeError, "zero_copy must be True"),
        (lambda row: row.handle.send("x", zero_copy=True), TypeError, r"send\(\) takes"),
    ]

    def set_up(self) -> None:
        super().set_up()
        self.arrived = bytearray()
        self.was_cancelled = False

    def limit_room(self) -> None:
        super().limit_room()
        if not WINDOWS:
            self.handles[0].file.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)

    def start(self, overlapped: Overlapped | None = None) -> Any:
        data = pattern(BIG, self.begun)
        parts = [data[:7], data[7:]] if self.begun % 2 else data
        operation = self.handle.send(parts, overlapped=overlapped, zero_copy=True)
        self.begun += 1
        return operation

    def cancel(self, operation: Any) -> bool:
        stopped = super().cancel(operation)
        self.was_cancelled = self.was_cancelled or stopped
        return stopped

    def take(self, count: int) -> list[Any]:
        # A cancelled one is over when its peer has what was on its way.
        over = threading.Event()
        with contextlib.ExitStack() as stack:
            if self.was_cancelled:
                self.was_cancelled = False
                reader = Background(lambda: self.read_on(over))
                stack.callback(reader.outcome)
                stack.callback(over.set)
            return super().take(count)

    def read_on(self, over: threading.Event) -> None:
        while not over.is_set():
            part = read_within(self.far, 65536, 0.01)
            if part is not None:
                self.arrived += part
                if not part:
                    return

    def pull(self, source: Any, expected: bytes) -> None:
        there = bytes(self.arrived[: len(expected)])
        del self.arrived[: len(there)]
        assert there == expected[: len(there)], "what came is not what was sent"
        super().pull(source, expected[len(there) :])


class SendFile(Send):
    id = "sendfile"
    title = "`sendfile` with head and tail"
    size = BIG + 8
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.sendfile(None), TypeError, "fileno"),
        (lambda row: row.handle.sendfile(row.file, -1), ValueError, "offset must be from 0"),
        (lambda row: row.handle.sendfile(row.file, 0, -1), ValueError, "count must be from 0"),
        (lambda row: row.handle.sendfile(row.file, None), TypeError, "offset must be an integer"),
        (lambda row: row.handle.sendfile(row.file, head="x"), TypeError, r"sendfile\(\) takes"),
        (lambda row: row.handle.sendfile(row.far), OSError, "regular file"),
    ]

    def set_up(self) -> None:
        super().set_up()
        with tempfile.TemporaryFile() as file:
            file.write(pattern(BIG))
            file.flush()
            self.file = os.dup(file.fileno())
        self.stack.callback(os.close, self.file)

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.sendfile(self.file, head=b"head", tail=b"tail", overlapped=overlapped)

    def sent(self, number: int) -> bytes:
        return b"head" + pattern(BIG) + b"tail"


class Shutdown(Stream):
    id = "shutdown"
    title = "`shutdown` behind a `send`"
    kind = "local"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.shutdown(7), ValueError, "how must be"),
        (lambda row: row.handle.shutdown("x"), TypeError, "how must be an integer"),
    ]

    def set_up(self) -> None:
        super().set_up()
        self.limit_room()
        self.asides.append(self.handle.send(pattern(BIG)))

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.shutdown(overlapped=overlapped)

    def complete(self) -> None:
        if not self.completed:
            self.pull(self.far, pattern(BIG))
        self.completed += 1

    def expected(self, number: int) -> Any:
        return 0


class Disconnect(Shutdown):
    id = "disconnect"
    title = "`disconnect` behind a `send`"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.disconnect(5), TypeError, "Overlapped"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.disconnect(overlapped=overlapped)


class ReceiveFrom(Socket):
    id = "recvfrom"
    title = "`recvfrom` on UDP"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.recvfrom(None), TypeError, r"recvfrom\(\) takes"),
        (lambda row: row.handle.recvfrom(1, socket.MSG_WAITALL), ValueError, "MSG_WAITALL"),
    ]

    def set_up(self) -> None:
        near, self.far = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self.stack.enter_context(self.far)
        for sock in (near, self.far):
            sock.bind(("127.0.0.1", 0))
        self.address = near.getsockname()
        self.handle = self.associate(near)

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.recvfrom(100, overlapped=overlapped)

    def complete(self) -> None:
        self.far.sendto(message(self.completed), self.address)
        self.completed += 1

    def expected(self, number: int) -> Any:
        return message(number), self.far.getsockname()


class SendTo(ReceiveFrom):
    id = "sendto"
    title = "`sendto` on UDP"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.sendto("x", row.address), TypeError, r"sendto\(\) takes"),
        (lambda row: row.handle.sendto(b"x", None), TypeError, "address"),
        (lambda row: row.handle.sendto(b"x", ("127.0.0.1", 2**16)), OverflowError, "port"),
    ]

    def set_up(self) -> None:
        super().set_up()
        self.waits = False  # on the loopback there is always room
        self.begun = 0
        self.far.settimeout(LONG)

    def start(self, overlapped: Overlapped | None = None) -> Any:
        number, self.begun = self.begun, self.begun + 1
        address = self.far.getsockname()
        return self.handle.sendto(message(number), address, overlapped=overlapped)

    def complete(self) -> None:
        assert self.far.recv(100) == message(self.completed)
        self.completed += 1

    def expected(self, number: int) -> Any:
        return 4


class Messages(Socket):
    """A pair of Unix datagram sockets, and a pipe whose reading end goes along."""

    not_on_windows = "Windows passes no descriptors through sockets"

    def set_up(self) -> None:
        near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.far.settimeout(LONG)
        self.stack.enter_context(self.far)
        self.pipe = os.pipe()
        for number in self.pipe:
            self.stack.callback(os.close, number)
        self.rights = [(*RIGHTS, array.array("i", self.pipe[:1]))]
        self.handle = self.associate(near)

    def is_the_pipe(self, ancillary: Any) -> bool:
        """Whether that is what came along; it is closed."""
        [(level, kind, data)] = ancillary
        assert (level, kind) == RIGHTS
        [number] = array.array("i", data)
        same = os.path.samestat(os.fstat(number), os.fstat(self.pipe[0]))
        os.close(number)
        return same


class ReceiveMessage(Messages):
    id = "recvmsg"
    title = "`recvmsg` of a descriptor"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.recvmsg({}), TypeError, r"recvmsg\(\) takes"),
        (lambda row: row.handle.recvmsg(1, -1), ValueError, "ancillary_size must be from 0"),
        (lambda row: row.handle.recvmsg(1, "x"), TypeError, "ancillary_size must be an integer"),
    ]

    def start(self, overlapped: Overlapped | None = None) -> Any:
        return self.handle.recvmsg(100, socket.CMSG_SPACE(4), overlapped=overlapped)

    def complete(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.far.sendmsg([message(self.completed)], self.rights)
        self.completed += 1

    def value(self, done: Any) -> Any:
        data, ancillary, flags, _ = done.overlapped.result()
        return data, self.is_the_pipe(ancillary), flags

    def expected(self, number: int) -> Any:
        return message(number), True, 0


class SendMessage(Messages):
    id = "sendmsg"
    title = "`sendmsg` of a descriptor to a full socket"
    wrong: ClassVar[list[Wrong]] = [
        (lambda row: row.handle.sendmsg("x"), TypeError, r"sendmsg\(\) takes"),
        (lambda row: row.handle.sendmsg(b"x", 5), TypeError, "ancillary data is"),
        (lambda row: row.handle.sendmsg(b"x", [(1, 2, "x")]), TypeError, "ancillary data is"),
    ]

    def set_up(self) -> None:
        super().set_up()
        self.begun = 0
        self.in_front = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.handles[0].file.send(b"", socket.MSG_DONTWAIT)
                self.in_front += 1

    def start(self, overlapped: Overlapped | None = None) -> Any:
        data = message(self.begun)
        operation = self.handle.sendmsg(data, self.rights, overlapped=overlapped)
        self.begun += 1
        return operation

    def complete(self) -> None:
        # There is room for all once those that have filled it are gone, and not before.
        while self.in_front:
            assert self.far.recv(100) == b""
            self.in_front -= 1

    def expected(self, number: int) -> Any:
        return 4

    def check_end(self, count: int) -> None:
        for number in range(count):
            data, ancillary, _, _ = self.far.recvmsg(100, socket.CMSG_SPACE(4))
            assert data == message(number)
            assert self.is_the_pipe(ancillary)
