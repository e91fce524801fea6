"""What an error code means, in words."""

from __future__ import annotations

from .constants import ERROR_MR_MID_NOT_FOUND, FORMAT_MESSAGE_FROM_SYSTEM
from .last_error import SetLastError
from .system import system


def FormatMessage(dwFlags: int, lpSource: None, dwMessageId: int, dwLanguageId: int = 0) -> str:
    """The system's text for an error code, with a line's end behind it as Windows has it.

    ``dwFlags``: ``FORMAT_MESSAGE_FROM_SYSTEM``, with ``FORMAT_MESSAGE_IGNORE_INSERTS`` and
    ``FORMAT_MESSAGE_ALLOCATE_BUFFER`` as in C, where they matter; other sources are refused with a
    `ValueError`. ``dwMessageId``: what `GetLastError` or `WSAGetLastError` says. ``dwLanguageId``:
    0 for the user's language, counts on Windows.

    Returned: the text; an empty one and ``ERROR_MR_MID_NOT_FOUND`` for a code that has none.
    Elsewhere than on Windows the texts are this system's for the errors that the code stands for.
    """
    for name, value in (
        ("dwFlags", dwFlags),
        ("dwMessageId", dwMessageId),
        ("dwLanguageId", dwLanguageId),
    ):
        if not isinstance(value, int):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not dwFlags & FORMAT_MESSAGE_FROM_SYSTEM or lpSource is not None:
        raise ValueError(
            "FormatMessage() has the texts of the system only: give FORMAT_MESSAGE_FROM_SYSTEM, "
            "and NULL for lpSource"
        )
    text = system.text_of(dwMessageId & 0xFFFFFFFF, dwLanguageId)
    if not text:
        SetLastError(ERROR_MR_MID_NOT_FOUND)
    return text
