"""Every engine shows the same: names, signatures, what is raised for wrong arguments, sockets.

What there is to be seen stands in docs/reference.md, which is made from the interface.
"""

from __future__ import annotations

import contextlib
import enum
import gc
import inspect
import os
import re
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import completionport
from completionport import (
    Change,
    Completion,
    CompletionPort,
    Connection,
    DatagramHandler,
    DatagramServer,
    Endpoint,
    Handle,
    Handler,
    Overlapped,
    Server,
    Strand,
    WorkerPool,
    open_directory,
)
from server_support import Recorder
from support import (
    LONG,
    USER_SIGNAL,
    WINDOWS,
    assert_quiet,
    descriptors,
    digits_file,
    take_one,
    tcp_pair,
)

REFERENCE = (Path(__file__).parents[1] / "docs/reference.md").read_text(encoding="utf-8")
PUBLIC = {
    name: thing
    for name in completionport.__all__
    if isinstance(thing := getattr(completionport, name), type)
    and not issubclass(thing, (BaseException, enum.Enum, Handler, DatagramHandler))
}
"""The classes whose objects a program is given by an engine."""
OF_TUPLES = {"count", "index"}
"""What tuples have, and the reference leaves to Python's own."""


def documented(name: str) -> dict[str, str]:
    """The members of a class: for a method its arguments, "" for an attribute."""
    found = dict(re.findall(rf"^#+ `{name}\.(\w+)(.*)`$", REFERENCE, re.MULTILINE))
    assert found, name
    return found


class Listening(DatagramHandler):
    """Keeps the endpoint that it is given."""

    def __init__(self) -> None:
        self.endpoints: list[Endpoint[Any]] = []
        self.came = threading.Event()

    def received(self, endpoint: Endpoint[Any], data: bytes, address: Any) -> None:
        self.endpoints.append(endpoint)
        self.came.set()


@contextlib.contextmanager
def serving(engine: str, **options: Any) -> Iterator[tuple[Server, Connection[Any], socket.socket]]:
    handler = Recorder()
    server = Server(handler, engine=engine, workers=1, **options)
    try:
        server.start()
        with socket.create_connection(server.address, LONG) as client:
            yield server, handler.first(), client
    finally:
        server.stop(0)


@contextlib.contextmanager
def receiving(engine: str, **options: Any) -> Iterator[tuple[DatagramServer, Endpoint[Any]]]:
    handler = Listening()
    server = DatagramServer(handler, engine=engine, workers=1, **options)
    try:
        server.start()
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"here", server.address)
            assert handler.came.wait(LONG)
        yield server, handler.endpoints[0]
    finally:
        server.stop(0)


