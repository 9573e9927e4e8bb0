"""From times to one figure: pure, and nothing is dropped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median

# On shared machines a smaller difference than this says nothing.
NOISE = 1.3


class Compare(Enum):
    """How a subject is held against its baseline; the value is the figure's unit."""

    RATIO = ""
    DIFFERENCE = " s"
    MICROSECONDS = " us"
    COUNT = " requests"
    SPEED = "x"
    PERCENT = "%"


@dataclass(frozen=True, slots=True)
class Goal:
    """What to reach.

    Attributes:
        limit: the median may be at most this: a factor, seconds with `DIFFERENCE`, microseconds
            with `MICROSECONDS`, a number with `COUNT`; with `SPEED` it must be at least this
            factor, with `PERCENT` it may be no farther from zero on either side.
        compare: subject / baseline or subject - baseline in time, how many times as fast the
            subject is, or by how many percent it is faster.
        equality: the goal is to be as fast as the baseline, not faster or a known factor slower.
    """

    limit: float
    compare: Compare = Compare.RATIO
    equality: bool = False

    def __str__(self) -> str:
        if self.compare is Compare.PERCENT:
            return f"within {self.limit:g}%"
        sign = ">=" if self.compare is Compare.SPEED else "<="
        return f"{sign} {self.limit:g}{self.compare.value}"

    def allows(self, value: float) -> bool:
        """Say whether a figure reaches the goal."""
        if self.compare is Compare.PERCENT:
            return abs(value) <= self.limit
        return value >= self.limit if self.compare is Compare.SPEED else value <= self.limit


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest value of the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Turns:
    """How long each turn of one side took in one round, in seconds."""

    baseline_s: Sequence[float]
    subject_s: Sequence[float]


def compared(turns: Turns, compare: Compare) -> float:
    """Return the figure of one round, from all of its turns: mean against mean."""
    baseline = math.fsum(turns.baseline_s) / len(turns.baseline_s)
    subject = math.fsum(turns.subject_s) / len(turns.subject_s)
    if compare in {Compare.DIFFERENCE, Compare.COUNT}:
        return subject - baseline
    if compare is Compare.MICROSECONDS:
        return (subject - baseline) * 1e6
    if compare is Compare.PERCENT:
        return (baseline / subject - 1) * 100
    return baseline / subject if compare is Compare.SPEED else subject / baseline


def spread(values: Sequence[float]) -> Spread:
    """Return median, minimum and maximum of the rounds' figures, at least one."""
    return Spread(median(values), min(values), max(values))


def verdict(value: float, goal: Goal) -> str:
    """Say whether a median reaches its goal, and whether it can be told from equality at all.

    Returns:
        `reached` or `missed`; with ` (equal)` where equality is the goal and the two sides
        differ by less than `NOISE`.
    """
    word = "reached" if goal.allows(value) else "missed"
    equal = goal.equality and 1 / NOISE < value < NOISE
    return f"{word} (equal)" if equal else word
