"""Descriptors of every kind that the system has: what read(2) and write(2) say is said, at once.

Also where they can't be read, or written, at all. What has nothing to read yet waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import sys
import tempfile

import pytest

from completionport import CompletionPort
from support import LONG, assert_quiet

if sys.platform == "win32":
    pytest.skip("Windows has no descriptors of such kinds", allow_module_level=True)

LIBRARY = ctypes.CDLL(None, use_errno=True)
DATA = b"12345678"


def checked(number):
    if number < 0:
        pytest.skip(f"not to be had here: {os.strerror(ctypes.get_errno())}")
    return number


def system_call(number, *arguments):
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("its number is known on Linux for x86-64 alone")
    return checked(LIBRARY.syscall(number, *arguments))


def opened(path, flags):
    try:
        return os.open(path, flags)
    except OSError as error:
        pytest.skip(f"not to be had here: {error}")


def has(module, name):
    if not hasattr(module, name):
        pytest.skip(f"this Python has no {name}")
    return getattr(module, name)


def epoll():
    with has(select, "epoll")() as made:
        return os.dup(made.fileno())


def one_end(which):
    ends = os.pipe()
    os.close(ends[1 - which])
    return ends[which]


def pipe_with(which):
    """An end of a pipe whose other one stays open for as long as the test runs."""

    def make():
        ends = os.pipe()
        OTHERS.append(ends[1 - which])
        return ends[which]

    return make


def terminal(which):
    def make():
        ends = os.openpty()
        OTHERS.append(ends[1 - which])
        return ends[which]

    return make


def signalfd():
    mask = (ctypes.c_ubyte * 128)()
    return checked(LIBRARY.signalfd(-1, mask, 0))


def perf_event():
    attributes = (ctypes.c_ubyte * 120)()
    ctypes.c_uint32.from_buffer(attributes, 0).value = 1  # PERF_TYPE_SOFTWARE
    ctypes.c_uint32.from_buffer(attributes, 4).value = 120
    return system_call(298, attributes, 0, -1, -1, 0)


def temporary(flags):
    number, name = tempfile.mkstemp()
    os.close(number)
    try:
        return os.open(name, flags)
    finally:
        os.unlink(name)


def sock(*kind):
    return socket.socket(*kind).detach()


OTHERS: list[int] = []
KINDS = {
    "epoll": epoll,
    "eventfd": lambda: has(os, "eventfd")(0),
    "timerfd": lambda: checked(LIBRARY.timerfd_create(1, 0)),
    "signalfd": signalfd,
    "pidfd": lambda: has(os, "pidfd_open")(os.getpid()),
    "inotify": lambda: checked(LIBRARY.inotify_init1(0)),
    "fanotify": lambda: checked(LIBRARY.fanotify_init(0, 0)),
    "userfaultfd": lambda: system_call(323, 0),
    "perf event": perf_event,
    "io_uring": lambda: system_call(425, 4, (ctypes.c_ubyte * 120)()),
    "memfd": lambda: has(os, "memfd_create")("it"),
    "file to read": lambda: temporary(os.O_RDONLY),
    "file to write": lambda: temporary(os.O_WRONLY),
    "directory": lambda: opened("/", os.O_RDONLY),
    "name of a file": lambda: opened(sys.executable, has(os, "O_PATH")),
    "name of a directory": lambda: opened("/", has(os, "O_PATH")),
    "namespace": lambda: opened("/proc/self/ns/net", os.O_RDONLY),
    "mounts": lambda: opened("/proc/self/mounts", os.O_RDONLY),
    "memory": lambda: opened("/proc/self/mem", os.O_RDWR),
    "pipe to read": pipe_with(0),
    "pipe to write": pipe_with(1),
    "pipe without a writer": lambda: one_end(0),
    "pipe without a reader": lambda: one_end(1),
    "terminal": terminal(1),
    "other side of a terminal": terminal(0),
    "/dev/null": lambda: opened("/dev/null", os.O_RDWR),
    "/dev/zero": lambda: opened("/dev/zero", os.O_RDWR),
    "/dev/full": lambda: opened("/dev/full", os.O_RDWR),
    "/dev/urandom": lambda: opened("/dev/urandom", os.O_RDONLY),
    "listener": lambda: socket.create_server(("127.0.0.1", 0)).detach(),
    "TCP socket": lambda: sock(socket.AF_INET, socket.SOCK_STREAM),
    "UDP socket": lambda: sock(socket.AF_INET, socket.SOCK_DGRAM),
    "Unix socket": lambda: sock(socket.AF_UNIX, socket.SOCK_STREAM),
    "Unix datagrams": lambda: sock(socket.AF_UNIX, socket.SOCK_DGRAM),
    "Unix records": lambda: sock(socket.AF_UNIX, socket.SOCK_SEQPACKET),
}


@pytest.fixture(autouse=True)
def others():
    yield
    while OTHERS:
        os.close(OTHERS.pop())


def said_by_the_system(number, writes, buffers):
    """The errno of the call that does not wait, 0 for a success."""
    with contextlib.suppress(OSError):  # of what is only a name
        os.set_blocking(number, False)
    try:
        if buffers and writes:
            os.writev(number, [DATA[:4], DATA[4:]])
        elif buffers:
            os.readv(number, [bytearray(4), bytearray(4)])
        elif writes:
            os.write(number, DATA)
        else:
            os.read(number, len(DATA))
        return 0
    except OSError as error:
        return error.errno


def said_by(port, number, writes, buffers, expected):
    """The same of the port: raised at the call or in the packet; EAGAIN where it waits."""
    with port.associate(number, "it") as handle:
        try:
            if writes:
                operation = handle.write([DATA[:4], DATA[4:]] if buffers else DATA)
            else:
                operation = handle.read([bytearray(4), bytearray(4)] if buffers else len(DATA))
        except OSError as error:
            assert_quiet(port)
            return error.errno
        # What is to wait is cancelled.
        done = port.get(0.1 if expected == errno.EAGAIN else LONG)
        if done is None:
            operation.cancel()
            done = port.get(5)
            assert done is not None, "it does not end"
            assert done.error.errno == errno.ECANCELED
            return errno.EAGAIN
        assert done.overlapped is operation
        return 0 if done.error is None else done.error.errno


@pytest.mark.parametrize("buffers", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("writes", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_system_says_is_said(engine, kind, writes, buffers):
    first = KINDS[kind]()
    try:
        expected = said_by_the_system(first, writes, buffers)
    finally:
        os.close(first)
    with CompletionPort(engine=engine) as port:
        number = KINDS[kind]()
        try:
            for _ in range(2):  # the second one finds what the first has left
                again = os.dup(number)
                assert said_by(port, again, writes, buffers, expected) == expected
                if expected not in (0, errno.EAGAIN):
                    continue
                break
        finally:
            with contextlib.suppress(OSError):
                os.close(number)
        assert_quiet(port)
