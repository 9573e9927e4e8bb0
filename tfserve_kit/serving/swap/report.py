"""What a swap under traffic amounts to: pure, from the answers to the verdict."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tfserve_kit.perf.stats import quantile
from tfserve_kit.serving.swap.traffic import Answer


@dataclass(frozen=True, slots=True)
class Phase:
    """Latencies of the requests due in a part of the swap, from due to done, in seconds.

    Attributes:
        requests: how many were answered.
        p50_s: the median; nan where none was answered, as the others.
        p99_s: the 99th percentile.
        max_s: the longest.
    """

    requests: int
    p50_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, latencies_s: Sequence[float]) -> "Phase":
        """Return the numbers of some latencies."""
        if not latencies_s:
            return cls(0, math.nan, math.nan, math.nan)
        rising = sorted(latencies_s)
        return cls(len(rising), quantile(rising, 0.5), quantile(rising, 0.99), rising[-1])


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `at_s` in seconds since the push was done."""

    at_s: float
    what: str


@dataclass(frozen=True, slots=True)
class Course:
    """How a swap went, apart from the answers.

    Attributes:
        model: its name.
        old: the version that answered before.
        new: the version pushed.
        rate: requests per second.
        push_s: when the push began, on the clock of the answers.
        pushed_s: when it was done.
        events: what happened, in order.
        failure: why the new version is not served; empty if it is.
        rolled_back: the versions retired because of a problem.
        rolled_back_s: when that began; None where it did not.
        roll_back_failure: why the old version does not serve again; empty if it does.
    """

    model: str
    old: int
    new: int
    rate: float
    push_s: float
    pushed_s: float
    events: tuple[Event, ...] = ()
    failure: str = ""
    rolled_back: tuple[int, ...] = ()
    rolled_back_s: float | None = None
    roll_back_failure: str = ""


@dataclass(frozen=True, slots=True)
class SwapReport:
    """The outcome of a swap under traffic.

    Attributes:
        model: its name.
        old: the version that answered before.
        new: the version pushed.
        rate: requests sent per second.
        sent: requests sent.
        lost: requests that failed, by kind of error.
        examples: what an error of each kind said.
        answers: answers by version.
        strays: answers by versions that are neither the old nor the new one.
        stale: answers by the old version to requests sent after the new one had answered.
        wrong: answers whose outputs are not the version's own, by version.
        serve_s: from the end of the push to the first answer by the new version; None for none.
        phases: latencies `before` the push, `during` it and the load, and `after` the new version's
            first answer.
        events: what happened; seconds since the end of the push.
        failure: why the new version is not served; empty if it is.
        rolled_back: the versions retired because of a problem.
        roll_back_failure: why the old version does not serve again; empty if it does.
    """

    model: str
    old: int
    new: int
    rate: float
    sent: int
    lost: Mapping[str, int]
    examples: Mapping[str, str]
    answers: Mapping[int, int]
    strays: Mapping[int, int]
    stale: int
    wrong: Mapping[int, int]
    serve_s: float | None
    phases: Mapping[str, Phase]
    events: tuple[Event, ...]
    failure: str
    rolled_back: tuple[int, ...]
    roll_back_failure: str

    @property
    def passed(self) -> bool:
        """Whether the new version serves, and no request noticed the change."""
        return not self.problems()

    def problems(self) -> list[str]:
        """Return what went wrong, as sentences."""
        found = [self.failure] if self.failure else []
        if not self.answers:
            found.append("no request was answered at all")
        for kind, count in self.lost.items():
            found.append(f"{count} of {self.sent} requests were lost: {self.examples[kind]}")
        for version, count in self.strays.items():
            found.append(f"{count} answers came from version {version}")
        if self.stale:
            found.append(
                f"{self.stale} answers came from version {self.old} to requests sent after version "
                f"{self.new} had answered"
            )
        for version, count in self.wrong.items():
            found.append(f"{count} answers of version {version} differ from its own first one")
        if self.roll_back_failure:
            found.append(f"the roll-back failed: {self.roll_back_failure}")
        return found

    def as_data(self) -> dict[str, Any]:
        """Return all of it for JSON; latencies that do not exist are null."""
        data = asdict(self)
        data["phases"] = {
            name: {key: None if math.isnan(value) else value for key, value in phase.items()}
            for name, phase in data["phases"].items()
        }
        return data | {"passed": self.passed, "problems": self.problems()}

    def as_text(self) -> str:
        """Return it for a terminal; latencies in milliseconds."""
        amiss = sum(self.wrong.values()) + sum(self.strays.values()) + self.stale
        lost = sum(self.lost.values())
        answered = ", ".join(f"{count:,} by version {n}" for n, count in self.answers.items())
        lines = [
            self._verdict(),
            *(f"  - {problem}" for problem in self.problems()),
            f"{self.sent:,} requests at {self.rate:g}/s: {lost:,} lost, {amiss:,} answers amiss",
            f"answers: {answered or 'none'}",
            "",
            f"{'latency, ms':<12}{'requests':>10}{'p50':>10}{'p99':>10}{'max':>10}",
            *(_row(name, phase) for name, phase in self.phases.items()),
            "",
            *(f"{event.at_s:>+9.2f} s  {event.what}" for event in self.events),
        ]
        return "\n".join(lines)

    def _verdict(self) -> str:
        swap = f"{self.model!r} from version {self.old} to {self.new}"
        if self.passed:
            return f"Passed: {swap}, served {self.serve_s or 0:.2f} s after the push"
        if self.roll_back_failure or not self.rolled_back:
            return f"Failed: {swap}"
        return f"Failed and rolled back: {swap}; version {self.old} serves again"


