"""Copying a file by its name, as Windows does it: CopyFileEx."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..interface.errors import OperationAborted
from ..portable.pool.copies import check_kind, too_long
from . import api


def copy_file(source: str, target: str, at_most: int, is_cancelled: Callable[[], bool]) -> int:
    """Copy a file of so many bytes or fewer to a name that is free; returned: its bytes.

    Nothing is left of a copy that fails or is cancelled: Windows takes it away.
    """

    is_too_long = False

    def progress(size: int, copied: int, *ignored: int) -> int:
        nonlocal is_too_long
        is_too_long = copied > at_most  # it has grown since
        return api.PROGRESS_CANCEL if is_too_long or is_cancelled() else api.PROGRESS_CONTINUE

    status = os.stat(source)
    check_kind(status)
    if status.st_size > at_most:
        raise too_long()
    routine = api.PROGRESS_ROUTINE(progress)
    if not api.CopyFileEx(source, target, routine, None, None, api.COPY_FILE_FAIL_IF_EXISTS):
        code = api.last_error()
        if code == api.ERROR_REQUEST_ABORTED:
            raise too_long() if is_too_long else OperationAborted()
        raise api.error(code)
    if is_cancelled():
        os.unlink(target)
        raise OperationAborted()
    count = os.stat(target).st_size
    if count > at_most:
        os.unlink(target)
        raise too_long()
    return count
