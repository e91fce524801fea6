"""Work for `race_check.sh`: every part of a port and of a server from many threads at once.

It asserts little: the tests do that. It is there for ThreadSanitizer to watch.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from completionport import (
    CompletionPort,
    ConnectionClosed,
    DatagramHandler,
    DatagramServer,
    HandleClosed,
    Handler,
    OperationPending,
    Overlapped,
    PortClosed,
    Server,
    Strand,
    WorkerPool,
)

SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
REFUSED = (PortClosed, HandleClosed, OperationPending, OSError)


def threads(*functions):
    """Run all of them at once, and pass on what one of them raises."""
    raised = []

    def call(function):
        try:
            function()
        except BaseException as error:
            raised.append(error)
            raise

    running = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if raised:
        raise raised[0]


def until(end):
    while time.monotonic() < end:
        yield random.random()


class Echo(Handler):
    """Sends back, and has connections meddle with each other."""

    def __init__(self):
        self.others = []

    def connected(self, connection):
        connection.state = [0]
        self.others.append(connection)

    def received(self, connection, data):
        connection.state = [connection.state[0] + len(data)]
        with contextlib.suppress(ConnectionClosed):
            connection.send(data)
            other = random.choice(self.others)
            chance = random.random()
            if chance < 0.05:
                other.pause()
                other.resume()
            elif chance < 0.07:
                other.send(b"y" * random.choice([10, 100_000]))
            elif chance < 0.075:
                other.abort()
            elif chance < 0.08:
                other.close()
            elif chance < 0.1:
                time.sleep(0.0005)  # so often that threads stand by, or that the monitor hurries
            elif chance < 0.2:
                _ = (other.state, other.closing, other.send_queue_size)

    def drained(self, connection):
        connection.state = [0]


def serve(engine):
    """A server under load, its limits, and closing it with all of that under way."""
    end = time.monotonic() + SECONDS
    server = Server(
        Echo(),
        "127.0.0.1",
        0,
        workers=4,
        concurrency=4,
        engine=engine,
        idle_timeout=0.2,
        send_limit=50_000,
        max_connections=6,
    )
    server.start()

    def client():
        for chance in until(end):
            with contextlib.suppress(OSError), socket.create_connection(server.address, 5) as sock:
                sock.settimeout(0.5)
                for _ in range(int(chance * 40)):
                    sock.sendall(b"x" * random.choice([1, 100, 20_000]))
                    if chance < 0.9:
                        sock.recv(30_000)

    def watch():
        for _ in until(end):
            server.stats()
            time.sleep(0.001)

    def stop():
        time.sleep(SECONDS * 0.9)
        server.stop(0.1)

    threads(client, client, client, client, watch, stop)


def operate(engine):
    """Operations, strands and blocking in many threads; then the port is closed under them."""
    end = time.monotonic() + SECONDS
    port = CompletionPort(2, engine=engine)
    strand = Strand(port)
    pairs = [socket.socketpair() for _ in range(4)]
    handles = [
        (port.associate(one, 1, strand=strand), port.associate(two, 2)) for one, two in pairs
    ]
    shared = [Overlapped() for _ in range(4)]

    def take():
        with contextlib.suppress(PortClosed):
            while True:
                chance = random.random()
                done = port.get(random.choice([None, 0, 0.0005]))
                if done is None:
                    continue
                if chance < 0.1:
                    port.get_many(3, 0)
                elif chance < 0.15:
                    with port.blocking():
                        time.sleep(0.002)
                elif chance < 0.3:
                    with contextlib.suppress(RuntimeError):
                        strand.release()
                elif chance < 0.32:
                    time.sleep(0.003)  # so that the monitor has to find it
                _ = strand.queued

    def start():
        for chance in until(end):
            one, two = random.choice(handles)
            overlapped = random.choice([None, *shared])
            with contextlib.suppress(*REFUSED):
                if chance < 0.4:
                    one.send(b"x" * 100, overlapped=overlapped)
                elif chance < 0.8:
                    two.recv(random.choice([0, 50, 200]), overlapped=overlapped)
                elif chance < 0.85:
                    two.cancel()
                elif chance < 0.95:
                    port.post(chance, strand=random.choice([None, strand]))
                else:
                    time.sleep(0.001)

    def meddle():
        for _ in until(end):
            overlapped = random.choice(shared)
            overlapped.cancel()
            _ = (overlapped.error, overlapped.handle, overlapped.transferred, repr(overlapped))
            with contextlib.suppress(OSError, OperationPending, ValueError):
                overlapped.result()
            with contextlib.suppress(PortClosed):
                port.stats()
            time.sleep(0.0005)

    def set_timers():
        timers = []
        for chance in until(end):
            with contextlib.suppress(PortClosed):
                bound = random.choice([None, strand])
                timers.append(port.post_after(chance * 0.01, chance, strand=bound))
                if chance < 0.5:
                    random.choice(timers).cancel()
                elif chance < 0.6:
                    port.post_at(time.monotonic() - chance)
                elif chance < 0.61:
                    threads(*(timer.cancel for timer in timers[-3:] * 2))
            _ = [timer.pending for timer in timers[-5:]]
            del timers[:-50]

    def close_handles():
        time.sleep(SECONDS * 0.7)
        for one, two in handles[:2]:
            threads(one.close, one.close, two.close)
        time.sleep(SECONDS * 0.2)
        threads(port.close, port.close, handles[2][0].close, handles[3][0].close)

    threads(
        take, take, take, take, start, start, start, set_timers, set_timers, meddle, close_handles
    )
    for one, two in pairs:
        one.close()
        two.close()


def come_and_go(engine):
    """Short ports, each closed by another thread than those that wait in it."""
    for _ in until(time.monotonic() + SECONDS / 2):
        port = CompletionPort(1, engine=engine)

        def work(port=port):
            with contextlib.suppress(PortClosed):
                while True:
                    port.post(port.get(0.001) is not None)
                    port.get()

        threads(work, work, work, lambda port=port: (time.sleep(0.003), port.close()))


class File:
    """A descriptor that is closed once, by the program or by its handle."""

    def __init__(self, path, flags):
        self.number = os.open(path, flags)
        self.lock = threading.Lock()

    def fileno(self):
        return self.number

    def close(self):
        with self.lock:
            number, self.number = self.number, -1
        if number >= 0:
            os.close(number)


class Answer(DatagramHandler):
    """Sends back, now and then to somebody else or more than the socket has room for."""

    def __init__(self):
        self.endpoint = None
        self.addresses = [None]

    def received(self, endpoint, data, address):
        self.endpoint = endpoint
        if address not in self.addresses:
            self.addresses.append(address)
        chance = random.random()
        with contextlib.suppress(ConnectionClosed, OSError):
            endpoint.send(data, address)
            if chance < 0.1:
                endpoint.send([b"y" * 500, data], random.choice(self.addresses[1:]))
            elif chance < 0.15:
                for _ in range(30):
                    endpoint.send(b"z" * 2000, address)
            elif chance < 0.3:
                _ = (endpoint.closing, endpoint.send_queue_size, endpoint.sockname)

    def failed(self, endpoint, error):
        pass


def serve_datagrams(engine):
    """A server for datagrams, on UDP and on a Unix socket, whose buffer is full at times."""
    with tempfile.TemporaryDirectory() as folder:
        for family in socket.AF_INET, socket.AF_UNIX:
            own = socket.socket(family, socket.SOCK_DGRAM)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8000)
            own.bind(("127.0.0.1", 0) if family == socket.AF_INET else f"{folder}/server")
            address = own.getsockname()
            exchange_datagrams(engine, own, address, family, folder)


def exchange_datagrams(engine, own, address, family, folder):
    end = time.monotonic() + SECONDS / 2
    handler = Answer()
    server = DatagramServer(
        handler,
        sock=own,
        workers=4,
        concurrency=4,
        engine=engine,
        buffer_size=1000,
        send_limit=9000,
    )
    server.start()

    def client(name):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0) if family == socket.AF_INET else f"{folder}/{name}")
            sock.settimeout(0.01)
            for chance in until(end):
                with contextlib.suppress(OSError):
                    for _ in range(int(chance * 30)):
                        sock.sendto(b"x" * random.choice([0, 10, 900, 1500]), address)
                    for _ in range(int(random.random() * 60)):
                        sock.recv(3000)

    def send():
        for chance in until(end):
            endpoint, peer = handler.endpoint, random.choice(handler.addresses)
            if endpoint is not None and peer is not None:
                with contextlib.suppress(ConnectionClosed, OSError):
                    endpoint.send(b"w" * int(chance * 900), peer)
            time.sleep(0.0002)

    def watch():
        for _ in until(end):
            server.stats()
            time.sleep(0.001)

    def stop():
        time.sleep(SECONDS * 0.45)
        server.stop(0.1)

    names = ("one", "two", "three", "four")
    clients = [lambda name=name: client(name) for name in names]
    threads(*clients, send, send, watch, stop)


def take_all(port):
    """Packets until the port is closed, and what a look at each of them may meet."""
    with contextlib.suppress(PortClosed):
        while True:
            done = port.get(random.choice([None, 0.001]))
            if done is not None and done.overlapped is not None:
                with contextlib.suppress(OSError, OperationPending, ValueError):
                    result = done.overlapped.result()
                    if isinstance(result, socket.socket):
                        result.close()
                    elif isinstance(result, tuple) and len(result) == 4:
                        for _, _, data in result[1]:
                            os.close(int.from_bytes(data[:4], sys.byteorder))


def work_on_files(engine):
    """Files, names and functions: the pool of threads and what waits in line for it."""
    end = time.monotonic() + SECONDS
    port = CompletionPort(2, engine=engine, pool_threads=3)
    folder = tempfile.TemporaryDirectory()
    paths = [os.path.join(folder.name, name) for name in "abc"]
    files = [File(path, os.O_RDWR | os.O_CREAT) for path in paths]
    handles = [port.associate(file, None) for file in files]
    pending = []
    nap = threading.local()

    def function(chance):
        # Values of a thread of the pool stay its own.
        nap.count = getattr(nap, "count", 0) + 1
        if chance < 0.2:
            time.sleep(chance * 0.01)
        if chance > 0.95:
            raise ValueError(chance)
        return bytes(10)

    def start():
        for chance in until(end):
            handle = random.choice(handles)
            offset = random.randrange(20) * 4096
            with contextlib.suppress(*REFUSED):
                if chance < 0.25:
                    new = handle.write(b"x" * 5000, offset)
                elif chance < 0.5:
                    new = handle.read(random.choice([10, 9000]), offset)
                elif chance < 0.55:
                    new = handle.read(100)
                elif chance < 0.65:
                    new = handle.fsync()
                elif chance < 0.7:
                    new = handle.stat() if chance < 0.68 else handle.allocate(offset, 5000)
                elif chance < 0.8:
                    new = port.submit(function, random.random())
                elif chance < 0.85:
                    new = port.getaddrinfo("localhost", 80)
                elif chance < 0.9:
                    new = port.stat(random.choice(paths))
                else:
                    new = port.close_descriptor(os.dup(files[2].fileno()))
                pending.append(new)
                if len(pending) > 200:
                    time.sleep(0.002)
                    del pending[:100]

    def meddle():
        for chance in until(end):
            with contextlib.suppress(IndexError, OSError, OperationPending, ValueError):
                chosen = pending[-random.randrange(1, 30)]
                _ = (repr(chosen), chosen.transferred, chosen.error, chosen.handle)
                if chance < 0.2:
                    chosen.cancel()
                elif chance < 0.22:
                    random.choice(handles).cancel()
                elif chance < 0.5:
                    port.stats()
            time.sleep(0.0003)

    def close():
        time.sleep(SECONDS * 0.7)
        threads(handles[0].close, handles[0].close)
        time.sleep(SECONDS * 0.2)
        threads(port.close, port.close, handles[1].close)

    takers = [lambda: take_all(port)] * 3
    threads(*takers, start, start, start, meddle, meddle, close)
    for file in files:
        file.close()
    folder.cleanup()


def send_messages(engine):
    """Datagrams, ancillary data, files on sockets, accepts and connects; closed under way."""
    end = time.monotonic() + SECONDS
    port = CompletionPort(2, engine=engine)
    sockets = list(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    sockets += socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for _ in range(2):
        sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sockets[-1].bind(("127.0.0.1", 0))
    addresses = [sock.getsockname() for sock in sockets[4:]]
    listener = socket.create_server(("127.0.0.1", 0))
    sockets += [socket.create_connection(listener.getsockname()), listener.accept()[0]]
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(bytes(50_000))
    file.flush()
    os.fsync(file.fileno())
    handles = [port.associate(sock, None) for sock in sockets]
    accepting = port.associate(listener, None)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, file.fileno().to_bytes(4, sys.byteorder))]

    def send():
        for chance in until(end):
            with contextlib.suppress(*REFUSED):
                if chance < 0.3:
                    handles[random.choice([4, 5])].sendto(b"x" * 100, random.choice(addresses))
                elif chance < 0.6:
                    handles[0].sendmsg([b"x" * 50, b"y"], random.choice([rights, ()]))
                elif chance < 0.7:
                    handles[6].send(bytes(30_000), zero_copy=True)
                elif chance < 0.8:
                    if chance < 0.75:  # then the pool reads it
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    handles[2].sendfile(file, 0, int(chance * 50_000), head=b"head", tail=b"tail")
                else:
                    handles[3].send(b"x" * 1000)
            time.sleep(0.0003)

    def receive():
        for chance in until(end):
            with contextlib.suppress(*REFUSED):
                if chance < 0.3:
                    handles[random.choice([4, 5])].recvfrom(random.choice([0, 50, 500]))
                elif chance < 0.6:
                    handles[1].recvmsg(random.choice([0, 500]), socket.CMSG_SPACE(8))
                elif chance < 0.9:
                    handles[random.choice([2, 3, 7])].recv(random.choice([0, 70_000]))
                else:
                    random.choice(handles).cancel()
            time.sleep(0.0003)

    def connect():
        for chance in until(end):
            with contextlib.suppress(*REFUSED):
                accepting.accept()
                with socket.socket() as sock, port.associate(sock, None) as handle:
                    handle.connect(listener.getsockname())
                    handle.send(b"x")
                    if chance < 0.5:
                        random.choice([handle.shutdown, handle.disconnect])()
                    time.sleep(0.0005)

    def close():
        time.sleep(SECONDS * 0.9)
        threads(handles[0].close, handles[1].close, handles[5].close, port.close)

    takers = [lambda: take_all(port)] * 3
    threads(*takers, send, send, receive, receive, connect, close)
    for one in (*sockets, listener, file):
        one.close()


def watch_the_system(engine):
    """Processes, changes of a directory and signals, closed while more of them come."""
    end = time.monotonic() + SECONDS
    port = CompletionPort(2, engine=engine)
    folder = tempfile.TemporaryDirectory()
    watched = File(folder.name, os.O_RDONLY | os.O_DIRECTORY)
    handle = port.associate(watched, None)
    watches = [port.associate_signal(signal.SIGUSR1, number) for number in range(3)]

    def run_processes():
        for chance in until(end):
            command = ["/bin/sleep", f"{chance * 0.02:.3f}"]
            with (
                subprocess.Popen(command, env={}) as process,
                contextlib.suppress(*REFUSED),
                port.associate(process, None),
            ):
                port.associate(process, None)
                if chance < 0.5:
                    process.wait()

    def change():
        for chance in until(end):
            path = os.path.join(folder.name, str(random.randrange(5)))
            with contextlib.suppress(OSError):
                if chance < 0.2:
                    os.mkdir(path)
                elif chance < 0.4:
                    os.rmdir(path)
                elif chance < 0.6:
                    os.rename(path, path + "x")
                else:
                    open(os.path.join(path, "file") if chance < 0.8 else path + "f", "w").close()
            time.sleep(0.0005)

    def ask():
        for chance in until(end):
            with contextlib.suppress(*REFUSED):
                new = handle.read_changes(recursive=True)
                if chance < 0.1:
                    new.cancel()
            time.sleep(0.001)

    def send_signals():
        for _ in until(end):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.002)

    def close():
        time.sleep(SECONDS * 0.5)
        threads(watches[0].close, watches[0].close)
        time.sleep(SECONDS * 0.4)
        threads(handle.close, watches[1].close, port.close)

    takers = [lambda: take_all(port)] * 3
    threads(*takers, run_processes, run_processes, change, ask, ask, send_signals, close)
    watched.close()
    folder.cleanup()


class Asking(Echo):
    """Takes one of the program's packets now and then."""

    def received(self, connection, data):
        if random.random() < 0.2:
            with contextlib.suppress(PortClosed):
                connection.server.completion_port.get(0.001)
        super().received(connection, data)


