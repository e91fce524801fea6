"""Requests to io_uring fail or come back short at random, in a build of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import completionport
from support import WINDOWS, report_of
from test_injected_faults import COMPILER, FIRST_SEED, PRELUDE, STREAMS

ROOT = Path(__file__).parent.parent
ENGINE = "io_uring"
SEEDS = 3
"""Of each test. ``COMPLETIONPORT_SEED`` says which one comes first."""

pytestmark = [
    pytest.mark.skipif(WINDOWS, reason="io_uring is Linux'"),
    pytest.mark.skipif(COMPILER is None, reason="the build needs a C compiler"),
    pytest.mark.skipif(importlib.util.find_spec("Cython") is None, reason="the build needs Cython"),
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the build needs the source tree"),
    pytest.mark.skipif(not report_of(ENGINE).usable, reason="io_uring does not run here"),
]

PASSING, ANY = 1, 0
"""What an engine gets over without a word, or also what ends an operation or a connection."""

OPENING = textwrap.dedent("""
    import ctypes, struct, sys
    from completionport.native.engines import io_uring
    shim = ctypes.CDLL(io_uring.__file__)
    ONLY_PASSING = int(sys.argv[5])
    shim.faults_only_passing(ONLY_PASSING)
    # What STREAMS knows of the other shim.
    shim.faults_find = lambda part: 1000
    told_of_opcode = shim.faults_told
    shim.faults_told = lambda index: told_of_opcode([6, 9, 10, 13, 14, 22, 23, 26, 27, 47][index])
    ctypes.CDLL = lambda name: shim
    # A server begins to accept, and to wait, under faults too.
    shim.faults_begin.argtypes = [ctypes.c_uint64, ctypes.c_int]
    shim.faults_begin(int(sys.argv[2]), int(sys.argv[3]))
""")

PAUSED = PRELUDE + textwrap.dedent("""
    states = {}

    class Pausing(Handler):
        def received(self, connection, data):
            connection.pause()
            states[connection.peername] = "paused"

        def closed(self, connection, error):
            states[connection.peername] = error

    def wait_for(condition, what):
        deadline = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > deadline:
                fail(f"{what}: {states}")
            time.sleep(.005)

    server = Server(Pausing(), port=0, workers=2, concurrency=1, engine=ENGINE)
    server.start()
    clients = {}
    for _ in range(60):
        client = socket.create_connection(server.address)
        clients[client.getsockname()] = client
        try:
            client.send(b"x")
        except OSError:
            pass  # cut off by a fault
    wait_for(lambda: states.keys() >= clients.keys(), "not all are received from")
    held = [name for name in clients if states[name] == "paused"]
    for client in clients.values():
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    wait_for(lambda: "paused" not in states.values(), "nobody is told of a reset")
    for name in held:
        if not isinstance(states[name], OSError):
            fail(f"a reset without an error: {states[name]}")
    end_faults()
    if workers() != 2:
        fail(f"{workers()} workers are left")
    server.stop(5)
    print("well")
