"""Named pipes of Windows on a port: both ends, clients that come and go, and what is cancelled."""

from __future__ import annotations

import contextlib
import errno
import gc
import sys
import weakref

import pytest

from completionport import HandleClosed, Operation, OperationAborted, Strand
from support import LONG, Background, assert_quiet, take, take_one, wait_until

if sys.platform != "win32":
    pytest.skip("named pipes of this kind are Windows' own", allow_module_level=True)

import _winapi

from windows_support import NamedPipe


@pytest.fixture
def pipe(nothing_left):
    with contextlib.ExitStack() as stack:
        yield NamedPipe(stack)


@pytest.fixture
def ends(port, pipe):
    """The handles of both ends, a client being there."""
    with (
        port.associate(pipe.server, "server") as server,
        port.associate(pipe.client(), "client") as client,
    ):
        server.accept()
        assert take_one(port).key == "server"
        yield server, client


def test_a_client_that_comes_gives_a_packet(port, pipe):
    handle = port.associate(pipe.server, "server")
    operation = handle.accept()
    assert operation.operation is Operation.ACCEPT
    assert port.get(0) is None
    pipe.client()
    assert tuple(take_one(port)) == (0, "server", operation, None)
    assert operation.result() is pipe.server


def test_a_client_that_is_there_already_gives_a_packet(port, pipe):
    handle = port.associate(pipe.server, "server")
    pipe.client()
    operation = handle.accept()
    assert tuple(take_one(port)) == (0, "server", operation, None)
    assert_quiet(port)


def test_both_ends_read_and_write(port, ends):
    server, client = ends
    for writer, reader in ((server, client), (client, server)):
        for number in range(5):
            reading = reader.read(100)
            assert port.get(0) is None
            writing = writer.write([b"line ", b"%d" % number])
            take(port, 2)
            assert reading.result() == b"line %d" % number
            assert writing.result() == 6
    assert_quiet(port)


def test_reads_that_wait_get_the_data_in_their_order(port, ends):
    server, client = ends
    reads = [server.read(2) for _ in range(10)]
    client.write(bytes(range(20)))
    take(port, 11)
    assert b"".join(operation.result() for operation in reads) == bytes(range(20))


def test_a_read_behind_an_accept_waits_for_it(port, pipe):
    handle = port.associate(pipe.server, "server")
    accepting, reading = handle.accept(), handle.read(100)
    client = pipe.client()
    assert take_one(port).overlapped is accepting
    client.write(b"hello")
    assert take_one(port).overlapped is reading
    assert reading.result() == b"hello"


def test_more_than_the_pipe_holds_is_written(port, ends):
    server, client = ends
    data = bytes(range(256)) * 4096
    writing = server.write(data)
    seen = b""
    while len(seen) < len(data) or writing.pending:
        if len(seen) < len(data):
            reading = client.read(100_000)
        done = take_one(port)
        if done.overlapped is not writing:
            seen += done.overlapped.result()
        elif reading.pending:
            seen += take_one(port).overlapped.result()
    assert seen == data
    assert writing.transferred == len(data)


def test_a_client_that_goes_is_the_end_of_the_stream(port, ends):
    server, client = ends
    reading = server.read(100)
    client.close()
    done = take_one(port)
    assert (done.transferred, done.error, reading.result()) == (0, None, b"")
    server.read(100)
    assert tuple(take_one(port))[:2] == (0, "server")
    with pytest.raises(BrokenPipeError):
        server.write(b"x")


def test_the_server_sends_a_client_away_and_takes_the_next_one(port, pipe, ends):
    server, client = ends
    reading = client.read(100)
    sending_away = server.disconnect()
    packets = {done.overlapped: done for done in take(port, 2)}
    assert packets[sending_away].error is None
    assert isinstance(packets[reading].error, BrokenPipeError)
    client.close()
    for number in range(3):
        accepting = server.accept()
        with contextlib.closing(pipe.client()) as another:
            assert take_one(port).overlapped is accepting
            server.write(b"%d" % number)
            take_one(port)
            assert another.read(10) == b"%d" % number
        server.disconnect()
        take_one(port)
    assert_quiet(port)


