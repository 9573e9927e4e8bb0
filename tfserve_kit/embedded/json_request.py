"""Requests of the REST API as JSON, checked in the official server's words.

Source: tensorflow_serving/util/json_tensor.cc, which reads and echoes with RapidJSON; so does this,
so that parse errors and echoed values are the same. Faults are found in the same order.
"""

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.embedded import claims, json_bulk
from tfserve_kit.embedded.json_echo import echo
from tfserve_kit.embedded.json_reader import members
from tfserve_kit.embedded.json_text import parse_object
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
_WHOLE = frozenset({"int32", "int64", "uint32", "uint64"})
_READABLE = _WRAPPING | _WHOLE | {"float", "double", "bool", "string"}
# absl/strings/escaping.cc: blanks anywhere, dots as good as equals signs, and padding or none.
_BLANKS = b" \t\n\v\f\r"
_BASE64 = re.compile(rb"([A-Za-z0-9+/]*)([=.]*)")


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
            found = bulk(body, info, account)
            if found is not None:
                self.signature, self.row_format, self.inputs = found
                return
        document = parse_object(body, account)
        named = signature_name(document)
        self.signature = named or DEFAULT_SIGNATURE
        inputs = info(self.signature)
        if not inputs:
            raise invalid(f"Failed to get input map for signature: {named or 'DEFAULT'}")
        self.row_format = "instances" in document
        self.inputs = _inputs(document, inputs)


def bulk(body: bytes, info: InputInfo, account: Account) -> json_bulk.Bulk | None:
    """Read a request that is one array of numbers; None for any other.

    Arguments and errors as of `PredictBody`.
    """
    cost_bytes = claims.of_json_numbers(body)
    account.take(cost_bytes, "the JSON as numbers")
    found = json_bulk.read(body, info)
    if found is None:
        account.give(cost_bytes)
    return found


def _inputs(document: dict[str, Any], inputs: Mapping[str, Any]) -> Mapping[str, NDArray[Any]]:
    if "instances" in document:
        if "inputs" in document:
            raise _misformed(
                document,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to "
                "exist ",
            )
        return _rows(document, inputs)
    if "inputs" in document:
        return _columns(document["inputs"], inputs)
    raise invalid("Missing 'inputs' or 'instances' key")


def _misformed(document: Any, text: str) -> ServingError:
    return invalid(f"JSON Value: {echo(document)} {text}")


def signature_name(document: Mapping[str, Any]) -> str:
    """Return the signature a request names, empty if it names none; raises ServingError."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise _misformed(
            document, "not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def _columns(value: Any, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    if isinstance(value, dict) and not is_bytes(value):
        columns = {}
        for alias in sorted(inputs):
            if alias not in value:
                raise invalid(f"Missing named input: {alias} in 'inputs' object.")
            columns[alias] = _array(value[alias], _dtype(inputs[alias]), alias)
        return columns
    if len(inputs) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        )
    ((alias, info),) = inputs.items()
    return {alias: _array(value, _dtype(info), alias)}


def _rows(document: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    rows = document["instances"]
    if not isinstance(rows, list):
        raise _misformed(document, "Expecting 'instances' to be an list/array")
    if not rows:
        raise _misformed(document, "No values in 'instances' array")
    if not isinstance(rows[0], dict) and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    found = _regular_rows(rows, inputs)
    return _one_by_one(rows, inputs) if found is None else found


def _regular_rows(rows: list[Any], inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]] | None:
    """Convert input by input, which is fast; None where a row is not like the others."""
    columns, aliases = {min(inputs): rows}, set(inputs)
    if _is_named(rows[0]):
        if not all(type(row) is dict and row.keys() == aliases for row in rows):
            return None
        columns = {alias: [row[alias] for row in rows] for alias in aliases}
    try:
        return {
            alias: _stacked(column, _dtype(inputs[alias]), alias)
            for alias, column in columns.items()
        }
    except ServingError:
        return None


def _stacked(rows: list[Any], dtype: DType, alias: str) -> NDArray[Any]:
    shape = _shape(rows)
    array = _quick(rows, shape, dtype) if len(shape) <= MAX_RANK else None
    if array is None:
        column = _Column(alias, dtype)
        for row in rows:
            column.add(row)
        array = column.array(len(rows))
    return array


def _one_by_one(rows: list[Any], inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Convert row by row, and say what is wrong with the first bad one."""
    columns = {alias: _Column(alias, _dtype(info)) for alias, info in inputs.items()}
    named = _is_named(rows[0])
    for index, row in enumerate(rows):
        if _is_named(row) != named:
            want, got = ("object", "list") if named else ("value/list", "object")
            raise invalid(f"Expecting {want} but got {got} at item {index} of input list")
        if named:
            _add_named(columns, index, row)
        else:
            with _at_element(index):
                columns[min(columns)].add(row)
    return {alias: each.array(len(rows)) for alias, each in columns.items() if not each.is_empty}


def _add_named(columns: Mapping[str, "_Column"], index: int, row: dict[str, Any]) -> None:
    keys = set()
    for key, value in members(row):
        name = c_string(key)
        keys.add(name)
        with _at_element(index, f" key: {name}"):
            if name not in columns:
                raise invalid(f"JSON object: does not have named input: {name}")
            columns[name].add(value)
    if keys != columns.keys():
        raise invalid(
            f"Failed to process element: {index} of 'instances' list. "
            f"JSON object: {echo(row)} keys must be equal to: {','.join(sorted(columns))}"
        )


