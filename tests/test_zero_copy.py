"""Sends from the program's own pages: when the packet comes, and who gets the buffers back."""

from __future__ import annotations

import array
import contextlib
import os
import platform
import random
import socket
import sys
import textwrap
import threading

import pytest

from completionport import OperationAborted, Overlapped, Strand
from support import (
    LONG,
    WINDOWS,
    Background,
    assert_quiet,
    needs_unix_sockets,
    pattern,
    read_exactly,
    read_to_end,
    reset,
    run_python,
    take,
    take_one,
    unix_pair,
    wait_until,
)

if sys.platform != "win32":
    import fcntl
    import termios

SIZE = 100_000
"""Bytes: a socket takes them at once, and its peer does not before it reads."""
HAS_ZERO_COPY = not WINDOWS and tuple(map(int, platform.release().split(".")[:2])) >= (6, 7)


@pytest.fixture
def zero_copy(engine):
    """For what only shows where the kernel sends from the program's pages."""
    if engine != "io_uring" or not HAS_ZERO_COPY:
        pytest.skip("only io_uring of Linux 6.7 sends without a copy")


@pytest.fixture
def pair():
    """Connected sockets: the near one takes all at once, the far one little before it reads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    far.settimeout(LONG)
    with near, far:
        yield near, far


@pytest.fixture
def port(make_port):
    return make_port(4)


class Sent(Overlapped):
    number: int


def test_the_packet_comes_when_the_peer_has_the_bytes(port, pair, zero_copy):
    near, far = pair
    handle = port.associate(near, "key")
    data = pattern(SIZE)
    plain = handle.send(data)
    assert take_one(port).overlapped is plain  # the kernel has a copy
    assert read_exactly(far, SIZE) == data
    sent = handle.send(data, zero_copy=True)
    assert port.get(0.1) is None
    assert sent.pending
    assert port.stats()["pending"] == 1
    reader = Background(lambda: read_exactly(far, SIZE))
    done = take_one(port)
    assert (done.overlapped, done.transferred, done.error) == (sent, SIZE, None)
    assert reader.outcome() == data
    assert_quiet(port)


def test_buffers_are_held_until_the_packet(port, pair, zero_copy):
    near, far = pair
    handle = port.associate(near, "key")
    data = bytearray(pattern(SIZE))
    handle.send(data, zero_copy=True)
    with pytest.raises(BufferError):
        data.append(0)
    assert read_exactly(far, SIZE) == data
    assert take_one(port).transferred == SIZE
    data.append(0)


def test_what_is_posted_behind_goes_on_and_its_packet_follows(port, pair, zero_copy):
    near, far = pair
    handle = port.associate(near, "key")
    first = handle.send(pattern(SIZE), zero_copy=True)
    assert port.get(0.05) is None
    second = handle.send(b"second")
    end = handle.shutdown()
    assert port.get(0) is None
    assert port.stats()["pending"] == 3
    # Nobody is in get(): all of it is with the kernel.
    assert read_to_end(far) == pattern(SIZE) + b"second"
    assert [done.overlapped for done in take(port, 3)] == [first, second, end]
    assert_quiet(port)


@pytest.mark.parametrize("bound", [True, False], ids=["on a strand", "free"])
def test_packets_come_in_the_order_of_the_sends(port, pair, bound):
    near, far = pair
    handle = port.associate(near, "key", strand=Strand(port) if bound else None)
    reader = Background(lambda: read_to_end(far))
    for _ in range(10):
        sends = [handle.send(pattern(20_000), zero_copy=n % 4 > 0) for n in range(40)]
        assert [done.overlapped for done in take(port, 40)] == sends
    handle.close()
    assert len(reader.outcome()) == 400 * 20_000


def test_receives_do_not_wait_behind_it(port, pair):
    near, far = pair
    handle = port.associate(near, "key")
    handle.send(pattern(SIZE), zero_copy=True)
    receive = handle.recv(5)
    far.sendall(b"hello")
    assert receive in (done.overlapped for done in take(port, 1 + (not is_held(port))))
    assert receive.result() == b"hello"


def is_held(port):
    """Whether a send under way has no packet before its peer reads."""
    return port.stats()["engine"] == "io_uring" and HAS_ZERO_COPY


@pytest.mark.parametrize("how", ["shutdown", "disconnect"])
def test_who_closes_on_the_packet_of_the_end_loses_nothing(port, pair, how):
    near, far = pair
    handle = port.associate(near, "key")
    sent = handle.send(pattern(SIZE), zero_copy=True)
    end = getattr(handle, how)()
    reader = Background(lambda: read_to_end(far))
    while (done := take_one(port)).overlapped is not end:
        assert done.overlapped is sent
    handle.close()
    assert (sent.error, end.error) == (None, None)
    assert reader.outcome() == pattern(SIZE)
    assert_quiet(port)


def test_one_that_is_too_far_to_be_cancelled_comes_to_its_end(port, pair, zero_copy):
    near, far = pair
    handle = port.associate(near, "key")
    sent = handle.send(pattern(SIZE), zero_copy=True)
    assert port.get(0.05) is None
    assert not sent.cancel()
    assert handle.cancel() == 0
    assert read_exactly(far, SIZE) == pattern(SIZE)
    assert take_one(port).error is None
    assert_quiet(port)


def test_a_closed_handle_resets_the_connection_and_gives_the_buffers_back(port, pair, zero_copy):
    near, far = pair
    other = near.dup()  # whoever has the socket besides
    handle = port.associate(near, "key")
    data = bytearray(SIZE)
    sent = handle.send(data, zero_copy=True)
    assert port.get(0.05) is None
    handle.close()
    done = take_one(port)
    assert done.overlapped is sent
    assert isinstance(done.error, OperationAborted)
    data.append(0)
    with pytest.raises(ConnectionResetError), other:
        read_to_end(far)
    assert_quiet(port)


@pytest.mark.parametrize("size", [SIZE, 50 * SIZE], ids=["all taken", "a part of it taken"])
@pytest.mark.parametrize("end", ["handle", "port"])
def test_a_close_aborts_all_that_is_under_way(port, pair, zero_copy, size, end):
    """What the reset has failed too."""
    near, _ = pair
    handle = port.associate(near, "key")
    operations = [handle.send(bytes(size), zero_copy=True)]
    operations += [handle.recv(100), handle.recv(100, socket.MSG_WAITALL), handle.recvmsg(100)]
    assert port.get(0.05) is None
    operations += [handle.send(bytes(50 * SIZE)), handle.send(bytes(SIZE), zero_copy=True)]
    operations += [handle.shutdown()]
    (handle if end == "handle" else port).close()
    if end == "handle":
        take(port, len(operations))
    assert [type(one.error) for one in operations] == [OperationAborted] * len(operations)


def test_a_connection_whose_peer_has_all_is_not_reset(port, pair, zero_copy):
    """Nobody has looked for the notification yet."""
    near, far = pair
    handle = port.associate(near, "key")
    handle.send(pattern(SIZE), zero_copy=True)
    assert port.get(0.05) is None
    assert read_exactly(far, SIZE) == pattern(SIZE)
    wait_until(lambda: unacknowledged_bytes(near) == 0)
    handle.close()
    assert read_to_end(far) == b""
    take(port, 1)
    assert_quiet(port)


def unacknowledged_bytes(sock):
    """SIOCOUTQ: tcp(7)."""
    number = array.array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, number)
    return number[0]


def test_a_closed_port_resets_the_connection_and_gives_the_buffers_back(port, pair, zero_copy):
    near, far = pair
    handle = port.associate(near, "key")
    data = bytearray(SIZE)
    behind = bytearray(SIZE * 20)
    sends = [handle.send(data, zero_copy=True), handle.send(behind, zero_copy=True)]
    port.close()
    assert not any(one.pending for one in sends)
    data.append(0)
    behind.append(0)
    with pytest.raises(ConnectionResetError):
        read_to_end(far)


def test_a_peer_that_has_gone_fails_it(port, pair):
    near, far = pair
    handle = port.associate(near, "key")
    data = bytearray(SIZE * 50)
    handle.send(data, zero_copy=True)
    reset(far)
    done = take_one(port)
    assert isinstance(done.error, ConnectionError)
    assert done.transferred < SIZE * 50
    data.append(0)


def test_a_buffer_of_many_pieces_arrives_whole(port, pair):
    near, far = pair
    handle = port.associate(near, "key")
    data = pattern(9_000_000)
    reader = Background(lambda: read_exactly(far, 2 * len(data)))
    handle.send(data, zero_copy=True)
    view = memoryview(data)
    handle.send([view[n : n + 30_000] for n in range(0, len(data), 30_000)], zero_copy=True)
    assert [done.transferred for done in take(port, 2)] == [len(data)] * 2
    assert reader.outcome() == data + data


def test_small_ones_are_copied(port, pair):
    near, _ = pair
    handle = port.associate(near, "key")
    handle.send(bytes(10_000), zero_copy=True)
    assert take_one(port).transferred == 10_000  # though nobody reads
    assert port.stats()["zero_copy_sends"] == 0


@needs_unix_sockets
def test_unix_sockets_copy(port):
    near, far = unix_pair()
    with near, far:
        handle = port.associate(near, "key")
        handle.send(pattern(SIZE), zero_copy=True)
        assert read_exactly(far, SIZE) == pattern(SIZE)
        assert take_one(port).error is None
        assert port.stats()["zero_copy_sends"] == 0


def test_datagrams_are_sent_so_too(port):
    with (
        socket.socket(type=socket.SOCK_DGRAM) as far,
        socket.socket(type=socket.SOCK_DGRAM) as near,
    ):
        far.bind(("127.0.0.1", 0))
        far.settimeout(LONG)
        near.connect(far.getsockname())
        handle = port.associate(near, "key")
        for number in range(3):
            handle.send(pattern(40_000, number), zero_copy=True)
            assert take_one(port).transferred == 40_000
            assert far.recv(65536) == pattern(40_000, number)


def test_stats_tell_what_the_kernel_copied_after_all(port, pair, zero_copy):
    near, far = pair
    near.setblocking(False)  # requests that find no room take nothing, and are not counted
    handle = port.associate(near, "key")
    reader = Background(lambda: read_exactly(far, 40 * SIZE))
    for _ in range(4):
        handle.send(bytes(10 * SIZE), zero_copy=True)
    take(port, 4)
    reader.outcome()
    numbers = port.stats()
    assert numbers["zero_copy_sends"] >= 4
    assert numbers["zero_copy_copied"] == numbers["zero_copy_sends"]  # over loopback all is
    port.close()
    assert port.stats()["zero_copy_sends"] == numbers["zero_copy_sends"]


OWN_NETWORK = """
    import ctypes, socket, subprocess, sys, time
    from completionport import CompletionPort, OperationAborted

    failed = ctypes.CDLL(None).unshare(0x40000000)  # CLONE_NEWNET
    for command in (
        "ip link add sink type ifb",  # which drops what it is given
        "ip addr add 10.9.0.1/24 dev sink",
        "ip link set sink arp on mtu 60000 up",
        "ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:01 dev sink",
        "ip ntable change name arp_cache dev sink retrans 300",  # nobody answers for 10.9.0.3
    ):
        if failed or subprocess.run(command.split(), capture_output=True).returncode:
            print("no network")
            sys.exit()
    port = CompletionPort(engine="io_uring")
    sock = socket.socket(type=socket.SOCK_DGRAM)
