"""Every error of an operation has its Windows code and its Winsock code."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from completionport import OperationAborted, Overlapped
from completionport.interface.error_codes import CODES, UNKNOWN, add_codes, codes_of
from support import needs_plain_pipes, outcome, reset, take_one, wait_until, windows_has_no

# errno of what a system call of the engines can end with (their manual pages), and what Windows
# and Winsock call it.
KNOWN = {
    "ECONNRESET": (64, 10054),
    "ECONNREFUSED": (1225, 10061),
    "ECONNABORTED": (1236, 10053),
    "ENOTCONN": (1229, 10057),
    "EISCONN": (1230, 10056),
    "EPIPE": (233, 10058),
    "ETIMEDOUT": (121, 10060),
    "ENETUNREACH": (1231, 10051),
    "EHOSTUNREACH": (1232, 10065),
    "EADDRINUSE": (52, 10048),
    "EADDRNOTAVAIL": (1214, 10049),
    "ECANCELED": (995, 995),
    "EINVAL": (87, 10022),
    "EBADF": (6, 10038),
    "ENOTSOCK": (6, 10038),
    "EOPNOTSUPP": (50, 10045),
    "EMSGSIZE": (234, 10040),
    "ENOBUFS": (1450, 10055),
    "ENOMEM": (8, 10055),
    "EMFILE": (4, 10024),
    "ENFILE": (4, 10024),
    "EACCES": (5, 10013),
    "EFAULT": (998, 10014),
    "ENOSPC": (112, 10022),
    "EIO": (1117, 10022),
    "ESPIPE": (1, 10022),
}
ALSO = [
    "EAGAIN",
    "EALREADY",
    "EINPROGRESS",
    "EINTR",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
    "EPROTOTYPE",
    "ENOPROTOOPT",
    "EDESTADDRREQ",
    "ENETDOWN",
    "ENETRESET",
    "EHOSTDOWN",
    "EPERM",
    "EPROTO",
    "ENONET",
    "EISDIR",
    "ENOTDIR",
    "ENOENT",
    "EEXIST",
    "ELOOP",
    "ENAMETOOLONG",
    "ENXIO",
    "ENODEV",
    "ETXTBSY",
    "EFBIG",
    "EDQUOT",
    "EOVERFLOW",
    "EROFS",
    "EBUSY",
    "EXDEV",
    "EDEADLK",
    "ENOLCK",
    "ENOSYS",
    "ESTALE",
    "ENOTEMPTY",
    "ENOTTY",
    "EBADMSG",
    "EUCLEAN",
    "ENOMEDIUM",
    "ENOKEY",
    "EKEYREVOKED",
    "ETOOMANYREFS",
]


def codes(error):
    return error.winerror, error.winsock_error


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_table_knows_an_errno(name):
    known = CODES[getattr(errno, name)]
    assert (known.windows, known.winsock) == KNOWN[name]


@pytest.mark.parametrize("name", ALSO)
def test_the_table_has_every_errno_of_the_manual_pages(name):
    if not hasattr(errno, name):
        pytest.skip(f"{name} is not known on this system")
    assert codes_of(getattr(errno, name)) is not UNKNOWN


def test_an_unknown_errno_has_codes_too():
    assert codes_of(9999) is codes_of(None) is UNKNOWN
    error = add_codes(OSError(9999, "new"))
    assert codes(error) == (UNKNOWN.windows, UNKNOWN.winsock)


def test_codes_that_are_there_stay():
    error = OSError(errno.ECONNRESET, "reset")
    error.winerror = 1236
    assert codes(add_codes(error)) == (1236, 10054)


class TestOperations:
    def check(self, error, *names):
        # On Windows an errno has two names.
        (name,) = (name for name in names if getattr(errno, name) == error.errno)
        assert codes(error) == KNOWN[name]

    def test_a_reset(self, port, tcp):
        handle = port.associate(tcp[0], None)
        operation = handle.recv(10)
        reset(tcp[1])
        done = take_one(port)
        assert done.overlapped is operation
        self.check(done.error, "ECONNRESET")
        with pytest.raises(ConnectionResetError) as caught:
            operation.result()
        assert codes(caught.value) == KNOWN["ECONNRESET"]

    @windows_has_no("EPIPE, and Wine tells of a reset by a packet: see tests/win32")
    def test_a_reset_before_the_call(self, port, tcp):
        handle = port.associate(tcp[0], None)
        reset(tcp[1])
        wait_until(lambda: not connected(tcp[0]))
        with pytest.raises(ConnectionResetError) as caught:
            handle.recv(10)
        self.check(caught.value, "ECONNRESET")
        with pytest.raises(BrokenPipeError) as caught:
            handle.send(b"x")
        self.check(caught.value, "EPIPE")

    def test_a_refused_connect(self, port):
        with socket.socket() as nobody, socket.socket() as sock:
            nobody.bind(("127.0.0.1", 0))
            handle = port.associate(sock, None)
            error = outcome(port, lambda: handle.connect(nobody.getsockname()))
            self.check(error, "ECONNREFUSED")
            handle.close()

    def test_a_receive_without_a_connection(self, port):
        with socket.socket() as sock:
            handle = port.associate(sock, None)
            with pytest.raises(OSError, match="not connected") as caught:
                handle.recv(10)
            self.check(caught.value, "ENOTCONN")
            handle.close()

    def test_a_lookup_that_finds_nothing(self, port):
        port.getaddrinfo("no number", 80, flags=socket.AI_NUMERICHOST)
        error = take_one(port).error
        assert isinstance(error, socket.gaierror)
        assert codes(error) == (11001, 11001)  # WSAHOST_NOT_FOUND

    def test_an_operation_that_is_cancelled(self, port, tcp):
        operation = port.associate(tcp[0], None).recv(10)
        assert operation.cancel()
        error = take_one(port).error
        assert isinstance(error, OperationAborted)
        self.check(error, "ECANCELED")

    def test_a_socket_that_does_not_listen(self, port):
        with socket.socket() as sock:
            handle = port.associate(sock, None)
            with pytest.raises(OSError, match=r"listening|Invalid") as caught:
                handle.accept()
            self.check(caught.value, "EINVAL")
            handle.close()

    @needs_plain_pipes
    def test_what_the_library_refuses_itself(self, port, tmp_path):
        read, write = os.pipe()
        reader, writer = port.associate(read, None), port.associate(write, None)
        for call, name in (
            (lambda: reader.recv(1), "ENOTSOCK"),
            (lambda: reader.write(b"x"), "EBADF"),
            (lambda: writer.read(1), "EBADF"),
            (lambda: writer.write(b"x", 5), "ESPIPE"),
        ):
            with pytest.raises(OSError, match=r".") as caught:
                call()
            self.check(caught.value, name)
        reader.close()
        writer.close()

    @needs_plain_pipes
    def test_a_pipe_that_nobody_reads(self, port):
        read, write = os.pipe()
        handle = port.associate(write, None)
        os.close(read)
        error = outcome(port, lambda: handle.write(b"x"))
        self.check(error, "EPIPE")
        handle.close()

    @windows_has_no("device that is always full")
    def test_a_full_disk(self, port):
        with open("/dev/full", "wb", buffering=0) as full:
            handle = port.associate(full, None)
            error = outcome(port, lambda: handle.write(b"x"))
            self.check(error, "ENOSPC")
            handle.close()


@windows_has_no("need of them: there completionport.win32 is Windows itself")
class TestHandlesThatSkipThePort:
    """What `completionport.win32` needs of an engine."""

    def test_a_success_at_once_gives_no_packet(self, port, tcp):
        handle = port._associate_skipping(tcp[0], None)
        tcp[1].sendall(b"hello")
        wait_until(lambda: tcp[0].recv(1, socket.MSG_PEEK))
        operation = Overlapped()
        assert handle.recv(10, overlapped=operation) is None
        assert not operation.pending
        assert (operation.transferred, operation.result()) == (5, b"hello")
        assert handle.send(b"there", overlapped=operation) is None
        assert operation.result() == 5
        assert port.get(0) is None
        assert port.stats()["pending"] == 0

    def test_what_was_pending_gives_its_packet(self, port, tcp):
        handle = port._associate_skipping(tcp[0], "key")
        operation = handle.recv(10)
        tcp[1].sendall(b"hello")
        done = take_one(port)
        assert done == (5, "key", operation, None)

    def test_a_failure_at_once_is_raised(self, port):
        with socket.socket() as sock:
            handle = port._associate_skipping(sock, None)
            operation = Overlapped()
            with pytest.raises(OSError, match="not connected"):
                handle.recv(10, overlapped=operation)
            assert not operation.pending
            handle.close()

    def test_an_accept_gives_its_socket(self, port, listener):
        handle = port._associate_skipping(listener, None)
        with socket.create_connection(listener.getsockname()) as client:
            operation = Overlapped()
            if handle.accept(operation) is not None:
                assert take_one(port).overlapped is operation  # io_uring does not try it first
            with operation.result() as accepted:
                assert accepted.getpeername() == client.getsockname()
        handle.close()


def connected(sock):
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
