"""Wrong arguments raise at the call and say what was expected (rule 16)."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

import pytest

from completionport import (
    AlreadyAssociated,
    CompletionPort,
    Overlapped,
)
from support import LONG, assert_quiet, has_ipv6, shown, take_one, under_number

TOO_BIG = (ValueError, OverflowError)


class TestPort:
    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            (-1, ValueError, "concurrency"),
            (-(2**70), TOO_BIG, "concurrency"),
            (2**70, TOO_BIG, "concurrency"),
            ("4", TypeError, r"concurrency|int"),
            (1.5, TypeError, r"concurrency|int"),
            (None, TypeError, r"concurrency|int"),
        ],
    )
    def test_concurrency(self, engine, value, error, message):
        with pytest.raises(error, match=message):
            CompletionPort(value, engine=engine)

    def test_the_engine_is_given_by_name(self, engine):
        with pytest.raises(TypeError):
            CompletionPort(0, engine)
        with pytest.raises(TypeError):
            CompletionPort(engine=engine, workers=3)

    @pytest.mark.parametrize("name", ["kqueue", "EPOLL", " epoll"])
    def test_an_unknown_engine(self, name):
        with pytest.raises(ValueError, match=f"{name}.*io_uring, epoll, selectors"):
            CompletionPort(engine=name)

    @pytest.mark.parametrize("call", ["get", "get_many"])
    @pytest.mark.parametrize(
        ("timeout", "error"),
        [
            (-1, ValueError),
            (-0.001, ValueError),
            (float("nan"), ValueError),
            ("1", TypeError),
            ([], TypeError),
        ],
    )
    def test_timeout(self, port, call, timeout, error):
        port.post("stays there")
        with pytest.raises(error, match=r"timeout|number|real|float|NaN"):
            port.get(timeout) if call == "get" else port.get_many(1, timeout)
        assert take_one(port).transferred == "stays there"

    @pytest.mark.parametrize(
        ("count", "error"),
        [(0, ValueError), (-1, ValueError), ("1", TypeError), (1.5, TypeError), (None, TypeError)],
    )
    def test_max_count(self, port, count, error):
        port.post("stays there")
        with pytest.raises(error, match=r"max_count|int"):
            port.get_many(count)
        assert take_one(port).transferred == "stays there"

    @pytest.mark.parametrize("count", [2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**70])
    def test_max_count_is_only_a_maximum(self, port, count):
        port.post(1)
        assert [done.transferred for done in port.get_many(count, LONG)] == [1]
        assert port.get_many(count, 0) == []

    def test_post_takes_three_values_at_most(self, port):
        with pytest.raises(TypeError):
            port.post(1, 2, 3, 4)
        with pytest.raises(TypeError):
            port.post(bytes=1)
        assert_quiet(port)

    def test_get_without_max_count(self, port):
        with pytest.raises(TypeError):
            port.get_many()


class TestAssociate:
    @pytest.mark.parametrize("thing", [object(), "text", None, 1.5, b"bytes", []], ids=shown)
    def test_an_object_with_no_descriptor(self, port, thing):
        with pytest.raises(TypeError, match=r"fileno|descriptor"):
            port.associate(thing, "key")
        assert port.stats()["handles"] == 0

    def test_a_key_is_needed(self, port, tcp):
        near, _ = tcp
        with pytest.raises(TypeError, match="argument"):
            port.associate(near)
        with pytest.raises(TypeError):
            port.associate()

    def test_a_closed_socket(self, port):
        sock = socket.socket()
        sock.close()
        with pytest.raises(ValueError, match=r"closed|descriptor"):
            port.associate(sock, "key")

    def test_a_closed_file(self, port, tmp_path):
        file = (tmp_path / "file").open("w")
        file.close()
        with pytest.raises(ValueError, match="closed"):
            port.associate(file, "key")

    @pytest.mark.parametrize("number", [-1, -100])
    def test_a_negative_number(self, port, number):
        with pytest.raises(ValueError, match=r"descriptor|closed|negative"):
            port.associate(number, "key")

    def test_a_number_that_is_not_open(self, port):
        number = os.open(os.devnull, os.O_RDONLY)
        os.close(number)
        with pytest.raises(ValueError, match=r"descriptor|closed|open"):
            port.associate(number, "key")
        assert port.stats()["handles"] == 0

    def test_a_number_that_is_too_big(self, port):
        with pytest.raises(TOO_BIG):
            port.associate(2**40, "key")

    @pytest.mark.parametrize("answer", ["5", None, 5.0], ids=shown)
    def test_a_fileno_that_gives_no_number(self, port, answer):
        class Odd:
            def fileno(self):
                return answer

        with pytest.raises(TypeError, match=r"fileno|descriptor|int"):
            port.associate(Odd(), "key")

    def test_a_fileno_that_raises(self, port):
        class Broken:
            def fileno(self):
                raise RuntimeError("as expected")

        with pytest.raises(RuntimeError, match="as expected"):
            port.associate(Broken(), "key")

    def test_a_socket_that_was_associated_before(self, make_port, tcp):
        near, far = tcp
        port, other = make_port(), make_port()
        with port.associate(near, "key") as handle:
            for where in (port, other):
                with pytest.raises(AlreadyAssociated, match="already"):
                    where.associate(near, "another key")
            assert issubclass(AlreadyAssociated, ValueError)
            handle.recv(10)
            far.sendall(b"unharmed")
            assert take_one(port).key == "key"

    def test_a_socket_that_was_associated_before_by_its_number(self, port, tcp):
        near, _ = tcp
        with port.associate(near, "key"), pytest.raises(AlreadyAssociated):
            port.associate(near.fileno(), "another key")

    def test_the_next_socket_with_the_same_number_is_another_one(self, port, make_pair):
        near, _ = make_pair()
        number = near.fileno()
        port.associate(near, "key").close()
        again, _far = make_pair()
        port.associate(under_number(again, number), "key").close()


@pytest.fixture
def handle(port, tcp):
    near, _ = tcp
    with port.associate(near, "key") as handle:
        yield handle
        assert_quiet(port)


NOT_A_SIZE_OR_BUFFER = [
    (-1, ValueError, r"size|negative|bytes"),
    (-(2**70), TOO_BIG, None),
    (2**31, ValueError, r"size|bytes"),
    (2**70, TOO_BIG, None),
    (1.5, TypeError, r"buffer|int"),
    (None, TypeError, r"buffer|int"),
    ("text", TypeError, r"buffer|bytes"),
    (object(), TypeError, r"buffer|int"),
    ({}, TypeError, r"buffer|int"),
    (b"read-only", TypeError, r"writable|read-only"),
    (memoryview(b"read-only"), TypeError, r"writable|read-only"),
    ([b"read-only"], TypeError, r"writable|read-only"),
    ([], ValueError, r"buffer|empty"),
    ([bytearray(1), 5], TypeError, r"buffer|bytes"),
    ([bytearray(1), None], TypeError, r"buffer|bytes"),
    (["text"], TypeError, r"buffer|bytes"),
    (memoryview(bytearray(10))[::2], (TypeError, ValueError, BufferError), "contiguous"),
]

NOT_DATA = [
    (5, TypeError, r"buffer|bytes"),
    (None, TypeError, r"buffer|bytes"),
    ("text", TypeError, r"buffer|bytes"),
    (object(), TypeError, r"buffer|bytes"),
    ([], ValueError, r"buffer|empty"),
    ([b"one", "two"], TypeError, r"buffer|bytes"),
    ([b"one", 2], TypeError, r"buffer|bytes"),
    ({b"one": 1}, TypeError, r"buffer|bytes"),
    (memoryview(bytes(10))[::2], (TypeError, ValueError, BufferError), "contiguous"),
]


@pytest.mark.parametrize("call", ["recv", "read"])
@pytest.mark.parametrize(
    ("value", "error", "message"), NOT_A_SIZE_OR_BUFFER, ids=lambda value: shown(value)[:30]
)
def test_sizes_and_buffers_to_fill(handle, call, value, error, message):
    with pytest.raises(error, match=message):
        getattr(handle, call)(value)


@pytest.mark.parametrize("call", ["send", "write"])
@pytest.mark.parametrize(
    ("value", "error", "message"), NOT_DATA, ids=lambda value: shown(value)[:30]
)
def test_data_to_send(handle, call, value, error, message):
    with pytest.raises(error, match=message):
        getattr(handle, call)(value)


def test_buffers_are_let_go_when_a_later_one_is_wrong(handle):
    buffer = bytearray(10)
    with pytest.raises(TypeError):
        handle.recv([buffer, "text"])
    with pytest.raises(TypeError):
        handle.send([buffer, "text"])
    with pytest.raises(TypeError):
        handle.recv(buffer, "flags")
    with pytest.raises(TypeError):
        handle.recv(buffer, overlapped=object())
    buffer.extend(b"may be resized")


@pytest.mark.parametrize("call", ["recv", "send"])
@pytest.mark.parametrize(
    ("flags", "error"),
    [("x", TypeError), (1.5, TypeError), (None, TypeError), (2**70, TOO_BIG), (2**40, TOO_BIG)],
)
def test_flags(handle, call, flags, error):
    with pytest.raises(error, match=r"flags|int|large"):
        getattr(handle, call)(bytearray(1), flags)


@pytest.mark.parametrize("call", ["read", "write"])
@pytest.mark.parametrize(
    ("offset", "error"),
    [
        (-1, ValueError),
        (2**63, TOO_BIG),
        (2**70, TOO_BIG),
        ("0", TypeError),
        (0.0, TypeError),
    ],
)
def test_offset(handle, call, offset, error):
    with pytest.raises(error, match=r"offset|int|large"):
        getattr(handle, call)(bytearray(1), offset)


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (None, TypeError),
        ("127.0.0.1", TypeError),
        (("127.0.0.1",), TypeError),
        (("127.0.0.1", "port"), TypeError),
        (("127.0.0.1", 70000), TOO_BIG),
        (("127.0.0.1", -1), TOO_BIG),
        ((5, 5), TypeError),
        (["127.0.0.1", 80], TypeError),
    ],
    ids=shown,
)
def test_addresses(port, address, error):
    with socket.socket() as sock, port.associate(sock, "key") as handle:
        with pytest.raises(error):
            handle.connect(address)
        assert_quiet(port)


@pytest.mark.parametrize("number", [-1, 65536, 2**40])
@pytest.mark.parametrize("call", ["connect", "sendto"])
def test_a_port_number_that_is_none_leaves_handle_and_overlapped_usable(port, call, number):
    kind = socket.SOCK_STREAM if call == "connect" else socket.SOCK_DGRAM
    overlapped = Overlapped()
    with (
        socket.socket(type=kind) as sock,
        socket.socket(type=kind) as other,
        port.associate(sock, "key") as handle,
    ):
        other.bind(("127.0.0.1", 0))
        if call == "connect":
            other.listen()
        data = [] if call == "connect" else [b"x"]
        with pytest.raises(OverflowError, match=f"from 0 to 65535, not {number}"):
            getattr(handle, call)(*data, ("127.0.0.1", number), overlapped=overlapped)
        assert_quiet(port)
        getattr(handle, call)(*data, other.getsockname(), overlapped=overlapped)
        assert take_one(port).error is None


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(
    ("address", "error"),
    [
        (("::1", 80, "flow"), TypeError),
        (("::1", 80, -1), TOO_BIG),
        (("::1", 80, 2**20), TOO_BIG),
        (("::1", 80, 0, None), TypeError),
        (("::1", 80, 0, -1), TOO_BIG),
        (("::1", 80, 0, 2**32), TOO_BIG),
        (("::1", 80, 0, 0, 0), TypeError),
    ],
    ids=shown,
)
def test_addresses_of_ipv6(port, address, error):
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock,
        port.associate(sock, "key") as handle,
    ):
        with pytest.raises(error, match=r"address"):
            handle.sendto(b"x", address)
        assert_quiet(port)


def test_a_host_that_is_not_known(port):
    with socket.socket() as sock, port.associate(sock, "key") as handle:
        with pytest.raises(socket.gaierror):
            handle.connect(("name.invalid", 80))
        assert_quiet(port)


@pytest.mark.parametrize(
    "start",
    [
        lambda handle, value: handle.accept(overlapped=value),
        lambda handle, value: handle.connect(("127.0.0.1", 1), overlapped=value),
        lambda handle, value: handle.recv(1, overlapped=value),
        lambda handle, value: handle.send(b"x", overlapped=value),
        lambda handle, value: handle.read(1, overlapped=value),
        lambda handle, value: handle.write(b"x", overlapped=value),
        lambda handle, value: handle.disconnect(overlapped=value),
    ],
    ids=["accept", "connect", "recv", "send", "read", "write", "disconnect"],
)
def test_overlapped(handle, start):
    for value in (object(), 5, "text", Overlapped):
        with pytest.raises(TypeError, match="Overlapped"):
            start(handle, value)


@pytest.mark.parametrize(
    "start",
    [
        lambda handle: handle.recv(),
        lambda handle: handle.send(),
        lambda handle: handle.read(),
        lambda handle: handle.write(),
        lambda handle: handle.connect(),
        lambda handle: handle.accept(5),
        lambda handle: handle.recv(1, 0, Overlapped(), 4),
        lambda handle: handle.send(b"x", 0, Overlapped(), 4),
        lambda handle: handle.disconnect(5),
        lambda handle: handle.recv(1, size=5),
    ],
    ids=range(10),
)
def test_missing_and_superfluous_arguments(handle, start):
    with pytest.raises(TypeError):
        start(handle)


@pytest.mark.parametrize("value", [object(), 5, "text"], ids=shown)
def test_cancel(handle, value):
    with pytest.raises(TypeError, match="Overlapped"):
        handle.cancel(value)


def test_any_sequence_of_buffers_will_do(handle, port):
    class Buffers(Sequence):
        def __init__(self, *buffers):
            self.buffers = buffers

        def __len__(self):
            return len(self.buffers)

        def __getitem__(self, index):
            return self.buffers[index]

    handle.send(Buffers(b"one", bytearray(b"two")))
    assert take_one(port).transferred == 6
    handle.recv(Buffers(bytearray(3), bytearray(3)))
    assert handle.cancel() == 1
    take_one(port)


def test_odd_but_right_arguments(handle, port):
    class Index:
        def __index__(self):
            return 3

    operation = handle.recv(Index())
    handle.cancel(operation)
    take_one(port)
    handle.send(array.array("d", [1.0]))
    assert take_one(port).transferred == 8
    handle.recv(2**31 - 1) if os.environ.get("COMPLETIONPORT_HUGE") else handle.recv(True)
    handle.cancel()
    take_one(port)
