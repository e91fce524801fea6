"""The last error of each thread."""

from __future__ import annotations

import threading


class _LastError(threading.local):
    code = 0


_last = _LastError()


def GetLastError() -> int:
    """The code that the last failed call of this thread has left. Each thread has its own.

    A call that succeeds leaves it alone, but for a `CreateFile` that may create a file: see there.
    """
    return _last.code


def SetLastError(dwErrCode: int) -> None:
    """Set what `GetLastError` and `WSAGetLastError` say in this thread."""
    if not isinstance(dwErrCode, int):
        raise TypeError(f"dwErrCode must be an integer, not {type(dwErrCode).__name__}")
    _last.code = dwErrCode


def WSAGetLastError() -> int:
    """As `GetLastError`: Windows keeps one number for both, so it is what the last failed call set.

    Functions of Winsock set Winsock's codes (10054), the others Windows codes (64).
    """
    return _last.code


def WSASetLastError(iError: int) -> None:
    """As `SetLastError`."""
    SetLastError(iError)
