"""What a checkpoint's index says about its data files, read without tensorflow.

`variables/variables.index` is an immutable sorted table (tensorflow/core/lib/io/format.cc): blocks
of prefix-compressed keys, an index block over them and a footer of 48 bytes. Its values are a
BundleHeaderProto under the empty key and a BundleEntryProto for each tensor
(tensorflow/core/util/tensor_bundle/tensor_bundle.h).
"""

import contextlib
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit import input_files, protos
from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.dtypes import DType
from tfserve_kit.tensors.proto import decode_varint

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57
_BLOCK_TRAILER_BYTES = 5  # one byte of compression type, four of checksum
_RAW = 0
# An index has some hundred bytes for each tensor, and TensorFlow knows 254 dimensions.
_MOST_BYTES = 1 << 29
_MOST_KEY_BYTES = 1 << 28  # of all names together: they are stored shortened
_MOST_DIMENSIONS = 254
_MOST_VALUES = (1 << 63) - 1
_MAX_SHARDS = 99_999  # file names have five digits for it; a damaged count may be of any size


class CheckpointError(ValueError):
    """The index is truncated, or is not a checkpoint index."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a checkpoint.

    Attributes:
        dtype: its type; None for types that have no name here (quantized ones).
        shape: its sizes by axis.
        size_bytes: how much of a data file it takes.
    """

    dtype: DType | None
    shape: tuple[int, ...]
    size_bytes: int


def shard_sizes(index_file: Path) -> dict[str, int]:
    """Return how many bytes each data file of a checkpoint must have at least.

    Args:
        index_file: a `*.index` file.

    Returns:
        File name (`variables.data-00000-of-00001`) to size in bytes, for every shard.

    Raises:
        CheckpointError: the file is truncated, or is not a checkpoint index.
        OSError: it cannot be read.
    """
    with _reading(index_file):
        return _sizes(index_file.stem, _entries(input_files.read_bytes(index_file, _MOST_BYTES)))


def tensors(index_file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint by name.

    Args:
        index_file: a `*.index` file.

    Raises:
        CheckpointError: the file is truncated, or is not a checkpoint index.
        OSError: it cannot be read.
    """
    with _reading(index_file):
        return {
            key.decode("utf-8", "replace"): _stored(protos.BundleEntryProto.FromString(value))
            for key, value in _entries(input_files.read_bytes(index_file, _MOST_BYTES))
            if key
        }


def _stored(entry: Any) -> StoredTensor:
    shape = tuple(max(dim.size, 0) for dim in entry.shape.dim[: _MOST_DIMENSIONS + 1])
    if len(shape) > _MOST_DIMENSIONS or math.prod(shape) > _MOST_VALUES:
        raise CheckpointError("the index holds a tensor of an impossible shape")
    try:
        dtype = dtypes.by_number(entry.dtype)
    except KeyError:
        dtype = None
    return StoredTensor(dtype, shape, entry.size)


@contextlib.contextmanager
def _reading(index_file: Path) -> Iterator[None]:
    """Translate what a damaged index leads to."""
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, struct.error, protos.DecodeError) as error:
        raise CheckpointError(f"{index_file.name} is damaged: {error}") from error


def _sizes(stem: str, entries: Iterable[tuple[bytes, bytes]]) -> dict[str, int]:
    header = protos.BundleHeaderProto()
    needed: dict[int, int] = {}
    for key, value in entries:
        if not key:
            header.MergeFromString(value)
            continue
        entry = protos.BundleEntryProto.FromString(value)
        needed[entry.shard_id] = max(needed.get(entry.shard_id, 0), entry.offset + entry.size)
    shards = header.num_shards
    if not 1 <= shards <= _MAX_SHARDS or not needed.keys() <= set(range(shards)):
        raise CheckpointError(f"{stem}.index names {shards} shards but uses {sorted(needed)[:8]}")
    return {
        f"{stem}.data-{shard:05d}-of-{shards:05d}": needed.get(shard, 0) for shard in range(shards)
    }


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(table) < _FOOTER_BYTES:
        raise CheckpointError(f"an index of {len(table)} bytes is truncated")
    footer = table[-_FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise CheckpointError("the index does not end as a checkpoint index does")
    _, _, at = _handle(footer, 0)  # the metaindex block, always empty
    offset, size, _ = _handle(footer, at)
    named_bytes, end = 0, 0
    for _, handle in _block(table, offset, size):
        offset, size, _ = _handle(handle, 0)
        if offset < end:
            raise CheckpointError("the index holds blocks that overlap")
        end = offset + size
        for key, value in _block(table, offset, size):
            named_bytes += len(key)
            if named_bytes > _MOST_KEY_BYTES:
                raise CheckpointError(f"the names in it have more than {_MOST_KEY_BYTES:,} bytes")
            yield key, value


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Read a block handle; return the block's offset and size, and where the handle ends."""
    offset, at = decode_varint(data, at)
    size, at = decode_varint(data, at)
    return offset, size, at


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block = table[offset : offset + size]
    if len(table) < offset + size + _BLOCK_TRAILER_BYTES or table[offset + size] != _RAW:
        raise CheckpointError("the index holds a block that is cut off or compressed")
    (restarts,) = struct.unpack("<I", block[-4:])
    end, at, key = size - 4 * (restarts + 1), 0, b""
    while at < end:
        shared, at = decode_varint(block, at)
        own, at = decode_varint(block, at)
        length, at = decode_varint(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length