@contextmanager
def _at_element(index: int, key: str = "") -> Iterator[None]:
    try:
        yield
    except ServingError as error:
        raise invalid(
            f"Failed to process element: {index}{key} of 'instances' list. Error: {error}"
        ) from error


class _Column:
    """The values of one input, row by row; each must have the shape of the first."""

    def __init__(self, alias: str, dtype: DType) -> None:
        self._alias, self._dtype = alias, dtype
        self._values: list[Any] = []
        self._shape: tuple[int, ...] = ()
        self._size = 0
        self.is_empty = True

    def add(self, row: Any) -> None:
        """Take the next row; raises ServingError."""
        shape = _shape(row)
        flat = _leaves(row, shape, self._dtype) if len(shape) < MAX_RANK else []
        if self.is_empty:
            self._shape, self._size, self.is_empty = shape, len(flat), False
        if len(flat) != self._size:
            raise invalid(f"Expecting tensor size: {self._size} but got: {len(flat)}")
        if shape != self._shape:
            raise invalid(f"Expecting shape {_axes(self._shape)} but got: {_axes(shape)}")
        self._values += flat

    def array(self, rows: int) -> NDArray[Any]:
        """Return the array [rows, ...]; a key twice in one row leaves more values than it takes."""
        if len(self._shape) >= MAX_RANK:
            raise invalid(f"tensor parsing error: {self._alias}")
        return _built(self._values[: rows * self._size], self._dtype, (rows, *self._shape))


def _array(value: Any, dtype: DType, alias: str) -> NDArray[Any]:
    """Return the array that nested lists stand for."""
    shape = _shape(value)
    if len(shape) > MAX_RANK:
        raise invalid(f"tensor parsing error: {alias}")
    array = _quick(value, shape, dtype)
    if array is not None:
        return array
    return _built(_leaves(value, shape, dtype), dtype, shape)


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
    elif dtype.numpy is None:
        raise ServingError(Code.UNIMPLEMENTED, f"JSON cannot carry the type {dtype.name}")
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


def _leaves(value: Any, shape: tuple[int, ...], dtype: DType) -> list[Any]:
    """Return the leaves, checking each; slow, but knows what to say about the first bad one."""
    leaves: list[Any] = []
    _collect(value, shape, 0, dtype, leaves)
    return leaves


def _collect(value: Any, shape: tuple[int, ...], level: int, dtype: DType, to: list[Any]) -> None:
    """Add the leaves from a level on; all into one list, so that none costs a step per level."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {echo(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        to.append(_leaf(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _collect(item, shape, level + 1, dtype, to)


def _leaf(value: Any, dtype: DType) -> Any:
    if isinstance(value, dict) and dtype is dtypes.STRING:
        return _object_bytes(value)
    if dtype.name not in _READABLE and not isinstance(value, dict):
        raise ServingError(
            Code.UNIMPLEMENTED, f"Conversion of JSON Value: {echo(value)} to type: {dtype.name}"
        )
    kind = type(value)
    if dtype is dtypes.STRING and kind is str:
        return value.encode("utf-8", "surrogateescape")
    if dtype.name in {"float", "double"} and kind in {int, float}:
        return float(value)
    if dtype.name == "bool" and kind is bool:
        return value
    if dtype.name in _WRAPPING and kind is int and -(2**31) <= value < 2**31:
        return int(np.array(value, np.int64).astype(dtype.numpy))
    if dtype.name in _WHOLE and kind is int:
        limits = np.iinfo(dtype.name)
        if limits.min <= value <= limits.max:
            return value
    raise _misformed(value, f"Type: {type_name(value)} is not of expected type: {dtype.name}")


def type_name(value: Any) -> str:
    """Return what error texts call the type of a JSON value."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


def from_base64(text: str) -> bytes:
    """Decode base64 in the standard alphabet, padded or not; raises ServingError."""
    dense = text.encode("utf-8", "surrogateescape").translate(None, _BLANKS)
    found = _BASE64.fullmatch(dense)
    missing = -len(found[1]) % 4 if found else 0
    if found is None or missing == 3 or len(found[2]) not in {0, missing}:  # noqa: PLR2004 (6 bits)
        raise invalid("Unable to base64 decode")
    return base64.b64decode(found[1] + b"=" * missing)


def is_bytes(value: Any) -> bool:
    """Say whether a JSON value is `{"b64": "..."}`."""
    return type(value) is dict and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _object_bytes(value: dict[str, Any]) -> bytes:
    if not is_bytes(value):
        raise _misformed(value, "not formatted correctly for base64 data")
    return from_base64(value["b64"])


def c_string(name: str) -> str:
    """Return a key as upstream reads it where it does not ask for the length."""
    return name.partition("\0")[0]


def _is_named(row: Any) -> bool:
    return isinstance(row, dict) and not is_bytes(row)


def _dtype(info: Any) -> DType:
    """Return the row of an input's type; one without a numpy dtype if the table has none."""
    try:
        return dtypes.by_number(info.dtype)
    except KeyError:
        return DType(info.dtype, dtypes.name_of(info.dtype), None, "")


def _axes(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
