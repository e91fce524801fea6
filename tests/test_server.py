"""Server, Handler and Connection: what the users of the server are promised."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import select
import socket
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from completionport import Connection, ConnectionClosed, Handler, Server
from support import (
    LONG,
    STOP_SIGNALS,
    WINDOWS,
    Background,
    compute_until,
    descriptors,
    has_ipv6,
    needs_concurrency,
    needs_fork,
    needs_reuse_port,
    needs_unix_sockets,
    pattern,
    python_process,
    read_exactly,
    read_to_end,
    reset,
    run_python,
    send_signal,
    shown,
    wait_until,
    windows_has_no,
)


class Recorder(Handler):
    """Writes down every callback."""

    def __init__(self):
        self.events = []
        self.connections = []

    def connected(self, connection):
        self.connections.append(connection)
        self.events.append(("connected", connection, None))

    def received(self, connection, data):
        self.events.append(("received", connection, data))

    def end_of_stream(self, connection):
        self.events.append(("end_of_stream", connection, None))
        connection.close()

    def drained(self, connection):
        self.events.append(("drained", connection, None))

    def closed(self, connection, error):
        self.events.append(("closed", connection, error))

    def names(self, connection=None):
        """The callbacks in order, several of the same kind in a row as one."""
        names = [name for name, of, _ in self.events if connection in (None, of)]
        return [name for at, name in enumerate(names) if names[at - 1 : at] != [name]]

    def data(self, connection=None):
        return b"".join(
            value
            for name, of, value in self.events
            if name == "received" and connection in (None, of)
        )

    def count(self, name):
        return sum(event == name for event, _, _ in self.events)

    def first(self, timeout=LONG):
        return wait_until(lambda: self.connections, "a connection", timeout)[0]

    def end(self, connection=None):
        """The error of the last callback, once it has come."""
        wanted = wait_until(
            lambda: [
                event
                for event in self.events
                if event[0] == "closed" and connection in (None, event[1])
            ],
            "closed() was called",
        )
        return wanted[0][2]


class Echo(Recorder):
    def received(self, connection, data):
        super().received(connection, data)
        connection.send(data)


@pytest.fixture
def serve(engine, nothing_left):
    """Starts servers on the engine under test and stops them at the end."""
    servers = []

    def start(handler, **options):
        if "listener" not in options:
            options.setdefault("host", "127.0.0.1")
            options.setdefault("port", 0)
        server = Server(handler, engine=engine, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop(grace=0)


@pytest.fixture
def dial(nothing_left):
    """Connects clients and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def connect(server, buffer=None):
            client = stack.enter_context(socket.socket())
            if buffer is not None:
                # Through less than that, a megabyte takes Wine some seconds.
                least = 65536 if WINDOWS else 0
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(buffer, least))
            client.settimeout(LONG)
            client.connect(server.address)
            return client

        yield connect


def fill(client, most=64_000_000):
    """Send until the other side takes no more; how many bytes that were."""
    sent = 0
    client.setblocking(False)
    chunk = bytes(65536)
    quiet_since = time.monotonic()
    while sent < most and time.monotonic() - quiet_since < 0.3:
        with contextlib.suppress(BlockingIOError):
            sent += client.send(chunk)
            quiet_since = time.monotonic()
            continue
        select.select([], [client], [], 0.02)
    client.settimeout(LONG)
    return sent