@contextlib.contextmanager
def all_things(engine: str, folder: Path) -> Iterator[list[tuple[str, Any]]]:
    """An object of every public class, as a program is given it; several of some classes."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(CompletionPort(engine=engine))
        near, far = tcp_pair()
        stack.enter_context(far)
        handle = stack.enter_context(port.associate(near, "key"))
        pending = handle.recv(1)
        port.post()
        posted = take_one(port)
        server, connection, _ = stack.enter_context(serving(engine, port=0))
        datagram_server, endpoint = stack.enter_context(receiving(engine, port=0))
        directory = stack.enter_context(port.associate(open_directory(folder), "directory"))
        process = stack.enter_context(subprocess.Popen([sys.executable, "-c", ""]))
        watch = stack.enter_context(port.associate_signal(USER_SIGNAL, "signal"))
        things = [
            ("CompletionPort", port),
            ("CompletionPort", server.completion_port),
            ("Handle", handle),
            ("Handle", directory),
            ("Overlapped", pending),
            ("Overlapped", Overlapped()),
            ("Completion", posted),
            ("Strand", Strand(port)),
            ("Timer", port.post_after(1000)),
            ("SignalWatch", watch),
            ("Histogram", port.stats()["queue_time"]),
            ("WorkerPool", WorkerPool(port, print, 1)),
            ("Server", server),
            ("Connection", connection),
            ("DatagramServer", datagram_server),
            ("Endpoint", endpoint),
            ("Change", Change(completionport.ChangeAction.ADDED, "name")),
        ]
        with contextlib.suppress(OSError):  # where no port can tell of a process
            things.append(("Handle", stack.enter_context(port.associate(process, "process"))))
        yield things


@pytest.fixture(scope="module")
def things(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with all_things(engine, tmp_path_factory.mktemp("watched")) as made:
        yield made


class TestObjects:
    def test_there_is_one_of_every_public_class(self, things):
        assert {name for name, _ in things} == PUBLIC.keys()
        for name, thing in things:
            assert isinstance(thing, PUBLIC[name]), thing

    def test_names(self, things):
        for name, thing in things:
            shown = {member for member in dir(thing) if not member.startswith("_")}
            if name in ("Completion", "Change"):
                assert shown >= OF_TUPLES
                shown -= OF_TUPLES
            assert shown == documented(name).keys(), (name, type(thing))

    def test_signatures(self, things):
        for name, thing in things:
            for member, arguments in documented(name).items():
                if arguments:
                    shown = inspect.signature(getattr(thing, member))
                    plain = [
                        parameter.replace(annotation=inspect.Parameter.empty)
                        for parameter in shown.parameters.values()
                    ]
                    text = str(inspect.Signature(plain))
                    assert text == arguments, (name, member, type(thing))
                else:
                    assert not inspect.isroutine(getattr(thing, member)), (name, member)

    def test_what_can_be_set(self, things):
        """And what can be referred to weakly, and hashed."""
        settable = {
            "Change": set(),
            "Completion": set(),
            "CompletionPort": None,
            "Connection": {"state"},
            "DatagramServer": None,
            "Endpoint": {"state"},
            "Handle": set(),
            "Histogram": {"count"},
            "Overlapped": set(),
            "Server": None,
            "SignalWatch": {"key", "signum"},
            "Strand": set(),
            "Timer": set(),
            "WorkerPool": None,
        }  # None: whatever a program adds, as to any Python object
        held_strongly = ("Change", "Completion", "Histogram", "Timer")
        for name, thing in things:
            names = set()
            for member in (*documented(name), "of_the_program"):
                value = getattr(thing, member, None)
                with contextlib.suppress(AttributeError):
                    setattr(thing, member, value)
                    names.add(member)
            if settable[name] is None:
                assert "of_the_program" in names, (name, type(thing))
            else:
                assert names == settable[name], (name, type(thing))
            with pytest.raises(TypeError) if name in held_strongly else contextlib.nullcontext():
                weakref.ref(thing)
            if name != "Completion":
                hash(thing)

    def test_a_completion_is_a_sequence_of_four(self, things):
        completion = dict(things)["Completion"]
        assert type(completion) is type(Completion(1, 2, 3)) is Completion
        match completion:
            case [transferred, key, overlapped, error]:
                assert [transferred, key, overlapped, error] == list(completion)
            case _:
                raise AssertionError("no sequence")
        match completion:
            case Completion(transferred, key, overlapped, None):
                assert (transferred, key, overlapped) == (0, None, None)
            case _:
                raise AssertionError("no positions")
        assert completion == Completion(0, None, None) == (0, None, None, None)
        assert hash(completion) == hash((0, None, None, None))
        assert (completion.count(None), completion.index(0), completion[-1]) == (3, 0, None)
        assert isinstance(completion, Sequence)

    def test_what_is_told_of_them(self, things):
        """The words of a repr, without what differs from one object to the next."""
        words = {
            "CompletionPort": {"<CompletionPort ENGINE, concurrency N>"},
            "Handle": {
                "<Handle descriptor N, key 'key'>",
                "<Handle descriptor N, key 'directory'>",
                "<Handle process N, key 'process'>",
            },
            "Overlapped": {"<Overlapped recv, pending>", "<Overlapped none, not used yet>"},
            "Completion": {
                "Completion(transferred=N, key=None, overlapped=None, error=None)",
            },
            "Strand": {"<Strand, N queued>"},
            "Timer": {"<Timer at N.N, pending>"},
            "SignalWatch": {"<SignalWatch signal N, key 'signal'>"},
            "Connection": {"<Connection ('N.N.N.N', N)>"},
            "Endpoint": {"<Endpoint ('N.N.N.N', N)>"},
        }
        engine = things[0][1].engine
        for name, thing in things:
            text = re.sub(r"\d+", "N", repr(thing).replace(engine, "ENGINE"))
            assert name not in words or text in words[name]


class Buffers(Sequence[Any]):
    """A sequence that is neither a list nor a tuple."""

    def __init__(self, *buffers: Any) -> None:
        self.buffers = buffers

    def __len__(self) -> int:
        return len(self.buffers)

    def __getitem__(self, index: Any) -> Any:
        return self.buffers[index]


class Index:
    """An integer to `operator.index` alone."""

    def __index__(self) -> int:
        return 3


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "text": lambda: "text",
    "bytes": lambda: b"bytes",
    "float": lambda: 1.5,
    "nan": lambda: float("nan"),
    "-1": lambda: -1,
    "2**63": lambda: 2**63,
    "-2**70": lambda: -(2**70),
    "index": Index,
    "object": object,
    "set": lambda: {b"ab"},
    "iterator": lambda: iter([b"ab"]),
    "[]": list,
    "[1]": lambda: [1],
    "[text]": lambda: ["text"],
    "[[bytes]]": lambda: [[b"ab"]],
    "tuple": lambda: (b"ab", bytearray(b"c")),
    "sequence": lambda: Buffers(b"ab", bytearray(b"c")),
    "sequence()": Buffers,
    "sequence of writable": lambda: Buffers(bytearray(2), bytearray(1)),
    "array": lambda: memoryview(bytearray(8)).cast("d"),
    "strided": lambda: memoryview(bytearray(8))[::2],
    "backwards": lambda: memoryview(b"abc")[::-1],
    "[strided]": lambda: [b"ab", memoryview(b"abcd")[::2]],
}
TOO_LARGE = {"-1", "2**63", "-2**70"}
ANYTHING = ({*VALUES}, set())
NOTHING_ELSE: tuple[set[str], set[str]] = ({"None"}, set())
NEVER: tuple[set[str], set[str]] = (set(), set())
COUNT: tuple[set[str], set[str]] = (set(), TOO_LARGE)
SOURCE = ({"bytes", "tuple", "sequence", "sequence of writable", "array"}, {"[]", "sequence()"})
ALSO_EMPTY = (SOURCE[0] | SOURCE[1], set())
TARGET = (
    {"True", "index", "sequence of writable", "array"},
    {*TOO_LARGE, "[]", "sequence()"},
)
SECONDS = ({"None", "True", "float", "2**63"}, {"nan", "-1", "-2**70"})
TAKEN: dict[str, tuple[set[str], set[str]]] = {
    # By name of the argument, or of the call and the argument: which values are taken, and which
    # raise a ValueError. All others raise a TypeError.
    "key": ANYTHING,
    "overlapped": NOTHING_ELSE,
    "strand": NOTHING_ELSE,
    "address": NEVER,
    "size_or_buffers": TARGET,
    "data_or_buffers": SOURCE,
    "data": ALSO_EMPTY,
    "head": ({"bytes", "array"}, set()),
    "tail": ({"bytes", "array"}, set()),
    "flags": COUNT,
    "how": COUNT,
    "ancillary_size": COUNT,
    "ancillary": ({"[]", "sequence()"}, set()),
    "zero_copy": ({"True"}, set()),
    "data_only": ANYTHING,
    "recursive": ANYTHING,
    "follow_symlinks": ANYTHING,
    "offset": COUNT,
    "read.offset": ({"None", "True"}, TOO_LARGE),
    "write.offset": ({"None", "True"}, TOO_LARGE),
    "length": COUNT,
    "count": ({"None"}, TOO_LARGE),
    "size": COUNT,
    "file": COUNT,
    "fd": COUNT,
    "timeout": SECONDS,
    "max_count": ({"True", "2**63"}, {"-1", "-2**70"}),
    "seconds": ({"float"}, {"nan", *TOO_LARGE}),
    "when": ({"float", "-1"}, {"nan", "2**63", "-2**70"}),
    "signum": COUNT,
    "function": NEVER,
    "host": ({"None", "text", "bytes"}, set()),
    "service": ({"None", "text", "bytes", *TOO_LARGE}, set()),
    "family": COUNT,
    "type": COUNT,
    "proto": COUNT,
    "mode": COUNT,
    "path": ({"text", "bytes"}, set()),
    "source": ({"text", "bytes"}, set()),
    "target": ({"text", "bytes"}, set()),
    "at_most": COUNT,
    "post.transferred": ANYTHING,
    "post_after.transferred": ANYTHING,
    "post_at.transferred": ANYTHING,
    "post.overlapped": ANYTHING,
    "post_after.overlapped": ANYTHING,
    "post_at.overlapped": ANYTHING,
    "concurrency": ({"True", "index"}, TOO_LARGE),
    "pool_threads": COUNT,
}
THE_SYSTEMS = {
    ("sendmsg.address", "None"),  # without an address, where the socket has none
    *(
        (f"{call}.flags", value)
        for call in ("recv", "recvfrom", "recvmsg", "send", "sendto", "sendmsg")
        for value in ("-1", "True")
    ),
}
"""What of the values the operating system decides about."""
NOBODY = ("127.0.0.1", 9)
OF_HANDLES: dict[str, dict[str, Any]] = {
    **{key: {"size_or_buffers": 4} for key in ("recv", "recvfrom", "recvmsg")},
    "send": {"data_or_buffers": b"data"},
    **{key: {"data_or_buffers": b"data", "address": NOBODY} for key in ("sendto", "sendmsg")},
    "connect": {"address": NOBODY},
    "read": {"size_or_buffers": 4, "offset": 0},
    "write": {"data_or_buffers": b"data", "offset": 0},
    "allocate": {"offset": 0, "length": 5},
}
"""Arguments that a call takes, besides the one that is tried."""
OF_PORTS: dict[str, dict[str, Any]] = {
    "get_many": {"max_count": 1},
    "post_after": {"seconds": 0},
    "post_at": {"when": 0},
    "associate": {"key": "key"},
    "associate_signal": {"signum": USER_SIGNAL, "key": "key"},
    "submit": {"function": len},
    "getaddrinfo": {"host": "127.0.0.1", "service": 80},
    "open": {"path": "there"},
    "stat": {"path": "there"},
    "copy_file": {"source": "there", "target": "copy"},
}


def wrong(call: str, parameter: str, start: Callable[[Any], Any]) -> dict[str, str]:
    """For each value that does not do what it should: what it did."""
    taken, value_errors = TAKEN.get(f"{call}.{parameter}") or TAKEN[parameter]
    found = {}
    for name, make in VALUES.items():
        if (f"{call}.{parameter}", name) in THE_SYSTEMS:
            continue
        expected = "" if name in taken else "ValueError" if name in value_errors else "TypeError"
        raised = ""
        try:
            start(make())
        except Exception as error:
            raised = type(error).__name__
        if raised != expected:
            found[f"{call}({parameter}={name})"] = f"{raised or 'taken'}, not {expected or 'taken'}"
    return found


def parameters_of(cls: type, call: str) -> list[str]:
    return [
        parameter.name
        for parameter in list(inspect.signature(getattr(cls, call)).parameters.values())[1:]
        if parameter.kind is not parameter.VAR_POSITIONAL
    ]


def methods(cls: type) -> list[str]:
    """Those that take arguments."""
    return [name for name, arguments in documented(cls.__name__).items() if len(arguments) > 2]


class TestArguments:
    """Each wrong value in each place raises the same type, and nothing is left under way."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        # Some of the values are names of files.
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.fixture
    def make_handle(self, port, folder):
        """A handle for a call of this name, and arguments that it takes."""

        @contextlib.contextmanager
        def make(call):
            with contextlib.ExitStack() as stack:
                arguments = dict(OF_HANDLES.get(call, {}))
                if call in ("read", "write", "fsync", "allocate", "stat"):
                    file = stack.enter_context(digits_file(folder))
                elif call == "read_changes":
                    file = open_directory(folder)
                elif call in ("recvfrom", "recvmsg", "sendto", "sendmsg"):
                    file = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                    file.bind(("127.0.0.1", 0))
                elif call == "accept":
                    file = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                elif call == "connect":
                    file = stack.enter_context(socket.socket())
                else:
                    file, _ = map(stack.enter_context, tcp_pair())
                if call == "sendfile":
                    arguments["file"] = stack.enter_context(digits_file(folder))
                yield stack.enter_context(port.associate(file, "key")), arguments

        return make

    @pytest.mark.parametrize("call", methods(Handle))
    def test_of_handles(self, port, make_handle, call):
        found = {}
        for parameter in parameters_of(Handle, call):

            def start(value, parameter=parameter):
                with make_handle(call) as (handle, arguments):
                    try:
                        getattr(handle, call)(**{**arguments, parameter: value})
                    finally:
                        handle.cancel()
                        handle.close()

            found.update(wrong(call, parameter, start))
        while port.stats()["pending"] or port.stats()["queued"]:
            take_one(port)
        assert found == {}

    @pytest.mark.parametrize("call", methods(CompletionPort))
    def test_of_ports(self, port, folder, call):
        (folder / "there").write_bytes(b"0123456789")
        found = {}
        for parameter in parameters_of(CompletionPort, call):

            def start(value, parameter=parameter):
                with contextlib.ExitStack() as stack:
                    arguments = dict(OF_PORTS.get(call, {}))
                    if call == "associate":
                        arguments["file"] = stack.enter_context(socket.socket())
                    elif call == "close_descriptor":
                        arguments["fd"] = os.open("there", os.O_RDONLY)
                        stack.callback(os.close, arguments["fd"])
                    elif call in ("get", "get_many"):
                        port.post()
                    arguments[parameter] = value
                    positional = [arguments.pop("function"), "x"] if call == "submit" else []
                    given = getattr(port, call)(*positional, **arguments)
                    if call in ("associate", "associate_signal"):
                        given.close()
                    elif call == "close_descriptor":
                        stack.pop_all()

            found.update(wrong(call, parameter, start))
        while port.stats()["pending"] or port.stats()["queued"]:
            overlapped = take_one(port).overlapped
            if call == "open" and overlapped.error is None:
                os.close(overlapped.result())
        assert found == {}

    @pytest.mark.parametrize("parameter", ["concurrency", "pool_threads"])
    def test_of_the_port_itself(self, engine, parameter):
        def start(value):
            CompletionPort(engine=engine, **{parameter: value}).close()

        assert wrong("CompletionPort", parameter, start) == {}

    def test_of_connections(self, engine):
        with serving(engine, port=0) as (_, connection, _):
            assert wrong("send", "data", connection.send) == {}

    def test_of_endpoints(self, engine):
        with (
            receiving(engine, port=0) as (_, endpoint),
            socket.socket(type=socket.SOCK_DGRAM) as peer,
        ):
            peer.bind(("127.0.0.1", 0))
            found = wrong("send", "data", lambda data: endpoint.send(data, peer.getsockname()))
            found |= wrong("send", "address", lambda address: endpoint.send(b"data", address))
            assert found == {}


