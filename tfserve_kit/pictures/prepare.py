"""Encoded pictures become rows of a model's input, as its signature and its note ask.

They are decoded with Pillow as TensorFlow's decoders do it, and resized with numpy alone. What
differs from `tf.io.decode_image` on purpose: a picture is turned as its EXIF tag says.

Every method of resizing is separable: an output row is a weighted sum of some input rows, and the
same holds for columns. The positions are computed in 32-bit floats as upstream, since a rounded
position may lie in another pixel.

Source: tensorflow/core/kernels/image: decode_image_op.cc, resize_bilinear_op.cc,
resize_bicubic_op.cc, resize_area_op.cc, resize_nearest_neighbor_op.cc, scale_and_translate_op.cc
(antialias), all with half_pixel_centers as `tf.image.resize` sets it; lib/png/png_io.cc (16 bits,
transparency) and lib/jpeg/jpeg_mem.cc (grey, CMYK) in tensorflow/core;
tensorflow/python/ops/image_ops_impl.py (framing); keras/src/utils/image_utils.py (smart_resize).
"""

import base64
import contextlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

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
from tfserve_kit.pictures.preprocessing import Encoding, Framing, Preprocessing, ResizeMethod

Floats = NDArray[np.float32]
Size = tuple[int, int]  # height and width

_ONE, _HALF = np.float32(1), np.float32(0.5)
_GROUP = 8  # output rows that are summed at once: long enough to be quick, few enough for the cache
_TABLE_SIZE = 1024  # steps between two pixels at which TensorFlow knows the cubic curve


class _Taps(NamedTuple):
    """Which rows make up each output row: indices and weights, both [outputs, taps]."""

    indices: NDArray[np.int64]
    weights: Floats


def frame(
    pixels: NDArray[np.uint8],
    size: Size,
    framing: Framing,
    *,
    method: ResizeMethod,
    antialias: bool,
) -> NDArray[Any]:
    """Bring a picture to a size.

    Args:
        pixels: uint8 [height, width, channels].
        size: height and width of the result, in pixels.
        framing: `stretch` as `tf.image.resize`; `centre_crop` as `smart_resize` of Keras, which
            first cuts the picture to the proportions of the result; `pad` as
            `tf.image.resize_with_pad`, which adds black.
        method: see `resize`.
        antialias: see `resize`.

    Returns:
        [*size, channels], of the type that `resize` returns.
    """
    if framing == "centre_crop":
        pixels = _cut_to_proportions(pixels, size)
    if framing != "pad":
        return resize(pixels, size, method, antialias=antialias)
    inner, (top, left) = _inner_box(pixels.shape[:2], size)
    resized = resize(pixels, inner, method, antialias=antialias)
    padded = np.zeros((*size, pixels.shape[2]), resized.dtype)
    padded[top : top + inner[0], left : left + inner[1]] = resized
    return padded


def central_crop(pixels: NDArray[np.uint8], fraction: float) -> NDArray[np.uint8]:
    """Cut a border off, as `tf.image.central_crop`.

    Args:
        pixels: uint8 [height, width, channels].
        fraction: the part of height and width that stays, above 0 and up to 1.
    """
    top, left = (int((size - size * fraction) / 2) for size in pixels.shape[:2])
    height, width = pixels.shape[:2]
    return pixels[top : height - top, left : width - left]


def resize(
    pixels: NDArray[np.uint8], size: Size, method: ResizeMethod, *, antialias: bool
) -> NDArray[Any]:
    """Stretch a picture to a size as `tf.image.resize` does.

    Args:
        pixels: uint8 [height, width, channels].
        size: height and width of the result, in pixels.
        method: how pixels between pixels are found.
        antialias: whether `bilinear` and `bicubic` weigh all pixels that shrink into one; the
            other methods do not look at it.

    Returns:
        [*size, channels]: uint8 of `nearest` and where the size stays, else float32, not rounded;
        `bicubic` may leave 0-255.
    """
    if pixels.shape[:2] == size:
        return pixels
    if method == "nearest":
        above, beside = map(_nearest, pixels.shape[:2], size)
        return pixels[above][:, beside]
    make = _METHODS[method, antialias and method != "area"]
    return _summed(pixels, make(pixels.shape[0], size[0]), make(pixels.shape[1], size[1]))


