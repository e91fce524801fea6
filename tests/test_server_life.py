"""The life of a server: its limits, and its end."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import pytest

from completionport import Handler, Server
from server_support import Echo, Recorder, Silent
from support import (
    HOST,
    LONG,
    STOP_SIGNALS,
    WINDOWS,
    Background,
    assert_idle,
    descriptors,
    needs_fork,
    needs_posix_signals,
    pattern,
    python_process,
    read_exactly,
    read_to_end,
    refuse_threads,
    run_python,
    send_signal,
    shown,
    wait_until,
    windows_has_no,
)


def talks_on(connect, exchange, idle_timeout):
    """A connection over which something goes often enough, for longer than it may be idle.

    The server sees it go within the call of `exchange`. Where this process was stopped in between
    for long, the connection may have been closed for that, and another one is tried.
    """
    for _ in range(10):
        before = time.monotonic()
        connection, longest, until = connect(), 0.0, before + 3 * idle_timeout
        try:
            while time.monotonic() < until:
                begun = time.monotonic()
                exchange(connection)
                longest = max(longest, time.monotonic() - before)
                before = begun
                time.sleep(0.05)
            return connection
        except (AssertionError, OSError):
            longest = max(longest, time.monotonic() - before)
            assert longest > idle_timeout / 2, f"closed though it was idle for {longest} s at most"
    raise AssertionError("this process is stopped again and again")


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

    def test_clients_that_waited_before_the_start(self, serve, dial):
        with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
            clients = [socket.create_connection(listener.getsockname()) for _ in range(8)]
            with contextlib.ExitStack() as open_ones:
                for client in clients:
                    open_ones.enter_context(client).settimeout(LONG)
                handler = Echo()
                server = serve(handler, listener=listener, max_connections=2, concurrency=1)
                for after, client in enumerate(clients, 2):
                    for _ in range(5):
                        client.sendall(b"x")
                        assert read_exactly(client, 1) == b"x"
                        assert server.stats()["connections"] <= 2
                    assert handler.count("connected") <= after
                    client.close()

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
        server = serve(handler, idle_timeout=0.2)
        began = time.monotonic()
        client = dial(server)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b""
        assert 0.15 < time.monotonic() - began < LONG / 2
        assert isinstance(handler.end(), TimeoutError)

    def test_a_connection_with_traffic_is_not_idle(self, serve, dial):
        def exchange(client):
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"

        server = serve(Echo(), idle_timeout=0.5)
        client = talks_on(lambda: dial(server), exchange, 0.5)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b""

    def test_a_connection_that_sends_is_not_idle(self, serve, dial):
        def connect():
            client = dial(server)
            name = client.getsockname()
            return client, wait_until(
                lambda: [one for one in handler.connections if one.peername == name]
            )[0]

        def exchange(ends):
            client, connection = ends
            connection.send(b"x")
            assert client.recv(1) == b"x"

        handler = Recorder()
        server = serve(handler, idle_timeout=0.5)
        talks_on(connect, exchange, 0.5)

    def test_a_peer_that_takes_its_time_is_not_idle(self, serve, dial):
        class Generous(Recorder):
            def connected(self, connection):
                super().connected(connection)
                connection.send(data)

        def exchange(client):
            came[client] = came.get(client, b"") + read_exactly(client, 400_000)

        data, came = pattern(30_000_000), {}
        server = serve(Generous(), idle_timeout=0.8, send_limit=1 << 30)
        client = talks_on(lambda: dial(server, buffer=65536), exchange, 0.8)
        assert len(came[client]) < len(data)
        assert came[client] + read_exactly(client, len(data) - len(came[client])) == data

    def test_a_closing_connection_whose_peer_takes_nothing_ends_too(self, serve, dial):
        class Generous(Recorder):
            def connected(self, connection):
                super().connected(connection)
                connection.send(bytes(20_000_000))
                connection.close()

        handler = Generous()
        # One worker, which ends nothing in the midst of a callback.
        client = dial(serve(handler, idle_timeout=0.2, workers=1), buffer=4096)
        assert handler.end() is None
        with contextlib.suppress(ConnectionResetError):
            assert len(read_to_end(client)) < 20_000_000

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


class TestStop:
    def test_stop_ends_everything(self, serve, dial):
        handler = Recorder()
        server = serve(handler, host=HOST, workers=3, concurrency=3)
        clients = [dial(server) for _ in range(20)]
        wait_until(lambda: handler.count("connected") == 20)
        began = time.monotonic()
        server.stop(LONG)
        assert time.monotonic() - began < LONG / 2
        assert handler.count("closed") == 20
        assert all(value is None for name, _, value in handler.events if name == "closed")
        for client in clients:
            assert read_to_end(client) == b""
        wait_until(
            lambda: not [t for t in threading.enumerate() if t.name.startswith("completionport-")]
        )
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
        assert time.monotonic() - began < 4
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

    def test_threads_that_the_system_refuses_undo_the_start(
        self, engine, nothing_left, monkeypatch
    ):
        server = Server(Echo(), port=0, workers=4, engine=engine)
        started = refuse_threads(monkeypatch, after=3)
        with pytest.raises(RuntimeError, match=r"can't start new thread: .* 3 of 4 workers"):
            server.start()
        stopper, *workers = started
        assert not any(thread.is_alive() for thread in workers)
        stopper.join(LONG)
        assert not stopper.is_alive()
        assert server.completion_port.closed
        server.stop()

    def test_a_listener_that_was_closed_undoes_the_start(self, engine, nothing_left):
        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(Echo(), listener=listener, engine=engine)
        listener.close()
        with pytest.raises(ValueError, match="closed"):
            server.start()
        assert server.completion_port.closed

    def test_a_concurrency_without_end_makes_no_threads_without_end(
        self, engine, nothing_left, monkeypatch
    ):
        monkeypatch.setattr("completionport.servers.service.LARGEST_WORKERS", 16)
        server = Server(Silent(), port=0, concurrency=2**31 - 1, engine=engine)
        assert len(server._threads) == 16
        server.stop()

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
            class Silent(Handler):
                def received(self, connection, data): pass
            server = Server(Silent(), port=0)
            server.start()
            threading.Timer(0.2, server.stop).start()
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
            ({"workers": 10**9}, ValueError, "workers must be from 1 to 32768, not 1000000000"),
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
            ({"port": 70000}, ValueError, "port must be a number from 0 to 65535, not 70000"),
            ({"port": -1}, ValueError, "port must be a number from 0 to 65535, not -1"),
            ({"backlog": 2**31}, ValueError, "backlog must be from 0 to 2147483647"),
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
            Server(Silent(), **{"port": 0, "engine": engine, **options})
        assert descriptors() == before

    @pytest.mark.parametrize("handler", [None, object(), Handler, Echo], ids=shown)
    def test_the_handler_is_a_handler(self, engine, handler):
        with pytest.raises(TypeError, match="handler"):
            Server(handler, port=0, engine=engine)

    def test_an_unknown_engine(self):
        before = descriptors()
        with pytest.raises(ValueError, match="unknown engine"):
            Server(Silent(), port=0, engine="kqueue")
        assert descriptors() == before

    @pytest.mark.parametrize("grace", [-1, float("nan"), "5", None], ids=shown)
    def test_the_grace_is_a_number_of_seconds(self, serve, grace):
        server = serve(Echo())
        with pytest.raises((TypeError, ValueError), match="grace"):
            server.stop(grace)

    def test_a_handler_that_has_only_received_serves(self, serve, dial):
        client = dial(serve(Silent()))
        client.sendall(b"ignored")
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b""


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


class Aborting(Handler):
    """Sends more than fits and aborts the connection, whose close(2) may then wait for the peer."""

    def received(self, connection, data):
        if data == b"abort":
            connection.send(bytes(1 << 20))
            connection.abort()
        else:
            connection.send(data)


@pytest.mark.skipif(WINDOWS, reason="Windows' sockets take over no SO_LINGER")
def test_nobody_waits_for_a_connection_that_lingers(serve, dial, listener):
    """As its listening socket does: connections take that over."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3 * int(LONG)))
    server = serve(Aborting(), workers=2, concurrency=2, listener=listener)
    one, two = dial(server, 4096), dial(server)
    one.sendall(b"abort")
    wait_until(lambda: one.recv(1, socket.MSG_PEEK))
    two.sendall(b"hello")
    assert read_exactly(two, 5) == b"hello"
    with contextlib.suppress(ConnectionResetError):
        read_to_end(one)


