"""The server under load: its Prometheus page and what its process uses, before, during and after.

Source: tensorflow_serving/util/prometheus_exporter.cc (layout of the page; names keep their
colons), tensorflow_serving/servables/tensorflow/util.cc and tensorflow_serving/batching/ (names).
All times on the page are microseconds.
"""

import contextlib
import re
import shutil
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import psutil

from tfserve_kit.clients.http_transport import HttpTransport
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.protocol import Reply
from tfserve_kit.http.messages import HttpRequest

_QUERY = ("--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
_MIB = 2**20
_SMI_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process and its children.

    Attributes:
        processor_s: processor time used since it began, in seconds.
        memory_bytes: resident memory now.
        process: number of the process, to tell it from one that took its place.
        gpus_busy: how many GPUs of the machine are busy, whoever uses them; None where unknown.
        gpu_memory_bytes: memory in use of all of them; None where unknown.
    """

    processor_s: float
    memory_bytes: int
    process: int = 0
    gpus_busy: float | None = None
    gpu_memory_bytes: int | None = None


Look = Callable[[], Usage | None]


def of_process(pid: int) -> Look:
    """Return what looks at a process of this machine; it returns None once that has ended."""

    def look() -> Usage | None:
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            times = [each.cpu_times() for each in family]
            memory = sum(each.memory_info().rss for each in family)
        except (psutil.Error, ValueError):
            return None
        return Usage(sum(each.user + each.system for each in times), memory, pid)

    return look


def of_container(container_id: str) -> Look:
    """Return what looks at a container's processes, where they are processes of this machine."""

    @cache
    def process() -> Look:
        return of_process(_first_process(container_id))

    return lambda: process()()  # noqa: PLW0108 (looks for the process when first asked)


def with_gpus(look: Look) -> Look:
    """Return what looks at the GPUs of this machine as well, where nvidia-smi is on PATH.

    Source: https://docs.nvidia.com/deploy/nvidia-smi/ (its query properties; memory is in MiB).
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return look

    def look_at_both() -> Usage | None:
        gpus = list(_seen_gpus(program))
        usage = look()
        if usage is None or not gpus:
            return usage
        busy, used_mib = (sum(column) for column in zip(*gpus, strict=True))
        return replace(usage, gpus_busy=busy / 100, gpu_memory_bytes=round(used_mib * _MIB))

    return look_at_both


def _seen_gpus(program: str) -> Iterator[tuple[float, float]]:
    """Yield how busy each GPU is, in percent, and its memory in use, in MiB."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [program, *_QUERY], capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=True
        )
        for line in done.stdout.splitlines():
            with contextlib.suppress(ValueError):  # "[N/A]": this one does not say
                busy, used_mib = map(float, line.split(","))
                yield busy, used_mib


def _first_process(container_id: str) -> int:
    """Return the oldest process in a container's control group; -1 without one."""
    for pid in sorted(psutil.pids()):
        try:
            if container_id in Path(f"/proc/{pid}/cgroup").read_text("utf-8"):
                return pid
        except OSError:  # it ended meanwhile, or this is not Linux
            continue
    return -1  # not a process


PROMETHEUS_PATH = "/monitoring/prometheus/metrics"
_PREFIX = ":tensorflow:serving:"
_TIMEOUT_S, _MOST_BYTES = 5.0, 1 << 24  # of a page
_LINE = re.compile(r"(?P<name>[^\s{]+)(?P<labels>\{.*\})?\s+(?P<value>[^\s]+)(?:\s+-?\d+)?")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

# Name and labels, such as (":tensorflow:serving:request_count", (("model_name", "resnet"), ...)).
Key = tuple[str, tuple[tuple[str, str], ...]]
Page = Mapping[Key, float]
Read = Callable[[], str | None]


def parse(text: str) -> dict[Key, float]:
    """Return every value of a page in the Prometheus text format; other lines are skipped.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    found = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else _LINE.fullmatch(line.strip())
        if match:
            with contextlib.suppress(ValueError):
                labels = tuple(
                    (name, re.sub(r"\\[\\\"n]", lambda each: _ESCAPES[each[0]], value))
                    for name, value in _LABEL.findall(match["labels"] or "")
                )
                found[match["name"], labels] = float(match["value"])
    return found


def page_url(url: str) -> str | None:
    """Return where a server's page is, None if the address is not a REST one."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{PROMETHEUS_PATH}"


