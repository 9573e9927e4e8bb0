"""numpy arrays to and from the JSON values of TensorFlow Serving's REST API.

Source: the "encoding" section of tensorflow/serving's docs, api_rest.md, and
tensorflow_serving/util/json_tensor.cc. Bytes travel as `{"b64": "..."}`, NaN and the infinities as
the bare tokens `NaN`, `Infinity` and `-Infinity`, which Python's own json module reads and writes.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.dtypes import DType
from tfserve_kit.tensors.proto import TensorError


def to_value(array: ArrayLike) -> Any:
    """Return an array as nested lists; bytes become `{"b64": ...}`, str stays text.

    Raises:
        TypeError: complex and other dtypes that JSON cannot carry, or a string element that is
            neither str nor bytes.
    """
    array = np.asarray(array)
    dtype = dtypes.by_numpy(array.dtype)
    if array.dtype.kind == "c":
        raise TypeError(f"REST cannot carry {dtype.name}; use gRPC")
    return _encoded(array.tolist()) if dtype is dtypes.STRING else array.tolist()


def _encoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, str):
        return value
    raise TypeError(f"a string tensor cannot hold {value!r}; it takes str and bytes")


def from_value(value: Any, dtype: DType | None = None) -> NDArray[Any]:
    """Return the array that a JSON value stands for.

    Args:
        value: number, bool, text, `{"b64": ...}` or nested lists of them, as the json module
            returns them.
        dtype: the tensor's type where it is known; else numpy decides, and text becomes bytes.

    Raises:
        TensorError: ragged lists, bad base64, or values that are not of `dtype`.
    """
    value = _decoded(value)
    try:
        array = np.array(value)
    except ValueError as error:
        raise TensorError("a tensor needs lists of equal length on each level") from error
    if array.dtype.kind in "SO" and (dtype is None or dtype is dtypes.STRING):
        return _objects(value, array.shape)
    if array.dtype.kind in "SO" or (dtype is dtypes.STRING and array.size):
        raise TensorError(f"{value!r:.80} is not of type {dtype.name if dtype else 'number'}")
    if dtype is None or dtype.numpy is None:
        return array
    if array.dtype.kind == "f" and dtype.numpy.kind in "iu":
        array = np.array(value, object)  # numpy makes floats of integers if one is beyond int64
    return _cast(array, dtype, dtype.numpy)


def _cast(array: NDArray[Any], dtype: DType, target: np.dtype[Any]) -> NDArray[Any]:
    """Return the array in another type; floats may be rounded, all else must stay the same."""
    try:
        with np.errstate(all="ignore"):
            cast = array.astype(target)
    except (OverflowError, ValueError):  # such as NaN, or a negative number for an unsigned type
        cast = None
    if cast is None or (target.kind in "iub" and not np.array_equal(cast, array)):
        raise TensorError(f"{array.tolist()!r:.80} is not of type {dtype.name}")
    return cast


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        if value.keys() != {"b64"} or not isinstance(value["b64"], str):
            raise TensorError(
                f"{value!r:.80} is not a tensor value; bytes look like {{'b64': '...'}}"
            )
        try:
            return base64.b64decode(value["b64"], validate=True)
        except ValueError as error:
            raise TensorError(f"{value['b64']!r:.80} is not base64: {error}") from error
    return value


def _text(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise TensorError(f"{value!a:.80} is not valid text: {error.reason}") from error


def _objects(value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return nested lists of bytes as an object array; numpy alone would cut trailing zeros."""
    flat = [value]
    for _ in shape:
        flat = [inner for item in flat for inner in item]
    if not all(isinstance(item, bytes) for item in flat):
        raise TensorError("a string tensor cannot hold anything but text and bytes")
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape)


def answer(document: Any, outputs: Mapping[str, DType]) -> dict[str, NDArray[Any]]:
    """Return the output arrays of a predict answer in either format.

    Args:
        document: the decoded JSON body.
        outputs: the signature's output aliases and types; a single output carries no name on the
            wire, so the alias must be known.

    Raises:
        TensorError: the document is not a predict response, or does not fit `outputs`.
    """
    if not isinstance(document, dict) or not document.keys() & {"outputs", "predictions"}:
        raise TensorError(f"{document!r:.80} is not a predict response")
    columns = document["outputs"] if "outputs" in document else _columns(document["predictions"])
    if len(outputs) == 1 and not (isinstance(columns, dict) and columns.keys() == outputs.keys()):
        columns = {next(iter(outputs)): columns}
    if not isinstance(columns, dict):
        raise TensorError(f"expected the outputs {sorted(outputs)}, but the answer names none")
    if missing := sorted(outputs.keys() - columns.keys()):
        raise TensorError(f"the answer lacks the outputs {missing}")
    return {alias: from_value(value, outputs.get(alias)) for alias, value in columns.items()}


def _columns(rows: Any) -> Any:
    """Turn named rows into named columns; unnamed rows are one column already."""
    if not isinstance(rows, list):
        raise TensorError(f"{rows!r:.80} is not a list of predictions")
    if not rows or not isinstance(rows[0], dict) or rows[0].keys() == {"b64"}:
        return rows
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise TensorError("the rows of the answer have different outputs")
    return {alias: [row[alias] for row in rows] for alias in rows[0]}
