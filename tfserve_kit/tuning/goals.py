"""What the best settings are best at, what a candidate amounts to, and when that is proof: pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, ClassVar, Literal, Protocol, Self

from tfserve_kit.errors import UsageError
from tfserve_kit.perf import gate, stats
from tfserve_kit.perf.gate import Condition, value_of
from tfserve_kit.perf.stats import Summary

Measure = Callable[[float], Summary]
Direction = Literal["maximize", "minimize"]

# Steps of the search for a rate. A candidate that fails at two thirds of the best rate is beaten.
_GROWTH = 1.5
_PRECISION = 0.08
_HOPELESS = 0.7
_MOST_RUNS = 10
# How the two sides of a proof are told apart: more finely, and from where they are known to be.
_FINE_GROWTH = 1.15
_FINE_PRECISION = 0.03


@dataclass(frozen=True, slots=True)
class Point:
    """One run.

    Attributes:
        rate: answers per second.
        latency_s: the quantile that is looked at; None if it is not known.
        held: whether the server kept what was asked of it.
        invalid: why the run says nothing about the server; empty if it does.
        failure: the most frequent status of failed requests; empty if none failed.
    """

    rate: float
    latency_s: float | None
    held: bool
    invalid: str = ""
    failure: str = ""

    @classmethod
    def of(cls, summary: Summary, name: str, *, held: bool) -> Self:
        """Return the point of a run's summary; `name` is the quantile's."""
        rate, latency_s = summary.achieved_rate or 0.0, value_of(summary, name)
        failure = max(summary.errors, key=lambda name: summary.errors[name], default="")
        return cls(rate, latency_s, held, summary.invalid, failure)


@dataclass(frozen=True, slots=True)
class Score:
    """What settings amount to.

    Attributes:
        value: requests per second or seconds, as the goal has it; None if they cannot do it at all.
        points: the runs, in order.
        beaten: whether it was given up because another is surely better.
    """

    value: float | None
    points: tuple[Point, ...]
    beaten: bool = False

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """Return what `as_data` made data of."""
        return cls(data["value"], tuple(Point(**each) for each in data["points"]), data["beaten"])


class Goal(Protocol):
    """What is looked for.

    Attributes:
        direction: whether more or less is better.
    """

    direction: ClassVar[Direction]

    @property
    def quantile(self) -> str:
        """Name of the quantile that is looked at."""

    @property
    def patience_s(self) -> float:
        """How long a request may take at all."""

    def score(self, measure: Measure, best: float | None, start: float) -> Score:
        """Return what settings amount to.

        Args:
            measure: sends so many requests per second.
            best: the best value so far; settings that surely are worse are given up early.
            start: the rate to begin with, where a rate is looked for.
        """

    def again(self, measure: Measure, near: float) -> float:
        """Return the value of settings known to be near a value, as exactly as can be.

        What cannot do it at all has the worst there is: 0 requests per second, or `math.inf` s.
        """

    def gain(self, before: float, after: float) -> float:
        """Return by how much one value is better than another, as a factor."""

    def shown(self, value: float) -> str:
        """Return a value with its unit."""

    def __str__(self) -> str:
        """Return the goal in words."""


@dataclass(frozen=True, slots=True)
class HighestRate:
    """The most requests per second that keep a limit on latency.

    Attributes:
        slo: the limit.
    """

    slo: Condition
    direction: ClassVar[Direction] = "maximize"

    @property
    def quantile(self) -> str:
        """The quantile that the limit is on."""
        return self.slo.name

    @property
    def patience_s(self) -> float:
        """The limit."""
        return self.slo.limit

    def score(self, measure: Measure, best: float | None, start: float) -> Score:
        """Look for the highest rate."""
        points: list[Point] = []

        def measured(rate: float) -> Summary:
            summary = measure(rate)
            points.append(Point.of(summary, self.quantile, held=gate.keeps(self.slo, summary)))
            return summary

        trial = gate.trial(self.slo, measured)

        def holds(rate: float) -> bool | None:
            held = trial(rate)
            if held is False and best is not None and rate <= _HOPELESS * best:
                raise _Beaten
            return held

        try:
            rate, _ = gate.find_max(
                holds, start=start, precision=_PRECISION, confirmations=0,
                most_trials=_MOST_RUNS, growth=_GROWTH,
            )  # fmt: skip
        except _Beaten:
            # Too low, and in the right order: what was answered while the limit broke.
            return Score(min(point.rate for point in points) / 2, tuple(points), beaten=True)
        return Score(rate or None, tuple(points))

    def again(self, measure: Measure, near: float) -> float:
        """Look for the highest rate in small steps."""
        rate, _ = gate.find_max(
            lambda rate: gate.keeps(self.slo, measure(rate)), start=near, precision=_FINE_PRECISION,
            confirmations=0, most_trials=_MOST_RUNS, growth=_FINE_GROWTH,
        )  # fmt: skip
        return rate

    def gain(self, before: float, after: float) -> float:
        """Return the ratio of two rates."""
        return after / before if before else math.inf if after else 1.0

    def shown(self, value: float) -> str:
        """Return a rate with its unit."""
        return f"{value:,.4g}/s"

    def __str__(self) -> str:
        return f"highest rate with {self.slo.text}"


@dataclass(frozen=True, slots=True)
class LowestLatency:
    """The lowest latency at a rate.

    Attributes:
        rate: requests per second.
        quantile: which latency: `p99`, `mean` and so on.
    """

    rate: float
    quantile: str = "p99"
    direction: ClassVar[Direction] = "minimize"

    @property
    def patience_s(self) -> float:
        """No limit."""
        return math.inf

    def score(self, measure: Measure, best: float | None, start: float) -> Score:
        """Measure at the rate; again only if it is not surely worse."""
        del start
        first = self._point(measure(self.rate))
        if first.latency_s is None or (best is not None and first.latency_s > 2 * best):
            return Score(first.latency_s, (first,), beaten=first.latency_s is not None)
        second = self._point(measure(self.rate))
        values = [each.latency_s for each in (first, second) if each.latency_s is not None]
        return Score(sum(values) / len(values), (first, second))

    def again(self, measure: Measure, near: float) -> float:
        """Measure at the rate."""
        del near
        latency_s = self._point(measure(self.rate)).latency_s
        return math.inf if latency_s is None else latency_s

    def gain(self, before: float, after: float) -> float:
        """Return how many times lower a latency is."""
        return 1.0 if before == after else before / after

    def shown(self, value: float) -> str:
        """Return a latency with its unit."""
        return f"{value * 1e3:,.4g} ms"

    def _point(self, summary: Summary) -> Point:
        no_limit = Condition("", self.quantile, below=True, limit=math.inf, is_change=False)
        at_ease = gate.keeps(no_limit, summary)
        point = Point.of(summary, self.quantile, held=at_ease)
        return point if at_ease else replace(point, latency_s=None)

    def __str__(self) -> str:
        return f"lowest {self.quantile} at {self.rate:g}/s"


def chosen(slo: str | None, rate: float | None, quantile: str) -> Goal:
    """Return what is looked for: the highest rate that keeps a limit, or the lowest latency.

    Args:
        slo: the limit, such as `p99=50ms`.
        rate: requests per second, instead of a limit.
        quantile: which latency is to be the lowest.

    Raises:
        UsageError: both are given or neither, or they name no latency.
    """
    if (slo is None) == (rate is None):
        raise UsageError("give either --slo or --rate", remedy="such as --slo p99=50ms")
    if rate is not None:
        gate.require_quantile(quantile)
        return LowestLatency(rate, quantile)
    limit = gate.parse_slo(slo or "")
    if limit.name in {"rate", "errors"} or not limit.below or limit.is_change:
        raise UsageError(f"{slo} limits no latency", remedy="write --slo p99=50ms")
    return HighestRate(limit)


class _Beaten(Exception):
    """The settings are surely worse than others."""


def front(points: dict[int, tuple[Point, ...]]) -> list[tuple[int, Point]]:
    """Return the runs that no other run beats in rate and latency both (Pareto front).

    Args:
        points: runs by candidate; those that did not hold do not count.

    Returns:
        Candidate and run, by rising rate.
    """
    runs = [(n, each) for n, group in points.items() for each in group if each.held]
    runs.sort(key=lambda run: (-run[1].rate, run[1].latency_s or 0.0))
    found: list[tuple[int, Point]] = []
    for number, point in runs:
        if point.latency_s is not None and (
            not found or point.latency_s < (found[-1][1].latency_s or 0.0)
        ):
            found.append((number, point))
    return found[::-1]


CONFIDENCE = 0.95
LEAST_ROUNDS = 6  # fewer give no interval of the median with that confidence

Outcome = Literal["better", "worse", "unclear"]


@dataclass(frozen=True, slots=True)
class Proof:
    """Pairs of values measured right after each other, so that both had the same machine.

    Attributes:
        pairs: of each round the default's value and the other's.
        gain: by how much the other is better, as a factor: median of the rounds.
        low: lower end of its interval; it assumes nothing of how gains are distributed. None
            for too few rounds: 95 % need six.
        high: its upper end.
        outcome: `unclear` where the interval holds 1, or is not known.
    """

    pairs: tuple[tuple[float, float], ...]
    gain: float
    low: float | None
    high: float | None
    outcome: Outcome

    @classmethod
    def of(
        cls, pairs: Sequence[tuple[float, float]], gain: Callable[[float, float], float]
    ) -> Self:
        """Judge at least one pair.

        Args:
            pairs: values of both sides, by round.
            gain: by how much the second value of two is better, as a factor.
        """
        gains = sorted(gain(before, after) for before, after in pairs)
        ends = stats.interval_ranks(len(gains), 0.5, CONFIDENCE)
        if ends is None:
            return cls(tuple(pairs), median(gains), None, None, "unclear")
        low, high = (gains[end] for end in ends)
        outcome: Outcome = "better" if low > 1 else "worse" if high < 1 else "unclear"
        return cls(tuple(pairs), median(gains), low, high, outcome)
