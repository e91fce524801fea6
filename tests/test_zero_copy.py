"""Sends from the program's own pages: when the packet comes, and who gets the buffers back."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import socket
import threading

import pytest

from completionport import OperationAborted, Overlapped
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
)

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


def test_sends_behind_it_do_not_wait_for_its_packet(port, pair, zero_copy):
    near, far = pair
    handle = port.associate(near, "key")
    first = handle.send(pattern(SIZE), zero_copy=True)
    second = handle.send(b"second")
    assert take_one(port).overlapped is second
    assert first.pending
    assert read_exactly(far, SIZE + 6) == pattern(SIZE) + b"second"
    assert take_one(port).overlapped is first
    assert_quiet(port)


@pytest.mark.parametrize("how", ["shutdown", "disconnect"])
@pytest.mark.parametrize("late", [True, False], ids=["posted later", "posted with it"])
def test_the_end_of_the_connection_waits_for_it(port, pair, how, late):
    """So who closes on the packet of the shutdown loses nothing."""
    near, far = pair
    handle = port.associate(near, "key")
    sent = handle.send(pattern(SIZE), zero_copy=True)
    if late and port.stats()["zero_copy_sends"]:
        assert port.get(0.05) is None
    end = getattr(handle, how)()
    reader = Background(lambda: read_to_end(far))
    assert {id(done.overlapped) for done in take(port, 2)} == {id(sent), id(end)}
    assert (sent.error, end.error) == (None, None)
    handle.close()
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


def test_the_network_is_given_the_pages_themselves(zero_copy):
    """An interface that drops what it is given copies nothing, and the kernel says so."""
    if os.geteuid() != 0:
        pytest.skip("making a network of its own takes root")
    done = run_python(
        """
        import os, socket, subprocess, sys
        from completionport import CompletionPort

        if not hasattr(os, "unshare"):
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            failed = libc.unshare(0x40000000)  # CLONE_NEWNET
        else:
            failed = os.unshare(os.CLONE_NEWNET)
        for command in (
            "ip link add sink type ifb",
            "ip addr add 10.9.0.1/24 dev sink",
            "ip link set sink mtu 60000 up",
            "ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:01 dev sink",
        ):
            if failed or subprocess.run(command.split(), capture_output=True).returncode:
                print("no network")
                sys.exit()
        with CompletionPort(engine="io_uring") as port:
            sock = socket.socket(type=socket.SOCK_DGRAM)
            sock.connect(("10.9.0.2", 9))
            handle = port.associate(sock, "key")
            for _ in range(10):
                handle.send(bytes(50_000), zero_copy=True)
                assert port.get(5).transferred == 50_000
            print(port.stats()["zero_copy_sends"], port.stats()["zero_copy_copied"])
        """,
    )
    if done.stdout.strip() == "no network":
        pytest.skip("no network interface of its own can be made here")
    assert done.stdout.split() == ["10", "0"]


def test_who_may_pin_no_memory_gets_a_copy(zero_copy):
    done = run_python(
        """
        import os, resource, socket
        from completionport import CompletionPort
        from support import Background, read_exactly

        listener = socket.create_server(("127.0.0.1", 0))
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        CompletionPort(engine="io_uring").close()  # loads what another user may not read
        if os.geteuid() == 0:
            os.setuid(65534)  # root may pin what it likes
        with CompletionPort(engine="io_uring") as port:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
            handle = port.associate(near, "key")
            data = os.urandom(1_000_000)
            handle.send(data, zero_copy=True)
            reader = Background(lambda: read_exactly(far, len(data)))
            done = port.get(5)
            assert (done.transferred, done.error) == (len(data), None)
            assert reader.outcome() == data
            print(port.stats()["zero_copy_sends"])
        """,
    )
    assert done.stdout.split() == ["0"]


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
                assert done.error is None or isinstance(
                    done.error, (OperationAborted, ConnectionError)
                )
            for buffer in buffers:
                buffer.append(0)
            reader.outcome()
    assert_quiet(port)
