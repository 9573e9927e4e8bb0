"""TFRecord files: byte strings one after the other, with checksums.

Source: tensorflow/core/lib/io/record_writer.cc and record_reader.cc. A record is its length
(uint64), the masked CRC-32C of these eight bytes (uint32), the data, and the masked CRC-32C of the
data (uint32), all little-endian. Files that are compressed as a whole are not read here.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_MOST_RECORD_BYTES = (1 << 31) - 1  # of protobuf, and no damaged length is allocated
_MASK_DELTA = 0xA282EAD8  # tensorflow/core/lib/hash/crc32c.h


class TFRecordError(ValueError):
    """A TFRecord file is damaged.

    Attributes:
        record: number of the damaged record, from 1.
        offset: where the damaged part of it starts, in bytes from the start of the file.
    """

    def __init__(self, reason: str, record: int, offset: int) -> None:
        super().__init__(f"record {record} {reason} at byte {offset}")
        self.record, self.offset = record, offset


def write(file: Path, records: Iterable[bytes]) -> int:
    """Write a file, synced to disk, and return how many records there were.

    Raises:
        OSError: it cannot be written.
    """
    count = 0
    with file.open("wb") as stream:
        for data in records:
            count += 1
            length = _LENGTH.pack(len(data))
            stream.writelines((length, masked_crc(length), data, masked_crc(data)))
        stream.flush()
        os.fsync(stream.fileno())
    return count


def read(file: Path, *, verify: bool = True) -> Iterator[bytes]:
    """Yield the records of a file, one in memory at a time.

    TensorFlow's own reader takes a file that ends within a length for a complete one; here that is
    damage as well.

    Args:
        file: what to read.
        verify: look at the checksums.

    Raises:
        TFRecordError: a record is cut off or its checksum differs, or the file is none of records.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        size_bytes, number = os.fstat(stream.fileno()).st_size, 0
        while (start := stream.tell()) < size_bytes:
            number += 1
            head = _checked(stream, _LENGTH.size, number, verify=verify)
            (length,) = _LENGTH.unpack(head)
            # A damaged or hostile length must not become an allocation.
            if length > size_bytes - stream.tell() - _CHECKSUM.size:
                raise TFRecordError(f"says it has {length} bytes and is cut off", number, start)
            if length > _MOST_RECORD_BYTES:
                raise TFRecordError(f"has {length} bytes, more than protobuf takes,", number, start)
            yield _checked(stream, length, number, verify=verify)


def _checked(stream: BinaryIO, length: int, number: int, *, verify: bool) -> bytes:
    """Read bytes and the checksum behind them."""
    start = stream.tell()
    data, checksum = stream.read(length), stream.read(_CHECKSUM.size)
    if len(data) + len(checksum) < length + _CHECKSUM.size:
        raise TFRecordError("is cut off", number, start)
    if verify and checksum != masked_crc(data):
        raise TFRecordError("is damaged (its checksum differs)", number, start)
    return data


def masked_crc(data: bytes) -> bytes:
    """Return the checksum of some bytes as it stands in a file, four bytes."""
    crc: int = google_crc32c.value(data)
    return _CHECKSUM.pack(((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF)
