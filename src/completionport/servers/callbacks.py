"""What a server calls must be plain functions: found out when it is made, not when data is lost."""

from __future__ import annotations

import difflib
import functools
import inspect
from typing import Any

_KINDS = (
    (inspect.iscoroutinefunction, "a coroutine function (async def)"),
    (inspect.isasyncgenfunction, "an asynchronous generator function (async def with yield)"),
    (inspect.isgeneratorfunction, "a generator function (def with yield)"),
)


def check_handler(handler: Any, base: type) -> None:
    """Raise `TypeError` for a handler whose callbacks would do nothing: all that ``base`` has.

    ``received`` must be there; what else is not overridden does what the base says.
    """
    if not isinstance(handler, base):
        of_class = isinstance(handler, type) and issubclass(handler, base)
        raise TypeError(
            f"handler must be an object of a class made from {base.__name__}, not "
            + (f"the class itself: write {handler.__name__}()" if of_class else _name_of(handler))
        )
    names = [name for name in vars(base) if not name.startswith("_")]
    if not is_overridden(handler, base, "received"):
        own = [name for name in dir(handler) if name not in dir(base)]
        close = difflib.get_close_matches("received", own, 1)
        raise TypeError(
            f"{type(handler).__name__} does not override received()"
            + (f" (is {close[0]!r} misspelt?)" if close else "")
            + ": what comes would be dropped. A server that only talks overrides it with 'pass'"
        )
    for name in names:
        if is_overridden(handler, base, name):
            check_callback(f"{type(handler).__name__}.{name}", getattr(handler, name))


def check_callback(name: str, function: Any) -> None:
    """Raise `TypeError` for what can't be called, or whose call would only make an object."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, not {_name_of(function)}")
    seen = function
    while seen is not None:
        for is_kind, text in _KINDS:
            if is_kind(seen):
                raise TypeError(
                    f"{name} must be a plain function, not {text}: nobody would run what a call "
                    "of it returns. Write def without await and yield; to go on in an event loop, "
                    "call asyncio.run_coroutine_threadsafe in it"
                )
        if isinstance(seen, functools.partial):
            seen = seen.func
        elif inspect.isroutine(seen) or isinstance(seen, type):
            return
        else:
            # What a callable object does is its class's business.
            seen = inspect.getattr_static(type(seen), "__call__", None)


def is_overridden(handler: Any, base: type, name: str) -> bool:
    """Whether it has a callback of its own."""
    return name in getattr(handler, "__dict__", ()) or (
        getattr(type(handler), name, None) is not getattr(base, name)
    )


def _name_of(value: Any) -> str:
    return type(value).__name__
