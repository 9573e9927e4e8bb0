"""One measurement from beginning to end: watch the server, send, mark what happens, keep it all."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tfserve_kit import safe_text
from tfserve_kit.perf import environment
from tfserve_kit.perf.drills import OVERLOAD, POISON, Command, Drill, command_of
from tfserve_kit.perf.gate import Gate, judge
from tfserve_kit.perf.metrics import Watch
from tfserve_kit.perf.samples import Mark, Run, Samples
from tfserve_kit.perf.sending.load import Load, Payload
from tfserve_kit.perf.sending.tally import Tally
from tfserve_kit.perf.stats import Summary
from tfserve_kit.perf.workload import POISON_EVERY, Workload, poisoned
from tfserve_kit.progress import SILENT, Progress

# What a server must keep besides the limit on latency.
_MOST_ERRORS = 0.001
_LEAST_ANSWERED = 0.95


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
            middle third; anything else is a command for the shell, run after a third of the time,
            if `command` is none.
        watch: makes what looks at the server meanwhile.
        stop: ends a run early.
        progress: is told how many requests have ended.
        command: what is run after a third of the time, where `during` is but a name for it.
    """

    payloads: Sequence[Payload]
    send: Send
    about: Mapping[str, Any] = field(default_factory=dict)
    during: str = ""
    watch: Callable[[], Watch] | None = None
    stop: threading.Event | None = None
    progress: Progress = SILENT
    command: Command | None = None

    def measure(self, work: Workload) -> Run:
        """Send a workload and return all that is known of it."""
        payloads, about = self.payloads, dict(self.about)
        if self.during == POISON:
            payloads, about = poisoned(payloads), about | {"poison_every": POISON_EVERY}
        if self.during == OVERLOAD:
            work = replace(work, is_overload=True)
        if self.during:
            about["during"] = safe_text.redacted(self.during)
        load, place = work.load(), environment.describe()
        watch = self.watch() if self.watch else None
        drill = Drill(self.command or command_of(self.during), work.duration_s / 3)
        with watch or nullcontext(), drill:
            samples = self.send(
                load, payloads, stop=self.stop, progress=self.progress, started=drill.begin
            )
        marks = (*drill.marks, *_overload_marks(work))
        seen = watch.data(drill.start_ns) if watch else {}
        answers = checked(load.tally)
        return Run(samples, work.settings() | about, place, marks, seen, answers)


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
