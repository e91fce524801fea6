"""Overlapped in Python; ``native.port.operations`` has its compiled twin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

from ...interface.errors import OperationPending
from ...interface.handle import Handle
from ...interface.handle import Overlapped as PublicOverlapped
from ...interface.operation import Operation

FREE = (None,)


class Overlapped(PublicOverlapped):
    # The fields are written by whoever claimed the object (`_begin`), until it gives it back.
    __doc__ = PublicOverlapped.__doc__

    __slots__ = (
        "__weakref__",
        "_error",
        "_handle",
        "_idle",
        "_operation",
        "_transferred",
        "_value",
    )

    _idle: list[None]
    _operation: Operation
    _handle: Handle | None
    _transferred: int
    _error: BaseException | None
    _value: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Not in __init__: subclasses need not call that.
        self = super().__new__(cls)
        # One item while the object is free. Taking it is one atomic step, with no lock that
        # a finalizer could meet a second time.
        self._idle = [None]
        self._operation = Operation.NONE
        self._handle = None
        self._transferred = 0
        self._error = None
        self._value = None
        return self

    @property
    def operation(self) -> Operation:
        return self._operation

    @property
    def handle(self) -> Handle | None:
        return None if getattr(self._handle, "is_errand", False) else self._handle

    @property
    def pending(self) -> bool:
        return not self._idle

    @property
    def transferred(self) -> int:
        return self._transferred

    @property
    def error(self) -> BaseException | None:
        return self._error

    def result(self) -> Any:
        if not self._idle:
            raise OperationPending(
                f"the {self._operation.name.lower()} is under way: its packet was not taken yet"
            )
        if self._operation is Operation.NONE:
            raise ValueError("there is no result: this Overlapped was not used for an operation")
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> bool:
        handle = self._handle
        if self._idle or handle is None:
            return False
        return handle.cancel(self) > 0

    # A signal handler may raise behind each call of a function: the last steps here are none.

    def _begin(self, handle: Handle, operation: Operation) -> None:
        step = map(self._idle.pop, (-1,))
        try:
            [_] = step
        except IndexError:
            raise OperationPending(
                f"this Overlapped is in use for a {self._operation.name.lower()} whose packet was "
                "not taken yet: use another one, or wait for the packet"
            ) from None
        self._operation = operation
        self._handle = handle
        self._transferred = 0
        self._error = None
        self._value = None

    def _finish(self, transferred: int, error: BaseException | None, value: Any) -> None:
        self._transferred = transferred
        self._error = error
        self._value = value
        self._idle[:] = FREE

    def _prepare(
        self, transferred: int, error: BaseException | None, value: Any
    ) -> Callable[[], None]:
        self._transferred = transferred
        self._error = error
        self._value = value
        # A list of its own, since one that grows takes memory.
        return partial(setattr, self, "_idle", [None])

    def _withdraw(self) -> None:
        self._operation = Operation.NONE
        self._handle = None
        self._idle[:] = FREE

    def __repr__(self) -> str:
        state = "pending" if not self._idle else "failed" if self._error is not None else "done"
        if self._operation is Operation.NONE:
            state = "not used yet"
        return f"<{type(self).__name__} {self._operation.name.lower()}, {state}>"
