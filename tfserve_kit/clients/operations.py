"""What a client can do, each as a flow; the blocking and the asyncio client share all of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tfserve_kit.clients import checking
from tfserve_kit.clients.attempts import Attempts, Deadline
from tfserve_kit.clients.checking import Inputs
from tfserve_kit.clients.effects import Call, Flow
from tfserve_kit.clients.examples import Features, to_examples
from tfserve_kit.clients.results import (
    Classification,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
)
from tfserve_kit.clients.wire import Answer, Inferred, Wire
from tfserve_kit.errors import InvalidRequest, ModelNotFound, RequestError, UsageError
from tfserve_kit.savedmodel import Signature
from tfserve_kit.savedmodel.batch_axes import of_any_rows

Timed = TypeVar("Timed", Classification, Regression)
T = TypeVar("T")

_Model = tuple[str, int | None, str | None]

VERBS = ("classify", "regress")


class Operations:
    """Flows of one connection, and what they remember of the server. Thread-safe.

    Args:
        wire: the protocol.
        attempts: how calls are repeated.
        check: whether inputs are held against the signature.
    """

    def __init__(self, wire: Wire, attempts: Attempts, *, check: bool = True) -> None:
        self.wire, self.attempts, self._check = wire, attempts, check
        self._known: dict[_Model, Metadata] = {}
        self._limits: dict[Target, int] = {}

    def predict(
        self,
        target: Target,
        inputs: Inputs,
        output_filter: Sequence[str],
        timeout_s: float,
    ) -> Flow[Prediction]:
        """Run a signature."""
        deadline = self.attempts.deadline(timeout_s)
        signature, arrays = yield from self.fitted(target, inputs, output_filter, deadline)
        began_s = deadline.left_s()
        outputs, version = yield from self.ask(target, arrays, output_filter, signature, deadline)
        return Prediction(outputs, version, began_s - deadline.left_s())

    def classify(
        self, target: Target, rows: Iterable[Features], timeout_s: float
    ) -> Flow[Classification]:
        """Ask for the classes of examples."""
        return self._timed(self.wire.classify(target, to_examples(rows)), timeout_s)

    def regress(
        self, target: Target, rows: Iterable[Features], timeout_s: float
    ) -> Flow[Regression]:
        """Ask for a value of each example."""
        return self._timed(self.wire.regress(target, to_examples(rows)), timeout_s)

    def multi_inference(
        self,
        target: Target,
        tasks: Mapping[str, str],
        rows: Iterable[Features],
        timeout_s: float,
    ) -> Flow[dict[str, Inferred]]:
        """Ask several signatures about the same examples."""
        for signature, verb in tasks.items():
            if verb not in VERBS:
                raise UsageError(
                    f"cannot {verb!r} with the signature {signature!r}",
                    remedy="give classify or regress for each signature",
                )
        call = self.wire.multi_inference(target, tasks, to_examples(rows))
        deadline = self.attempts.deadline(timeout_s)
        began_s = deadline.left_s()
        found = yield from self.attempts.call(call, deadline)
        duration_s = began_s - deadline.left_s()
        return {name: replace(result, duration_s=duration_s) for name, result in found.items()}

    def metadata(self, target: Target, timeout_s: float) -> Flow[Metadata]:
        """Read the signatures, anew each time."""
        return self._read(target, self.attempts.deadline(timeout_s))

    def status(self, target: Target, timeout_s: float) -> Flow[list[VersionStatus]]:
        """Read the state of the versions."""
        return self.attempts.call(self.wire.status(target), self.attempts.deadline(timeout_s))

    def reload(self, config: Any, timeout_s: float) -> Flow[None]:
        """Replace the configuration."""
        return self.attempts.call(self.wire.reload(config), self.attempts.deadline(timeout_s))

    # What predict and predict_batch share

    def fitted(
        self,
        target: Target,
        inputs: Inputs,
        output_filter: Sequence[str],
        deadline: Deadline,
        *,
        any_rows: bool = False,
    ) -> Flow[tuple[Signature | None, Mapping[str, Any]]]:
        """Return the signature, if it is looked at, and the inputs as it wants them.

        With `any_rows`, they may have another number of rows than the signature fixes.

        A refusal counts only when the signature was read for it: the model may have changed since.
        """
        if not self._check and not self.wire.needs_signature:
            return None, checking.unchecked(inputs)
        known = self._known.get(_model(target))
        if known is None:
            known = yield from self._read(target, deadline)
            return self._fit(known, target, inputs, output_filter, any_rows=any_rows)
        try:
            return self._fit(known, target, inputs, output_filter, any_rows=any_rows)
        except InvalidRequest:
            anew = yield from self._read(target, deadline)
            if anew == known:
                raise
        return self._fit(anew, target, inputs, output_filter, any_rows=any_rows)

    def ask(
        self,
        target: Target,
        inputs: Mapping[str, Any],
        output_filter: Sequence[str],
        signature: Signature | None,
        deadline: Deadline,
    ) -> Flow[Answer]:
        """Send one predict request; forget what was known of the model when it has changed."""
        call = self.wire.predict(target, inputs, output_filter, signature)
        try:
            answer = yield from self.attempts.call(call, deadline)
        except RequestError as error:
            if isinstance(error, InvalidRequest | ModelNotFound):
                self._known.pop(_model(target), None)
            raise
        version = answer[1]
        if version is not None and signature is not None:
            known = self._known.get(_model(target))
            if known is not None and known.version != version:
                self._known.pop(_model(target), None)
        return answer

    def limit(self, target: Target) -> int | None:
        """Return how many rows the server takes at once, as far as it has said."""
        return self._limits.get(target)

    def note_limit(self, target: Target, rows: int) -> None:
        """Remember how many rows the server takes at once."""
        self._limits[target] = rows

    def _fit(
        self,
        known: Metadata,
        target: Target,
        inputs: Inputs,
        output_filter: Sequence[str],
        *,
        any_rows: bool,
    ) -> tuple[Signature, Mapping[str, Any]]:
        signature = checking.choose(known.signatures, target)
        if not self._check:
            return signature, checking.unchecked(inputs)
        checking.check_filter(output_filter, signature, target)
        takes_defaults = self.wire.takes_defaults
        wanted = of_any_rows(signature) if any_rows else signature
        return signature, checking.fit(inputs, wanted, target, takes_defaults=takes_defaults)

    def _read(self, target: Target, deadline: Deadline) -> Flow[Metadata]:
        found = yield from self.attempts.call(self.wire.metadata(target), deadline)
        self._known[_model(target)] = found
        return found

    def _timed(self, call: Call[Timed], timeout_s: float) -> Flow[Timed]:
        deadline = self.attempts.deadline(timeout_s)
        began_s = deadline.left_s()
        result = yield from self.attempts.call(call, deadline)
        return replace(result, duration_s=began_s - deadline.left_s())


def _model(target: Target) -> _Model:
    """Return the part of a target that decides about its signatures."""
    return target.model, target.version, target.label
