"""How long things took, counted while they happen; `completionport.Histogram` shows it."""

from __future__ import annotations

from ...interface.histogram import STEPS, Histogram

STEP_BITS = STEPS.bit_length() - 1
NOT_MEASURED = -1
"""In place of a time in nanoseconds."""


class Recorder:
    """Counts of a `Histogram` that grow. Whoever shares it guards it."""

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._total = 0

    def add(self, nanoseconds: int) -> None:
        """Count one time."""
        index = bucket(nanoseconds)
        missing = index + 1 - len(self._counts)
        if missing > 0:
            self._counts.extend([0] * missing)
        self._counts[index] += 1
        self._total += nanoseconds

    def snapshot(self) -> Histogram:
        """What was counted so far."""
        return Histogram(self._counts, self._total)


def bucket(nanoseconds: int) -> int:
    """The bucket whose `upper_limit_ns` is the first one above this time."""
    shift = max(nanoseconds.bit_length() - 1 - STEP_BITS, 0)
    return shift * STEPS + (nanoseconds >> shift)
