"""Runs judged: conditions such as `p99<50ms`, the highest rate that meets one, differences.

Requests that follow each other resemble each other: a pause of the server makes hundreds of them
slow at once. So whole blocks of time are drawn anew, not requests (block bootstrap; Künsch, Annals
of Statistics 17(3), 1989), and the spread between the draws says how sure a difference is.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError
from tfserve_kit.perf import stats
from tfserve_kit.perf.samples import Run, Samples, latency_ns, succeeded
from tfserve_kit.perf.stats import QUANTILES, Summary, measured, summarize

_NAME = r"(?P<name>mean|max|p\d+(?:\.\d+)?|rate|errors)"
_FORM = re.compile(
    _NAME + r"\s*(?P<sign>[<>])\s*(?P<number>[+-]?\d+(?:\.\d+)?)(?P<unit>us|ms|s|%|)"
)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_EXAMPLES = "write p99<50ms, rate>1000 or errors<0.1%; against another run p99<+5% or rate>-3%"

# What a server must keep besides the limit on latency.
_MOST_ERRORS = 0.001
_LEAST_ANSWERED = 0.95


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition.

    Attributes:
        text: as it was written.
        name: `mean`, `max`, a quantile such as `p99`, `rate` (answers per second) or `errors`.
        below: whether the value must lie below the limit; above it otherwise.
        limit: seconds, answers per second, or a share.
        is_change: whether the limit is of the change from another run, as a share of that one.
    """

    text: str
    name: str
    below: bool
    limit: float
    is_change: bool

    def holds(self, value: float | None) -> bool:
        """Say whether a value meets the condition; an unknown one does not."""
        return value is not None and (value < self.limit if self.below else value > self.limit)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate made of a run.

    Attributes:
        gate: the condition.
        value: what it was held against, in the unit of its limit; None where it is unknown.
        passed: whether it was met.
        why: what a reader must know besides.
    """

    gate: Condition
    value: float | None
    passed: bool
    why: str = ""

    def __str__(self) -> str:
        word = "passed" if self.passed else "FAILED"
        reason = f" ({self.why})" if self.why else ""
        return f"{word}: {self.gate.text}, it is {_shown(self.gate, self.value)}{reason}"


def parse(text: str) -> Condition:
    """Return the condition that a text means.

    Raises:
        UsageError: it means none.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is not a valid condition", remedy=_EXAMPLES)
    name, unit, number = found["name"], found["unit"], found["number"]
    if name not in {"rate", "errors"}:
        require_quantile(name)
    signed = number[0] in "+-"
    wanted = "%" if signed or name == "errors" else "" if name == "rate" else "us, ms or s"
    if unit not in wanted.replace(",", "").replace("or ", "").split(" "):
        raise UsageError(f"{text!r} needs another unit: {wanted or 'none'}", remedy=_EXAMPLES)
    if signed and name == "errors":
        raise UsageError(f"{text!r} compares errors", remedy="give their share: errors<0.1%")
    scale = 0.01 if unit == "%" else _SECONDS.get(unit, 1.0)
    return Condition(text.strip(), name, found["sign"] == "<", float(number) * scale, signed)


def parse_slo(text: str) -> Condition:
    """Return the limit that a text such as `p99=50ms` means; see `parse`."""
    try:
        return parse(text.replace("=", "<"))
    except UsageError as error:
        said = error.message.replace(repr(text.replace("=", "<")), repr(text))
        raise UsageError(said, remedy=error.remedy) from error


def require_quantile(name: str) -> None:
    """Refuse a quantile that runs are not asked for; `mean` and `max` count as such.

    Raises:
        UsageError: it is none of them.
    """
    known = ["mean", "max", *(f"p{q * 100:g}" for q in QUANTILES)]
    if name not in known:
        raise UsageError(f"unknown quantile {name}", remedy=f"use one of {', '.join(known)}")


def value_of(summary: Summary, name: str) -> float | None:
    """Return a number of a run by its name: seconds, answers per second, or a share."""
    if name == "rate":
        return summary.achieved_rate
    if name == "errors":
        return summary.error_share
    return summary.latency.value_s(name)


def judge(gate: Condition, after: Summary, before: Summary | None = None) -> Verdict:
    """Hold a condition against a run; a run that says nothing meets none.

    Args:
        gate: the condition.
        after: the run.
        before: what it is compared with, for a condition on the change.

    Raises:
        UsageError: a change is asked for and there is nothing to compare with.
    """
    value = value_of(after, gate.name)
    if gate.is_change:
        if before is None:
            raise UsageError(
                f"{gate.text!r} compares two runs", remedy="use it with `tfkit perf compare`"
            )
        base = value_of(before, gate.name)
        value = None if value is None or not base else value / base - 1
    for run in (before, after):
        if run is not None and run.invalid:
            return Verdict(gate, value, False, f"INVALID: {run.invalid}")
    unknown = "" if value is not None else "too few requests"
    return Verdict(gate, value, gate.holds(value), unknown)


