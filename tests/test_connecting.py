"""What a connect does to a socket; one that fails, the next one, and what stood behind it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import tempfile

import pytest

from completionport import Operation, OperationAborted
from support import (
    LONG,
    WINDOWS,
    WINE,
    Background,
    assert_quiet,
    needs_unix_sockets,
    outcome,
    read_exactly,
    take,
    take_one,
    wait_until,
    wine_keeps_ports,
)

SEED = int(os.environ.get("COMPLETIONPORT_SEED", "0")) or random.randrange(1, 1 << 32)


wine_remembers_connects = pytest.mark.skipif(
    WINE, reason="Wine refuses the next connect of a socket whose connect failed or was cancelled"
)


@pytest.fixture(scope="module")
def nobody():
    """A socket that does not listen: who connects to its address is refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@contextlib.contextmanager
def full_listener():
    """One whose queue is full: who connects to it is not answered. Yields the listener."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(20):
            client = stack.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect(full.getsockname())
            except TimeoutError:
                break
        else:
            pytest.skip("connections to a full listener are answered here")
        yield full


@pytest.fixture
def full(nothing_left):
    with full_listener() as listener:
        yield listener


@pytest.fixture
def sock(nothing_left):
    with socket.socket() as made:
        yield made


def connect(port, handle, address):
    """The error of a connect, whether raised or told by its packet; None: connected."""
    try:
        operation = handle.connect(address)
    except OSError as error:
        return error
    done = take_one(port)
    assert done.overlapped is operation
    return done.error


def assert_works(port, handle, far):
    """The handle's connection to this socket moves bytes both ways."""
    far.settimeout(LONG)
    handle.send(b"to the peer")
    assert take_one(port).error is None
    assert read_exactly(far, 11) == b"to the peer"
    operation = handle.recv(4)
    far.sendall(b"back")
    assert take_one(port).overlapped is operation
    assert operation.result() == b"back"
    assert_quiet(port)


