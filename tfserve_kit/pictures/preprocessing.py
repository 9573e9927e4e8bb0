"""The preprocessing note: how pictures become a model's input, stored with the model version.

A SavedModel says that an input is `float32 [-1, 224, 224, 3]`, not whether pixels run from 0 to 1
or from -1 to 1, nor what class 7 is called. The note says it, as JSON in the version directory's
`assets.extra/tfkit.json`, the folder that TensorFlow Serving leaves alone.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tfserve_kit import input_files
from tfserve_kit.errors import Problem, SpecError, UsageError, did_you_mean
from tfserve_kit.pictures.labels import Labels, from_json
from tfserve_kit.savedmodel import NOTE_PATH

_FORMAT = 1
_MOST_BYTES = 64 << 20  # a million labels
_LARGEST = 1 << 14  # pixels of a side: the memory for a picture is taken at once

ResizeMethod = Literal["bilinear", "nearest", "bicubic", "area"]
Framing = Literal["stretch", "centre_crop", "pad"]
ChannelOrder = Literal["rgb", "bgr"]
Layout = Literal["channels_last", "channels_first"]
Mode = Literal["caffe", "tf", "torch"]
Encoding = Literal["raw", "base64", "websafe"]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a picture becomes one row of a model's input; None means "take it from the signature".

    The picture is cut and brought to its size first. Then a pixel `p` in 0-255 becomes
    `low + p / 255 * (high - low)`, then `(value - mean) / std`.

    Attributes:
        height: rows of the input image, in pixels.
        width: columns of the input image, in pixels.
        channels: 1 (grey) or 3 (colour).
        value_range: (low, high) that pixels 0 and 255 are mapped to; (0, 255) changes nothing.
        mean: per channel, subtracted after scaling; one value or `channels` values, in the
            model's order of channels.
        std: per channel, divided by after that; one value or `channels` values.
        labels: name of each class, in the order of the scores.
        resize: how pixels between pixels are found, as `tf.image.resize` does; `bilinear`.
        antialias: whether `bilinear` and `bicubic` weigh all pixels that shrink into one; no.
        framing: what happens to other proportions: `stretch`, `centre_crop` or `pad`; `stretch`.
        crop_fraction: the middle part of height and width that is used, above 0 and up to 1,
            before anything else, as `tf.image.central_crop`; all of it.
        channel_order: `rgb` or `bgr`; `rgb`.
        layout: `channels_last`, [height, width, channels], or `channels_first`.
        mode: range, mean, std and order by the name that `preprocess_input` of Keras knows them
            by; what is set beside it wins over it.
        encoding: what a string input gets: the bytes of the file (`raw`), or text, `base64` of
            RFC 4648 or its `websafe` form, which `tf.io.decode_base64` reads.
    """

    height: int | None = None
    width: int | None = None
    channels: int | None = None
    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    resize: ResizeMethod | None = None
    antialias: bool | None = None
    framing: Framing | None = None
    crop_fraction: float | None = None
    channel_order: ChannelOrder | None = None
    layout: Layout | None = None
    mode: Mode | None = None
    encoding: Encoding | None = None

    def overridden_by(self, other: "Preprocessing") -> "Preprocessing":
        """Return a copy in which every value that `other` sets replaces this one's.

        A mode replaces all that a mode stands for.
        """
        changes = _set_fields(other)
        base = self if other.mode is None else replace(self, **dict.fromkeys(_OF_A_MODE))
        if other.mode is None and changes.keys() & _OF_A_MODE:
            base = base.resolved()
        return replace(base, **changes)

    def resolved(self) -> "Preprocessing":
        """Return a copy without a mode, with what the mode stands for.

        Source: keras/src/applications/imagenet_utils.py, `_preprocess_numpy_input`.
        """
        if self.mode is None:
            return self
        return replace(_MODES[self.mode], **_set_fields(replace(self, mode=None)))

    def write(self, version_dir: Path) -> Path:
        """Store the note in a version directory (or SavedModel about to be pushed).

        Returns:
            The path of the written file.
        """
        note = version_dir / NOTE_PATH
        note.parent.mkdir(exist_ok=True)
        content = {"format": _FORMAT, **_set_fields(self)}
        note.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        return note

    @classmethod
    def read(cls, version_dir: Path) -> "Preprocessing":
        """Read the note of a version directory; an empty one where none is stored.

        Raises:
            SpecError: the file is not JSON, or a key or value in it is not understood.
        """
        note = version_dir / NOTE_PATH
        try:
            content = json.loads(input_files.read_text(note, _MOST_BYTES))
        except FileNotFoundError:
            return cls()
        except RecursionError as error:
            raise SpecError(str(note), [Problem("", "is nested too deeply", _NOTE)]) from error
        except ValueError as error:
            raise SpecError(str(note), [Problem("", f"is not JSON: {error}", _NOTE)]) from error
        problems = _problems(content)
        if problems:
            raise SpecError(str(note), problems)
        content.pop("format")
        if "labels" in content:
            content["labels"] = _labels(content["labels"], str(note))
        known: dict[str, Any] = {
            key: tuple(value) if type(value) is list else value for key, value in content.items()
        }
        return cls(**known)


