"""What classify and regress ask of a signature and make of its outputs: pure checks.

Source: tensorflow_serving/servables/tensorflow/classifier.cc and regressor.cc.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded.status import invalid
from tfserve_kit.tensors import dtypes

Arrays = Mapping[str, NDArray[Any]]

PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
_INPUTS, _CLASSES, _SCORES, _OUTPUTS = "inputs", "classes", "scores", "outputs"


@dataclass(frozen=True, slots=True)
class Fetches:
    """Names of the tensors to feed the examples to, and to compute, by output alias."""

    feed: str
    outputs: Mapping[str, str]


def classification(definition: Any, *, check_method: bool) -> Fetches:
    """Return how a signature is called for classify.

    Args:
        definition: a SignatureDef message.
        check_method: insist on its method name.

    Raises:
        ServingError: the signature is of another kind.
    """
    if check_method and definition.method_name != CLASSIFY:
        raise invalid(
            f"Expected classification signature method_name to be {CLASSIFY}. "
            f"Was: {definition.method_name}"
        )
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(definition.outputs) not in {1, 2}:
        raise invalid(f"Expected one or two output Tensors, found {len(definition.outputs)}")
    if _INPUTS not in definition.inputs:
        raise invalid(
            f"No classification inputs found in SignatureDef: {protos.to_text(definition)}"
        )
    outputs = {
        alias: definition.outputs[alias].name
        for alias in (_CLASSES, _SCORES)
        if alias in definition.outputs
    }
    if not outputs:
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or '
            f'"scores". Signature was: {protos.to_text(definition)}'
        )
    if outputs.get(_CLASSES) == outputs.get(_SCORES):  # one tensor is taken for the classes alone
        del outputs[_SCORES]
    return Fetches(definition.inputs[_INPUTS].name, outputs)


def regression(definition: Any, *, check_method: bool) -> Fetches:
    """Return how a signature is called for regress; as `classification`."""
    if check_method and definition.method_name != REGRESS:
        raise invalid(
            f"Expected regression signature method_name to be {REGRESS}. "
            f"Was: {definition.method_name}"
        )
    if len(definition.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(definition.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    for aliases, alias, what in (
        (definition.inputs, _INPUTS, "inputs"),
        (definition.outputs, _OUTPUTS, "outputs"),
    ):
        if alias not in aliases:
            raise invalid(
                f"No regression {what} found in SignatureDef: {protos.to_text(definition)}"
            )
    outputs = {_OUTPUTS: definition.outputs[_OUTPUTS].name}
    return Fetches(definition.inputs[_INPUTS].name, outputs)


def classes(outputs: Arrays, examples: int) -> list[list[tuple[bytes, float]]]:
    """Return (label, score) per example and class; a missing half is empty or 0.

    Args:
        outputs: `classes` string [examples, n] and/or `scores` float [examples, n].
        examples: how many there were.

    Raises:
        ServingError: an output has another type or shape.
    """
    checked = {
        alias: _checked(outputs[alias], alias, dtype, examples)
        for alias, dtype in ((_CLASSES, dtypes.STRING), (_SCORES, dtypes.by_name("float")))
        if alias in outputs
    }
    labels, scores = checked.get(_CLASSES), checked.get(_SCORES)
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise invalid(
            "Tensors class and score should match in dim_size(1). "
            f"Got {labels.shape[1]} vs. {scores.shape[1]}"
        )
    shape = next(iter(checked.values())).shape
    names = np.full(shape, b"", object) if labels is None else labels
    values = np.zeros(shape, np.float32) if scores is None else scores
    return [
        list(zip(labels_of_one, scores_of_one, strict=True))
        for labels_of_one, scores_of_one in zip(list(names), list(values), strict=True)
    ]


def _checked(array: NDArray[Any], alias: str, dtype: dtypes.DType, examples: int) -> NDArray[Any]:
    if array.ndim != 2:  # noqa: PLR2004 ([examples, classes])
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_axes(array)}")
    have = dtypes.by_numpy(array.dtype)
    if have is not dtype:
        raise invalid(f"Expected {alias} Tensor of {dtype.enum_name}. Got: {have.enum_name}")
    if len(array) != examples:
        raise invalid(f"Expected {alias} output batch size of {examples}. Got: {len(array)}")
    return array


def values(outputs: Arrays, examples: int) -> list[float]:
    """Return the value per example.

    Args:
        outputs: `outputs` float [examples] or [examples, 1].
        examples: how many there were.

    Raises:
        ServingError: the output has another type or shape.
    """
    array = outputs[_OUTPUTS]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):  # noqa: PLR2004
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_axes(array)}"
        )
    if len(array) != examples:
        raise invalid(
            f"Input batch size did not match output batch size: {examples} vs. {len(array)}"
        )
    dtype = dtypes.by_numpy(array.dtype)
    if dtype.name != "float":
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {dtype.enum_name}")
    flat: list[float] = array.ravel().tolist()
    return flat


def _axes(array: NDArray[Any]) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"
