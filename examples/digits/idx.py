"""IDX, the file format of MNIST: read and write it, and load a folder of digits.

A file is `00 00 08 d`, then `d` sizes as big-endian 32-bit integers, then the values, one byte
each. Needs numpy and the standard library only.
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x00\x00\x08"  # two zeros, then the code of unsigned bytes
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, eq=False, slots=True)
class Digits:
    """A set of handwritten digits, light strokes on black.

    Attributes:
        train_images: uint8 [n, 28, 28], 0-255.
        train_labels: uint8 [n], 0-9.
        test_images: uint8 [m, 28, 28], 0-255, held out from training.
        test_labels: uint8 [m], 0-9.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


def load(directory: Path) -> Digits:
    """Load the four files of MNIST, or of a set stored like it, gzip-compressed or not.

    Raises:
        FileNotFoundError: one of the four is missing under every spelling of its name.
        ValueError: a file is damaged, or is no set of 28x28 images with one label each.
    """
    return Digits(*_load_part(directory, "train"), *_load_part(directory, "t10k"))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, gzip-compressed or not.

    Returns:
        A read-only uint8 array of the shape that the file states.

    Raises:
        ValueError: the file is no IDX file of bytes, or is truncated or too long.
    """
    content = _uncompressed(path)
    if not content.startswith(_MAGIC):
        raise ValueError(f"{path}: starts with {content[:4].hex(' ')!r}, not the IDX '00 00 08'")
    start = 4 + 4 * int.from_bytes(content[3:4])
    if len(content) < start:
        raise ValueError(f"{path}: truncated within its header, at {len(content)} bytes")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected, found = math.prod(shape), len(content) - start
    if found != expected:
        fault = "truncated" if found < expected else "too long"
        raise ValueError(f"{path}: {fault}: {found} values where shape {shape} needs {expected}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Write a uint8 array of any shape as IDX, gzip-compressed where the name ends in `.gz`."""
    if array.dtype != np.uint8:
        raise ValueError(f"{path}: cannot hold {array.dtype} values, only uint8")
    header = _MAGIC + struct.pack(f">B{array.ndim}I", array.ndim, *array.shape)
    content = header + array.tobytes()
    if path.suffix != ".gz":
        path.write_bytes(content)
        return
    # Neither time nor name goes into the gzip header, so that equal arrays give equal files.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, fileobj=raw, mtime=0) as file:
        file.write(content)


def _uncompressed(path: Path) -> bytes:
    content = path.read_bytes()
    # By content: some tools unpack a download and leave the `.gz` in its name.
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise ValueError(f"{path}: truncated: its gzip data ends too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip data: {error}") from error


def _load_part(directory: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images_path = _find(directory, f"{part}-images", "idx3-ubyte")
    labels_path = _find(directory, f"{part}-labels", "idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape[1:] != (28, 28):
        raise ValueError(f"{images_path}: holds shape {images.shape}, not (n, 28, 28)")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{labels_path}: shape {labels.shape} for {len(images)} images")
    return images, labels


def _find(directory: Path, stem: str, ending: str) -> Path:
    names = [f"{stem}{joint}{ending}{suffix}" for joint in "-." for suffix in (".gz", "")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: holds none of {', '.join(names)}")
