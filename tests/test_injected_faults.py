"""Calls and memory that fail at random: a server goes on, no byte is lost or out of order."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import LONG, WINDOWS, wait_until

COMPILER = shutil.which("cc") or shutil.which("gcc")
SOURCE = Path(__file__).parent / "faults.c"

pytestmark = [
    pytest.mark.skipif(WINDOWS, reason="LD_PRELOAD is not there on Windows"),
    pytest.mark.skipif(COMPILER is None, reason="the shim needs a C compiler"),
]

SEEDS = 2
"""Of each test. ``COMPLETIONPORT_SEED`` says which one comes first."""
FIRST_SEED = int(os.environ.get("COMPLETIONPORT_SEED", random.randrange(1_000_000)))

PRELUDE = textwrap.dedent("""
    import ctypes, errno, os, random, socket, sys, threading, time
    import completionport
    from completionport import *

    ENGINE, SEED, RATE, CONCURRENCY = sys.argv[1], *map(int, sys.argv[2:5])
    shim = ctypes.CDLL(None)
    shim.faults_begin.argtypes = [ctypes.c_uint64, ctypes.c_int]
    LIMIT = 30

    def begin_faults():
        assert ENGINE == "selectors" or shim.faults_find(b"/completionport/native/") > 20
        shim.faults_begin(SEED, RATE)

    def end_faults():
        shim.faults_begin(SEED, 0)
        print("faults:", [shim.faults_told(kind) for kind in range(10)])

    def fail(text):
        print("FAILED", text, flush=True)
        import faulthandler
        faulthandler.dump_traceback(file=sys.stdout)
        os._exit(1)

    def run(bodies):
        threads = [threading.Thread(target=body, daemon=True) for body in bodies]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + LIMIT
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                fail("a client still waits")

    def workers():
        return sum(t.name.startswith("completionport-worker") for t in threading.enumerate())
""")

STREAMS = PRELUDE + textwrap.dedent("""
    ends = {}        # of a peer: the error of `closed`, False until then
    whole = []

    class Echo(Handler):
        def connected(self, connection):
            ends[connection.peername] = False

        def received(self, connection, data):
            connection.send(data)

        def closed(self, connection, error):
            ends[connection.peername] = error

    def client(number, must):
        rng = random.Random(f"{SEED} {number}")
        sent = rng.randbytes(rng.choice([10, 5000, 200_000]))
        with socket.create_connection(server.address) as sock:
            sock.settimeout(LIMIT)
            name = sock.getsockname()
            got = bytearray()
            def write():
                try:
                    at = 0
                    while at < len(sent):
                        size = rng.choice([1, 100, 9000, 70_000])
                        sock.sendall(sent[at:at + size])
                        at += size
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
            writer = threading.Thread(target=write, daemon=True)
            writer.start()
            try:
                while piece := sock.recv(65536):
                    got += piece
            except TimeoutError:
                fail(f"silence: client {number} has {len(got)} of {len(sent)}")
            except OSError:
                pass
            writer.join(LIMIT)
        if bytes(got) != sent[:len(got)]:
            fail(f"bytes are lost or out of order: client {number}, {len(got)} of {len(sent)}")
        if len(got) == len(sent):
            whole.append(number)
        elif must:
            fail(f"a client was cut off without a fault: {len(got)} of {len(sent)}")
        else:
            deadline = time.monotonic() + LIMIT
            while ends.get(name) is False and time.monotonic() < deadline:
                time.sleep(.01)
            if ends.get(name, True) in (False, None):
                fail(f"client {number} was cut off, and nobody was told: {ends.get(name)}")

    server = Server(Echo(), port=0, workers=4, concurrency=CONCURRENCY, engine=ENGINE)
    server.start()
    begin_faults()
    for turn in range(6):
        run([lambda n=turn * 8 + n: client(n, False) for n in range(8)])
        if workers() != 4:
            fail(f"{workers()} workers are left")
    end_faults()
    print(len(whole), "of 48 whole")
    time.sleep(.2)  # until accepting goes on
    run([lambda n=n: client(1000 + n, True) for n in range(8)])
    if workers() != 4:
        fail(f"{workers()} workers are left")
    begun = time.monotonic()
    server.stop(LIMIT)
    if time.monotonic() - begun > LIMIT / 2:
        fail("the server did not stop")
    print("well")
