"""When requests are due: pure, no clock."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError

Arrivals = Literal["constant", "poisson"]

_SECOND_NS = 1e9
_TINY = 1e-12
_ROUNDING = 1e-9  # 0.1 s at 30/s are 3 requests, not one more


def constant(rate: float, duration_s: float) -> Iterator[float]:
    """Yield due times, evenly spaced.

    Args:
        rate: requests per second.
        duration_s: how long to go on, in seconds.

    Yields:
        Seconds since the start, rising.
    """
    for sequence in range(round(rate * duration_s)):
        yield sequence / rate


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time in which the rate changes evenly.

    Attributes:
        duration_s: how long it is, in seconds.
        first_rate: requests per second at its beginning.
        last_rate: requests per second at its end.
    """

    duration_s: float
    first_rate: float
    last_rate: float

    @property
    def requests(self) -> float:
        """How many requests are due in it, on average; no whole number."""
        return self.duration_s * (self.first_rate + self.last_rate) / 2


def ramp(first_rate: float, last_rate: float, duration_s: float) -> list[Stretch]:
    """Return a rate that rises or falls evenly; rates in requests per second."""
    return [Stretch(duration_s, first_rate, last_rate)]


def steps(rates: Iterable[float], duration_s: float) -> list[Stretch]:
    """Return rates, one after the other, each for so many seconds; 0 is a pause."""
    return [Stretch(duration_s, rate, rate) for rate in rates]


def due_ns(
    stretches: Sequence[Stretch], arrivals: Arrivals = "constant", seed: int = 0
) -> NDArray[np.int64]:
    """Return when requests are due.

    Request number n is due when n requests should have come: where the rates so far add up to n.
    Random arrivals put random numbers, one apart on average, in the place of 0, 1, 2 and so on.

    Args:
        stretches: rates over time, one after the other.
        arrivals: `constant` begins at once and spaces requests evenly; `poisson` as independent
            users would.
        seed: of `poisson`; the same seed gives the same times.

    Returns:
        int64 [requests], nanoseconds since the start, rising, before the end of the last stretch.

    Raises:
        UsageError: a duration or rate is negative, or no number.
    """
    rows = [(each.duration_s, each.first_rate, each.last_rate) for each in stretches]
    table = np.array(rows, np.float64).reshape(-1, 3)
    if not np.isfinite(table).all() or (table < 0).any():
        raise UsageError(f"{list(stretches)} has a rate or a duration that is none")
    ends = np.cumsum([each.requests for each in stretches])
    if not len(ends):
        return np.zeros(0, np.int64)
    places = _places(float(ends[-1]), arrivals, seed)
    at = np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)
    duration_s, first, last = table[at].T
    count = places - (ends - [each.requests for each in stretches])[at]
    growth = (last - first) / np.maximum(duration_s, _TINY)
    # The root of first * t + growth / 2 * t ** 2 = count that is exact for a growth of 0, too.
    root = np.sqrt(np.maximum(first * first + 2 * growth * count, 0))
    within_s = 2 * count / np.maximum(first + root, _TINY)
    starts_s = np.cumsum(table[:, 0]) - table[:, 0]
    due_s: NDArray[np.float64] = starts_s[at] + np.minimum(within_s, duration_s)
    return np.rint(due_s * _SECOND_NS).astype(np.int64)


def replay(due_s: Iterable[float], speed: float = 1.0) -> NDArray[np.int64]:
    """Return recorded due times as a schedule that begins at once.

    Args:
        due_s: times in seconds, in any order, by any clock.
        speed: 2 sends twice as fast as it was recorded.

    Returns:
        As `due_ns`.

    Raises:
        UsageError: a time is no number, or the speed is not above 0.
    """
    times_s = np.sort(np.fromiter(due_s, np.float64))
    if not speed > 0 or not np.isfinite(times_s).all():
        raise UsageError(f"cannot replay such times at speed {speed:g}")
    first_s = times_s[0] if len(times_s) else 0.0
    return np.rint((times_s - first_s) / speed * _SECOND_NS).astype(np.int64)


def _places(total: float, arrivals: Arrivals, seed: int) -> NDArray[np.float64]:
    """Return the numbers of the requests that are due within `total` of them, rising."""
    if arrivals == "constant":
        return np.arange(math.ceil(total - _ROUNDING), dtype=np.float64)
    source = np.random.default_rng(seed)
    found, last = [np.zeros(0)], 0.0
    while last < total:
        found.append(last + np.cumsum(source.exponential(size=round(total - last) + 100)))
        last = float(found[-1][-1])
    places = np.concatenate(found)
    return places[places < total]
