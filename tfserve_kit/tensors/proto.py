"""numpy arrays to and from TensorProto messages, and whole Predict messages as bytes.

What the typed `*_val` fields mean follows tensorflow/core/framework/tensor.cc: too few values
repeat the last one, none at all means zeros, surplus values are cut, and `tensor_content` wins over
values.

PredictRequests and PredictResponses are written as bytes, each tensor's bytes copied once: going
through the message classes copies a large tensor several times and a small one slowly.

Field numbers: tensorflow_serving/apis/predict.proto (request: model_spec = 1, inputs = 2,
output_filter = 3; response: outputs = 1, model_spec = 2; map entry: key = 1, value = 2) and
tensorflow/core/framework/tensor.proto.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfserve_kit import protos
from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.dtypes import DType

# A tensor may name at most this many dimensions (tensorflow/core/framework/tensor_shape.h).
MAX_RANK = 254
# A few bytes may claim a huge tensor by leaving its values out; no larger one is filled in.
MAX_FILLED_BYTES = 1 << 30
# Nor may a tensor without elements be a list of more empty ones than this.
_MAX_EMPTY_ROWS = 1 << 20


# An element of the widest type.
_WIDEST_BYTES = 16
# A string within tensorflow, besides its bytes, and the reference to it.
_STRING_BYTES = 32

# So few values numpy takes faster one by one than through their buffer.
_FEW = 64

Fill = Callable[[int], None]
_IS_LITTLE = sys.byteorder == "little"


def _freely(size_bytes: int) -> None:
    """Let any number of bytes be filled in."""


class TensorError(ValueError):
    """A TensorProto contradicts itself, or an array has no TensorFlow counterpart."""


class ForeignTensorError(TensorError):
    """A TensorProto is in order, but numpy has no array for its type.

    Attributes:
        number: its DataType.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"cannot read a tensor of DataType {number}")
        self.number = number


def to_proto(array: ArrayLike, *, as_content: bool = True) -> Any:
    """Return a TensorProto holding `array`.

    Args:
        array: any shape; any dtype of `tensors.dtypes`. Text is encoded as UTF-8.
        as_content: numbers go as raw bytes in `tensor_content`; False writes the typed field, as
            the official server does in its answers. Strings always go to `string_val`.

    Raises:
        TypeError: TensorFlow has no such dtype, or a string element is neither str nor bytes.
    """
    array = np.asarray(array)
    dtype = dtypes.by_numpy(array.dtype)
    proto = header(dtype.number, array.shape)
    if dtype is dtypes.STRING:
        proto.string_val.extend(_byte_strings(array))
    elif as_content:
        proto.tensor_content = _native(array).tobytes()
    else:
        getattr(proto, dtype.field).extend(_values(array))
    return proto


def from_proto(proto: Any, *, whole: bool = False, fill: Fill = _freely) -> NDArray[Any]:
    """Return the array a TensorProto holds.

    Args:
        proto: the message.
        whole: refuse a tensor that claims more elements than were sent; a server never leaves
            values of an answer out.
        fill: told how many bytes are filled in for values that were left out, before they are; may
            raise.

    Returns:
        An array of the message's shape; strings as an object array of bytes; bfloat16 as float32
        where numpy has no bfloat16. It may be read-only and share memory with the message.

    Raises:
        TensorError: unknown dtype, negative or overflowing shape, content of another length, or
            too few values where `whole` is asked for.
    """
    if whole and proto.tensor_shape.unknown_rank:
        raise TensorError("a tensor value must have a known rank")
    shape, count = _shape(proto)
    if whole and not count:
        _require_few_rows(shape)
    array = _shaped(_flat(proto, shape, count, fill, whole=whole), shape)
    if not whole and not count:
        _claim_empty(shape, fill)
    return array


def _flat(
    proto: Any, shape: tuple[int, ...], count: int, fill: Fill, *, whole: bool
) -> NDArray[Any]:
    """Return the elements, checked; see `from_proto`."""
    try:
        dtype = dtypes.by_number(proto.dtype)
    except KeyError:
        raise _foreign(proto, count) from None
    if dtype is dtypes.STRING:
        return _strings_from(proto, count, fill, whole=whole)
    storage = np.dtype(np.uint16) if dtype.numpy is None else dtype.numpy
    content = proto.tensor_content  # each time it is asked for it is copied
    if content and count:  # of no elements nothing is read
        if len(content) != count * storage.itemsize:
            raise TensorError(
                f"tensor_content holds {len(content)} bytes, "
                f"not the {count * storage.itemsize} of {dtype.name} {list(shape)}"
            )
        flat = np.frombuffer(content, storage)
        if not _IS_LITTLE:
            flat = flat.byteswap()
    else:
        flat = _filled(_typed(proto, dtype, storage), count, fill, whole=whole)
    return _widen(flat) if dtype.numpy is None else flat