class TestEcho:
    def test_what_is_sent_comes_back(self, serve, dial):
        client = dial(serve(Echo()))
        for size in (1, 10, 1000, 100_000):
            data = pattern(size)
            client.sendall(data)
            assert read_exactly(client, size) == data

    def test_the_program_of_the_issue(self, engine, nothing_left):
        class Simple(Handler):
            def received(self, connection, data):
                connection.send(data)

        with (
            Server(Simple(), host="127.0.0.1", port=0, engine=engine) as server,
            socket.create_connection(server.address, timeout=LONG) as client,
        ):
            client.sendall(b"hello")
            assert client.recv(10) == b"hello"

    def test_many_megabytes_go_through_unchanged(self, serve, dial):
        client = dial(serve(Echo()))
        data = pattern(20_000_000)
        sender = Background(lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
        assert read_to_end(client) == data
        sender.outcome()

    def test_many_clients_at_once(self, serve, dial):
        handler = Echo()
        server = serve(handler, workers=4, concurrency=4)
        clients = [dial(server) for _ in range(200)]
        for round_ in range(5):
            for number, client in enumerate(clients):
                client.sendall(b"%d of %d" % (number, round_))
            for number, client in enumerate(clients):
                expected = b"%d of %d" % (number, round_)
                assert read_exactly(client, len(expected)) == expected
        assert server.stats()["connections"] == 200
        for client in clients:
            client.close()
        wait_until(lambda: handler.count("closed") == 200)

    def test_all_clients_send_much_at_once(self, serve, dial):
        """More data than the buffers that all connections share can hold (rule 12)."""
        server = serve(Echo(), buffer_size=4096)
        clients = [dial(server) for _ in range(60)]
        size = 300_000

        def talk(number, client):
            data = pattern(size, number)
            sender = Background(client.sendall, data)
            assert read_exactly(client, size) == data
            sender.outcome()

        for thread in [Background(talk, *item) for item in enumerate(clients)]:
            thread.outcome(60)

    def test_a_client_that_sends_and_goes_at_once_gets_its_answer(self, serve, dial):
        server = serve(Echo())
        for number in range(100):
            client = dial(server)
            client.sendall(b"%d" % number)
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == b"%d" % number

    def test_answers_of_several_segments_are_not_held_back(self, serve, dial):
        """Without TCP_NODELAY each of these takes 40 milliseconds."""
        client = dial(serve(Echo()))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = pattern(16384)
        began = time.monotonic()
        for _ in range(30):
            client.sendall(data)
            assert read_exactly(client, len(data)) == data
        assert time.monotonic() - began < 30 * 0.04


class TestCallbacks:
    def test_they_come_in_order(self, serve, dial):
        handler = Echo()
        client = dial(serve(handler))
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        client.close()
        assert handler.end() is None
        assert handler.names() == ["connected", "received", "end_of_stream", "closed"]
        assert len({connection for _, connection, _ in handler.events}) == 1
        assert isinstance(handler.connections[0], Connection)

    def test_each_connection_begins_and_ends_once(self, serve, dial):
        handler = Echo()
        server = serve(handler, workers=3, concurrency=3)
        for number in range(300):
            client = dial(server)
            if number % 3 == 0:
                client.sendall(b"x")
            if WINDOWS:  # which lets nobody accept a connection that was reset before
                wait_until(lambda number=number: server.stats()["accepted"] > number)
            if number % 2:
                reset(client)
            else:
                client.close()
        wait_until(lambda: server.stats()["accepted"] == 300)
        wait_until(lambda: server.stats()["connections"] == 0)
        assert handler.count("connected") == 300
        for connection in handler.connections:
            names = handler.names(connection)
            assert names[0] == "connected"
            assert names[-1] == "closed"
            assert names.count("closed") == 1

    def test_data_is_bytes_of_at_most_the_buffer_size(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler, buffer_size=100))
        data = pattern(10_000)
        client.sendall(data)
        wait_until(lambda: len(handler.data()) == len(data))
        assert handler.data() == data
        for name, _, value in handler.events:
            if name == "received":
                assert type(value) is bytes
                assert 1 <= len(value) <= 100

    def test_received_bytes_can_be_kept(self, serve, dial):
        """What a handler was given is not written over by what comes later."""
        handler = Echo()
        client = dial(serve(handler))
        messages = [b"message %d" % number for number in range(500)]
        for message in messages:
            client.sendall(message)
            assert read_exactly(client, len(message)) == message
        assert [value for name, _, value in handler.events if name == "received"] == messages

    def test_state_belongs_to_one_connection(self, serve, dial):
        class Counter(Handler):
            def connected(self, connection):
                assert connection.state is None
                connection.state = 0

            def received(self, connection, data):
                connection.state += len(data)
                connection.send(b"%d\n" % connection.state)

        server = serve(Counter())
        one, two = dial(server), dial(server)
        for client, expected in ((one, 1), (one, 2), (two, 1), (one, 3), (two, 2)):
            client.sendall(b"x")
            assert client.recv(10) == b"%d\n" % expected

    def test_one_connection_is_never_served_by_two_workers_at_once(self, serve, dial):
        class Strict(Handler):
            def __init__(self):
                self.broken = []
                self.threads = set()

            def connected(self, connection):
                connection.state = (threading.Lock(), bytearray())

            def received(self, connection, data):
                inside, received = connection.state
                self.threads.add(threading.get_ident())
                if not inside.acquire(blocking=False):
                    self.broken.append("two callbacks at once")
                    return
                received.extend(data)
                time.sleep(0.0002)  # let the others run while this one is inside
                connection.send(data)
                inside.release()

            def drained(self, connection):
                self.received(connection, b"")

            def closed(self, connection, error):
                inside, received = connection.state
                if not inside.acquire(blocking=False):
                    self.broken.append("closed() during another callback")
                self.done[connection.peername] = bytes(received)

            done = {}  # noqa: RUF012

        handler = Strict()
        server = serve(handler, workers=4, concurrency=4, buffer_size=256)

        def talk(number):
            client = dial(server)
            data = pattern(20_000, number)
            name = client.getsockname()
            sender = Background(client.sendall, data)
            assert read_exactly(client, len(data)) == data
            sender.outcome()
            client.close()
            wait_until(lambda: name in handler.done)
            assert handler.done[name] == data

        for thread in [Background(talk, number) for number in range(8)]:
            thread.outcome(60)
        assert handler.broken == []
        assert len(handler.threads) > 1

    def test_different_connections_are_served_by_different_workers(self, serve, dial):
        class Meeting(Handler):
            barrier = threading.Barrier(3)

            def received(self, connection, data):
                self.barrier.wait(LONG)
                connection.send(data)

        server = serve(Meeting(), workers=3, concurrency=3)
        clients = [dial(server) for _ in range(3)]
        for client in clients:
            client.sendall(b"together")
        for client in clients:
            assert read_exactly(client, 8) == b"together"

    def test_a_callback_that_waits_holds_nobody_else_up(self, serve, dial):
        release = threading.Event()

        class Slow(Handler):
            def received(self, connection, data):
                if data == b"slow":
                    release.wait(LONG)
                connection.send(data)

        server = serve(Slow(), workers=2, concurrency=2)
        slow, quick = dial(server), dial(server)
        slow.sendall(b"slow")
        try:
            for _ in range(20):
                quick.sendall(b"quick")
                assert read_exactly(quick, 5) == b"quick"
        finally:
            release.set()
        assert read_exactly(slow, 4) == b"slow"

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts by /proc")
    def test_a_worker_that_waits_is_left_alone_by_the_connections_it_took_in(self, serve, dial):
        release = threading.Event()

        class Held(Handler):
            welcomed_by = held = 0

            def connected(self, connection):
                self.welcomed_by = threading.get_native_id()

            def received(self, connection, data):
                if data == b"hold":
                    self.held = threading.get_native_id()
                    release.wait(LONG)
                connection.send(data)

        def times_woken(thread):
            status = Path(f"/proc/self/task/{thread}/status").read_text()
            return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)[1])

        handler = Held()
        server = serve(handler, workers=2, concurrency=2)
        holder = dial(server)
        try:
            for _ in range(100):
                talker = dial(server)
                talker.sendall(b"talk")
                assert read_exactly(talker, 4) == b"talk"
                handler.held = 0
                holder.sendall(b"hold")
                wait_until(lambda: handler.held)
                if handler.held == handler.welcomed_by:
                    break
                release.set()
                assert read_exactly(holder, 4) == b"hold"
                release.clear()
            else:
                pytest.fail("no worker was held that had taken the last connection in")
            before = times_woken(handler.held)
            for _ in range(300):
                talker.sendall(b"talk")
                assert read_exactly(talker, 4) == b"talk"
            assert times_woken(handler.held) - before < 100
        finally:
            release.set()
        assert read_exactly(holder, 4) == b"hold"

    def test_a_callback_that_naps_again_and_again_holds_nobody_else_up(self, serve, dial):
        release = threading.Event()

        class Napping(Handler):
            def received(self, connection, data):
                if data == b"nap!":
                    while not release.is_set():
                        # Neither blocks for long nor computes much.
                        time.sleep(0.0005)
                connection.send(data)

        server = serve(Napping(), workers=3, concurrency=2)
        napping, quick = dial(server), dial(server)
        for client in (napping, quick):
            client.sendall(b"come")
            assert read_exactly(client, 4) == b"come"
        waited = []
        for _ in range(3):
            release.clear()
            napping.sendall(b"nap!")
            try:
                begun = time.monotonic()
                quick.sendall(b"talk")
                assert read_exactly(quick, 4) == b"talk"
                waited.append(time.monotonic() - begun)
            finally:
                release.set()
            assert read_exactly(napping, 4) == b"nap!"
        # A machine that is busy for a moment may spoil one of them.
        assert min(waited) < 0.1

    @needs_concurrency
    def test_no_more_workers_run_than_the_concurrency_says(self, serve, dial):
        class Counting(Handler):
            running = most = 0
            lock = threading.Lock()

            def received(self, connection, data):
                with self.lock:
                    self.running += 1
                    self.most = max(self.most, self.running)
                # One that blocked instead would be replaced.
                end = time.monotonic() + 0.001
                compute_until(lambda: time.monotonic() >= end)
                with self.lock:
                    self.running -= 1
                connection.send(data)

        handler = Counting()
        server = serve(handler, workers=6, concurrency=2)
        clients = [dial(server) for _ in range(12)]
        for _ in range(5):
            for client in clients:
                client.sendall(b"x")
            for client in clients:
                assert read_exactly(client, 1) == b"x"
        # On a busy machine one that waits for the GIL may look as if it blocked.
        assert 1 <= handler.most <= 2 + server.stats().get("replaced", 0)

    def test_the_workers_are_threads_of_this_server(self, serve, dial):
        class Who(Handler):
            def received(self, connection, data):
                connection.send(threading.current_thread().name.encode() + b"\n")

        client = dial(serve(Who(), workers=2))
        client.sendall(b"x")
        assert client.recv(100).startswith(b"completionport-worker-")


