"""numpy arrays to and from the JSON of TensorFlow Serving's REST API, as values and as bytes.

Source: the "encoding" section of tensorflow/serving's docs, api_rest.md, and
tensorflow_serving/util/json_tensor.cc. Bytes travel as `{"b64": "..."}`, NaN and the infinities as
the bare tokens `NaN`, `Infinity` and `-Infinity`, which Python's own json module reads and writes.

Bytes are written and read with orjson where it is installed; tfkit does not depend on it. A picture
of 1x224x224x3 float32 takes it a twentieth of the time, and half the bytes: it knows that a float32
needs fewer digits.

The usual large answer, regular arrays of numbers, is read without a Python object for each.
Brackets and commas are compared with those that a regular array has; then the numbers are read a
piece at a time, so that memory holds the body, the array and little more. Whatever is not that
(text, bytes, rows of objects, ragged lists, bad JSON) is left to the general reader, which has a
message for it.
"""

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.dtypes import DType
from tfserve_kit.tensors.proto import TensorError

try:
    import orjson
except ImportError:  # pragma: no cover (one of the two is there)
    orjson = None  # type: ignore[assignment]


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


def to_text(inputs: Mapping[str, ArrayLike]) -> bytes:
    """Return `{"alias": values, ...}` as JSON, as a request in columns has it.

    Raises:
        TypeError: as `to_value`.
    """
    columns = (
        json.dumps(alias).encode() + b":" + _column(np.asarray(value))
        for alias, value in inputs.items()
    )
    return b"{" + b",".join(columns) + b"}"


def _column(array: NDArray[Any]) -> bytes:
    if orjson is not None and array.ndim and _is_plain(array):
        try:
            return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
        except orjson.JSONEncodeError:  # an element type or a size that it does not know
            pass
    return json.dumps(to_value(array)).encode()


def _is_plain(array: NDArray[Any]) -> bool:
    """Say whether all elements have a form in standard JSON, which NaN and infinity lack."""
    if array.dtype.kind == "f":
        return bool(np.isfinite(array).all())
    return array.dtype.kind in "iub"


def read_json(text: bytes) -> Any:
    """Return what a JSON text says; `NaN`, `Infinity` and `-Infinity` are numbers.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    if orjson is not None:
        try:
            return orjson.loads(text)
        except ValueError:  # such as NaN, which the server writes and orjson does not take
            pass
    return json.loads(text)


_LEAST_BYTES = 2_000  # a smaller body is read as fast by the general reader
_PIECE_BYTES = 1 << 18
_DEEPEST = 32
_IN_NUMBERS = b"0123456789.eE+-NaInfity \t\r\n"  # NaN and Infinity among them
_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")
_START = re.compile(rb'\s*\{\s*"outputs"\s*:\s*')
_NAME = re.compile(rb'\s*,?\s*"([^"\\]*)"\s*:\s*(?=\[)')
_END = re.compile(rb"\s*\}\s*")


def read_columns(body: bytes, outputs: Mapping[str, DType]) -> dict[str, NDArray[Any]] | None:
    """Return the outputs of an answer in columns, None if they are not all regular numbers.

    Args:
        body: the JSON of a predict answer.
        outputs: types by alias; a single output bears no name on the wire.
    """
    if len(body) < _LEAST_BYTES or (start := _START.match(body)) is None:
        return None
    try:
        texts = dict(_texts(body, start.end(), outputs))
        if texts.keys() != outputs.keys():
            return None
        return {alias: _regular(text, outputs[alias]) for alias, text in texts.items()}
    except (ValueError, TypeError, OverflowError):
        return None


def _texts(body: bytes, start: int, outputs: Mapping[str, DType]) -> Iterator[tuple[str, bytes]]:
    """Yield alias and text of each array.

    Raises:
        ValueError: there is something else.
    """
    if body[start : start + 1] == b"[":
        (alias,) = outputs
        end = body.rindex(b"]") + 1
        yield alias, body[start:end]
    else:
        if body[start : start + 1] != b"{":
            raise ValueError("no array")
        end = start + 1
        while found := _NAME.match(body, end):
            limit = body.find(b'"', found.end())
            end = body.rindex(b"]", found.end(), len(body) if limit < 0 else limit) + 1
            yield found[1].decode(), body[found.end() : end]
        inner = _END.match(body, end)
        end = inner.end() if inner else -1
    if end < 0 or _END.fullmatch(body, end) is None:
        raise ValueError("more than arrays")


def _regular(text: bytes, dtype: DType) -> NDArray[Any]:
    """Return the array that a text is.

    Raises:
        ValueError: it is not a regular array of such numbers.
    """
    if dtype.numpy is None or dtype.numpy.kind not in "fiuV":
        raise ValueError(dtype.name)
    shape = _shape(text)
    array = np.empty(math.prod(shape), dtype.numpy)
    done = 0
    for piece in _pieces(text.translate(_NO_BRACKETS)):
        numbers = _numbers(piece, dtype.numpy)
        array[done : done + len(numbers)] = numbers
        done += len(numbers)
    if done != len(array):
        raise ValueError("another number of numbers")
    return array.reshape(shape)


def _shape(text: bytes) -> tuple[int, ...]:
    """Return the shape that brackets and commas tell.

    Raises:
        ValueError: they are not those of a regular array.
    """
    structure = text.translate(None, _IN_NUMBERS)
    depth = len(structure) - len(structure.lstrip(b"["))
    shape: list[int] = []
    level = structure
    while len(shape) < min(depth, _DEEPEST):
        size = level.count(b",", 0, level.index(b"]")) + 1
        shape.insert(0, size)
        level = level.replace(b"[" + b"," * (size - 1) + b"]", b"")
    if structure != _brackets(shape):
        raise ValueError("no regular array")
    return tuple(shape)


def _brackets(shape: list[int]) -> bytes:
    text = b""
    for size in reversed(shape):
        text = b"[" + b",".join([text] * size) + b"]"
    return text


def _pieces(numbers: bytes) -> Iterator[bytes]:
    """Cut a list of numbers at commas."""
    start = 0
    while start <= len(numbers):
        end = numbers.find(b",", start + _PIECE_BYTES)
        end = len(numbers) if end < 0 else end
        yield numbers[start:end]
        start = end + 1


def _numbers(piece: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers of a piece, still of a type that holds them all.

    Raises:
        ValueError: one of them cannot be of the type that is wanted.
    """
    values = read_json(b"[" + piece + b"]")
    if dtype.kind not in "iu":
        with np.errstate(over="ignore", under="ignore"):  # as the general reader rounds
            return np.array(values, np.float64).astype(dtype)
    whole = np.array(values)
    if whole.dtype.kind == "f" and all(type(each) is int for each in values):
        return np.array(values, dtype)  # of integers beyond int64 numpy makes floats
    limits = np.iinfo(dtype)
    if whole.dtype.kind not in "iu" or whole.min() < limits.min or whole.max() > limits.max:
        raise ValueError(f"not of type {dtype}")
    return whole