def test_disconnect_comes_after_what_was_written_before(port, ends):
    server, client = ends
    reads = [client.read(100_000) for _ in range(20)]
    writes = [server.write(bytes(50_000)) for _ in range(4)]
    server.disconnect()
    keys = [done.overlapped for done in take(port, 25)]
    assert all(operation.transferred == 50_000 for operation in writes)
    assert sum(operation.transferred for operation in reads) == 200_000
    assert len(set(keys)) == 25


def test_a_client_that_came_and_went_is_told_and_the_next_one_is_taken(port, pipe):
    handle = port.associate(pipe.server, "server")
    pipe.client().close()
    with pytest.raises(BrokenPipeError):
        handle.accept()
    handle.disconnect()
    take_one(port)
    handle.accept()
    pipe.client()
    assert take_one(port).error is None


def test_an_accept_that_is_cancelled(port, pipe):
    handle = port.associate(pipe.server, "server")
    operation = handle.accept()
    assert operation.cancel()
    done = take_one(port)
    assert done.overlapped is operation
    assert isinstance(done.error, OperationAborted)
    assert not operation.cancel()
    handle.accept()
    pipe.client()
    assert take_one(port).error is None
    assert_quiet(port)


@pytest.mark.parametrize("closes", ["handle", "port"])
def test_what_is_under_way_when_it_is_closed_is_aborted(make_port, pipe, closes):
    port = make_port()
    handle = port.associate(pipe.server, "server")
    operations = [handle.accept(), handle.read(10)]
    if closes == "port":
        port.close()
    else:
        handle.close()
        packets = take(port, 2)
        assert {done.key for done in packets} == {"server"}
        assert_quiet(port)
        with pytest.raises(HandleClosed):
            handle.accept()
    assert not any(operation.pending for operation in operations)
    assert all(isinstance(operation.error, OperationAborted) for operation in operations)


def test_what_the_program_drops_is_kept_until_the_packet(port, pipe):
    handle = port.associate(pipe.server, "server")
    seen = weakref.ref(handle)
    handle.accept()
    del handle
    gc.collect()
    assert seen() is not None
    pipe.client()
    done = take_one(port)
    assert done.overlapped.handle is seen()
    del done
    gc.collect()
    assert seen() is None


def test_the_thread_that_accepts_may_end(port, pipe):
    handle = port.associate(pipe.server, "server")
    Background(handle.accept).outcome()
    pipe.client()
    assert take_one(port).error is None


def test_the_packets_are_bound_to_the_handles_strand(make_port, pipe):
    port = make_port(4)
    strand = Strand(port)
    with port.associate(pipe.server, "server", strand=strand) as handle:
        handle.accept()
        client = pipe.client()
        take_one(port)
        handle.read(10)
        client.write(b"x")
        waiting = Background(port.get, LONG)
        wait_until(lambda: strand.queued == 1)
        strand.release()
        assert waiting.outcome().overlapped.result() == b"x"


def test_what_only_the_servers_end_can_do(port, pipe, ends):
    _, client = ends
    for call in (client.accept, client.disconnect):
        with pytest.raises(OSError, match="needs a socket") as raised:
            call()
        assert raised.value.errno == errno.ENOTSOCK


def test_a_pipe_that_is_not_overlapped_is_refused_with_what_to_do(port, pipe):
    access = _winapi.GENERIC_READ | _winapi.GENERIC_WRITE
    handle = _winapi.CreateFile(pipe.name, access, 0, 0, _winapi.OPEN_EXISTING, 0, 0)
    end = pipe.keep(handle)
    with pytest.raises(OSError, match="FILE_FLAG_OVERLAPPED"):
        port.associate(end, "client")
