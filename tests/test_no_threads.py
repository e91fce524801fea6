"""At the system's limit of threads each operation still gives a packet, and soon.

How soon is told by the quickest of several programs, since a busy machine may hold one up.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap

import pytest

from support import WINDOWS, assert_quickest_below

pytestmark = pytest.mark.skipif(WINDOWS, reason="Windows has no limit of threads to set")

PROGRAM = textwrap.dedent("""
    import contextlib, ctypes, errno, os, resource, socket, sys, tempfile, threading, time
    import completionport
    from completionport import CompletionPort

    ENGINE, KIND, BEFORE, GROUP = sys.argv[1:5]
    HARD = resource.getrlimit(resource.RLIMIT_NPROC)[1]

    def write(name, text):
        with open(os.path.join(GROUP, name), "w") as file:
            file.write(text)

    if GROUP:
        write("cgroup.procs", str(os.getpid()))

    def limit(number):
        if GROUP:
            write("pids.max", str(number) if number == 1 else "max")
        else:
            resource.setrlimit(resource.RLIMIT_NPROC, (number, HARD))

    # What has to be found is found while its files may be read.
    "localhost".encode("idna")
    socket.getaddrinfo("localhost", 80)
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o777)
    path = os.path.join(folder, "file")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    os.write(fd, bytes(100_000))
    fifo = os.path.join(folder, "fifo")
    os.mkfifo(fifo)
    ours, peer = socket.socketpair()
    if not GROUP and os.getuid() == 0:
        # Root is exempt. Nobody else has this number, so nobody else counts.
        os.setgroups([])
        os.setresgid(61_000, 61_000, 61_000)
        os.setresuid(61_000 + os.getpid(), 61_000 + os.getpid(), 61_000 + os.getpid())
    port = CompletionPort(engine=ENGINE)
    handle = port.associate(fd, "file")
    stream = port.associate(ours, "stream")
    release = threading.Event()
    expected = []
    if BEFORE == "busy":
        # The only thread that could be had has something to do for long.
        expected.append(port.submit(release.wait))
        while handle.port.stats()["pending"] < 1: time.sleep(.01)
        time.sleep(.1)
        limit(1)
    elif BEFORE == "behind":
        # A thread that is at work on what nobody can take back, and is left behind with it.
        opening = port.open(fifo)
        time.sleep(.1)
        limit(1)
        opening.cancel()
        assert port.get(5).error is not None
    else:
        limit(1)
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=time.sleep, args=(.1,)).start()
        sys.exit("a thread could be started")

    def many_writes():
        return [handle.write(b"x" * 5000, 0) for _ in range(20)]

    START = {
        "stat": lambda: handle.stat(),
        "stat_name": lambda: port.stat(path),
        "write": lambda: handle.write(b"x" * 5000, 0),
        "writes": many_writes,
        "read": lambda: handle.read(5000, 0),
        "fsync": lambda: handle.fsync(),
        "write_and_fsync": lambda: [handle.write(b"x" * 5000, 0), handle.fsync()],
        "allocate": lambda: handle.allocate(0, 1_000_000),
        "open": lambda: port.open(path),
        "submit": lambda: port.submit(os.getpid),
        "getaddrinfo": lambda: port.getaddrinfo("localhost", 80),
        "copy_file": lambda: port.copy_file(path, path + "-copy"),
        "close_descriptor": lambda: port.close_descriptor(os.open(path, os.O_RDONLY)),
        "sendfile": lambda: stream.sendfile(fd, 0, 1000),
    }
    begun = time.monotonic()
    started = START[KIND]()
    started = started if isinstance(started, list) else [started]
    waiting = set(started)
    while waiting:
        packet = port.get(20)
        if packet is None:
            sys.exit(f"silence: {len(waiting)} of {len(started)}")
        waiting.discard(packet.overlapped)
        if packet.error is not None:
            assert isinstance(packet.error, OSError), packet.error
            assert packet.error.errno == errno.EAGAIN, packet.error
            print("error", packet.error)
    took = time.monotonic() - begun
    limit(HARD)
    # And when there are threads again all is as it was.
    release.set()
    again = START[KIND]()
    again = set(again if isinstance(again, list) else [again])
    while again:
        packet = port.get(10)
        assert packet is not None, "silence when there are threads again"
        if packet.overlapped in again:
            again.discard(packet.overlapped)
            assert packet.error is None, packet.error
    port.close()
    print("within", took)
""")

KINDS = (
    *("stat", "stat_name", "write", "writes", "read", "fsync", "write_and_fsync", "allocate"),
    *("open", "submit", "getaddrinfo", "copy_file", "close_descriptor", "sendfile"),
)


@pytest.mark.parametrize("before", ["none", "busy", "behind"])
@pytest.mark.parametrize("kind", KINDS)
def test_where_no_thread_can_be_had_a_packet_comes_within_a_second(engine, kind, before):
    carry_out(engine, kind, before, "")


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_does_at_the_limit_of_a_control_group(engine, kind, pids_group):
    """Which holds for root too, and for the threads that the kernel starts for io_uring."""
    carry_out(engine, kind, "none", pids_group)


@pytest.fixture
def pids_group():
    """A new control group whose number of threads can be limited."""
    made = []
    for place in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        try:
            made.append(tempfile.mkdtemp(prefix="completionport-", dir=place))
        except OSError:
            continue
        if os.path.exists(os.path.join(made[-1], "pids.max")):
            break
        os.rmdir(made.pop())
    if not made:
        pytest.skip("no control group with a limit of pids can be made here (root, a cgroup mount)")
    yield made[0]
    os.rmdir(made[0])


def carry_out(engine, kind, before, group):
    def once():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, engine, kind, before, group],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
        )
        found = re.search(r"^within (\S+)\n\Z", done.stdout, re.MULTILINE)
        assert found, done.stdout + done.stderr
        return float(found[1])

    assert_quickest_below(1, once)
