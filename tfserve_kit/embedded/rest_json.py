"""The JSON documents of the REST API, in the official server's layout and words.

Source: tensorflow_serving/util/json_tensor.cc, which reads and prints with RapidJSON; so does this,
so that parse errors and echoed values are the same.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import rapidjson
from numpy.typing import NDArray

from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.dtypes import DType

# A signature's inputs, by alias, as TensorInfo messages; raises ServingError for an unknown one.
InputInfo = Callable[[str], Mapping[str, Any]]

_INDENT = "    "
# Integers that wrap around instead of being refused.
_WRAPPING = frozenset({"uint8", "int8", "int16"})
_READABLE = _WRAPPING | {"float", "double", "int32", "int64", "uint32", "uint64", "bool", "string"}
_MAX_ECHO_BYTES = 256


class PredictBody:
    """A parsed predict request.

    Attributes:
        signature: name of the signature, as sent or the default.
        row_format: whether it came as `instances`, which decides the answer's layout.
        inputs: array per input alias.
    """

    def __init__(self, body: bytes, info: InputInfo) -> None:
        document = parse_object(body)
        self.signature = _signature_name(document)
        inputs = info(self.signature)
        if not inputs:
            raise invalid(f"Failed to get input map for signature: {self.signature}")
        self.row_format = "instances" in document
        if self.row_format and "inputs" in document:
            raise invalid("Not formatted correctly, expecting only one of 'inputs'/'instances' keys")
        if self.row_format:
            self.inputs = _rows(document, inputs)
        elif "inputs" in document:
            self.inputs = _columns(document["inputs"], inputs)
        else:
            raise invalid("Missing 'inputs' or 'instances' key")


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a request body.

    Raises:
        ServingError: it is no JSON, or no object.
    """
    document = _parse(body.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {echo(document)} Is not object")
    return document


def _parse(body: bytes) -> Any:
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        return rapidjson.loads(body, number_mode=rapidjson.NM_NAN)
    except rapidjson.JSONDecodeError as error:
        where, _, reason = str(error).removeprefix("Parse error at offset ").partition(": ")
        if reason.startswith("The document root must not be followed"):
            return _parse(body[: int(where)])
        raise invalid(f"JSON Parse error: {reason} at offset: {where}") from error
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from error


def _signature_name(document: Mapping[str, Any]) -> str:
    name = document.get("signature_name", DEFAULT_SIGNATURE)
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {echo(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name or DEFAULT_SIGNATURE


def _columns(value: Any, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    if isinstance(value, dict) and not _is_bytes(value):
        for alias in inputs:
            if alias not in value:
                raise invalid(f"Missing named input: {alias} in 'inputs' object.")
        return {alias: _array(value[alias], _dtype(inputs[alias])) for alias in inputs}
    if len(inputs) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        )
    ((alias, info),) = inputs.items()
    return {alias: _array(value, _dtype(info))}


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
            shape = _shape(row)
            flat = list(_walk(row, shape, 0, dtype))
            if index == 0:
                first, size = shape, len(flat)
            if len(flat) != size:
                raise invalid(f"Expecting tensor size: {size} but got: {len(flat)}")  # noqa: TRY301
            if shape != first:
                text = f"Expecting shape {_axes(first)} but got: {_axes(shape)}"
                raise invalid(text)  # noqa: TRY301
        except ServingError as error:
            raise invalid(
                f"Failed to process element: {index}{key} of 'instances' list. Error: {error}"
            ) from error
        values += flat
    return _built(values, dtype).reshape((len(rows), *first))


def _array(value: Any, dtype: DType) -> NDArray[Any]:
    """Return the array that nested lists stand for."""
    shape = _shape(value)
    array = _quick(value, shape, dtype)
    if array is not None:
        return array
    return _built(list(_walk(value, shape, 0, dtype)), dtype).reshape(shape)


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
    allowed = {"f": {int, float}, "b": {bool}}.get(dtype.numpy.kind, {int})
    if not kinds <= allowed:
        return None
    if dtype.numpy.kind in "iu" and not _in_range(flat, dtype):
        return None
    return _built(flat, dtype).reshape(shape)


def _in_range(flat: list[int], dtype: DType) -> bool:
    if not flat or dtype.numpy is None or dtype.name in _WRAPPING:
        return False if dtype.name in _WRAPPING else True
    limits = np.iinfo(dtype.numpy)
    return bool(limits.min <= min(flat) and max(flat) <= limits.max)


def _built(flat: list[Any], dtype: DType) -> NDArray[Any]:
    if dtype is dtypes.STRING:
        array = np.empty(len(flat), object)
        array[:] = flat
        return array
    with np.errstate(over="ignore"):  # 1e39 as a float is infinity, as in C++
        return np.array(flat, np.float64 if dtype.name == "float" else dtype.numpy).astype(
            dtype.numpy, copy=False
        )


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
        raise invalid(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
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
    if dtype is dtypes.STRING and _is_bytes(value):
        return _from_base64(value["b64"])
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
        f"JSON Value: {echo(value)} Type: {_type_name(value)} is not of expected type: {dtype.name}"
    )


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", type(None): "Null"}
    return names.get(type(value), "Number")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def _is_bytes(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_named(row: Any) -> bool:
    return isinstance(row, dict) and not _is_bytes(row)


def _dtype(info: Any) -> DType:
    return dtypes.by_number(info.dtype)


def _axes(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def echo(value: Any) -> str:
    """Print a JSON value as error texts quote it; at most 256 bytes."""
    try:
        text: str = rapidjson.dumps(
            value, indent=4, write_mode=rapidjson.WM_SINGLE_LINE_ARRAY, ensure_ascii=False
        )
    except (ValueError, OverflowError):
        return ""  # NaN and infinity cannot be printed
    return text[:_MAX_ECHO_BYTES]


def answer(outputs: Mapping[str, NDArray[Any]], *, row_format: bool) -> bytes:
    """Print the outputs of a predict call.

    Args:
        outputs: array per output alias; in row format all [batch, ...].
        row_format: `predictions` row by row, else `outputs` tensor by tensor.

    Raises:
        ServingError: the row format needs one batch size on every output, or a dtype that JSON
            cannot carry.
    """
    if row_format:
        return _predictions(outputs)
    if len(outputs) == 1:
        ((alias, array),) = outputs.items()
        value = _column(_leaves(alias, array), array.shape, _INDENT)
    else:
        members = [
            f'{_INDENT * 2}"{alias}": '.encode()
            + _column(_leaves(alias, array), array.shape, _INDENT * 2)
            for alias, array in outputs.items()
        ]
        value = b"{\n" + b",\n".join(members) + b"\n" + _INDENT.encode() + b"}"
    return b'{\n    "outputs": ' + value + b"\n}"


def _predictions(outputs: Mapping[str, NDArray[Any]]) -> bytes:
    batch = _batch_size(outputs)
    leaves = {alias: _leaves(alias, array) for alias, array in outputs.items()}
    shapes = {alias: array.shape[1:] for alias, array in outputs.items()}
    if len(outputs) == 1:
        ((alias, items),) = leaves.items()
        rows = _split(items, batch)
        body = b", ".join(_inline(row, shapes[alias]) for row in rows)
    else:
        split = {alias: _split(items, batch) for alias, items in leaves.items()}
        objects = [
            b",\n".join(
                f'{_INDENT * 3}"{alias}": '.encode() + _inline(split[alias][row], shapes[alias])
                for alias in outputs
            )
            for row in range(batch)
        ]
        pad = (_INDENT * 2).encode()
        body = b",".join(b"\n" + pad + b"{\n" + each + b"\n" + pad + b"}" for each in objects)
    return b'{\n    "predictions": [' + body + b"\n    ]\n}"


def _batch_size(outputs: Mapping[str, NDArray[Any]]) -> int:
    batch: int | None = None
    for alias, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {alias} has no shape information ")
        if batch is not None and len(array) != batch:
            raise invalid(
                f"Tensor name: {alias} has inconsistent batch size: {len(array)} expecting: {batch}"
            )
        batch = len(array)
    return batch or 0


def _split(items: list[bytes], batch: int) -> list[list[bytes]]:
    size = len(items) // batch if batch else 0
    return [items[row * size : (row + 1) * size] for row in range(batch)]


def _inline(items: list[bytes], shape: tuple[int, ...]) -> bytes:
    """Print nested lists on one line."""
    if not shape:
        return items[0]
    if len(shape) == 1:
        return b"[" + b", ".join(items) + b"]"
    return b"[" + b", ".join(_inline(part, shape[1:]) for part in _split(items, shape[0])) + b"]"


def _column(items: list[bytes], shape: tuple[int, ...], indent: str) -> bytes:
    """Print nested lists with an element on each line."""
    if not shape:
        return items[0].replace(b"\n", b"\n" + indent.encode())
    if not shape[0]:
        return b"[]"
    inner = indent + _INDENT
    pad = b"\n" + inner.encode()
    parts = [_column(part, shape[1:], inner) for part in _split(items, shape[0])]
    return b"[" + pad + (b"," + pad).join(parts) + b"\n" + indent.encode() + b"]"


def _leaves(alias: str, array: NDArray[Any]) -> list[bytes]:
    """Print each element, in C order."""
    dtype = dtypes.by_numpy(array.dtype)
    flat = array.ravel().tolist()
    if dtype is dtypes.STRING:
        as_bytes = alias.endswith("_bytes")
        return [_base64_object(item) if as_bytes else _quoted(item) for item in flat]
    if dtype.name in {"float", "double"}:
        precise = "%.9g" if dtype.name == "float" else "%.17g"
        tiny = float(np.finfo(array.dtype).tiny)
        round_trip = np.float32 if dtype.name == "float" else float
        return [_decimal(item, precise, tiny, round_trip).encode() for item in flat]
    if dtype.name == "bool":
        return [b"true" if item else b"false" for item in flat]
    if array.dtype.kind in "iu":
        return [str(item).encode() for item in flat]
    raise ServingError(Code.UNIMPLEMENTED, f"Tensor type: {dtype.name} not supported")


def _decimal(value: float, precise: str, tiny: float, round_trip: Callable[[Any], Any]) -> str:
    """Print a float with six digits where these suffice, else with all it takes."""
    if value != value:  # noqa: PLR0124 (NaN is the only value unlike itself)
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    if 0 < abs(value) < tiny:
        value = 0.0
    text = "%.6g" % value
    if round_trip(text) != value:
        text = precise % value
    return text if "." in text or "e" in text else text + ".0"


_ESCAPES = {byte: f"\\u{byte:04X}" for byte in range(0x20)} | {
    0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\",
}  # fmt: skip


def _quoted(item: bytes) -> bytes:
    """Print a string; bytes that are no UTF-8 go out as they are."""
    return b'"' + item.decode("latin-1").translate(_ESCAPES).encode("latin-1") + b'"'


def _base64_object(item: bytes) -> bytes:
    encoded = base64.b64encode(item)
    return b"{\n" + _INDENT.encode() + b'"b64": "' + encoded + b'"\n}'


def error_body(message: str) -> bytes:
    """Print an error answer."""
    return b'{\n    "error": ' + _quoted(message.encode("utf-8", "surrogateescape")) + b"\n}"
