"""A page of docs that a tool makes."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(page: str, text: str, tool: str) -> int:
    """Write it; with ``--check`` only say whether it is up to date. Returned: the exit status."""
    target = Path(__file__).parent.parent / "docs" / page
    if "--check" not in sys.argv:
        target.write_text(text)
    elif target.read_text() != text:
        print(f"docs/{page} is out of date: run python tools/{tool}")
        return 1
    return 0
