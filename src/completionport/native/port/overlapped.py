"""The compiled Overlapped under its public type."""

from __future__ import annotations

from ...interface.handle import Overlapped as PublicOverlapped
from .operations import OverlappedBase


class Overlapped(OverlappedBase, PublicOverlapped):
    __doc__ = PublicOverlapped.__doc__
    __slots__ = ()
    # In the place of what Cython makes.
    __reduce__ = PublicOverlapped.__reduce__
