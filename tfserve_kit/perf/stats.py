"""Numbers from samples: pure, exact, nothing dropped.

Latency counts from due to done, service from sent to done. Both are of answers that succeeded;
requests without an answer at the end count as slower than every answer, errors are counted apart.

Confidence intervals of quantiles assume nothing of the distribution: how many of `n` independent
values lie below the true quantile `q` is binomial(n, q), so two of the sorted values enclose it
with a probability that can be computed (see David and Nagaraja, Order Statistics, 3rd edition,
section 7.1).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.perf.samples import (
    CANCELLED_AT_END,
    OK,
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

_GROUPS = 200  # enough to place the cut within half a percent of the run
_SMALLEST_GROUP = 5


@dataclass(frozen=True, slots=True)
class _Steady:
    """The part of a run that its numbers are about.

    Attributes:
        start_ns: requests due before it belong to the warm-up.
        how: how that was decided, as a half sentence.
        found: False if latency was still changing in the second half of the run.
    """

    start_ns: int
    how: str
    found: bool = True


def _steady_state(samples: Samples, warmup_s: float | None) -> _Steady:
    """Return where the warm-up ends.

    Detected, it ends where leaving out more would make the mean of the rest less certain: at the
    smallest marginal standard error (MSER; White, Simulation 69(6), 1997) of the medians of
    groups of requests, so that a few outliers late in the run do not pass for a change.

    Args:
        samples: successful requests.
        warmup_s: how long the warm-up was declared to be, in seconds; None to detect it.
    """
    if warmup_s is not None:
        how = f"the first {warmup_s:g} s are warm-up, as requested" if warmup_s else "no warm-up"
        return _Steady(round(warmup_s * 1e9), how)
    ordered = samples[np.argsort(samples["due_ns"], kind="stable")]
    size = max(_SMALLEST_GROUP, len(ordered) // _GROUPS)
    count = len(ordered) // size
    if count < 2 * _SMALLEST_GROUP:
        return _Steady(0, "too few requests to detect a warm-up")
    values = (ordered["done_ns"] - ordered["due_ns"])[: count * size] / 1e9
    cut = _least_uncertain(np.median(values.reshape(count, size), axis=1))
    if cut >= count // 2 - 1:
        return _Steady(0, "no steady state was found: this is about the whole run", found=False)
    start_ns = int(ordered["due_ns"][cut * size]) if cut else 0
    how = f"the first {start_ns / 1e9:.2g} s were detected as warm-up" if cut else "no warm-up seen"
    return _Steady(start_ns, how)


def _least_uncertain(values: NDArray[np.float64]) -> int:
    """Return how many values, at most half of them, to leave out at the beginning."""
    rest = np.arange(len(values), 0, -1)
    totals = np.cumsum(values[::-1])[::-1]
    squares = np.cumsum(values[::-1] ** 2)[::-1]
    spread = np.maximum(squares - totals**2 / rest, 0)
    return int(np.argmin((spread / rest**2)[: max(1, len(values) // 2)]))


# Seven quantiles stand side by side in a report: at 99 % each, seldom is any of them wrong.
CONFIDENCE = 0.99

_DEVIATIONS = 12  # farther from its mean, a binomial has no weight that a float could hold


def rank(count: int, q: float) -> int:
    """Return where a quantile stands among `count` sorted values, from 0."""
    return max(0, math.ceil(q * count) - 1)


def values_needed(q: float, confidence: float = CONFIDENCE) -> int:
    """Return how many values a quantile's interval needs at least."""
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(q, 1 - q)))