def reader(url: str, options: Options | None = None, path: str = PROMETHEUS_PATH) -> Read:
    """Return what reads a server's page; it returns None where there is no page.

    Args:
        url: the address of the REST API.
        options: of which TLS files and headers count.
        path: where it is there.
    """
    address = page_url(url)
    if address is None:
        return lambda: None
    parts, options = urlsplit(url), options or Options()
    headers = dict(options.headers)
    if parts.username is not None:  # such as that of a proxy before the page
        named = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["authorization"] = "Basic " + b64encode(named.encode()).decode("ascii")
    # One deadline, one limit of size, and no redirect that our headers would follow.
    options = replace(options, headers=headers, max_answer_bytes=_MOST_BYTES)
    place = address.removesuffix(PROMETHEUS_PATH)

    def read() -> str | None:
        with contextlib.closing(HttpTransport(place, options)) as transport:
            answer = transport.send(HttpRequest("GET", path), _TIMEOUT_S)
        is_page = isinstance(answer, Reply) and answer.ok
        return answer.body.decode("utf-8", "replace") if is_page else None  # type: ignore[union-attr]

    return read


class Watch:
    """Reads a server's page and its process for the duration of a `with` block.

    Args:
        read: returns the page; see `reader`.
        usage: returns what the server's process uses; None where nobody can tell.
        every_s: how often, in seconds.
    """

    def __init__(
        self, read: Read, usage: Callable[[], Usage | None] | None = None, every_s: float = 1.0
    ) -> None:
        self._read, self._usage, self._every_s = read, usage, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._pages: list[tuple[int, dict[Key, float]]] = []
        self._usages: list[tuple[int, Usage]] = []

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def data(self, start_ns: int) -> dict[str, Any]:
        """Return what was seen, as JSON can hold it; to be called after the block.

        Args:
            start_ns: `time.monotonic_ns()` at the start of the run.

        Returns:
            `difference` (see `difference`), `pages` (time and the number of requests, batches and
            rows until then) and `usage` (time, processors busy, bytes of memory; where they are
            known, GPUs of the machine that are busy, and bytes of their memory in use); times in
            seconds since the start.
        """
        if not self._pages:
            return {"usage": self._usage_data(start_ns)} if self._usages else {}
        first, last = self._pages[0][1], self._pages[-1][1]
        return {
            "difference": difference(first, last),
            "pages": [{"at_s": (at - start_ns) / 1e9, **_counts(page)} for at, page in self._pages],
            "usage": self._usage_data(start_ns),
        }

    def _usage_data(self, start_ns: int) -> list[dict[str, float]]:
        pairs = zip(self._usages, self._usages[1:], strict=False)
        return [
            {
                "at_s": (now - start_ns) / 1e9,
                "processors": (usage.processor_s - before.processor_s) * 1e9 / (now - then),
                "memory_bytes": usage.memory_bytes,
                **_gpus(usage),
            }
            for (then, before), (now, usage) in pairs
            if now > then and usage.process == before.process
        ]

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        if (text := self._read()) is not None:
            self._pages.append((time.monotonic_ns(), parse(text)))
        if self._usage and (usage := self._usage()) is not None:
            self._usages.append((time.monotonic_ns(), usage))


@dataclass(frozen=True, slots=True)
class _Histogram:
    """What came between two pages; `at_most` says how many up to each bound, bounds rising."""

    count: float
    total: float
    at_most: dict[str, float]

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def buckets(self) -> dict[str, float]:
        """Return how many there are between each bound and the one below."""
        below = (0.0, *self.at_most.values())
        both = zip(self.at_most.items(), below, strict=False)
        return {bound: count - less for (bound, count), less in both}


def _gpus(usage: Usage) -> dict[str, float]:
    if usage.gpus_busy is None or usage.gpu_memory_bytes is None:
        return {}
    return {"gpus_busy": usage.gpus_busy, "gpu_memory_bytes": usage.gpu_memory_bytes}


