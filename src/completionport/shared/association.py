"""Which files belong to a port: no file may belong to two.

Used by every engine. A socket is known by its device and inode, so that a
second socket object for the same socket is found as well; any other file by
its object, or by its number where a number is all there is.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Hashable
from typing import Any, NamedTuple

from ..interface.errors import AlreadyAssociated

if sys.platform == "linux":
    import fcntl

F_DUPFD_QUERY = 1024 + 3
"""fcntl(2): whether another descriptor came from the same open. Python 3.14 has a name for it."""

taken: dict[Hashable, list[Any]] = {}
"""Token -> [the file], which keeps the file's id its own. No lock, since finalizers come here
too: one setdefault and one pop are atomic. The compiled handles pop from it themselves."""


class Association(NamedTuple):
    """What `register` found out."""

    token: Hashable
    """To be given to `release`."""
    fileno: int
    """The number of the file's descriptor."""


def refuse_tls(file: Any) -> None:
    """`TypeError` for a socket of the module ssl: a port would send its data in plain text."""
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(file, ssl.SSLSocket):
        raise TypeError(
            "a port can't encrypt, and would send in plain text: an SSLSocket is refused. Take the "
            "socket as it was before wrap_socket(), with an ssl.SSLObject on memory buffers"
        )


def listens(sock: socket.socket) -> bool:
    """Whether it accepts connections; `OSError` where the system can't tell."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def register(file: Any) -> Association:
    """Check ``file``, and note that it belongs to a port from now on.

    Raised: `TypeError` for an object with no descriptor, `ValueError` for a closed
    file, `AlreadyAssociated` when it is noted already.
    """
    number = descriptor_of(file)
    status = status_of(number)
    token: Hashable
    if stat.S_ISSOCK(status.st_mode):
        token = ("socket", status.st_dev, status.st_ino)
    elif isinstance(file, int):
        token = ("number", number, status.st_dev, status.st_ino)
    else:
        token = ("object", id(file))
    association = Association(token, number)
    claim(token, file)
    return association  # no call, behind which a signal handler could raise, and it stays noted


def claim(token: Hashable, file: Any) -> None:
    """Note that a file belongs to a port, under a token of its own; `AlreadyAssociated`."""
    entry = [file]
    try:
        noted = taken.setdefault(token, entry)
    except BaseException:
        if token in taken and taken[token] is entry:
            release(token)
        raise
    if noted is not entry:
        raise AlreadyAssociated(
            f"{file!r} belongs to a completion port already: use the handle that it has, or close "
            "that and associate a new file"
        )


def release(token: Hashable, _taken: dict[Hashable, list[Any]] = taken) -> None:
    """Forget a file. A token that is not noted is ignored.

    It works at the end of the interpreter too, when the names of this module are gone.
    """
    _taken.pop(token, None)


def opened_together(number: int, duplicate: int) -> bool | None:
    """Whether a number still has the file that ``duplicate`` was made of; None: it can't be told.

    The same file opened once more is another one.
    """
    if sys.platform != "linux":
        return None
    try:
        return bool(fcntl.fcntl(number, F_DUPFD_QUERY, duplicate))
    except OSError:
        return None  # Linux before 6.10 has no such question; or one of the two is closed


def close_number(
    number: int, identity: os.stat_result, opened_together: bool | None = None
) -> None:
    """Close a descriptor that a program gave as a number, unless the number is another file's now.

    ``identity`` is what fstat(2) told of the file. ``opened_together``: what that function says,
    from before the duplicate was closed.
    """
    if opened_together is False:
        return
    try:
        same = os.path.samestat(os.fstat(number), identity)
    except OSError:
        return  # the program has closed it
    if same:
        os.close(number)


def descriptor_of(file: Any) -> int:
    """The descriptor number of ``file``, checked.

    Raised: `TypeError` for an object with no descriptor, `ValueError` for a closed one.
    """
    refuse_tls(file)
    if isinstance(file, bool):
        raise TypeError("a socket, a file or a descriptor number was expected, not a bool")
    if isinstance(file, int):
        number: Any = file
    else:
        fileno = getattr(file, "fileno", None)
        if not callable(fileno):
            raise TypeError(
                "a socket, another object with fileno(), or a descriptor number was expected, "
                f"not {type(file).__name__}"
            )
        number = fileno()
        if not isinstance(number, int):
            raise TypeError(
                f"fileno() of {type(file).__name__} must give an integer, "
                f"not {type(number).__name__}"
            )
    if number < 0:
        raise ValueError(f"the file is closed: its descriptor number is {number}")
    if number > 0x7FFFFFFF:
        raise ValueError(f"a descriptor number from 0 to 2**31 - 1 was expected, not {number}")
    return int(number)


def status_of(number: int) -> os.stat_result:
    """What fstat(2) says of a descriptor; `ValueError` when it is not open."""
    try:
        return os.fstat(number)
    except OSError:
        raise ValueError(
            f"the file is closed: {number} is not the number of an open descriptor"
        ) from None


if hasattr(os, "register_at_fork"):
    # The child has none of the parent's ports.
    os.register_at_fork(after_in_child=taken.clear)
