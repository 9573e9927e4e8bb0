"""A swap of versions under traffic: what every request met, and whether any of them noticed."""

import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients import Client, Target
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.errors import (
    ModelNotFound,
    PushRefused,
    RequestError,
    ServerFailed,
    ServerFault,
    UsageError,
)
from tfserve_kit.perf import payloads
from tfserve_kit.perf.sending.judging import Expected
from tfserve_kit.perf.stats import quantile
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository.versions import retire, rollback
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, choose_signature
from tfserve_kit.serving.waiting import SwapTime, wait, wait_each, wait_gone

__all__ = ["SwapReport", "SwapTime", "Traffic", "verify", "wait", "wait_gone"]

Outputs = Mapping[str, NDArray[Any]]

# How long answers may take before senders run out and requests become late.
_COVERED_S = 0.5
_MOST_SENDERS = 64


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent while versions change.

    Attributes:
        rate: requests per second, sent whatever the server does.
        inputs: array per input alias, the same for every request; None draws random ones from the
            signature.
        signature: which signature; empty for `serving_default`.
        files: what `push_under_traffic` reads the inputs from, as `tfkit request` does.
        settle_s: how long traffic runs before the push, and again after the new version answered.
        timeout_s: deadline of one request.
        swap_timeout_s: longest wait for the new version, and for the old one in a roll-back.
    """

    rate: float = 50.0
    inputs: Mapping[str, NDArray[Any]] | None = None
    signature: str = ""
    files: Sequence[Path] = ()
    settle_s: float = 1.0
    timeout_s: float = 10.0
    swap_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of one request; seconds of the clock that the stream was given.

    Attributes:
        sent_s: when it was sent.
        received_s: when its answer or its error was there.
        version: the version that answered; 0 for an error.
        is_right: whether the outputs are those of the version's reference.
        error: name of the error; empty for an answer.
        message: what the error said.
    """

    sent_s: float
    received_s: float
    version: int
    is_right: bool = True
    error: str = ""
    message: str = ""


class _Stream:
    """Sends traffic to a model, without a version, for the duration of a `with` block.

    Args:
        client: the server; its answers must say which version they are from.
        target: the model and the signature.
        inputs: array per input alias.
        traffic: how much of it.
        references: the right outputs by version; a version not in it adds its first answer that
            is of the types and shapes that its signature names.
        clock: what moments are taken from.
    """

    def __init__(
        self,
        client: Client,
        target: Target,
        inputs: Mapping[str, NDArray[Any]],
        traffic: Traffic,
        *,
        references: dict[int, Outputs],
        clock: Clock,
    ) -> None:
        self._client, self._target, self._inputs = client, target, inputs
        self._traffic, self._clock = traffic, clock
        self._references = references
        self._expected: dict[int, Expected | None] = {}
        self._doubts: dict[str, frozenset[int]] = {}
        for version, outputs in references.items():
            if expected := self._expects(version):
                self._doubts = expected.doubts(outputs)
        self._changed = threading.Condition()
        self._answers: list[_Answer] = []
        self._seen: set[int] = set()
        self._latencies: list[tuple[float, float]] = []
        self._ended = threading.Event()
        count = min(_MOST_SENDERS, max(2, math.ceil(traffic.rate * _COVERED_S)))
        self._senders = [threading.Thread(target=self._run) for _ in range(count)]
        self._turns = itertools.count()
        self._began_s = math.nan

    def __enter__(self) -> Self:
        self._began_s = self._clock.now_s()
        for each in self._senders:
            each.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for each in self._senders:
            each.join()

    def answers(self) -> list[_Answer]:
        """Return what has come back until now, in that order."""
        with self._changed:
            return list(self._answers)

    def await_answer(self, version: int, timeout_s: float) -> bool:
        """Wait until a version has answered; return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: version in self._seen, timeout_s)

    def latencies(self) -> list[tuple[float, float]]:
        """Return when each answered request was due and how long it took from then, in seconds.

        To be called after the `with` block.
        """
        return list(self._latencies)

    def _run(self) -> None:
        """Send one request after another when it is due; late ones at once."""
        while True:
            due_s = self._began_s + next(self._turns) / self._traffic.rate
            if self._ended.wait(max(0.0, due_s - self._clock.now_s())):
                return
            self._send(due_s)

    def _send(self, due_s: float) -> None:
        sent_s = self._clock.now_s()
        try:
            answer = self._client.predict(
                self._target, self._inputs, timeout_s=self._traffic.timeout_s
            )
        except Exception as error:  # a bug is lost traffic too
            self._keep(_Answer(sent_s, self._clock.now_s(), 0, True, *_described(error)))
            if isinstance(error, RequestError):
                return
            raise
        received_s, version = self._clock.now_s(), answer.version or 0
        if fault := self._fault(version, answer.outputs):
            self._keep(_Answer(sent_s, received_s, 0, True, ServerFault.__name__, fault))
            return
        with self._changed:
            reference = self._references.setdefault(version, answer.outputs)
            self._latencies.append((due_s, received_s - due_s))
        self._keep(_Answer(sent_s, received_s, version, same(answer.outputs, reference)))

    def _fault(self, version: int, outputs: Outputs) -> str:
        """Return what is wrong with the types and shapes of an answer; empty if nothing is."""
        if version not in self._expected:
            self._expected[version] = self._expects(version)
        expected = self._expected[version]
        return expected.doubted(self._doubts).fault_of(outputs)[1] if expected else ""

    def _expects(self, version: int) -> Expected | None:
        """Return what a version's signature says of answers; None where it cannot be read."""
        name = self._target.signature or DEFAULT_SIGNATURE
        try:
            found = self._client.metadata(Target(self._target.model, version)).signatures
        except RequestError:
            return None
        return Expected.of(found[name], self._inputs) if name in found else None

    def _keep(self, answer: _Answer) -> None:
        with self._changed:
            self._answers.append(answer)
            self._seen.add(answer.version)
            self._changed.notify_all()


