"""What a server's `send` is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def joined_bytes(data: Any) -> bytes:
    """A bytes-like object, or a sequence of them in order, as bytes; `TypeError` for else."""
    if isinstance(data, bytes):
        return data
    try:
        view = memoryview(data)
    except TypeError:
        view = None
    if view is not None:
        with view:
            if not view.c_contiguous:
                raise TypeError("send() needs a contiguous buffer")
            return bytes(view)
    if isinstance(data, str) or not isinstance(data, Sequence):
        raise TypeError(
            f"send() takes a bytes-like object or a sequence of them, not {type(data).__name__}"
        )
    try:
        return b"".join(data)
    except TypeError as reason:
        raise TypeError(
            f"send() takes a sequence of bytes-like objects, each contiguous: {reason}"
        ) from None
