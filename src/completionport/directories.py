"""Opening a directory for a port, which each operating system does in its own way."""

from __future__ import annotations

import os
import sys

from .interface.handle import Path


def open_directory(path: Path) -> int:
    """A descriptor of a directory, to be associated for `Handle.read_changes`.

    ``path``: as for `os.open`. Returned: the number of a descriptor, not inheritable, which is the
    program's: closing the handle closes it. It can only be watched and asked for its `stat`; others
    may rename and delete the directory meanwhile.

    Raised: `FileNotFoundError`, `NotADirectoryError`, and what else `os.open` raises. Win32:
    ``CreateFile`` with ``FILE_FLAG_BACKUP_SEMANTICS`` and ``FILE_FLAG_OVERLAPPED``, which `os.open`
    can't give; elsewhere it is ``os.open(path, os.O_RDONLY | os.O_DIRECTORY)``.
    """
    if sys.platform == "win32":
        from .windows.files import open_directory as open_on_windows

        return open_on_windows(os.fsdecode(path))
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
