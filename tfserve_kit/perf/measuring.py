"""One measurement from beginning to end: watch the server, send, mark what happens, keep it all."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from tfserve_kit.perf import environment
from tfserve_kit.perf.gate import Gate, judge
from tfserve_kit.perf.metrics import Watch
from tfserve_kit.perf.samples import Mark, Run, Samples
from tfserve_kit.perf.sending.load import Load, Payload
from tfserve_kit.perf.stats import Summary
from tfserve_kit.perf.workload import POISON_EVERY, Workload, poisoned
from tfserve_kit.progress import SILENT, Progress

POISON, OVERLOAD = "poison", "overload"

# What a server must keep besides the limit on latency.
_MOST_ERRORS = 0.001
_LEAST_ANSWERED = 0.95
_COMMAND_GRACE_S = 30.0


class Send(Protocol):
    """Sends a load; `perf.sending.run` is the real one."""

    def __call__(
        self,
        load: Load,
        payloads: Sequence[Payload],
        *,
        stop: threading.Event | None,
        progress: Progress,
        started: Callable[[int], object],
    ) -> Samples:
        """Return a sample of every request; see `perf.sending.run`."""


@dataclass(frozen=True, slots=True)
class Bench:
    """All that runs of one measurement share.

    Attributes:
        payloads: what requests consist of, sent in turn.
        send: what sends them.
        about: settings to keep besides those of the workload.
        during: `poison` makes every hundredth request invalid, `overload` doubles the rate in the
            middle third; anything else is a command for the shell, run after a third of the time.
        watch: makes what looks at the server meanwhile.
        stop: ends a run early.
        progress: is told how many requests have ended.
    """

    payloads: Sequence[Payload]
    send: Send
    about: Mapping[str, Any] = field(default_factory=dict)
    during: str = ""
    watch: Callable[[], Watch] | None = None
    stop: threading.Event | None = None
    progress: Progress = SILENT

    def measure(self, work: Workload) -> Run:
        """Send a workload and return all that is known of it."""
        payloads, about = self.payloads, dict(self.about)
        if self.during == POISON:
            payloads, about = poisoned(payloads), about | {"poison_every": POISON_EVERY}
        if self.during == OVERLOAD:
            work = replace(work, is_overload=True)
        if self.during:
            about["during"] = self.during
        load, place = work.load(), environment.describe()
        watch = self.watch() if self.watch else None
        drill = Drill(self.during, work.duration_s / 3)
        with watch or nullcontext(), drill:
            samples = self.send(
                load, payloads, stop=self.stop, progress=self.progress, started=drill.begin
            )
        marks = (*drill.marks, *_overload_marks(work))
        seen = watch.data(drill.start_ns) if watch else {}
        return Run(samples, work.settings() | about, place, marks, seen)


def keeps(slo: Gate, summary: Summary) -> bool:
    """Say whether a server kept a limit on latency at the rate that was offered to it.

    It did if the limit holds, at most one request of a thousand failed, and answers came at no
    less than 95 % of the rate of requests.
    """
    offered, achieved = summary.offered_rate, summary.achieved_rate
    if offered is None or achieved is None or summary.error_share > _MOST_ERRORS:
        return False
    return achieved >= _LEAST_ANSWERED * offered and judge(slo, summary).passed


def _overload_marks(work: Workload) -> Iterator[Mark]:
    if work.is_overload and work.rate is not None:
        third_ns = round(work.duration_s / 3 * 1e9)
        yield Mark(third_ns, "begin: twice the rate")
        yield Mark(2 * third_ns, "end: twice the rate")


class Drill:
    """Runs a shell command beside a run; a `with` block that ends when both have.

    Args:
        command: the command; nothing is run if it is empty, `poison` or `overload`.
        after_s: when it begins, in seconds since the run began.

    Attributes:
        start_ns: `time.monotonic_ns()` at the start of the run; 0 before that.
        marks: when the command began and ended; to be read after the block.
    """

    def __init__(self, command: str, after_s: float) -> None:
        self._command, self._after_s = command, after_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.start_ns = 0
        self.marks: list[Mark] = []

    def begin(self, start_ns: int) -> None:
        """Take note that the run has begun."""
        self.start_ns = start_ns
        if self._command not in {"", POISON, OVERLOAD}:
            self._thread = threading.Thread(target=self._run)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        if not self._over.wait(self._after_s):
            self._mark(f"begin: {self._command}")
            ended = _shell(self._command, self._over)
            self._mark(f"end: {self._command} ({ended})")

    def _mark(self, what: str) -> None:
        self.marks.append(Mark(time.monotonic_ns() - self.start_ns, what))


def _shell(command: str, over: threading.Event) -> str:
    """Run a command, and return its exit code or that it did not end with the run."""
    with subprocess.Popen(  # noqa: S602 (the user's own command line, in the user's own shell)
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        late_s = 0.0
        while process.poll() is None and late_s < _COMMAND_GRACE_S:
            time.sleep(0.05)
            late_s += 0.05 * over.is_set()
        if process.poll() is None:
            process.kill()
            return "killed: it outlived the run"
        return f"exit code {process.returncode}"
