"""An exception in the midst of a call, as a signal handler raises it: nothing is lost or left open.

A profile function raises it here, where the first Python function of a name is called: that is one
of the places where Python runs the handler of a signal.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import sys

import pytest

from completionport import OperationAborted
from completionport.engines import COMPILED
from support import assert_quiet, needs_ancillary, needs_unix_sockets, take, take_one, wait_until

pytestmark = pytest.mark.usefixtures("no_collections")


@pytest.fixture(autouse=True)
def withstands_exceptions(request, engine):
    if engine == "iocp" and "fork" not in request.node.name:
        pytest.skip("iocp is not held to it yet: CONTRIBUTING.md has it among the known flaws")


@pytest.fixture
def one_step(engine):
    if engine not in COMPILED:
        pytest.skip("a packet is not lost here: tests/test_handlers_that_raise.py")


class Stop(Exception):
    """What the handler raises."""


@contextlib.contextmanager
def stopped_in(*names, after=0):
    """Have the call of such a function raise `Stop`, and expect it; without names, of any one."""
    left = after

    def stop(frame, event, argument):
        nonlocal left
        if event != "call" or (names and frame.f_code.co_name not in names):
            return
        if left:
            left -= 1
            return
        sys.setprofile(None)
        raise Stop

    sys.setprofile(stop)
    try:
        yield
    finally:
        sys.setprofile(None)


def aborted(handle):
    """An operation whose packet is there: it makes an error, with code of Python's."""
    operation = handle.recv(10)
    assert operation.cancel()
    return operation


def test_an_operation_is_over_when_get_is_interrupted(port, tcp, one_step):
    near, far = tcp
    with port.associate(near, "key") as handle:
        operation = aborted(handle)
        with pytest.raises(Stop), stopped_in("__init__"):
            port.get(1)
        assert not operation.pending
        assert operation.error.errno in (errno.EINTR, errno.ECANCELED)
        assert operation.error.winerror == 995
        # And free again.
        handle.recv(10, overlapped=operation)
        far.sendall(b"hello")
        assert take_one(port).overlapped is operation
        assert operation.result() == b"hello"
        assert_quiet(port)


def test_get_many_keeps_the_other_packets_when_it_is_interrupted(port, tcp, one_step):
    with port.associate(tcp[0], "key") as handle:
        for number in range(3):
            port.post(number, "posted", number)
        operation = aborted(handle)
        packets = []
        while operation.pending:
            with contextlib.suppress(Stop), stopped_in("__init__"):
                packets += port.get_many(10, 1)
        packets += take(port, 3 - len(packets))
        assert sorted(tuple(done)[:3] for done in packets) == [
            (number, "posted", number) for number in range(3)
        ]
        assert_quiet(port)


def test_close_ends_all_operations_when_it_is_interrupted(make_port, make_pair):
    port = make_port()
    handles = [port.associate(make_pair()[0], number) for number in range(5)]
    operations = [handle.recv(10) for handle in handles]
    with pytest.raises(Stop), stopped_in("__init__"):
        port.close()
    port.close()
    assert not any(operation.pending for operation in operations)
    assert all(isinstance(operation.error, OSError) for operation in operations)
    assert sum(isinstance(operation.error, OperationAborted) for operation in operations) >= 4


@needs_unix_sockets
@needs_ancillary
def test_descriptors_that_came_along_are_closed_when_get_is_interrupted(
    port, tmp_path, nothing_left, one_step
):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far,
    ):
        near.bind(str(tmp_path / "near"))
        far.bind(str(tmp_path / "far"))
        with port.associate(near, "key") as handle:
            operation = handle.recvmsg(10, 100)
            far.sendmsg([b"data"], rights, 0, str(tmp_path / "near"))
            with pytest.raises(Stop), stopped_in("unpack"):
                port.get(1)
            wait_until(lambda: not operation.pending)


@pytest.mark.parametrize("after", range(4))
def test_a_handle_whose_close_was_interrupted_can_be_closed(port, make_pair, after):
    near, _ = make_pair()
    handle = port.associate(near, "key")
    with contextlib.suppress(Stop), stopped_in(after=after):
        handle.close()
    handle.close()
    near.close()
    with socket.socket() as other:
        # The same inode may come again, and then belongs to nobody.
        port.associate(other, "other").close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_function_may_fork_and_return_in_the_child(port):
    operation = port.submit(os.fork)
    assert take_one(port).error is None
    child = operation.result()
    assert child > 0
    ended = []

    def has_ended():
        ended[:] = os.waitpid(child, os.WNOHANG)
        return ended[0] == child

    wait_until(has_ended, "the child ends")
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    port.post("still here")
    assert take_one(port).transferred == "still here"
