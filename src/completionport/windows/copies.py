"""Copying a file by its name, as Windows does it: CopyFileEx."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..interface.errors import OperationAborted
from ..portable.pool.copies import check_source
from . import api


def copy_file(source: str, target: str, at_most: int, is_cancelled: Callable[[], bool]) -> int:
    """Copy a file of so many bytes or fewer to a name that is free; returned: its bytes.

    Nothing is left of a copy that fails or is cancelled: Windows takes it away.
    """

    def progress(*ignored: int) -> int:
        return api.PROGRESS_CANCEL if is_cancelled() else api.PROGRESS_CONTINUE

    check_source(os.stat(source), at_most)
    routine = api.PROGRESS_ROUTINE(progress)
    if not api.CopyFileEx(source, target, routine, None, None, api.COPY_FILE_FAIL_IF_EXISTS):
        code = api.last_error()
        if code == api.ERROR_REQUEST_ABORTED:
            raise OperationAborted()
        raise api.error(code)
    if is_cancelled():
        os.unlink(target)
        raise OperationAborted()
    return os.stat(target).st_size