class TestExceptions:
    @pytest.fixture
    def log(self, caplog):
        caplog.set_level(logging.WARNING, logger="completionport")
        return caplog

    @pytest.mark.parametrize(
        "callback", ["connected", "received", "end_of_stream", "drained", "closed"]
    )
    def test_an_exception_is_logged_and_closes_that_connection_only(
        self, serve, dial, log, callback
    ):
        class Failing(Echo):
            def fail(self, name, connection):
                if name == callback and connection.state != "spared":
                    raise ZeroDivisionError(f"in {name}, as expected")

            def connected(self, connection):
                super().connected(connection)
                if len(self.connections) == 1:
                    connection.state = "spared"
                self.fail("connected", connection)

            def received(self, connection, data):
                if callback == "drained" and connection.state != "spared":
                    connection.send(bytes(20_000_000))
                    return
                super().received(connection, data)
                self.fail("received", connection)

            def end_of_stream(self, connection):
                self.fail("end_of_stream", connection)
                super().end_of_stream(connection)

            def drained(self, connection):
                super().drained(connection)
                self.fail("drained", connection)

            def closed(self, connection, error):
                super().closed(connection, error)
                self.fail("closed", connection)

        handler = Failing()
        server = serve(handler, send_limit=1 << 30)
        spared = dial(server)
        spared.sendall(b"hello")
        assert read_exactly(spared, 5) == b"hello"
        client = dial(server)
        with contextlib.suppress(ConnectionError):
            client.sendall(b"x")
            if callback in ("end_of_stream", "closed"):
                read_exactly(client, 1)
                client.shutdown(socket.SHUT_WR)
            if callback == "drained":
                # A reader that keeps up lets the kernel take everything at once.
                wait_until(lambda: any(one.send_queue_size for one in handler.connections))
            read_to_end(client)
        failed = wait_until(lambda: handler.connections[1:])[0]
        error = handler.end(failed)
        assert isinstance(error, type(None) if callback == "closed" else ZeroDivisionError)
        # The records are there a moment before the text.
        wait_until(lambda: f"in {callback}, as expected" in log.text, "the exception is in the log")
        [record] = [record for record in log.records if record.name == "completionport"]
        assert record.levelno == logging.ERROR
        assert record.exc_info[0] is ZeroDivisionError
        assert f"in {callback}, as expected" in log.text
        assert "Traceback" in log.text
        assert "test_server.py" in log.text
        assert handler.names(failed).count("closed") == 1
        spared.sendall(b"still here")
        assert read_exactly(spared, 10) == b"still here"
        log.clear()

    def test_a_connection_that_failed_ends_for_its_client(self, serve, dial, log):
        class Failing(Handler):
            def received(self, connection, data):
                raise ValueError("as expected")

        client = dial(serve(Failing()))
        client.sendall(b"x")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b""
        log.clear()

    def test_system_exit_in_a_callback_does_not_end_the_worker(self, serve, dial, log):
        class Exiting(Echo):
            def received(self, connection, data):
                if data == b"exit":
                    raise SystemExit
                super().received(connection, data)

        server = serve(Exiting(), workers=1)
        bad, good = dial(server), dial(server)
        bad.sendall(b"exit")
        with contextlib.suppress(ConnectionResetError):
            assert bad.recv(10) == b""
        good.sendall(b"hello")
        assert read_exactly(good, 5) == b"hello"
        log.clear()


