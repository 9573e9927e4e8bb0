"""What is evaluated: one version of a model, what it takes and what its scores are called."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tfserve_kit.clients import Target
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.examples import Content
from tfserve_kit.pictures.model import PictureModel
from tfserve_kit.pictures.prepare import ImageInput, prepare
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import TensorSpec

_FLAT_RANK, _COLOUR_RANK = 1, 3


@dataclass(frozen=True, slots=True)
class Subject:
    """A version of a model to evaluate.

    Attributes:
        name: what to call it, such as `version 3` or `label canary`.
        target: where requests go.
        version: what the server said it is, before the run.
        model: what goes in and comes out.
        classes: which class a label means.
        threshold: of two classes the second is predicted where its score is above this; None for
            the one with the higher score, the first where they are equal.
    """

    name: str
    target: Target
    version: int
    model: PictureModel
    classes: Classes
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be evaluated so, as far as the signature tells it.

        Raises:
            UsageError: the model gives no scores of classes, or there is a threshold for more than
                two.
        """
        if self.model.head.kind != "scores":
            what = {
                "class": "a class without scores",
                "ranked": "the best classes alone",
                "detections": "objects",
            }
            raise UsageError(
                f"{self.target} answers with {what[self.model.head.kind]}, and what is evaluated "
                "are scores of all classes",
                remedy="choose an output with scores by --output, or a signature by --signature; "
                "`tfkit metadata` lists them",
            )
        if self.model.classes is not None:
            self._require_two(self.model.classes)

    def _require_two(self, classes: int) -> None:
        if self.threshold is not None and classes != 2:  # noqa: PLR2004 (no and yes)
            raise UsageError(
                f"a threshold is for two classes, and {self.target} has {classes}",
                remedy="leave out --threshold",
            )

    def predicted(self, scores: NDArray[np.float64]) -> int:
        """Return the class that scores, float64 [classes], speak for.

        Raises:
            UsageError: there is a threshold, and not two classes.
        """
        if self.threshold is None:
            return int(scores.argmax())
        self._require_two(len(scores))
        return int(scores[1] > self.threshold)

    def assumed(self) -> list[str]:
        """Return what is taken for granted of the model and its classes, a sentence each."""
        said = self.model.assumed
        if self.model.is_one_column or self.threshold is not None:
            limit = 0.5 if self.threshold is None else self.threshold
            said = [*said, f"scores of class 1 above {limit:g} speak for it (--threshold)"]
        return [*said, *self.classes.remarks()]

    @property
    def input(self) -> ImageInput:
        """The input that examples fill."""
        return self.model.input

    @property
    def fixed_batch(self) -> int | None:
        """Rows that each request must have; None if any number goes."""
        return self.model.input.rows

    def row(self, content: Content, name: str) -> NDArray[Any]:
        """Return one row of the input, of the model's dtype, without the batch axis.

        Raises:
            InvalidRequest: the content is no picture, or does not fit.
        """
        if isinstance(content, bytes):
            return prepare(content, self.input, name=name)
        if content.dtype == np.uint8:
            return prepare(as_png(content, self.input.how), self.input, name=name)
        return _as_it_is(content, self.input.spec, name)


def _as_it_is(values: NDArray[Any], spec: TensorSpec, name: str) -> NDArray[Any]:
    """Give a row the dtype of the input, if it is of the same kind, and its shape."""
    dtype = spec.dtype.numpy if spec.dtype else None
    if dtype is None or _kind(dtype) != _kind(values.dtype):
        text = f"{name} is {values.dtype}, and the input is {spec}"
        raise InvalidRequest(text, remedy="store the input's dtype; pictures are uint8")
    try:
        return values.reshape(_row_shape(values, spec)).astype(dtype)
    except ValueError as error:
        text = f"{name} has the shape {list(values.shape)}, and the input is {spec}"
        raise InvalidRequest(text, remedy="store rows of the input's shape") from error


def _row_shape(values: NDArray[Any], spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of a row of the input, as far as it is known; the values say the rest."""
    axes = values.shape if spec.shape is None else spec.shape[1:]
    if len(axes) == values.ndim:
        return tuple(size or own for size, own in zip(axes, values.shape, strict=True))
    return tuple(size or -1 for size in axes)


def _kind(dtype: np.dtype[Any]) -> str:
    return {"u": "i"}.get(dtype.kind, dtype.kind) if dtype.kind != "V" else "f"  # V: bfloat16


def as_png(pixels: NDArray[np.uint8], how: Preprocessing | None = None) -> bytes:
    """Return pixels as an encoded picture.

    Args:
        pixels: uint8 [height, width], [height, width, 1 or 3] or [values].
        how: the size of the model's pictures, which a row of values may have; a square otherwise.

    Raises:
        InvalidRequest: the values make no picture.
    """
    if pixels.ndim == _FLAT_RANK:
        pixels = pixels.reshape(_shape_of(len(pixels), how))
    if pixels.ndim == _COLOUR_RANK and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _shape_of(values: int, how: Preprocessing | None) -> tuple[int, int, int]:
    if how and how.height and how.width and how.channels in {1, 3}:
        size = (how.height, how.width, how.channels)
        if how.height * how.width * how.channels == values:
            return size
    for channels in (1, 3):
        side = round((values / channels) ** 0.5)
        if side and side * side * channels == values:
            return side, side, channels
    raise InvalidRequest(f"{values} pixels make neither a square nor the model's picture")


def thumbnail(content: Content, how: Preprocessing, side: int) -> bytes | None:
    """Return a small PNG of a picture that was prepared before; None for what is none.

    Args:
        content: of an example.
        how: the size of the model's pictures, see `as_png`.
        side: the most pixels it is wide and high.
    """
    if not isinstance(content, bytes):
        if content.dtype != np.uint8:
            return None
        content = as_png(content, how)
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
        small = upright.convert("RGB") if upright.mode not in {"L", "RGB"} else upright
        small.thumbnail((side, side))
        stream = io.BytesIO()
        small.save(stream, "PNG")
        return stream.getvalue()
