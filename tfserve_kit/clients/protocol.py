"""Flows and protocols: what an operation asks of the world, and what the world answers.

An operation is a `Flow`, a generator that does no input or output itself. It yields a `Send` or a
`Sleep`, is resumed with the outcome, and returns its result. `sync.py` and `aio.py` run flows over
a transport; tests run them over lists.

A `ServerProtocol` turns values into requests and outcomes into errors, so it is tested on bytes.
`Attempts` sends one call until it has an answer, within a deadline, with pauses between.
"""

import math
import random
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from enum import Enum
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from tfserve_kit.clients.options import Headers, Options, for_grpc, for_http
from tfserve_kit.clients.results import Classification, Metadata, Regression, Target, VersionStatus
from tfserve_kit.clock import Clock
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RequestError,
    ServerOverloaded,
    ServerUnreachable,
)
from tfserve_kit.http.messages import HttpRequest
from tfserve_kit.savedmodel import Signature
from tfserve_kit.savedmodel.signatures import Arrays

T = TypeVar("T")


class GrpcRequest(NamedTuple):
    """A unary call: short name of the method, serialized message, metadata of this call alone."""

    method: str
    body: bytes
    headers: tuple[tuple[str, str | bytes], ...] = ()


Request = GrpcRequest | HttpRequest


class Reply(NamedTuple):
    """What the server answered.

    Attributes:
        ok: whether it is an answer rather than an error.
        body: its bytes; of an HTTP error, the error's body.
        status: name of the gRPC code or number of the HTTP status.
        text: gRPC's details, or HTTP's reason.
        cause: the exception it was taken from, if any.
    """

    ok: bool
    body: bytes
    status: str = ""
    text: str = ""
    cause: BaseException | None = None


class Loss(Enum):
    """Why there is no whole answer."""

    UNSENT = "there is no connection, so the server knows nothing of the request"
    BROKEN = "the connection ended before the whole answer was there"
    LATE = "the time is up"
    TOO_LARGE = "the answer is larger than the client accepts"
    GARBLED = "what came is not of the protocol"


class Lost(NamedTuple):
    """No whole answer came: why, in words of the transport, and the exception behind it."""

    how: Loss
    text: str
    cause: BaseException | None = None
    ok: bool = False


Outcome = Reply | Lost


class Send(NamedTuple):
    """Send a request; the flow is resumed with the `Outcome`.

    Attributes:
        request: what to send.
        timeout_s: how long it may take in all, in seconds.
        hedge_after_s: after how many seconds to send it a second time; None never.
        may_hedge: asked before that; False keeps it from being sent again.
        via: the transport to send with; None for the client's own.
        hedge_via: returns the transport to send with the second time; None for the same.
    """

    request: Request
    timeout_s: float
    hedge_after_s: float | None = None
    may_hedge: Callable[[], bool] | None = None
    via: Any = None
    hedge_via: Callable[[], Any] | None = None


class Sleep(NamedTuple):
    """Let time pass; the flow is resumed with None."""

    duration_s: float


Flow = Generator[Send | Sleep, Any, T]


def with_headers(flow: Flow[T], headers: Headers | None) -> Flow[T]:
    """Return a flow whose requests, whatever they are for, bear headers of their own.

    Where the caller traces with OpenTelemetry, these are also those of the current span: with its
    usual settings `traceparent` and `tracestate`, see https://www.w3.org/TR/trace-context/. Headers
    of the same names that were given win.

    Raises:
        UsageError: one of them cannot be sent.
    """
    if "opentelemetry.trace" in sys.modules:  # else nobody can have begun a span: nothing to pay
        headers = {**_of_the_span(headers or {}), **(headers or {})}
    return _with_headers(flow, headers) if headers else flow


def _of_the_span(given: Headers) -> dict[str, str]:
    from opentelemetry import propagate

    found: dict[str, str] = {}
    propagate.inject(found)
    names = {name.lower() for name in given}
    return {name: value for name, value in found.items() if name.lower() not in names}


