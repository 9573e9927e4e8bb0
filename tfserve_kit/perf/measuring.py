"""What `tfkit perf` does: requests made once, then measured runs, or a search for the highest rate.

A measurement from beginning to end: watch the server, send, mark what happens, keep it all.
"""

import math
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Self

from tfserve_kit import safe_text
from tfserve_kit.clients import addresses
from tfserve_kit.clients.options import OptionNames, Options
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import gate, load, sending, stats
from tfserve_kit.perf.gate import Condition
from tfserve_kit.perf.load import Arrivals, Closed, Load, Open, Payload, Sender, Tally
from tfserve_kit.perf.metrics import Watch
from tfserve_kit.perf.payloads import Preparer
from tfserve_kit.perf.samples import Mark, Run, Samples
from tfserve_kit.perf.stats import NamedRun, Summary
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.version import VERSION

_POISON, _OVERLOAD = "poison", "overload"
_POISON_EVERY = 100

_GRACE_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run.

    Attributes:
        name: what marks call it.
        argv: one text for the shell; or a program and its arguments, which Ctrl-C does not reach.
        news: makes a mark of what a program printed, as soon as it did; an empty text is none.
    """

    name: str
    argv: str | Sequence[str]
    news: Callable[[str], str] | None = None


def command_of(during: str) -> Command | None:
    """Return the shell command that a disturbance is; None for those that change what is sent."""
    return (
        None if during in {"", _POISON, _OVERLOAD} else Command(safe_text.redacted(during), during)
    )


class _Disturbance:
    """Runs a command beside a run; a `with` block that ends when both have.

    Args:
        command: the command, if any.
        after_s: when it begins, in seconds since the run began.

    Attributes:
        start_ns: `time.monotonic_ns()` at the start of the run; 0 before that.
        marks: when the command began and ended; to be read after the block.
    """

    def __init__(self, command: Command | None, after_s: float) -> None:
        self._command, self._after_s = command, after_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.start_ns = 0
        self.marks: list[Mark] = []

    def begin(self, start_ns: int) -> None:
        """Take note that the run has begun."""
        self.start_ns = start_ns
        if self._command:
            self._thread = threading.Thread(target=self._run, args=(self._command,))
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()

    def _run(self, command: Command) -> None:
        if self._over.wait(self._after_s):
            return
        self._mark(f"begin: {command.name}")
        run = self._shell if isinstance(command.argv, str) else self._program
        self._mark(f"end: {command.name} ({run(command)})")

    def _mark(self, what: str) -> None:
        self.marks.append(Mark(time.monotonic_ns() - self.start_ns, what))

    def _shell(self, command: Command) -> str:
        """Run a command of the user's, and return how it ended."""
        with subprocess.Popen(  # noqa: S602 (the user's own command line, in the user's own shell)
            command.argv, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process:
            return self._ended(process, lambda: None)

    def _program(self, command: Command) -> str:
        """Run a program, mark its news, and return how it ended, with its last words if badly."""
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            ) as process,
        ):
            ended = self._ended(process, _Once(out, lambda text: self._tell(command, text)))
            said = _text(err).rpartition("Error: ")[2].strip() if process.returncode else ""
        return f"{ended}: {said.splitlines()[0]}" if said else ended

    def _tell(self, command: Command, printed: str) -> None:
        if command.news and (news := command.news(printed)):
            self._mark(news)

    def _ended(self, process: "subprocess.Popen[bytes]", look: Callable[[], None]) -> str:
        """Wait, and return the exit code or that the command did not end with the run."""
        late_s = 0.0
        while (is_running := process.poll() is None) and late_s < _GRACE_S:
            look()
            time.sleep(_POLL_S)
            late_s += _POLL_S * self._over.is_set()
        look()
        if is_running:
            process.kill()
            return "killed: it outlived the run"
        return f"exit code {process.returncode}"


class _Once:
    """Passes on what a program printed, once it is there as a whole line."""

    def __init__(self, out: IO[bytes], tell: Callable[[str], None]) -> None:
        self._out, self._tell, self._is_over = out, tell, False

    def __call__(self) -> None:
        if not self._is_over and (text := _text(self._out)).endswith("\n"):
            self._is_over = True
            self._tell(text)