""")

DATAGRAMS = PRELUDE + textwrap.dedent("""
    class Echo(DatagramHandler):
        def received(self, endpoint, data, address):
            endpoint.send(data, address)

    def client(number):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(server.address)
            for turn in range(40):
                text = f"{number} {turn}".encode() * 20
                for again in range(100):
                    # A datagram may be lost, also by a fault; the next one is not.
                    sock.settimeout(.1 if again < 99 else LIMIT)
                    sock.send(text)
                    try:
                        while sock.recv(10_000) != text:
                            pass
                        break
                    except TimeoutError:
                        pass
                else:
                    fail("no datagram comes any more")

    server = DatagramServer(Echo(), port=0, workers=4, concurrency=CONCURRENCY, engine=ENGINE)
    server.start()
    begin_faults()
    run([lambda n=n: client(n) for n in range(6)])
    end_faults()
    run([lambda n=n: client(n) for n in range(6)])
    if workers() != 4:
        fail(f"{workers()} workers are left")
    server.stop(5)
    print("well")
""")


OPERATIONS = PRELUDE + textwrap.dedent("""
    # What a program does itself: what is refused at once raises, all else gives one packet each.
    import tempfile
    port = CompletionPort(CONCURRENCY, engine=ENGINE)
    fd = os.open(tempfile.mktemp(), os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(range(256)) * 1000)
    handle = port.associate(fd, "file")
    rng = random.Random(SEED)
    expected, faults = set(), (OSError, MemoryError)

    def try_to(function, *args, **options):
        try:
            expected.add(function(*args, **options))
        except faults as error:
            assert not isinstance(error, OSError) or error.errno in FAULTS, error
    FAULTS = {
        *(errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.EINTR),
        *(errno.EMFILE, errno.ENFILE),
    }

    def take(timeout):
        deadline = time.monotonic() + timeout
        while True:
            try:
                return port.get(max(deadline - time.monotonic(), 0))
            except MemoryError:
                pass

    def take_all():
        while expected:
            packet = take(LIMIT)
            if packet is None:
                fail(f"silence: {expected}")
            if packet.overlapped is None:
                posted.discard(packet.key)
                continue
            expected.remove(packet.overlapped)
            error = packet.error
            if error is not None and getattr(error, "errno", 0) not in FAULTS and not isinstance(
                error, OperationAborted
            ):
                fail(f"{packet.overlapped}: {error!r}")
            if error is None and packet.overlapped.operation is Operation.READ:
                data = packet.overlapped.result()
                begin = starts[packet.overlapped]
                if data != (bytes(range(256)) * 1000)[begin:begin + len(data)] or not data:
                    fail(f"{packet.overlapped}: {len(data)} wrong bytes at {begin}")

    posted, starts = set(), {}
    begin_faults()
    for turn in range(60):
        left, right = socket.socketpair()
        one, other = None, None
        try:
            one, other = port.associate(left, "left"), port.associate(right, "right")
        except faults:
            pass
        for _ in range(rng.randrange(1, 12)):
            at = rng.randrange(200_000)
            before = set(expected)
            try_to(handle.read, rng.choice([1, 500, 50_000]), at)
            for new in expected - before:
                starts[new] = at
            try_to(handle.stat)
            try_to(port.stat, "/")
            try_to(port.submit, os.getpid)
            try_to(port.open, "/dev/null")
            try_to(port.getaddrinfo, "127.0.0.1", 80)
            try:
                port.post(1, turn)
                posted.add(turn)
            except MemoryError:
                pass
            try:
                port.post_after(0, 1, -turn)
                posted.add(-turn)
            except MemoryError:
                pass
            if other is not None:
                try_to(one.send, b"x" * rng.choice([1, 9000]))
                try_to(other.recv, 65536)
        if other is not None:
            one.close()
            other.close()
        left.close()
        right.close()
        take_all()
        for overlapped in list(starts):
            del starts[overlapped]
    end_faults()
    while posted:
        packet = take(5)
        if packet is None:
            fail(f"posted, and never came: {posted}")
        posted.discard(packet.key)
    handle.close()
    port.close()
    print("well")