def _shape(proto: Any) -> tuple[tuple[int, ...], int]:
    """Return the shape and how many elements it has.

    A server does not look at what is said of the rank: dimensions count (tensor_shape.cc, IsValid).
    """
    dims = proto.tensor_shape.dim
    if len(dims) > MAX_RANK:
        raise TensorError(f"no tensor can have {len(dims)} dimensions")
    shape, count = tuple([dim.size for dim in dims]), 1
    for size in shape:
        count *= size
        if size < 0 or count >= 1 << 63:
            raise TensorError(f"no tensor can have the shape {list(shape)[:8]}")
    return shape, count


def _foreign(proto: Any, count: int) -> TensorError:
    """Return the error of a tensor of another type: another one if TensorFlow would read it."""
    number, content = proto.dtype, len(proto.tensor_content)
    size_bytes = dtypes.FOREIGN_BYTES.get(number)
    is_content = not content or (bool(size_bytes) and content == count * (size_bytes or 0))
    is_whole = is_content and not any(each.type_name for each in proto.variant_val)
    if size_bytes is not None and (not count or is_whole):
        return ForeignTensorError(number)
    return TensorError(f"cannot read a tensor of DataType {number}")


def _shaped(flat: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return flat.reshape(shape)
    except ValueError as error:  # numpy allows fewer dimensions than TensorFlow, and smaller ones
        raise TensorError(f"numpy has no array of the shape {list(shape)[:8]}: {error}") from error


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in C order and in the byte order of the wire."""
    if _IS_LITTLE and array.dtype.isnative and array.flags.c_contiguous:
        return array
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _byte_strings(array: NDArray[Any]) -> Iterator[bytes]:
    for item in array.ravel().tolist():
        if isinstance(item, str):
            yield item.encode()
        elif isinstance(item, bytes):
            yield item
        else:
            raise TypeError(f"a string tensor cannot hold {item!r}; it takes str and bytes")


def _values(array: NDArray[Any]) -> Iterable[Any]:
    """Return the elements as the typed field wants them."""
    flat = _native(array).ravel()
    if flat.dtype.kind == "c":
        return flat.view(np.dtype(f"f{flat.dtype.itemsize // 2}")).tolist()
    if dtypes.by_numpy(flat.dtype).field == "half_val":
        return flat.view(np.uint16).tolist()
    return flat.tolist()


def _typed(proto: Any, dtype: DType, storage: np.dtype[Any]) -> NDArray[Any]:
    """Return the values of the typed field, as many as there are."""
    field = getattr(proto, dtype.field)
    if dtype.field.endswith("complex_val"):
        part = np.dtype(f"f{storage.itemsize // 2}")
        return np.array(field[: len(field) // 2 * 2], part).view(storage)
    if dtype.field == "half_val":
        return np.array(field, np.int32).astype(np.uint16).view(storage)
    if dtype.field == "int_val":  # int32 on the wire, cut to the narrower type as C++ does
        return np.array(field, np.int32).astype(storage)
    if len(field) < _FEW:
        return np.fromiter(field, storage, len(field))
    return np.array(field, storage)


def _require_few_rows(shape: tuple[int, ...]) -> None:
    """Refuse a tensor of nothing that would be a list of very many empty lists."""
    if math.prod(shape[: shape.index(0)]) > _MAX_EMPTY_ROWS:
        raise TensorError(f"a tensor without elements of the shape {list(shape)[:8]}")


def _claim_empty(shape: tuple[int, ...], fill: Fill) -> None:
    """Count a tensor of nothing for what a model makes of it: a sum along the empty axis, say.

    That has as many elements as the other axes name, so these are values that were left out.
    """
    claimed_bytes = _WIDEST_BYTES * math.prod(filter(None, shape))
    if claimed_bytes > MAX_FILLED_BYTES:
        raise TensorError(f"a tensor without elements of the shape {list(shape)[:8]}")
    fill(claimed_bytes)


def _filled(values: NDArray[Any], count: int, fill: Fill, *, whole: bool) -> NDArray[Any]:
    if len(values) >= count:
        return values[:count]
    if whole or count * values.itemsize > MAX_FILLED_BYTES:
        raise TensorError(f"{count} elements, of which only {len(values)} were sent")
    fill(count * values.itemsize)
    return _tailed(values, count, 0)


def _strings_from(proto: Any, count: int, fill: Fill, *, whole: bool) -> NDArray[Any]:
    items = list(_content_strings(proto.tensor_content, count) or proto.string_val[:count])
    missing = count - len(items)
    if (whole and missing) or missing * 8 > MAX_FILLED_BYTES:
        raise TensorError(f"{count} strings, of which only {len(items)} were sent")
    array = np.empty(len(items), object)
    array[:] = items
    if not missing:
        return array
    fill(count * (_STRING_BYTES + len(items[-1] if items else b"")))
    return _tailed(array, count, b"")


def _tailed(values: NDArray[Any], count: int, empty: Any) -> NDArray[Any]:
    """Repeat the last value; `empty` if there is none. One value for all is kept only once."""
    if len(values) <= 1:
        return np.broadcast_to(values if len(values) else np.array(empty, values.dtype), count)
    array = np.empty(count, values.dtype)
    array[: len(values)] = values
    array[len(values) :] = values[-1]
    return array


def _content_strings(content: bytes, count: int) -> list[bytes]:
    """Split string content: all lengths as varints, then all bytes (tensor_coding.cc)."""
    if not content or not count:
        return []
    lengths, at = [], 0
    for _ in range(count):
        length, at = _length(content, at)
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise TensorError("the lengths in string content do not add up to its size")
    items = []
    for length in lengths:
        items.append(content[at : at + length])
        at += length
    return items


def _length(content: bytes, at: int) -> tuple[int, int]:
    try:
        return decode_varint(content, at, bits=32)
    except ValueError as error:
        raise TensorError("string content ends within a length") from error


def _widen(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 bits as float32, which holds every one of them exactly."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def header(dtype_number: int, shape: tuple[int, ...]) -> Any:
    """Return a TensorProto with dtype and shape only."""
    proto = protos.TensorProto(dtype=dtype_number)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


Piece = bytes | memoryview

_REQUEST_SPEC, _REQUEST_INPUT, _REQUEST_FILTER = b"\x0a", b"\x12", b"\x1a"
_RESPONSE_OUTPUT, _RESPONSE_SPEC = b"\x0a", b"\x12"
_KEY, _VALUE = b"\x0a", b"\x12"
# TensorProto's fields whose bytes are those of the numbers.
_CONTENT = b"\x22"
_SMALL_BYTES = 4096  # of so few, a copy costs less than a view
_PACKED = {"float": b"\x2a", "double": b"\x32", "bool": b"\x5a"}


def predict_request(
    inputs: Mapping[str, ArrayLike], model_spec: bytes, output_filter: Iterable[str] = ()
) -> bytes:
    """Return a serialized PredictRequest; numbers go as `tensor_content`.

    Args:
        inputs: array per input alias; shapes and dtypes as for `to_proto`.
        model_spec: a serialized ModelSpec.
        output_filter: names of the outputs to return; all if empty.

    Raises:
        TypeError: as `to_proto`.
    """
    pieces: list[Piece] = [_field(_REQUEST_SPEC, model_spec)]
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
    pieces: list[Piece] = [_response_spec(model_spec)]
    for alias, array in outputs.items():
        pieces += _entry(_RESPONSE_OUTPUT, alias, array, as_content=as_content)
    return b"".join(pieces)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + encode_varint(len(content)) + content


def _entry(tag: bytes, alias: str, array: NDArray[Any], *, as_content: bool) -> list[Piece]:
    """Return a map entry from a name to a tensor."""
    start = _numbers_start(tag, alias, array.dtype, array.shape, as_content)
    if start is None:
        tensor = to_proto(array, as_content=as_content).SerializeToString()
        return [_entry_start(tag, alias, len(tensor)), tensor]
    if array.nbytes > _SMALL_BYTES:
        return [start, _native(array).reshape(-1).view(np.uint8).data]
    is_as_sent = _IS_LITTLE and array.dtype.isnative
    return [start, (array if is_as_sent else _native(array)).tobytes()]


@lru_cache(maxsize=64)
def _response_spec(model_spec: bytes) -> bytes:
    """Return the field of a serialized ModelSpec; most answers repeat it."""
    return _field(_RESPONSE_SPEC, model_spec)


@lru_cache(maxsize=64)
def _numbers_start(
    tag: bytes,
    alias: str,
    numpy: np.dtype[Any],
    shape: tuple[int, ...],
    as_content: bool,  # noqa: FBT001 (by name it would take twice as long)
) -> bytes | None:
    """Return all of a map entry up to the bytes of numbers; calls mostly repeat it.

    None for what is not sent as the numbers lie in memory.
    """
    dtype = dtypes.by_numpy(numpy)
    numbers = _CONTENT if as_content else _PACKED.get(dtype.name)
    if dtype is dtypes.STRING or numbers is None:
        return None
    size = math.prod(shape) * numpy.itemsize
    head: bytes = header(dtype.number, shape).SerializeToString()
    if size:
        head += numbers + encode_varint(size)
    return _entry_start(tag, alias, len(head) + size) + head


def _entry_start(tag: bytes, alias: str, tensor_bytes: int) -> bytes:
    """Return the bytes of a map entry before its TensorProto."""
    inner = _field(_KEY, alias.encode()) + _VALUE + encode_varint(tensor_bytes)
    return tag + encode_varint(len(inner) + tensor_bytes) + inner


def decode_varint(data: bytes | memoryview, at: int, *, bits: int = 64) -> tuple[int, int]:
    """Return the varint of at most `bits` bits that begins at `at`, and where it ends.

    Raises:
        ValueError: the data ends within the number, or the number does not end.
    """
    value = 0
    for shift in range(0, bits, 7):
        if at >= len(data):
            raise ValueError("the data ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 (the top bit says that more follows)
            return value, at
    raise ValueError("a number does not end")


def encode_varint(value: int) -> bytes:
    """Return a number >= 0 as protobuf and TensorFlow's files write it: seven bits a byte."""
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 (seven bits a byte)
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
