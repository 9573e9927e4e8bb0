"""The preprocessing note: how pictures become a model's input, stored with the model version.

A SavedModel says that an input is `float32 [-1, 224, 224, 3]`, not whether pixels run from 0 to 1
or from -1 to 1, nor what class 7 is called. The note says it, as JSON in the version directory's
`assets.extra/tfkit.json`, the folder that TensorFlow Serving leaves alone.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tfserve_kit.errors import Problem, SpecError

NOTE_PATH = Path("assets.extra") / "tfkit.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a picture becomes one row of a model's input; None means "take it from the signature".

    A pixel `p` in 0-255 becomes `low + p / 255 * (high - low)`, then `(value - mean) / std`.

    Attributes:
        height: rows of the input image, in pixels.
        width: columns of the input image, in pixels.
        channels: 1 (grey) or 3 (RGB).
        value_range: (low, high) that pixels 0 and 255 are mapped to; (0, 255) changes nothing.
        mean: per channel, subtracted after scaling; one value or `channels` values.
        std: per channel, divided by after that; one value or `channels` values.
        labels: name of each class, in the order of the scores.
    """

    height: int | None = None
    width: int | None = None
    channels: int | None = None
    value_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None

    def overridden_by(self, other: "Preprocessing") -> "Preprocessing":
        """Return a copy in which every value that `other` sets replaces this one's."""
        changes = {key: value for key, value in _fields(other).items() if value is not None}
        return replace(self, **changes)

    def write(self, version_dir: Path) -> Path:
        """Store the note in a version directory (or SavedModel about to be pushed).

        Returns:
            The path of the written file.
        """
        note = version_dir / NOTE_PATH
        note.parent.mkdir(exist_ok=True)
        content = {key: value for key, value in _fields(self).items() if value is not None}
        note.write_text(json.dumps({"format": _FORMAT, **content}, indent=1) + "\n", "utf-8")
        return note

    @classmethod
    def read(cls, version_dir: Path) -> "Preprocessing":
        """Read the note of a version directory; an empty one where none is stored.

        Raises:
            SpecError: the file is not JSON, or a key or value in it is not understood.
        """
        note = version_dir / NOTE_PATH
        try:
            content = json.loads(note.read_text("utf-8"))
        except FileNotFoundError:
            return cls()
        except ValueError as error:
            raise SpecError(str(note), [Problem("", f"is not JSON: {error}")]) from error
        problems = _problems(content)
        if problems:
            raise SpecError(str(note), problems)
        content.pop("format")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content.items()
        }
        return cls(**fields)


def _fields(note: Preprocessing) -> dict[str, Any]:
    return asdict(note)


def _problems(content: Any) -> list[Problem]:
    if not isinstance(content, dict):
        return [Problem("", f"is {type(content).__name__}, not an object")]
    found = [Problem(key, "is not a known key") for key in sorted(content.keys() - _KEYS)]
    if content.get("format") != _FORMAT:
        found.append(Problem("format", f"is {content.get('format')!r}; this tfkit reads {_FORMAT}"))
    found += [
        Problem(key, f"is {content[key]!r:.80}, not {wanted}")
        for key, (fits, wanted) in _CHECKS.items()
        if key in content and not fits(content[key])
    ]
    return found


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_channels(value: Any) -> bool:
    return type(value) is int and value in {1, 3}


def _is_range(value: Any) -> bool:
    return _are_numbers(value) and len(value) == 2  # noqa: PLR2004 (low, high)


def _are_divisors(value: Any) -> bool:
    return _are_numbers(value) and 0 not in value


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in {int, float} for item in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# What each key may hold: a test, and the words for what it asks.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "height": (_is_size, "a positive number of pixels"),
    "width": (_is_size, "a positive number of pixels"),
    "channels": (_is_channels, "1 (grey) or 3 (RGB)"),
    "value_range": (_is_range, "a list of two numbers, low and high"),
    "mean": (_are_numbers, "a list of numbers"),
    "std": (_are_divisors, "a list of numbers other than zero"),
    "labels": (_are_texts, "a list of strings"),
}
_KEYS = {"format", *_CHECKS}
