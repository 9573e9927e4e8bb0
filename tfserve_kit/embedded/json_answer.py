"""Answers of the REST API as JSON, in the official server's layout.

Source: tensorflow_serving/util/json_tensor.cc.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.embedded.json_echo import quoted
from tfserve_kit.embedded.status import encoded, invalid
from tfserve_kit.tensors import dtypes

_INDENT = "    "


def predictions(outputs: Mapping[str, NDArray[Any]], *, row_format: bool) -> bytes:
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
        value = _column(_leaves(alias, array, 1 + array.ndim), array.shape, _INDENT)
    else:
        members = [
            _member(alias, 2)
            + _column(_leaves(alias, array, 2 + array.ndim), array.shape, _INDENT * 2)
            for alias, array in outputs.items()
        ]
        value = b"{\n" + b",\n".join(members) + b"\n" + _INDENT.encode() + b"}"
    return b'{\n    "outputs": ' + value + b"\n}"


def _predictions(outputs: Mapping[str, NDArray[Any]]) -> bytes:
    batch = _batch_size(outputs)
    level = 1 if len(outputs) == 1 else 2
    leaves = {alias: _leaves(alias, array, level + array.ndim) for alias, array in outputs.items()}
    shapes = {alias: array.shape[1:] for alias, array in outputs.items()}
    if len(outputs) == 1:
        ((alias, items),) = leaves.items()
        rows = _split(items, batch)
        body = b", ".join(_inline(row, shapes[alias]) for row in rows)
    else:
        split = {alias: _split(items, batch) for alias, items in leaves.items()}
        objects = [
            b",\n".join(
                _member(alias, 3) + _inline(split[alias][row], shapes[alias]) for alias in outputs
            )
            for row in range(batch)
        ]
        pad = (_INDENT * 2).encode()
        body = b",".join(b"\n" + pad + b"{\n" + each + b"\n" + pad + b"}" for each in objects)
    end = b"\n    ]\n}" if batch else b"]\n}"
    return b'{\n    "predictions": [' + body + end


def _member(alias: str, level: int) -> bytes:
    """Print the name of an object's member."""
    return (_INDENT * level).encode() + _quoted(alias.encode()) + b": "


def _batch_size(outputs: Mapping[str, NDArray[Any]]) -> int:
    batch: int | None = None
    for alias, array in reversed(list(outputs.items())):
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
        return items[0]
    if not shape[0]:
        return b"[]"
    inner = indent + _INDENT
    pad = b"\n" + inner.encode()
    parts = [_column(part, shape[1:], inner) for part in _split(items, shape[0])]
    return b"[" + pad + (b"," + pad).join(parts) + b"\n" + indent.encode() + b"]"


def _leaves(alias: str, array: NDArray[Any], level: int) -> list[bytes]:
    """Print each element, in C order; `level` counts the lists and objects around it."""
    dtype = dtypes.by_numpy(array.dtype)
    flat = array.ravel().tolist()
    if dtype is dtypes.STRING:
        if alias.endswith("_bytes"):
            return [_base64_object(item, _INDENT * level) for item in flat]
        return [_quoted(item) for item in flat]
    if dtype.name in {"float", "double"}:
        digits = 9 if dtype.name == "float" else 17
        tiny = float(np.finfo(array.dtype).tiny)
        round_trip = np.float32 if dtype.name == "float" else float
        return [_decimal(item, digits, tiny, round_trip).encode() for item in flat]
    if dtype.name == "bool":
        return [b"true" if item else b"false" for item in flat]
    if array.dtype.kind in "iu" and dtype.name != "uint16":
        return [str(item).encode() for item in flat]
    if not flat:  # lists of nothing are of no type
        return []
    raise invalid(f"Failed to write JSON value for tensor type: {dtype.name}")


def _decimal(value: float, digits: int, tiny: float, round_trip: Callable[[Any], Any]) -> str:
    """Print a float with six digits where these suffice, else with `digits`."""
    if value != value:  # noqa: PLR0124 (NaN is the only value unlike itself)
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    if 0 < abs(value) < tiny:
        value = 0.0
    text = f"{value:.6g}"
    if round_trip(text) != value:
        text = f"{value:.{digits}g}"
    return text if "." in text or "e" in text else text + ".0"


def _quoted(item: bytes) -> bytes:
    """Print a string; bytes that are no UTF-8 go out as they are."""
    return quoted(item.decode("latin-1")).encode("latin-1")


def _base64_object(item: bytes, indent: str) -> bytes:
    encoded = base64.b64encode(item).decode()
    return f'{{\n{indent}{_INDENT}"b64": "{encoded}"\n{indent}}}'.encode()


def error(message: str) -> bytes:
    """Print an error."""
    text = encoded(message, errors="surrogateescape")  # what was no UTF-8 goes back as it came
    return b'{\n    "error": ' + _quoted(text) + b"\n}"


def classifications(examples: Sequence[Sequence[tuple[bytes, float]]]) -> bytes:
    """Print the answer to classify: (label, score) per class and example."""
    rows = [
        b"[" + b", ".join(b"[" + _quoted(n) + b", " + _float32(v) + b"]" for n, v in classes) + b"]"
        for classes in examples
    ]
    return b'{\n    "results": [' + b", ".join(rows) + b"\n    ]\n}"


def regressions(values: Sequence[float]) -> bytes:
    """Print the answer to regress: a value per example."""
    return b'{\n    "results": [' + b", ".join(map(_float32, values)) + b"]\n}"


def _float32(value: float) -> bytes:
    (text,) = _leaves("", np.array([value], np.float32), 0)
    return text