def interval_ranks(count: int, q: float, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Return which two of the sorted values enclose a quantile.

    Args:
        count: number of values, independent of each other.
        q: 0 < q < 1.
        confidence: with which probability, at least.

    Returns:
        Places of both ends, from 0; None if there are too few values.
    """
    if count < values_needed(q, confidence):
        return None
    spread = _DEVIATIONS * math.sqrt(count * q * (1 - q)) + 2 * _DEVIATIONS
    first, last = max(0, math.floor(count * q - spread)), min(count, math.ceil(count * q + spread))
    below = np.arange(first, last)
    # Each probability by the one before it, so that no factorial overflows.
    steps = np.log((count - below) / (below + 1.0) * (q / (1 - q)))
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    weights = np.exp(logs - logs.max())
    at_most = np.cumsum(weights) / weights.sum()
    tail = (1 - confidence) / 2
    low = first + int(np.searchsorted(at_most, tail, side="right")) - 1
    high = first + int(np.searchsorted(at_most, 1 - tail))
    return (low, high) if low >= 0 and high < count else None


@dataclass(frozen=True, slots=True)
class _Slice:
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


def series(samples: Samples, width_s: float) -> tuple[_Slice, ...]:
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
        _Slice(i * width_s, due, answered, failed, *_middle_and_ends(group))
        for i, (due, answered, failed, group) in enumerate(rows)
    )


def _middle_and_ends(
    values: NDArray[np.float64],
) -> tuple[float | None, float | None, float | None]:
    if not len(values):
        return None, None, None
    p50, p99 = (float(values[rank(len(values), q)]) for q in (0.5, 0.99))
    return p50, p99, float(values[-1])


QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)

# A generator later than this, and later than a tenth of what it measures, measures itself.
_LAG_FLOOR_S = 0.001
_LAG_SHARE = 0.1
# From this share on, what is said of the rest needs a word of warning.
_NOTEWORTHY = 0.01
_LOCAL = ("//localhost", "//127.", "//[::1]", "unix:")

_TimesOf = Callable[[Samples], Nanoseconds]


@dataclass(frozen=True, slots=True)
class _Quantile:
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
    quantiles: tuple[_Quantile, ...]
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
    steady: _Steady
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
    series: tuple[_Slice, ...]
    notes: tuple[str, ...]
    invalid: str
    remedy: str

    @property
    def error_share(self) -> float:
        """Failed requests by all requests."""
        return sum(self.errors.values()) / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class _Part:
    """What went to one server of a fleet, in the steady state.

    Attributes:
        url: its address.
        requests: how many.
        errors: failed requests by name of their status.
        latency: due to done.
    """

    url: str
    requests: int
    errors: Mapping[str, int]
    latency: Distribution


@dataclass(frozen=True, slots=True)
class NamedRun:
    """A run, what it amounts to, and a name to tell it from others."""

    name: str
    run: Run
    summary: Summary


def share_of(name: str) -> float | None:
    """Return the share that a quantile's name means: `p99` is 0.99; None for `mean` and `max`."""
    return float(name[1:]) / 100 if name[0] == "p" else None


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that at least a share `q` of all values does not exceed.

    Args:
        values: sorted, not empty.
        q: 0 < q <= 1.
    """
    return values[rank(len(values), q)]


def measured(run: Run) -> tuple[Samples, Samples, _Steady]:
    """Return a run's ordinary samples, those of its steady state, and which part that is.

    Poisoned requests are in neither.
    """
    ordinary = run.samples[~_poisoned(run)]
    steady = _steady_state(succeeded(ordinary), run.settings.get("warmup_s"))
    return ordinary, ordinary[ordinary["due_ns"] >= steady.start_ns], steady


def summarize(run: Run) -> Summary:
    """Return the summary of a run of at least one request.

    `settings` may hold `loop` (`open` or `closed`), `warmup_s` (left out: detected),
    `poison_every` and `url`; see `cli/perf.py`.
    """
    ordinary, samples, steady = measured(run)
    early = ordinary[ordinary["due_ns"] < steady.start_ns]
    loop = str(run.settings.get("loop", "open"))
    latency = _distribution(samples, latency_ns)
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
        service=_distribution(samples, service_ns),
        first_byte=_first_byte(samples),
        warmup=_distribution(early, latency_ns) if len(early) else None,
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


def by_replica(run: Run) -> list[_Part]:
    """Return what went to each server of a fleet; nothing for one server."""
    urls = str(run.settings.get("url", "")).split(",")
    if len(urls) == 1:
        return []
    _, samples, _ = measured(run)
    parts = [(url, samples[samples["replica"] == at]) for at, url in enumerate(urls)]
    return [
        _Part(url, len(mine), _errors(mine), _distribution(mine, latency_ns)) for url, mine in parts
    ]


def _distribution(samples: Samples, times_ns: _TimesOf) -> Distribution:
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


def _quantile(values: NDArray[np.float64], unfinished: int, q: float) -> _Quantile:
    """Return a quantile of sorted values and of others larger than all of them."""
    count = len(values) + unfinished
    ends, needs = interval_ranks(count, q), values_needed(q)
    if ends is None or rank(count, q) >= len(values):
        return _Quantile(q, None, None, None, needs)
    low, high = ends
    return _Quantile(
        q,
        value_s=float(values[rank(count, q)]),
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
    return _distribution(samples, lambda some: some["first_byte_ns"] - some["sent_ns"])


def _lag_s(samples: Samples) -> tuple[float, float]:
    if not len(samples):
        return 0.0, 0.0
    lags = np.sort(lag_ns(samples)) / 1e9
    return float(lags[rank(len(lags), 0.99)]), float(lags[-1])


def _invalid(lag_p99_s: float, latency: Distribution) -> tuple[str, str]:
    if latency.mean_s is None:
        return (
            "no request succeeded",
            "look at the errors, and try the request with `tfkit request`",
        )
    if lag_p99_s > max(_LAG_FLOOR_S, _LAG_SHARE * (latency.value_s("p50") or latency.mean_s)):
        late = f"the load generator itself was {lag_p99_s * 1e3:.1f} ms late (99th percentile)"
        return (
            f"{late}, so the figures say nothing about the server",
            "lower the rate, raise --processes, or use a machine with free cores",
        )
    return "", ""


def _notes(loop: str, samples: Samples, steady: _Steady, url: str) -> Iterator[str]:
    if loop == "closed":
        yield (
            "coordinated: each request waited for an answer, so a stall of the server delays those "
            "behind it, too; latency counts from a free slot on (change: --rate)"
        )
    else:
        waited = float(np.mean(samples["free_ns"] > samples["due_ns"])) if len(samples) else 0
        if waited > _NOTEWORTHY:
            yield (
                f"{waited:.0%} of the requests waited for one in flight to end: the server saw "
                "less than the offered rate, latency counts the wait (change: --max-in-flight)"
            )
    if not steady.found:
        yield "latency was still changing: measure for longer, or set --warmup"
    failed = int(np.count_nonzero(is_error(samples)))
    if failed > _NOTEWORTHY * len(samples):
        yield (
            f"{failed / len(samples):.1%} of the requests failed; latencies are of the others; "
            "`tfkit logs` may say why"
        )
    if unfinished := int(np.count_nonzero(samples["status"] == CANCELLED_AT_END)):
        yield f"{unfinished} requests had no answer at the end, and count as slower than all others"
    if url.startswith("grpcs:"):
        yield "over TLS, grpcio sends: it is slower than the plain gRPC sender"
    if any(part in url for part in _LOCAL):
        yield "generator and server shared one machine, and so its processors"
