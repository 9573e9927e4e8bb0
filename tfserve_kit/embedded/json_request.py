"""Requests of the REST API as JSON, checked in the official server's words.

Source: tensorflow_serving/util/json_tensor.cc, which reads and echoes with RapidJSON; so does this,
so that parse errors and echoed values are the same.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.embedded import claims, json_bulk
from tfserve_kit.embedded.json_text import echo, parse_object
from tfserve_kit.embedded.ledger import Account
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.dtypes import DType
from tfserve_kit.tensors.proto import MAX_RANK

# A signature's inputs, by alias, as TensorInfo messages; raises ServingError for an unknown one.
InputInfo = Callable[[str], Mapping[str, Any]]

# Integers that wrap around instead of being refused.
_WRAPPING = frozenset({"uint8", "int8", "int16"})
_READABLE = _WRAPPING | {"float", "double", "int32", "int64", "uint32", "uint64", "bool", "string"}


class PredictBody:
    """A parsed predict request.

    Attributes:
        signature: name of the signature, as sent or the default.
        row_format: whether it came as `instances`, which decides the answer's layout.
        inputs: array per input alias.

    Raises:
        ServingError: the body is no request, or becomes too large for the account.
    """

    def __init__(self, body: bytes, info: InputInfo, account: Account) -> None:
        if len(body) >= json_bulk.LEAST_BYTES:
            cost_bytes = claims.of_json_numbers(body)
            account.take(cost_bytes, "the JSON as numbers")
            bulk = json_bulk.read(body, info)
            if bulk is not None:
                self.signature, self.row_format, self.inputs = bulk
                return
            account.give(cost_bytes)
        document = parse_object(body, account)
        self.signature = signature_name(document)
        self.row_format = "instances" in document
        self.inputs = _inputs(document, info(self.signature), self.signature)


def _inputs(
    document: Mapping[str, Any], inputs: Mapping[str, Any], signature: str
) -> Mapping[str, NDArray[Any]]:
    if not inputs:
        raise invalid(f"Failed to get input map for signature: {signature}")
    if "instances" in document and "inputs" in document:
        raise invalid("Not formatted correctly, expecting only one of 'inputs'/'instances' keys")
    if "instances" in document:
        return _rows(document, inputs)
    if "inputs" in document:
        return _columns(document["inputs"], inputs)
    raise invalid("Missing 'inputs' or 'instances' key")


def signature_name(document: Mapping[str, Any]) -> str:
    """Return the signature a request names, or the default; raises ServingError."""
    name = document.get("signature_name", DEFAULT_SIGNATURE)
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {echo(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name or DEFAULT_SIGNATURE


def _columns(value: Any, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    if isinstance(value, dict) and not is_bytes(value):
        for alias in inputs:
            if alias not in value:
                raise invalid(f"Missing named input: {alias} in 'inputs' object.")
        return {alias: _array(value[alias], _dtype(inputs[alias]), alias) for alias in inputs}
    if len(inputs) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        )
    ((alias, info),) = inputs.items()
    return {alias: _array(value, _dtype(info), alias)}


def _rows(document: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    rows = document["instances"]
    if not isinstance(rows, list):
        raise invalid(f"JSON Value: {echo(document)} Expecting 'instances' to be an list/array")
    if not rows:
        raise invalid(f"JSON Value: {echo(document)} 'instances' value is an empty array")
    named = _is_named(rows[0])
    _refuse_mixed(rows, named=named)
    if named:
        return _named_rows(rows, inputs)
    if len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    ((alias, info),) = inputs.items()
    return {alias: _stack(rows, _dtype(info), "")}


def _refuse_mixed(rows: list[Any], *, named: bool) -> None:
    for index, row in enumerate(rows):
        if _is_named(row) != named:
            want, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {want} but got {got} at item {index} of input list")


def _named_rows(rows: list[Any], inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    for index, row in enumerate(rows):
        for alias in row:
            if alias not in inputs:
                raise invalid(
                    f"Failed to process element: {index} key: {alias} of 'instances' list. "
                    f"Error: INVALID_ARGUMENT: JSON object: does not have named input: {alias}"
                )
        if row.keys() != inputs.keys():
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. "
                f"JSON object: {echo(row)} keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {
        alias: _stack([row[alias] for row in rows], _dtype(info), f" key: {alias}")
        for alias, info in inputs.items()
    }


def _stack(rows: list[Any], dtype: DType, key: str) -> NDArray[Any]:
    """Return rows as one array; an error names the row that does not fit."""
    shape = _shape(rows)
    array = _quick(rows, shape, dtype)
    if array is not None:
        return array
    first: tuple[int, ...] = ()
    values: list[Any] = []
    for index, row in enumerate(rows):
        try:
            shape = _shape(row)[: MAX_RANK + 1]  # each leaf costs a step per level
            flat = list(_walk(row, shape, 0, dtype))
            if index == 0:
                first, size = shape, len(flat)
            if len(flat) != size:
                raise invalid(f"Expecting tensor size: {size} but got: {len(flat)}")
            if shape != first:
                text = f"Expecting shape {_axes(first)} but got: {_axes(shape)}"
                raise invalid(text)
        except ServingError as error:
            raise invalid(
                f"Failed to process element: {index}{key} of 'instances' list. Error: {error}"
            ) from error
        values += flat
    return _built(values, dtype, (len(rows), *first))


def _array(value: Any, dtype: DType, alias: str) -> NDArray[Any]:
    """Return the array that nested lists stand for."""
    shape = _shape(value)
    if len(shape) > MAX_RANK:
        raise invalid(f"tensor parsing error: {alias}")
    array = _quick(value, shape, dtype)
    if array is not None:
        return array
    return _built(list(_walk(value, shape, 0, dtype)), dtype, shape)


# The Python types that a list of numbers may hold, by kind of dtype; whole numbers where not named.
_PLAIN: dict[str, set[type]] = {"f": {int, float}, "b": {bool}}


def _quick(value: Any, shape: tuple[int, ...], dtype: DType) -> NDArray[Any] | None:
    """Convert regular lists of numbers at C speed; None where that might hide a fault."""
    if dtype.numpy is None or dtype.name not in _READABLE - {"string"}:
        return None
    flat = [value]
    for size in shape:
        if set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
            return None
        flat = list(chain.from_iterable(flat))
    kinds = set(map(type, flat))
    if not kinds <= _PLAIN.get(dtype.numpy.kind, {int}):
        return None
    if dtype.numpy.kind in "iu" and flat and not _in_range(flat, np.iinfo(dtype.numpy)):
        return None
    return _built(flat, dtype, shape)


def _in_range(flat: list[int], limits: Any) -> bool:
    return bool(limits.min <= min(flat) and max(flat) <= limits.max)


def _built(flat: list[Any], dtype: DType, shape: tuple[int, ...]) -> NDArray[Any]:
    if dtype is dtypes.STRING:
        array = np.empty(len(flat), object)
        array[:] = flat
    else:
        wide = np.array(flat, np.float64 if dtype.name == "float" else dtype.numpy)
        with np.errstate(over="ignore"):  # 1e39 as a float is infinity, as in C++
            array = wide.astype(dtype.numpy, copy=False)
    try:
        return array.reshape(shape)
    except ValueError as error:  # numpy knows fewer dimensions than tensorflow
        raise invalid(f"a tensor of {len(shape)} dimensions is not supported here") from error


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape told by the first element on each level."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _walk(value: Any, shape: tuple[int, ...], level: int, dtype: DType) -> Iterable[Any]:
    """Yield the leaves, checking each; slow, but knows what to say about the first bad one."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {echo(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        yield _leaf(value, dtype)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        yield from _walk(item, shape, level + 1, dtype)


