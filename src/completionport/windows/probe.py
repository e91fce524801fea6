"""Whether the engine ``iocp`` runs here."""

from __future__ import annotations

import sys


def probe(thorough: bool) -> tuple[str, str, dict[str, bool]]:
    """The reason why it does not run, what to do, and the features of this Windows.

    It takes no time, whether ``thorough`` or not.
    """
    if sys.platform != "win32":
        return (
            "the completion ports of Windows are needed",
            "Run it on Windows; here the other engines do the same",
            {},
        )
    from . import api

    return "", "", {"a file can be taken from its port": api.can_part()}
