"""The client that blocks: each method runs the flow of the same name."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from tfserve_kit.clients.attempts import Attempts
from tfserve_kit.clients.base import DEFAULT_TIMEOUT_S, closed
from tfserve_kit.clients.batches import Batch, OnError, predict_batch
from tfserve_kit.clients.checking import Inputs
from tfserve_kit.clients.driver import Transport, run
from tfserve_kit.clients.effects import Flow, with_headers
from tfserve_kit.clients.examples import Features
from tfserve_kit.clients.headers import Headers
from tfserve_kit.clients.operations import Operations
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.results import (
    BatchPrediction,
    Classification,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
)
from tfserve_kit.clients.targets import named
from tfserve_kit.clients.wire import Inferred, Wire
from tfserve_kit.clock import Clock, SystemClock

T = TypeVar("T")


class Client:
    """A connection to one model server; a context manager. Thread-safe.

    Every method that asks the server takes `timeout_s`, the time for all it does, in seconds, and
    `headers` of its own. It raises a `RequestError`: ServerUnreachable, ModelNotFound,
    InvalidRequest, DeadlineExceeded, ServerOverloaded or ServerFault; and UsageError after
    `close`. A forked child may use the client that its parent made.

    Args:
        wire: the protocol.
        transport: what sends requests of that protocol.
        options: how the client behaves.
        clock: what time is measured and waited with.
    """

    def __init__(
        self, wire: Wire, transport: Transport, options: Options, clock: Clock | None = None
    ) -> None:
        self.url = wire.url
        self._transport, self._clock = transport, clock or SystemClock()
        self._is_closed = False
        attempts = Attempts(wire, options, self._clock)
        self._operations = Operations(wire, attempts, check=options.check)

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
        where = named(target, signature)
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
        batch = Batch(output_filter, batch_size, on_error)
        where = named(target, signature)
        return self._run(predict_batch(self._operations, where, inputs, batch, timeout_s), headers)

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
            self._operations.classify(named(target, signature), examples, timeout_s), headers
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
            self._operations.regress(named(target, signature), examples, timeout_s), headers
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
        where = named(target, "")
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
        return self._run(self._operations.metadata(named(target, ""), timeout_s), headers)

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
        return self._run(self._operations.status(named(target, ""), timeout_s), headers)

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T], headers: Headers | None) -> T:
        if self._is_closed:
            raise closed(self.url)
        return run(with_headers(flow, headers), self._transport, self._clock)
