"""What was measured, and how it is shown: a table that can be read in a terminal and pasted into Markdown, or JSON."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

#: Whose figures they are, beside the peer's.
OURS = "celeriac"
#: The same work in a few lines, without a task queue.
BY_HAND = "by hand"


@dataclass(frozen=True)
class Row:
    """A line of a table, and the names of its figures."""

    what: str
    unit: str
    figure: str
    #: The figure of the same work by hand.
    by_hand: str = ""
    #: What is to be reached; None: the figure is only for orientation.
    aim: float | None = None
    less_is_better: bool = False
    #: A ratio to the peer's figure says something.
    compared: bool = True
    #: Why there is nothing to measure yet.
    comes_with: str = ""


def less(what: str, unit: str, figure: str, aim: float | None = None, *, by_hand: str = "") -> Row:
    """A row in which less is better."""
    return Row(what, unit, figure, by_hand, aim, less_is_better=True)


class Figures:
    """What was measured: by whose it is and its name, a value for each round."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, whose: str, name: str, value: float) -> None:
        self._values.setdefault((whose, name), []).append(value)

    def take(self, others: Figures) -> None:
        """Add what `others` has."""
        for key, values in others._values.items():
            self._values.setdefault(key, []).extend(values)

    def of(self, whose: str, name: str) -> list[float]:
        return self._values.get((whose, name), [])


@dataclass(frozen=True)
class Comparison:
    """The rows of one table, and whose figures stand beside ours."""

    title: str
    rows: Sequence[Row]
    figures: Figures
    #: Name of the peer in the figures and in the heading; "" for none.
    peer: str = ""
    peer_heading: str = ""

    def ratio(self, row: Row) -> float | None:
        """How many times as good as the peer's: the median over the rounds."""
        if not row.compared:
            return None
        ours, theirs = self.figures.of(OURS, row.figure), self.figures.of(self.peer, row.figure)
        return median_ratio(theirs, ours) if row.less_is_better else median_ratio(ours, theirs)

    def part(self, row: Row) -> float | None:
        """The part of the raw limit that is reached: the median over the rounds."""
        return median_ratio(self.figures.of(OURS, row.figure), self.figures.of(BY_HAND, row.by_hand))

    def reached(self, row: Row) -> bool | None:
        values = self.figures.of(OURS, row.figure)
        if row.aim is None or not values:
            return None
        middle = statistics.median(values)
        return middle <= row.aim if row.less_is_better else middle >= row.aim

    def shown(self) -> Iterator[Row]:
        """The rows that have figures, and those that have a reason for having none."""
        for row in self.rows:
            measured = (OURS, row.figure), (self.peer, row.figure), (BY_HAND, row.by_hand)
            if row.comes_with or any(self.figures.of(*each) for each in measured):
                yield row


def median_ratio(dividends: Sequence[float], divisors: Sequence[float]) -> float | None:
    """The median of the rounds' ratios; that of the medians where a round is missing and they do not pair."""
    if len(dividends) != len(divisors) and dividends and divisors:
        dividends, divisors = [statistics.median(dividends)], [statistics.median(divisors)]
    ratios = [a / b for a, b in zip(dividends, divisors, strict=False) if b]
    return statistics.median(ratios) if ratios else None


# -- for people ----------------------------------------------------------------------------------------------


def show(comparison: Comparison) -> None:
    table = Table(box=box.MARKDOWN)
    table.add_column("what", no_wrap=True)
    headings = ["celeriac", *([comparison.peer_heading, "ratio"] if comparison.peer else [])]
    for heading in (*headings, BY_HAND, "aim"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.shown():
        table.add_row(row.what, *_cells(comparison, row))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(f"\n**{comparison.title}**\n", markup=False, highlight=False)
    console.print(table, markup=False)


def _cells(comparison: Comparison, row: Row) -> Iterator[str]:
    figures = comparison.figures
    yield (
        f"comes with {row.comes_with}" if row.comes_with else _spread(figures.of(OURS, row.figure), row.unit)
    )
    if comparison.peer:
        yield _spread(figures.of(comparison.peer, row.figure), row.unit)
        ratio = comparison.ratio(row)
        yield f"{number(ratio)} x" if ratio is not None else ""
    limits, part = figures.of(BY_HAND, row.by_hand), comparison.part(row)
    limit = f"{number(statistics.median(limits))} {row.unit}" if limits else ""
    yield limit + (f", {part:.0%}" if part is not None else "")
    yield _aim(row, reached=comparison.reached(row))


def _spread(values: Sequence[float], unit: str) -> str:
    """The median, and the least and the greatest of several values."""
    if not values:
        return "-"
    middle = f"{number(statistics.median(values))} {unit}"
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} … {number(max(values))})"


def _aim(row: Row, *, reached: bool | None) -> str:
    if row.aim is None:
        return ""
    text = f"{'≤' if row.less_is_better else '≥'} {number(row.aim)}"
    return text if reached is None else f"{text} {'✓' if reached else '✗'}"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# -- for programs --------------------------------------------------------------------------------------------


def as_plain(comparison: Comparison) -> list[dict[str, Any]]:
    """Each row with the values of every round and their medians."""
    return [
        {
            "what": row.what,
            "unit": row.unit,
            "aim": row.aim,
            "less_is_better": row.less_is_better,
            "comes_with": row.comes_with or None,
            **_values(comparison, OURS, row.figure),
            **(_values(comparison, comparison.peer, row.figure) if comparison.peer else {}),
            **(_values(comparison, BY_HAND, row.by_hand) if row.by_hand else {}),
            "ratio": comparison.ratio(row),
            "part_of_by_hand": comparison.part(row),
            "reached": comparison.reached(row),
        }
        for row in comparison.shown()
    ]


def _values(comparison: Comparison, whose: str, figure: str) -> dict[str, Any]:
    values = comparison.figures.of(whose, figure)
    return {whose: {"median": statistics.median(values), "values": values}} if values else {}