def _described(error: Exception) -> Sequence[str]:
    return type(error).__name__, error.message if isinstance(error, RequestError) else str(error)


def same(one: Outputs, other: Outputs) -> bool:
    """Say whether two answers are equal, but for the rounding that differs from batch to batch."""
    return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)


def _close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind not in "fcV":
        return bool(np.array_equal(one, other))
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    share = 1e-2 if one.dtype.itemsize <= 2 else 1e-5  # noqa: PLR2004 (half precision)
    return np.allclose(
        one.astype(wide), other.astype(wide), rtol=share, atol=share / 10, equal_nan=True
    )


@dataclass(frozen=True, slots=True)
class SwapReport:
    """How a swap under traffic went, and what came of the requests.

    Attributes:
        model: its name.
        old: the version that answered before.
        new: the version pushed.
        rate: requests sent per second.
        push_s: when the push began, on the clock of the answers.
        pushed_s: when it was done.
        events: what happened, in order; seconds since the end of the push.
        failure: why the new version is not served; empty if it is.
        rolled_back: the versions retired because of a problem.
        rolled_back_s: when that began, on the clock of the answers; None where it did not.
        roll_back_failure: why the old version does not serve again; empty if it does.
        sent: requests sent.
        lost: requests that failed, by kind of error.
        examples: what an error of each kind said.
        answers: answers by version.
        strays: answers by versions that are neither the old nor the new one.
        stale: answers by the old version to requests sent after the new one had answered, and was
            AVAILABLE on all replicas.
        wrong: answers whose outputs are not the version's own, by version.
        serve_s: from the end of the push to the first answer by the new version; None for none.
        phases: latencies `before` the push, `during` it and the load, and `after` the new version's
            first answer: of how many `requests` that were due then and answered, and `p50_s`,
            `p99_s` and `max_s` from due to done, in seconds; nan where none was answered.
        replicas: seconds from the end of the push until each replica had the new version, by its
            name; None where it never did.
    """

    model: str
    old: int
    new: int
    rate: float
    push_s: float = 0.0
    pushed_s: float = 0.0
    events: tuple[tuple[float, str], ...] = ()
    failure: str = ""
    rolled_back: tuple[int, ...] = ()
    rolled_back_s: float | None = None
    roll_back_failure: str = ""
    replicas: Mapping[str, float | None] = field(default_factory=dict)
    sent: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[int, int] = field(default_factory=dict)
    strays: Mapping[int, int] = field(default_factory=dict)
    stale: int = 0
    wrong: Mapping[int, int] = field(default_factory=dict)
    serve_s: float | None = None
    phases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

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
        for key in ("push_s", "pushed_s", "rolled_back_s"):  # of a clock that nobody else has
            del data[key]
        data["events"] = tuple({"at_s": at_s, "what": what} for at_s, what in self.events)
        data["phases"] = {
            name: {key: None if math.isnan(value) else value for key, value in phase.items()}
            for name, phase in self.phases.items()
        }
        return data | {"passed": self.passed, "problems": self.problems()}

    def as_text(self) -> str:
        """Return it for a terminal; latencies in milliseconds."""
        wrong = sum(self.wrong.values()) + sum(self.strays.values()) + self.stale
        lost = sum(self.lost.values())
        answered = ", ".join(f"{count:,} by version {n}" for n, count in self.answers.items())
        lines = [
            self._verdict(),
            *(f"  - {problem}" for problem in self.problems()),
            f"{self.sent:,} requests at {self.rate:g}/s: {lost:,} lost, {wrong:,} wrong answers",
            f"answers: {answered or 'none'}",
            *self._by_replica(),
            "",
            f"{'latency, ms':<12}{'requests':>10}{'p50':>10}{'p99':>10}{'max':>10}",
            *(_row(name, phase) for name, phase in self.phases.items()),
            "",
            *(f"{at_s:>+9.2f} s  {what}" for at_s, what in self.events),
        ]
        return "\n".join(lines)

    def _by_replica(self) -> list[str]:
        """Return a line that says when each of several replicas had the version."""
        if len(self.replicas) < 2:  # noqa: PLR2004 (there is nothing to tell apart)
            return []
        told = (
            f"{name} {'never' if took is None else f'after {took:.2f} s'}"
            for name, took in self.replicas.items()
        )
        return [f"version {self.new} on {len(self.replicas)} replicas: {', '.join(told)}"]

    def _verdict(self) -> str:
        swap = f"{self.model!r} from version {self.old} to {self.new}"
        if self.passed:
            return f"Passed: {swap}, served {self.serve_s or 0:.2f} s after the push"
        if self.roll_back_failure or not self.rolled_back:
            return f"Failed: {swap}"
        return f"Failed and rolled back: {swap}; version {self.old} serves again"


