"""Ports and what belongs to them as classes: derived from, made without `__init__`, copied."""

from __future__ import annotations

import copy
import gc
import inspect
import operator
import pickle
import socket
import sys
import weakref

import pytest

from completionport import (
    CompletionPort,
    DatagramHandler,
    DatagramServer,
    Handler,
    Overlapped,
    Strand,
    WorkerPool,
)
from completionport.engines import COMPILED
from support import assert_quiet, run_python, take_one


class Counting(CompletionPort):
    """With arguments of its own, and a method that adds to the port's."""

    def __init__(self, name, *more, **options):
        super().__init__(2, pool_threads=3)
        self.name = name
        self.more = more
        self.taken = 0

    def get(self, timeout=None):
        done = super().get(timeout)
        self.taken += done is not None
        return done


class Forgetful(CompletionPort):
    """Whose `__init__` does not call the port's."""

    def __init__(self, engine):
        self.name = "forgetful"


class TestASubclassOfCompletionPort:
    def test_is_a_port_on_every_engine(self, engine, tcp):
        near, far = tcp
        with Counting("name", 1, 2, engine=engine) as port:
            assert isinstance(port, Counting)
            assert (type(port).__name__, type(port).__module__) == ("Counting", __name__)
            assert (port.engine, port.concurrency) == (engine, 2)
            assert (port.name, port.more) == ("name", (1, 2))
            handle = port.associate(near, "key")
            assert handle.port is port
            handle.recv(10)
            far.sendall(b"hello")
            assert take_one(port).transferred == 5
            strand = Strand(port)
            assert strand.port is port
            port.post(1, "posted", strand=strand)
            assert port.get(0).key == "posted"
            assert port.taken == 2
            handle.close()
            assert_quiet(port)
        assert port.closed

    def test_has_one_class_for_each_engine(self, engine):
        with Counting("one", engine=engine) as one, Counting("two", engine=engine) as two:
            assert type(one) is type(two)
            assert type(one).__mro__[1] is Counting

    def test_may_be_derived_from_and_have_a_constructor_of_its_own(self, engine):
        class Made(Counting):
            made = 0

            def __new__(cls, name):
                cls.made += 1
                return super().__new__(cls, engine=engine)

        with Made("name") as port:
            assert (port.name, port.engine, Made.made) == ("name", engine, 1)
            port.post(5)
            assert port.get().transferred == 5
            assert port.taken == 1

    @pytest.mark.skipif(
        not getattr(sys, "_is_gil_enabled", lambda: True)() and sys.version_info < (3, 14),
        reason="the free-threaded 3.13 keeps classes for good",
    )
    def test_goes_with_its_last_port(self, engine):
        class Short(CompletionPort):
            pass

        with Short(engine=engine) as port:
            kind = weakref.ref(type(port))
            del port
        del Short
        gc.collect()
        assert kind() is None

    def test_can_not_change_its_engine_in_its_init(self, engine):
        class Stubborn(CompletionPort):
            def __init__(self, engine):
                super().__init__(engine="another")

        with pytest.raises(ValueError, match=f"made for {engine} .* for another: give engine="):
            Stubborn(engine=engine)

    def test_is_initialised_once(self, engine):
        with Counting("name", engine=engine) as port:
            with pytest.raises(RuntimeError, match="once"):
                super(Counting, port).__init__()
            assert port.concurrency == 2

    def test_that_can_not_be_joined_with_an_engine_says_why(self, engine):
        if engine not in COMPILED:
            pytest.skip("a class of Python's takes slots")

        class Slotted(CompletionPort):
            __slots__ = ("field",)

        with pytest.raises(TypeError, match=r"Slotted can't be joined .* __slots__"):
            Slotted(engine=engine)


def test_a_class_derived_from_strand_says_that_it_can_not_be(port):
    class Named(Strand):
        name = "mine"

    with pytest.raises(TypeError, match=r"Named can't be derived from Strand: .* attribute"):
        Named(port)


