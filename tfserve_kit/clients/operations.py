"""What a client can do, each as a flow, shared by the blocking and the asyncio client.

A batch of any size is cut into parts that the server takes, and failures are isolated.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np

from tfserve_kit.clients import server_messages
from tfserve_kit.clients.inputs import (
    Features,
    Inputs,
    check_filter,
    fit,
    to_examples,
    unchecked,
)
from tfserve_kit.clients.protocol import (
    Answer,
    Attempts,
    Deadline,
    Exchange,
    Flow,
    Inferred,
    ServerProtocol,
)
from tfserve_kit.clients.results import (
    BatchPrediction,
    Classification,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
)
from tfserve_kit.errors import (
    InvalidRequest,
    ModelNotFound,
    RequestError,
    ServerFault,
    UsageError,
)
from tfserve_kit.savedmodel import Signature, choose_signature
from tfserve_kit.savedmodel.signatures import Arrays, BatchAxes, batch_axes, counted, of_any_rows

Timed = TypeVar("Timed", Classification, Regression)
T = TypeVar("T")

_Model = tuple[str, int | None, str | None]

_VERBS = ("classify", "regress")

OnError = Literal["raise", "isolate"]


class Operations:
    """Flows of one connection, and what they remember of the server. Thread-safe.

    Args:
        protocol: the protocol.
        attempts: how calls are repeated.
        check: whether inputs are held against the signature.

    Attributes:
        limits: how many rows the server takes at once, as far as it has said.
    """

    def __init__(self, protocol: ServerProtocol, attempts: Attempts, *, check: bool = True) -> None:
        self.protocol, self.attempts, self._check = protocol, attempts, check
        self._known: dict[_Model, Metadata] = {}
        self.limits: dict[Target, int] = {}

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
        return Prediction(outputs, version, began_s - deadline.left_s(), deadline.replica)

    def predict_batch(
        self,
        target: Target,
        inputs: Inputs,
        output_filter: Sequence[str],
        batch_size: int | None,
        on_error: OnError,
        timeout_s: float,
    ) -> Flow[BatchPrediction]:
        """Run a signature on any number of rows.

        Args:
            target: the model.
            inputs: array [rows, ...] per alias, the same number of rows in each; parameters, inputs
                without a batch axis, go with every part as they are.
            output_filter: aliases of the outputs wanted; all if empty.
            batch_size: rows in one request at most; None for as many as the server takes.
            on_error: `raise` ends with the first failure; `isolate` finds the rows that fail.
            timeout_s: deadline of the whole batch, in seconds.
        """
        _require_possible(batch_size, on_error)
        deadline = self.attempts.deadline(timeout_s)
        signature, fitted = yield from self.fitted(
            target, inputs, output_filter, deadline, any_rows=True
        )
        arrays = {alias: np.asarray(value) for alias, value in fitted.items()}
        axes = _axes(signature, arrays, target)
        parts = _Parts(
            self, target, arrays, axes, signature, output_filter, batch_size, on_error, deadline
        )
        began_s = deadline.left_s()
        rows = _row_count(axes.row_counts(arrays), target)
        _require_row_by_row(signature, axes, output_filter, target)
        if rows:
            yield from parts.send(range(rows))
            outputs = _joined(parts.answers, target)
        else:  # a request without rows would block the server's batching queue for good
            outputs = _empty(signature, output_filter, target)
        answered = np.array([row for part, _ in parts.answers for row in part], np.int64)
        duration_s = began_s - deadline.left_s()
        versions = frozenset(parts.versions)
        return BatchPrediction(
            outputs,
            answered,
            parts.errors,
            versions,
            parts.requests,
            duration_s,
            frozenset(parts.replicas),
        )

    def classify(
        self, target: Target, rows: Iterable[Features], timeout_s: float
    ) -> Flow[Classification]:
        """Ask for the classes of examples."""
        return self._timed(self.protocol.classify(target, to_examples(rows)), timeout_s)

    def regress(
        self, target: Target, rows: Iterable[Features], timeout_s: float
    ) -> Flow[Regression]:
        """Ask for a value of each example."""
        return self._timed(self.protocol.regress(target, to_examples(rows)), timeout_s)

    def multi_inference(
        self,
        target: Target,
        tasks: Mapping[str, str],
        rows: Iterable[Features],
        timeout_s: float,
    ) -> Flow[dict[str, Inferred]]:
        """Ask several signatures about the same examples."""
        for signature, verb in tasks.items():
            if verb not in _VERBS:
                raise UsageError(
                    f"signature {signature!r} has the unknown task {verb!r}",
                    remedy="give classify or regress for each signature",
                )
        call = self.protocol.multi_inference(target, tasks, to_examples(rows))
        deadline = self.attempts.deadline(timeout_s)
        began_s = deadline.left_s()
        found = yield from self.attempts.call(call, deadline)
        duration_s = began_s - deadline.left_s()
        return {
            name: replace(result, duration_s=duration_s, replica=deadline.replica)
            for name, result in found.items()
        }

    def metadata(self, target: Target, timeout_s: float) -> Flow[Metadata]:
        """Read the signatures, anew each time."""
        return self._read(target, self.attempts.deadline(timeout_s))

    def status(self, target: Target, timeout_s: float) -> Flow[list[VersionStatus]]:
        """Read the state of the versions."""
        deadline = self.attempts.deadline(timeout_s)
        found = yield from self.attempts.call(self.protocol.status(target), deadline)
        return [replace(each, replica=deadline.replica) for each in found]

    def reload(self, config: Any, timeout_s: float) -> Flow[None]:
        """Replace the configuration."""
        self.attempts.require_one_server()
        return self.attempts.call(self.protocol.reload(config), self.attempts.deadline(timeout_s))

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
        if isinstance(output_filter, str):  # a sequence of its letters
            text = f"output_filter is {output_filter!r}, not a list of names"
            raise InvalidRequest(text, remedy=f"give [{output_filter!r}]")
        if not self._check and not self.protocol.needs_signature:
            return None, unchecked(inputs)
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
        call = self.protocol.predict(target, inputs, output_filter, signature)
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

    def _fit(
        self,
        known: Metadata,
        target: Target,
        inputs: Inputs,
        output_filter: Sequence[str],
        *,
        any_rows: bool,
    ) -> tuple[Signature, Mapping[str, Any]]:
        signature = choose_signature(
            known.signatures, target.signature, of=str(target), error=InvalidRequest
        )
        if not self._check:
            return signature, unchecked(inputs)
        check_filter(output_filter, signature, target)
        takes_defaults = self.protocol.takes_defaults
        wanted = of_any_rows(signature) if any_rows else signature
        return signature, fit(inputs, wanted, target, takes_defaults=takes_defaults)

    def _read(self, target: Target, deadline: Deadline) -> Flow[Metadata]:
        found = yield from self.attempts.call(self.protocol.metadata(target), deadline)
        found = replace(found, replica=deadline.replica)
        self._known[_model(target)] = found
        return found

    def _timed(self, call: Exchange[Timed], timeout_s: float) -> Flow[Timed]:
        deadline = self.attempts.deadline(timeout_s)
        began_s = deadline.left_s()
        result = yield from self.attempts.call(call, deadline)
        took_s = began_s - deadline.left_s()
        return replace(result, duration_s=took_s, replica=deadline.replica)


def _model(target: Target) -> _Model:
    """Return the part of a target that decides about its signatures."""
    return target.model, target.version, target.label


def _require_possible(batch_size: int | None, on_error: OnError) -> None:
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size cannot be {batch_size}", remedy="give 1 or more")
    if on_error not in {"raise", "isolate"}:
        raise UsageError(f"on_error cannot be {on_error!r}", remedy="give 'raise' or 'isolate'")


@dataclass(slots=True)
class _Parts:
    """Sends a batch in parts and gathers what comes back."""

    operations: Operations
    target: Target
    inputs: Arrays
    axes: BatchAxes
    signature: Signature | None
    output_filter: Sequence[str]
    batch_size: int | None
    on_error: OnError
    deadline: Deadline
    answers: list[tuple[range, Arrays]] = field(default_factory=list)
    errors: dict[int, RequestError] = field(default_factory=dict)
    versions: set[int] = field(default_factory=set)
    replicas: set[str] = field(default_factory=set)
    requests: int = 0

    def send(self, rows: range) -> Flow[None]:
        """Send rows in order, part after part; what is refused comes back in pieces."""
        left = deque([rows])
        while left:
            part = left.popleft()
            limit = self._limit()
            if limit is not None and len(part) > limit:
                left.extendleft(reversed(_cut(part, limit)))
                continue
            try:
                yield from self._ask(part)
            except RequestError as error:
                left.extendleft(reversed(self._after(error, part)))

    def _ask(self, part: range) -> Flow[None]:
        rows = max(len(part), self.axes.fixed_rows or 0)
        # Where the model takes only so many rows, the last one is repeated.
        taken = np.minimum(np.arange(part.start, part.start + rows), part.stop - 1)
        chosen = slice(part.start, part.stop) if rows == len(part) else taken
        piece = self.axes.taken(self.inputs, chosen)
        self.requests += 1
        outputs, version = yield from self.operations.ask(
            self.target, piece, self.output_filter, self.signature, self.deadline
        )
        for alias, array in outputs.items():
            if not array.ndim or len(array) != rows:
                text = f"{self.target}: output {alias!r} for {counted(rows)} is {list(array.shape)}"
                raise ServerFault(text, remedy="its outputs are not row by row: use predict")
        self.answers.append((part, {each: outputs[each][: len(part)] for each in outputs}))
        if version is not None:
            self.versions.add(version)
        self.replicas.add(self.deadline.replica)

    def _after(self, error: RequestError, part: range) -> list[range]:
        """Return what to send in place of a part that failed; note the rows that are lost.

        Raises:
            RequestError: the failure ends the batch.
        """
        limit = server_messages.batch_limit(error.message)
        if limit is not None and limit < len(part):
            self.operations.limits[self.target] = limit
            return _cut(part, limit)
        if self.on_error == "raise" or isinstance(error, ModelNotFound):
            raise error
        if len(part) > 1 and isinstance(error, InvalidRequest | ServerFault):
            return _cut(part, (len(part) + 1) // 2)
        self.errors.update(dict.fromkeys(part, error))
        return []

    def _limit(self) -> int | None:
        """Return how many rows may go at once; the server may take fewer than were asked for."""
        limits = [
            self.batch_size,
            self.operations.limits.get(self.target),
            self.axes.fixed_rows,
        ]
        return min((limit for limit in limits if limit is not None), default=None)


def _cut(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _axes(signature: Signature | None, arrays: Arrays, target: Target) -> BatchAxes:
    """Return which inputs have rows; where the signature is not known, all that have an axis.

    Raises:
        InvalidRequest: they cannot be cut.
    """
    if signature is None:
        return BatchAxes.of_rows(arrays)
    axes = batch_axes(signature)
    if axes.composites:
        raise InvalidRequest(
            f"cannot cut a batch for {target}: {axes.composites[0]}", remedy="use predict"
        )
    return axes


def _require_row_by_row(
    signature: Signature | None, axes: BatchAxes, output_filter: Sequence[str], target: Target
) -> None:
    """Refuse outputs that would be put together of parts, and mean something else then.

    Raises:
        InvalidRequest: one of those that are wanted has no row for each row of the input.
    """
    wanted = axes.whole & set(output_filter) if output_filter else axes.whole
    if signature is not None and wanted:
        alias = min(wanted)
        others = [each for each in signature.outputs if each not in axes.whole]
        remedy = f"use predict, or an output_filter of {', '.join(others)}"
        raise InvalidRequest(
            f"cannot cut a batch for {target}: output {alias!r} is {signature.outputs[alias]}, "
            "not row by row",
            remedy=remedy if others else "use predict",
        )


def _row_count(counts: Mapping[str, int], target: Target) -> int:
    if len(set(counts.values())) != 1:
        shown = ", ".join(f"{alias}: {count}" for alias, count in counts.items()) or "none"
        raise InvalidRequest(
            f"cannot send a batch to {target}: the inputs have different numbers of rows ({shown})",
            remedy="the first axis of each input must count the rows",
        )
    return next(iter(counts.values()))


def _joined(answers: Sequence[tuple[range, Arrays]], target: Target) -> Arrays:
    if not answers:
        return {}
    try:
        return {
            alias: np.concatenate([outputs[alias] for _, outputs in answers])
            for alias in answers[0][1]
        }
    except (KeyError, ValueError) as error:  # such as columns that follow the longest row
        raise ServerFault(
            f"{target}: the answers to parts of the batch do not go together: {error}",
            remedy="send rows that give outputs of one shape, or use predict",
        ) from error


def _empty(signature: Signature | None, output_filter: Sequence[str], target: Target) -> Arrays:
    """Return outputs of no rows, as far as the signature tells them."""
    if signature is None:
        raise InvalidRequest(
            f"cannot send a batch without rows to {target}", remedy="leave out check=False"
        )
    return {
        alias: np.empty((0, *(size or 0 for size in (spec.shape or ())[1:])), spec.dtype.numpy)
        for alias, spec in signature.outputs.items()
        if spec.dtype is not None and (not output_filter or alias in output_filter)
    }
