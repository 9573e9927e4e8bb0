"""PredictRequests and PredictResponses as bytes, each tensor's bytes copied once.

Going through the message classes copies a large tensor several times and a small one slowly; this
writes the few surrounding bytes itself. Field numbers: tensorflow_serving/apis/predict.proto
(request: model_spec = 1, inputs = 2, output_filter = 3; response: outputs = 1, model_spec = 2; map
entry: key = 1, value = 2) and tensorflow/core/framework/tensor.proto.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfserve_kit.tensors import dtypes, varint
from tfserve_kit.tensors.proto import header, native, to_proto

Piece = bytes | memoryview

_REQUEST_SPEC, _REQUEST_INPUT, _REQUEST_FILTER = b"\x0a", b"\x12", b"\x1a"
_RESPONSE_OUTPUT, _RESPONSE_SPEC = b"\x0a", b"\x12"
_KEY, _VALUE = b"\x0a", b"\x12"
# TensorProto's fields whose bytes are those of the numbers.
_CONTENT = b"\x22"
_PACKED = {"float": b"\x2a", "double": b"\x32", "bool": b"\x5a"}


def predict_request(
    inputs: Mapping[str, ArrayLike], model_spec: Any, output_filter: Iterable[str] = ()
) -> bytes:
    """Return a serialized PredictRequest; numbers go as `tensor_content`.

    Args:
        inputs: array per input alias; shapes and dtypes as for `to_proto`.
        model_spec: a ModelSpec message.
        output_filter: names of the outputs to return; all if empty.

    Raises:
        TypeError: as `to_proto`.
    """
    pieces: list[Piece] = [_field(_REQUEST_SPEC, model_spec.SerializeToString())]
    for alias, value in inputs.items():
        pieces += _entry(_REQUEST_INPUT, alias, np.asarray(value), as_content=True)
    pieces += [_field(_REQUEST_FILTER, name.encode()) for name in output_filter]
    return b"".join(pieces)


def predict_response(
    outputs: Mapping[str, NDArray[Any]], model_spec: bytes, *, as_content: bool = False
) -> bytes:
    """Return a serialized PredictResponse.

    Args:
        outputs: array per output alias.
        model_spec: a serialized ModelSpec.
        as_content: as for `to_proto`.
    """
    pieces: list[Piece] = [_field(_RESPONSE_SPEC, model_spec)]
    for alias, array in outputs.items():
        pieces += _entry(_RESPONSE_OUTPUT, alias, array, as_content=as_content)
    return b"".join(pieces)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint.encode(len(content)) + content


def _entry(tag: bytes, alias: str, array: NDArray[Any], *, as_content: bool) -> list[Piece]:
    """Return a map entry from a name to a tensor."""
    dtype = dtypes.by_numpy(array.dtype)
    numbers = (
        None if dtype is dtypes.STRING else _CONTENT if as_content else _PACKED.get(dtype.name)
    )
    if numbers is None:
        tensor = to_proto(array, as_content=as_content).SerializeToString()
        return [_entry_start(tag, alias, len(tensor)), tensor]
    content = native(array).reshape(-1).view(np.uint8).data
    start = _numbers_start(tag, alias, dtype.number, array.shape, numbers, len(content))
    return [start, content]


@lru_cache(maxsize=64)
def _numbers_start(
    tag: bytes, alias: str, dtype_number: int, shape: tuple[int, ...], numbers: bytes, size: int
) -> bytes:
    """Return all of a map entry up to the `size` bytes of numbers; calls mostly repeat it."""
    head: bytes = header(dtype_number, shape).SerializeToString()
    if size:
        head += numbers + varint.encode(size)
    return _entry_start(tag, alias, len(head) + size) + head


def _entry_start(tag: bytes, alias: str, tensor_bytes: int) -> bytes:
    """Return the bytes of a map entry before its TensorProto."""
    inner = _field(_KEY, alias.encode()) + _VALUE + varint.encode(tensor_bytes)
    return tag + varint.encode(len(inner) + tensor_bytes) + inner
