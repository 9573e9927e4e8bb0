"""What servers do now, told by two looks at each: a page of metrics before and one after."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tfserve_kit.errors import TfkitError
from tfserve_kit.perf.metrics import Look, Page, Read, Usage, difference, histogram, parse

_SERVING = ":tensorflow:serving:"
_REQUESTS, _LATENCY = f"{_SERVING}request_count", f"{_SERVING}request_latency"
_MICROS = 1e-6


@dataclass(frozen=True, slots=True)
class Watched:
    """A server to look at.

    Attributes:
        name: what it is called.
        url: its address.
        state: what is known of it beforehand, such as `exited`; empty if it may be asked.
        models: names of its models, as far as they are known.
        read: reads its page of metrics.
        versions: returns the versions of a model that can answer; raises where none can be told.
        look: looks at its process; None where that is on another machine.
        max_batch_size: rows that fit into a batch; None if it is not known.
    """

    name: str
    url: str
    state: str
    models: Sequence[str]
    read: Read
    versions: Callable[[str], Sequence[int]]
    look: Look | None = None
    max_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class _Glance:
    """One look at a server.

    Attributes:
        at_s: when, as `time.monotonic()`.
        page: its metrics; None where it shows none.
        usage: what its process uses; None where that is not known.
        versions: by model; None for what cannot be told.
        state: `running`, `no metrics`, `no answer`, or what was known beforehand.
    """

    at_s: float
    page: Page | None = None
    usage: Usage | None = None
    versions: Mapping[str, Sequence[int] | None] = field(default_factory=dict)
    state: str = ""


def look_all(servers: Sequence[Watched]) -> list[_Glance]:
    """Look at servers, all at once, so that none waits for one that does not answer."""
    if not servers:
        return []
    with ThreadPoolExecutor(len(servers), "look") as threads:
        return list(threads.map(_glance, servers))


def _glance(server: Watched) -> _Glance:
    if server.state:
        return _Glance(time.monotonic(), state=server.state)
    text, at_s = server.read(), time.monotonic()
    page = None if text is None else parse(text)
    usage = server.look() if server.look else None
    told = _told_versions(page or {})
    versions: dict[str, Sequence[int] | None] = {}
    for model in {*server.models, *told, *_served(page or {})}:
        try:
            versions[model] = told[model] if model in told else server.versions(model)
        except TfkitError:
            versions[model] = None
    has_answered = page is not None or any(each is not None for each in versions.values())
    state = "running" if page is not None else "no metrics" if has_answered else "no answer"
    return _Glance(at_s, page, usage or _own_usage(page or {}), versions, state)


def _served(page: Page) -> set[str]:
    """Return the models that a page shows to have answered: callers make up other names."""
    return {dict(labels)["model_name"] for name, labels in page if name == f"{_LATENCY}_count"}


def _told_versions(page: Page) -> dict[str, list[int]]:
    """Return the versions of each model as the embedded engine tells them."""
    found: dict[str, list[int]] = {}
    for name, labels in page:
        if name == "tfkit_model_versions":
            found.setdefault(dict(labels)["model_name"], [])
        elif name == "tfkit_model_version_available":
            named = dict(labels)
            found.setdefault(named["model_name"], []).append(int(named["version"]))
    return {model: sorted(versions, reverse=True) for model, versions in found.items()}


def _own_usage(page: Page) -> Usage | None:
    """Return what a process tells of itself."""
    processor_s = page.get(("process_cpu_seconds_total", ()))
    memory_bytes = page.get(("process_resident_memory_bytes", ()))
    if processor_s is None or memory_bytes is None:
        return None
    return Usage(processor_s, int(memory_bytes))


def described(server: Watched, before: _Glance | None, now: _Glance) -> dict[str, Any]:
    """Return what a server did between two looks, as JSON can hold it; None for what is not known.

    Returns:
        `name`, `url`, `state`; `processors` (how many were busy), `memory_bytes`; `batch` with
        `rows` (mean of a batch), `fill` (of the most it may have), `padding_share`, `queue_p50_s`,
        `queue_p99_s`; `models` with `model`, `versions`, `rate` and `error_rate` (requests a
        second), `p50_s` and `p99_s`.
    """
    seconds = now.at_s - before.at_s if before else 0.0
    past = before.page if before and _is_later(before.page, now.page) else None
    return {
        "name": server.name,
        "url": server.url,
        "state": now.state,
        "processors": _processors(before, now),
        "memory_bytes": now.usage.memory_bytes if now.usage else None,
        "batch": _batch(past, now.page or {}, server.max_batch_size),
        "models": [
            {
                "model": model,
                "versions": None if versions is None else list(versions),
                **_requests(past, now.page or {}, model, seconds),
            }
            for model, versions in sorted(now.versions.items())
        ],
    }


def _is_later(before: Page | None, page: Page | None) -> bool:
    """Say whether a page is of the same process as one before: what counts never falls."""
    if before is None or page is None:
        return False
    counts = (_REQUESTS, f"{_LATENCY}_count")
    fallen = (page.get(key, 0) < value for key, value in (before or {}).items() if key[0] in counts)
    return before is not None and not any(fallen)


def _processors(before: _Glance | None, now: _Glance) -> float | None:
    if not before or not before.usage or not now.usage or now.at_s <= before.at_s:
        return None
    used_s = now.usage.processor_s - before.usage.processor_s
    is_same = now.usage.process == before.usage.process and used_s >= 0
    return used_s / (now.at_s - before.at_s) if is_same else None


def _requests(past: Page | None, page: Page, model: str, seconds: float) -> dict[str, Any]:
    """Return what became of a model's requests; questions about its state are none."""
    if past is None or seconds <= 0:
        return dict.fromkeys(("rate", "error_rate", "p50_s", "p99_s"))
    failed = sum(
        value - past.get(key, 0)
        for key, value in page.items()
        if key[0] == _REQUESTS and (labels := dict(key[1])).get("status") != "OK"
        if labels.get("model_name") == model
    )
    came = histogram(
        past, page, "request_latency", lambda has: has["model_name"] == model and has["API"]
    )
    buckets = _at_most(came.at_most)
    answered = buckets.get(math.inf, 0)
    return {
        "rate": (answered + failed) / seconds,
        "error_rate": failed / seconds,
        "p50_s": _seconds(buckets, 0.5),
        "p99_s": _seconds(buckets, 0.99),
    }


