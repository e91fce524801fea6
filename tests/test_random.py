"""Threads that post, take, cancel and close at will: each operation gives exactly one packet.

The seed is printed. COMPLETIONPORT_SEED repeats a run's choices (the threads' timing is their
own), COMPLETIONPORT_STRESS_SECONDS makes it longer.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import random
import socket
import tempfile
import threading
import time

from completionport import (
    CompletionPort,
    HandleClosed,
    Operation,
    OperationAborted,
    OperationPending,
    Overlapped,
    PortClosed,
)
from support import (
    LONG,
    Background,
    assert_quiet,
    local_pair,
    needs_unix_sockets,
    pattern,
    tcp_pair,
    wait_until,
)

SECONDS = float(os.environ.get("COMPLETIONPORT_STRESS_SECONDS", "1.5"))
MOST_UNDER_WAY = 40
CONTENT = pattern(150_000, 3)
"""Of the file that is sent."""
STOP = object()


def new_seed():
    seed = int(os.environ.get("COMPLETIONPORT_SEED", "0")) or random.randrange(1, 2**32)
    print(f"COMPLETIONPORT_SEED={seed}")
    return seed


class Recorded(Overlapped):
    """One operation of the test and the packets that were seen for it."""

    def __init__(self, data):
        self.data = data
        self.packets = queue.SimpleQueue()
        self.aborted = None


class End:
    """One socket of a pair: what was asked of it, in the order of the calls."""

    def __init__(self, port, sock, whole):
        self.whole = whole
        self.handle = port.associate(sock, self)
        self.lock = threading.Lock()  # makes the order of the calls known
        self.sends = []
        self.receives = []
        self.under_way = 0


class Connection:
    def __init__(self, port, sockets, whole):
        self.whole = whole  # nothing is closed in the middle: all bytes must arrive
        self.ends = [End(port, sock, whole) for sock in sockets]


class Storm:
    def __init__(self, engine, seed, closes):
        self.port = CompletionPort(4, engine=engine)
        self.seed = seed
        self.closes = closes
        self.stop = threading.Event()
        self.numbers = itertools.count()
        self.posted = []
        self.taken_posts = queue.SimpleQueue()
        self.strangers = queue.SimpleQueue()
        self.connections = [self.connect(index) for index in range(6)]
        self.finished = []
        self.lock = threading.Lock()

    def connect(self, index, whole=None):
        sockets = (tcp_pair, local_pair)[index % 2]()
        whole = not (self.closes and index % 3 == 0) if whole is None else whole
        return Connection(self.port, sockets, whole)

    # What the threads do.

    def take(self, number):
        chance = random.Random(f"{self.seed} take {number}")
        while True:
            kind = chance.randrange(4)
            if kind == 0:
                packets = self.port.get_many(chance.randrange(1, 20), LONG)
            elif kind == 1:
                packets = [self.port.get(chance.choice((0, 0.0005, 0.005)))]
            else:
                packets = [self.port.get(LONG)]
            for done in packets:
                if done is None:
                    continue
                if done.transferred is STOP:
                    # A packet for another taker may have come along in the same list.
                    for other in packets[packets.index(done) + 1 :]:
                        self.record(other)
                    return
                self.record(done)

    def record(self, done):
        if done.transferred is STOP:
            self.port.post(STOP)
        elif isinstance(done.overlapped, Recorded):
            operation = done.overlapped
            operation.packets.put((done.transferred, done.key, done.error))
            end = done.key
            with end.lock:
                end.under_way -= 1
        elif done.key == "posted":
            self.taken_posts.put(done.transferred)
        else:
            self.strangers.put(done)

    def start(self, number):
        chance = random.Random(f"{self.seed} start {number}")
        while not self.stop.is_set():
            end = chance.choice(chance.choice(self.connections).ends)
            kind = chance.randrange(10)
            if kind == 0:
                self.post()
            elif end.under_way > MOST_UNDER_WAY:
                time.sleep(0)  # let the takers catch up
            elif kind < 5:
                self.send(end, chance)
            else:
                self.receive(end, chance)

    def post(self):
        number = next(self.numbers)
        with self.lock:
            self.posted.append(number)
        self.port.post(number, "posted", None)

    def send(self, end, chance):
        if chance.randrange(6) == 0:
            self.send_file(end, chance)
            return
        size = chance.choice((1, 10, 1000, 200_000))
        operation = Recorded(pattern(chance.randrange(1, size + 1), chance.randrange(256)))
        data = operation.data
        call = end.handle.send
        if size == 1000:
            middle = len(data) // 2
            data = [data[:middle], data[middle:]]
            call = chance.choice((end.handle.send, end.handle.sendmsg))
        self.launch(end, end.sends, operation, lambda: call(data, overlapped=operation))

    def send_file(self, end, chance):
        offset = chance.randrange(len(CONTENT))
        count = chance.choice((0, 1, 5000, len(CONTENT)))
        head, tail = (chance.choice((b"", b"<" * 10, b">" * 5000)) for _ in range(2))
        operation = Recorded(head + CONTENT[offset : offset + count] + tail)
        self.launch(
            end,
            end.sends,
            operation,
            lambda: end.handle.sendfile(
                self.file, offset, count, head=head, tail=tail, overlapped=operation
            ),
        )

    def receive(self, end, chance):
        size = chance.choice((1, 100, 10_000, 100_000))
        flags = 0
        if chance.randrange(2):
            operation, target = Recorded(None), size
        else:
            operation = Recorded([bytearray(size // 2), bytearray(size - size // 2)])
            target = operation.data
            if size <= 100 and chance.randrange(2):
                flags = socket.MSG_WAITALL
        call = end.handle.recv
        if not flags:
            call = chance.choice((end.handle.recv, end.handle.recv, end.handle.recvfrom))
        self.launch(
            end,
            end.receives,
            operation,
            lambda: call(target, flags=flags, overlapped=operation),
        )

    @staticmethod
    def launch(end, ledger, operation, start):
        with end.lock:
            try:
                assert start() is operation
            except (HandleClosed, OSError):
                assert not end.whole
                assert not operation.pending
                return
            ledger.append(operation)
            end.under_way += 1

    def disturb(self, number):
        chance = random.Random(f"{self.seed} disturb {number}")
        while not self.stop.wait(chance.random() * 0.003):
            index = chance.randrange(len(self.connections))
            connection = self.connections[index]
            end = chance.choice(connection.ends)
            kind = chance.randrange(12)
            with contextlib.suppress(HandleClosed):
                if kind < 4 and end.receives:
                    end.handle.cancel(chance.choice(end.receives[-5:]))
                elif kind < 6 and end.sends:
                    end.sends[-1].cancel()
                elif kind == 6:
                    end.handle.cancel()
                elif kind == 7 and end.receives:
                    busy = chance.choice(end.receives[-5:])
                    with contextlib.suppress(OperationPending, OSError):
                        busy.result()
                elif kind > 9 and not connection.whole:
                    end.handle.close()
                    replacement = self.connect(index, whole=False)
                    with self.lock:
                        self.finished.append(connection)
                        self.connections[index] = replacement

    # The run and what must hold afterwards.

    def run(self):
        with self.port, tempfile.TemporaryFile() as self.file:
            self.file.write(CONTENT)
            self.file.flush()
            try:
                self.go()
            finally:
                self.stop.set()
                for connection in self.connections + self.finished:
                    for end in connection.ends:
                        end.handle.close()

    def go(self):
        takers = [Background(self.take, number) for number in range(4)]
        workers = [Background(self.start, number) for number in range(3)]
        workers += [Background(self.disturb, 0)]
        time.sleep(SECONDS)  # how long the storm lasts
        wait_until(lambda: self.begun() > 100)
        self.stop.set()
        for worker in workers:
            worker.outcome()
        everything = self.connections + self.finished
        for connection in everything:
            for end in connection.ends:
                if connection.whole:
                    self.settle(end)
        for connection in everything:
            for end in connection.ends:
                end.handle.close()
        wait_until(
            lambda: all(end.under_way == 0 for item in everything for end in item.ends),
            "every operation gave a packet",
        )
        wait_until(lambda: self.taken_posts.qsize() == len(self.posted), "every post was taken")
        for _ in takers:
            self.port.post(STOP)
        for taker in takers:
            taker.outcome()
        assert_quiet(self.port)
        assert self.strangers.qsize() == 0
        taken = [self.taken_posts.get() for _ in range(self.taken_posts.qsize())]
        assert sorted(taken) == sorted(self.posted)
        operations = 0
        for connection in everything:
            operations += self.check(connection)
        print(f"{operations} operations, {len(everything)} connections, {len(taken)} posts")
        assert operations > 50

    def begun(self):
        """How many operations were begun so far."""
        return sum(
            len(end.sends) + len(end.receives)
            for connection in self.connections + self.finished
            for end in connection.ends
        )

    def settle(self, end):
        """Receive until everything that is under way was sent."""
        for operation in end.receives:
            operation.cancel()  # one with MSG_WAITALL may wait for more than will ever come
        sends_of_the_other = self.other(end).sends
        expected = 0
        deadline = time.monotonic() + LONG
        while any(operation.pending for operation in sends_of_the_other) or (
            self.received(end) < (expected := self.sent(self.other(end)))
        ):
            assert time.monotonic() < deadline, (
                f"{self.received(end)} of {expected} bytes; {self.port.stats()}; "
                f"{[item for item in sends_of_the_other + end.receives if item.pending]}"
            )
            if not any(operation.pending for operation in end.receives[-3:]):
                operation = Recorded(None)
                self.launch(
                    end,
                    end.receives,
                    operation,
                    lambda operation=operation: end.handle.recv(500_000, overlapped=operation),
                )
            time.sleep(0.0005)

    def other(self, end):
        for connection in self.connections + self.finished:
            if end in connection.ends:
                return connection.ends[1 - connection.ends.index(end)]
        raise AssertionError("no such end")

    @staticmethod
    def sent(end):
        return sum(operation.transferred for operation in end.sends if not operation.pending)

    @staticmethod
    def received(end):
        return sum(operation.transferred for operation in end.receives if not operation.pending)

    def check(self, connection):
        operations = 0
        for end, other in (connection.ends, connection.ends[::-1]):
            for operation in end.sends + other.receives:
                operations += 1
                assert operation.packets.qsize() == 1, (operation, operation.packets.qsize())
                transferred, key, error = operation.packets.get()
                assert key in (end, other)
                assert operation.error is error
                assert operation.transferred == transferred
                assert error is None or isinstance(error, OSError)
                if connection.whole:
                    assert error is None or isinstance(error, OperationAborted), error
            sent = b"".join(operation.data[: operation.transferred] for operation in end.sends)
            received = b"".join(self.bytes_of(operation) for operation in other.receives)
            for operation in end.sends:
                if operation.error is None:
                    assert operation.transferred == len(operation.data)
            if connection.whole:
                assert len(received) == len(sent)
            assert sent.startswith(received), f"the bytes differ, seed {self.seed}"
        return operations

    @staticmethod
    def bytes_of(operation):
        if operation.data is not None:
            return b"".join(operation.data)[: operation.transferred]
        if operation.error is None:
            value = operation.result()
            if operation.operation is Operation.RECVFROM:
                value, _ = value
            assert len(value) == operation.transferred
            return value
        assert operation.transferred == 0
        return b""


def test_nothing_is_lost_doubled_or_mixed(engine):
    Storm(engine, new_seed(), closes=False).run()


def test_nothing_is_lost_doubled_or_mixed_while_handles_close(engine):
    Storm(engine, new_seed(), closes=True).run()


def test_a_port_that_closes_in_the_middle_takes_everybody_along(engine):
    """What was under way ends: no thread hangs, no buffer stays locked, no packet comes twice."""
    seed = new_seed()
    rounds = max(5, int(SECONDS * 5))
    for number in range(rounds):
        chance = random.Random(f"{seed} {number}")
        port = CompletionPort(4, engine=engine)
        pairs = [(tcp_pair, local_pair)[index % 2]() for index in range(4)]
        handles = [port.associate(near, index) for index, (near, _) in enumerate(pairs)]
        seen = queue.SimpleQueue()
        started = queue.SimpleQueue()

        def work(chance_of_thread, last, port=port, handles=handles, seen=seen, started=started):
            chance = random.Random(chance_of_thread)
            with contextlib.suppress(PortClosed, HandleClosed):
                # One of them closes the port: under the GIL a thread that only waits to do so may
                # not come to it for long, while these begin millions.
                for step in itertools.count():
                    if step == last:
                        port.close()
                    handle = chance.choice(handles)
                    kind = chance.randrange(4)
                    if kind == 0:
                        operation = Recorded(bytearray(1000))
                        handle.recv(operation.data, overlapped=operation)
                        started.put(operation)
                    elif kind == 1:
                        handle.send(b"x" * chance.randrange(1, 1000))
                    elif kind == 2:
                        handle.cancel()
                    else:
                        done = port.get(0.001)
                        if done is not None and done.overlapped.operation is Operation.RECV:
                            seen.put(done.overlapped)

        def feed(pairs=pairs):
            for _, far in pairs:
                with contextlib.suppress(OSError):
                    far.sendall(b"y" * 500)

        lasts = [chance.randrange(10, 1000), None, None, None]
        threads = [
            Background(work, f"{seed} {number} {index}", last) for index, last in enumerate(lasts)
        ]
        feeder = Background(feed)
        for thread in threads:
            thread.outcome()
        feeder.outcome()
        for near, far in pairs:
            near.close()
            far.close()
        taken = [seen.get() for _ in range(seen.qsize())]
        assert len(taken) == len(set(taken))
        while started.qsize():
            operation = started.get()
            assert not operation.pending
            operation.data.extend(b"may be resized")


@needs_unix_sockets
def test_no_datagram_is_lost_doubled_or_mixed(engine):
    """Sends and receives of every kind, cancelled at will, on a pair of Unix datagram sockets."""
    seed = new_seed()
    stop = threading.Event()
    sends, receives = [], []
    send_lock, receive_lock = threading.Lock(), threading.Lock()  # make the orders known
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    with CompletionPort(4, engine=engine) as port, near, far:
        sender, receiver = port.associate(near, "near"), port.associate(far, "far")

        def take():
            while (done := port.get(LONG)).transferred is not STOP:
                done.overlapped.packets.put(done)

        def send(number):
            chance = random.Random(f"{seed} send {number}")
            while not stop.is_set():
                operation = Recorded(
                    b"%d %d " % (number, len(sends)) + pattern(chance.randrange(500))
                )
                with send_lock:
                    if chance.randrange(2):
                        sender.send(operation.data, overlapped=operation)
                    else:
                        middle = chance.randrange(len(operation.data))
                        parts = [operation.data[:middle], operation.data[middle:]]
                        sender.sendmsg(parts, overlapped=operation)
                    sends.append(operation)
                if chance.randrange(10) == 0:
                    chance.choice(sends[-5:]).cancel()
                wait_until(lambda: stop.is_set() or sum(one.pending for one in sends[-50:]) < 30)

        def receive(number):
            chance = random.Random(f"{seed} receive {number}")
            while not stop.is_set():
                operation = Recorded(None)
                call = chance.choice((receiver.recv, receiver.recvfrom, receiver.recvmsg))
                with receive_lock:
                    call(1000, overlapped=operation)
                    receives.append(operation)
                if chance.randrange(10) == 0:
                    chance.choice(receives[-5:]).cancel()
                wait_until(lambda: stop.is_set() or sum(one.pending for one in receives[-50:]) < 30)

        takers = [Background(take) for _ in range(3)]
        workers = [Background(send, number) for number in range(2)]
        workers += [Background(receive, number) for number in range(2)]
        time.sleep(SECONDS)  # how long the storm lasts
        stop.set()
        for worker in workers:
            worker.outcome()

        def arrived():
            # Each of these has its datagram by now, or waits for one that may not come.
            if any(one.pending for one in sends) and not any(one.pending for one in receives[-3:]):
                operation = Recorded(None)
                receiver.recv(1000, overlapped=operation)
                receives.append(operation)
            return not any(one.pending for one in sends)

        wait_until(arrived, "all sends are over")
        while outcome_of_a_late_receive(receiver, receives):
            pass
        receiver.close()
        sender.close()
        wait_until(lambda: not any(one.pending for one in sends + receives))
        for _ in takers:
            port.post(STOP)
        for taker in takers:
            taker.outcome()
        assert_quiet(port)
    sent = [one.data for one in sends if one.error is None]
    received = []
    for operation in sends + receives:
        assert operation.packets.qsize() == 1
        done = operation.packets.get()
        assert (done.error, done.transferred) == (operation.error, operation.transferred)
        assert done.error is None or isinstance(done.error, OperationAborted)
    for operation in receives:
        if operation.error is None:
            value = operation.result()
            received.append(value[0] if isinstance(value, tuple) else value)
    print(f"{len(sends)} sends, {len(receives)} receives, {len(sent)} datagrams")
    assert received == sent, f"seed {seed}"


def outcome_of_a_late_receive(receiver, receives):
    """Whether one more datagram was there; those that still wait are in front of it."""
    receiver.cancel()
    wait_until(lambda: not any(one.pending for one in receives))
    operation = Recorded(None)
    receives.append(receiver.recv(1000, overlapped=operation))
    operation.cancel()
    wait_until(lambda: not operation.pending)
    return operation.error is None


SLOT, SLOTS = 512, 40
"""Of the file that the next test writes to: each thread has as many slots of its own."""


class Writer:
    """A thread that asks things of one file, and cancels some of them."""

    def __init__(self, port, path, handles, number, seed):
        self.port = port
        self.path = path
        self.handles = handles
        self.number = number
        self.chance = random.Random(f"{seed} file {number}")
        self.everything = []
        self.writes = [[] for _ in range(SLOTS)]  # of each slot, in the order of the calls
        self.ends = []  # of what was set aside: the allocation, and where it ends

    def place(self, slot):
        return (self.number * SLOTS + slot) * SLOT

    def run(self, stop):
        while not stop.is_set():
            self.start_one()
            if self.chance.randrange(4) == 0:
                self.chance.choice(self.everything[-20:]).cancel()
            wait_until(
                lambda: stop.is_set() or sum(one.pending for one in self.everything[-100:]) < 40
            )

    def start_one(self):
        kind = self.chance.randrange(13)
        slot = self.chance.randrange(SLOTS)
        handle = self.handles[self.number]
        operation = Recorded(None)
        if kind < 5:
            operation.data = pattern(SLOT, self.chance.randrange(256))
            middle = self.chance.randrange(SLOT)
            parts = [operation.data[:middle], operation.data[middle:]]
            data = operation.data if kind else parts
            self.writes[slot].append(operation)
            handle.write(data, self.place(slot), operation)
        elif kind < 8:
            handle.read(SLOT, self.place(slot), operation)
        elif kind == 8:
            handle.fsync(overlapped=operation)
        elif kind == 9:
            handle.stat(operation)
        elif kind == 10:
            self.port.open(self.path, os.O_RDONLY, overlapped=operation)
        elif kind == 11:
            # Over what this thread writes, what others write, and the end of the file.
            length = self.chance.randrange(1, 4 * SLOTS * SLOT)
            handle.allocate(self.place(slot), length, operation)
            self.ends.append((operation, self.place(slot) + length))
        else:
            self.port.stat(self.path, overlapped=operation)
        self.everything.append(operation)

    def check(self, content):
        for slot, writes in enumerate(self.writes):
            made = [one.data for one in writes if one.error is None]
            found = content[self.place(slot) : self.place(slot) + SLOT]
            assert found == (made[-1] if made else bytes(SLOT)), slot
        for operation in self.everything:
            assert operation.packets.qsize() == 1, operation
            done = operation.packets.get()
            assert done.error is operation.error
            assert done.error is None or isinstance(done.error, OperationAborted), done


def check_length(content, ends):
    """The file is as long as the allocations made it, and has nothing there."""
    written = 3 * SLOTS * SLOT
    made = [end for operation, end in ends if operation.error is None]
    assert len(content) >= max([written, *made])
    # One that was cancelled as the kernel was at it may have been carried out.
    assert len(content) in {written, *(end for _, end in ends)}
    assert not any(content[written:])


def test_a_file_has_what_was_written_last_whatever_is_cancelled(engine, tmp_path):
    """Reads, writes, allocations, syncs and names from several threads.

    Opened files are closed by the port.
    """
    seed = new_seed()
    stop = threading.Event()
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * SLOTS * SLOT))
    closes = itertools.count()

    def take(port):
        while (done := port.get(LONG)).transferred is not STOP:
            if done.key == "close":
                assert done.error is None
                next(closes)
                continue
            if done.overlapped.operation is Operation.OPEN and done.error is None:
                # Before anybody hears that all packets are there: then nothing is pending but this.
                port.close_descriptor(done.overlapped.result(), key="close")
            done.overlapped.packets.put(done)

    with CompletionPort(4, engine=engine) as port, contextlib.ExitStack() as files:
        # Of one file, each thread's handle its own.
        handles = [
            files.enter_context(port.associate(os.open(path, os.O_RDWR), index))
            for index in range(3)
        ]
        writers = [Writer(port, path, handles, number, seed) for number in range(3)]
        takers = [Background(take, port) for _ in range(3)]
        threads = [Background(writer.run, stop) for writer in writers]
        time.sleep(SECONDS)  # how long the storm lasts
        stop.set()
        for thread in threads:
            thread.outcome()
        everything = [operation for writer in writers for operation in writer.everything]
        wait_until(lambda: all(one.packets.qsize() for one in everything), "each has its packet")
        wait_until(lambda: port.stats()["pending"] == 0, "all descriptors are closed")
        for _ in takers:
            port.post(STOP)
        for taker in takers:
            taker.outcome()
        assert_quiet(port)
    content = path.read_bytes()
    for writer in writers:
        writer.check(content)
    check_length(content, [end for writer in writers for end in writer.ends])
    print(f"{len(everything)} operations, {next(closes)} files opened and closed")


def close_opened(done):
    """What a packet has brought is the program's."""
    if done is not None and done.overlapped.operation is Operation.OPEN and done.error is None:
        os.close(done.overlapped.result())


def test_a_port_that_closes_with_files_at_work(engine, tmp_path):
    """Handles and the port are closed while threads start what they can: nobody hangs."""
    seed = new_seed()
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * SLOTS * SLOT))
    for number in range(max(5, int(SECONDS * 5))):
        port = CompletionPort(4, engine=engine)
        handles = [port.associate(os.open(path, os.O_RDWR), index) for index in range(3)]
        writers = [Writer(port, path, handles, index, f"{seed} {number}") for index in range(3)]

        def work(writer):
            with contextlib.suppress(PortClosed, HandleClosed):
                while True:
                    writer.start_one()
                    if writer.chance.randrange(4) == 0:
                        writer.chance.choice(writer.everything[-20:]).cancel()
                    close_opened(writer.port.get(0))

        threads = [Background(work, writer) for writer in writers]
        wait_until(lambda writers=writers: all(len(one.everything) > 20 for one in writers))
        handles[number % 3].close()
        port.close()
        for thread in threads:
            thread.outcome()
        for handle in handles:
            handle.close()
        assert not any(one.pending for writer in writers for one in writer.everything)