class TestSend:
    @pytest.mark.parametrize(
        "data",
        [
            b"abcdef",
            bytearray(b"abcdef"),
            memoryview(b"..abcdef..")[2:8],
            [b"abc", bytearray(b"def")],
        ],
        ids=["bytes", "bytearray", "memoryview", "list"],
    )
    def test_it_takes_any_buffers(self, serve, dial, data):
        class Answer(Handler):
            def received(self, connection, _):
                connection.send(data)

        client = dial(serve(Answer()))
        client.sendall(b"x")
        assert read_exactly(client, 6) == b"abcdef"

    @pytest.mark.parametrize("data", [5, "text", None, ["text"], object()], ids=shown)
    def test_it_refuses_anything_else(self, serve, dial, data):
        class Answer(Handler):
            def received(self, connection, _):
                try:
                    connection.send(data)
                except TypeError as error:
                    connection.send(str(error).encode() or b"no message")

        client = dial(serve(Answer()))
        client.sendall(b"x")
        assert re.search(rb"bytes|buffer", client.recv(1000))

    def test_a_mutable_object_may_be_changed_at_once(self, serve, dial):
        class Answer(Handler):
            def received(self, connection, data):
                buffer = bytearray(pattern(5_000_000))
                connection.send(buffer)
                buffer[:] = bytes(len(buffer))
                buffer.clear()

        client = dial(serve(Answer()))
        client.sendall(b"x")
        assert read_exactly(client, 5_000_000) == pattern(5_000_000)

    def test_other_threads_may_send_at_any_time(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler))
        connection = handler.first()
        size, each = 5000, 100

        def send(letter):
            for _ in range(each):
                connection.send(bytes([letter]) * size)

        threads = [Background(send, letter) for letter in b"abcd"]
        stream = read_exactly(client, 4 * each * size)
        for thread in threads:
            thread.outcome()
        blocks = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert all(len(set(block)) == 1 for block in blocks), "two sends were mixed"

    def test_what_one_thread_sends_keeps_its_order(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler))
        connection = handler.first()
        parts = [pattern(1 + number * 101 % 30_000, number) for number in range(300)]

        def send():
            for part in parts:
                connection.send(part)

        thread = Background(send)
        assert read_exactly(client, sum(map(len, parts))) == b"".join(parts)
        thread.outcome()

    def test_a_send_without_data_does_nothing(self, serve, dial):
        class Answer(Handler):
            def received(self, connection, data):
                connection.send(b"")
                connection.send([])
                connection.send(data)

        client = dial(serve(Answer()))
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"

    def test_the_queue_has_a_size_and_drained_tells_when_it_is_empty(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler), buffer=4096)
        connection = handler.first()
        assert connection.send_queue_size == 0
        data = pattern(10_000_000)
        connection.send(data)
        assert 0 < connection.send_queue_size <= len(data)
        assert handler.count("drained") == 0
        assert read_exactly(client, len(data)) == data
        wait_until(lambda: handler.count("drained") == 1)
        assert connection.send_queue_size == 0

    def test_a_send_after_the_end_raises(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler))
        connection = handler.first()
        connection.close()
        assert connection.closing
        with pytest.raises(ConnectionClosed):
            connection.send(b"x")
        assert read_to_end(client) == b""
        handler.end()
        with pytest.raises(ConnectionClosed):
            connection.send(b"x")

    def test_sending_from_connected(self, serve, dial):
        class Greeter(Handler):
            def connected(self, connection):
                connection.send(b"welcome")

        assert read_exactly(dial(serve(Greeter())), 7) == b"welcome"


class TestClose:
    def test_close_sends_what_is_queued_first(self, serve, dial):
        class Goodbye(Recorder):
            def received(self, connection, data):
                connection.send(pattern(8_000_000))
                connection.send(b"the end")
                connection.close()

        handler = Goodbye()
        client = dial(serve(handler))
        client.sendall(b"x")
        assert read_to_end(client) == pattern(8_000_000) + b"the end"
        assert handler.end() is None

    def test_close_receives_no_more(self, serve, dial):
        class Once(Recorder):
            def received(self, connection, data):
                super().received(connection, data)
                connection.close()

        handler = Once()
        client = dial(serve(handler, buffer_size=64))
        with contextlib.suppress(ConnectionError):
            client.sendall(bytes(10_000))
        handler.end()
        assert handler.count("received") == 1

    def test_close_in_connected(self, serve, dial):
        class Unfriendly(Recorder):
            def connected(self, connection):
                super().connected(connection)
                connection.close()

        handler = Unfriendly()
        assert read_to_end(dial(serve(handler))) == b""
        assert handler.end() is None
        assert handler.names() == ["connected", "closed"]

    def test_close_from_another_thread(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler))
        handler.first().close()
        assert read_to_end(client) == b""
        assert handler.end() is None

    def test_closing_and_aborting_again_does_nothing(self, serve, dial):
        handler = Recorder()
        dial(serve(handler))
        connection = handler.first()
        for _ in range(3):
            connection.close()
            connection.abort()
        handler.end()
        connection.close()
        connection.abort()
        connection.pause()
        connection.resume()
        assert handler.count("closed") == 1

    def test_abort_drops_what_is_queued(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler), buffer=4096)
        connection = handler.first()
        connection.send(bytes(20_000_000))
        connection.abort()
        assert connection.closing
        assert handler.end() is None
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(1 << 20):
                received += len(part)
        assert received < 20_000_000

    def test_the_end_of_the_stream_closes_after_the_answer(self, serve, dial):
        class Late(Recorder):
            def received(self, connection, data):
                connection.send(pattern(5_000_000))

        handler = Late()
        client = dial(serve(handler))
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == pattern(5_000_000)
        assert handler.end() is None

    def test_end_of_stream_may_leave_the_connection_open(self, serve, dial):
        class HalfOpen(Recorder):
            def end_of_stream(self, connection):
                self.events.append(("end_of_stream", connection, None))
                connection.send(b"I can still talk")

        handler = HalfOpen()
        client = dial(serve(handler))
        client.shutdown(socket.SHUT_WR)
        assert read_exactly(client, 16) == b"I can still talk"
        connection = handler.first()
        connection.send(b"for a while")
        assert read_exactly(client, 11) == b"for a while"
        assert not connection.closing
        connection.close()
        assert read_to_end(client) == b""
        assert handler.end() is None
        assert handler.count("end_of_stream") == 1

    def test_a_reset_reaches_closed_as_an_error(self, serve, dial):
        handler = Echo()
        server = serve(handler)
        client, other = dial(server), dial(server)
        client.sendall(b"x")
        read_exactly(client, 1)
        reset(client)
        assert isinstance(handler.end(), ConnectionResetError)
        other.sendall(b"hello")
        assert read_exactly(other, 5) == b"hello"

    def test_a_peer_that_goes_while_much_is_queued(self, serve, dial):
        class Much(Recorder):
            def received(self, connection, data):
                connection.send(bytes(20_000_000))

        handler = Much()
        client = dial(serve(handler))
        client.sendall(b"x")
        read_exactly(client, 1000)
        reset(client)
        assert isinstance(handler.end(), ConnectionError)
        assert handler.names()[-1] == "closed"

    def test_a_closed_connection_is_let_go(self, serve, dial):
        alive = []

        class Weak(Handler):
            def connected(self, connection):
                connection.state = Recorder()
                alive.append(weakref.ref(connection.state))

        server = serve(Weak())
        for _ in range(20):
            dial(server).close()
        wait_until(lambda: len(alive) == 20 and server.stats()["connections"] == 0)
        wait_until(lambda: gc.collect() >= 0 and not any(reference() for reference in alive))

    def test_connections_leak_no_descriptors(self, serve, dial):
        server = serve(Echo())

        def use(count):
            for _ in range(count):
                client = dial(server)
                client.sendall(b"x")
                assert read_exactly(client, 1) == b"x"
                client.close()
            wait_until(lambda: server.stats()["connections"] == 0)

        use(5)
        before = len(descriptors())
        use(200)
        wait_until(lambda: len(descriptors()) <= before, "the descriptors are as before", 5)


