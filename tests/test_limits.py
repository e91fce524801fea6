"""At the kernel's limits: an operation is carried out whole, or refused with nothing lost.

Engine by engine the same, and its object can be used again behind it.
"""

from __future__ import annotations

import array
import errno
import os
import socket

import pytest

from completionport import Overlapped
from datagram_support import bound_socket
from support import (
    WINDOWS,
    Background,
    assert_quiet,
    needs_ancillary,
    needs_unix_sockets,
    outcome,
    pattern,
    read_exactly,
    take_one,
)

MANY = 3000
"""More buffers than one call of the kernel takes (IOV_MAX, 1024)."""

unix_only = pytest.mark.skipif(WINDOWS, reason="Windows has no such limit")


def pieces():
    data = pattern(MANY)
    return data, [data[place : place + 1] for place in range(MANY)]


@pytest.fixture(params=["UDP", "Unix", "records"])
def connected(request, nothing_left):
    """A pair that keeps messages apart: the first one for the port."""
    if request.param == "UDP":
        near, far = (bound_socket("udp").__enter__() for _ in range(2))
        near.connect(far.getsockname())
        far.connect(near.getsockname())
    elif not hasattr(socket, "AF_UNIX"):
        pytest.skip("this Python has no Unix sockets")
    else:
        kind = socket.SOCK_DGRAM if request.param == "Unix" else socket.SOCK_SEQPACKET
        near, far = socket.socketpair(socket.AF_UNIX, kind)
    far.settimeout(5)
    with near, far:
        yield near, far


def whole_or_refused(port, mine, start):
    """True when it was carried out; else the system has said that it is too much."""
    error = outcome(port, start)
    assert not mine.pending
    if error is None:
        return True
    assert error.errno in (errno.EMSGSIZE, errno.EINVAL), error
    return False


@unix_only
@pytest.mark.parametrize("call", ["send", "sendmsg", "write"])
def test_a_message_of_many_buffers_goes_whole_or_not_at_all(port, connected, call):
    near, far = connected
    data, buffers = pieces()
    with port.associate(near, "key") as handle:
        mine = Overlapped()
        if whole_or_refused(port, mine, lambda: getattr(handle, call)(buffers, overlapped=mine)):
            assert far.recv(MANY + 1) == data
        getattr(handle, call)(b"after it", overlapped=mine)
        assert take_one(port).overlapped is mine
        assert mine.result() == 8
        assert far.recv(MANY) == b"after it"
        assert_quiet(port)


@unix_only
@pytest.mark.parametrize("call", ["recv", "recvfrom", "recvmsg", "read"])
@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "there"])
def test_a_message_into_many_buffers_comes_whole_or_stays(port, connected, call, waits):
    near, far = connected
    data = pattern(MANY)
    with port.associate(near, "key") as handle:
        buffers = [bytearray(1) for _ in range(MANY)]
        mine = Overlapped()
        if not waits:
            far.send(data)
        error = None
        try:
            getattr(handle, call)(buffers, overlapped=mine)
            if waits:
                far.send(data)
            error = take_one(port).error
        except OSError as raised:
            error = raised
            if waits:
                far.send(data)
        assert not mine.pending
        if error is None:
            assert b"".join(buffers) == data
        else:
            assert error.errno == errno.EMSGSIZE
            handle.recv(MANY, overlapped=mine)
            assert take_one(port).overlapped is mine
            assert mine.result() == data
        assert_quiet(port)


def test_a_stream_takes_and_fills_any_number_of_buffers(port, pair):
    near, far = pair
    data, buffers = pieces()
    with port.associate(near, "key") as handle:
        mine = Overlapped()
        handle.send(buffers, overlapped=mine)
        assert take_one(port).transferred == MANY
        assert read_exactly(far, MANY) == data
        far.sendall(data)
        room = [bytearray(1) for _ in range(MANY)]
        filled = 0
        while filled < MANY:
            handle.recv(room[filled:], overlapped=mine)
            filled += take_one(port).transferred
        assert b"".join(room) == data
        assert_quiet(port)


def test_a_datagram_that_is_too_large_is_refused_and_the_next_one_goes(port):
    with bound_socket("udp") as near, bound_socket("udp") as far:
        far.settimeout(5)
        with port.associate(near, "key") as handle:
            mine = Overlapped()
            address = far.getsockname()
            error = outcome(port, lambda: handle.sendto(bytes(100_000), address, overlapped=mine))
            assert isinstance(error, OSError)
            assert error.errno in (errno.EMSGSIZE, getattr(errno, "WSAEMSGSIZE", 0))
            assert not mine.pending
            handle.sendto(b"hello", address, overlapped=mine)
            assert take_one(port).overlapped is mine
            assert far.recv(100) == b"hello"
            assert_quiet(port)


@needs_unix_sockets
@needs_ancillary
def test_too_many_descriptors_are_refused_and_none_stays_open(port, messages):
    """The kernel passes 253 at a time (SCM_MAX_FD)."""
    near, far = messages
    with open(os.devnull) as file, port.associate(near, "key") as handle:
        mine = Overlapped()

        def send(count):
            rights = array.array("i", [file.fileno()] * count)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            return handle.sendmsg(b"data", ancillary, overlapped=mine)

        error = outcome(port, lambda: send(300))
        assert error.errno == errno.EINVAL
        assert not mine.pending
        send(2)
        assert take_one(port).overlapped is mine
        data, [(_, _, numbers)], _, _ = far.recvmsg(10, socket.CMSG_SPACE(8))
        assert data == b"data"
        for number in array.array("i", numbers):
            os.close(number)
        assert_quiet(port)


@needs_unix_sockets
@needs_ancillary
def test_what_has_no_room_for_its_descriptors_says_so(port, messages, nothing_left):
    near, far = messages
    with open(os.devnull) as file, port.associate(near, "key") as handle:
        rights = array.array("i", [file.fileno()] * 4)
        far.sendmsg([b"data"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        operation = handle.recvmsg(10, socket.CMSG_SPACE(4))
        assert take_one(port).overlapped is operation
        data, ancillary, flags, _ = operation.result()
        assert data == b"data"
        assert flags & socket.MSG_CTRUNC
        for _, _, numbers in ancillary:
            found = array.array("i")
            found.frombytes(numbers[: len(numbers) // 4 * 4])
            for number in found:
                os.close(number)
        assert_quiet(port)


def test_a_send_that_fails_in_its_midst_tells_how_far_it_came(port, pair):
    """And what stands behind it fails too, each with a packet of its own."""
    near, far = pair
    with port.associate(near, "key") as handle:
        operations = [handle.send(pattern(20_000_000)), handle.send(b"behind it")]
        reader = Background(read_exactly, far, 100_000)
        reader.outcome()
        far.close()
        packets = {}
        for _ in operations:
            done = take_one(port)
            packets[id(done.overlapped)] = done
        for one in operations:
            assert isinstance(packets[id(one)].error, OSError)
            assert not one.pending
            with pytest.raises(type(packets[id(one)].error)):
                one.result()
        assert_quiet(port)
