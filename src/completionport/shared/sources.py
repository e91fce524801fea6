"""The file that a sendfile takes its bytes from."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any

from ..interface.errors import system_error
from .arguments import LARGEST_OFFSET, check_count
from .association import descriptor_of, status_of

NO_FILE = "sendfile() sends from a regular file, and this is none"


def open_source(file: Any, offset: Any, count: Any) -> tuple[int, int, int]:
    """A duplicate of the file's descriptor, which is the caller's, the offset, and the bytes there.

    Raised: `TypeError` and `ValueError` for wrong arguments, `OSError` for what is no regular file
    or not open for reading.
    """
    check_count("offset", offset, 0, LARGEST_OFFSET)
    check_count("count", count, 0, LARGEST_OFFSET, optional=True)
    number = descriptor_of(file)
    if isinstance(file, socket.socket):  # whose number is no descriptor on Windows
        raise system_error(errno.EINVAL, NO_FILE)
    status = status_of(number)
    if not stat.S_ISREG(status.st_mode):
        raise system_error(errno.EINVAL, NO_FILE)
    left = max(status.st_size - offset, 0)
    return os.dup(number), offset, left if count is None else min(count, left)
