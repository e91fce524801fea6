"""An operation as long as the kernel has it: its OVERLAPPED, and the memory it reads or writes.

The kernel writes to both at any time until its packet is in the queue of the port. So a flight
holds a reference to itself from before the call until its packet was taken: whatever the program
drops, and also while the interpreter ends, the memory stays where it is.
"""

from __future__ import annotations

import ctypes
import socket
from typing import Any, Protocol

from ..portable.channels.requests import Request
from .api import OVERLAPPED, WSABUF

_SIMPLE = 0
_WRITABLE = 1


class _Buffer(ctypes.Structure):
    """``Py_buffer``, a part of CPython's stable interface since 3.11."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_int]
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.c_void_p]
_release_buffer.restype = None
_increase = ctypes.pythonapi.Py_IncRef
_increase.argtypes = [ctypes.py_object]
_increase.restype = None
_decrease = ctypes.pythonapi.Py_DecRef
_decrease.argtypes = [ctypes.py_object]
_decrease.restype = None


class Channel(Protocol):
    """What a flight belongs to, as it sees it and who takes its packet."""

    def land(self, flight: Flight) -> bool:
        """The kernel is done with a flight. Returned: whether its request is complete with that."""


class Flight:
    """One call to the kernel. Guarded by its channel's lock; the kernel owns the memory."""

    __slots__ = (
        "_buffers",
        "_held",
        "_overlapped",
        "_pins",
        "_slices",
        "address",
        "before",
        "channel",
        "extra",
        "landed",
        "request",
        "sock",
        "space",
    )

    def __init__(self, channel: Channel, request: Request) -> None:
        self.channel = channel
        self.request = request
        self._overlapped = OVERLAPPED()
        self.address = ctypes.addressof(self._overlapped)
        self.before = request.transferred
        self._pins: list[_Buffer] = []
        self._slices: list[memoryview] = []
        self._buffers: Any = None
        self._held = False
        self.space: bytearray | None = None  # memory of ours that the kernel fills
        self.sock: socket.socket | None = None  # of an accept
        self.extra: Any = None  # what else the kernel reads or writes
        self.landed = False  # what came of it is in the request

    @property
    def status(self) -> int:
        """What the kernel says of it, once its packet was taken."""
        return int(self._overlapped.Internal) & 0xFFFFFFFF

    @property
    def count(self) -> int:
        """How many bytes the kernel has moved."""
        return int(self._overlapped.InternalHigh)

    def set_outcome(self, status: int, count: int) -> None:
        """For a call whose outcome is known without a packet of the kernel."""
        self._overlapped.Internal = status
        self._overlapped.InternalHigh = count

    def rest(self, views: list[memoryview]) -> list[memoryview]:
        """What is left of the buffers behind the bytes that earlier flights have moved."""
        skip = self.before
        left = []
        for view in views:
            if skip >= view.nbytes:
                skip -= view.nbytes
                continue
            if skip:
                view = view[skip:]
                self._slices.append(view)
                skip = 0
            left.append(view)
        return left

    def set_offset(self, offset: int) -> None:
        """Where in the file it goes; -1 is the end of the file."""
        self._overlapped.Offset = offset & 0xFFFFFFFF
        self._overlapped.OffsetHigh = offset >> 32 & 0xFFFFFFFF

    def make_space(self, size: int) -> memoryview:
        """Memory for what comes in."""
        self.space = bytearray(size)
        return memoryview(self.space)

    def pin(self, view: memoryview, writable: bool) -> tuple[int, int]:
        """Keep a buffer where it is. Returned: its address and its size."""
        pin = _Buffer()
        _get_buffer(view, ctypes.addressof(pin), _WRITABLE if writable else _SIMPLE)
        self._pins.append(pin)
        return pin.buf or 0, pin.len

    def pin_all(self, views: list[memoryview], writable: bool, most: int) -> tuple[int, int]:
        """Make an array of WSABUF of up to ``most`` bytes. Returned: its address and its length."""
        buffers = (WSABUF * len(views))()
        for place, view in enumerate(views):
            address, size = self.pin(view, writable)
            buffers[place].buf = address
            buffers[place].len = min(size, most)
            most -= min(size, most)
        self._buffers = buffers
        return ctypes.addressof(buffers), len(views)

    def hold(self) -> None:
        """The kernel is about to get it: from now on nothing of it goes away."""
        self._held = True
        _increase(self)

    def unpin(self) -> None:
        """The kernel needs the buffers no more."""
        while self._pins:
            pin = self._pins.pop()  # named, so that it is there as long as the call is at it
            _release_buffer(ctypes.addressof(pin))

    def let_go(self) -> None:
        """The kernel is done with it, or never got it. The second call does nothing."""
        self.unpin()
        while self._slices:
            self._slices.pop().release()
        if self._held:
            self._held = False
            _decrease(self)