def difference(before: Page, after: Page) -> dict[str, Any]:
    """Return what a server did between two of its pages, as JSON can hold it.

    Returns:
        `requests` by status, means in seconds of `request_s` (the whole of a request),
        `runtime_s` (the session run, waiting in a batch queue included) and `queue_s` (that wait),
        and `batches`: `count`, `rows` (asked for), `executed_rows` (padding included),
        `padding_share`, `mean_rows`, `sizes` (upper bound to how many). None where the server has
        no such metric.
    """
    requests = _requests(before, after)
    means = {
        key: None if mean is None else mean / 1e6
        for key, name in (
            ("request_s", "request_latency"),
            ("runtime_s", "runtime_latency"),
            ("queue_s", "batching_session:queuing_latency"),
        )
        for mean in [histogram(before, after, name).mean]
    }
    return {"requests": requests, **means, "batches": _batches(before, after)}


def split(service_s: float | None, wait_s: float, seen: Mapping[str, Any]) -> dict[str, float]:
    """Return where the mean latency went, in seconds, as far as it is known.

    Args:
        service_s: mean from sent to done.
        wait_s: mean from due to sent.
        seen: what `difference` returned.

    Returns:
        `client` (due to sent), `wire` (network, HTTP and gRPC, both programs' queues), `server`
        (reading and writing messages), `queue` (waiting for a batch) and `compute`; one `service`
        for all but the first where the server says nothing.
    """
    parts = {"client": wait_s}
    rest, name = service_s, "service" if seen.get("request_s") is None else "wire"
    for inner, next_name in (("request_s", "server"), ("runtime_s", "compute")):
        if rest is None or seen.get(inner) is None:
            break
        parts[name], rest, name = max(0.0, rest - seen[inner]), seen[inner], next_name
    if rest is None:
        return parts
    if name == "compute" and seen.get("queue_s") is not None:
        parts["queue"] = min(rest, seen["queue_s"])
        rest -= parts["queue"]
    return parts | {name: rest}


def _batches(before: Page, after: Page) -> dict[str, Any] | None:
    executed = histogram(before, after, "batching_session:processed_batch_size")
    if not executed.count:
        return None
    padding = histogram(before, after, "batching_session:padding_size").total
    rows = executed.total - padding
    return {
        "count": int(executed.count),
        "rows": int(rows),
        "executed_rows": int(executed.total),
        "padding_share": padding / executed.total if executed.total else 0.0,
        "mean_rows": rows / executed.count,
        "sizes": {bound: int(count) for bound, count in executed.buckets().items() if count},
    }


def _counts(page: Page) -> dict[str, float]:
    empty: Page = {}
    batches = histogram(empty, page, "batching_session:processed_batch_size")
    return {
        "requests": sum(_requests(empty, page).values()),
        "batches": batches.count,
        "rows": batches.total,
    }


def _requests(before: Page, after: Page) -> dict[str, int]:
    """Return how many requests came between two pages, by their status."""
    found: dict[str, int] = {}
    for key, value in after.items():
        if key[0] == _PREFIX + "request_count" and (more := value - before.get(key, 0)):
            kind = dict(key[1]).get("status", "")
            found[kind] = found.get(kind, 0) + int(more)
    return found


def histogram(
    before: Page,
    after: Page,
    name: str,
    is_meant: Callable[[Mapping[str, str]], object] = lambda _: True,
) -> _Histogram:
    """Return what came to a histogram between two pages.

    Args:
        before: the first page; empty for all there ever was.
        after: the second one.
        name: the metric, without what all of TensorFlow Serving's begin with.
        is_meant: given labels, says whether they count; all of them unless said.
    """
    sums = {"_count": 0.0, "_sum": 0.0}
    at_most: dict[str, float] = {}
    for key, value in after.items():
        if not key[0].startswith(_PREFIX + name) or not is_meant(dict(key[1])):
            continue
        more, kind = value - before.get(key, 0), key[0].removeprefix(_PREFIX + name)
        if kind in sums:
            sums[kind] += more
        elif kind == "_bucket":
            bound = dict(key[1])["le"]
            at_most[bound] = at_most.get(bound, 0) + more
    rising = {bound: at_most[bound] for bound in sorted(at_most, key=float)}
    return _Histogram(sums["_count"], sums["_sum"], rising)