""")

OPERATIONS = textwrap.dedent("""
    import errno, os, random, socket, tempfile, threading, time
    from completionport import *

    ENGINE, SEED, RATE, CONCURRENCY = sys.argv[1], *map(int, sys.argv[2:5])
    LIMIT = 30
    TOLD = {errno.ENOMEM, errno.ENOBUFS, errno.ECONNRESET, errno.EPIPE, errno.EIO}
    TOLD |= {errno.EMFILE, errno.ENFILE, errno.ECONNABORTED}
    rng = random.Random(SEED)
    port = CompletionPort(CONCURRENCY, engine=ENGINE)
    expected = set()

    def fail(text):
        print("FAILED", text, flush=True)
        os._exit(1)

    def take(cancelled=()):
        # Of what is on its way, each gives one packet; the errors by operation.
        failed = {}
        while expected:
            packet = port.get(LIMIT)
            if packet is None:
                fail(f"silence: {expected}")
            if packet.overlapped not in expected:
                fail(f"a second packet: {packet}")
            expected.remove(packet.overlapped)
            if packet.error is not None:
                number = getattr(packet.error, "errno", 0)
                aborted = packet.overlapped in cancelled and isinstance(
                    packet.error, OperationAborted
                )
                if not aborted and (ONLY_PASSING or number not in TOLD):
                    fail(f"{packet.overlapped}: {packet.error!r}")
                failed[packet.overlapped] = packet.error
        if port.get(0) is not None:
            fail("a packet of nothing")
        return failed

    def begun(overlapped):
        expected.add(overlapped)
        return overlapped

    def stream(left, right, reads, sends):
        # Larger than what the system buffers: much of it waits in the ring.
        one, other = port.associate(left, "left"), port.associate(right, "right")
        sent = rng.randbytes(rng.choice([100, 30_000, 1_500_000]))
        at, writes, got = 0, [], bytearray()
        while at < len(sent):
            size = rng.choice([1, 1000, 200_000, 900_000])
            writes.append(begun(getattr(one, sends)(sent[at:at + size])))
            at += size
        read = begun(getattr(other, reads)(65536))
        broken = False
        while expected and not (broken and expected == {read}):
            packet = port.get(LIMIT)
            if packet is None:
                fail(f"silence: {len(got)} of {len(sent)}, {expected}")
            if packet.overlapped not in expected:
                fail(f"a second packet: {packet}")
            expected.remove(packet.overlapped)
            if packet.error is not None:
                if ONLY_PASSING or packet.error.errno not in TOLD:
                    fail(f"{packet.overlapped}: {packet.error!r}")
                if packet.overlapped is not read:
                    broken = True  # behind it a part is missing
            elif packet.overlapped is read:
                got += packet.overlapped.result()
            if packet.overlapped is read and (broken or len(got) < len(sent)):
                if broken and not expected:
                    break
                read = begun(getattr(other, reads)(65536))
        if not broken and got != sent:
            fail(f"bytes are lost or out of order: {len(got)} of {len(sent)}")
        if read in expected:
            read.cancel()
            take({read})
        one.close()
        other.close()
        if not isinstance(left, int):
            left.close()
            right.close()

    def file():
        number, name = tempfile.mkstemp()
        handle = port.associate(number, "file")
        data = rng.randbytes(300_000)
        pieces = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(8))})
        for begin, end in zip(pieces, pieces[1:]):
            begun(handle.write(data[begin:end], begin))
        if not take():
            reads = {begun(handle.read(60_000, at)): at for at in pieces[:-1]}
            begun(handle.fsync())
            begun(handle.stat())
            begun(port.stat(name))
            failed = take()
            for read, at in reads.items():
                if read not in failed:
                    piece = read.result()
                    if not piece or piece != data[at:at + len(piece)]:
                        fail(f"wrong bytes at {at}: {len(piece)}")
        handle.close()
        os.unlink(name)

    def accept():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            handle = port.associate(listener, "listener")
            accepts = [begun(handle.accept()) for _ in range(4)]
            clients = [socket.create_connection(listener.getsockname()) for _ in range(4)]
            failed = take()
            names = {c.getsockname() for c in clients}
            for overlapped in accepts:
                if overlapped not in failed:
                    connection = overlapped.result()
                    connection = connection[0] if isinstance(connection, tuple) else connection
                    names.remove(connection.getpeername())
                    connection.close()
            for client in clients:
                client.close()
            handle.close()

    def cancel():
        left, right = socket.socketpair()
        handle = port.associate(left, "cancel")
        reads = {begun(handle.recv(10)) for _ in range(5)}
        for read in list(reads)[::2]:
            read.cancel()
        right.send(b"x" * 10)
        right.shutdown(socket.SHUT_WR)
        take(reads)
        handle.close()
        left.close()
        right.close()

    def zero_copy():
        left, right = tcp()
        one = port.associate(left, "zero copy")
        sent = rng.randbytes(2_000_000)
        got = bytearray()
        right.settimeout(LIMIT)

        def read():
            while piece := right.recv(1 << 20):
                got.extend(piece)

        reader = threading.Thread(target=read)
        reader.start()
        for at in range(0, len(sent), 500_000):
            begun(one.send(sent[at:at + 500_000], zero_copy=True))
        failed = take()
        left.shutdown(socket.SHUT_WR)
        reader.join()
        if not failed and got != sent:
            fail(f"bytes are lost or out of order: {len(got)} of {len(sent)}")
        one.close()
        left.close()
        right.close()

    def send_file():
        left, right = tcp()
        one = port.associate(left, "file to send")
        sent = rng.randbytes(3_000_000)
        with tempfile.TemporaryFile() as source:
            source.write(sent)
            source.flush()
            got = bytearray()
            right.settimeout(LIMIT)

            def read():
                while piece := right.recv(1 << 20):
                    got.extend(piece)

            reader = threading.Thread(target=read)
            reader.start()
            begun(one.sendfile(source, 0, len(sent)))
            failed = take()
            left.shutdown(socket.SHUT_WR)
            reader.join()
        if got != sent if not failed else not sent.startswith(got):
            fail(f"bytes of a file are lost or out of order: {len(got)} of {len(sent)}")
        one.close()
        left.close()
        right.close()

    def datagrams():
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        one, other = (port.associate(sock, "datagrams") for sock in sockets)
        receives = [begun(other.recvfrom(100)) for _ in range(3)] + [begun(other.recvmsg(100))]
        while any(receive in expected for receive in receives):
            send = begun(one.sendto(b"some text", sockets[1].getsockname()))
            while send in expected:
                packet = port.get(LIMIT)
                if packet is None:
                    fail(f"silence: {expected}")
                expected.remove(packet.overlapped)
                if packet.error is not None:
                    if ONLY_PASSING or packet.error.errno not in TOLD:
                        fail(f"{packet.overlapped}: {packet.error!r}")
                elif packet.overlapped is not send and (
                    packet.overlapped.result()[0] != b"some text"
                ):
                    fail(f"a datagram of other bytes: {packet.overlapped.result()}")
        one.close()
        other.close()
        for sock in sockets:
            sock.close()

    def tcp():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            left = socket.create_connection(listener.getsockname())
            return left, listener.accept()[0]

    for turn in range(12):
        stream(*tcp(), "recv", "send")
        stream(*socket.socketpair(), "recv", "send")
        reader, writer = os.pipe()
        stream(writer, reader, "read", "write")
        file()
        accept()
        cancel()
        datagrams()
        zero_copy()
        send_file()
    told = {kind: count for kind in range(64) if (count := told_of_opcode(kind))}
    print("faults by opcode:", told)
    if len(told) < 3:
        fail(f"there were hardly any: {told}")
    shim.faults_begin(SEED, 0)
    port.close()
    print("well")