"""


def run_in_own_network(script):
    if os.geteuid() != 0:
        pytest.skip("making a network of its own takes root")
    printed = run_python(textwrap.dedent(OWN_NETWORK) + textwrap.dedent(script)).stdout.split()
    if printed == ["no", "network"]:
        pytest.skip("no network interface of its own can be made here")
    return printed


def test_the_network_is_given_the_pages_themselves(zero_copy):
    """An interface that drops what it is given copies nothing, and the kernel says so."""
    script = """
        sock.connect(("10.9.0.2", 9))
        handle = port.associate(sock, "key")
        for _ in range(10):
            handle.send(bytes(50_000), zero_copy=True)
            assert port.get(5).transferred == 50_000
        print(port.stats()["zero_copy_sends"], port.stats()["zero_copy_copied"])
        port.close()
    """
    assert run_in_own_network(script) == ["10", "0"]


@pytest.mark.parametrize("closed", ["handle", "port"])
def test_a_close_waits_for_what_the_network_holds_back(zero_copy, closed):
    """The address of the receiver is asked for, for some time."""
    script = f"""
        sock.connect(("10.9.0.3", 9))
        handle = port.associate(sock, "key")
        data = bytearray(50_000)
        sent = handle.send(data, zero_copy=True)
        assert port.get(0) is None
        {closed}.close()
        print(port.closed or port.get(20).overlapped is sent, type(sent.error).__name__)
        data.append(0)
        port.close()
    """
    assert run_in_own_network(script) == ["True", "OperationAborted"]


OTHER_USER = """
    import os, resource, socket, sys
    from completionport import CompletionPort, Overlapped
    from support import Background, pattern, read_exactly

    def pairs(count):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            for _ in range(count):
                near = socket.create_connection(listener.getsockname())
                yield near, listener.accept()[0]

    def become(memory):
        CompletionPort(engine="io_uring").close()  # loads what another user may not read
        if os.geteuid() == 0:
            os.setuid(65534)  # root may pin what it likes
        port = CompletionPort(engine="io_uring")
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (memory, memory))
        return port