def _leaf(value: Any, dtype: DType) -> Any:
    if dtype.name not in _READABLE:
        raise ServingError(
            Code.UNIMPLEMENTED, f"Conversion of JSON Value: {echo(value)} to type: {dtype.name}"
        )
    kind = type(value)
    if dtype is dtypes.STRING and is_bytes(value):
        return from_base64(value["b64"])
    if dtype is dtypes.STRING and kind is str:
        return value.encode("utf-8", "surrogateescape")
    if dtype.name in {"float", "double"} and kind in {int, float}:
        return float(value)
    if dtype.name == "bool" and kind is bool:
        return value
    if dtype.name in _WRAPPING and kind is int and -(2**31) <= value < 2**31:
        return int(np.array(value, np.int64).astype(dtype.numpy))
    if dtype.numpy is not None and dtype.numpy.kind in "iu" and kind is int:
        limits = np.iinfo(dtype.numpy)
        if dtype.name not in _WRAPPING and limits.min <= value <= limits.max:
            return value
    raise invalid(
        f"JSON Value: {echo(value)} Type: {type_name(value)} is not of expected type: {dtype.name}"
    )


def type_name(value: Any) -> str:
    """Return what error texts call the type of a JSON value."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


def from_base64(text: str) -> bytes:
    """Decode base64 in the standard alphabet, padded or not; raises ServingError."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def is_bytes(value: Any) -> bool:
    """Say whether a JSON value is `{"b64": "..."}`."""
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_named(row: Any) -> bool:
    return isinstance(row, dict) and not is_bytes(row)


def _dtype(info: Any) -> DType:
    try:
        return dtypes.by_number(info.dtype)
    except KeyError:
        text = f"No JSON Value can be converted to the type {info.dtype} of {info.name}"
        raise ServingError(Code.UNIMPLEMENTED, text) from None


def _axes(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