def share_a_port(engine):
    """Servers, pools and threads in `get` on one port, which is closed under them."""
    for concurrency in 1, 3:
        port = CompletionPort(concurrency, engine=engine)
        options = {"completion_port": port, "workers": 2}
        servers = [Server(Asking(), port=0, idle_timeout=0.2, **options) for _ in range(2)]
        servers.append(DatagramServer(Answer(), port=0, **options))
        for server in servers:
            server.start()
        end = time.monotonic() + SECONDS / 2
        threads(*users_of(port, servers, end))
        for server in servers:
            server.stop(0)


def users_of(port, servers, end):
    def talk():
        for _ in until(end):
            address = random.choice(servers[:2]).address
            with contextlib.suppress(OSError), socket.create_connection(address, 5) as sock:
                sock.settimeout(0.5)
                for _ in range(20):
                    sock.sendall(b"x" * random.choice([1, 20_000]))
                    sock.recv(30_000)

    def send():
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            for _ in until(end):
                with contextlib.suppress(OSError):
                    sock.sendto(b"x", servers[2].address)
                time.sleep(0.0005)

    def take():
        with contextlib.suppress(PortClosed):
            while True:
                port.get_many(3, random.choice([0, 0.001, None]))

    def post():
        strand = Strand(port)
        with contextlib.suppress(PortClosed):
            for chance in until(end):
                port.post(strand=strand if chance < 0.5 else None)
                port.post_after(chance * 0.002)
                time.sleep(chance * 0.001)

    def come_and_go():
        with contextlib.suppress(PortClosed):
            for chance in until(end):
                with WorkerPool(port, lambda packet: None, 2, maximum=3, idle_timeout=0.01):
                    server = Server(Echo(), port=0, completion_port=port, workers=2)
                    with server, socket.create_connection(server.address, 5) as sock:
                        sock.sendall(b"x")
                        time.sleep(chance * 0.01)

    def close():
        time.sleep(max(end - time.monotonic() - 0.05, 0))
        port.close()

    return talk, talk, talk, send, take, post, come_and_go, close


PARTS = (
    serve,
    share_a_port,
    operate,
    come_and_go,
    serve_datagrams,
    work_on_files,
    send_messages,
    watch_the_system,
)

if __name__ == "__main__":
    # The watches of a port put this back with the last of them.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for part in PARTS:
        if sys.argv[3:] and part.__name__ not in sys.argv[3:]:
            continue
        print(f"{part.__name__} on {sys.argv[1]}", flush=True)
        part(sys.argv[1])