class TestBackpressure:
    def test_a_paused_connection_receives_nothing(self, serve, dial):
        class Paused(Recorder):
            def connected(self, connection):
                super().connected(connection)
                connection.pause()

        handler = Paused()
        client = dial(serve(handler))
        sent = fill(client)
        assert sent < 64_000_000
        assert handler.count("received") == 0
        handler.first().resume()
        wait_until(lambda: len(handler.data()) == sent)

    @pytest.mark.parametrize("concurrency", [1, 2])
    def test_pause_in_received_lets_no_more_through(self, serve, dial, concurrency):
        class OneByOne(Recorder):
            def received(self, connection, data):
                # Before the test can see the data, and resume.
                connection.pause()
                super().received(connection, data)

        handler = OneByOne()
        client = dial(serve(handler, buffer_size=64, concurrency=concurrency))
        data = pattern(1000)
        client.sendall(data)
        connection = handler.first()
        for number in range(1, 1000):
            wait_until(lambda number=number: handler.count("received") == number)
            assert handler.count("received") == number
            if len(handler.data()) == len(data):
                break
            connection.resume()
        assert handler.data() == data

    def test_pause_and_resume_from_other_threads_lose_nothing(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler, workers=2, concurrency=2, buffer_size=1024))
        connection = handler.first()
        data = pattern(2_000_000)
        stop = threading.Event()

        def toggle():
            while not stop.is_set():
                connection.pause()
                connection.resume()

        threads = [Background(toggle) for _ in range(2)]
        client.sendall(data)
        stop.set()
        for thread in threads:
            thread.outcome()
        connection.resume()
        wait_until(lambda: len(handler.data()) == len(data))
        assert handler.data() == data

    def test_a_paused_connection_still_sends(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler))
        connection = handler.first()
        connection.pause()
        connection.send(pattern(5_000_000))
        assert read_exactly(client, 5_000_000) == pattern(5_000_000)

    def test_a_paused_connection_can_be_closed(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler))
        connection = handler.first()
        connection.pause()
        connection.close()
        assert read_to_end(client) == b""
        assert handler.end() is None

    def test_a_peer_that_does_not_read_is_not_received_from(self, serve, dial):
        """The queue stays near the limit however much the peer sends."""

        class Amplifier(Recorder):
            largest = 0

            def received(self, connection, data):
                connection.send(data * 4)
                self.largest = max(self.largest, connection.send_queue_size)

        handler = Amplifier()
        limit, size = 200_000, 16_384
        client = dial(serve(handler, send_limit=limit, buffer_size=size), buffer=4096)
        sent = fill(client)
        assert sent < 64_000_000, "nothing held the peer back"
        # What was received before the queue was seen to be too long may still be answered.
        assert 0 < handler.largest <= limit + 4 * size * 16
        client.shutdown(socket.SHUT_WR)
        assert len(read_to_end(client)) == 4 * sent

    def test_a_limit_of_zero_still_answers(self, serve, dial):
        client = dial(serve(Echo(), send_limit=0))
        data = pattern(3_000_000)
        sender = Background(client.sendall, data)
        assert read_exactly(client, len(data)) == data
        sender.outcome()

    def test_a_peer_that_does_not_read_holds_nobody_else_up(self, serve, dial):
        server = serve(Echo(), send_limit=100_000)
        greedy, polite = dial(server, buffer=4096), dial(server)
        assert fill(greedy) < 64_000_000
        for _ in range(10):
            polite.sendall(b"hello")
            assert read_exactly(polite, 5) == b"hello"


