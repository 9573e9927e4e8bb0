"""The blocking client: each method runs the flow of the same name. Nothing is decided here."""

import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

from tfserve_kit.clients.inputs import Features, Inputs
from tfserve_kit.clients.operations import OnError, Operations
from tfserve_kit.clients.options import DEFAULT_TIMEOUT_S, Headers, Options
from tfserve_kit.clients.protocol import (
    Attempts,
    Flow,
    Inferred,
    Outcome,
    Send,
    ServerProtocol,
    with_headers,
)
from tfserve_kit.clients.results import (
    BatchPrediction,
    Classification,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
    as_target,
)
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.errors import UsageError

T = TypeVar("T")


class Transport(Protocol):
    """Sends requests over connections it keeps, and blocks. Thread-safe."""

    def send(self, request: Any, timeout_s: float) -> Outcome:
        """Send a request and return what came of it, within `timeout_s` seconds; never raises."""

    def start(
        self, request: Any, timeout_s: float, done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        """Send a request in the background; returns what calls it off, as far as that can be."""

    def close(self) -> None:
        """Close the connections."""

    def abandon(self) -> None:
        """Close them, and have those that wait for an answer wait no longer."""


def run(flow: Flow[T], transport: Transport, clock: Clock) -> T:
    """Run a flow to its end and return its result; its errors pass through."""
    try:
        effect = next(flow)
        while True:
            if type(effect) is Send:
                via = effect.via or transport
                effect = flow.send(
                    via.send(effect.request, effect.timeout_s)
                    if effect.hedge_after_s is None
                    else _hedged(effect, effect.hedge_after_s, via)
                )
            else:
                clock.sleep(effect.duration_s)  # type: ignore[union-attr]
                effect = flow.send(None)
    except StopIteration as end:
        result: T = end.value
        return result


def _hedged(effect: Send, hedge_after_s: float, transport: Transport) -> Outcome:
    """Send once, and again if there is no answer after a while; the first answer counts."""
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    stops = [transport.start(effect.request, effect.timeout_s, outcomes.put)]
    try:
        try:
            return outcomes.get(timeout=min(hedge_after_s, effect.timeout_s))
        except queue.Empty:
            left_s = effect.timeout_s - hedge_after_s
        if left_s <= 0 or not (effect.may_hedge and effect.may_hedge()):
            return outcomes.get()
        second = effect.hedge_via() if effect.hedge_via else transport
        stops.append(second.start(effect.request, left_s, outcomes.put))
        first = outcomes.get()
        return first if first.ok else outcomes.get()
    finally:
        for stop in stops:
            stop()


class Client:
    """A connection to a model server or a fleet; a context manager. Thread-safe.

    Every method that asks the server takes `timeout_s`, the time for all it does, in seconds, and
    `headers` of its own. It raises a `RequestError`: ServerUnreachable, ModelNotFound,
    InvalidRequest, DeadlineExceeded, ServerOverloaded or ServerFault; and UsageError after
    `close`. A forked child may use the client that its parent made.

    Args:
        protocol: the protocol.
        transport: what sends requests of that protocol.
        options: how the client behaves.
        clock: what time is measured and waited with.
        attempts: how calls are repeated; as for one server if None.
    """

    def __init__(
        self,
        protocol: ServerProtocol,
        transport: Transport,
        options: Options,
        clock: Clock | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self.url = protocol.url
        self._transport, self._clock = transport, clock or SystemClock()
        self._is_closed = False
        attempts = attempts or Attempts(protocol, options, self._clock)
        self._operations = Operations(protocol, attempts, check=options.check)

    def predict(
        self,
        target: Target | str,
        inputs: Inputs,
        *,
        signature: str = "",
        output_filter: Sequence[str] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> Prediction:
        """Run a signature.

        Args:
            target: a model's name, or model, version or label, and signature.
            inputs: array per input alias; or an array alone, where the signature has one input.
            signature: which of the model's signatures, instead of the target's.
            output_filter: aliases of the outputs wanted; all if empty. REST sends all outputs, and
                the others are left out here.
            timeout_s: deadline, in seconds.
            headers: sent with the requests of this call, and win over those of `connect`.
        """
        where = as_target(target, signature)
        return self._run(self._operations.predict(where, inputs, output_filter, timeout_s), headers)

    def predict_batch(  # noqa: PLR0913 (predict, and how to cut)
        self,
        target: Target | str,
        inputs: Inputs,
        *,
        signature: str = "",
        output_filter: Sequence[str] = (),
        batch_size: int | None = None,
        on_error: OnError = "raise",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> BatchPrediction:
        """Run a signature on any number of rows, in as many requests as it takes.

        Args:
            target: as for `predict`.
            inputs: array [rows, ...] per input alias, with the same number of rows, or one alone;
                scalars go with every part.
            signature: as for `predict`.
            output_filter: as for `predict`.
            batch_size: rows in one request at most; None sends all at once until the server says
                how many it takes, which is remembered.
            on_error: `raise` ends with the first failure; `isolate` halves a part that fails until
                only the rows that make it fail are left, and returns their errors.
            timeout_s: deadline of the whole batch, in seconds.
            headers: as for `predict`.
        """
        where = as_target(target, signature)
        flow = self._operations.predict_batch(
            where, inputs, output_filter, batch_size, on_error, timeout_s
        )
        return self._run(flow, headers)

    def classify(
        self,
        target: Target | str,
        examples: Iterable[Features],
        *,
        signature: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> Classification:
        """Return labels and scores of examples.

        Args:
            target: as for `predict`.
            examples: for each a value or a list of values by name of the feature, or a serialized
                tf.Example.
            signature: as for `predict`.
            timeout_s: deadline, in seconds.
            headers: as for `predict`.
        """
        return self._run(
            self._operations.classify(as_target(target, signature), examples, timeout_s), headers
        )

    def regress(
        self,
        target: Target | str,
        examples: Iterable[Features],
        *,
        signature: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> Regression:
        """Return a value for each example; arguments as for `classify`."""
        return self._run(
            self._operations.regress(as_target(target, signature), examples, timeout_s), headers
        )

    def multi_inference(
        self,
        target: Target | str,
        tasks: Mapping[str, str],
        examples: Iterable[Features],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> dict[str, Inferred]:
        """Ask several signatures of a model about the same examples, in one request; gRPC only.

        Args:
            target: model, and version or label.
            tasks: `classify` or `regress` by name of the signature.
            examples: as for `classify`.
            timeout_s: deadline, in seconds.
            headers: as for `predict`.

        Returns:
            The result by name of the signature.

        Raises:
            UsageError: the client speaks REST, or a task is neither.
        """
        where = as_target(target, "")
        return self._run(
            self._operations.multi_inference(where, tasks, examples, timeout_s), headers
        )

    def metadata(
        self,
        target: Target | str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> Metadata:
        """Return the model's signatures, read anew."""
        return self._run(self._operations.metadata(as_target(target, ""), timeout_s), headers)

    def status(
        self,
        target: Target | str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> list[VersionStatus]:
        """Return the state of every version the server knows of the model, highest first.

        It is asked once and never again, so that it says how the server is now.
        """
        return self._run(self._operations.status(as_target(target, ""), timeout_s), headers)

    def reload(
        self, config: Any, *, timeout_s: float = DEFAULT_TIMEOUT_S, headers: Headers | None = None
    ) -> None:
        """Replace the whole set of served models; returns when each new name can answer.

        Args:
            config: a ModelServerConfig message.
            timeout_s: deadline, in seconds.
            headers: as for `predict`.

        Raises:
            UsageError: the client speaks REST, which has no such call.
            RequestError: the server refuses the configuration, or a new model fails to load.
        """
        self._run(self._operations.reload(config, timeout_s), headers)

    def close(self) -> None:
        """Close the connections; calls after it raise UsageError."""
        self._is_closed = True
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, flow: Flow[T], headers: Headers | None) -> T:
        if self._is_closed:
            raise closed_client(self.url)
        return run(with_headers(flow, headers), self._transport, self._clock)


def closed_client(url: str) -> UsageError:
    """Return what a client says that is used after it was closed."""
    return UsageError(
        f"the client for {url} is closed",
        remedy="create another with connect, and use it inside its `with` block",
    )
