"""Encoded pictures become rows of a model's input, as its signature and its note ask.

They are decoded with Pillow as TensorFlow's decoders do it. What differs from
`tf.io.decode_image` on purpose: a picture is turned as its EXIF tag says.

Source: tensorflow/core/kernels/image/decode_image_op.cc; lib/png/png_io.cc (16 bits, transparency)
and lib/jpeg/jpeg_mem.cc (grey, CMYK) in tensorflow/core.
"""

import base64
import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tfserve_kit.errors import InvalidRequest
from tfserve_kit.pictures.files import kind_of
from tfserve_kit.pictures.inputs import (
    FLAT_RANK,
    GREY_RANK,
    ImageInput,
    limits_of,
    range_of,
    row_axes,
)
from tfserve_kit.pictures.preprocessing import Encoding, Preprocessing
from tfserve_kit.pictures.resizing import central_crop, frame

# Pillow knows more, but some of those start other programs. The first are imported first.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF")
_JPEG = b"\xff\xd8\xff"
_MODES = {1: "L", 3: "RGB"}
_ORIENTATION = 0x0112  # the tag of EXIF, and how its values are undone
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, name: str, channels: int) -> NDArray[np.uint8]:
    """Return the pixels of the first frame of a picture.

    Transparency is dropped; of 16 bits the upper 8 stay; grey is the luma of ITU-R 601.

    Args:
        data: the bytes of a JPEG, PNG, GIF, BMP, PPM, WebP or TIFF file.
        name: what errors call it.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 [height, width, channels].

    Raises:
        InvalidRequest: the data is not a whole picture, or one of more pixels than Pillow's own
            limit, `PIL.Image.MAX_IMAGE_PIXELS`: a small file may unpack to gigabytes.
    """
    try:
        image = _eight_bits(_upright(_load(data, grey=channels == 1)))
        wanted = _MODES[channels]  # converting to the same mode would copy
        pixels = np.asarray(image if image.mode == wanted else image.convert(wanted))
    except Image.DecompressionBombError as error:
        text = f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: {error}"
        remedy = "make it smaller first, or raise --max-pixels (PIL.Image.MAX_IMAGE_PIXELS)"
        raise InvalidRequest(text, remedy=remedy) from error
    except Exception as error:
        require_picture(data, name)
        raise InvalidRequest(
            f"{name} is not a picture that can be read: {_reason(data, error)}",
            remedy="give a JPEG, PNG, WebP, BMP, GIF or TIFF file",
        ) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def require_picture(data: bytes, name: str) -> None:
    """Refuse what is known to be something else; see `kind_of`.

    Raises:
        InvalidRequest: it is.
    """
    if kind := kind_of(data):
        text = f"{name} is not a picture that can be read: it is {kind.what}"
        raise InvalidRequest(text, remedy=kind.advice(name))


def _reason(data: bytes, error: Exception) -> str:
    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    return "it starts with " + repr(data[:16]) if data else "it is empty"


def _load(data: bytes, *, grey: bool) -> Image.Image:
    """Decode fully, so that a truncated file is noticed here."""
    image = _opened(data)
    limit = Image.MAX_IMAGE_PIXELS  # at which Pillow only warns
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height}")
    if grey:
        image.draft("L", image.size)  # the luma that a JPEG holds, as it is
    image.load()
    image.info.pop("transparency", None)  # nor would Pillow mix it into the colours
    return image


def _opened(data: bytes) -> Image.Image:
    """Open a picture; `Image.open` would import the decoders of other formats for a JPEG, too."""
    if data.startswith(_JPEG):
        from PIL.JpegImagePlugin import JpegImageFile

        with contextlib.suppress(Exception):  # Pillow says below what is wrong with it
            return JpegImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 (damaged remarks about a picture do not damage the picture)
        turn = None
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture of 16 bits a pixel with the upper 8."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8))


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
        InvalidRequest: the data is not a picture, or one too large; see `decode`.
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