def keeps(slo: Condition, summary: Summary) -> bool:
    """Say whether a server kept a limit on latency at the rate that was offered to it.

    It did if the limit holds, at most one request of a thousand failed, and answers came at no
    less than 95 % of the rate of requests.
    """
    offered, achieved = summary.offered_rate, summary.achieved_rate
    if offered is None or achieved is None or summary.error_share > _MOST_ERRORS:
        return False
    return achieved >= _LEAST_ANSWERED * offered and judge(slo, summary).passed


def trial(
    slo: Condition, measure: Callable[[float], Summary | None]
) -> Callable[[float], bool | None]:
    """Return what tries a rate for `find_max`.

    Two INVALID runs one after the other end the search: a generator that lags twice lags at any
    rate.

    Args:
        slo: what a server has to keep; see `keeps`.
        measure: sends so many requests per second; None ends the search.
    """
    invalid: list[bool] = []

    def holds(rate: float) -> bool | None:
        summary = measure(rate)
        if summary is None:
            return None
        invalid.append(bool(summary.invalid))
        return None if invalid[-2:] == [True, True] else keeps(slo, summary)

    return holds


def _shown(gate: Condition, value: float | None) -> str:
    if value is None:
        return "unknown"
    if gate.is_change:
        return f"{value:+.1%}"
    if gate.name == "errors":
        return f"{value:.3%}"
    return f"{value:,.1f}/s" if gate.name == "rate" else f"{value * 1e3:.3f} ms"