class TestConnect:
    @pytest.mark.parametrize("mode", [None, 0, 5.0], ids=["blocking", "non-blocking", "timeout"])
    def test_connect(self, port, listener, mode):
        sock = socket.socket()
        sock.settimeout(mode)
        with sock, port.associate(sock, "key") as handle:
            operation = handle.connect(listener.getsockname())
            assert operation.operation is Operation.CONNECT
            assert tuple(take_one(port)) == (0, "key", operation, None)
            peer, address = listener.accept()
            with peer:
                assert address == sock.getsockname()
                peer.sendall(b"welcome")
                handle.recv(100)
                assert take_one(port).overlapped.result() == b"welcome"
            assert sock.gettimeout() == mode

    @needs_unix_sockets
    def test_connect_to_a_unix_socket(self, port, tmp_path):
        path = str(tmp_path / "socket")
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as sock:
            server.bind(path)
            server.listen()
            with port.associate(sock, "key") as handle:
                handle.connect(path)
                assert take_one(port).error is None
                server.accept()[0].close()

    @pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
    def test_connect_over_ipv6(self, port, nothing_left):
        try:
            server = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            pytest.skip("no IPv6 here")
        with server, socket.socket(socket.AF_INET6) as sock, port.associate(sock, 1) as handle:
            handle.connect(server.getsockname())
            assert take_one(port).error is None
            server.accept()[0].close()

    def test_connect_looks_up_a_host_name(self, port, listener):
        with socket.socket() as sock, port.associate(sock, "key") as handle:
            handle.connect(("localhost", listener.getsockname()[1]))
            assert take_one(port).error is None
            listener.accept()[0].close()

    @pytest.fixture
    def nobody(self, nothing_left):
        """A socket that does not listen."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            yield sock

    def test_a_refused_connect_is_an_error(self, port, nobody):
        with socket.socket() as sock, port.associate(sock, "key") as handle:
            error = outcome(port, lambda: handle.connect(nobody.getsockname()))
            assert isinstance(error, ConnectionRefusedError)
            assert_quiet(port)

    def test_sends_behind_a_refused_connect_fail_with_one_packet_each(self, port, nobody):
        with socket.socket() as sock, port.associate(sock, "key") as handle:
            started = 0
            connect = lambda: handle.connect(nobody.getsockname())  # noqa: E731
            for start in (connect, lambda: handle.send(b"data")):
                with contextlib.suppress(OSError):
                    start()
                    started += 1
            for done in take(port, started):
                assert isinstance(done.error, OSError)
            assert_quiet(port)

    def test_connecting_twice_is_an_error(self, port, tcp, listener):
        near, _ = tcp
        with port.associate(near, "key") as handle:
            error = outcome(port, lambda: handle.connect(listener.getsockname()))
            assert error.errno == errno.EISCONN
            assert_quiet(port)

    @needs_unix_sockets
    def test_a_connect_to_a_full_unix_listener_is_refused_at_once(self, port, tmp_path):
        path = str(tmp_path / "socket")
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(path)
            server.listen(0)
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                try:
                    client.connect(path)
                except BlockingIOError:
                    break
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            handle = stack.enter_context(port.associate(sock, "key"))
            # The kernel has no way to tell when there is room: connect(2), EAGAIN.
            with pytest.raises(BlockingIOError, match="try again later, or give") as full:
                handle.connect(path)
            assert full.value.errno == errno.EAGAIN
            assert full.value.winsock_error == 10035
            assert_quiet(port)
            server.accept()[0].close()
            operation = handle.connect(path)
            assert tuple(take_one(port)) == (0, "key", operation, None)


class Failures:
    """Ways in which a connect fails, each with the errors that it may give."""

    def __init__(self, port, full, nobody):
        self.port, self.full, self.nobody = port, full, nobody

    def refused(self, sock, handle):
        error = connect(self.port, handle, self.nobody.getsockname())
        assert isinstance(error, ConnectionRefusedError), error

    def cancelled(self, sock, handle):
        operation = handle.connect(self.full.getsockname())
        assert self.port.get(0.01) is None
        assert handle.cancel(operation) == 1
        self.aborted(operation)

    def all_cancelled(self, sock, handle):
        operation = handle.connect(self.full.getsockname())
        assert handle.cancel() == 1
        self.aborted(operation)

    def aborted(self, operation):
        done = take_one(self.port)
        assert done.overlapped is operation
        assert isinstance(done.error, OperationAborted)

    def timed_out(self, sock, handle):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
        error = connect(self.port, handle, self.full.getsockname())
        assert error.errno == errno.ETIMEDOUT, error

    def unreachable(self, sock, handle):
        # A broadcast address is none to connect to.
        error = connect(self.port, handle, ("255.255.255.255", 9))
        assert isinstance(error, OSError), error


FAILURES = [
    "refused",
    "cancelled",
    "all_cancelled",
    pytest.param(
        "timed_out",
        marks=pytest.mark.skipif(
            not hasattr(socket, "TCP_USER_TIMEOUT"), reason="no time limit can be set here"
        ),
    ),
    "unreachable",
]


@wine_remembers_connects
@pytest.mark.parametrize("bound", [False, True], ids=["not bound", "bound"])
@pytest.mark.parametrize("failure", FAILURES)
def test_the_next_connect_works(port, sock, full, nobody, listener, failure, bound):
    if bound:
        sock.bind(("127.0.0.1", 0))
    with port.associate(sock, "key") as handle:
        fail = getattr(Failures(port, full, nobody), failure)
        for _ in range(1 if failure == "timed_out" else 3):
            fail(sock, handle)
        assert connect(port, handle, listener.getsockname()) is None
        far, address = listener.accept()
        with far:
            assert address == sock.getsockname()
            assert_works(port, handle, far)


@wine_remembers_connects
@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_the_next_connect_works_over_ipv6(port, nothing_left):
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener, socket.socket(socket.AF_INET6) as sock, port.associate(sock, "key") as handle:
        with socket.socket(socket.AF_INET6) as nobody:
            nobody.bind(("::1", 0))
            for _ in range(2):
                error = connect(port, handle, nobody.getsockname())
                assert isinstance(error, ConnectionRefusedError)
        assert connect(port, handle, listener.getsockname()) is None
        with listener.accept()[0] as far:
            assert_works(port, handle, far)


@needs_unix_sockets
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_SEQPACKET", "SOCK_DGRAM"])
def test_the_next_connect_of_a_unix_socket_works(port, nothing_left, kind):
    kind = getattr(socket, kind)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        server = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        handle = stack.enter_context(port.associate(sock, "key"))
        # Nothing there; a file that is no socket; a socket that does not listen.
        assert isinstance(connect(port, handle, f"{folder}/none"), FileNotFoundError)
        with open(f"{folder}/file", "wb"):
            assert isinstance(connect(port, handle, f"{folder}/file"), ConnectionRefusedError)
        server.bind(f"{folder}/server")
        if kind != socket.SOCK_DGRAM:
            error = connect(port, handle, f"{folder}/server")
            assert isinstance(error, ConnectionRefusedError)
            server.listen()
        assert connect(port, handle, f"{folder}/server") is None
        if kind == socket.SOCK_STREAM:
            with server.accept()[0] as far:
                assert_works(port, handle, far)


def test_a_connect_that_was_cancelled_is_over_for_the_peer_too(port, sock, full, nobody):
    """It does not come about later, when the peer has room."""
    with port.associate(sock, "key") as handle:
        Failures(port, full, nobody).cancelled(sock, handle)
        with pytest.raises(OSError, match=r"."):
            sock.getpeername()
        full.setblocking(False)
        peers = []

        def accepted():
            with contextlib.suppress(BlockingIOError):
                while True:
                    far, address = full.accept()
                    far.close()
                    peers.append(address)
            return len(peers) >= 1

        wait_until(accepted)
        # Another one that is begun now is answered at the earliest when this one would have been.
        with socket.create_connection(full.getsockname(), timeout=LONG) as later:
            wait_until(lambda: accepted() and later.getsockname() in peers)
        assert sock.getsockname() not in peers
        assert_quiet(port)


START = {
    "send": lambda handle, file: handle.send(b"data"),
    "sends of a sequence": lambda handle, file: handle.send([b"data", b"more"]),
    "sendmsg": lambda handle, file: handle.sendmsg(b"data"),
    "write": lambda handle, file: handle.write(b"data"),
    "zero copy": lambda handle, file: handle.send(bytes(100_000), zero_copy=True),
    "sendfile": lambda handle, file: handle.sendfile(file, head=b"data"),
    "shutdown": lambda handle, file: handle.shutdown(),
    "disconnect": lambda handle, file: handle.disconnect(),
    "recv": lambda handle, file: handle.recv(10),
    "recv buffers": lambda handle, file: handle.recv([bytearray(5), bytearray(5)]),
    "recv filled": lambda handle, file: handle.recv(10, socket.MSG_WAITALL),
    "recv none": lambda handle, file: handle.recv(0),
    "recvfrom": lambda handle, file: handle.recvfrom(10),
    "recvmsg": lambda handle, file: handle.recvmsg(10),
    "read": lambda handle, file: handle.read(10),
}
NO_RECEIVES = "Windows refuses a receive while there is no connection"


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(b"bytes of a file" * 1000)
    with open(tmp_path / "file", "rb") as opened:
        yield opened


BEHIND = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(WINDOWS and name.startswith(("recv", "read")), reason=NO_RECEIVES),
    )
    for name in START
]


def assert_failed_in_order(port, operations):
    """All have failed, with a packet each; those of one direction in order."""
    packets = take(port, len(operations))
    assert {id(done.overlapped) for done in packets} == {id(one) for one in operations}
    for done in packets:
        assert isinstance(done.error, OSError), done
        assert done.transferred == 0


def begin(port, failure, handle, full):
    """A connect that is under way, and what ends it."""
    if failure == "cancelled":
        operation = handle.connect(full.getsockname())
        return operation, lambda: handle.cancel(operation)
    assert failure == "timed out"
    handle.file.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
    return handle.connect(full.getsockname()), lambda: None


@pytest.mark.parametrize("failure", ["cancelled", "timed out"])
@pytest.mark.parametrize("name", BEHIND)
def test_what_stands_behind_a_connect_fails_with_it(
    port, sock, full, listener, file, failure, name
):
    if failure == "timed out" and not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("no time limit can be set here")
    with port.associate(sock, "key") as handle:
        connecting, end = begin(port, failure, handle, full)
        behind = [START[name](handle, file) for _ in range(3)]
        if failure == "cancelled":  # nobody knows how soon the other one comes
            assert port.get(0.01) is None
        end()
        assert_failed_in_order(port, [connecting, *behind])
        assert_quiet(port)
        if WINE:
            return  # it refuses the next connect
        # Nothing of it reaches the next connection.
        assert connect(port, handle, listener.getsockname()) is None
        with listener.accept()[0] as far:
            assert_works(port, handle, far)


@wine_remembers_connects
@pytest.mark.parametrize("failure", ["cancelled", "timed out"])
def test_what_stands_behind_another_connect_is_its_own(port, sock, full, listener, failure):
    if failure == "timed out" and not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("no time limit can be set here")
    with port.associate(sock, "key") as handle:
        first, end = begin(port, failure, handle, full)
        lost = handle.send(b"lost")
        second = handle.connect(listener.getsockname())
        sent = handle.send(b"hello")
        end()
        outcomes = {id(done.overlapped): done.error for done in take(port, 4)}
        assert isinstance(outcomes[id(first)], OSError)
        assert isinstance(outcomes[id(lost)], OSError)
        assert (outcomes[id(second)], outcomes[id(sent)]) == (None, None)
        with listener.accept()[0] as far:
            assert read_exactly(far, 5) == b"hello"
            assert_works(port, handle, far)


def test_a_queued_connect_that_is_cancelled_takes_along_what_is_behind_it(port, sock, full):
    with port.associate(sock, "key") as handle:
        first = handle.connect(full.getsockname())
        before = handle.send(b"for the first")
        second = handle.connect(full.getsockname())
        behind = handle.send(b"for the second")
        assert handle.cancel(second) == 1
        assert_failed_in_order(port, [second, behind])
        assert (first.pending, before.pending) == (True, True)
        assert handle.cancel(first) == 1
        assert_failed_in_order(port, [first, before])
        assert_quiet(port)


def test_a_connect_that_meets_a_connection_leaves_that_alone(port, tcp, listener):
    near, far = tcp
    with port.associate(near, "key") as handle:
        receiving = handle.recv(10)
        error = connect(port, handle, listener.getsockname())
        assert error.errno == errno.EISCONN
        far.sendall(b"hello")
        assert take_one(port).overlapped is receiving
        assert receiving.result() == b"hello"
        assert_works(port, handle, far)


@pytest.mark.skipif(WINDOWS, reason=NO_RECEIVES)
def test_a_receive_behind_a_connect_waits_for_its_connection(port, sock, listener):
    with port.associate(sock, "key") as handle:
        connecting = handle.connect(listener.getsockname())
        receiving = handle.recv(5)
        with listener.accept()[0] as far:
            far.sendall(b"hello")
            assert [done.overlapped for done in take(port, 2)] == [connecting, receiving]
            assert receiving.result() == b"hello"
            assert_works(port, handle, far)


@wine_keeps_ports
@wine_remembers_connects
def test_a_port_that_closes_ends_the_connect(make_port, sock, full, listener):
    port = make_port()
    handle = port.associate(sock, "key")
    operation = handle.connect(full.getsockname())
    port.close()
    with pytest.raises(OperationAborted):
        operation.result()
    another = make_port()
    with another.associate(sock, "key") as handle:
        assert connect(another, handle, listener.getsockname()) is None
        with listener.accept()[0] as far:
            assert_works(another, handle, far)


@wine_remembers_connects
def test_connects_that_are_cancelled_at_any_time(port, listener, nobody):
    """A race of the cancel with the answer: either may win, and both leave a socket that works."""
    print(f"COMPLETIONPORT_SEED={SEED}")
    dice = random.Random(SEED)
    refused = nobody.getsockname()
    for _ in range(100):
        with socket.socket() as sock, port.associate(sock, "key") as handle:
            address = dice.choice([refused, listener.getsockname()])
            try:
                connecting = handle.connect(address)
            except ConnectionRefusedError:
                continue
            behind = [handle.send(b"x" * dice.randrange(1, 5)) for _ in range(dice.randrange(3))]
            other = Background(handle.cancel, connecting)
            first, *packets = take(port, 1 + len(behind))
            other.outcome()
            assert first.overlapped is connecting
            assert [done.overlapped for done in packets] == behind
            for done in packets:
                assert (done.error is None) == (first.error is None)
            if first.error is None:
                assert address != refused
                listener.accept()[0].close()
                continue
            assert isinstance(first.error, (OperationAborted, ConnectionRefusedError))
            assert connect(port, handle, listener.getsockname()) is None
            # One that was cancelled may have been accepted before: it was reset.
            while True:
                far, name = listener.accept()
                with far:
                    if name == sock.getsockname():
                        assert first.overlapped.operation is Operation.CONNECT
                        assert_works(port, handle, far)
                        break
    assert_quiet(port)
