"""What a model says of a picture: which of its outputs, and what their numbers mean.

Nothing is picked in silence: outputs that could both be the answer are refused, and what an answer
is shown as can be named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import ServerFault, UsageError, did_you_mean
from tfserve_kit.pictures.labels import Labels
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.savedmodel.signatures import batch_axes
from tfserve_kit.tensors import dtypes

# What to do about scores that are NaN or infinite: mostly the input has another range.
NAN_REMEDY = (
    "check that pixels have the range the model was trained with (--range, --mean, --std); "
    "`tfkit request PICTURE` shows the raw outputs; if they are NaN for every input, export the "
    "model again, after checking the weights for NaN"
)

Outputs = Mapping[str, NDArray[Any]]
Kind = Literal["scores", "ranked", "class", "detections"]

# What outputs with the scores of classes are usually called, the likeliest first.
_SCORE_NAMES = ("scores", "probabilities", "predictions", "softmax", "logits")
_FLOATS = frozenset({"float", "double", "half", "bfloat16"})
_BOX_SIDES = 4
_SUM_TOLERANCE = 1e-2  # of probabilities in 16 bits


@dataclass(frozen=True, slots=True)
class Head:
    """The outputs that are read.

    Attributes:
        kind: scores per class, scores of the best classes in their own order for each picture, a
            class alone, or boxes.
        scores: alias of the scores: float [batch, classes], or [batch, boxes] of detections.
        classes: alias of the classes' names or ids, where the model answers with them.
        boxes: alias of float [batch, boxes, 4].
        count: alias of how many of the boxes are meant.
        ids: alias of the numbers of ranked classes, where the model answers with them.
        batched: whether outputs have a batch axis.
    """

    kind: Kind
    scores: str = ""
    classes: str = ""
    boxes: str = ""
    count: str = ""
    ids: str = ""
    batched: bool = True


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: its box as the model gives it, its class id and name, and its score."""

    box: tuple[float, float, float, float]
    index: int | None
    label: str | None
    score: float


def is_usual(alias: str) -> bool:
    """Say whether an output has a name that scores of classes usually have."""
    return any(name in alias.lower() for name in _SCORE_NAMES)


def are_one_row(signature: Signature) -> bool:
    """Say whether all outputs have an axis for rows, of length one: one picture went in."""
    specs = signature.outputs.values()
    return bool(specs) and all(spec.shape and spec.shape[0] == 1 for spec in specs)


def choose_head(signature: Signature, output: str = "", *, batched: bool = True) -> Head:
    """Find the outputs that say what is in a picture.

    Args:
        signature: of the model.
        output: alias of the one to show; empty to find it.
        batched: whether outputs have a batch axis.

    Raises:
        UsageError: there is none, or more than one could be meant.
    """
    if output and output not in signature.outputs:
        raise UsageError(
            f"signature {signature.name!r} has no output {output!r}",
            remedy=did_you_mean(output, signature.outputs),
        )
    outputs = {output: signature.outputs[output]} if output else signature.outputs
    if batched:
        fixed = {None, 1, batch_axes(signature).fixed_rows}
        whole = [alias for alias, spec in outputs.items() if (spec.shape or (1,))[0] not in fixed]
        if len(whole) == len(outputs) > 0:
            raise _not_row_by_row(whole[0], signature)
        outputs = {alias: spec for alias, spec in outputs.items() if alias not in whole}
    if not output and (detector := _detector(outputs, batched=batched)):
        return detector
    rank = 2 if batched else 1
    scores = [alias for alias, spec in outputs.items() if _is_float(spec, rank)]
    columns = [alias for alias, spec in outputs.items() if _is_float(spec, rank - 1)]
    named = [alias for alias, spec in outputs.items() if _is_class(spec, rank)]
    if scores:
        alias = _one_of(scores, signature)
        return Head("scores", alias, _classes_beside(signature, rank), batched=batched)
    if len(columns) == 1:
        names = named[0] if len(named) == 1 else ""
        return Head("class" if names else "scores", columns[0], names, batched=batched)
    if len(named) == 1 and not columns:
        return Head("class", classes=named[0], batched=batched)
    raise _no_head(signature, outputs, rank)


def _is_float(spec: TensorSpec, rank: int) -> bool:
    is_float = spec.dtype is not None and spec.dtype.name in _FLOATS
    return is_float and (len(spec.shape) == rank if spec.shape is not None else rank == 2)  # noqa: PLR2004


