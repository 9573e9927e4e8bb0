"""Pictures brought to another size as TensorFlow does it, with numpy alone.

Every method is separable: an output row is a weighted sum of some input rows, and the same holds
for columns. The positions are computed in 32-bit floats as upstream, since a rounded position may
lie in another pixel.

Source: tensorflow/core/kernels/image: resize_bilinear_op.cc, resize_bicubic_op.cc,
resize_area_op.cc, resize_nearest_neighbor_op.cc, scale_and_translate_op.cc (antialias), all with
half_pixel_centers as `tf.image.resize` sets it; tensorflow/python/ops/image_ops_impl.py (framing);
keras/src/utils/image_utils.py (smart_resize).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.pictures.preprocessing import Framing, ResizeMethod

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
