"""Requests at a constant rate in the background, each answer compared as it comes."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients.base import Client, Target
from tfserve_kit.clock import Clock
from tfserve_kit.errors import RequestError, ServerFault
from tfserve_kit.perf import pacing, runner
from tfserve_kit.perf.expectations import Expected
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE

Outputs = Mapping[str, NDArray[Any]]

_LONGEST_S = 86_400.0
# How long answers may take before senders run out and requests become late.
_COVERED_S = 0.5


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent while versions change.

    Attributes:
        rate: requests per second, sent whatever the server does.
        inputs: array per input alias, the same for every request; None draws random ones from the
            signature.
        signature: which signature; empty for `serving_default`.
        settle_s: how long traffic runs before the push, and again after the new version answered.
        timeout_s: deadline of one request.
        swap_timeout_s: longest wait for the new version, and for the old one in a roll-back.
    """

    rate: float = 50.0
    inputs: Mapping[str, NDArray[Any]] | None = None
    signature: str = ""
    settle_s: float = 1.0
    timeout_s: float = 10.0
    swap_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
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


class Stream:
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
        self._answers: list[Answer] = []
        self._seen: set[int] = set()
        self._ended = threading.Event()
        self._thread = futures.ThreadPoolExecutor(1, "traffic")
        self.began_s = math.nan

    def __enter__(self) -> Self:
        senders = max(2, math.ceil(self._traffic.rate * _COVERED_S))
        self._samples = self._thread.submit(
            runner.open_loop, self._send, self._due(), concurrency=min(64, senders)
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.shutdown(wait=True)

    def answers(self) -> list[Answer]:
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
        return [
            (self.began_s + sample.due_ns / 1e9, sample.latency_s)
            for sample in self._samples.result()
            if sample.status == "OK"
        ]

    def _due(self) -> Iterator[float]:
        self.began_s = self._clock.now_s()
        due_s = pacing.constant(self._traffic.rate, _LONGEST_S)
        yield from takewhile(lambda _: not self._ended.is_set(), due_s)

    def _send(self) -> None:
        sent_s = self._clock.now_s()
        try:
            answer = self._client.predict(
                self._target, self._inputs, timeout_s=self._traffic.timeout_s
            )
        except Exception as error:  # a bug is lost traffic too
            self._keep(Answer(sent_s, self._clock.now_s(), 0, True, *_described(error)))
            raise
        received_s, version = self._clock.now_s(), answer.version or 0
        if fault := self._fault(version, answer.outputs):
            self._keep(Answer(sent_s, received_s, 0, True, ServerFault.__name__, fault))
            raise ServerFault(fault)
        with self._changed:
            reference = self._references.setdefault(version, answer.outputs)
        self._keep(Answer(sent_s, received_s, version, same(answer.outputs, reference)))

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

    def _keep(self, answer: Answer) -> None:
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
