"""Flows and protocols: what an operation asks of the world, and what the world answers.

An operation is a `Flow`, a generator that does no input or output itself. It yields a `Send` or a
`Sleep`, is resumed with the outcome, and returns its result. `sync.py` and `aio.py` run flows over
a transport; tests run them over lists.

A `ServerProtocol` turns values into requests and outcomes into errors, so it is tested on bytes.
"""

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from enum import Enum
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from numpy.typing import NDArray

from tfserve_kit.clients.options import Headers, for_grpc, for_http
from tfserve_kit.clients.results import Classification, Metadata, Regression, Target, VersionStatus
from tfserve_kit.errors import RequestError
from tfserve_kit.http.messages import HttpRequest
from tfserve_kit.savedmodel import Signature

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


class Call(NamedTuple, Generic[T]):
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


Arrays = Mapping[str, NDArray[Any]]
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
    ) -> Call[Answer]:
        """Ask for outputs; `signature` is None where it is not known."""

    def classify(self, target: Target, examples: Sequence[Any]) -> Call[Classification]:
        """Ask for the classes of tf.Example messages."""

    def regress(self, target: Target, examples: Sequence[Any]) -> Call[Regression]:
        """Ask for a value of each of some tf.Example messages."""

    def multi_inference(
        self, target: Target, tasks: Mapping[str, str], examples: Sequence[Any]
    ) -> Call[dict[str, Inferred]]:
        """Ask several signatures (name to `classify` or `regress`) about the same examples."""

    def metadata(self, target: Target) -> Call[Metadata]:
        """Ask for the signatures."""

    def status(self, target: Target) -> Call[list[VersionStatus]]:
        """Ask for the state of the versions."""

    def reload(self, config: Any) -> Call[None]:
        """Replace the configuration by a ModelServerConfig message."""

    def error(self, outcome: Outcome, target: Target, timeout_s: float) -> RequestError:
        """Return the error that an outcome without answer means; `timeout_s` is the whole time."""