def _text(file: IO[bytes]) -> str:
    """Return what is in a file, and leave alone the place where the program goes on writing."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")


_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_environment() -> dict[str, str | int]:
    """Return processor, cores and versions, for a report to show beside its numbers."""
    found: dict[str, str | int] = {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "memory_gb": _memory_gb(),
        "load_before": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "governor": _read(_GOVERNOR) or "unknown",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "tfkit": VERSION,
        "grpcio": version("grpcio"),
        "numpy": version("numpy"),
    }
    return found


def _memory_gb() -> int:
    import psutil

    return round(psutil.virtual_memory().total / 1e9)


def _cpu() -> str:
    lines = (_read(Path("/proc/cpuinfo")) or "").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Bench:
    """All that runs of one measurement share.

    Attributes:
        payloads: what requests consist of, sent in turn.
        send: what takes the place of `perf.sending.run`.
        about: settings to keep besides those of the load.
        during: `poison` makes every hundredth request invalid; `overload` is the name of a load
            that doubles its rate, see `Open.at_rate`; anything else is a command for the shell, run
            after a third of the time, if `command` is none.
        watch: makes what looks at the server meanwhile.
        stop: ends a run early.
        progress: is told how many requests have ended.
        command: what is run after a third of the time, where `during` is but a name for it.
    """

    payloads: Sequence[Payload]
    send: Callable[..., Samples] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    during: str = ""
    watch: Callable[[], Watch] | None = None
    stop: threading.Event | None = None
    progress: Progress = SILENT
    command: Command | None = None

    def measure(self, load: Load) -> Run:
        """Send a load and return all that is known of the run."""
        payloads, about = self.payloads, dict(self.about)
        if self.during == _POISON:
            payloads, about = poisoned(payloads), about | {"poison_every": _POISON_EVERY}
        if self.during:
            about["during"] = safe_text.redacted(self.during)
        place = describe_environment()
        watch = self.watch() if self.watch else None
        disturbance = _Disturbance(self.command or command_of(self.during), load.duration_s / 3)
        with watch or nullcontext(), disturbance:
            samples = (self.send or sending.run)(
                load, payloads, stop=self.stop, progress=self.progress, started=disturbance.begin
            )
        marks = (*disturbance.marks, *_overload_marks(load))
        seen = watch.data(disturbance.start_ns) if watch else {}
        answers = checked(load.tally)
        return Run(samples, load.settings() | about, place, marks, seen, answers)


def checked(tally: Tally) -> dict[str, Any]:
    """Return how the answers of a run were checked, as a run keeps it; {} if they were not.

    Its keys: `checked` (answers looked into), `held_against` (what of each), `decoded` (how many
    of them in full), `versions` (right answers by the version that gave them; over gRPC),
    `rows_unknown` (outputs whose rows the request does not tell).
    """
    if not tally.checked:
        return {}
    return {
        "checked": tally.checked,
        "held_against": ["framing", "outputs", "dtype", "rank", "rows"],
        "decoded": tally.decoded,
        "versions": {str(version): tally.versions[version] for version in sorted(tally.versions)},
        "rows_unknown": sorted(tally.without_rows),
    }


def _overload_marks(load: Load) -> Iterator[Mark]:
    if load.settings()["is_overload"]:
        third_ns = round(load.duration_s / 3 * 1e9)
        yield Mark(third_ns, "begin: twice the rate")
        yield Mark(2 * third_ns, "end: twice the rate")


def poisoned(payloads: Sequence[Payload]) -> list[Payload]:
    """Return payloads of which every `_POISON_EVERY`-th is a request that no server can read."""
    turns = range(math.lcm(_POISON_EVERY, len(payloads)))
    return [
        payloads[i % len(payloads)]._replace(body=b"\xff\xff not a request \xff")
        if i % _POISON_EVERY == _POISON_EVERY - 1
        else payloads[i % len(payloads)]
        for i in turns
    ]


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
    def limit(self) -> Condition | None:
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
        if self.during == _OVERLOAD and not self.rate:
            raise UsageError("--during overload doubles a rate", remedy="give --rate")
        if self.during == _POISON and self.processes > 1:
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
        if self.during == _OVERLOAD:
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
        url: the server, or those of a fleet; names are resolved once.
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
        url = ",".join(addresses.servers(addresses.read(url)))
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

    def _find_max(self, bench: Bench, limit: Condition) -> Measurement:
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
            is_overload=self._options.during == _OVERLOAD,
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
            load.protocol_of(self._url),
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