class TestLimits:
    def test_more_clients_than_allowed_wait_their_turn(self, serve, dial):
        handler = Echo()
        server = serve(handler, max_connections=2)
        one, two = dial(server), dial(server)
        for client in (one, two):
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
        third = dial(server)
        third.sendall(b"third")
        for _ in range(20):
            one.sendall(b"x")
            assert read_exactly(one, 1) == b"x"
        assert handler.count("connected") == 2
        assert server.stats()["connections"] == 2
        two.close()
        assert read_exactly(third, 5) == b"third"
        assert handler.count("connected") == 3
        assert server.stats()["connections"] == 2

    def test_a_full_server_serves_all_in_the_end(self, serve, dial):
        server = serve(Echo(), max_connections=3)

        def talk():
            client = dial(server)
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            client.close()

        for thread in [Background(talk) for _ in range(30)]:
            thread.outcome()
        assert server.stats()["accepted"] == 30

    def test_an_idle_connection_is_closed(self, serve, dial):
        handler = Echo()
        client = dial(serve(handler, idle_timeout=0.2))
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b""
        assert 0.15 < time.monotonic() - began < 5
        assert isinstance(handler.end(), TimeoutError)

    def test_a_connection_with_traffic_is_not_idle(self, serve, dial):
        server = serve(Echo(), idle_timeout=0.5)
        client = dial(server)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
            time.sleep(0.05)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b""

    def test_a_connection_that_sends_is_not_idle(self, serve, dial):
        handler = Recorder()
        client = dial(serve(handler, idle_timeout=0.5))
        connection = handler.first()
        for _ in range(15):
            connection.send(b"x")
            assert client.recv(1) == b"x"
            time.sleep(0.08)
        assert not connection.closing

    def test_no_timeout_means_no_timeout(self, serve, dial):
        client = dial(serve(Echo()))
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.sendall(b"x")
        assert client.recv(1) == b"x"

    @windows_has_no("limit to the handles of a process")
    def test_running_out_of_descriptors_pauses_accepting(self, engine):
        done = run_python(OUT_OF_DESCRIPTORS, engine=engine, timeout=60)
        messages = [line for line in done.stderr.splitlines() if "accept" in line.lower()]
        assert 1 <= len(messages) <= 2, done.stderr
        assert "Traceback" not in done.stderr


OUT_OF_DESCRIPTORS = """
import contextlib, logging, os, resource, socket, sys, time
from completionport import Handler, Server
from support import read_exactly, wait_until

class Echo(Handler):
    def received(self, connection, data):
        connection.send(data)

logging.basicConfig(level=logging.WARNING)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
clients = []
for _ in range(60):
    clients.append(socket.socket())
    clients[-1].settimeout(20)
server = Server(Echo(), "127.0.0.1", 0)
# The clients have their descriptors; the server gets about twenty more. io_uring takes the limit as
# it is when accepting starts, so it is set before.
limit = len(os.listdir("/proc/self/fd")) + 20
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
with server:
    for client in clients:
        client.connect(server.address)
    served = wait_until(lambda: server.stats()["connections"])
    # Full: nobody else is served, the others are, and the server does not spin.
    wait_until(lambda: server.stats()["connections"] >= 9)
    began, used = time.monotonic(), time.process_time()
    while time.monotonic() - began < 0.5:
        clients[0].sendall(b"x")
        assert read_exactly(clients[0], 1) == b"x"
        time.sleep(0.01)
    assert time.process_time() - used < 0.25, time.process_time() - used
    full = server.stats()["connections"]
    assert 5 <= full < 60, full
    # Room again, little by little: all of them are served in the end.
    for client in clients:
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        client.close()
    wait_until(lambda: server.stats()["connections"] == 0)
    assert server.stats()["accepted"] == 60
"""


class TestAddresses:
    def test_a_connection_knows_both_addresses(self, serve, dial):
        handler = Recorder()
        server = serve(handler)
        client = dial(server)
        connection = handler.first()
        assert connection.peername == client.getsockname()
        assert connection.sockname == client.getpeername() == server.address
        assert connection.server is server
        assert not connection.closing
        client.close()
        handler.end()
        assert connection.peername[0] == "127.0.0.1"
        assert connection.closing

    def test_port_zero_takes_a_free_one(self, serve):
        one, two = serve(Echo()), serve(Echo())
        assert one.address[0] == "127.0.0.1"
        assert one.address[1] > 0
        assert one.address != two.address

    def test_a_host_name(self, serve, dial):
        client = dial(serve(Echo(), host="localhost"))
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"

    @pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
    def test_ipv6(self, serve, nothing_left):
        handler = Echo()
        server = serve(handler, host="::1")
        with socket.create_connection(server.address[:2], timeout=LONG) as client:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            assert handler.first().peername == client.getsockname()

    def test_an_address_in_use(self, serve, engine):
        server = serve(Echo())
        before = descriptors()
        with pytest.raises(OSError, match=r"in use|0x2740"):
            Server(Echo(), *server.address, engine=engine)
        assert descriptors() == before

    def test_an_address_of_another_machine(self, engine):
        with pytest.raises(OSError, match=r"assign|0x2741"):
            Server(Echo(), "192.0.2.1", 0, engine=engine)

    def test_a_listening_socket_of_the_program(self, serve, dial):
        listener = socket.create_server(("127.0.0.1", 0))
        server = serve(Echo(), listener=listener)
        assert server.address == listener.getsockname()
        client = dial(server)
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        server.stop()
        assert listener.fileno() == -1

    @pytest.mark.parametrize("mode", [0, 5.0])
    def test_a_listening_socket_in_another_mode(self, serve, dial, mode):
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(mode)
        server = serve(Echo(), listener=listener)
        for _ in range(3):
            client = dial(server)
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"

    def test_clients_that_were_waiting_before_the_start_are_served(self, serve, nothing_left):
        listener = socket.create_server(("127.0.0.1", 0))
        clients = [socket.create_connection(listener.getsockname(), LONG) for _ in range(5)]
        serve(Echo(), listener=listener)
        for client in clients:
            with client:
                client.sendall(b"hello")
                assert read_exactly(client, 5) == b"hello"

    @needs_unix_sockets
    def test_a_unix_socket(self, serve, tmp_path):
        path = str(tmp_path / "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        handler = Echo()
        server = serve(handler, listener=listener)
        assert server.address == path
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LONG)
            client.connect(path)
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            assert handler.first().sockname == path

    @needs_reuse_port
    def test_two_servers_share_a_port(self, serve, dial):
        handlers = [Recorder(), Recorder()]
        server = serve(handlers[0], reuse_port=True)
        serve(handlers[1], reuse_port=True, port=server.address[1])
        for _ in range(60):
            dial(server)
        wait_until(lambda: sum(len(handler.connections) for handler in handlers) == 60)
        assert all(handler.connections for handler in handlers)

    def test_a_port_is_free_again_at_once(self, serve, dial):
        server = serve(Echo())
        client = dial(server)
        client.sendall(b"x")
        read_exactly(client, 1)
        server.stop()
        again = serve(Echo(), port=server.address[1])
        assert again.address == server.address