def _row(name: str, phase: Phase) -> str:
    times = (phase.p50_s, phase.p99_s, phase.max_s)
    cells = "".join(f"{'-' if math.isnan(t) else f'{t * 1e3:.1f}':>10}" for t in times)
    return f"{name:<12}{phase.requests:>10,}{cells}"


def judge(
    course: Course, answers: Sequence[Answer], latencies: Sequence[tuple[float, float]] = ()
) -> SwapReport:
    """Return the outcome of a swap.

    A request that was on its way when the new version took over may be answered by the old one.
    One that was sent after an answer of the new version had been received may not, where the server
    serves the highest version (tensorflow_serving/core/basic_manager.cc), unless the new version
    was rolled back.

    Args:
        course: how it went.
        answers: what came of the requests.
        latencies: when each answered request was due, and how long it took from then, in seconds.
    """
    good = [answer for answer in answers if not answer.error]
    bad = [answer for answer in answers if answer.error]
    served_s = min((a.received_s for a in good if a.version == course.new), default=None)
    versions = Counter(answer.version for answer in good)
    return SwapReport(
        model=course.model,
        old=course.old,
        new=course.new,
        rate=course.rate,
        sent=len(answers),
        lost=_sorted(Counter(answer.error for answer in bad)),
        examples={answer.error: answer.message for answer in bad},
        answers=_sorted(versions),
        strays={n: versions[n] for n in sorted(versions) if n not in {course.old, course.new}},
        stale=_stale(course, good, served_s),
        wrong=_sorted(Counter(answer.version for answer in good if not answer.is_right)),
        serve_s=None if served_s is None else max(0.0, served_s - course.pushed_s),
        phases=_phases(course, latencies, served_s),
        events=course.events,
        failure=course.failure,
        rolled_back=course.rolled_back,
        roll_back_failure=course.roll_back_failure,
    )


def _stale(course: Course, good: Sequence[Answer], served_s: float | None) -> int:
    if served_s is None:
        return 0
    until_s = math.inf if course.rolled_back_s is None else course.rolled_back_s
    late = [answer for answer in good if served_s < answer.sent_s < until_s]
    # What was sent just before a roll-back may be answered after it.
    return sum(each.version == course.old and each.received_s < until_s for each in late)


def _phases(
    course: Course, latencies: Sequence[tuple[float, float]], served_s: float | None
) -> dict[str, Phase]:
    borders = {
        "before": (-math.inf, course.push_s),
        "during": (course.push_s, math.inf if served_s is None else served_s),
        "after": (math.inf if served_s is None else served_s, math.inf),
    }
    return {
        name: Phase.of([took_s for due_s, took_s in latencies if start <= due_s < end])
        for name, (start, end) in borders.items()
    }


def _sorted(counts: Mapping[Any, int]) -> dict[Any, int]:
    return {key: counts[key] for key in sorted(counts)}
