"""JSON to and from bytes, with orjson where it is installed; tfkit does not depend on it.

Writing a picture of 1x224x224x3 float32 takes orjson a twentieth of the time, and half the bytes:
it knows that a float32 needs fewer digits.

The usual large answer, regular arrays of numbers, is read without a Python object for each.
Brackets and commas are compared with those that a regular array has; then the numbers are read a
piece at a time, so that memory holds the body, the array and little more. Whatever is not that
(text, bytes, rows of objects, ragged lists, bad JSON) is left to the general reader, which has a
message for it.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfserve_kit.tensors import json as tensor_json
from tfserve_kit.tensors.dtypes import DType

try:
    import orjson
except ImportError:  # pragma: no cover (one of the two is there)
    orjson = None  # type: ignore[assignment]


def to_text(inputs: Mapping[str, ArrayLike]) -> bytes:
    """Return `{"alias": values, ...}` as JSON, as `tensors.json.column_request` would say it.

    Raises:
        TypeError: as `tensors.json.to_value`.
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
    return json.dumps(tensor_json.to_value(array)).encode()


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


LEAST_BYTES = 2_000  # a smaller body is read as fast by the general reader
_PIECE_BYTES = 1 << 18
_DEEPEST = 32
_IN_NUMBERS = b"0123456789.eE+-NaInfity \t\r\n"  # NaN and Infinity among them
_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")
_START = re.compile(rb'\s*\{\s*"outputs"\s*:\s*')
_NAME = re.compile(rb'\s*,?\s*"([^"\\]*)"\s*:\s*(?=\[)')
_END = re.compile(rb"\s*\}\s*")


def read(body: bytes, outputs: Mapping[str, DType]) -> dict[str, NDArray[Any]] | None:
    """Return the outputs of an answer in columns, None if they are not all regular numbers.

    Args:
        body: the JSON of a predict answer.
        outputs: types by alias; a single output bears no name on the wire.
    """
    if len(body) < LEAST_BYTES or (start := _START.match(body)) is None:
        return None
    try:
        texts = dict(_columns(body, start.end(), outputs))
        if texts.keys() != outputs.keys():
            return None
        return {alias: _array(text, outputs[alias]) for alias, text in texts.items()}
    except (ValueError, TypeError, OverflowError):
        return None


def _columns(body: bytes, start: int, outputs: Mapping[str, DType]) -> Iterator[tuple[str, bytes]]:
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


def _array(text: bytes, dtype: DType) -> NDArray[Any]:
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
