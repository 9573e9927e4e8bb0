"""tf.Example messages for classify and regress, out of plain Python values."""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfserve_kit import protos
from tfserve_kit.clients.checking import refuse_masked
from tfserve_kit.errors import InvalidRequest

Features = Mapping[str, ArrayLike] | bytes
"""A value or a list of values per feature, or a serialized tf.Example."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# numpy's kind of the values -> the list of a tf.Example's feature
_LISTS = {
    "f": "float_list",
    "b": "int64_list",
    "i": "int64_list",
    "u": "int64_list",
    "O": "bytes_list",
    "S": "bytes_list",
    "U": "bytes_list",
}


def to_examples(rows: Iterable[Features]) -> list[Any]:
    """Return a tf.Example message for each row.

    Args:
        rows: numbers, text or bytes by name of the feature, alone or as a list; whole numbers and
            bools become int64, other numbers float32, text UTF-8. Or serialized messages.

    Raises:
        InvalidRequest: there is none, or a feature is nothing of that kind.
    """
    examples = [_example(number, row) for number, row in enumerate(rows)]
    if not examples:
        raise InvalidRequest("cannot send no examples", remedy="give one at least")
    return examples


def _example(number: int, row: Features) -> Any:
    try:
        if isinstance(row, bytes):
            return protos.Example.FromString(row)
        example = protos.Example()
        for name, value in row.items():
            _fill(example.features.feature[name], value)
    except (protos.DecodeError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(
            f"cannot send example {number}: {error}",
            remedy="give numbers, text or bytes by name of the feature",
        ) from error
    return example


def _fill(feature: Any, value: ArrayLike) -> None:
    alone = isinstance(value, str | bytes)  # numpy alone would cut trailing zeros of bytes
    array = np.array([value], object) if alone else np.atleast_1d(np.asarray(value))
    if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
        array = np.array(value, object)
    refuse_masked(value, array)
    require_float32(array)
    if array.ndim != 1 or array.dtype.kind not in _LISTS:
        raise ValueError(f"{value!r:.80} is no value and no flat list of values")
    values = (array.astype(np.int64) if array.dtype.kind == "b" else array).tolist()
    if array.dtype.kind in "OSU":
        values = [item.encode() if isinstance(item, str) else item for item in values]
    if values:  # an empty list has no kind, and fits every one
        getattr(feature, _LISTS[array.dtype.kind]).value.extend(values)


def require_float32(array: NDArray[Any]) -> None:
    """Refuse numbers that would be infinite in a feature, whose real numbers are float32.

    Raises:
        ValueError: there is one.
    """
    if array.dtype.kind == "f" and (np.abs(array[np.isfinite(array)]) > _FLOAT32_MAX).any():
        raise ValueError(f"{array.tolist()!r:.80} holds a number beyond float32")


def to_json(example: Any) -> dict[str, Any]:
    """Return a tf.Example message as the REST API writes it: a list of values per feature."""
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        if kind == "bytes_list":
            values = [{"b64": base64.b64encode(value).decode("ascii")} for value in values]
        found[name] = values
    return found