def _with_headers(flow: Flow[T], headers: Headers) -> Flow[T]:
    try:
        effect = next(flow)
        while True:
            if isinstance(effect, Send):
                effect = effect._replace(request=_bearing(effect.request, headers))
            effect = flow.send((yield effect))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        flow.close()


def _bearing(request: Request, headers: Headers) -> Request:
    if isinstance(request, GrpcRequest):
        return request._replace(headers=for_grpc(headers))
    return request._replace(headers=tuple(for_http(headers).items()))


class Exchange(NamedTuple, Generic[T]):
    """One request of a protocol, and how its answer is read.

    Attributes:
        request: what to send.
        read: given the body of the answer, returns the result; raises ServerFault.
        about: what it is for, as errors name it.
        is_probe: asks whether the server answers; never repeated, so that it says what is.
    """

    request: Request
    read: Callable[[bytes], T]
    about: Target
    is_probe: bool = False


Answer = tuple[Arrays, int | None]
"""Output arrays and the version that answered, None where the protocol does not say."""
Inferred = Classification | Regression


class ServerProtocol(Protocol):
    """A protocol that model servers speak. `url` names the server in errors.

    Attributes:
        needs_signature: whether answers can be read only by who knows the signature.
        takes_defaults: whether inputs for which the model has defaults may be left out.
    """

    url: str
    needs_signature: bool
    takes_defaults: bool

    def predict(
        self,
        target: Target,
        inputs: Mapping[str, Any],
        output_filter: Sequence[str],
        signature: Signature | None,
    ) -> Exchange[Answer]:
        """Ask for outputs; `signature` is None where it is not known."""

    def classify(self, target: Target, examples: Sequence[Any]) -> Exchange[Classification]:
        """Ask for the classes of tf.Example messages."""

    def regress(self, target: Target, examples: Sequence[Any]) -> Exchange[Regression]:
        """Ask for a value of each of some tf.Example messages."""

    def multi_inference(
        self, target: Target, tasks: Mapping[str, str], examples: Sequence[Any]
    ) -> Exchange[dict[str, Inferred]]:
        """Ask several signatures (name to `classify` or `regress`) about the same examples."""

    def metadata(self, target: Target) -> Exchange[Metadata]:
        """Ask for the signatures."""

    def status(self, target: Target) -> Exchange[list[VersionStatus]]:
        """Ask for the state of the versions."""

    def reload(self, config: Any) -> Exchange[None]:
        """Replace the configuration by a ModelServerConfig message."""

    def error(self, outcome: Outcome, target: Target, timeout_s: float) -> RequestError:
        """Return the error that an outcome without answer means; `timeout_s` is the whole time."""


class _RetryBudget:
    """Allows a share of the requests to be sent again. Thread-safe.

    A server that is full answers everybody with a refusal; if everybody asks again, it gets several
    times the load. So repeated requests are a small part of all of them, on average.

    Args:
        share: tokens that each request brings.
        most: tokens that the bucket holds, and holds at first; each repeated request takes one.
    """

    def __init__(self, share: float, most: float = 10.0) -> None:
        self._share, self._most = share, most
        self._tokens = most if share else 0.0
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Note a request."""
        if self._tokens < self._most:
            with self._lock:
                self._tokens = min(self._most, self._tokens + self._share)

    def spend(self) -> bool:
        """Take a token for sending a request again; False if there is none."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


# The longest pause before the first repeated attempt; it doubles with each further one.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_FOREVER_S = 1e8  # three years; sockets, gRPC and threads refuse more, or end at once


