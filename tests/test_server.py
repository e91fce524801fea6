"""Handler and Connection: which callbacks come, in which order, and what an exception does."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import statistics
import sys
import threading
import time
from pathlib import Path

import pytest

from completionport import Connection, Handler, Server
from server_support import Echo, Recorder
from support import (
    LONG,
    WINDOWS,
    Background,
    compute_until,
    needs_concurrency,
    pattern,
    read_exactly,
    read_to_end,
    reset,
    wait_until,
)


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

    @pytest.mark.alone
    def test_answers_of_several_segments_are_not_held_back(self, serve, dial):
        """Without TCP_NODELAY each of these takes 40 milliseconds."""
        client = dial(serve(Echo()))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data, times = pattern(16384), []
        for _ in range(31):
            began = time.monotonic()
            client.sendall(data)
            assert read_exactly(client, len(data)) == data
            times.append(time.monotonic() - began)
        assert statistics.median(times) < 0.03


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

    @pytest.mark.alone
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

    @pytest.mark.alone
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
    # What a worker has sent it counts behind that.
    wait_until(lambda: server.stats()["sent_bytes"] >= 150)
    numbers = server.stats()
    assert numbers["accepted"] == 3
    assert numbers["received_bytes"] == numbers["sent_bytes"] == 150
    assert numbers["received_packets"] == 15


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
