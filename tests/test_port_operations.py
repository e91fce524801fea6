"""What the operations of a port that belong to no handle have in common."""

from __future__ import annotations

import inspect
import os

import pytest

from completionport import CompletionPort, OperationAborted, Strand
from support import LONG, Background, assert_quiet, take_one, wait_until

KEY = "the operation's key"


class Starts:
    """One of each operation, begun with what is given; and how its packet is let go."""

    def __init__(self, tmp_path):
        self.path = tmp_path / "file"
        self.path.write_bytes(b"some bytes")
        self.copies = 0

    def submit(self, port, **options):
        return port.submit(abs, -1, **options)

    def getaddrinfo(self, port, **options):
        return port.getaddrinfo("127.0.0.1", 80, **options)

    def open(self, port, **options):
        return port.open(self.path, **options)

    def stat(self, port, **options):
        return port.stat(self.path, **options)

    def copy_file(self, port, **options):
        self.copies += 1
        return port.copy_file(self.path, f"{self.path}-{self.copies}", **options)

    def close_descriptor(self, port, **options):
        self.descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return port.close_descriptor(self.descriptor, **options)
        except BaseException:
            os.close(self.descriptor)
            raise

    def let_go(self, name, done):
        if name == "open" and done.error is None:
            os.close(done.overlapped.result())
        elif name == "close_descriptor" and done.error is not None:
            os.close(self.descriptor)


OPERATIONS = sorted(name for name in vars(Starts) if name[0] != "_" and name != "let_go")


def packets_have_a_key(method):
    return "key" in inspect.signature(method).parameters


WITH_A_KEY = sorted(
    name
    for name, method in vars(CompletionPort).items()
    if callable(method) and not name.startswith("_") and packets_have_a_key(method)
)


def test_each_operation_that_returns_an_overlapped_is_tried_here():
    returned = {
        name
        for name, method in vars(CompletionPort).items()
        if inspect.isfunction(method)
        and inspect.signature(method).return_annotation == "Overlapped"
    }
    assert returned == set(OPERATIONS)


@pytest.mark.parametrize("name", WITH_A_KEY)
def test_what_has_a_key_can_have_a_strand(make_port, name):
    """In the description of all engines and in what this one has."""
    for method in (getattr(CompletionPort, name), getattr(make_port(1), name)):
        strand = inspect.signature(method).parameters["strand"]
        assert strand.kind is inspect.Parameter.KEYWORD_ONLY
        assert strand.default is None


@pytest.mark.parametrize("name", OPERATIONS)
class TestStrands:
    def test_its_packet_stays_back_while_a_thread_is_at_work_on_the_strand(
        self, make_port, tmp_path, name
    ):
        port = make_port(4)
        strand = Strand(port)
        starts = Starts(tmp_path)
        port.post("first", strand=strand)
        assert take_one(port).transferred == "first"
        operations = [getattr(starts, name)(port, key=KEY, strand=strand) for _ in range(3)]

        def stay_back():
            # Another thread looks: on Windows a completion is known when a thread takes it.
            assert Background(port.get, 0).outcome() is None
            return strand.queued == len(operations)

        wait_until(stay_back)
        seen = []
        for left in (2, 1, 0):
            done = take_one(port)
            assert (done.key, done.error) == (KEY, None)
            assert Background(port.get, 0).outcome() is None
            assert strand.queued == left
            seen.append(done.overlapped)
            starts.let_go(name, done)
        assert {id(one) for one in seen} == {id(one) for one in operations}
        assert_quiet(port)

    def test_that_of_an_object_used_again_is_bound_as_the_last_call_says(
        self, make_port, tmp_path, name
    ):
        port = make_port(4)
        strand = Strand(port)
        starts = Starts(tmp_path)
        operation = getattr(starts, name)(port, strand=strand)
        starts.let_go(name, take_one(port))
        port.post("held", strand=strand)
        assert take_one(port).transferred == "held"
        assert getattr(starts, name)(port, overlapped=operation) is operation
        done = Background(port.get, LONG).outcome()
        assert done.overlapped is operation
        starts.let_go(name, done)
        assert_quiet(port)

    def test_that_of_a_cancelled_one_is_bound_too(self, make_port, tmp_path, name):
        port = make_port(4)
        strand = Strand(port)
        starts = Starts(tmp_path)
        port.post("held", strand=strand)
        assert take_one(port).transferred == "held"
        operation = getattr(starts, name)(port, strand=strand)
        operation.cancel()

        def stays_back():
            assert Background(port.get, 0).outcome() is None
            return strand.queued == 1

        wait_until(stays_back)
        done = take_one(port)
        assert done.overlapped is operation
        assert done.error is None or isinstance(done.error, OperationAborted)
        starts.let_go(name, done)
        assert_quiet(port)

    def test_wrong_ones_are_refused(self, make_port, tmp_path, name):
        port, other = make_port(1), make_port(1)
        start = getattr(Starts(tmp_path), name)
        with pytest.raises(TypeError, match="Strand or None, not str"):
            start(port, strand="a name")
        with pytest.raises(ValueError, match="another port"):
            start(port, strand=Strand(other))
        assert_quiet(port)