class TestStop:
    def test_stop_ends_everything(self, serve, dial):
        handler = Recorder()
        server = serve(handler, workers=3, concurrency=3)
        clients = [dial(server) for _ in range(20)]
        wait_until(lambda: handler.count("connected") == 20)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 3
        assert handler.count("closed") == 20
        assert all(value is None for name, _, value in handler.events if name == "closed")
        for client in clients:
            assert read_to_end(client) == b""
        assert not [t for t in threading.enumerate() if t.name.startswith("completionport-")]
        assert server.completion_port.closed
        with pytest.raises(ConnectionRefusedError):
            dial(server)

    def test_what_is_queued_goes_out_within_the_grace(self, serve, dial):
        handler = Recorder()
        server = serve(handler)
        client = dial(server, buffer=65536)
        data = pattern(10_000_000)
        handler.first().send(data)
        stopping = Background(server.stop, 20)
        assert read_to_end(client) == data
        stopping.outcome()
        assert handler.end() is None

    def test_after_the_grace_it_is_dropped(self, serve, dial):
        handler = Recorder()
        server = serve(handler)
        client = dial(server, buffer=4096)
        handler.first().send(bytes(20_000_000))
        began = time.monotonic()
        server.stop(grace=0.3)
        assert 0.2 < time.monotonic() - began < 5
        assert handler.count("closed") == 1
        with contextlib.suppress(ConnectionResetError):
            assert len(read_to_end(client)) < 20_000_000

    def test_a_grace_of_zero_waits_for_nobody(self, serve, dial):
        handler = Recorder()
        server = serve(handler)
        dial(server, buffer=4096)
        handler.first().send(bytes(20_000_000))
        began = time.monotonic()
        server.stop(grace=0)
        assert time.monotonic() - began < 2
        assert handler.count("closed") == 1

    def test_stopping_again_does_nothing(self, serve):
        server = serve(Echo())
        server.stop()
        server.stop()
        for thread in [Background(server.stop) for _ in range(3)]:
            thread.outcome()

    def test_several_threads_may_stop_at_once(self, serve, dial):
        handler = Recorder()
        server = serve(handler)
        dial(server)
        handler.first()
        for thread in [Background(server.stop) for _ in range(4)]:
            thread.outcome()
            assert handler.count("closed") == 1

    def test_a_callback_may_stop_the_server(self, serve, dial):
        class Stopper(Recorder):
            def received(self, connection, data):
                connection.send(b"bye")
                connection.server.stop()

        handler = Stopper()
        server = serve(handler)
        client = dial(server)
        client.sendall(b"stop")
        assert read_to_end(client) == b"bye"
        server.stop()
        assert handler.count("closed") == 1
        assert server.completion_port.closed

    def test_a_server_that_was_never_started_can_be_stopped(self, engine):
        before = descriptors()
        server = Server(Echo(), port=0, engine=engine)
        server.stop()
        assert server.completion_port.closed
        assert descriptors() == before

    def test_a_server_is_started_once(self, serve):
        server = serve(Echo())
        with pytest.raises(RuntimeError):
            server.start()
        server.stop()
        with pytest.raises(RuntimeError):
            server.start()

    def test_a_server_is_a_context_manager(self, engine, dial):
        with Server(Echo(), port=0, engine=engine) as server:
            client = dial(server)
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
        assert read_to_end(client) == b""

    def test_stop_under_load(self, serve, dial):
        for _ in range(5):
            handler = Echo()
            server = serve(handler, workers=3, concurrency=3)
            stop = threading.Event()

            def talk(server=server, stop=stop):
                with contextlib.suppress(OSError):
                    client = dial(server)
                    while not stop.is_set():
                        client.sendall(b"hello")
                        if not client.recv(100):
                            return

            threads = [Background(talk) for _ in range(6)]
            wait_until(lambda handler=handler: handler.count("received") > 50)
            server.stop()
            stop.set()
            for thread in threads:
                thread.outcome()
            assert handler.count("closed") == handler.count("connected")

    def test_serve_forever_ends_with_stop(self, engine, dial):
        server = Server(Echo(), port=0, engine=engine)
        thread = Background(server.serve_forever)
        client = dial(server)
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        server.stop()
        thread.outcome()
        assert read_to_end(client) == b""

    @pytest.mark.parametrize("number", STOP_SIGNALS)
    def test_serve_forever_ends_in_order_at_a_signal(self, engine, number, nothing_left):
        with python_process(FOREVER, engine=engine) as process:
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), LONG) as client:
                client.settimeout(LONG)
                client.sendall(b"hello")
                assert read_exactly(client, 5) == b"hello"
                client.sendall(b"much")
                start = read_exactly(client, 1000)
                send_signal(number, process.pid)
                # What was queued before the signal still goes out.
                assert start + read_to_end(client) == pattern(6_000_000)
            output, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        assert output == "closed None\nafter serve_forever, handlers restored\n"

    def test_a_server_ends_at_a_signal_with_a_peer_that_does_not_read(self, engine, nothing_left):
        with python_process(FOREVER, engine=engine, GRACE="0.3") as process:
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), LONG) as client:
                client.sendall(b"much")
                read_exactly(client, 1000)
                send_signal(STOP_SIGNALS[-1], process.pid)
                output, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        assert "after serve_forever" in output

    def test_an_interpreter_ends_with_a_server_still_running(self, engine):
        """Daemon or not, a forgotten server must say something or end, not hang for ever."""
        done = run_python(
            """
            import threading, _thread
            from completionport import Handler, Server
            server = Server(Handler(), port=0)
            threading.Timer(0.2, server.stop).start()
            server.start()
            print("end of the program")
            """,
            engine=engine,
            timeout=30,
        )
        assert done.stdout == "end of the program\n"
        assert done.stderr == ""


