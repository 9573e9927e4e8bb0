"""Batches of any size: cut into parts that the server takes, put together, failures isolated."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tfserve_kit.clients import server_texts
from tfserve_kit.clients.attempts import Deadline
from tfserve_kit.clients.checking import Inputs
from tfserve_kit.clients.effects import Flow
from tfserve_kit.clients.operations import Operations
from tfserve_kit.clients.results import BatchPrediction, Target
from tfserve_kit.clients.wire import Arrays
from tfserve_kit.errors import (
    InvalidRequest,
    ModelNotFound,
    RequestError,
    ServerFault,
    UsageError,
)
from tfserve_kit.savedmodel import Signature
from tfserve_kit.savedmodel.batch_axes import BatchAxes, batch_axes, counted

OnError = Literal["raise", "isolate"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What is wanted of a batch.

    Attributes:
        output_filter: aliases of the outputs wanted; all if empty.
        batch_size: rows in one request at most; None for as many as the server takes.
        on_error: `raise` ends with the first failure; `isolate` finds the rows that fail.
    """

    output_filter: Sequence[str] = ()
    batch_size: int | None = None
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch_size cannot be {self.batch_size}", remedy="give 1 or more")
        if self.on_error not in {"raise", "isolate"}:
            raise UsageError(
                f"on_error cannot be {self.on_error!r}", remedy="give 'raise' or 'isolate'"
            )


def predict_batch(
    operations: Operations, target: Target, inputs: Inputs, batch: Batch, timeout_s: float
) -> Flow[BatchPrediction]:
    """Run a signature on any number of rows.

    Args:
        operations: the connection.
        target: the model.
        inputs: array [rows, ...] per alias, the same number of rows in each; parameters, inputs
            without a batch axis, go with every part as they are.
        batch: what is wanted.
        timeout_s: deadline of the whole batch, in seconds.
    """
    deadline = operations.attempts.deadline(timeout_s)
    signature, fitted = yield from operations.fitted(
        target, inputs, batch.output_filter, deadline, any_rows=True
    )
    arrays = {alias: np.asarray(value) for alias, value in fitted.items()}
    axes = _axes(signature, arrays, target)
    parts = _Parts(operations, target, arrays, axes, signature, batch, deadline)
    began_s = deadline.left_s()
    rows = _row_count(axes.row_counts(arrays), target)
    _require_row_by_row(signature, axes, batch, target)
    if rows:
        yield from parts.send(range(rows))
        outputs = _joined(parts.answers, target)
    else:  # a request without rows would block the server's batching queue for good
        outputs = _empty(signature, batch.output_filter, target)
    answered = np.array([row for part, _ in parts.answers for row in part], np.int64)
    duration_s = began_s - deadline.left_s()
    versions = frozenset(parts.versions)
    return BatchPrediction(outputs, answered, parts.errors, versions, parts.requests, duration_s)


@dataclass(slots=True)
class _Parts:
    """Sends a batch in parts and gathers what comes back."""

    operations: Operations
    target: Target
    inputs: Arrays
    axes: BatchAxes
    signature: Signature | None
    batch: Batch
    deadline: Deadline
    answers: list[tuple[range, Arrays]] = field(default_factory=list)
    errors: dict[int, RequestError] = field(default_factory=dict)
    versions: set[int] = field(default_factory=set)
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
            self.target, piece, self.batch.output_filter, self.signature, self.deadline
        )
        for alias, array in outputs.items():
            if not array.ndim or len(array) != rows:
                text = f"{self.target}: output {alias!r} of {counted(rows)} is {list(array.shape)}"
                raise ServerFault(text, remedy="its outputs are not row by row: use predict")
        self.answers.append((part, {each: outputs[each][: len(part)] for each in outputs}))
        if version is not None:
            self.versions.add(version)

    def _after(self, error: RequestError, part: range) -> list[range]:
        """Return what to send in place of a part that failed; note the rows that are lost.

        Raises:
            RequestError: the failure ends the batch.
        """
        limit = server_texts.batch_limit(error.message)
        if limit is not None and limit < len(part):
            self.operations.note_limit(self.target, limit)
            return _cut(part, limit)
        if self.batch.on_error == "raise" or isinstance(error, ModelNotFound):
            raise error
        if len(part) > 1 and isinstance(error, InvalidRequest | ServerFault):
            return _cut(part, (len(part) + 1) // 2)
        self.errors.update(dict.fromkeys(part, error))
        return []

    def _limit(self) -> int | None:
        """Return how many rows may go at once; the server may take fewer than were asked for."""
        limits = [self.batch.batch_size, self.operations.limit(self.target), self.axes.fixed_rows]
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
    signature: Signature | None, axes: BatchAxes, batch: Batch, target: Target
) -> None:
    """Refuse outputs that would be put together of parts, and mean something else then.

    Raises:
        InvalidRequest: one of those that are wanted has no row for each row of the input.
    """
    wanted = axes.whole if not batch.output_filter else axes.whole & set(batch.output_filter)
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
            f"cannot send a batch without rows to {target}", remedy="leave check=False out"
        )
    return {
        alias: np.empty((0, *(size or 0 for size in (spec.shape or ())[1:])), spec.dtype.numpy)
        for alias, spec in signature.outputs.items()
        if spec.dtype is not None and (not output_filter or alias in output_filter)
    }
