"""Whether one run differs from another, or whether both were drawn from the same luck.

Requests that follow each other resemble each other: a pause of the server makes hundreds of them
slow at once. So whole blocks of time are drawn anew, not requests (block bootstrap; Künsch, Annals
of Statistics 17(3), 1989), and the spread between the draws says how sure a difference is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.perf import stats
from tfserve_kit.perf.gate import value_of
from tfserve_kit.perf.samples import Run, Samples, latency_ns, succeeded
from tfserve_kit.perf.stats import QUANTILES, Summary, measured, summarize

CONFIDENCE = 0.95
# A change that surely is smaller than this is none.
SAME_SHARE = 0.05

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
            within `SAME_SHARE` of it, else `unclear`.
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
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.quantile(second / first - 1, [tail, 1 - tail]))
    outcome: Outcome = "unclear"
    if low > 0 or high < 0:
        outcome = "better" if (low > 0) == (name == "rate") else "worse"
    elif low > -SAME_SHARE and high < SAME_SHARE:
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