def _is_class(spec: TensorSpec, rank: int) -> bool:
    """Say whether an output may be the name or the number of one class."""
    if not (_is_whole(spec) or spec.dtype is dtypes.STRING):
        return False
    shape = spec.shape
    return shape is None or len(shape) == rank - 1 or (len(shape) == rank and shape[-1] == 1)


def _is_whole(spec: TensorSpec) -> bool:
    """Say whether an output holds whole numbers."""
    return spec.dtype is not None and spec.dtype.numpy is not None and spec.dtype.numpy.kind in "iu"


def _one_of(scores: Sequence[str], signature: Signature) -> str:
    """Return the scores that are meant; logits beside their own probabilities do not count."""
    usual = [name for name in _SCORE_NAMES if name in scores]
    if len(scores) == 1 or len(usual) == len(scores):
        return (usual or list(scores))[0]
    listed = ", ".join(f"{alias} {signature.outputs[alias]}" for alias in scores)
    raise UsageError(
        f"signature {signature.name!r} has {len(scores)} outputs that may be class scores: "
        f"{listed}",
        remedy=f"choose one: {' or '.join(f'--output {quote(alias)}' for alias in scores)}",
    )


def _classes_beside(signature: Signature, rank: int) -> str:
    """Return the output that names the classes of scores: string of their rank; empty if none."""
    found = [
        alias
        for alias, spec in signature.outputs.items()
        if spec.dtype is dtypes.STRING and (spec.shape is None or len(spec.shape) == rank)
    ]
    usual = [alias for alias in found if "label" in alias.lower() or "class" in alias.lower()]
    chosen = usual or found
    return chosen[0] if len(chosen) == 1 else ""


def _detector(outputs: Mapping[str, TensorSpec], *, batched: bool) -> Head | None:
    """Return the outputs of an object detector, told by their names and ranks.

    Source: the exporters of the TensorFlow object detection API (`detection_boxes`,
    `detection_scores`, `detection_classes`, `num_detections`); others use parts of these names.
    """
    axes = 1 if batched else 0
    boxes = [
        alias
        for alias, spec in outputs.items()
        if "box" in alias.lower() and _is_float(spec, axes + 2) and _last(spec) in {None, 4}
    ]
    named = {
        what: [
            alias
            for alias, spec in outputs.items()
            if any(word in alias.lower() for word in words)
            and (spec.shape is None or len(spec.shape) == axes + rank)
        ]
        for what, words, rank in (
            ("scores", ("score", "confidence"), 1),
            ("classes", ("class", "label"), 1),
            ("count", ("num", "count", "valid"), 0),
        )
    }
    plain = {what: _plainest(found) for what, found in named.items()}
    if not (boxes and plain["scores"] and plain["classes"]):
        return None
    return Head(
        "detections", plain["scores"], plain["classes"], _plainest(boxes), plain["count"],
        batched=batched,
    )  # fmt: skip


def _plainest(found: Sequence[str]) -> str:
    """Return the shortest name: `detection_scores`, not `detection_multiclass_scores`."""
    return min(found, key=len, default="")


def _last(spec: TensorSpec) -> int | None:
    return spec.shape[-1] if spec.shape else None


def _not_row_by_row(alias: str, signature: Signature) -> UsageError:
    others = " or ".join(f"--output {quote(each)}" for each in signature.outputs if each != alias)
    choose = f"choose another, {others}; or " if others else ""
    return UsageError(
        f"output {alias!r} is {signature.outputs[alias]}: its first axis is fixed, so it has no "
        "row for each picture",
        remedy=f"{choose}export the model with scores [batch, classes]; `tfkit request PICTURE` "
        "shows any output",
    )


def _no_head(signature: Signature, outputs: Mapping[str, TensorSpec], rank: int) -> UsageError:
    listed = ", ".join(f"{alias}: {spec}" for alias, spec in outputs.items())
    many = [
        alias
        for alias, spec in outputs.items()
        if spec.shape is not None and len(spec.shape) > rank and _is_float(spec, len(spec.shape))
    ]
    if many:
        spec = outputs[many[0]]
        return UsageError(
            f"output {many[0]!r} is {spec}: one value per pixel, such as a segmentation mask "
            "or feature map, not class scores",
            remedy="`tfkit request PICTURE --output FILE.npz` keeps it as an array",
        )
    return UsageError(
        f"signature {signature.name!r} has no output with scores [batch, classes], nor one class "
        f"per picture: {listed}",
        remedy="choose one with --output or another signature with --signature; `tfkit metadata` "
        "lists them, and `tfkit request` shows any output",
    )


