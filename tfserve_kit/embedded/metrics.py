"""Counters and histograms under the official server's names, as a Prometheus page.

Source: tensorflow_serving/servables/tensorflow/util.cc and tensorflow_serving/batching/ (names,
labels, buckets), tensorflow_serving/util/prometheus_exporter.cc (layout). Times are microseconds.
"""

import bisect
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROMETHEUS_PATH = "/monitoring/prometheus/metrics"


# Whoever asks for models that do not exist makes up labels.
_MOST_LABEL_SETS = 10_000
_LONGEST_NAME = 1024


def exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    """Return the upper bounds of `count` buckets, each `growth` times the one before."""
    return tuple(itertools.accumulate([scale] + [growth] * (count - 1), lambda a, b: a * b))


@dataclass(frozen=True, slots=True, eq=False)  # each is one object: quick to look up
class Metric:
    """A metric's name and labels; `buckets` makes it a histogram."""

    name: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


_LATENCY = exponential(10, 1.8, 33)

REQUEST_COUNT = Metric(":tensorflow:serving:request_count", ("model_name", "status"))
REQUEST_LATENCY = Metric(
    ":tensorflow:serving:request_latency", ("model_name", "API", "entrypoint"), _LATENCY
)
RUNTIME_LATENCY = Metric(
    ":tensorflow:serving:runtime_latency", ("model_name", "API", "runtime"), _LATENCY
)
LOAD_ATTEMPTS = Metric(":tensorflow:cc:saved_model:load_attempt_count", ("model_path", "status"))
LOAD_LATENCY = Metric(":tensorflow:cc:saved_model:load_latency", ("model_path",))
WARMUP_LATENCY = Metric(
    ":tensorflow:serving:model_warmup_latency", ("model_path", "status"), _LATENCY
)
WARMUP_RECORDS = Metric(":tensorflow:serving:model_warmup_records_read", ("model_path",))
QUEUING_LATENCY = Metric(
    ":tensorflow:serving:batching_session:queuing_latency",
    ("thread_pool_name",),
    exponential(100, 1.2, 52),
)
_ROWS = exponential(1, 2, 14)
INPUT_BATCH_SIZE = Metric(":tensorflow:serving:batching_session:input_batch_size", (), _ROWS)
PROCESSED_BATCH_SIZE = Metric(
    ":tensorflow:serving:batching_session:processed_batch_size", (), _ROWS
)
PADDING_SIZE = Metric(
    ":tensorflow:serving:batching_session:padding_size", ("execution_batch_size",), _ROWS
)
WRAPPED_RUN_COUNT = Metric(":tensorflow:serving:batching_session:wrapped_run_count", ())

# The official server makes the sizes of batches known with the first batch only.
_KNOWN_FROM_THE_START = (
    LOAD_ATTEMPTS,
    LOAD_LATENCY,
    QUEUING_LATENCY,
    WRAPPED_RUN_COUNT,
    WARMUP_LATENCY,
    WARMUP_RECORDS,
    REQUEST_COUNT,
    REQUEST_LATENCY,
    RUNTIME_LATENCY,
)


def micros_since(started_ns: int) -> float:
    """Return how many microseconds ago `time.perf_counter_ns()` was `started_ns`."""
    return (time.perf_counter_ns() - started_ns) / 1000


@dataclass(slots=True)
class _Histogram:
    counts: list[int]
    total: float = 0.0