@pytest.mark.parametrize(
    "data",
    [
        b"abcdef",
        bytearray(b"abcdef"),
        memoryview(b"abcdef").cast("B", (2, 3)),
        [b"abc", bytearray(b"def")],
        Buffers(memoryview(b"abcd"), b"", b"ef"),
    ],
    ids=["bytes", "bytearray", "matrix", "list", "sequence"],
)
def test_a_server_sends_all_bytes_of_whatever_buffers(engine, data):
    with serving(engine, port=0) as (_, connection, client):
        connection.send(data)
        received = b""
        while len(received) < 6:
            received += client.recv(100)
        assert received == b"abcdef"
    with receiving(engine, port=0) as (_, endpoint), socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(LONG)
        assert endpoint.send(data, peer.getsockname())
        assert peer.recv(100) == b"abcdef"


def options_of(sock: socket.socket) -> dict[str, Any]:
    """What a program can see of a socket."""
    stream = sock.type == socket.SOCK_STREAM
    return {
        "blocking": sock.getblocking() if WINDOWS else os.get_blocking(sock.fileno()),
        "timeout": sock.gettimeout(),
        "inheritable": sock.get_inheritable(),
        "family": sock.family,
        "type": sock.type,
        "SO_REUSEADDR": sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR),
        "SO_KEEPALIVE": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        "SO_OOBINLINE": sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE),
        "SO_LINGER": stream and any(sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)),
        "TCP_NODELAY": stream and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
    }