def is_one_column(head: Head, spec: TensorSpec) -> bool:
    """Say whether scores are one number for each picture: [batch, 1] or [batch]."""
    rank = 2 if head.batched else 1
    return spec.shape is not None and (len(spec.shape) < rank or spec.shape[-1] == 1)


def class_count(head: Head, signature: Signature) -> int | None:
    """Return how many classes there are scores for; None if the signature does not say."""
    spec = signature.outputs.get(head.scores)
    if head.kind != "scores" or spec is None or spec.shape is None:
        return None
    return 2 if is_one_column(head, spec) else spec.shape[-1]


_ODD_ANSWER = (
    "choose another output with --output (`tfkit metadata` lists them), or look at the answer: "
    "`tfkit request PICTURE --json`"
)


def _rows_of(outputs: Outputs, alias: str, rows: int, head: Head, where: str) -> NDArray[Any]:
    """Return an output with a batch axis of the length that was asked for.

    Raises:
        ServerFault: it is not there, or has another number of rows.
    """
    array = outputs.get(alias)
    if array is not None and not head.batched:
        array = array[np.newaxis]
    if array is None or array.ndim == 0 or len(array) != rows:
        shape = None if array is None else list(array.shape)
        raise ServerFault(
            f"{where}: output {alias!r} should have {rows} rows but is {shape}", remedy=_ODD_ANSWER
        )
    return array


def class_scores(outputs: Outputs, head: Head, rows: int, where: str) -> NDArray[np.float64]:
    """Return the scores of each class.

    One column is a binary classifier: it becomes two, for what it denies and what it affirms.

    Args:
        outputs: of an answer.
        head: of kind `scores`.
        rows: how many pictures were sent.
        where: named in errors.

    Returns:
        float64 [rows, classes], with two classes at least.

    Raises:
        ServerFault: the output has another shape.
        UsageError: one column that is not a probability.
    """
    scores = _rows_of(outputs, head.scores, rows, head, where).astype(np.float64)
    if scores.ndim == 1:
        scores = scores[:, np.newaxis]
    if scores.ndim != 2 or not scores.shape[1]:  # noqa: PLR2004 ([batch, classes])
        shape = list(scores.shape)
        raise ServerFault(
            f"{where}: output {head.scores!r} should be [{rows}, classes] but is {shape}",
            remedy=_ODD_ANSWER,
        )
    return scores