def _set_fields(note: Preprocessing) -> dict[str, Any]:
    values = {each.name: getattr(note, each.name) for each in fields(note)}
    return {key: value for key, value in values.items() if value is not None}


_OF_A_MODE = frozenset({"value_range", "mean", "std", "channel_order"})
_MODES: dict[Mode, Preprocessing] = {
    "caffe": Preprocessing(
        value_range=(0.0, 255.0), mean=(103.939, 116.779, 123.68), channel_order="bgr"
    ),
    "tf": Preprocessing(value_range=(-1.0, 1.0)),
    "torch": Preprocessing(
        value_range=(0.0, 1.0), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
}


_NOTE = 'write an object such as {"format": 1, "height": 224, "width": 224, "value_range": [0, 1]}'


def _problems(content: Any) -> list[Problem]:
    if not isinstance(content, dict):
        return [Problem("", f"is {type(content).__name__}, not an object", remedy=_NOTE)]
    found = [
        Problem(key, "is not a known key", did_you_mean(key, _KEYS))
        for key in sorted(content.keys() - _KEYS)
    ]
    if content.get("format") != _FORMAT:
        found.append(
            Problem(
                "format", f"is {content.get('format')!r}; this tfkit reads {_FORMAT}", remedy=_NOTE
            )
        )
    found += [
        Problem(key, f"is {content[key]!r:.80}, not {wanted}", remedy=_NOTE)
        for key, (fits, wanted) in _CHECKS.items()
        if key in content and not fits(content[key])
    ]
    return found


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= _LARGEST


def _is_channels(value: Any) -> bool:
    return type(value) is int and value in {1, 3}


def _is_range(value: Any) -> bool:
    return _are_numbers(value) and len(value) == 2  # noqa: PLR2004 (low, high)


def _are_divisors(value: Any) -> bool:
    return _are_numbers(value) and 0 not in value


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) in {int, float} and abs(item) <= sys.float_info.max for item in value
    )


def _are_labels(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    try:
        return bool(_labels(value, ""))
    except UsageError:
        return False


def _labels(value: Any, source: str) -> Labels:
    """Return the names that a note gives in order, or by index as label files may do."""
    if isinstance(value, list):
        return Labels(value, source=source)
    return from_json(value, source)


def _is_fraction(value: Any) -> bool:
    return type(value) in {int, float} and 0 < value <= 1


def _one_of(choices: Any) -> tuple[Callable[[Any], bool], str]:
    names = get_args(choices)
    return (lambda value: isinstance(value, str) and value in names), f"one of {', '.join(names)}"


# What each key may hold: a test, and the words for what it asks.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "height": (_is_size, f"a number of pixels from 1 to {_LARGEST:,}"),
    "width": (_is_size, f"a number of pixels from 1 to {_LARGEST:,}"),
    "channels": (_is_channels, "1 (grey) or 3 (colour)"),
    "value_range": (_is_range, "a list of two numbers, low and high"),
    "mean": (_are_numbers, "a list of numbers"),
    "std": (_are_divisors, "a list of numbers other than zero"),
    "labels": (_are_labels, "a list of strings, or an object of names by index"),
    "resize": _one_of(ResizeMethod),
    "antialias": (lambda value: isinstance(value, bool), "true or false"),
    "framing": _one_of(Framing),
    "crop_fraction": (_is_fraction, "a number above 0, up to 1"),
    "channel_order": _one_of(ChannelOrder),
    "layout": _one_of(Layout),
    "mode": _one_of(Mode),
    "encoding": _one_of(Encoding),
}
_KEYS = {"format", *_CHECKS}