class TestSockets:
    @pytest.mark.parametrize("timeout", [None, 0, 5])
    def test_what_a_port_works_with_stays_as_it_was(self, port, timeout, tmp_path):
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.socket() as client,
            digits_file(tmp_path) as file,
        ):
            client.bind(("127.0.0.1", 0))  # which Windows' ConnectEx needs
            listener.settimeout(timeout)
            client.settimeout(timeout)
            before = [options_of(listener), options_of(client)]
            accepting = port.associate(listener, "listener")
            connecting = port.associate(client, "client")
            accepting.accept()
            connecting.connect(listener.getsockname())
            done = {packet.key: packet for packet in (take_one(port), take_one(port))}
            with done["listener"].overlapped.result() as accepted:
                connecting.send(b"data")
                take_one(port)
                connecting.sendfile(file)
                take_one(port)
                assert [options_of(listener), options_of(client)] == before
                assert options_of(accepted) == options_of_an_accepted_one()
            accepting.close()
            connecting.close()
        assert_quiet(port)

    @pytest.mark.parametrize("whose", ["server", "program"])
    def test_of_a_server(self, engine, whose):
        with socket.create_server(("127.0.0.1", 0)) as own:
            nodelay = bool(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            options = {"port": 0} if whose == "server" else {"listener": own}
            with serving(engine, **options) as (server, _, client):
                with socket_to(client) as here:
                    seen = options_of(here)
                assert seen["TCP_NODELAY"]
                assert (seen["inheritable"], seen["SO_KEEPALIVE"]) == (False, 0)
                assert not seen["SO_LINGER"]
                listener = options_of(server._socket)
                assert listener["blocking"] is False
                assert listener["timeout"] == 0
                assert bool(listener["TCP_NODELAY"]) == (whose == "server" or nodelay)
                assert listener["inheritable"] is False

    @pytest.mark.parametrize("whose", ["server", "program"])
    def test_of_a_datagram_server(self, engine, whose):
        with socket.socket(type=socket.SOCK_DGRAM) as own:
            own.bind(("127.0.0.1", 0))
            options = {"port": 0} if whose == "server" else {"sock": own}
            with receiving(engine, **options) as (server, _):
                seen = options_of(server._socket)
                assert (seen["blocking"], seen["timeout"], seen["inheritable"]) == (
                    True,
                    None,
                    False,
                )


def options_of_an_accepted_one() -> dict[str, Any]:
    """Of one that Python has accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            return options_of(accepted)


def socket_to(client: socket.socket) -> socket.socket:
    """A duplicate of the socket of this process that is connected to this one."""

    def is_it(sock: socket.socket) -> bool:
        try:
            return sock.getpeername() == client.getsockname()
        except OSError:
            return False

    if WINDOWS:  # whose descriptors are no files
        everything = [thing for thing in gc.get_objects() if isinstance(thing, socket.socket)]
        return next(sock.dup() for sock in everything if sock.fileno() >= 0 and is_it(sock))
    for number in descriptors():
        try:
            duplicate = os.dup(number)
        except OSError:
            continue  # it has been closed since
        try:
            sock = socket.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)
            continue
        if is_it(sock):
            sock.set_inheritable(os.get_inheritable(number))
            return sock
        sock.close()
    raise AssertionError(f"no socket is connected to {client}")
