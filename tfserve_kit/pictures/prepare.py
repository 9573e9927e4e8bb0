"""Pictures become the input of a model, as its signature and its preprocessing note ask."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.pictures.decoding import decode
from tfserve_kit.pictures.resizing import central_crop, frame
from tfserve_kit.preprocessing import Encoding, Preprocessing
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

_IMAGE_RANK, _FLAT_RANK = 4, 2  # [batch, height, width, channels] and [batch, values]
_CHANNELS = {1, 3}  # grey and colour
_ENCODERS: dict[Encoding, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "base64": base64.b64encode,
    "websafe": base64.urlsafe_b64encode,
}


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input of a signature that takes pictures.

    Attributes:
        alias: name of the input.
        spec: its dtype and shape.
        how: how to prepare them, complete and without a mode.
    """

    alias: str
    spec: TensorSpec
    how: Preprocessing

    @property
    def encoded(self) -> bool:
        """Whether the model decodes the picture itself: its input is a string."""
        return self.spec.dtype is dtypes.STRING

    @property
    def encoding(self) -> Encoding:
        """What an encoded input gets: the note's word, else web-safe base64 if its name says so."""
        name = self.alias.lower()
        is_text = name.endswith("b64") or name.startswith("b64_") or "base64" in name
        return self.how.encoding or ("websafe" if is_text else "raw")


def image_input(signature: Signature, note: Preprocessing) -> ImageInput:
    """Find out how a signature wants its pictures.

    Args:
        signature: must have one input: string [b], number [b, height, width, channels] or
            number [b, height * width * channels].
        note: what is known beside the signature; it wins over what the shape suggests.

    Raises:
        UsageError: the signature takes no picture, or not enough is known about it.
    """
    if len(signature.inputs) != 1:
        names = ", ".join(signature.inputs) or "none"
        raise UsageError(
            f"signature {signature.name!r} has {len(signature.inputs)} inputs ({names}), "
            "and a picture fills exactly one",
        )
    ((alias, spec),) = signature.inputs.items()
    if spec.dtype is dtypes.STRING:
        return ImageInput(alias, spec, note)
    rank = None if spec.shape is None else len(spec.shape)
    if spec.dtype is None or spec.dtype.name == "bool" or rank not in {_IMAGE_RANK, _FLAT_RANK}:
        raise UsageError(
            f"input {alias!r} is {spec}, which is not a picture",
            remedy="choose a signature that takes [b, height, width, channels], [b, n] or string",
        )
    how = _guess(spec).overridden_by(note).resolved()
    if how.height is None or how.width is None or how.channels is None:
        raise UsageError(
            f"the picture size for input {alias!r} ({spec}) is not known",
            remedy="give --size HEIGHTxWIDTH and --channels",
        )
    _require_possible(alias, spec, how)
    _require_fit(alias, spec, how)
    return ImageInput(alias, spec, how)


def _guess(spec: TensorSpec) -> Preprocessing:
    """Return what dtype and shape suggest: floats run from 0 to 1, integers from 0 to 255."""
    is_float = spec.dtype is not None and spec.dtype.name in {"float", "double", "half", "bfloat16"}
    value_range = (0.0, 1.0) if is_float else (0.0, 255.0)
    shape = spec.shape or ()
    if len(shape) == _IMAGE_RANK:
        return Preprocessing(shape[1], shape[2], shape[3], value_range)
    values = shape[-1] if shape else None
    for channels in (1, 3):
        side = round((values / channels) ** 0.5) if values else 0
        if values and side * side * channels == values:
            return Preprocessing(side, side, channels, value_range)
    return Preprocessing(value_range=value_range)