def _row(name: str, phase: Mapping[str, float]) -> str:
    requests, *times = phase.values()
    cells = "".join(f"{'-' if math.isnan(t) else f'{t * 1e3:.1f}':>10}" for t in times)
    return f"{name:<12}{requests:>10,}{cells}"


def _judge(
    course: SwapReport, answers: Sequence[_Answer], latencies: Sequence[tuple[float, float]] = ()
) -> SwapReport:
    """Return the outcome of a swap.

    A request that was on its way when the new version took over may be answered by the old one.
    One that was sent after an answer of the new version had been received may not, where the server
    serves the highest version (tensorflow_serving/core/basic_manager.cc), unless the new version
    was rolled back.

    Args:
        course: how it went, without what came of the requests.
        answers: what came of them.
        latencies: when each answered request was due, and how long it took from then, in seconds.
    """
    good = [answer for answer in answers if not answer.error]
    bad = [answer for answer in answers if answer.error]
    served_s = min((a.received_s for a in good if a.version == course.new), default=None)
    versions = Counter(answer.version for answer in good)
    return replace(
        course,
        sent=len(answers),
        lost=_sorted(Counter(answer.error for answer in bad)),
        examples={answer.error: answer.message for answer in bad},
        answers=_sorted(versions),
        strays={n: versions[n] for n in sorted(versions) if n not in {course.old, course.new}},
        stale=_stale(course, good, served_s),
        wrong=_sorted(Counter(answer.version for answer in good if not answer.is_right)),
        serve_s=None if served_s is None else max(0.0, served_s - course.pushed_s),
        phases=_phases(course, latencies, served_s),
    )


def _stale(course: SwapReport, good: Sequence[_Answer], served_s: float | None) -> int:
    if served_s is None:
        return 0
    until_s = math.inf if course.rolled_back_s is None else course.rolled_back_s
    if len(course.replicas) > 1:  # until then another one may still answer
        took_s = [math.inf if took is None else took for took in course.replicas.values()]
        served_s = max(served_s, course.pushed_s + max(took_s))
    late = [answer for answer in good if served_s < answer.sent_s < until_s]
    # What was sent just before a roll-back may be answered after it.
    return sum(each.version == course.old and each.received_s < until_s for each in late)


def _phases(
    course: SwapReport, latencies: Sequence[tuple[float, float]], served_s: float | None
) -> dict[str, dict[str, float]]:
    borders = {
        "before": (-math.inf, course.push_s),
        "during": (course.push_s, math.inf if served_s is None else served_s),
        "after": (math.inf if served_s is None else served_s, math.inf),
    }
    return {
        name: _quantiles([took_s for due_s, took_s in latencies if start <= due_s < end])
        for name, (start, end) in borders.items()
    }