class Metrics:
    """All values of one server. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[Metric, dict[tuple[str, ...], _Histogram]] = {}
        for metric in _KNOWN_FROM_THE_START:
            if metric.buckets:
                self._histograms[metric] = {}
            else:
                self._counters[metric] = {}

    def add(self, metric: Metric, labels: Sequence[str] = (), amount: float = 1) -> None:
        """Raise a counter."""
        with self._lock:
            self._raise(metric, tuple(labels), amount)

    def observe(self, metric: Metric, value: float, labels: Sequence[str] = ()) -> None:
        """Put a value into a histogram; a value on a bound counts above it."""
        with self._lock:
            self._put(metric, tuple(labels), value)

    def _raise(self, metric: Metric, key: tuple[str, ...], amount: float) -> None:
        """See `add`; the lock is held."""
        values = self._counters.get(metric)
        if values is None:
            values = self._counters[metric] = {}
        if key in values:
            values[key] += amount
        elif len(values) < _MOST_LABEL_SETS or _is_known(values, key):
            values[key] = amount

    def _put(self, metric: Metric, key: tuple[str, ...], value: float) -> None:
        """See `observe`; the lock is held."""
        values = self._histograms.get(metric)
        if values is None:
            values = self._histograms[metric] = {}
        histogram = values.get(key)
        if histogram is None:
            if len(values) >= _MOST_LABEL_SETS:
                return
            histogram = values[key] = _Histogram([0] * (len(metric.buckets) + 1))
        histogram.counts[bisect.bisect_right(metric.buckets, value)] += 1
        histogram.total += value

    def count_request(
        self, model: str, api: str, entrypoint: str, status: str, started_ns: int
    ) -> None:
        """Count a request, and its latency if it succeeded.

        Args:
            model: name of the model.
            api: the method or verb.
            entrypoint: `GRPC` or `REST`.
            status: name of its canonical code.
            started_ns: `time.perf_counter_ns()` when it arrived.
        """
        key = (model[:_LONGEST_NAME], status)
        with self._lock:
            self._raise(REQUEST_COUNT, key, 1)
            if status == "OK":
                labels = (model, api, entrypoint)
                self._put(REQUEST_LATENCY, labels, micros_since(started_ns))

    def first(self, name: str) -> int:
        """Return the first value of a counter, 0 if there is none.

        Args:
            name: as upstream calls it, such as `/tensorflow/serving/request_count`.
        """
        with self._lock:
            for metric, values in self._counters.items():
                if metric.name == name.replace("/", ":") and values:
                    return int(values[min(values)])
        return 0

    def page(self) -> str:
        """Return the Prometheus text format, metrics and labels in order."""
        with self._lock:  # requests wait for it: copied here, printed outside
            counters = {metric: dict(values) for metric, values in self._counters.items()}
            histograms = {
                metric: {key: _Histogram([*each.counts], each.total) for key, each in found.items()}
                for metric, found in self._histograms.items()
            }
        lines = []
        for metric in sorted([*counters, *histograms], key=lambda metric: metric.name):
            kind = "histogram" if metric.buckets else "counter"
            lines.append(f"# TYPE {metric.name} {kind}")
            for key, value in sorted(counters.get(metric, {}).items()):
                lines.append(f"{metric.name}{_labels(metric, key)} {value:.0f}")
            for key, histogram in sorted(histograms.get(metric, {}).items()):
                lines += _histogram_lines(metric, key, histogram)
        return "\n".join(lines) + "\n"


def _is_known(values: Mapping[tuple[str, ...], float], key: tuple[str, ...]) -> bool:
    """Say whether labels are of a model that answers: made-up ones leave it its place."""
    return key[-1:] == ("OK",) or (*key[:1], "OK") in values


def _histogram_lines(metric: Metric, key: tuple[str, ...], histogram: _Histogram) -> list[str]:
    bounds = [f"{bound:g}" for bound in metric.buckets] + ["+Inf"]
    lines = [
        f"{metric.name}_bucket{_labels(metric, key, le=bound)} {count}"
        for bound, count in zip(bounds, itertools.accumulate(histogram.counts), strict=True)
    ]
    lines.append(f"{metric.name}_sum{_labels(metric, key)} {histogram.total:.0f}")
    return [*lines, f"{metric.name}_count{_labels(metric, key)} {sum(histogram.counts)}"]


def _labels(metric: Metric, key: tuple[str, ...], **more: str) -> str:
    pairs = [*zip(metric.labels, key, strict=True), *more.items()]
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
