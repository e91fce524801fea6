"""What a case gave: its table, its promised figures, and how they are computed from the rounds."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

Round = dict[str, Any]
Results = dict[str, list[Round]]

DISTURBED = 0.06
"""Processors in use by other programs, from which on figures are doubtful."""


@dataclass
class Bar:
    """A figure that was promised, and what it is.

    It holds too where the promised one lies within the middle half of the rounds: the machine does
    not tell the two apart.
    """

    what: str
    value: float
    limit: float
    at_least: bool
    middle_half: tuple[float, float] | None = None

    @property
    def holds(self) -> bool:
        values = (self.value, *(self.middle_half or ()))
        return max(values) >= self.limit if self.at_least else min(values) <= self.limit

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        sign = ">=" if self.at_least else "<="
        text = f"  {verdict:13}  {self.what}: {self.value:.4g} (promised {sign} {self.limit:g})"
        if self.middle_half:
            text += ", middle half {:.3g} to {:.3g}".format(*self.middle_half)
        return text


@dataclass
class Report:
    """What one case gave."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    rounds: Results = field(default_factory=dict)

    def show(self) -> None:
        print(f"\n{self.title}")
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        for row in [self.columns, *self.rows]:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            print("  " + "  ".join(cells))
        for note in self.notes:
            print(f"  {note}")
        for name, failure in self.failures.items():
            print(f"  {name} failed: {failure}")
        for bar in self.bars:
            print(bar)
        sys.stdout.flush()

    def fails(self) -> bool:
        return bool(self.failures) or not all(bar.holds for bar in self.bars)


def middle(rounds: list[Round], name: str) -> float:
    return float(median(entry[name] for entry in rounds))


def ratios(results: Results, name: str, reference: str, figure: str) -> list[float]:
    """The ratio within each round; none when one of the two was not measured."""
    pairs = zip(results.get(name, ()), results.get(reference, ()), strict=False)
    return [a[figure] / b[figure] for a, b in pairs]


def times(values: list[float]) -> str:
    return f"{median(values):.2f}" if values else "-"


def thousandths(values: list[float]) -> str:
    return f"{median(values):.3f}" if values else "-"


def middle_half(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def ratio_bar(
    report: Report,
    what: str,
    name: str,
    reference: str,
    limit: float,
    figure: str = "rate",
    at_least: bool = True,
) -> None:
    """A promised ratio of two servers, when both were measured."""
    found = ratios(report.rounds, name, reference, figure)
    if found:
        report.bars.append(Bar(what, median(found), limit, at_least, middle_half(found)))


def note_disturbance(report: Report) -> None:
    everything = [entry for rounds in report.rounds.values() for entry in rounds]
    if everything and (others := middle(everything, "others")) > DISTURBED:
        report.notes.append(
            f"Other programs used {others:.2f} processors meanwhile: these figures are doubtful."
        )
