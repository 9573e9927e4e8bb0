"""Counters and histograms under the official server's names, as a Prometheus page.

Source: tensorflow_serving/servables/tensorflow/util.cc and tensorflow_serving/batching/ (names,
labels, buckets), tensorflow/core/framework/metrics.cc (what runs and builds of graphs are called),
tensorflow_serving/util/prometheus_exporter.cc (layout). Times are microseconds. What the official
server does not tell has names of its own: `tfkit_...`, and `process_...` as is usual elsewhere.
"""

import bisect
import itertools
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata

import psutil

from tfserve_kit.version import VERSION

PROMETHEUS_PATH = "/monitoring/prometheus/metrics"


# Whoever asks for models that do not exist makes up labels.
_MOST_LABEL_SETS = 10_000
_LONGEST_NAME = 1024
# Observations that wait to be counted.
_MOST_FRESH = 64


def exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    """Return the upper bounds of `count` buckets, each `growth` times the one before."""
    return tuple(itertools.accumulate([scale] + [growth] * (count - 1), lambda a, b: a * b))


@dataclass(frozen=True, slots=True, eq=False)  # each is one object: quick to look up
class Metric:
    """A metric's name and labels; `buckets` makes it a histogram."""

    name: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    is_gauge: bool = False


# A value that is looked up when somebody asks for the page: metric, labels, value.
Reading = tuple[Metric, tuple[str, ...], float]


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

GRAPH_RUN_TIME = Metric(
    ":tensorflow:core:graph_run_time_usecs_histogram", (), exponential(1000, 2, 20)
)
GRAPH_BUILDS = Metric(":tensorflow:core:graph_build_calls", ())
GRAPH_BUILD_TIME = Metric(":tensorflow:core:graph_build_time_usecs", ())
# What the histogram of runs says already.
_GRAPH_RUNS = Metric(":tensorflow:core:graph_runs", ())
_SESSION_RUNS = Metric(":tensorflow:core:direct_session_runs", ())
_GRAPH_RUN_TIME_SUM = Metric(":tensorflow:core:graph_run_time_usecs", ())

VERSION_LATENCY = Metric("tfkit_runtime_latency", ("model_name", "version", "signature"), _LATENCY)
VERSIONS = Metric("tfkit_model_versions", ("model_name", "state"), is_gauge=True)
VERSION_AVAILABLE = Metric(
    "tfkit_model_version_available", ("model_name", "version"), is_gauge=True
)
_BUILD_INFO = Metric("tfkit_build_info", ("version", "tensorflow", "python"), is_gauge=True)
_PROCESS_START = Metric("process_start_time_seconds", (), is_gauge=True)
_PROCESS_MEMORY = Metric("process_resident_memory_bytes", (), is_gauge=True)
_PROCESS_TIME = Metric("process_cpu_seconds_total", ())

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


# What was observed, its value, the labels, and how often.
_Observation = tuple[Metric, float, tuple[str, ...], int]


