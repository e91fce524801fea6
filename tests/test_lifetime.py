"""Buffers, Overlapped objects, keys and ports live as long as they have to (rules 7 and 8)."""

from __future__ import annotations

import array
import contextlib
import gc
import os
import socket
import sys
import warnings
import weakref

import pytest

from completionport import CompletionPort, Overlapped, PortClosed, Strand
from support import (
    WINDOWS,
    Background,
    assert_nothing_opened_since,
    assert_quiet,
    descriptors,
    pattern,
    read_exactly,
    run_python,
    take,
    take_one,
    wait_for_stats,
    wait_until,
    wine_keeps_ports,
)

BIG = 8_000_000


class PerIo(Overlapped):
    pass


class Key:
    pass


class Buffer(bytearray):
    """A bytearray that can be weakly referenced."""


def collected(reference):
    gc.collect()
    return reference() is None


@pytest.mark.skipif(not WINDOWS, reason="the other engines pin buffers without ctypes")
def test_the_record_of_a_pinned_buffer_is_there_until_it_was_released(port, pair, monkeypatch):
    from completionport.windows import flights

    records, at_release = [], []

    class Record(flights._Buffer):
        def __init__(self):
            records.append(weakref.ref(self))

    release = flights._release_buffer

    def noting_release(address):
        at_release.append(records[-1]() is not None)
        release(address)

    monkeypatch.setattr(flights, "_Buffer", Record)
    monkeypatch.setattr(flights, "_release_buffer", noting_release)
    near, far = pair
    with port.associate(near, "key") as handle:
        handle.recv(bytearray(10))
        far.sendall(b"hello")
        assert take_one(port).transferred == 5
    assert at_release == [True]


