"""What is told in the log, and going on where there is no memory: nothing of it ends a thread."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("completionport")

SHORTAGE = 0.01
"""Seconds until what found no memory is tried again."""


ending: list[BaseException] = []
"""What was to end the program, and came in a callback that the main thread served: a `get` of that
empties it before it serves, and raises what it finds behind that. The main thread's alone."""


class _Unraisable:
    """Dropped, it has Python tell `sys.unraisablehook` of an error, which may raise in turn."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __del__(self) -> None:
        raise self._error


def tell(
    level: int, message: str, *arguments: Any, error: BaseException | bool | None = None
) -> None:
    """Write a line to the log; with the traceback of ``error``, where True is the one at hand.

    It does not raise: an error of the log's own handlers goes to `sys.unraisablehook`.
    """
    raised = sys.exc_info()[1] if error is True else error
    if isinstance(raised, (KeyboardInterrupt, SystemExit)) and (
        threading.get_ident() == threading.main_thread().ident
    ):
        ending[:] = [raised]
    try:
        logger.log(level, message, *arguments, exc_info=error)
    except BaseException as failure:
        _Unraisable(failure)


def persist(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what has to be done, until there is memory for it."""
    while True:
        try:
            return function(*arguments)
        except MemoryError:
            time.sleep(SHORTAGE)
