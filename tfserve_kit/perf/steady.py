"""Where a run's warm-up ends and its steady state begins."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.perf.samples import Samples

_GROUPS = 200  # enough to place the cut within half a percent of the run
_SMALLEST_GROUP = 5


@dataclass(frozen=True, slots=True)
class Steady:
    """The part of a run that its numbers are about.

    Attributes:
        start_ns: requests due before it belong to the warm-up.
        how: how that was decided, as a half sentence.
        found: False if latency was still changing in the second half of the run.
    """

    start_ns: int
    how: str
    found: bool = True


def steady_state(samples: Samples, warmup_s: float | None) -> Steady:
    """Return where the warm-up ends.

    Detected, it ends where leaving out more would make the mean of the rest less certain: at the
    smallest marginal standard error (MSER; White, Simulation 69(6), 1997) of the medians of
    groups of requests, so that a few outliers late in the run do not pass for a change.

    Args:
        samples: successful requests.
        warmup_s: how long the warm-up was declared to be, in seconds; None to detect it.
    """
    if warmup_s is not None:
        how = f"the first {warmup_s:g} s are warm-up, as asked" if warmup_s else "no warm-up"
        return Steady(round(warmup_s * 1e9), how)
    ordered = samples[np.argsort(samples["due_ns"], kind="stable")]
    size = max(_SMALLEST_GROUP, len(ordered) // _GROUPS)
    count = len(ordered) // size
    if count < 2 * _SMALLEST_GROUP:
        return Steady(0, "too few requests to detect a warm-up")
    values = (ordered["done_ns"] - ordered["due_ns"])[: count * size] / 1e9
    cut = _least_uncertain(np.median(values.reshape(count, size), axis=1))
    if cut >= count // 2 - 1:
        return Steady(0, "no steady state was found: this is about the whole run", found=False)
    start_ns = int(ordered["due_ns"][cut * size]) if cut else 0
    how = f"the first {start_ns / 1e9:.2g} s were detected as warm-up" if cut else "no warm-up seen"
    return Steady(start_ns, how)


def _least_uncertain(values: NDArray[np.float64]) -> int:
    """Return how many values, at most half of them, to leave out at the beginning."""
    rest = np.arange(len(values), 0, -1)
    totals = np.cumsum(values[::-1])[::-1]
    squares = np.cumsum(values[::-1] ** 2)[::-1]
    spread = np.maximum(squares - totals**2 / rest, 0)
    return int(np.argmin((spread / rest**2)[: max(1, len(values) // 2)]))