class TestDroppedReferences:
    def test_an_overlapped_lives_until_its_packet_was_taken(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            mine = PerIo()
            mine.label = "per-I/O data"
            alive = weakref.ref(mine)
            handle.recv(10, overlapped=mine)
            del mine
            assert not collected(alive)
            far.sendall(b"hello")
            done = take_one(port)
            assert done.overlapped is alive()
            assert done.overlapped.label == "per-I/O data"
            assert done.overlapped.result() == b"hello"
            del done
            assert collected(alive)

    def test_a_receive_buffer_lives_until_its_packet_was_taken(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            buffer = Buffer(10)
            alive = weakref.ref(buffer)
            handle.recv(buffer)
            del buffer
            assert not collected(alive)
            far.sendall(b"hello")
            assert take_one(port).transferred == 5
            assert collected(alive)

    def test_scattered_buffers_live_until_their_packet_was_taken(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            buffers = [Buffer(2), Buffer(3)]
            alive = [weakref.ref(buffer) for buffer in buffers]
            handle.recv(buffers)
            buffers.clear()
            del buffers
            assert not any(collected(reference) for reference in alive)
            far.sendall(b"hello")
            take_one(port)
            assert all(collected(reference) for reference in alive)

    def test_a_send_buffer_lives_until_its_packet_was_taken(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            data = Buffer(pattern(BIG))
            alive = weakref.ref(data)
            handle.send(data)
            del data
            assert not collected(alive)
            reader = Background(read_exactly, far, BIG)
            take_one(port)
            assert reader.outcome() == pattern(BIG)
            assert collected(alive)

    def test_a_buffer_under_way_can_not_be_resized(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            buffer = bytearray(10)
            handle.recv(buffer)
            with pytest.raises(BufferError):
                buffer.extend(b"more")
            far.sendall(b"hello")
            take_one(port)
            buffer.extend(b"more")
            assert buffer == b"hello\0\0\0\0\0more"

    def test_the_list_of_buffers_may_change_after_the_call(self, port, pair):
        near, far = pair
        buffers = [bytearray(3), bytearray(3)]
        first, second = buffers
        with port.associate(near, "key") as handle:
            handle.recv(buffers)
            buffers[:] = [bytearray(1)]
            far.sendall(b"abcdef")
            assert take_one(port).transferred == 6
            assert (first, second) == (b"abc", b"def")

    def test_a_dropped_handle_stays_until_its_operations_are_done(self, port, pair):
        near, far = pair
        key = Key()
        alive = weakref.ref(key)
        port.associate(near, key).recv(10)
        del key
        gc.collect()
        far.sendall(b"hello")
        done = take_one(port)
        assert done.key is alive()
        assert done.overlapped.handle.key is alive()
        assert done.overlapped.result() == b"hello"
        del done
        assert collected(alive)

    def test_a_dropped_socket_object_stays_until_its_handle_goes(self, port, make_pair):
        near, far = make_pair()
        handle = port.associate(near, "key")
        del near
        gc.collect()
        handle.recv(10)
        far.sendall(b"hello")
        assert take_one(port).overlapped.result() == b"hello"
        handle.close()

    def test_nothing_refers_to_a_key_after_its_handle_was_closed(self, port, make_pair):
        near, _far = make_pair()
        key = Key()
        alive = weakref.ref(key)
        handle = port.associate(near, key)
        handle.recv(10)
        handle.close()
        take_one(port)
        del handle, key
        assert collected(alive)

    def test_keys_are_not_counted_up(self, port, pair):
        near, far = pair
        key = Key()
        with port.associate(near, key) as handle:

            def round_trips(count):
                for _ in range(count):
                    handle.recv(10)
                    far.sendall(b"x")
                    take_one(port)
                    handle.send(b"y")
                    take_one(port)
                    far.recv(10)
                    port.post(0, key, key)
                    take_one(port)

            round_trips(2)
            before = sys.getrefcount(key)
            round_trips(200)
            assert sys.getrefcount(key) == before

    def test_a_cycle_through_an_overlapped_is_collected(self, port, pair):
        near, far = pair
        with port.associate(near, "key") as handle:
            mine = PerIo()
            mine.cycle = mine
            alive = weakref.ref(mine)
            handle.recv(10, overlapped=mine)
            del mine
            gc.collect()
            far.sendall(b"hello")
            assert take_one(port).overlapped.result() == b"hello"
            wait_until(lambda: collected(alive), "the cycle is gone", 5)

    def test_a_cycle_through_a_key_and_its_handle_is_collected(self, port, make_pair):
        near, far = make_pair()
        key = Key()
        key.handle = port.associate(near, key)
        alive = weakref.ref(key)
        key.handle.recv(10)
        far.sendall(b"hello")
        take_one(port)
        key.handle.close()
        del key
        assert collected(alive)


class TestClosedPort:
    def test_close_lets_go_of_everything_under_way(self, make_port, pair):
        port = make_port()
        near, _far = pair
        buffer, data, mine, key = bytearray(10), bytearray(pattern(BIG)), PerIo(), Key()
        alive = [weakref.ref(mine), weakref.ref(key)]
        handle = port.associate(near, key)
        handle.recv(buffer, overlapped=mine)
        handle.send(data)
        port.close()
        buffer.extend(b"more")
        data.clear()
        assert not mine.pending
        del mine, key, handle
        assert all(collected(reference) for reference in alive)

    def test_close_lets_go_of_packets_that_nobody_took(self, make_port, pair):
        port = make_port()
        near, far = pair
        buffer, mine = bytearray(10), PerIo()
        alive = weakref.ref(mine)
        handle = port.associate(near, "key")
        handle.recv(buffer, overlapped=mine)
        far.sendall(b"hello")
        handle.send(b"x")
        del mine
        port.close()
        buffer.extend(b"more")
        assert collected(alive)

    def test_close_closes_accepted_sockets_that_nobody_took(self, make_port, listener):
        port = make_port()
        handle = port.associate(listener, "key")
        for _ in range(3):
            handle.accept()
        clients = [socket.create_connection(listener.getsockname(), timeout=20) for _ in range(3)]
        take_one(port).overlapped.result().close()
        port.close()
        listener.close()
        for client in clients:
            with client:
                assert ended(client)

    @pytest.mark.parametrize("bound", [False, True], ids=["queued", "behind its strand"])
    @pytest.mark.parametrize("kind", ["accept", "open", "descriptors"])
    def test_what_a_packet_brings_is_closed_where_nobody_takes_it(
        self, make_port, listener, engine, tmp_path, kind, bound, nothing_left
    ):
        if kind == "descriptors" and not hasattr(socket, "send_fds"):
            pytest.skip("no descriptors are sent here")
        before, port = descriptors(), make_port(2)
        strand = Strand(port) if bound else None
        with contextlib.ExitStack() as stack:
            if bound:
                port.post("first", strand=strand)
                assert port.get().transferred == "first"
            waiting = Background(port.get)  # who waits in the kernel
            if kind == "accept":
                port.associate(listener, "key", strand=strand).accept()
                address = listener.getsockname()
                stack.enter_context(socket.create_connection(address, timeout=20))
            elif kind == "open":
                path = tmp_path / "file"
                path.write_bytes(b"x")
                port.open(path, strand=strand)
            else:
                near, far = map(stack.enter_context, socket.socketpair())
                near.setblocking(False)
                port.associate(near, "key", strand=strand).recvmsg(10, 100)
                socket.send_fds(far, [b"x"], [far.fileno()])
            if bound:
                wait_until(lambda: port.stats()["queued"] == 1, "it is there")
            port.close()
            with contextlib.suppress(PortClosed):
                close_all(waiting.outcome().overlapped.result())
        assert_nothing_opened_since(before)

    def test_a_handle_of_a_closed_port_has_no_port_once_that_is_gone(self, engine, pair):
        near, _far = pair
        port = CompletionPort(engine=engine)
        handle = port.associate(near, "key")
        assert handle.port is port
        port.close()
        alive = weakref.ref(port)
        del port
        assert collected(alive)
        assert handle.port is None
        assert handle.closed


def close_all(result):
    """What an accept, an open or a recvmsg has brought."""
    if isinstance(result, socket.socket):
        result.close()
    elif isinstance(result, int):
        os.close(result)
    else:
        _, ((_, _, numbers),), *_ = result
        for number in array.array("i", numbers):
            os.close(number)


def ended(sock):
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def drop(held):
    """Let the only reference go."""
    held.clear()
    gc.collect()


class TestDroppedPort:
    def test_a_port_that_was_not_closed_warns(self, engine):
        held = [CompletionPort(engine=engine)]
        with pytest.warns(ResourceWarning, match=r"close.*CompletionPort|CompletionPort.*close"):
            drop(held)

    def test_a_port_that_was_closed_does_not_warn(self, engine):
        port = CompletionPort(engine=engine)
        port.close()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del port
            gc.collect()
        assert caught == []

    def test_it_leaks_no_descriptor_and_lets_go_of_everything(self, engine, make_pair):
        near, far = make_pair()
        before = descriptors()
        port = CompletionPort(engine=engine)
        buffer, mine, key, posted = bytearray(10), PerIo(), Key(), Key()
        alive = [weakref.ref(mine), weakref.ref(key), weakref.ref(posted)]
        handle = port.associate(near, key)
        handle.recv(buffer, overlapped=mine)
        operation = handle.send(pattern(BIG))
        port.post(posted, posted, posted)
        assert operation.pending
        del mine, key, posted, operation
        held = [port]
        del port
        with pytest.warns(ResourceWarning):
            drop(held)
        assert handle.port is None
        assert handle.closed
        del handle
        assert all(collected(reference) for reference in alive)
        assert_nothing_opened_since(before)
        buffer.extend(b"more")
        far.sendall(b"late")
        assert near.recv(10) == b"late"
        assert buffer == bytearray(10) + b"more"

    def test_operations_under_way_do_not_keep_a_port_alive(self, engine, make_pair):
        near, _far = make_pair()
        port = CompletionPort(engine=engine)
        alive = weakref.ref(port)
        handle = port.associate(near, "key")
        operation = handle.recv(10)
        held = [port]
        del port
        with pytest.warns(ResourceWarning):
            drop(held)
        assert alive() is None
        assert not operation.pending
        assert handle.closed

    def test_a_handle_of_a_dropped_port_raises(self, engine, make_pair):
        near, _far = make_pair()
        port = CompletionPort(engine=engine)
        handle = port.associate(near, "key")
        held = [port]
        del port
        with pytest.warns(ResourceWarning):
            drop(held)
        with pytest.raises((PortClosed, ValueError), match="closed"):
            handle.recv(10)
        handle.close()
        assert near.fileno() == -1

    def test_a_thread_in_get_keeps_the_port(self, engine):
        port = CompletionPort(engine=engine)
        alive = weakref.ref(port)
        waiter = Background(port.get)
        wait_for_stats(port, waiting=1)
        del port
        assert not collected(alive)
        alive().close()
        with pytest.raises(PortClosed):
            waiter.outcome()


class TestNoLeaks:
    @wine_keeps_ports
    def test_ports_leak_no_descriptors(self, engine, make_pair):
        near, far = make_pair("local")

        def use():
            with CompletionPort(engine=engine) as port:
                handle = port.associate(near, "key")
                handle.recv(10)
                far.sendall(b"x")
                take_one(port)
                handle.recv(10)

        use()
        before = descriptors()
        for _ in range(30):
            use()
        gc.collect()
        assert_nothing_opened_since(before)

    def test_handles_leak_no_descriptors(self, port, make_pair):
        def use():
            near, far = make_pair("local")
            handle = port.associate(near, "key")
            handle.recv(10)
            handle.recv(10)
            far.sendall(b"x")
            take_one(port)
            handle.close()
            far.close()
            take_one(port)

        use()
        before = descriptors()
        for _ in range(100):
            use()
        assert_nothing_opened_since(before)
        assert_quiet(port)

    @pytest.mark.parametrize("what", ["operations", "handles", "ports", "errors"])
    def test_memory_does_not_grow(self, engine, what):
        run_python(MEMORY, engine=engine, options=("-W", "error"), WHAT=what)


MEMORY = """
import gc, os, socket
from completionport import CompletionPort, HandleClosed
from support import local_pair, resident, take_one

what = os.environ["WHAT"]
port = CompletionPort()
near, far = local_pair()
handle = port.associate(near, "key")

def operations():
    for _ in range(100):
        handle.recv(1000)
        handle.recv([bytearray(1000), bytearray(1000)])
        far.send(b"x" * 1000)
        take_one(port).overlapped.result()
        far.send(b"x" * 2000)
        take_one(port)
        handle.send(b"y" * 1000)
        take_one(port)
        far.recv(1000)
        port.post(object(), object(), object())
        take_one(port)

def handles():
    for _ in range(40):
        one, two = local_pair()
        other = port.associate(one, object())
        for _ in range(3):
            other.recv(10000)
        other.close()
        two.close()
        for _ in range(3):
            take_one(port)

def ports():
    for _ in range(4):
        one, two = local_pair()
        with CompletionPort() as another:
            other = another.associate(one, object())
            other.recv(10000)
            two.send(b"x")
            take_one(another)
            other.recv(10000)
            other.send(b"x")
        one.close()
        two.close()

def errors():
    closed = port.associate(socket.socket(), "key")
    for _ in range(100):
        for call in (
            lambda: handle.recv(-1),
            lambda: handle.recv(object()),
            lambda: handle.send([bytearray(1000), 5]),
            lambda: closed.recv(100000),
            lambda: port.associate(near, "key"),
            lambda: port.get("x"),
        ):
            try:
                call()
            except (TypeError, ValueError, OSError):
                pass
            else:
                raise SystemExit("no error")
    closed.close()

work = globals()[what]
for _ in range(10):
    work()
for _ in range(10):  # what is no leak does not grow again and again
    gc.collect()
    before = resident()
    for _ in range(40):
        work()
    gc.collect()
    grown = resident() - before
    if grown < 1_500_000:
        break
handle.close()
far.close()
port.close()
assert grown < 1_500_000, f"{what}: {grown} bytes more"
"""


def test_the_result_of_a_receive_is_its_own(port, pair):
    """The bytes of one receive are not changed by the next one on the same object."""
    near, far = pair
    with port.associate(near, "key") as handle:
        operation = PerIo()
        results = []
        for number in range(20):
            handle.recv(10, overlapped=operation)
            far.sendall(b"%d" % number)
            take(port, 1)
            results.append(operation.result())
        assert results == [b"%d" % number for number in range(20)]


def test_other_programs_inherit_nothing(make_port, pair):
    near, _far = pair
    is_inherited = getattr(os, "get_handle_inheritable", os.get_inheritable)  # on Windows handles
    before = descriptors()
    with make_port().associate(near, "key") as handle:
        handle.recv(10)
        opened = set(descriptors()) - set(before)
        assert [number for number in opened if is_inherited(number)] == []