def _quantiles(latencies_s: Sequence[float]) -> dict[str, float]:
    rising = sorted(latencies_s)
    p50_s, p99_s = (quantile(rising, q) if rising else math.nan for q in (0.5, 0.99))
    longest_s = max(rising, default=math.nan)
    return {"requests": len(rising), "p50_s": p50_s, "p99_s": p99_s, "max_s": longest_s}


def _sorted(counts: Mapping[Any, int]) -> dict[Any, int]:
    return {key: counts[key] for key in sorted(counts)}


def verify(  # noqa: PLR0913 (what is pushed, watched how, and who is told)
    client: Client,
    model: str,
    push: Callable[[], int],
    *,
    traffic: Traffic | None = None,
    roll_back_in: Path | None = None,
    each: Mapping[str, Client] | None = None,
    progress: Progress = SILENT,
) -> SwapReport:
    """Push a version while requests come in, and look whether any of them noticed.

    The requests name no version, as those of most users. All have the same input, so that the
    answers of a version can be compared: those of the old one with an answer from before the push,
    those of the new one with its first and with one that is asked for by number at the end.

    Args:
        client: a gRPC client of the server, without retries, which would hide lost requests; over
            REST an answer does not say its version.
        model: name of the model; a version of it must be served.
        push: pushes the new version and returns its number; called once, under traffic.
        traffic: what is sent.
        roll_back_in: the model's base path, where the new version is retired again if there is any
            problem; None leaves it.
        each: a client of each replica, by its name, where the server has several: the new version
            must be AVAILABLE on all, and each is asked for it by number.
        progress: told the steps.

    Returns:
        What happened; `passed` says whether all was well. A version that does not load is a problem
        of the report, not an error.

    Raises:
        UsageError: the model is not served, its answers do not say their version or differ for the
            same input, or the input cannot be made. Nothing was pushed.
        RequestError: the server does not answer before the push.
        TfkitError: whatever `push` raises.
    """
    proof = _Proof(client, each or {client.url: client}, model, traffic or Traffic(), progress)
    with proof.stream:
        proof.push(push)
        proof.await_new()
        if roll_back_in is not None and not _judge(proof.course, proof.answers()).passed:
            proof.roll_back(roll_back_in)
    return _judge(proof.course, proof.answers(), proof.stream.latencies())


