"""Labelled examples, read one at a time, from files of their own or from rows of a stream."""

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.pictures.files import read_file
from tfserve_kit.pictures.inputs import ImageInput
from tfserve_kit.pictures.prepare import prepare
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import TensorSpec
from tfserve_kit.tensors import dtypes

_FLAT_RANK, _COLOUR_RANK = 1, 3

# An encoded picture; or its pixels, uint8; or a row of the model's input, of any other type.
Content = bytes | NDArray[Any]
# The name of a class as it is written somewhere, or its index where a format stores numbers.
Label = str | int


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled example.

    Attributes:
        index: its place in the dataset, from 0.
        name: what to call it: its file, or its place in one, such as `digits.npz[7]`.
        label: the class it belongs to.
        load: returns its content; raises InvalidRequest if there is none to be had.
    """

    index: int
    name: str
    label: Label
    load: Callable[[], Content]


Reader = Callable[[Collection[int]], Iterator[Example]]


@dataclass(frozen=True, slots=True)
class Failure:
    """An example without an answer, and why; without an index if it is not an example at all."""

    index: int | None
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled set on disk.

    Attributes:
        source: what to call it.
        labels: the label of each example.
        read: yields the examples of some indices, in rising order, reading as little as needed.
        ready: whether it holds rows of a model's input, to be sent as they are, not pictures.
        left_out: what stands in it and is not an example, such as a file that is not a picture.
        remarks: what was taken for granted to read it so, a sentence each.
        empty_classes: names of classes without examples.
        unproved: labels that no picture stands for, so that they may not be classes.
        doubt: why its folders may not be classes, unless the model knows their names; None for
            no doubt.
    """

    source: str
    labels: Sequence[Label]
    read: Reader
    ready: bool = False
    left_out: Sequence[Failure] = ()
    remarks: Sequence[str] = ()
    empty_classes: frozenset[str] = frozenset()
    unproved: frozenset[str] = frozenset()
    doubt: UsageError | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def class_names(self) -> frozenset[str]:
        """Every label that is a name; empty where labels are indices."""
        found = {label for label in self.labels if isinstance(label, str)}
        return frozenset(found - self.unproved) | self.empty_classes

    @cached_property
    def indices(self) -> frozenset[int]:
        """Every label that is an index."""
        return frozenset(label for label in self.labels if isinstance(label, int))


def choose(total: int, count: int | None, seed: int | None) -> range | list[int]:
    """Return the indices of the examples to use, in rising order.

    Args:
        total: size of the set.
        count: how many to use; None for all.
        seed: draw them at random; None takes the first.
    """
    if count is None or count >= total:
        return range(total)
    if seed is None:
        return range(count)
    return sorted(np.random.default_rng(seed).choice(total, count, replace=False).tolist())


def file_reader(entries: Sequence[tuple[Path, str, str]]) -> Reader:
    """Return what reads pictures in files of their own.

    Args:
        entries: file, name and label of each.
    """

    def read(wanted: Collection[int]) -> Iterator[Example]:
        for index in wanted:
            file, name, label = entries[index]
            yield Example(index, name, label, partial(read_file, file))

    return read


def row_reader(
    source: str, labels: Sequence[Label], rows: Callable[[], Iterator[Content | InvalidRequest]]
) -> Reader:
    """Return what reads examples that are rows of one stream, each time from its start.

    Args:
        source: what to call the set.
        labels: label of each row.
        rows: opens the stream and yields each row, or what is wrong with it.
    """

    def read(wanted: Collection[int]) -> Iterator[Example]:
        chosen = wanted if isinstance(wanted, range) else frozenset(wanted)
        last = max(chosen, default=-1)
        if last < 0:
            return
        for index, row in enumerate(rows()):
            if index in chosen:
                name = f"{source}[{index}]"
                yield Example(index, name, labels[index], _given(row, name))
            if index == last:
                return

    return read


def _given(row: Content | InvalidRequest, name: str) -> Callable[[], Content]:
    def load() -> Content:
        if isinstance(row, InvalidRequest):
            raise InvalidRequest(f"{name}: {row.message}", remedy=row.remedy)
        return row

    return load


def row_of(content: Content, wanted: ImageInput, name: str) -> NDArray[Any]:
    """Return one row of an input, of the model's dtype, without the batch axis.

    Raises:
        InvalidRequest: the content is not a picture, or does not fit.
    """
    if isinstance(content, bytes):
        return prepare(content, wanted, name=name)
    if content.dtype == np.uint8:
        return prepare(as_png(content, wanted.how), wanted, name=name)
    return _as_it_is(content, wanted.spec, name)


def _as_it_is(values: NDArray[Any], spec: TensorSpec, name: str) -> NDArray[Any]:
    """Give a row the dtype of the input, if it is of the same kind, and its shape."""
    text = f"{name} is {values.dtype}, and the input is {spec}"
    remedy = "store the input's dtype; pictures are uint8"
    dtype = spec.dtype.numpy if spec.dtype else None
    if spec.dtype is None or dtype is None or _kind(dtype) != _kind(values.dtype):
        raise InvalidRequest(text, remedy=remedy)
    try:
        row = values.reshape(_row_shape(values, spec))
        return row if row.dtype == dtype else dtypes.convert(row, spec.dtype)
    except dtypes.CannotConvert as error:
        raise InvalidRequest(f"{text}{error}", remedy=remedy) from error
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
    raise InvalidRequest(
        f"{values} pixels make neither a square nor the model's picture",
        remedy="give --size HEIGHTxWIDTH and --channels, or rows of as many pixels as the model's "
        "picture has",
    )


def thumbnail(content: Content, how: Preprocessing, side: int) -> bytes | None:
    """Return a small PNG of a picture that was prepared before; None for anything else.

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