def _summed(pixels: NDArray[np.uint8], rows: _Taps, columns: _Taps) -> Floats:
    # What no output looks at is left out before anything is computed.
    rows, used_rows = _compact(rows)
    columns, used_columns = _compact(columns)
    used = pixels[used_rows][:, used_columns]
    height, width, channels = used.shape
    tall = _weighted(used.reshape(height, width * channels), rows)
    turned = np.swapaxes(tall.reshape(-1, width, channels), 0, 1)
    result = _weighted(turned.reshape(width, -1), columns)
    return np.ascontiguousarray(np.swapaxes(result.reshape(len(result), -1, channels), 0, 1))


def _compact(taps: _Taps) -> tuple[_Taps, NDArray[np.int64] | slice]:
    """Return taps into the rows that are used, and which those are."""
    used, inverse = np.unique(taps.indices, return_inverse=True)
    if len(used) == used[-1] - used[0] + 1:  # a slice copies nothing
        return _Taps(taps.indices - used[0], taps.weights), slice(used[0], used[-1] + 1)
    return _Taps(inverse.reshape(taps.indices.shape), taps.weights), used


def _weighted(rows: NDArray[Any], taps: _Taps) -> Floats:
    """Return the weighted sums of rows, [inputs, values] -> [outputs, values]."""
    result = np.empty((len(taps.indices), rows.shape[1]), np.float32)
    for start in range(0, len(result), _GROUP):
        indices = taps.indices[start : start + _GROUP]
        first, last = int(indices.min()), int(indices.max())
        weights = np.zeros((len(indices), last - first + 1), np.float32)
        outputs = np.arange(len(indices))[:, np.newaxis]
        np.add.at(weights, (outputs, indices - first), taps.weights[start : start + _GROUP])
        band = rows[first : last + 1].astype(np.float32, copy=False)
        np.matmul(weights, band, out=result[start : start + _GROUP])
    return result


def _scale(was: int, wanted: int) -> np.float32:
    return np.float32(was) / np.float32(wanted)


def _centres(was: int, wanted: int) -> Floats:
    """Return where the middle of each output pixel lies among the inputs, counted in pixels."""
    return (np.arange(wanted, dtype=np.float32) + _HALF) * _scale(was, wanted)


def _nearest(was: int, wanted: int) -> NDArray[np.int64]:
    return np.minimum(np.floor(_centres(was, wanted)).astype(np.int64), was - 1)


def _bilinear(was: int, wanted: int) -> _Taps:
    place = _centres(was, wanted) - _HALF
    below = np.floor(place)
    indices = np.stack([below, np.ceil(place)], axis=1).clip(0, was - 1).astype(np.int64)
    part = place - below
    return _Taps(indices, np.stack([_ONE - part, part], axis=1))


def _bicubic(was: int, wanted: int) -> _Taps:
    """Return Keys' curve over four pixels; what lies outside counts for nothing."""
    place = _centres(was, wanted) - _HALF
    below = np.floor(place)
    step = np.rint((place - below) * np.float32(_TABLE_SIZE))
    offsets = np.arange(-1, 3)
    distance = np.abs(step[:, np.newaxis] / np.float32(_TABLE_SIZE) - offsets.astype(np.float32))
    return _inside(below[:, np.newaxis].astype(np.int64) + offsets, _keys(distance), was)


def _area(was: int, wanted: int) -> _Taps:
    """Return how much of each input pixel an output pixel covers."""
    scale = _scale(was, wanted)
    first = np.arange(wanted, dtype=np.float32) * scale
    last = (np.arange(wanted, dtype=np.float32) + _ONE) * scale
    start = np.floor(first).astype(np.int64)
    count = int((np.ceil(last).astype(np.int64) - start).max())
    indices = start[:, np.newaxis] + np.arange(count)
    ends = np.minimum(indices + 1, last[:, np.newaxis])
    covered = (ends - np.maximum(indices, first[:, np.newaxis])).clip(0)
    return _Taps(indices.clip(0, was - 1), (covered / scale).astype(np.float32))


def _triangle(distance: Floats) -> Floats:
    return (_ONE - distance).clip(0)


def _keys(distance: Floats) -> Floats:
    """Return Keys' cubic curve with a = -0.5, at distances of 0 and more."""
    near = (np.float32(1.5) * distance - np.float32(2.5)) * distance * distance + _ONE
    far = ((np.float32(2.5) - _HALF * distance) * distance - np.float32(4)) * distance
    end = np.float32(2)
    curve = np.where(distance <= _ONE, near, far + end)
    return np.where(distance < end, curve, np.float32(0))


def _smooth_bilinear(was: int, wanted: int) -> _Taps:
    return _widened(was, wanted, 1, _triangle)


def _smooth_bicubic(was: int, wanted: int) -> _Taps:
    return _widened(was, wanted, 2, _keys)