class Metrics:
    """All values of one server. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[Metric, dict[tuple[str, ...], _Histogram]] = {}
        # To append one takes no lock, and counting many is quicker.
        self._fresh: list[_Observation] = []
        self._looks: list[Callable[[], Iterable[Reading]]] = []
        for metric in _KNOWN_FROM_THE_START:
            if metric.buckets:
                self._histograms[metric] = {}
            else:
                self._counters[metric] = {}

    def look_up(self, readings: Callable[[], Iterable[Reading]]) -> None:
        """Show on every page what is found when it is asked for."""
        self._looks.append(readings)

    def add(self, metric: Metric, labels: Sequence[str] = (), amount: float = 1) -> None:
        """Raise a counter."""
        with self._lock:
            self._raise(metric, tuple(labels), amount)

    def observe(
        self, metric: Metric, value: float, labels: tuple[str, ...] = (), times: int = 1
    ) -> None:
        """Put a value into a histogram, once or several times; one on a bound counts above it."""
        fresh = self._fresh
        fresh.append((metric, value, labels, times))
        if len(fresh) >= _MOST_FRESH:
            with self._lock:
                self._count_fresh()

    def _raise(self, metric: Metric, key: tuple[str, ...], amount: float) -> None:
        """See `add`; the lock is held."""
        values = self._counters.get(metric)
        if values is None:
            values = self._counters[metric] = {}
        if key in values:
            values[key] += amount
        elif len(values) < _MOST_LABEL_SETS or _is_known(values, key):
            values[key] = amount

    def _count_fresh(self) -> None:
        """Count what was observed; the lock is held."""
        count = len(self._fresh)
        observed = self._fresh[:count]
        del self._fresh[:count]  # others append behind them meanwhile
        for metric, value, labels, times in observed:
            if metric is REQUEST_LATENCY:  # has a value for each request that succeeded
                self._raise(REQUEST_COUNT, (labels[0][:_LONGEST_NAME], "OK"), times)
            histogram = self._histogram(metric, labels)
            if histogram is not None:
                histogram.counts[bisect.bisect_right(metric.buckets, value)] += times
                histogram.total += value * times

    def _histogram(self, metric: Metric, labels: tuple[str, ...]) -> _Histogram | None:
        """Return a histogram that may be new; None if there are too many. The lock is held."""
        values = self._histograms.setdefault(metric, {})
        histogram = values.get(labels)
        if histogram is None and len(values) < _MOST_LABEL_SETS:
            histogram = values[labels] = _Histogram([0] * (len(metric.buckets) + 1))
        return histogram

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
        if status == "OK":
            self.observe(REQUEST_LATENCY, micros_since(started_ns), (model, api, entrypoint))
            return
        with self._lock:
            self._count_fresh()  # a model that has answered keeps its place
            self._raise(REQUEST_COUNT, (model[:_LONGEST_NAME], status), 1)

    def count_requests(
        self, model: str, api: str, entrypoint: str, statuses: Sequence[str], started_ns: int
    ) -> None:
        """Count requests that were answered together: each took its share of the time.

        Args:
            model: name of the model, as all else that `count_request` knows.
            api: the same for all.
            entrypoint: likewise.
            statuses: names of their canonical codes.
            started_ns: `time.perf_counter_ns()` when the first one's turn came.
        """
        succeeded = statuses.count("OK")
        if succeeded < len(statuses):
            for status in statuses:
                if status != "OK":
                    self.count_request(model, api, entrypoint, status, started_ns)
        if succeeded:
            share_us = micros_since(started_ns) / len(statuses)
            self.observe(REQUEST_LATENCY, share_us, (model, api, entrypoint), succeeded)

    def first(self, name: str) -> int:
        """Return the first value of a counter, 0 if there is none.

        Args:
            name: as upstream calls it, such as `/tensorflow/serving/request_count`.
        """
        with self._lock:
            self._count_fresh()
            for metric, values in self._counters.items():
                if metric.name == name.replace("/", ":") and values:
                    return int(values[min(values)])
        return 0

    def page(self) -> str:
        """Return the Prometheus text format, metrics and labels in order."""
        with self._lock:  # requests wait for it: copied here, printed outside
            self._count_fresh()
            counters = {metric: dict(values) for metric, values in self._counters.items()}
            histograms = {
                metric: {key: _Histogram([*each.counts], each.total) for key, each in found.items()}
                for metric, found in self._histograms.items()
            }
        for metric, labels, value in itertools.chain(*(look() for look in self._looks)):
            counters.setdefault(metric, {})[labels] = value
        for histogram in histograms.get(GRAPH_RUN_TIME, {}).values():
            runs = sum(histogram.counts)
            counters |= {_GRAPH_RUNS: {(): runs}, _SESSION_RUNS: {(): runs}}
            counters[_GRAPH_RUN_TIME_SUM] = {(): histogram.total}
        lines = []
        for metric in sorted([*counters, *histograms], key=lambda metric: metric.name):
            lines.append(f"# TYPE {metric.name} {_kind(metric)}")
            for key, value in sorted(counters.get(metric, {}).items()):
                number = f"{value:.3f}" if metric in _FRACTIONS else f"{value:.0f}"
                lines.append(f"{metric.name}{_labels(metric, key)} {number}")
            for key, histogram in sorted(histograms.get(metric, {}).items()):
                lines += _histogram_lines(metric, key, histogram)
        return "\n".join(lines) + "\n"


# Seconds; all else is counted, or whole microseconds.
_FRACTIONS = {_PROCESS_START, _PROCESS_TIME}


def process_readings() -> list[Reading]:
    """Return which program this is, when its process began, and what that has used until now."""
    process = psutil.Process()
    times = process.cpu_times()
    return [
        (_BUILD_INFO, (VERSION, _version("tensorflow"), platform.python_version()), 1),
        (_PROCESS_START, (), process.create_time()),
        (_PROCESS_MEMORY, (), process.memory_info().rss),
        (_PROCESS_TIME, (), times.user + times.system),
    ]


@cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # of another name, such as tensorflow-cpu
        return ""


def _kind(metric: Metric) -> str:
    if metric.is_gauge:
        return "gauge"
    return "histogram" if metric.buckets else "counter"


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
