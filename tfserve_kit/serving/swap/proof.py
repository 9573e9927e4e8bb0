"""The proof of a swap: traffic before, while and after a version is pushed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tfserve_kit.clients.base import Client, Target
from tfserve_kit.clock import SystemClock
from tfserve_kit.errors import (
    ModelNotFound,
    PushRefused,
    RequestError,
    ServerFailed,
    UsageError,
    did_you_mean,
)
from tfserve_kit.perf import payloads
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import retention
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.serving.swap.report import Course, Event, SwapReport, judge
from tfserve_kit.serving.swap.traffic import Answer, Outputs, Stream, Traffic, same
from tfserve_kit.serving.swap.waiting import wait, wait_gone


def verify(
    client: Client,
    model: str,
    push: Callable[[], int],
    *,
    traffic: Traffic | None = None,
    roll_back_in: Path | None = None,
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
        progress: told the steps.

    Returns:
        What happened; `passed` says whether all was well. A version that does not load is no error
        here, but a problem of the report.

    Raises:
        UsageError: the model is not served, its answers do not say their version or differ for the
            same input, or the input cannot be made. Nothing was pushed.
        RequestError: the server does not answer before the push.
        TfkitError: whatever `push` raises.
    """
    proof = _Proof(client, model, traffic or Traffic(), progress)
    with proof.stream:
        proof.push(push)
        proof.await_new()
        if roll_back_in is not None and not judge(proof.course, proof.answers()).passed:
            proof.roll_back(roll_back_in)
    return judge(proof.course, proof.answers(), proof.stream.latencies())


class _Proof:
    """One swap, step by step."""

    def __init__(self, client: Client, model: str, traffic: Traffic, progress: Progress) -> None:
        self._client, self._model, self._traffic = client, model, traffic
        self._clock, self._progress = SystemClock(), progress
        self._timeout_s = traffic.swap_timeout_s
        self._target = Target(model, signature=traffic.signature)
        self._inputs = traffic.inputs or _drawn(client, self._target, progress)
        old, outputs = _reference(client, self._target, self._inputs)
        self._references = {old: outputs}
        self._events: list[tuple[float, str]] = []
        self._asked: list[Answer] = []
        self.course = Course(model, old, 0, traffic.rate, 0.0, 0.0)
        self.stream = Stream(
            client,
            self._target,
            self._inputs,
            traffic,
            references=self._references,
            clock=self._clock,
        )

    def answers(self) -> list[Answer]:
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
            self._ask(new)
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
            for version in self.course.rolled_back:
                wait_gone(self._client, self._model, version, timeout_s=self._timeout_s)
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
                f"version {new} is below version {self.course.old}, which the server serves"
            )
        self._wait(new)
        self._mark(f"version {new} AVAILABLE")
        left_s = self._timeout_s - (self._clock.now_s() - began_s)
        if not self.stream.await_answer(new, max(left_s, self._traffic.timeout_s)):
            raise ServerFailed(f"version {new} is AVAILABLE, but does not answer requests")

    def _retire(self, base_path: Path) -> None:
        old, new = self.course.old, self.course.new
        if new < old:
            retention.retire(base_path, new)
            gone = [new]
        else:
            gone = retention.rollback(base_path, to=old)
        self.course = replace(self.course, rolled_back=tuple(gone))

    def _wait(self, version: int) -> None:
        wait(
            self._client,
            self._model,
            version,
            timeout_s=self._timeout_s,
            progress=self._progress,
        )

    def _ask(self, version: int) -> None:
        """Ask a version by number for what it answered at first."""
        target = replace(self._target, version=version)
        sent_s = self._clock.now_s()
        found = self._client.predict(target, self._inputs, timeout_s=self._traffic.timeout_s)
        is_right = same(found.outputs, self._references[version])
        self._asked.append(Answer(sent_s, self._clock.now_s(), found.version or 0, is_right))

    def _mark(self, what: str) -> float:
        now_s = self._clock.now_s()
        self._events.append((now_s, what))
        return now_s

    def _keep_events(self) -> None:
        zero_s = self.course.pushed_s
        events = tuple(Event(at_s - zero_s, what) for at_s, what in self._events)
        self.course = replace(self.course, events=events)


def _drawn(client: Client, target: Target, progress: Progress) -> Mapping[str, NDArray[Any]]:
    """Return random input for the signature."""
    signatures = client.metadata(Target(target.model)).signatures
    name = target.signature or DEFAULT_SIGNATURE
    if name not in signatures:
        raise UsageError(
            f"model {target.model!r} has no signature {name!r}",
            remedy=did_you_mean(name, signatures),
        )
    drawn = payloads.random_inputs(signatures[name], batch=1, seed=0)
    for text in payloads.assumptions(signatures[name]):
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