# A slow rate takes long to try: a start that is so far off deserves another command.
_MOST_STEPS_DOWN = 6


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate that was tried.

    Attributes:
        rate: requests per second.
        held: whether the server kept what was asked of it.
    """

    rate: float
    held: bool


def find_max(
    holds: Callable[[float], bool | None],
    *,
    start: float,
    precision: float = 0.05,
    confirmations: int = 2,
    most_trials: int = 30,
    growth: float = 2.0,
) -> tuple[float, list[Trial]]:
    """Return the highest rate that holds, and every trial on the way.

    The rate doubles until one fails, or halves until one holds (or changes by another factor);
    then the gap between the two is halved until it is small. The last rate must hold
    `confirmations` times more: where it does not, it was luck, and the search goes on below it.

    Args:
        holds: tries a rate, in requests per second; None if that could not be done, which ends
            the search.
        start: the first rate.
        precision: how far the answer may lie below a rate that failed, as a share.
        confirmations: how often the answer is tried again.
        most_trials: how many trials there may be.
        growth: by how much the rate grows or shrinks before there is a gap.

    Returns:
        The rate, 0.0 if none held every time; and the trials in order. Where there were too many of
        them, or the search was ended, the rate is the highest that never failed, and may not have
        been confirmed.
    """
    search = _Search(holds, growth, most_trials)
    try:
        return search.settled(start, precision, confirmations), search.trials
    except _Ended:
        return _highest(search.trials), search.trials


def _highest(trials: list[Trial]) -> float:
    """Return the highest rate that never failed; 0.0 if there is none."""
    failed = {trial.rate for trial in trials if not trial.held}
    return max((trial.rate for trial in trials if trial.rate not in failed), default=0.0)


class _Ended(Exception):
    """There is nothing more to try, or there were enough trials."""


class _Search:
    """One search; its methods raise `_Ended`."""

    def __init__(self, holds: Callable[[float], bool | None], growth: float, most: int) -> None:
        self._holds, self._growth, self._most = holds, growth, most
        self.trials: list[Trial] = []

    def settled(self, start: float, precision: float, confirmations: int) -> float:
        """Return the highest rate that holds, each time it is tried."""
        low, high = self._bracket(start)
        while low >= start / self._growth**_MOST_STEPS_DOWN:
            if high > low * (1 + precision):
                middle = (low + high) / 2
                low, high = (middle, high) if self._held(middle) else (low, middle)
            elif all(self._held(low) for _ in range(confirmations)):
                return low
            else:
                low, high = self._below(low), low
        return _highest(self.trials)

    def _held(self, rate: float) -> bool:
        answer = self._holds(rate) if len(self.trials) < self._most else None
        if answer is None:
            raise _Ended
        self.trials.append(Trial(rate, answer))
        return answer

    def _bracket(self, rate: float) -> tuple[float, float]:
        """Return a rate that held and one above it that did not; 0 where none held."""
        if self._held(rate):
            while self._held(self._growth * rate):
                rate *= self._growth
            return rate, self._growth * rate
        for _ in range(_MOST_STEPS_DOWN):
            if self._held(rate / self._growth):
                return rate / self._growth, rate
            rate /= self._growth
        return 0.0, rate

    def _below(self, rate: float) -> float:
        """Return the next lower rate that never failed, or half the rate where there is none."""
        return _highest([trial for trial in self.trials if trial.rate < rate]) or rate / 2


CHANGE_CONFIDENCE = 0.95
# A change that surely is smaller than this is none.
_SAME_SHARE = 0.05

_DRAWS = 1000
_BLOCKS = 40
_FEWEST_BLOCKS = 8
_REQUESTS_IN_A_BLOCK = 5
# Single values at the slow end, where p99.9 stands, and groups of equal size below.
_GRID = 1000

Outcome = Literal["better", "worse", "equal", "unclear"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of two runs; times in seconds, rates per second.

    Attributes:
        name: `p50` and so on, or `rate`.
        before: of the first run.
        after: of the second run.
        change: from the first to the second, as a share of the first.
        low: lower end of the change's interval; None where the runs are too short for one.
        high: its upper end.
        outcome: `better` or `worse` if the interval excludes no change at all, `equal` if it lies
            within `_SAME_SHARE` of it, else `unclear`.
    """

    name: str
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        before: the first run.
        after: the second run.
        differences: for each quantile that both runs have, and the rate.
        notes: what differs besides, and what makes the comparison doubtful.
    """

    before: Summary
    after: Summary
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare(before: Run, after: Run, *, seed: int = 0) -> Comparison:
    """Compare the steady states of two runs.

    Args:
        before: what was.
        after: what is held against it.
        seed: of the draws.
    """
    summaries = summarize(before), summarize(after)
    source = np.random.default_rng(seed)
    draws = [_draws(run, source) for run in (before, after)]
    found: list[Difference] = []
    for name in ("p50", "p75", "p90", "p95", "p99", "p99.9", "p99.99", "rate"):
        old, new = (value_of(summary, name) for summary in summaries)
        if old and new is not None:
            found.append(_difference(name, old, new, [each.get(name) for each in draws]))
    return Comparison(*summaries, tuple(found), tuple(_notes(before, after, *summaries)))


def _difference(name: str, old: float, new: float, draws: list[Floats | None]) -> Difference:
    first, second = draws
    if first is None or second is None:
        return Difference(name, old, new, new / old - 1, None, None, "unclear")
    tail = (1 - CHANGE_CONFIDENCE) / 2
    low, high = (float(end) for end in np.quantile(second / first - 1, [tail, 1 - tail]))
    outcome: Outcome = "unclear"
    if low > 0 or high < 0:
        outcome = "better" if (low > 0) == (name == "rate") else "worse"
    elif low > -_SAME_SHARE and high < _SAME_SHARE:
        outcome = "equal"
    return Difference(name, old, new, new / old - 1, low, high, outcome)


def _draws(run: Run, source: np.random.Generator) -> dict[str, Floats]:
    """Return `_DRAWS` values of each number, from blocks of the run drawn with repetition."""
    _, samples, _ = measured(run)
    good = succeeded(samples)
    count = min(_BLOCKS, len(good) // _REQUESTS_IN_A_BLOCK)
    if count < _FEWEST_BLOCKS:
        return {}
    edges = np.linspace(good["due_ns"].min(), good["due_ns"].max() + 1, count + 1)
    block = np.searchsorted(edges, good["due_ns"], side="right") - 1
    chosen = source.multinomial(count, [1 / count] * count, size=_DRAWS)
    drawn = {"rate": _rates(good, edges, chosen)}
    grid, cells = _cells(latency_ns(good) / 1e9)
    table = np.zeros((count, len(grid)))
    np.add.at(table, (block, cells), 1)
    at_most = np.cumsum(chosen @ table, axis=1)
    for q in QUANTILES:
        if stats.values_needed(q) <= len(good):
            place = np.argmax(at_most >= q * at_most[:, -1:], axis=1)
            drawn[f"p{q * 100:g}"] = grid[place]
    return drawn


def _rates(good: Samples, edges: Floats, chosen: NDArray[np.int64]) -> Floats:
    """Return the answers per block in each draw; blocks are equally long, so this is a rate."""
    answered, _ = np.histogram(good["done_ns"], edges)
    totals: Floats = (chosen @ answered) / (edges[1] - edges[0])
    return totals


def _cells(values: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Return a grid of some of the values, denser at the slow end, and each value's place in it."""
    ordered, last = np.sort(values), len(values) - 1
    tail = np.arange(max(0, last - _GRID), last + 1)
    chosen = np.union1d(np.linspace(0, last, _GRID).astype(np.int64), tail)
    grid = np.unique(ordered[chosen])
    return grid, np.searchsorted(grid, values)


def _notes(before: Run, after: Run, *summaries: Summary) -> Iterator[str]:
    for which, summary in zip(("first", "second"), summaries, strict=True):
        if summary.invalid:
            yield f"the {which} run is INVALID: {summary.invalid}"
    for what, one, other in (
        ("setting", before.settings, after.settings),
        ("environment", before.environment, after.environment),
    ):
        for key in sorted((one.keys() | other.keys()) - {"url", "load_before"}):
            if one.get(key) != other.get(key):
                yield f"{what} {key} differs: {one.get(key)}, {other.get(key)}"