def test_an_idle_server_uses_no_cpu(serve, dial):
    server = serve(Echo(), workers=3, concurrency=3, idle_timeout=60)
    for _ in range(50):
        dial(server)
    wait_until(lambda: server.stats()["connections"] == 50)
    assert_idle(0.5, most=0.1)


@needs_posix_signals
def test_stop_in_a_signal_handler_may_interrupt_another_stop(engine):
    """Ctrl-C pressed twice, while a callback is at work."""
    run_python(
        f"""
        import signal, socket, threading
        from completionport import Handler, Server

        busy, go = threading.Event(), threading.Event()
        count = 0

        class Busy(Handler):
            def received(self, connection, data):
                busy.set()
                go.wait(20)

        def stop(number, frame):
            global count
            count += 1
            if count == 2:
                go.set()
            else:
                again.start()
            server.stop()

        server = Server(Busy(), port=0, engine={engine!r})
        main = threading.main_thread().ident
        again = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
        signal.signal(signal.SIGINT, stop)
        server.start()
        with socket.create_connection(server.address) as client:
            client.sendall(b"x")
            busy.wait(20)
            signal.raise_signal(signal.SIGINT)
        assert count == 2
        """
    )


@needs_posix_signals
def test_an_exception_that_ends_a_stop_leaves_the_end_to_be_waited_for(engine):
    run_python(
        f"""
        import signal, socket, threading
        from completionport import Handler, Server

        busy, go, ended = threading.Event(), threading.Event(), []

        class Busy(Handler):
            def received(self, connection, data):
                busy.set()
                go.wait(20)

            def closed(self, connection, error):
                ended.append(connection)

        server = Server(Busy(), port=0, engine={engine!r})
        server.start()
        client = socket.create_connection(server.address)
        client.sendall(b"x")
        busy.wait(20)
        main = threading.main_thread().ident
        try:
            threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
            server.stop()
        except KeyboardInterrupt:
            assert not ended
        else:
            raise SystemExit("nothing was interrupted")
        go.set()
        server.stop()
        assert len(ended) == 1
        """
    )


@needs_fork
def test_the_child_of_a_fork_leaves_its_parents_server_alone(engine):
    run_python(
        f"""
        import os, socket, sys
        from completionport import Handler, PortForked, Server

        class Echo(Handler):
            def received(self, connection, data):
                connection.send(data)

        with Server(Echo(), port=0, engine={engine!r}) as server:
            child = os.fork()
            if child == 0:
                try:
                    server.stop()
                except PortForked:
                    sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            with socket.create_connection(server.address) as client:
                client.sendall(b"hello")
                assert client.recv(10) == b"hello"
        """
    )