""")


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    target = tmp_path_factory.mktemp("shim") / "faults.so"
    subprocess.run(
        [COMPILER, "-O1", "-g", "-shared", "-fPIC", str(SOURCE), "-o", str(target), "-ldl"],
        check=True,
    )
    return target


SHORT_OF_MEMORY = textwrap.dedent("""
    import resource, sys, threading
    from completionport import *

    class Generous(Handler):
        def received(self, connection, data):
            if data == b"workers":
                count = sum(t.name.startswith("completionport-w") for t in threading.enumerate())
                connection.send(str(count).encode())
            else:
                for _ in range(20):
                    connection.send(bytes(1_000_000))

    server = Server(Generous(), port=0, workers=8, engine=sys.argv[1], send_limit=1 << 30)
    server.start()
    pages = int(open("/proc/self/statm").read().split()[0])
    size = pages * resource.getpagesize() + 150_000_000
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    print(server.address[1], flush=True)
    sys.stdin.read()
    server.stop(2)
    print("well")
""")


def test_a_server_outlives_two_hundred_clients_that_do_not_read(engine, tmp_path):
    log = tmp_path / "log"  # a pipe would be full, and who logs then waits
    with (
        log.open("w") as errors_go_to,
        subprocess.Popen(
            [sys.executable, "-c", SHORT_OF_MEMORY, engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors_go_to,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        clients = [socket.create_connection(address, LONG) for _ in range(200)]
        for client in clients:
            with contextlib.suppress(OSError):
                client.send(b"more")

        def answer():
            # Whoever comes while there is no memory may be cut off.
            with contextlib.suppress(OSError), socket.create_connection(address, 1) as client:
                client.settimeout(1)
                client.send(b"workers")
                return client.recv(100)
            return None

        wait_until(lambda: answer() is not None, "the server takes clients while memory is short")
        for client in clients:
            client.close()
        wait_until(lambda: answer() == b"8", "all workers are there, and serve")
        out, _ = process.communicate("", timeout=60)
        errors = log.read_text()
        assert out.endswith("well\n"), errors[-3000:]
        assert "MemoryError" in errors or "allocate memory" in errors, errors[-3000:]


def hold(shim, program, engine, rate, concurrency):
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        done = subprocess.run(
            [
                sys.executable,
                "-X",
                "faulthandler",
                "-c",
                program,
                engine,
                str(seed),
                str(rate),
                str(concurrency),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "LD_PRELOAD": str(shim)},
            check=False,
        )
        print(f"COMPLETIONPORT_SEED={seed}", done.stdout)
        assert done.stdout.endswith("well\n"), done.stdout + done.stderr


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("rate", [60, 8])
def test_a_server_outlives_the_faults_of_its_calls(engine, shim, rate, concurrency):
    hold(shim, STREAMS, engine, rate, concurrency)


@pytest.mark.parametrize("rate", [60, 8])
def test_a_datagram_server_outlives_the_faults_of_its_calls(engine, shim, rate):
    hold(shim, DATAGRAMS, engine, rate, 4)


@pytest.mark.parametrize("rate", [100, 30])
def test_each_operation_gives_its_packet_whatever_fails(engine, shim, rate):
    hold(shim, OPERATIONS, engine, rate, 1)