def _widened(was: int, wanted: int, radius: int, curve: Any) -> _Taps:
    """Return a curve stretched over all pixels that shrink into one."""
    centre = _centres(was, wanted)
    stretch = np.maximum(_scale(was, wanted), _ONE)
    reach = np.float32(radius) * stretch
    start = np.ceil(centre - reach - _HALF).astype(np.int64)
    count = int((np.floor(centre + reach - _HALF).astype(np.int64) - start).max()) + 1
    indices = start[:, np.newaxis] + np.arange(count)
    place = indices.astype(np.float32) + _HALF - centre[:, np.newaxis]
    return _inside(indices, curve(np.abs(place) / stretch), was)


def _inside(indices: NDArray[np.int64], weights: Floats, was: int) -> _Taps:
    """Return taps without those outside the picture; the others make up for them."""
    weights = np.where((indices >= 0) & (indices < was), weights, np.float32(0))
    total = weights.sum(axis=1, keepdims=True)
    return _Taps(indices.clip(0, was - 1), weights / total)


_METHODS = {
    ("bilinear", False): _bilinear,
    ("bilinear", True): _smooth_bilinear,
    ("bicubic", False): _bicubic,
    ("bicubic", True): _smooth_bicubic,
    ("area", False): _area,
}


def _cut_to_proportions(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    wanted_height, wanted_width = size
    cut_height = min(height, int(_scale(width * wanted_height, wanted_width)))
    cut_width = min(width, int(_scale(height * wanted_width, wanted_height)))
    top, left = (height - cut_height) // 2, (width - cut_width) // 2
    return pixels[top : top + max(cut_height, 1), left : left + max(cut_width, 1)]


def _inner_box(was: tuple[int, ...], size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of a picture within its padding, and where its top left corner lies."""
    ratio = max(_scale(was[0], size[0]), _scale(was[1], size[1]))
    exact = [np.float32(each) / ratio for each in was[:2]]
    height, width = (max(1, int(np.floor(each))) for each in exact)
    top, left = (
        max(0, int(np.floor((np.float32(wanted) - each) / np.float32(2))))
        for wanted, each in zip(size, exact, strict=True)
    )
    return (height, width), (top, left)


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
        text = f"{name} is not a picture that can be read: {_reason(data, error)}"
        raise InvalidRequest(text, remedy=_remedy(data, error)) from error
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


class _NoBlackAndWhite(ValueError):
    """Nothing in the file says which values of its pixels are black and white."""


def _remedy(data: bytes, error: Exception) -> str:
    if isinstance(error, _NoBlackAndWhite):
        return "convert it to 8 or 16 bits a channel, scaled as the model's pictures were"
    if isinstance(error, UnidentifiedImageError) or not data:
        return "give a JPEG, PNG, WebP, BMP, GIF or TIFF file"
    return (
        "it is cut off or damaged: copy or download it again, or save it anew with a program "
        "that still opens it"
    )


def _load(data: bytes, *, grey: bool) -> Image.Image:
    """Decode fully, so that a truncated file is noticed here."""
    image = _opened(data)
    limit = Image.MAX_IMAGE_PIXELS  # at which Pillow only warns
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height}")
    if image.mode == "F":
        raise _NoBlackAndWhite("its pixels are floating-point numbers")
    if image.mode == "I" and image.format == "TIFF":  # of PGM it is 16 bits
        raise _NoBlackAndWhite("its pixels are integers that are signed or of 32 bits")
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


def drawn(row: NDArray[Any], wanted: ImageInput) -> NDArray[np.uint8] | None:
    """Return a prepared row as a picture again: what of it the model gets to see.

    Size, cut and lost detail are the model's; scaling and the order of channels are undone, and
    what lies outside black and white is cut off.

    Args:
        row: from `prepare`.
        wanted: what it was prepared for.

    Returns:
        uint8 [height, width, channels]; None for an input that takes the file itself.
    """
    if wanted.encoded:
        return None
    how = wanted.how
    size, channels = (how.height or 0, how.width or 0), how.channels or 0
    values = np.asarray(row, np.float32)
    if how.layout == "channels_first":
        values = values.reshape(channels, *size).transpose(1, 2, 0)
    values = values.reshape(*size, channels)
    if how.std:
        values = values * np.array(how.std, np.float32)
    if how.mean:
        values = values + np.array(how.mean, np.float32)
    low, high = range_of(how)
    scaled = np.nan_to_num((values - low) * (255.0 / ((high - low) or 1.0)))
    pixels: NDArray[np.uint8] = scaled.clip(0, 255).round().astype(np.uint8)
    return pixels[:, :, ::-1] if how.channel_order == "bgr" else pixels
