"""A run slice by slice of its time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.perf import intervals
from tfserve_kit.perf.samples import OK, Samples, end_ns, is_error, latency_ns, succeeded


@dataclass(frozen=True, slots=True)
class Slice:
    """What happened in one slice of a run's time.

    Attributes:
        at_s: when it began, in seconds since the start of the run.
        due: requests that were due in it.
        answered: answers that came in it.
        failed: errors that came in it.
        p50_s: median latency of the requests due in it; None without any answer.
        p99_s: their 99th percentile.
        max_s: their maximum.
    """

    at_s: float
    due: int
    answered: int
    failed: int
    p50_s: float | None
    p99_s: float | None
    max_s: float | None


def series(samples: Samples, width_s: float) -> tuple[Slice, ...]:
    """Return what happened in each slice of a run, from its start to its last answer.

    Args:
        samples: all of a run.
        width_s: length of a slice, in seconds.
    """
    width_ns = round(width_s * 1e9)
    count = int(end_ns(samples) // width_ns) + 1
    good = succeeded(samples)
    due, done = samples["due_ns"] // width_ns, samples["done_ns"] // width_ns
    all_bins = (due, done[samples["status"] == OK], done[is_error(samples)])
    numbers = [np.bincount(bins, minlength=count).tolist() for bins in all_bins]
    when = good["due_ns"] // width_ns
    order = np.lexsort((latency_ns(good), when))
    groups = np.split(latency_ns(good)[order] / 1e9, np.searchsorted(when[order], range(1, count)))
    rows = zip(*numbers, groups, strict=True)
    return tuple(
        Slice(i * width_s, due, answered, failed, *_middle_and_ends(group))
        for i, (due, answered, failed, group) in enumerate(rows)
    )


def _middle_and_ends(
    values: NDArray[np.float64],
) -> tuple[float | None, float | None, float | None]:
    if not len(values):
        return None, None, None
    p50, p99 = (float(values[intervals.rank(len(values), q)]) for q in (0.5, 0.99))
    return p50, p99, float(values[-1])