"""
"""A program of a user who may not pin as much memory as it likes."""


def run_as_other_user(script):
    return run_python(textwrap.dedent(OTHER_USER) + textwrap.dedent(script)).stdout.split()


def test_who_may_pin_no_memory_gets_a_copy(zero_copy):
    script = """
        [(near, far)] = pairs(1)
        with become(65536) as port:
            handle = port.associate(near, "key")
            data = os.urandom(1_000_000)
            handle.send(data, zero_copy=True)
            reader = Background(lambda: read_exactly(far, len(data)))
            done = port.get(5)
            assert (done.transferred, done.error) == (len(data), None)
            assert reader.outcome() == data
            print(port.stats()["zero_copy_sends"])
    """
    assert run_as_other_user(script) == ["0"]


def test_a_send_that_is_copied_from_the_middle_on_still_waits_for_its_pages(zero_copy):
    if os.geteuid() != 0:
        pytest.skip("a socket with so much room takes root")
    script = """
        [(near, far)] = pairs(1)
        near.setsockopt(socket.SOL_SOCKET, 32, 16 << 20)  # SO_SNDBUFFORCE
        with become(3 << 20) as port:
            handle = port.associate(near, "key")
            data = bytearray(pattern(3 << 20))
            handle.send(data, zero_copy=True)
            assert port.get(0.2) is None  # the second piece is one too many for this user
            sent = port.stats()["zero_copy_sends"]
            reader = Background(lambda: read_exactly(far, len(data)))
            done = port.get(5)
            assert (done.transferred, done.error) == (len(data), None)
            data[:] = bytes(len(data))
            assert reader.outcome() == pattern(len(data))
            print(sent)
    """
    assert run_as_other_user(script) == ["1"]


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_buffers_used_again_where_memory_for_pages_is_short(zero_copy, blocking):
    script = f"""
        count, size, rounds = 8, 3_000_000, 4
        ends = list(pairs(count))
        port = become(8 << 20)
        handles = []
        for near, _ in ends:
            near.setblocking({blocking})
            handles.append(port.associate(near, "key"))
        readers = [Background(lambda far=far: read_exactly(far, size * rounds)) for _, far in ends]
        data = pattern(size)
        for _ in range(rounds):
            buffers = {{}}
            for handle in handles:
                buffer = bytearray(data)
                buffers[handle.send(buffer, zero_copy=True)] = buffer
            while buffers:
                done = port.get(10)
                assert done.error is None
                buffers.pop(done.overlapped)[:] = bytes(size)
        for reader in readers:
            assert reader.outcome() == data * rounds
        assert port.stats()["zero_copy_sends"] > 0
        port.close()
        print("whole")
    """
    assert run_as_other_user(script) == ["whole"]


def test_a_thread_may_end_with_it_under_way(port, pair):
    near, far = pair
    handle = port.associate(near, "key")
    sends = Background(
        lambda: [handle.send(pattern(30 * SIZE, n), zero_copy=True) for n in range(2)]
    ).outcome()
    reader = Background(lambda: read_exactly(far, 60 * SIZE))
    assert {id(done.overlapped) for done in take(port, 2)} == set(map(id, sends))
    assert [one.result() for one in sends] == [30 * SIZE] * 2
    assert reader.outcome() == pattern(30 * SIZE, 0) + pattern(30 * SIZE, 1)


def test_buffers_used_again_with_the_packet_never_change_what_arrives(port, engine):
    """Several threads take packets and overwrite the buffers; peers read now fast, now slowly."""
    seed = int(os.environ.get("COMPLETIONPORT_SEED", "0")) or random.randrange(1, 2**32)
    print(f"COMPLETIONPORT_SEED={seed}")
    choose = random.Random(seed)
    connections, sends = 6, 30
    expected = [bytearray() for _ in range(connections)]
    left = threading.Semaphore(0)

    def take_all():
        while (done := port.get(LONG)).key != "end":
            assert done.error is None
            done.overlapped.buffer[:] = bytes(len(done.overlapped.buffer))
            left.release()

    def read(far, size, pauses):
        got = bytearray()
        while len(got) < size:
            got += far.recv(65536)
            if pauses and len(got) % 7 == 0:
                port.stats()  # takes a moment
        return got

    workers = [Background(take_all) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        readers = []
        for number in range(connections):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                listener.setsockopt(
                    socket.SOL_SOCKET, socket.SO_RCVBUF, choose.choice([8192, 1 << 20])
                )
                near = stack.enter_context(socket.create_connection(listener.getsockname()))
                far = stack.enter_context(listener.accept()[0])
            near.setblocking(choose.random() < 0.5)
            handle = port.associate(near, number)
            plans = [
                (choose.choice([100, 12_000, 70_000, 400_000]), choose.random() < 0.8)
                for _ in range(sends)
            ]
            total = sum(size for size, _ in plans)
            pauses = choose.random() < 0.5
            readers.append(Background(lambda a=far, b=total, c=pauses: read(a, b, c)))
            for size, zero_copy in plans:
                one = Sent()
                one.buffer = bytearray(pattern(size, choose.randrange(1000)))
                expected[number] += one.buffer
                handle.send(one.buffer, overlapped=one, zero_copy=zero_copy)
        for _ in range(connections * sends):
            assert left.acquire(timeout=LONG)
        for _ in workers:
            port.post(key="end")
        for worker in workers:
            worker.outcome()
        for number, reader in enumerate(readers):
            assert reader.outcome() == expected[number], f"connection {number}, seed {seed}"
    assert_quiet(port)


def test_closing_and_cancelling_meet_the_notification(port):
    """Whoever is first: one packet each, and the buffers are free behind it."""
    seed = int(os.environ.get("COMPLETIONPORT_SEED", "0")) or random.randrange(1, 2**32)
    print(f"COMPLETIONPORT_SEED={seed}")
    choose = random.Random(seed)
    for _ in range(int(os.environ.get("COMPLETIONPORT_ROUNDS", "40"))):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        with near, far:
            handle = port.associate(near, "key")
            buffers = [bytearray(choose.choice([20_000, 90_000, 900_000])) for _ in range(3)]
            sends = [handle.send(buffer, zero_copy=True) for buffer in buffers]
            together = threading.Barrier(2)
            spins = choose.randrange(2000), choose.randrange(2000)
            amount = choose.choice([1000, 30_000, 10_000_000])

            def read(far=far, together=together, spin=spins[0], amount=amount):
                together.wait(LONG)
                for _ in range(spin):
                    pass
                with contextlib.suppress(ConnectionError):
                    while amount > 0 and (part := far.recv(16384)):
                        amount -= len(part)

            reader = Background(read)
            together.wait(LONG)
            for _ in range(spins[1]):
                pass
            if choose.random() < 0.5:
                choose.choice(sends).cancel()
            handle.close()
            packets = take(port, 3)
            assert {id(done.overlapped) for done in packets} == set(map(id, sends))
            for done in packets:
                assert done.error is None or isinstance(done.error, OperationAborted)
            for buffer in buffers:
                buffer.append(0)
            reader.outcome()
    assert_quiet(port)