def _require_possible(alias: str, spec: TensorSpec, how: Preprocessing) -> None:
    """Refuse values that no picture can be brought to, from whichever source they came."""
    if how.channels not in _CHANNELS or min(how.height or 0, how.width or 0) < 1:
        raise UsageError(
            f"no picture is {how.height}x{how.width} with {how.channels} channels",
            remedy="pictures have 1 (grey) or 3 (colour) channels; give --size and --channels",
        )
    for option, values in (("--mean", how.mean), ("--std", how.std)):
        if values and len(values) not in {1, how.channels}:
            text = f"{option} has {len(values)} values for {how.channels} channels"
            raise UsageError(text, remedy="give one value, or one for each channel")
    if 0 in (how.std or ()):
        raise UsageError("--std holds a zero, which cannot be divided by")
    if how.crop_fraction is not None and not 0 < how.crop_fraction <= 1:
        raise UsageError(f"--crop-fraction {how.crop_fraction:g} is not above 0 and up to 1")
    low, high = _range(how)
    limits = spec.dtype and spec.dtype.numpy and _limits(spec.dtype.numpy)
    if limits and not limits[0] <= min(low, high) <= max(low, high) <= limits[1]:
        raise UsageError(
            f"pixels from {low:g} to {high:g} do not fit input {alias!r}, {spec}",
            remedy=f"give a --range within {limits[0]},{limits[1]}",
        )


def _range(how: Preprocessing) -> tuple[float, float]:
    values = how.value_range or (0.0, 255.0)
    if len(values) != 2:  # noqa: PLR2004 (low, high)
        raise UsageError(f"--range has {len(values)} values", remedy="give two: LOW,HIGH")
    return values


def _limits(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    return (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else None


def _require_fit(alias: str, spec: TensorSpec, how: Preprocessing) -> None:
    size = (how.height, how.width, how.channels)
    shape = spec.shape or ()
    if len(shape) == _IMAGE_RANK:
        fits = all(want in {None, have} for want, have in zip(shape[1:], size, strict=True))
    else:
        fits = shape[-1] in {None, np.prod([each or 0 for each in size])}
    if not fits:
        height, width, channels = size
        raise UsageError(
            f"a picture of {height}x{width} with {channels} channels does not fit "
            f"input {alias!r}, {spec}",
            remedy="leave out --size and --channels to use what the model says",
        )


def prepare(data: bytes, wanted: ImageInput, *, name: str) -> NDArray[Any]:
    """Turn one encoded picture into one row of the input.

    Args:
        data: the bytes of a JPEG, PNG or other picture.
        wanted: from `image_input`.
        name: what errors call the picture.

    Returns:
        The model's dtype, without the batch axis: bytes, [height, width, channels] or [n].
        Integers are rounded and kept within their type, where `tf.cast` would cut and wrap.

    Raises:
        InvalidRequest: the data is no picture, or one too large; see `decoding.decode`.
    """
    if wanted.encoded:
        decode(data, name, channels=3)
        encoded = np.empty((), object)
        encoded[()] = _ENCODERS[wanted.encoding](data)
        return encoded
    how = wanted.how
    size, channels = (how.height or 0, how.width or 0), how.channels or 0
    pixels = _framed(decode(data, name, channels), size, how)
    values = _scaled(pixels.astype(np.float32), how)
    dtype = wanted.spec.dtype.numpy if wanted.spec.dtype else None
    if limits := dtype and _limits(dtype):
        values = np.rint(values).clip(*limits)
    flat = wanted.spec.shape is not None and len(wanted.spec.shape) == _FLAT_RANK
    return values.astype(dtype or np.float32).reshape(-1 if flat else (*size, channels))


def as_input(rows: Sequence[NDArray[Any]], wanted: ImageInput) -> NDArray[Any]:
    """Put prepared pictures together as the value of an input.

    Args:
        rows: from `prepare`, at least one.
        wanted: as there.

    Returns:
        [b, height, width, channels], [b, n] or, of bytes, [b], [b, 1] ... as the signature has it,
        and [] where it takes a single text.

    Raises:
        UsageError: there are several, and the input takes one.
    """
    stacked = np.stack(rows)
    shape = wanted.spec.shape
    if not wanted.encoded or shape is None:
        return stacked
    if shape:
        return stacked.reshape(len(rows), *[1] * (len(shape) - 1))
    if len(rows) > 1:
        raise UsageError(f"input {wanted.alias!r} takes one picture in a request, not {len(rows)}")
    return stacked.reshape(())


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
    low, high = _range(how)
    values = pixels if (low, high) == (0.0, 255.0) else pixels * ((high - low) / 255.0) + low
    values = values.astype(np.float32, copy=False)
    if how.mean:
        values = np.subtract(values, np.array(how.mean, np.float32))
    if how.std:
        values = np.divide(values, np.array(how.std, np.float32))
    return values


def read_file(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        InvalidRequest: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