FOREVER = """
import os, signal, sys
from completionport import Handler, Server
from support import pattern

class Talker(Handler):
    def received(self, connection, data):
        connection.send(pattern(6_000_000) if data == b"much" else data)

    def closed(self, connection, error):
        print("closed", error, flush=True)

before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
server = Server(Talker(), "127.0.0.1", 0, send_limit=1 << 30)
print(server.address[1], flush=True)
server.serve_forever(grace=float(os.environ.get("GRACE", "20")))
assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
print("after serve_forever, handlers restored")
"""


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"workers": 0}, ValueError, "workers"),
            ({"workers": "2"}, TypeError, "workers"),
            ({"concurrency": -1}, ValueError, "concurrency"),
            ({"backlog": -1}, ValueError, "backlog"),
            ({"buffer_size": 0}, ValueError, "buffer_size"),
            ({"buffer_size": 1.5}, TypeError, "buffer_size"),
            ({"max_connections": 0}, ValueError, "max_connections"),
            ({"idle_timeout": 0}, ValueError, "idle_timeout"),
            ({"idle_timeout": -1}, ValueError, "idle_timeout"),
            ({"idle_timeout": "1"}, TypeError, "idle_timeout"),
            ({"idle_timeout": float("nan")}, ValueError, "idle_timeout"),
            ({"send_limit": -1}, ValueError, "send_limit"),
            ({"port": 70000}, ValueError, "port"),
            ({"port": -1}, ValueError, "port"),
            ({"port": "5050"}, TypeError, "port"),
            ({"host": 5}, TypeError, "host"),
            ({"host": "name.invalid"}, socket.gaierror, None),
            ({"listener": 5}, TypeError, "listener"),
        ],
        ids=str,
    )
    def test_wrong_arguments_raise_and_leave_nothing(self, engine, options, error, message):
        before = descriptors()
        with pytest.raises(error, match=message):
            Server(Handler(), **{"port": 0, "engine": engine, **options})
        assert descriptors() == before

    @pytest.mark.parametrize("handler", [None, object(), Handler, Echo], ids=shown)
    def test_the_handler_is_a_handler(self, engine, handler):
        with pytest.raises(TypeError, match="handler"):
            Server(handler, port=0, engine=engine)

    def test_an_unknown_engine(self):
        before = descriptors()
        with pytest.raises(ValueError, match="unknown engine"):
            Server(Handler(), port=0, engine="kqueue")
        assert descriptors() == before

    @pytest.mark.parametrize("grace", [-1, float("nan"), "5", None], ids=shown)
    def test_the_grace_is_a_number_of_seconds(self, serve, grace):
        server = serve(Echo())
        with pytest.raises((TypeError, ValueError), match="grace"):
            server.stop(grace)

    def test_a_handler_without_methods_of_its_own_serves(self, serve, dial):
        client = dial(serve(Handler()))
        client.sendall(b"ignored")
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b""


def test_stats_count_what_was_served(serve, dial):
    server = serve(Echo())
    for number in range(3):
        client = dial(server)
        for _ in range(5):
            client.sendall(b"0123456789")
            read_exactly(client, 10)
        if number:
            client.close()
    wait_until(lambda: server.stats()["connections"] == 1)
    numbers = server.stats()
    assert numbers["accepted"] == 3
    assert numbers["received_bytes"] == numbers["sent_bytes"] == 150
    assert numbers["received_packets"] == 15


def test_an_idle_server_uses_no_cpu(serve, dial):
    server = serve(Echo(), workers=3, concurrency=3, idle_timeout=60)
    for _ in range(50):
        dial(server)
    wait_until(lambda: server.stats()["connections"] == 50)
    began = time.process_time()
    threading.Event().wait(0.5)
    assert time.process_time() - began < 0.1


def test_two_servers_in_one_process(serve, dial):
    servers = [serve(Echo()) for _ in range(3)]
    clients = [dial(server) for server in servers]
    for client in clients:
        client.sendall(b"hello")
    for client in clients:
        assert read_exactly(client, 5) == b"hello"


@needs_fork
def test_a_server_in_a_forked_child_leaves_the_parents_alone(engine):
    done = run_python(
        """
        import os, socket, warnings
        warnings.simplefilter("ignore")
        from completionport import Handler, PortForked, Server

        class Echo(Handler):
            def received(self, connection, data):
                connection.send(data)

        def talk(server):
            with socket.create_connection(server.address, 20) as client:
                client.sendall(b"hello")
                assert client.recv(10) == b"hello"

        with Server(Echo(), port=0) as server:
            talk(server)
            child = os.fork()
            if child == 0:
                with Server(Echo(), port=0) as mine:
                    talk(mine)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            talk(server)
        """,
        engine=engine,
        timeout=30,
    )
    assert done.stderr == ""


def test_messages_are_pieced_together_over_packets(serve, dial):
    """A protocol of lines, as a user would write it."""

    class Lines(Handler):
        def connected(self, connection):
            connection.state = b""

        def received(self, connection, data):
            *lines, connection.state = (connection.state + data).split(b"\n")
            for line in lines:
                connection.send(line[::-1] + b"\n")

    client = dial(serve(Lines(), buffer_size=64))
    lines = [os.urandom(20).hex().encode() for _ in range(200)]
    client.sendall(b"\n".join(lines) + b"\n")
    answer = read_exactly(client, 200 * 41)
    assert answer == b"".join(line[::-1] + b"\n" for line in lines)
