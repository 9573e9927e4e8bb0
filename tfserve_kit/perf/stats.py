"""Numbers from samples: pure, exact, nothing dropped."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfserve_kit.perf.samples import Sample

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
# A harness later than this, and later than a tenth of what it measures, measures itself.
_LAG_FLOOR_S = 0.001
_LAG_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run amounts to; times in seconds.

    Attributes:
        requests: how many were sent.
        errors: how many failed, by kind.
        offered_rate: requests due per second.
        achieved_rate: successful answers per second.
        latency_s: mean, each of `QUANTILES` and the maximum of due to done, successes only.
        service_s: the same of sent to done.
        lag_p99_s: how late the harness itself was, 99th percentile.
        invalid: why the run says nothing about the server; empty if it does.
    """

    requests: int
    errors: Mapping[str, int]
    offered_rate: float
    achieved_rate: float
    latency_s: Mapping[str, float]
    service_s: Mapping[str, float]
    lag_p99_s: float
    invalid: str


def quantile(values: Sequence[float], q: float) -> float:
    """Return the smallest value that at least a share `q` of all values does not exceed.

    Args:
        values: sorted, not empty.
        q: 0 < q <= 1.
    """
    return values[max(0, math.ceil(q * len(values)) - 1)]


def summarize(samples: Sequence[Sample]) -> Summary:
    """Return the summary of a run.

    Args:
        samples: all of it, at least one.
    """
    good = [sample for sample in samples if sample.status == "OK"]
    latency = _distribution([sample.latency_s for sample in good])
    lag = quantile(sorted(sample.lag_s for sample in samples), 0.99)
    last_due_s = max(sample.due_ns for sample in samples) / 1e9
    end_s = max(sample.done_ns for sample in samples) / 1e9
    return Summary(
        requests=len(samples),
        errors=Counter(sample.status for sample in samples if sample.status != "OK"),
        offered_rate=(len(samples) - 1) / last_due_s if last_due_s else math.nan,
        achieved_rate=len(good) / end_s,
        latency_s=latency,
        service_s=_distribution([sample.service_s for sample in good]),
        lag_p99_s=lag,
        invalid=_invalid(lag, latency),
    )


def _distribution(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    values.sort()
    named = {f"p{q * 100:g}": quantile(values, q) for q in QUANTILES}
    return {"mean": math.fsum(values) / len(values), **named, "max": values[-1]}


def _invalid(lag_s: float, latency: Mapping[str, float]) -> str:
    if not latency:
        return "no request succeeded"
    if lag_s > max(_LAG_FLOOR_S, _LAG_SHARE * latency["p50"]):
        return (
            f"the harness itself was {lag_s * 1e3:.1f} ms late (p99); "
            "send less, or measure from a machine with free cores"
        )
    return ""