""")


@pytest.fixture(scope="module")
def build(request, tmp_path_factory):
    """A folder with the package, io_uring's module of which has the faults.

    All is copied with its times, so that only this module is compiled, if the rest is.
    """
    if ENGINE not in (request.config.getoption("--engine") or [ENGINE]):
        pytest.skip("another engine is asked for")
    tree = tmp_path_factory.mktemp("faults")
    shutil.copytree(ROOT / "src", tree / "src")
    shutil.copytree(
        Path(completionport.__file__).parent, tree / "src" / "completionport", dirs_exist_ok=True
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for module in (tree / "src/completionport/native/engines").glob("io_uring.*.so"):
        module.unlink()
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "src"],
        cwd=tree,
        env={**os.environ, "COMPLETIONPORT_FAULTS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return tree / "src"


def hold(build, program, rate, only_passing):
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        arguments = [ENGINE, seed, rate, 1, only_passing]
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", OPENING + program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "PYTHONPATH": str(build)},
            check=False,
        )
        print(f"COMPLETIONPORT_SEED={seed}", done.stdout)
        assert done.stdout.endswith("well\n"), done.stdout + done.stderr
        assert "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]" not in done.stdout, done.stdout
        if program is STREAMS and only_passing:
            assert "48 of 48 whole" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("rate", [12, 2])
@pytest.mark.parametrize("only_passing", [PASSING, ANY], ids=["passing", "any"])
def test_a_server_outlives_the_faults_of_its_ring(build, rate, only_passing):
    # Where several threads run at a time a server's streams are not the ring's.
    hold(build, STREAMS, rate, only_passing)


@pytest.mark.parametrize("rate", [12, 2])
def test_a_paused_connection_is_told_of_a_reset_whatever_the_ring_says(build, rate):
    hold(build, PAUSED, rate, ANY)


@pytest.mark.parametrize("rate", [12, 2])
@pytest.mark.parametrize("only_passing", [PASSING, ANY], ids=["passing", "any"])
def test_each_operation_gives_its_packet_whatever_the_ring_says(build, rate, only_passing):
    hold(build, OPERATIONS, rate, only_passing)
