"""Pictures become the input of a model, as its signature and its preprocessing note ask."""

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import InvalidRequest
from tfserve_kit.pictures.decoding import decode
from tfserve_kit.pictures.image_input import (
    FLAT_RANK,
    GREY_RANK,
    ImageInput,
    image_input,
    limits_of,
    range_of,
    row_axes,
)
from tfserve_kit.pictures.preprocessing import Encoding, Preprocessing
from tfserve_kit.pictures.resizing import central_crop, frame

__all__ = ["ImageInput", "image_input", "prepare", "read_file"]

_ENCODERS: dict[Encoding, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "base64": base64.b64encode,
    "websafe": base64.urlsafe_b64encode,
}


def prepare(data: bytes, wanted: ImageInput, *, name: str) -> NDArray[Any]:
    """Turn one encoded picture into one row of the input.

    Args:
        data: the bytes of a JPEG, PNG or other picture.
        wanted: from `image_input`.
        name: what errors call the picture.

    Returns:
        The model's dtype, without the batch axis: bytes ([] or [1]), [height, width, channels],
        [channels, height, width], [height, width] or [n].
        Integers are rounded and kept within their type, where `tf.cast` would cut and wrap.

    Raises:
        InvalidRequest: the data is no picture, or one too large; see `decoding.decode`.
    """
    if wanted.encoded:
        decode(data, name, channels=3)
        rank = len(row_axes(wanted.spec) or ())
        encoded = np.empty((1,) * rank, object)
        encoded[(0,) * rank] = _ENCODERS[wanted.how.encoding or "raw"](data)
        return encoded
    how = wanted.how
    size, channels = (how.height or 0, how.width or 0), how.channels or 0
    pixels = _framed(decode(data, name, channels), size, how)
    values = _scaled(pixels.astype(np.float32), how)
    dtype = wanted.spec.dtype.numpy if wanted.spec.dtype else None
    if limits := dtype and limits_of(dtype):
        values = np.rint(values).clip(*limits)
    if how.layout == "channels_first":
        values = values.reshape((*size, channels)).transpose(2, 0, 1)
    rank = len(row_axes(wanted.spec) or (None, None, None))
    whole = (channels, *size) if how.layout == "channels_first" else (*size, channels)
    shapes: dict[int, tuple[int, ...]] = {FLAT_RANK: (-1,), GREY_RANK: size}
    return values.astype(dtype or np.float32).reshape(shapes.get(rank, whole))


def _framed(pixels: NDArray[np.uint8], size: tuple[int, int], how: Preprocessing) -> NDArray[Any]:
    """Return a picture in its size and order of channels."""
    if how.crop_fraction is not None:
        pixels = central_crop(pixels, how.crop_fraction)
    framed = frame(
        pixels,
        size,
        how.framing or "stretch",
        method=how.resize or "bilinear",
        antialias=bool(how.antialias),
    )
    return framed[:, :, ::-1] if how.channel_order == "bgr" else framed


def _scaled(pixels: NDArray[np.float32], how: Preprocessing) -> NDArray[np.float32]:
    low, high = range_of(how)
    values = pixels if (low, high) == (0.0, 255.0) else pixels * ((high - low) / 255.0) + low
    values = values.astype(np.float32, copy=False)
    if how.mean:
        values = np.subtract(values, np.array(how.mean, np.float32))
    if how.std:
        values = np.divide(values, np.array(how.std, np.float32))
    return values


# No message holds more.
MAX_FILE_BYTES = 1 << 30


def read_file(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        InvalidRequest: it cannot be read, or is too large for a request.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size  # 0 of what is no file, such as a pipe
            data = stream.read(min(size or MAX_FILE_BYTES, MAX_FILE_BYTES) + 1)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        text = f"{path} has more than {MAX_FILE_BYTES:,} bytes"
        raise InvalidRequest(text, remedy="send it in several files")
    return data