class _Proof:
    """One swap, step by step."""

    def __init__(
        self,
        client: Client,
        each: Mapping[str, Client],
        model: str,
        traffic: Traffic,
        progress: Progress,
    ) -> None:
        self._replicas, self._model, self._traffic = each, model, traffic
        self._clock, self._progress = SystemClock(), progress
        self._timeout_s = traffic.swap_timeout_s
        self._target = Target(model, signature=traffic.signature)
        self._inputs = traffic.inputs or _drawn(client, self._target, progress)
        old, outputs = _reference(client, self._target, self._inputs)
        self._references = {old: outputs}
        self._events: list[tuple[float, str]] = []
        self._asked: list[_Answer] = []
        self.course = SwapReport(model, old, 0, traffic.rate)
        self.stream = _Stream(
            client,
            self._target,
            self._inputs,
            traffic,
            references=self._references,
            clock=self._clock,
        )

    def answers(self) -> list[_Answer]:
        """Return the answers until now, with those that were asked for by number."""
        return [*self.stream.answers(), *self._asked]

    def push(self, push: Callable[[], int]) -> None:
        """Push after some time of traffic."""
        self._mark("traffic began")
        self._clock.sleep(self._traffic.settle_s)
        began_s = self._mark("push began")
        new = push()
        self.course = replace(self.course, new=new, push_s=began_s, pushed_s=self._clock.now_s())
        self._mark(f"version {new} pushed")

    def await_new(self) -> None:
        """Wait until the new version answers, and let traffic go on for some time."""
        new = self.course.new
        try:
            self._serve(new)
            self._mark(f"version {new} answered")
            self._clock.sleep(self._traffic.settle_s)
            for name, client in self._replicas.items():
                self._ask(name, client, new)
        except (ServerFailed, RequestError) as error:
            self.course = replace(self.course, failure=error.message)
            self._mark("the new version failed")
        self._keep_events()

    def roll_back(self, base_path: Path) -> None:
        """Retire the new version, and wait until the old one serves."""
        old = self.course.old
        self.course = replace(self.course, rolled_back_s=self._mark("roll-back began"))
        self._progress.step(f"rolling back to version {old}")
        try:
            self._retire(base_path)
            self._wait(old)
            for client in self._replicas.values():
                for version in self.course.rolled_back:
                    wait_gone(client, self._model, version, timeout_s=self._timeout_s)
            self._mark(f"version {old} serves again")
            self._clock.sleep(self._traffic.settle_s)
        except (PushRefused, ServerFailed, RequestError) as error:
            self.course = replace(self.course, roll_back_failure=error.message)
        self._keep_events()

    def _serve(self, new: int) -> None:
        """Wait until a request without a version is answered by the new one."""
        began_s = self._clock.now_s()
        if new < self.course.old:
            raise ServerFailed(
                f"version {new} is below version {self.course.old}, which the server serves",
                remedy="push it under a higher number: servers load the highest",
            )
        found: dict[str, SwapTime] = {}
        try:
            self._wait(new, found)
        finally:
            late_s = began_s - self.course.pushed_s
            took_s = {name: late_s + took.available_s for name, took in found.items()}
            times = {name: took_s.get(name) for name in self._replicas}
            self.course = replace(self.course, replicas=times)
        self._mark(f"version {new} AVAILABLE")
        left_s = self._timeout_s - (self._clock.now_s() - began_s)
        if not self.stream.await_answer(new, max(left_s, self._traffic.timeout_s)):
            raise ServerFailed(
                f"version {new} is AVAILABLE, but does not answer requests",
                remedy="`tfkit logs` says why; push a version that answers, under a new number",
            )

    def _retire(self, base_path: Path) -> None:
        old, new = self.course.old, self.course.new
        if new < old:
            retire(base_path, new)
            gone = [new]
        else:
            gone = rollback(base_path, to=old)
        self.course = replace(self.course, rolled_back=tuple(gone))

    def _wait(self, version: int, found: dict[str, SwapTime] | None = None) -> None:
        wait_each(
            self._replicas,
            self._model,
            version,
            timeout_s=self._timeout_s,
            progress=self._progress,
            found=found,
        )

    def _ask(self, name: str, client: Client, version: int) -> None:
        """Ask a replica's version by number for what it answered at first."""
        target = replace(self._target, version=version)
        sent_s = self._clock.now_s()
        try:
            found = client.predict(target, self._inputs, timeout_s=self._traffic.timeout_s)
        except RequestError as error:
            if len(self._replicas) > 1:
                error.message = f"replica {name}: {error.message}"
            raise
        is_right = same(found.outputs, self._references[version])
        self._asked.append(_Answer(sent_s, self._clock.now_s(), found.version or 0, is_right))

    def _mark(self, what: str) -> float:
        now_s = self._clock.now_s()
        self._events.append((now_s, what))
        return now_s

    def _keep_events(self) -> None:
        zero_s = self.course.pushed_s
        events = tuple((at_s - zero_s, what) for at_s, what in self._events)
        self.course = replace(self.course, events=events)


def _drawn(client: Client, target: Target, progress: Progress) -> Mapping[str, NDArray[Any]]:
    """Return random input for the signature."""
    signatures = client.metadata(Target(target.model)).signatures
    signature = choose_signature(signatures, target.signature, of=f"model {target.model!r}")
    drawn = payloads.random_inputs(signature, batch=1, seed=0)
    for text in payloads.assumptions(signature):
        progress.note(f"Note: {text}")
    return drawn


def _reference(
    client: Client, target: Target, inputs: Mapping[str, NDArray[Any]]
) -> tuple[int, Outputs]:
    """Return the version that answers now, and what it answers."""
    try:
        first = client.predict(target, inputs)
    except ModelNotFound as error:
        raise UsageError(
            f"{client.url} serves no version of {target.model!r}, so no swap can be watched",
            remedy="push the first version without --verify",
        ) from error
    if first.version is None:
        raise UsageError(
            f"answers of {client.url} do not say which version they are from",
            remedy="give the server's gRPC address: grpc://HOST:PORT",
        )
    again = client.predict(replace(target, version=first.version), inputs)
    if not same(first.outputs, again.outputs):
        raise UsageError(
            f"model {target.model!r} answers the same input differently each time, so its answers "
            "cannot be compared",
            remedy="push without --verify",
        )
    return first.version, first.outputs
