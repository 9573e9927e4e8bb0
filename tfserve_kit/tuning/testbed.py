"""Servers to try settings on: each started for its candidate, measured, and stopped."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tfserve_kit import processes
from tfserve_kit.clients.options import Options
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.deployment.spec import Spec
from tfserve_kit.engines.base import Engine
from tfserve_kit.engines.records import Record
from tfserve_kit.perf import intervals, sending, stats
from tfserve_kit.perf.measuring import Bench
from tfserve_kit.perf.preparing import Preparer
from tfserve_kit.perf.sending.glances import Onlooker
from tfserve_kit.perf.stats import Summary
from tfserve_kit.perf.workload import Workload
from tfserve_kit.progress import SILENT, Progress, Silent
from tfserve_kit.serving import access, launch
from tfserve_kit.tuning.candidate import Candidate

_WARMUP_S = 1.0
_WARMUP_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class Testbed:
    """What all candidates have in common.

    Attributes:
        spec: the deployment whose settings are varied; see `launch.prepare`.
        engine: what runs the servers.
        work: how requests are sent; its URL and rate do not count.
        requests: makes what is sent.
        quantile: name of the quantile that every run must be long enough for.
        templates: a folder whose templates replace ours.
        progress: told what is going on.
        clock: what the waiting for servers measures with; may raise KeyboardInterrupt where it
            sleeps.
        stop: once set, nothing more is measured.
    """

    __test__ = False  # a name that pytest would collect

    spec: Spec
    engine: Engine
    work: Workload
    requests: Preparer
    quantile: str
    templates: Path | None = None
    progress: Progress = SILENT
    clock: Clock = field(default_factory=SystemClock)
    stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def serving(self, candidate: Candidate, name: str = "tune") -> Iterator["Running"]:
        """Run a server with a candidate's settings for a `with` block, on free ports.

        Raises:
            ServerExists: there is a server of that name, as while another search is going on.
            ServerFailed: it does not start so.
            KeyboardInterrupt: the search is to end.
        """
        varied = candidate.applied(self.spec)
        server = varied.server.model_copy(update={"name": name, "grpc_port": 0, "rest_port": 0})
        todo = varied.model_copy(update={"server": server})
        handle = launch.start(todo, self.engine, templates=self.templates, clock=self.clock)
        try:
            # Callers have processors of their own; a server at its limit must not delay ours.
            if (record := Record.read(handle.home)) and record.pid:
                processes.give_way(record.pid)
            url = getattr(handle.endpoints, self.work.protocol)
            options = access.of_server(handle.home).options(url)
            made = self.requests.prepare(url, options)
            bench = Bench(made.payloads, sending.run, {"warmup_s": 0.0}, stop=self.stop)
            sender = "grpcio" if url.startswith("grpcs:") else self.work.sender
            work = replace(self.work, url=url, sender=sender, options=Options(**options))
            yield Running(bench, work, self.needed(), self.clock)
        finally:
            handle.stop()

    def needed(self) -> int:
        """Return how many requests a run needs, so that its quantile is known."""
        name = self.quantile
        least = intervals.needed(float(name[1:]) / 100) if name[0] == "p" else 1
        return math.ceil(least + 4 * math.sqrt(least))  # random arrivals may be fewer


class _Glances(Silent):
    """Passes on how runs stand, and not their failures: settings that are too tight have many."""

    def __init__(self, onlooker: Onlooker) -> None:
        self.glance = onlooker.glance


class Running:
    """A server that is being measured.

    Attributes:
        start_rate: half of what it answered per second while it was warmed up.
    """

    def __init__(self, bench: Bench, work: Workload, needed: int, clock: Clock) -> None:
        self._bench, self._work, self._needed, self._clock = bench, work, needed, clock
        warmup = replace(work, rate=None, concurrency=_WARMUP_IN_FLIGHT, duration_s=_WARMUP_S)
        self.start_rate = (self._summary(warmup).achieved_rate or 2.0) / 2

    def measure(self, rate: float) -> Summary:
        """Send at a rate, for as long as was asked and as the quantile needs.

        A run in which the generator lagged is repeated once.

        Raises:
            KeyboardInterrupt: the search is to end.
        """
        duration_s = max(self._work.duration_s, self._needed / rate)
        work = replace(self._work, rate=rate, duration_s=duration_s)
        first = self._summary(work)
        return self._summary(work) if first.invalid else first

    def _summary(self, work: Workload) -> Summary:
        self._clock.sleep(0)  # where an interrupt strikes that came while a server was started
        run = self._bench.measure(work)
        if self._bench.stop is not None and self._bench.stop.is_set():
            raise KeyboardInterrupt
        return stats.summarize(run)
