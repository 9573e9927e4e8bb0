"""numpy's own files, read without trust.

Their headers say how large their arrays are, and a few bytes may say anything: zeros compress a
thousand times, and a file with holes takes no room at all. Nothing is made before that was held
against a limit.
"""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

# More than any message can carry; what is larger is sent from several files.
MAX_BYTES = 4 << 30
_SUFFIX = ".npy"


def read(file: Path, *, most: int | None = None) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return the array of an .npy file, or those of an .npz file by name.

    Args:
        file: what to read.
        most: bytes that its arrays may have together; `MAX_BYTES` if left out.

    Raises:
        ValueError: it is not such a file, holds Python objects, or more than `most` bytes.
        OSError: it cannot be read.
    """
    left = MAX_BYTES if most is None else most
    with file.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            return read_array(stream, most=left)
        with zipfile.ZipFile(stream) as archive:
            return dict(_entries(archive, left))


def _entries(archive: zipfile.ZipFile, left: int) -> Iterator[tuple[str, NDArray[Any]]]:
    for entry in archive.infolist():
        if not entry.filename.endswith(_SUFFIX):
            raise ValueError(f"it holds {entry.filename!r:.80}, which is not an array")
        with archive.open(entry) as stream:
            array = read_array(stream, most=left)
        left -= array.nbytes
        yield entry.filename.removesuffix(_SUFFIX), array


def read_array(stream: IO[bytes], *, most: int = MAX_BYTES) -> NDArray[Any]:
    """Return the array that a stream holds, which can seek.

    Raises:
        ValueError: it holds none, one of Python objects, or one of more than `most` bytes.
    """
    start = stream.tell()
    shape, _, dtype = read_header(stream)
    require_bytes(shape, dtype, most)
    stream.seek(start)
    array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether columns come first, and dtype of the array in a stream.

    Raises:
        ValueError: there is none.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"format {version} is for records, which are not tensors")


def require_bytes(shape: tuple[int, ...], dtype: np.dtype[Any], most: int) -> None:
    """Refuse an array that is too large.

    Raises:
        ValueError: it has more than `most` bytes.
    """
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > most:
        raise ValueError(
            f"it claims an array {dtype} {list(shape)[:8]} of {claimed:,} bytes, and no more than "
            f"{most:,} are read"
        )
