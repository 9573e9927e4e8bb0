"""What `tfkit perf` does: requests made once, then runs, or a search for the highest rate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfserve_kit.clients.options import OptionNames, Options
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import gate, load, stats
from tfserve_kit.perf.gate import Gate
from tfserve_kit.perf.load import Arrivals, Closed, Load, Open, Sender
from tfserve_kit.perf.measuring import OVERLOAD, POISON, Bench
from tfserve_kit.perf.payloads import Preparer
from tfserve_kit.perf.stats import NamedRun, Summary

_FIRST_RATE = 10.0
# Options that say what a log says itself.
_LOG_SAYS = {
    "source": "--input",
    "batch": "--batch",
    "duration_s": "--duration",
    "concurrency": "--concurrency",
    "ramp": "--ramp",
    "find_max": "--find-max",
    "slo": "--slo",
}


@dataclass(frozen=True, slots=True)
class PerfOptions:
    """What is sent, when, and over what; see the help of the options of `tfkit perf`.

    Attributes:
        given: names of the options that were not left out.
    """

    signature: str = ""
    source: str = "random"
    batch: int = 1
    replay: Path | None = None
    speed: float | None = None
    duration_s: float = 10.0
    requests: int | None = None
    warmup_s: float | None = None
    concurrency: tuple[int, ...] = (8,)
    rate: float | None = None
    arrivals: Arrivals = "constant"
    ramp: tuple[float, float] | None = None
    find_max: bool = False
    slo: str | None = None
    during: str = ""
    sender: Sender = "own"
    connections: int = 1
    processes: int = 1
    max_in_flight: int = 1000
    timeout_s: float = 30.0
    given: frozenset[str] = frozenset()

    @property
    def limit(self) -> Gate | None:
        """The limit on latency of a search."""
        return gate.parse_slo(self.slo) if self.slo else None

    def require_consistent(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: there are such.
        """
        if self.rate and self.ramp:
            raise UsageError("--rate and --ramp both say how fast to send", remedy="give one")
        if self.find_max != (self.slo is not None):
            raise UsageError("--find-max needs --slo, and the other way round",
                             remedy="write --find-max --slo p99=50ms")  # fmt: skip
        if self.find_max and (self.ramp or self.requests):
            raise UsageError("--find-max chooses rates itself", remedy="leave out the rest")
        with_rate = self.rate or self.ramp or self.find_max
        if with_rate and len(self.concurrency) > 1:
            raise UsageError("several --concurrency with a rate", remedy="give --max-in-flight")
        if self.during == OVERLOAD and not self.rate:
            raise UsageError("--during overload doubles a rate", remedy="give --rate")
        if self.during == POISON and self.processes > 1:
            raise UsageError("--during poison with several --processes", remedy="give just one")
        self._require_consistent_replay()

    def _require_consistent_replay(self) -> None:
        if self.replay is None:
            if self.speed is not None:
                raise UsageError("--speed is for --replay", remedy="leave it out, or give --rate")
            return
        if wrong := [option for name, option in _LOG_SAYS.items() if name in self.given]:
            raise UsageError(
                f"--replay with {', '.join(wrong)}: the log says what is sent and when",
                remedy="leave that out; --requests N sends the first N",
            )
        if self.during == OVERLOAD:
            raise UsageError("--during overload with --replay", remedy="give --speed 2 instead")
        if self.rate and self.speed is not None:
            raise UsageError("--rate and --speed both say how fast to send", remedy="give one")

    def require_times(self, *, has_times: bool) -> None:
        """Refuse a log that has times besides --rate, and one that has none without.

        Raises:
            UsageError: it is so.
        """
        if has_times and ("rate" in self.given or "arrivals" in self.given):
            raise UsageError(
                f"{self.replay} already says when requests are sent",
                remedy="leave out --rate and --arrivals; --speed 2 sends it twice as fast",
            )
        if not has_times and not self.rate:
            raise UsageError(
                f"{self.replay} does not say when requests came",
                remedy="give --rate, and no --speed",
            )


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a session measured.

    Attributes:
        runs: all runs, in order.
        judged: those that gates are held against: the best one of a search, else all.
        max_rate: what a search found, 0.0 if no rate held; None where nothing was searched.
        held: of a search, whether each run kept the limit.
    """

    runs: list[NamedRun]
    judged: list[NamedRun]
    max_rate: float | None = None
    held: Sequence[bool] = ()

    @property
    def has_answers(self) -> bool:
        """Whether any request succeeded."""
        return any(each.summary.latency.count for each in self.runs)


class Session:
    """Measurements of one model of a server; requests are made at the beginning, one is sent.

    Args:
        options: what is measured, and how.
        url: the server.
        model: the model that is called.
        base_path: where its versions are; None if unknown.
        client: how the server is reached; see `clients.connect`.

    Attributes:
        requests: what is sent.

    Raises:
        TfkitError: there is nothing to send, or the server does not answer the trial.
    """

    def __init__(
        self,
        options: PerfOptions,
        url: str,
        model: str,
        base_path: Path | None = None,
        client: OptionNames | None = None,
    ) -> None:
        self._options, self._url, self._model = options, url, model
        self._client = client or {}
        maker = Preparer(
            model, options.signature, options.source, options.batch,
            base_path=base_path, timeout_s=options.timeout_s,
        )  # fmt: skip
        if options.replay:
            self.requests = maker.recorded(options.replay, url, self._client)
            options.require_times(has_times=bool(self.requests.times_s))
        else:
            self.requests = maker.prepare(url, self._client)

    def measure(self, bench: Bench) -> Measurement:
        """Send all that was asked for; setting `bench.stop` ends it early.

        Args:
            bench: what watches, disturbs and stops the runs; its payloads are those of this
                session, which adds its settings.
        """
        about = {**self._about(), **bench.about}
        bench = replace(
            bench, payloads=self.requests.payloads, about=about, during=self._options.during
        )
        if limit := self._options.limit:
            return self._find_max(bench, limit)
        runs = list(_measured(bench, [self._load(each) for each in self._schedules()]))
        return Measurement(runs, runs)

    def _find_max(self, bench: Bench, limit: Gate) -> Measurement:
        """Look for the highest rate that keeps a limit; a stop ends it at what was found."""
        options, runs = self._options, list[NamedRun]()
        enough = 2 * stats.values_needed(stats.share_of(limit.name) or 0.5)  # half may be warm-up

        def measure(rate: float) -> Summary | None:
            if bench.stop is not None and bench.stop.is_set():
                return None
            schedule = self._at_rate(rate, max(options.duration_s, enough / rate))
            runs.extend(_measured(bench, [self._load(schedule)]))
            return runs[-1].summary

        trial = gate.trial(limit, measure)
        rate, trials = gate.find_max(trial, start=options.rate or _FIRST_RATE)
        pairs = zip(runs, trials, strict=False)  # the last run may not count
        best = [run for run, each in pairs if each.held and each.rate == rate]
        held = [each.held for each in trials] + [False] * (len(runs) - len(trials))
        return Measurement(runs, best[-1:], rate, held)

    def _schedules(self) -> list[Closed | Open]:
        options = self._options
        first, last = options.ramp or (options.rate, None)
        if options.replay:
            return [self._replayed()]
        if first is None:
            return [
                Closed(each, options.duration_s, options.requests) for each in options.concurrency
            ]
        duration_s = options.duration_s
        if options.requests:
            duration_s = min(duration_s, (options.requests + 1) / min(first, last or first))
        return [self._at_rate(first, duration_s, last).first(options.requests)]

    def _at_rate(self, rate: float, duration_s: float, end_rate: float | None = None) -> Open:
        return Open.at_rate(
            rate,
            duration_s,
            end_rate=end_rate,
            arrivals=self._options.arrivals,
            is_overload=self._options.during == OVERLOAD,
            max_in_flight=self._options.max_in_flight,
        )

    def _replayed(self) -> Open:
        """Return the times of a log or, where it has none, those of a rate."""
        options = self._options
        if options.rate is None:
            due_ns = load.replay_ns(self.requests.times_s, options.speed or 1.0)
            return Open(due_ns, options.max_in_flight).first(options.requests)
        count = options.requests or len(self.requests.payloads)
        ample_s = (2 * count + 20) / options.rate  # random arrivals may take longer than the mean
        due_ns = load.due_ns(load.steps([options.rate], ample_s), options.arrivals)[:count]
        about = {"rate": options.rate, "arrivals": options.arrivals, "requests": options.requests}
        return Open(due_ns, options.max_in_flight, about=about)

    def _load(self, schedule: Closed | Open) -> Load:
        options = self._options
        return Load(
            self._url,
            "grpc" if self._url.startswith("grpc") else "rest",
            schedule,
            connections=options.connections,
            processes=options.processes,
            timeout_s=options.timeout_s,
            sender=options.sender,
            options=Options(**self._client),
        )

    def _about(self) -> dict[str, Any]:
        """Return the settings that a run keeps besides those of its load."""
        options, made = self._options, self.requests
        about: dict[str, Any] = {"model": self._model, "version": made.version}
        if options.replay:
            about |= {"replay": str(options.replay), "speed": options.speed or 1.0}
        else:
            about |= {"signature": made.signature, "batch": made.rows, "input": options.source}
            about |= {"assumed": list(made.assumed)} if made.assumed else {}
        about["distinct_requests"] = len(made.payloads)
        if options.warmup_s is not None or options.ramp or options.during or options.replay:
            about["warmup_s"] = options.warmup_s or 0.0
        return about


def _measured(bench: Bench, loads: Sequence[Load]) -> Iterator[NamedRun]:
    """Yield runs one by one, until one is ended by a stop."""
    for each in loads:
        bench.progress.step(f"Sending, {each.name}")
        run = bench.measure(each)
        if not len(run.samples):
            raise UsageError("no request was due", remedy="raise --rate or --duration")
        yield NamedRun(each.name, run, stats.summarize(run))
        if bench.stop is not None and bench.stop.is_set():
            return
