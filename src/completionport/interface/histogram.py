"""`Histogram`: how long things took, as counts in buckets that grow with the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

STEPS = 16
"""Buckets for each doubling: a quantile is within 1/16 of the true one."""


class Histogram:
    """Times in seconds, as they were counted; a snapshot that does not change.

    A busy port measures one packet in 16 where its threads need less than some microseconds for
    each (12; 5 on `selectors`), and the compiled engines one in 128 where they need less than half
    of one. Otherwise each is measured.
    """

    __slots__ = ("_counts", "_total", "count")

    def __init__(self, counts: Sequence[int], total_ns: int = 0) -> None:
        self._counts = tuple(counts)
        self._total = total_ns
        self.count = sum(self._counts)
        """How many times were measured."""

    @property
    def mean(self) -> float:
        """The average, 0.0 when nothing was measured."""
        return self._total / self.count / 1e9 if self.count else 0.0

    def quantile(self, part: float) -> float:
        """The time that ``part`` (0 to 1) of all measured ones do not exceed: 0.5 is the median.

        0.0 when nothing was measured. Raised: `ValueError` for a part that is not from 0 to 1.
        """
        if not 0 <= part <= 1:
            raise ValueError(f"a quantile is asked for with a number from 0 to 1, not {part}")
        wanted = part * self.count
        seen = 0
        for upper, count in self.buckets():
            seen += count
            if seen >= wanted:
                return upper
        return 0.0

    def buckets(self) -> Iterator[tuple[float, int]]:
        """``(upper limit, count)`` of each bucket that is not empty, in seconds, ascending."""
        for index, count in enumerate(self._counts):
            if count:
                yield upper_limit_ns(index) / 1e9, count

    def __repr__(self) -> str:
        return (
            f"<Histogram of {self.count}: median {self.quantile(0.5):.3g} s, "
            f"99 % {self.quantile(0.99):.3g} s>"
        )


def upper_limit_ns(index: int) -> int:
    """The first nanosecond that does not belong to bucket ``index``."""
    if index < STEPS:
        return index + 1
    shift, step = divmod(index - STEPS, STEPS)
    return (STEPS + step + 1) << shift
