"""Sets stored as CSV: `path,label` rows, or `label,pixel,pixel,...` rows."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.evaluation.examples import Content, Dataset, Files, Label, Rows

_PATH_NAMES = {"path", "file", "filename", "image"}
_BRIGHTEST = 255


def open_csv(file: Path) -> Dataset:
    """Open a CSV file, with a header or without.

    Two columns are the path of a picture, from the file's own folder, and its label; more are a
    label and the pixels of a picture, 0-255, row by row. A label that is a whole number before
    pixels is a class index.

    Raises:
        UsageError: the file cannot be read, is empty or has one column.
    """
    first = next(_lines(file), None)
    if first is None or len(first) < 2:  # noqa: PLR2004 (at least a label and something)
        columns = 0 if first is None else len(first)
        raise UsageError(f"{file} has {columns} columns",
                         remedy="write path,label or label,pixel,pixel,... rows")  # fmt: skip
    if len(first) == 2:  # noqa: PLR2004 (path, label)
        return _pictures(file, first)
    has_header = not first[1].strip().isdigit()
    labels = [_label(line[0]) for line in _body(file, has_header=has_header)]
    if not labels:
        raise UsageError(f"{file} has a header and no rows")
    width = len(first) - 1
    return Rows(str(file), labels, lambda: _pixel_rows(file, width, has_header=has_header))


def _pictures(file: Path, first: list[str]) -> Files:
    has_header = first[0].strip().lower() in _PATH_NAMES and first[1].strip().lower() == "label"
    entries = []
    for line in _body(file, has_header=has_header):
        path, label = [*line, ""][:2]
        entries.append((file.parent / path, str(file.parent / path), label.strip()))
    if not entries:
        raise UsageError(f"{file} has a header and no rows")
    return Files(str(file), entries)


def _label(text: str) -> Label:
    stripped = text.strip()
    return int(stripped) if stripped.isascii() and stripped.isdigit() else stripped


def _body(file: Path, *, has_header: bool) -> Iterator[list[str]]:
    lines = _lines(file)
    if has_header:
        next(lines)
    return lines


def _lines(file: Path) -> Iterator[list[str]]:
    """Yield the rows that hold anything."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            yield from (line for line in csv.reader(stream) if line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {file}: {error}") from error


def _pixel_rows(file: Path, width: int, *, has_header: bool) -> Iterator[Content | InvalidRequest]:
    for line in _body(file, has_header=has_header):
        yield _pixels(line[1:], width)


def _pixels(cells: list[str], width: int) -> Content | InvalidRequest:
    if len(cells) != width:
        return InvalidRequest(f"has {len(cells)} pixels, the first row {width}")
    try:
        values = np.array(cells, np.float64)
    except ValueError as error:
        return InvalidRequest(f"holds something that is no number: {error}")
    if not np.all((values >= 0) & (values <= _BRIGHTEST) & (values == np.rint(values))):
        return InvalidRequest("holds values that are not whole numbers from 0 to 255",
                              remedy="store inputs that are no pixels in an .npz file")  # fmt: skip
    return values.astype(np.uint8)
