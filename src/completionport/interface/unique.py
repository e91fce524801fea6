"""What can't be copied: there is one of it, in the operating system as well."""

from __future__ import annotations

from typing import NoReturn


class Unique:
    """Base of what owns a descriptor, a queue or a place in one.

    A copy would own the same, and let it go under the original; a pickle would mean nothing in
    another process.
    """

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        refuse_copy(self)


def refuse_copy(thing: object) -> NoReturn:
    """What `copy` and `pickle` are told."""
    raise TypeError(
        f"{type(thing).__name__} objects can't be copied or pickled: a copy would let go what the "
        "original owns. Share the object itself; another process makes its own"
    )
