"""What a server calls is looked at when it is made: a callback that would do nothing is refused."""

from __future__ import annotations

import functools

import pytest

from completionport import (
    CompletionPort,
    DatagramHandler,
    DatagramServer,
    Handler,
    Server,
    WorkerPool,
)
from support import descriptors, read_to_end


async def coroutine(*arguments):
    """Nobody would await it."""


async def asynchronous_generator(*arguments):
    yield


def generator(*arguments):
    yield


class Callable:
    async def __call__(self, *arguments):
        pass


class Plain:
    def __call__(self, *arguments):
        pass


USELESS = [
    coroutine,
    asynchronous_generator,
    generator,
    Callable(),
    functools.partial(coroutine),
    functools.partial(functools.partial(generator), 1),
    functools.partial(Callable()),
]
SERVERS = [(Server, Handler), (DatagramServer, DatagramHandler)]


def own_class(base, name, callback):
    """Of a handler with that callback."""
    if isinstance(callback, functools.partial):
        callback = staticmethod(callback)  # else Python 3.13 warns, as it will be a method
    return type("Own", (base,), {"received": print, name: callback})


def named(value):
    return getattr(value, "__name__", None) or type(value).__name__


@pytest.fixture
def refused(engine, nothing_left):
    """Make a server with the handler; what it says, once it has left nothing behind."""

    def refused(kind, handler):
        before = descriptors()
        with pytest.raises(TypeError) as caught:
            kind(handler, port=0, engine=engine)
        assert descriptors() == before
        return str(caught.value)

    return refused


@pytest.mark.parametrize(("kind", "base"), SERVERS, ids=named)
class TestReceived:
    def test_it_must_be_overridden(self, refused, kind, base):
        class Talker(base):
            def connected(self, connection):
                connection.send(b"hello")

        for handler in (base(), Talker()):
            text = refused(kind, handler)
            assert "does not override received()" in text
            assert "overrides it with 'pass'" in text

    def test_a_name_that_is_close_is_told(self, refused, kind, base):
        class Misspelt(base):
            def recieved(self, *arguments):
                pass

        assert "is 'recieved' misspelt?" in refused(kind, Misspelt())

    def test_the_class_in_place_of_an_object_is_told(self, refused, kind, base):
        class Own(base):
            def received(self, *arguments):
                pass

        assert "write Own()" in refused(kind, Own)

    def test_an_attribute_of_the_object_is_enough(self, engine, nothing_left, kind, base):
        class Own(base):
            def __init__(self):
                self.received = lambda *arguments: None

        kind(Own(), port=0, engine=engine).stop()


CALLBACKS = [
    (kind, base, name) for kind, base in SERVERS for name in vars(base) if not name.startswith("_")
]


@pytest.mark.parametrize(("kind", "base", "name"), CALLBACKS, ids=named)
class TestEveryCallback:
    @pytest.mark.parametrize("useless", USELESS, ids=named)
    def test_it_must_be_a_plain_function(self, refused, kind, base, name, useless):
        of_class = own_class(base, name, useless)()
        of_object = own_class(base, "received", print)()
        setattr(of_object, name, useless)
        for handler in (of_class, of_object):
            text = refused(kind, handler)
            assert f"Own.{name} must be a plain function, not a" in text

    def test_an_async_method_is_refused(self, refused, kind, base, name):
        class Own(base):
            def received(self, *arguments):
                pass

        async def method(self, *arguments):
            pass

        setattr(Own, name, method)
        assert "a coroutine function (async def)" in refused(kind, Own())

    def test_it_must_be_callable(self, refused, kind, base, name):
        own = {"received": lambda *arguments: None, name: None}
        assert "must be a function, not NoneType" in refused(kind, type("Own", (base,), own)())

    def test_what_can_be_called_and_is_no_coroutine_will_do(
        self, engine, nothing_left, kind, base, name
    ):
        for plain in (Plain(), functools.partial(Plain()), staticmethod(Plain()), print, dict):
            kind(own_class(base, name, plain)(), port=0, engine=engine).stop()


def test_a_wrapper_that_hides_a_coroutine_function_is_plain(engine, serve, dial):
    """As one that gives it to an event loop: what counts is what a call does."""

    @functools.wraps(coroutine)
    def wrapper(self, connection, data):
        connection.send(data)

    client = dial(serve(type("Own", (Handler,), {"received": wrapper})()))
    client.sendall(b"hello")
    assert client.recv(5) == b"hello"
    client.close()


def test_a_server_that_only_talks(serve, dial):
    class Talker(Handler):
        def connected(self, connection):
            connection.send(b"hello")
            connection.close()

        def received(self, connection, data):
            pass

    assert read_to_end(dial(serve(Talker()))) == b"hello"


class TestPools:
    @pytest.mark.parametrize("useless", USELESS, ids=named)
    def test_the_target_must_be_a_plain_function(self, engine, nothing_left, useless):
        with CompletionPort(engine=engine) as port, pytest.raises(TypeError) as caught:
            WorkerPool(port, useless, 1)
        assert "target must be a plain function, not a" in str(caught.value)

    def test_an_async_method_is_refused(self, engine, nothing_left):
        class Own:
            async def work(self, completion):
                pass

        with (
            CompletionPort(engine=engine) as port,
            pytest.raises(TypeError, match="a coroutine function"),
        ):
            WorkerPool(port, Own().work, 1)
