"""Arguments that are checked the same way in several places."""

from __future__ import annotations

from typing import Any


def check_count(
    name: str, value: Any, least: int, most: int = 1 << 31, *, optional: bool = False
) -> None:
    """Raise what is due unless ``value`` is an integer in the range, or None where that will do."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")


def check_seconds(name: str, value: Any, *, positive: bool = False) -> None:
    """Raise what is due unless ``value`` is a number of seconds that can be waited for."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if positive and not value > 0:
        raise ValueError(f"{name} must be more than 0 seconds, not {value}")
    if not value >= 0:
        raise ValueError(f"{name} must be 0 or more seconds, not {value}")
