"""Reads the usual large predict request, one regular array of numbers, at the speed of its bytes.

Whatever is not that (rows of objects, strings, ragged lists, numbers out of range, bad JSON) is
left to `json_request`, which knows what to say about it. simdjson parses and flattens the numbers;
it does not care about brackets, so those are compared with the brackets that the shape implies.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import simdjson
from numpy.typing import NDArray

from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes

# A smaller body is read as fast by the general parser.
LEAST_BYTES = 2_000
# A larger body's parser is not kept: its memory stays as large as the largest body it has seen.
_MOST_KEPT_BYTES = 8_000_000
_NUMBERS_AND_SPACE = b"0123456789.eE+- \t\r\n"
_DEEPEST = 32  # numpy's limit before its second version
_LAYOUTS = {"instances", "inputs"}
_SIGNATURE = "signature_name"
# Doubles are not for here: RapidJSON, as the official server uses it, may miss their last bit.
# The range of the numbers that a dtype may be given; within it the narrow ones wrap around.
_LIMITS = {name: np.iinfo(name) for name in ("int32", "int64", "uint32", "uint64")}
_LIMITS |= dict.fromkeys(("int8", "int16", "uint8"), np.iinfo(np.int32))

_kept = threading.local()


class Bulk(NamedTuple):
    """A request that holds one array: its signature, layout and array by input alias."""

    signature: str
    row_format: bool
    inputs: Mapping[str, NDArray[Any]]


def read(body: bytes, info: Callable[[str], Mapping[str, Any]]) -> Bulk | None:
    """Read a predict request, or return None for one that is not one regular array of numbers.

    Args:
        body: the request's JSON.
        info: returns a signature's inputs by alias, as TensorInfo messages; raises for one that
            does not exist.
    """
    # A parser is kept when its document is gone, so one that an error holds on to never is.
    parser = vars(_kept).pop("parser", None) or simdjson.Parser()
    try:
        found = _read(parser, body, info)
    except (ValueError, TypeError, LookupError, RuntimeError, OverflowError):
        return None
    if len(body) <= _MOST_KEPT_BYTES:
        _kept.parser = parser
    return found


def _read(parser: Any, body: bytes, info: Callable[[str], Mapping[str, Any]]) -> Bulk | None:
    document = parser.parse(body)
    if not isinstance(document, simdjson.Object):
        return None
    (layout,) = _LAYOUTS.intersection(document.keys())
    signature = document.get(_SIGNATURE, DEFAULT_SIGNATURE)
    if not isinstance(signature, str):
        return None
    ((alias, tensor),) = info(signature).items()
    values = document[layout]
    shape = _shape(values)
    if not shape or _structure(body) != _brackets(shape):
        return None
    flat = _numbers(values, dtypes.by_number(tensor.dtype))
    return Bulk(signature, layout == "instances", {alias: flat.reshape(shape)})


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape told by the first element on each level, empty if it is none."""
    shape: list[int] = []
    while isinstance(value, simdjson.Array) and len(shape) < _DEEPEST:
        shape.append(len(value))
        value = value[0]  # IndexError: an empty list is not for here
    return tuple(shape)


def _structure(body: bytes) -> bytes:
    """Return the brackets and commas of the array, and whatever else is no number.

    The array reaches from the first bracket to the last one: a string with brackets in it would
    leave its quotes behind.
    """
    return body[body.index(b"[") : body.rindex(b"]") + 1].translate(None, _NUMBERS_AND_SPACE)


def _brackets(shape: tuple[int, ...]) -> bytes:
    """Return the brackets and commas of a regular array."""
    text = b""
    for size in reversed(shape):
        text = b"[" + b",".join([text] * size) + b"]"
    return text


def _numbers(values: Any, dtype: dtypes.DType) -> NDArray[Any]:
    """Return the numbers of all levels in one row; raises for some that the dtype cannot be."""
    if dtype.name == "float":
        wide = np.frombuffer(values.as_buffer(of_type="d"), np.float64)
        with np.errstate(over="ignore"):  # 1e39 as a float is infinity, as in C++
            return wide.astype(dtype.numpy)
    limits = _LIMITS[dtype.name]
    kind = "u" if dtype.name == "uint64" else "i"
    whole = np.frombuffer(values.as_buffer(of_type=kind), f"{kind}8")
    if whole.min() < limits.min or whole.max() > limits.max:
        raise OverflowError(dtype.name)
    return whole.astype(dtype.numpy)