def as_probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits [rows, classes] as probabilities; of one column by the logistic function."""
    if scores.shape[1] == 1:
        return 1 / (1 + np.exp(-scores))
    powers = np.exp(scores - np.nanmax(scores, axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def two_classes(scores: NDArray[np.float64], head: Head) -> NDArray[np.float64]:
    """Return [rows, 2] of one column of probabilities; more columns stay what they are.

    Raises:
        UsageError: the column holds no probabilities.
    """
    if scores.shape[1] != 1:
        return scores
    if ((scores < 0) | (scores > 1)).any():
        value = float(scores[(scores < 0) | (scores > 1)][0])
        raise UsageError(
            f"output {head.scores!r} is one number for each picture, such as {value:g}, which is "
            "not a probability (0 to 1)",
            remedy="if it is a measurement, such as an age, it has no classes: `tfkit request "
            "PICTURE` shows the number; if it is a logit of class 1, give --softmax",
        )
    return np.hstack([1 - scores, scores])


def are_probabilities(scores: NDArray[np.float64]) -> bool:
    """Say whether each row lies in 0 to 1 and sums to 1, as far as 16 bits tell."""
    sums = scores.sum(axis=1)
    return bool(((scores >= 0) & (scores <= 1)).all() and (abs(sums - 1) <= _SUM_TOLERANCE).all())


def detections(
    outputs: Outputs, head: Head, rows: int, labels: Sequence[str] | None, where: str
) -> list[list[Detection]]:
    """Return the objects in each picture, the surest first.

    Raises:
        ServerFault: outputs that contradict each other.
    """
    boxes, scores, classes = (
        _rows_of(outputs, alias, rows, head, where)
        for alias in (head.boxes, head.scores, head.classes)
    )
    counts = (
        _rows_of(outputs, head.count, rows, head, where).reshape(rows).astype(np.int64).tolist()
        if head.count
        else [len(each) for each in scores]
    )
    if boxes.shape != (*scores.shape, _BOX_SIDES) or scores.shape != classes.shape:
        shapes = ", ".join(str(list(each.shape)) for each in (boxes, scores, classes))
        raise ServerFault(
            f"{where}: boxes, scores and classes do not fit together: {shapes}", remedy=_ODD_ANSWER
        )
    return [_objects(boxes[i], scores[i], classes[i], counts[i], labels) for i in range(rows)]


def _objects(
    boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any], count: int,
    labels: Sequence[str] | None,
) -> list[Detection]:  # fmt: skip
    found = []
    for at in np.argsort(-scores[:count].astype(np.float64), kind="stable"):
        index, label = _named(classes[at], labels)
        top, left, bottom, right = (float(side) for side in boxes[at])
        box = (top, left, bottom, right)
        found.append(Detection(box, index, label, float(scores[at])))
    return found


def _named(value: Any, labels: Sequence[str] | None) -> tuple[int | None, str | None]:
    """Return number and name of a class that a model answers with, as far as it tells."""
    if isinstance(value, bytes):
        return None, value.decode("utf-8", "replace")
    index = int(value)
    return index, None if labels is None else Labels.of(labels).by_id(index)


_ID_WORDS = ("class", "id", "ind", "label", "top")


def as_ranked(head: Head, signature: Signature, *, is_sorted: bool) -> Head:
    """Return what a head with scores is where their places are not the classes.

    Args:
        head: as `choose_head` found it.
        signature: of the model.
        is_sorted: whether it is proved that the scores are sorted anew for each picture.

    Raises:
        UsageError: they are, and no output says which classes they are of.
    """
    if head.kind != "scores":
        return head
    spec = signature.outputs[head.scores]
    ids = [
        alias
        for alias, each in signature.outputs.items()
        if _is_whole(each) and each.shape is not None and spec.shape is not None
        and len(each.shape) == len(spec.shape) > 1 and each.shape[-1] == spec.shape[-1] != 1
        and any(word in alias.lower() for word in _ID_WORDS)
    ]  # fmt: skip
    if not (is_sorted or ids):
        return head
    if not (head.classes or ids):
        raise UsageError(
            f"output {head.scores!r} holds the best scores of each picture, sorted, and no output "
            "says which classes they belong to",
            remedy=_sorted_remedy(head, signature),
        )
    return replace(head, kind="ranked", ids=ids[0] if ids else "")


def _sorted_remedy(head: Head, signature: Signature) -> str:
    """Return what to do about sorted scores: no other output can stand in for their classes."""
    others = [alias for alias, spec in signature.outputs.items()
              if alias != head.scores and _is_float(spec, 2 if head.batched else 1)]  # fmt: skip
    choose = f"choose unsorted scores by --output {quote(others[0])}; or " if others else ""
    return (
        f"{choose}export the model again, with the indices of tf.math.top_k as an output "
        "'classes' beside the scores, or with all scores unsorted; `tfkit request PICTURE` shows "
        "the sorted scores"
    )


Ranking = list[tuple[int | None, str | None, float | None]]


def ranking(
    outputs: Outputs, head: Head, rows: int, labels: Sequence[str] | None, where: str
) -> list[Ranking]:
    """Return number, name and score of the classes that a model answers with, for each row.

    Of a model that answers with a class alone it is that class, perhaps without a score.

    Raises:
        ServerFault: outputs that contradict each other.
    """
    aliases = [each for each in (head.ids, head.classes) if each]
    said = [_rows_of(outputs, each, rows, head, where) for each in aliases]
    scores = _rows_of(outputs, head.scores, rows, head, where) if head.scores else None
    if head.kind == "class":
        said = [each.reshape(rows, -1)[:, :1] for each in said]
        scores = None if scores is None else scores.reshape(rows, -1)[:, :1]
    shape = said[0].shape if scores is None else scores.shape
    if any(each.shape != shape for each in said):
        shapes = ", ".join(str(list(each.shape)) for each in (scores, *said) if each is not None)
        raise ServerFault(
            f"{where}: scores and their classes do not fit together: {shapes}", remedy=_ODD_ANSWER
        )
    found: list[Ranking] = []
    for row in range(rows):
        if scores is None:
            found.append([(*_both(said, (row, 0), labels), None)])
            continue
        order = np.argsort(-scores[row].astype(np.float64), kind="stable")
        found.append([(*_both(said, (row, at), labels), float(scores[row][at])) for at in order])
    return found


def _both(
    said: Sequence[NDArray[Any]], place: tuple[int, int], labels: Sequence[str] | None
) -> tuple[int | None, str | None]:
    """Return number and name of a class out of the outputs that say one of them."""
    told = [_named(each[place], labels) for each in said]
    index = next((index for index, _ in told if index is not None), None)
    return index, next((label for _, label in told if label is not None), None)
