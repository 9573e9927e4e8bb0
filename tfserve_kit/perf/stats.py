"""Numbers from samples: pure, exact, nothing dropped.

Latency counts from due to done, service from sent to done. Both are of answers that succeeded;
requests without an answer at the end count as slower than every answer, errors are counted apart.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.perf import intervals
from tfserve_kit.perf.samples import (
    CANCELLED_AT_END,
    Nanoseconds,
    Run,
    Samples,
    end_ns,
    is_error,
    lag_ns,
    latency_ns,
    service_ns,
    status_name,
    succeeded,
)
from tfserve_kit.perf.series import Slice, series
from tfserve_kit.perf.steady import Steady, steady_state

QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)

# A generator later than this, and later than a tenth of what it measures, measures itself.
LAG_FLOOR_S = 0.001
LAG_SHARE = 0.1
# From this share on, what is said of the rest needs a word of warning.
_NOTEWORTHY = 0.01
_LOCAL = ("//localhost", "//127.", "//[::1]", "unix:")

TimesOf = Callable[[Samples], Nanoseconds]


@dataclass(frozen=True, slots=True)
class Quantile:
    """One quantile with its confidence interval; times in seconds.

    Attributes:
        q: the share of requests that took no longer.
        value_s: None where too few requests were measured, or too many had no answer.
        low_s: lower end of the interval.
        high_s: upper end; None where it lies among requests without an answer.
        needs: how many requests the interval needs at least.
    """

    q: float
    value_s: float | None
    low_s: float | None
    high_s: float | None
    needs: int

    @property
    def name(self) -> str:
        """Its short name: `p50`, `p99.9`."""
        return f"p{self.q * 100:g}"


@dataclass(frozen=True, slots=True)
class Distribution:
    """How long requests took; times in seconds.

    Attributes:
        count: answers that succeeded.
        unfinished: requests without an answer at the end; each counts as slower than all others.
        mean_s: of the answers; None without any.
        quantiles: one for each of `QUANTILES`.
        max_s: of the answers; None without any.
    """

    count: int
    unfinished: int
    mean_s: float | None
    quantiles: tuple[Quantile, ...]
    max_s: float | None

    def value_s(self, name: str) -> float | None:
        """Return `mean`, `max` or a quantile by its name, in seconds."""
        ends = {"mean": self.mean_s, "max": self.max_s}
        return (ends | {each.name: each.value_s for each in self.quantiles})[name]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run amounts to: everything but `series` and `warmup` is of its steady state.

    Attributes:
        loop: `open` or `closed`.
        requests: how many were due.
        steady: which part of the run this is about.
        errors: failed requests by name of their status.
        poisoned: invalid requests sent on purpose, by name of their status; counted nowhere else.
        offered_rate: requests due per second.
        achieved_rate: successful answers per second.
        latency: due to done.
        service: sent to done.
        first_byte: sent to the first byte of the answer; None where the sender cannot tell.
        warmup: latency before the steady state; None if that is the whole run.
        lag_p99_s: how late the generator itself was, 99th percentile.
        lag_max_s: the same, at worst.
        received_bytes_per_s: bodies of answers.
        sent_bytes_per_s: bodies of requests.
        width_s: how long each slice of the series is.
        series: the whole run, slice by slice.
        notes: what a reader must know to understand the numbers.
        invalid: why the run says nothing about the server; empty if it does.
        remedy: what to do about that.
    """

    loop: str
    requests: int
    steady: Steady
    errors: Mapping[str, int]
    poisoned: Mapping[str, int]
    offered_rate: float | None
    achieved_rate: float | None
    latency: Distribution
    service: Distribution
    first_byte: Distribution | None
    warmup: Distribution | None
    lag_p99_s: float
    lag_max_s: float
    received_bytes_per_s: float | None
    sent_bytes_per_s: float | None
    width_s: float
    series: tuple[Slice, ...]
    notes: tuple[str, ...]
    invalid: str
    remedy: str

    @property
    def error_share(self) -> float:
        """Failed requests by all requests."""
        return sum(self.errors.values()) / self.requests if self.requests else 0.0


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that at least a share `q` of all values does not exceed.

    Args:
        values: sorted, not empty.
        q: 0 < q <= 1.
    """
    return values[intervals.rank(len(values), q)]


def measured(run: Run) -> tuple[Samples, Samples, Steady]:
    """Return a run's ordinary samples, those of its steady state, and which part that is.

    Poisoned requests are in neither.
    """
    ordinary = run.samples[~_poisoned(run)]
    steady = steady_state(succeeded(ordinary), run.settings.get("warmup_s"))
    return ordinary, ordinary[ordinary["due_ns"] >= steady.start_ns], steady


def summarize(run: Run) -> Summary:
    """Return the summary of a run of at least one request.

    `settings` may hold `loop` (`open` or `closed`), `warmup_s` (left out: detected),
    `poison_every` and `url`; see `cli/perf.py`.
    """
    ordinary, samples, steady = measured(run)
    early = ordinary[ordinary["due_ns"] < steady.start_ns]
    loop = str(run.settings.get("loop", "open"))
    latency = distribution(samples, latency_ns)
    lag_p99_s, lag_max_s = _lag_s(samples)
    invalid, remedy = _invalid(lag_p99_s, latency)
    window = _window_ns(ordinary, samples)
    width_s = 1.0 if end_ns(ordinary) > 20e9 else 0.1  # noqa: PLR2004 (a plot of 20 to 200 dots)
    return Summary(
        loop=loop,
        requests=len(samples),
        steady=steady,
        errors=_errors(samples),
        poisoned=_by_status(run.samples[_poisoned(run)]),
        offered_rate=_offered_rate(samples),
        achieved_rate=_per_second(ordinary, window, None),
        latency=latency,
        service=distribution(samples, service_ns),
        first_byte=_first_byte(samples),
        warmup=distribution(early, latency_ns) if len(early) else None,
        lag_p99_s=lag_p99_s,
        lag_max_s=lag_max_s,
        received_bytes_per_s=_per_second(ordinary, window, "received_bytes"),
        sent_bytes_per_s=_per_second(ordinary, window, "sent_bytes"),
        width_s=width_s,
        series=series(ordinary, width_s),
        notes=tuple(_notes(loop, samples, steady, str(run.settings.get("url", "")))),
        invalid=invalid,
        remedy=remedy,
    )


def distribution(samples: Samples, times_ns: TimesOf) -> Distribution:
    """Return how long requests took.

    Args:
        samples: any part of a run.
        times_ns: what to measure: `latency_ns` or `service_ns`.
    """
    values = np.sort(times_ns(succeeded(samples))) / 1e9
    unfinished = int(np.count_nonzero(samples["status"] == CANCELLED_AT_END))
    return Distribution(
        count=len(values),
        unfinished=unfinished,
        mean_s=float(values.mean()) if len(values) else None,
        quantiles=tuple(_quantile(values, unfinished, q) for q in QUANTILES),
        max_s=float(values[-1]) if len(values) else None,
    )


def _quantile(values: NDArray[np.float64], unfinished: int, q: float) -> Quantile:
    """Return a quantile of sorted values and of others larger than all of them."""
    count = len(values) + unfinished
    ends, needs = intervals.ranks(count, q), intervals.needed(q)
    if ends is None or intervals.rank(count, q) >= len(values):
        return Quantile(q, None, None, None, needs)
    low, high = ends
    return Quantile(
        q,
        value_s=float(values[intervals.rank(count, q)]),
        low_s=float(values[low]),
        high_s=float(values[high]) if high < len(values) else None,
        needs=needs,
    )


def _poisoned(run: Run) -> NDArray[np.bool_]:
    every = int(run.settings.get("poison_every") or 0)
    if not every:
        return np.zeros(len(run.samples), bool)
    mask: NDArray[np.bool_] = run.samples["sequence"] % every == every - 1
    return mask


def _by_status(samples: Samples) -> dict[str, int]:
    counts = Counter(samples["status"].tolist())
    return {status_name(code): count for code, count in sorted(counts.items())}


def _errors(samples: Samples) -> dict[str, int]:
    return _by_status(samples[is_error(samples)])


def _offered_rate(samples: Samples) -> float | None:
    if len(samples) < 2:  # noqa: PLR2004 (a rate needs a gap)
        return None
    span_s = int(np.ptp(samples["due_ns"])) / 1e9
    return (len(samples) - 1) / span_s if span_s else None


def _window_ns(ordinary: Samples, samples: Samples) -> tuple[int, int]:
    """Return between which times answers count for rates, from the first to the last request due.

    Before the first answer nothing could be counted, and after the last request the server only
    works off what is left.
    """
    good = succeeded(ordinary)
    if not len(good) or not len(samples):
        return 0, 0
    begin = max(int(samples["due_ns"].min()), int(good["done_ns"].min()))
    dues = samples["due_ns"]
    end = int(dues.max()) + int(np.ptp(dues)) // max(1, len(dues) - 1)
    return (begin, end) if end > begin else (int(dues.min()), end_ns(good) + 1)


def _per_second(ordinary: Samples, window_ns: tuple[int, int], column: str | None) -> float | None:
    """Return successful answers, or the sum of one of their columns, per second of the window."""
    begin, end = window_ns
    if end <= begin:
        return None
    good = succeeded(ordinary)
    inside = good[(good["done_ns"] >= begin) & (good["done_ns"] < end)]
    amount = int(inside[column].sum(dtype=np.int64)) if column else len(inside)
    return amount * 1e9 / (end - begin)


def _first_byte(samples: Samples) -> Distribution | None:
    good = succeeded(samples)
    if np.array_equal(good["first_byte_ns"], good["done_ns"]):
        return None
    return distribution(samples, lambda some: some["first_byte_ns"] - some["sent_ns"])


def _lag_s(samples: Samples) -> tuple[float, float]:
    if not len(samples):
        return 0.0, 0.0
    lags = np.sort(lag_ns(samples)) / 1e9
    return float(lags[intervals.rank(len(lags), 0.99)]), float(lags[-1])


def _invalid(lag_p99_s: float, latency: Distribution) -> tuple[str, str]:
    if latency.mean_s is None:
        return (
            "no request succeeded",
            "look at the errors, and try the request with `tfkit request`",
        )
    if lag_p99_s > max(LAG_FLOOR_S, LAG_SHARE * (latency.value_s("p50") or latency.mean_s)):
        return (
            f"the generator itself was {lag_p99_s * 1e3:.1f} ms late (99th percentile)",
            "send less, give it more --processes, or measure from a machine with free cores",
        )
    return "", ""


def _notes(loop: str, samples: Samples, steady: Steady, url: str) -> Iterator[str]:
    if loop == "closed":
        yield "coordinated: each request waited for an answer; latency counts from a free slot"
    else:
        waited = float(np.mean(samples["free_ns"] > samples["due_ns"])) if len(samples) else 0
        if waited > _NOTEWORTHY:
            yield (
                f"{waited:.0%} of the requests waited for one in flight to end: the server saw "
                "less than the offered rate, latency counts the wait"
            )
    if not steady.found:
        yield "latency was still changing: measure for longer, or say --warmup"
    failed = int(np.count_nonzero(is_error(samples)))
    if failed > _NOTEWORTHY * len(samples):
        yield f"{failed / len(samples):.1%} of the requests failed; latencies are of the others"
    if unfinished := int(np.count_nonzero(samples["status"] == CANCELLED_AT_END)):
        yield f"{unfinished} requests had no answer at the end, and count as slower than all others"
    if url.startswith("grpcs:"):
        yield "over TLS grpcio sends, which is slower than the sender for plain gRPC"
    if any(part in url for part in _LOCAL):
        yield "generator and server shared one machine, and so its processors"
