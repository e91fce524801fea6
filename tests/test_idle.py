"""A port that has nothing to do does nothing (rule 14)."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from pathlib import Path

import pytest

from blocking_support import taker_in_time
from completionport import OperationAborted, PortClosed
from support import (
    Background,
    assert_idle,
    compute_until,
    needs_concurrency,
    run_python,
    take,
    take_one,
    wait_for_stats,
    wait_until,
    windows_has_no,
)

SYS_IO_URING_SETUP = 425
IORING_FEAT_NO_IOWAIT = 1 << 17


def assert_port_idle(port):
    def wait(seconds):
        assert port.get(seconds) is None

    assert_idle(0.25, most=0.05, wait=wait)


def test_an_empty_port_uses_no_cpu(port):
    assert_port_idle(port)


def test_connections_that_wait_use_no_cpu(port, make_pair):
    handles = [port.associate(make_pair("local")[0], number) for number in range(200)]
    for handle in handles:
        handle.recv(10)
        handle.recv(10)
    assert port.get(0.05) is None
    assert_port_idle(port)
    for handle in handles:
        handle.close()


def test_several_waiting_threads_use_no_cpu(make_port, pair):
    near, _far = pair
    port = make_port(8)
    with port.associate(near, "key") as handle:
        handle.recv(10)
        threads = [Background(port.get, 30) for _ in range(5)]
        wait_for_stats(port, waiting=5)
        assert_port_idle(port)
        for _ in threads:
            port.post()
        for thread in threads:
            thread.outcome()


@pytest.mark.alone
@needs_concurrency
def test_threads_that_wait_for_a_place_use_no_cpu(make_port):
    port = make_port(1)
    waiter, came = taker_in_time(port, 30)
    port.post("held")
    port.post("queued")
    take_one(port)
    came.append(True)
    # Who slept here would be replaced.
    compute_until(lambda: port.stats()["waiting"] == 1)
    clock = time.pthread_getcpuclockid(waiter.ident)
    began = time.clock_gettime(clock)
    end = time.monotonic() + 0.3
    compute_until(lambda: time.monotonic() > end)
    assert waiter.is_alive()
    assert time.clock_gettime(clock) - began < 0.02
    assert port.get(0).transferred == "queued"
    port.close()
    with pytest.raises(PortClosed):
        waiter.outcome()


def test_a_connection_that_has_ended_uses_no_cpu(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        handle.recv(10)
        far.close()
        take_one(port)
        assert_port_idle(port)


def test_data_that_nobody_asked_for_uses_no_cpu(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        handle.recv(1)
        far.sendall(b"more than was asked for")
        take_one(port)
        assert_port_idle(port)
        handle.recv(100)
        assert take_one(port).overlapped.result() == b"ore than was asked for"


def test_a_full_peer_uses_no_cpu(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        handle.send(bytes(8_000_000))
        far.sendall(b"not asked for either")
        assert port.get(0.05) is None
        assert_port_idle(port)


def test_a_peer_that_ended_while_a_send_waits_uses_no_cpu(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        handle.send(bytes(8_000_000))
        far.shutdown(1)
        assert port.get(0.05) is None
        assert_port_idle(port)


def test_a_handle_that_never_had_an_operation_uses_no_cpu(port, pair):
    near, far = pair
    with port.associate(near, "key"):
        far.sendall(b"data")
        far.close()
        assert_port_idle(port)


def test_a_waitall_receive_with_a_part_uses_no_cpu(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        handle.recv(100, socket.MSG_WAITALL)
        far.sendall(b"a part")
        assert port.get(0.05) is None
        assert_port_idle(port)


def test_a_zero_length_receive_uses_no_cpu(port, pair):
    near, _far = pair
    with port.associate(near, "key") as handle:
        handle.recv(0)
        assert_port_idle(port)


def test_cancelled_operations_leave_nothing_that_spins(port, pair):
    near, far = pair
    with port.associate(near, "key") as handle:
        for _ in range(10):
            handle.recv(10)
        handle.cancel()
        assert all(isinstance(done.error, OperationAborted) for done in take(port, 10))
        far.sendall(b"data")
        far.close()
        assert_port_idle(port)


@pytest.mark.alone
@windows_has_no("count of the context switches of a process")
def test_a_waiting_thread_wakes_up_seldom(engine):
    """CPU time is measured in ticks by some kernels; context switches are counted one by one."""
    run_python(SWITCHES, engine=engine)


SWITCHES = """
import resource
from completionport import CompletionPort
from support import local_pair

near, far = local_pair()
with CompletionPort() as port, port.associate(near, "key") as handle:
    handle.recv(10)
    assert port.get(0.05) is None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    assert port.get(1) is None
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before
far.close()
assert switches <= 20, f"{switches} wake-ups in a second of nothing"
"""


def kernel_can_leave_out_iowait():
    parameters = (ctypes.c_uint32 * 30)()
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(SYS_IO_URING_SETUP, 4, ctypes.byref(parameters))
    if descriptor < 0:
        return False
    os.close(descriptor)
    return bool(parameters[5] & IORING_FEAT_NO_IOWAIT)


@windows_has_no("io_uring")
def test_the_kernel_reports_features_where_this_test_looks():
    parameters = (ctypes.c_uint32 * 30)()
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(SYS_IO_URING_SETUP, 4, ctypes.byref(parameters))
    if descriptor < 0:
        pytest.skip(f"no io_uring here: {errno.errorcode[ctypes.get_errno()]}")
    os.close(descriptor)
    assert parameters[0] == 4
    assert parameters[5] & 1  # IORING_FEAT_SINGLE_MMAP, in every kernel since 5.4


def blocked_in_io():
    """How many tasks of this machine the kernel counts as waiting for input or output now."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("procs_blocked"):
            return int(line.split()[1])
    raise AssertionError("no procs_blocked in /proc/stat")


def test_a_waiting_thread_is_not_shown_as_iowait(make_port, pair, engine):
    if engine == "io_uring" and not kernel_can_leave_out_iowait():
        pytest.skip("this kernel has no IORING_ENTER_NO_IOWAIT")
    near, _far = pair
    port = make_port(2)
    with port.associate(near, "key") as handle:
        handle.recv(10)
        waiter = Background(port.get)
        wait_for_stats(port, waiting=1)
        waiter.join(0.05)
        # Another program may be in iowait for a moment; a thread that waits here would always be.
        wait_until(lambda: blocked_in_io() == 0, "nobody waits for input or output")
        assert waiter.is_alive()
        handle.cancel()
        waiter.outcome()