CALLS = {
    "associate": lambda port: port.associate(socket.socket(), "key"),
    "associate_signal": lambda port: port.associate_signal(2, "key"),
    "get": lambda port: port.get(0),
    "get_many": lambda port: port.get_many(2, 0),
    "post_after": lambda port: port.post_after(1),
    "post_at": lambda port: port.post_at(1),
    "submit": lambda port: port.submit(print),
    "getaddrinfo": lambda port: port.getaddrinfo("localhost", 80),
    "open": lambda port: port.open("file"),
    "stat": lambda port: port.stat("file"),
    "copy_file": lambda port: port.copy_file("file", "another"),
    "close_descriptor": lambda port: port.close_descriptor(1000),
    "with": lambda port: port.__enter__().__exit__(),
    "Strand": Strand,
}
NAMES = [name for name in vars(CompletionPort) if not name.startswith("_")]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestAPortThatWasNotInitialised:
    @pytest.fixture(params=["subclass", "new"])
    def make(self, request, engine):
        if request.param == "subclass":
            return lambda: Forgetful(engine=engine)
        with CompletionPort(engine=engine) as port:
            cls = type(port)
        return lambda: cls.__new__(cls)

    @pytest.fixture
    def made(self, make):
        return make()

    @pytest.mark.parametrize("name", [*NAMES, *(name for name in CALLS if name not in NAMES)])
    def test_says_what_to_do(self, made, name):
        if name in CALLS:
            call = CALLS[name]
        elif callable(getattr(CompletionPort, name)):
            call = operator.methodcaller(name)
        else:
            call = operator.attrgetter(name)
        with pytest.raises(RuntimeError, match=r"not initialised: .* super\(\).__init__"):
            call(made)

    def test_has_a_repr_and_goes(self, make):
        made = make()
        assert "not initialised" in repr(made)
        gone = weakref.ref(made)
        made.itself = made
        del made
        gc.collect()
        assert gone() is None

    def test_can_be_initialised_late(self, engine):
        port = Forgetful(engine=engine)
        super(Forgetful, port).__init__(3)
        with port:
            assert port.concurrency == 3
            port.post(1)
            assert port.get(0).transferred == 1


def test_no_compiled_class_crashes_the_interpreter_without_its_init():
    """All that Python can reach, whatever is asked of such an object."""
    pytest.importorskip("completionport.native.port.port")
    child = run_python(
        """
        import contextlib, gc, importlib, pkgutil
        import completionport.native as native

        classes = set()
        for found in pkgutil.walk_packages(native.__path__, native.__name__ + "."):
            for thing in vars(importlib.import_module(found.name)).values():
                if isinstance(thing, type) and thing.__module__.startswith(native.__name__):
                    classes.add(thing)
        asked = 0
        for cls in sorted(classes, key=lambda cls: (cls.__module__, cls.__qualname__)):
            kinds = [cls]
            with contextlib.suppress(TypeError):
                kinds.append(type("Derived", (cls,), {"__init__": lambda self: None}))
            for kind in kinds:
                for arguments in ((), (None,), (None, None, None), (0, 0), (None, 1, 1, None)):
                    try:
                        thing = kind.__new__(kind, *arguments)
                    except (TypeError, MemoryError):
                        continue
                    for name in dir(thing):
                        if name in ("__init__", "__new__", "__class__", "__subclasshook__"):
                            continue
                        for given in ((), (b"x",), (b"x", ("127.0.0.1", 1)), (0,), (None,)):
                            print(cls.__qualname__, name, given, flush=True)
                            with contextlib.suppress(Exception):
                                member = getattr(thing, name)
                                asked += 1
                                if not callable(member):
                                    break
                                with contextlib.suppress(Exception):
                                    member(*given)
                    repr(thing) if cls.__name__ != "Core" else None
                    del thing
                    gc.collect()
        print("asked", asked > 500)
        """
    )
    assert child.stdout.endswith("asked True\n")


class TestACopy:
    @pytest.fixture(params=["copy", "deepcopy", "pickle"])
    def duplicate(self, request):
        copiers = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": pickle.dumps}
        return copiers[request.param]

    def test_of_a_port_or_what_belongs_to_one_is_refused(self, port, tcp, duplicate):
        near, _far = tcp
        handle = port.associate(near, "key")
        things = [port, handle, handle.recv(10), Strand(port), port.post_after(1000), Overlapped()]
        for thing in things:
            with pytest.raises(TypeError, match="can't be copied or pickled"):
                duplicate(thing)
        port.post(1, "posted")
        assert port.get(0).key == "posted"
        assert not port.closed
        handle.close()
        assert take_one(port).key == "key"
        refusal = pytest.raises(TypeError, match="WorkerPool objects can't be copied")
        with WorkerPool(port, print, 1) as pool, refusal:
            duplicate(pool)

    def test_of_a_server_or_what_belongs_to_one_is_refused(self, serve, dial, engine, duplicate):
        refused = []

        class Talk(Handler):
            def received(self, connection, data):
                try:
                    duplicate(connection)
                except TypeError as error:
                    refused.append(str(error))
                connection.send(data)

        server = serve(Talk())
        client = dial(server)
        client.sendall(b"hello")
        assert client.recv(5)
        assert "can't be copied or pickled" in refused[0]

        class Answers(DatagramHandler):
            def received(self, endpoint, data, address):
                pass

        with DatagramServer(Answers(), "127.0.0.1", 0, engine=engine) as datagrams:
            for thing in (server, datagrams):
                with pytest.raises(TypeError, match="can't be copied or pickled"):
                    duplicate(thing)


def test_every_argument_of_a_port_is_one_of_its_init():
    assert list(inspect.signature(CompletionPort.__init__).parameters) == [
        "self", "concurrency", "engine", "pool_threads",
    ]  # fmt: skip