def _batch(past: Page | None, page: Page, most: int | None) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(
        ("rows", "fill", "padding_share", "queue_p50_s", "queue_p99_s")
    )
    if past is None:
        return found
    if seen := difference(past, page)["batches"]:
        rows = seen["mean_rows"]
        found |= {"rows": rows, "padding_share": seen["padding_share"]}
        found["fill"] = rows / most if most else None
    queue = _at_most(histogram(past, page, "batching_session:queuing_latency").at_most)
    return found | {"queue_p50_s": _seconds(queue, 0.5), "queue_p99_s": _seconds(queue, 0.99)}


def _at_most(counts: Mapping[str, float]) -> dict[float, float]:
    return {float(bound): count for bound, count in counts.items()}


def _seconds(buckets: Mapping[float, float], quantile: float) -> float | None:
    """Return a quantile of microseconds, in seconds; see `quantile_of`."""
    found = quantile_of(buckets, quantile)
    return None if found is None else found * _MICROS


def quantile_of(buckets: Mapping[float, float], quantile: float) -> float | None:
    """Return a quantile as Prometheus estimates it: values lie evenly between two bounds.

    Args:
        buckets: how many values are at most each bound, bounds rising, the last infinite.
        quantile: between 0 and 1.

    Returns:
        None without values; the last finite bound for what lies above it.
    """
    rank, below, low = quantile * buckets.get(math.inf, 0), 0.0, 0.0
    if not rank:
        return None
    for bound, count in buckets.items():
        if count >= rank and count > below:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (rank - below) / (count - below)
        below, low = count, bound
    return low
