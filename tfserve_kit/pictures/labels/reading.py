"""Label files: read whole, and known by what stands in them."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfserve_kit.errors import UsageError
from tfserve_kit.pictures.labels import lines, objects, pbtxt
from tfserve_kit.pictures.labels.entries import Found, Unreadable, as_labels
from tfserve_kit.pictures.labels.names import Labels
from tfserve_kit.pictures.labels.text import decode

# Larger files hold something else: a million long names fit.
_MOST_BYTES = 64 * 1024 * 1024
_FORMS = (
    "give a text file with a label on each line, index,name rows, a JSON list or object, or a "
    "labels_map.pbtxt"
)


def read(file: Path, encoding: str | None = None) -> Labels:
    """Read a label file.

    Args:
        file: lines of names, numbered or not; CSV rows of index and name; JSON: a list of names, an
            object of names by index or of indices by name, Keras's class_indices or
            imagenet_class_index.json, a Hugging Face config.json; or a labels_map.pbtxt.
        encoding: of its text; UTF-8, or what its first bytes say, if left out.

    Returns:
        The names, in the order of their indices; `Labels.fit` brings them to a model.

    Raises:
        UsageError: the file cannot be read, or does not say which class has which name.
    """
    what = f"the labels in {file}"
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {what}: {error}") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"cannot read {what}: it has more than {_MOST_BYTES:,} bytes")
    return parse(decode(data, what, encoding), str(file))


def parse(text: str, source: str) -> Labels:
    """Return the labels in the text of a label file, see `read`.

    Raises:
        UsageError: it does not say which class has which name.
    """
    with _refusing(source):
        if not text.strip():
            raise Unreadable("it is empty")
        if text.lstrip().startswith("<"):
            raise Unreadable("it is HTML or XML")
        return as_labels(objects.read(text) or pbtxt.read(text) or lines.read(text), source)


def from_json(content: Any, source: str) -> Labels:
    """Return the labels that a JSON value holds, see `read`.

    Raises:
        UsageError: it does not say which class has which name.
    """
    with _refusing(source):
        return as_labels(Found(objects.entries(content)), source)


@contextmanager
def _refusing(source: str) -> Iterator[None]:
    try:
        yield
    except (Unreadable, csv.Error) as error:
        remedy = getattr(error, "remedy", "") or _FORMS
        raise UsageError(f"cannot read the labels in {source}: {error}", remedy=remedy) from error