class Deadline:
    """The moment by which a whole operation must have ended, however many requests it takes.

    Args:
        timeout_s: how long it may take, in seconds; `math.inf` for as long as it takes.
        clock: what it is measured with.
        replica: address of the server that is asked.

    Attributes:
        replica: address of the server that answered last.

    Raises:
        InvalidRequest: the timeout is not a number.
    """

    __slots__ = ("_clock", "began_s", "replica", "timeout_s")

    def __init__(self, timeout_s: float, clock: Clock, replica: str = "") -> None:
        try:
            is_number = not math.isnan(timeout_s)
        except TypeError:
            is_number = False
        if not is_number:
            text = f"timeout_s cannot be {timeout_s!r}"
            raise InvalidRequest(text, remedy="give seconds; math.inf waits as long as it takes")
        self.timeout_s = min(timeout_s, _FOREVER_S)
        self._clock, self.replica = clock, replica
        self.began_s = clock.now_s()

    def left_s(self) -> float:
        """Return how many seconds are left; not positive when time is up."""
        return self.began_s + self.timeout_s - self._clock.now_s()


class Attempts:
    """Sends a call, and sends it again where that is safe and promises something.

    Args:
        protocol: the protocol, for the errors it makes of outcomes.
        options: how often, and whether at all.
        clock: what time is measured with.
        chance: returns a number from 0 up to 1; pauses are that part of the longest one, so that
            clients that failed together do not come back together.
    """

    def __init__(
        self,
        protocol: ServerProtocol,
        options: Options,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._protocol, self._options, self._clock = protocol, options, clock
        self._chance = chance
        self._budget = _RetryBudget(options.retry_share)

    def deadline(self, timeout_s: float) -> Deadline:
        """Start the time of an operation."""
        return Deadline(timeout_s, self._clock, self._protocol.url)

    def require_one_server(self) -> None:
        """Refuse to reload a fleet: that is meant for one server.

        Raises:
            UsageError: there are several.
        """

    def call(self, call: Exchange[T], deadline: Deadline) -> Flow[T]:
        """Return the answer of a call.

        Raises:
            RequestError: the last attempt failed, or time is up.
        """
        self._budget.earn()
        number = 0
        while True:
            left_s = deadline.left_s()
            if left_s <= 0:
                raise self._late(call.about, deadline)
            outcome: Outcome = yield self._send(call, left_s)
            if outcome.ok:
                return call.read(outcome.body)  # type: ignore[union-attr]
            error = self._protocol.error(outcome, call.about, deadline.timeout_s)
            pause_s = self._pause_s(number)
            if not self._is_worth_another(call, error, outcome, number, deadline, pause_s):
                raise error from outcome.cause
            yield Sleep(pause_s)
            number += 1

    def _send(self, call: Exchange[T], left_s: float) -> Send:
        hedge_after_s = None if call.is_probe else self._options.hedge_after_s
        if hedge_after_s is None:
            return Send(call.request, left_s)
        return Send(call.request, left_s, hedge_after_s, self._budget.spend)

    def _pause_s(self, number: int) -> float:
        return self._chance() * min(_FIRST_PAUSE_S * 2.0**number, _LONGEST_PAUSE_S)

    def _is_worth_another(
        self,
        call: Exchange[T],
        error: RequestError,
        outcome: Outcome,
        number: int,
        deadline: Deadline,
        pause_s: float,
    ) -> bool:
        return (
            not call.is_probe
            and number < self._options.retries
            and pause_s < deadline.left_s()
            and self._is_safe(error, outcome)
            and self._budget.spend()
        )

    def _is_safe(self, error: RequestError, outcome: Outcome) -> bool:
        """Say whether sending again does no harm and may help."""
        if isinstance(error, ServerOverloaded):
            return True  # refused before any work
        if not isinstance(error, ServerUnreachable):
            return False
        unsent = isinstance(outcome, Lost) and outcome.how is Loss.UNSENT
        return unsent or self._options.idempotent

    def _late(self, about: Target, deadline: Deadline) -> DeadlineExceeded:
        text = f"{about} at {self._protocol.url}: no answer within {deadline.timeout_s:g} s"
        return DeadlineExceeded(text, remedy="raise --timeout")
