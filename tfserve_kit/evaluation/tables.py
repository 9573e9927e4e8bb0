"""Sets stored as tables: rows of a picture's path and its label, or of a label and pixels."""

import glob
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.evaluation.examples import About, Content, Dataset, Files, Label, LeftOut, Rows
from tfserve_kit.evaluation.folders import is_picture
from tfserve_kit.evaluation.table_form import Form, find_form, is_remark
from tfserve_kit.evaluation.table_rows import numbered_rows
from tfserve_kit.evaluation.table_sample import Given, Places, is_file
from tfserve_kit.pictures.labels import shown

_BRIGHTEST = 255
_AS_WRITTEN = Given()


def open_csv(file: Path, given: Given = _AS_WRITTEN) -> Dataset:
    """Open a table, with a header or without, separated by commas, semicolons, tabs or bars.

    A row is the path of a picture and its label, or a label and the pixels of a picture, 0-255, row
    by row. Paths are from the file's own folder, or the one that a column of folders names. A label
    that is a whole number before pixels is a class index.

    Args:
        file: text in UTF-8, or marked as UTF-16.
        given: what the user says of the table; the rest is found out.

    Raises:
        UsageError: the file cannot be read or is empty, or what its columns are is not known.
    """
    form = find_form(file, given)
    places = form.columns.places
    return _pixels_set(file, form) if places is None else _pictures(file, form, places)


def _pictures(file: Path, form: Form, places: Places) -> Files:
    entries, left_out = [], []
    for number, row in _body(file, form):
        if is_remark(row) and not (len(row) > places.path and is_file(places.locate(row))):
            continue
        if reason := _broken(row, form):
            left_out.append(LeftOut(f"{file} line {number}", reason))
            continue
        path = places.locate(row)
        entries.append((path, str(path), row[form.columns.label].strip()))
    if not entries:
        what = "a header and no rows" if form.columns.header else "no rows that can be used"
        raise UsageError(f"{file} has {what}")
    entries = _without_fractions(entries)
    unproved = _unproved(file, entries)
    about = About(left_out, [*form.columns.remarks, *_repetitions(entries)])
    return Files(str(file), entries, unproved=unproved, about=about)


def _broken(row: list[str], form: Form) -> str:
    """Return why a row is no example; empty if it is one."""
    if len(row) != form.width:
        return f"has {len(row)} columns where the table has {form.width}"
    if tuple(row) == form.columns.header:
        return "repeats the header"
    return "" if row[form.columns.label].strip() else "has no label"


def _without_fractions(entries: list[tuple[Path, str, str]]) -> list[tuple[Path, str, str]]:
    """Return 3 for 3.0, as a table writes whole numbers once one was missing; if all are such."""
    if not all(label.endswith(".0") and label[:-2].isdigit() for _, _, label in entries):
        return entries
    return [(path, name, label[:-2]) for path, name, label in entries]


def _unproved(file: Path, entries: list[tuple[Path, str, str]]) -> set[str]:
    """Return the labels of which no picture exists; such a row may be anything.

    Raises:
        UsageError: no picture at all exists.
    """
    waiting = defaultdict(list)
    for path, _, label in entries:
        waiting[label].append(path)
    found = {
        label
        for label, paths in waiting.items()
        if not any(path.is_file() and is_picture(path) for path in paths)
    }
    if len(found) == len(waiting):
        raise UsageError(
            f"none of the {len(entries)} examples of {file} can be used: no file that it names is "
            f"a picture; the first would be {entries[0][1]}",
            remedy=_where_they_may_be(file, entries[0][0]),
        )
    return found


def _where_they_may_be(file: Path, missing: Path) -> str:
    if ":/" in str(missing):
        return "download the pictures, and write their paths instead of URLs"
    name = glob.escape(missing.name)
    near = [*file.parent.glob(f"{name}.*"), *file.parent.glob(f"*/{name}*")]
    if near:
        return f"write paths with folder and ending; there is {min(near).relative_to(file.parent)}"
    return ("write paths from the folder of the table; --csv-columns PATH,LABEL says which columns "
            "hold what")  # fmt: skip


def _repetitions(entries: list[tuple[Path, str, str]]) -> Iterator[str]:
    labels = defaultdict(list)
    for _, name, label in entries:
        labels[name].append(label)
    if twice := [name for name, found in labels.items() if len(found) > 1]:
        yield f"files that several rows name count as often: {shown(twice)}"
    if torn := [name for name in twice if len(set(labels[name])) > 1]:
        yield f"files with several labels, of which at most one is right: {shown(torn)}"


def _body(file: Path, form: Form) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows below the header, with their line numbers."""
    return (
        (number, row)
        for number, row in numbered_rows(file, form.separator, form.encoding)
        if number > form.starts_after
    )


def _pixels_set(file: Path, form: Form) -> Rows:
    labels = [_label(row[form.columns.label]) for _, row in _pixel_body(file, form)]
    if not labels:
        raise UsageError(f"{file} has a header and no rows")
    about = About(remarks=form.columns.remarks)
    return Rows(str(file), labels, lambda: _pixel_rows(file, form), about=about)


def _pixel_body(file: Path, form: Form) -> Iterator[tuple[int, list[str]]]:
    return (
        (number, row)
        for number, row in _body(file, form)
        if len(row) > form.columns.label and not is_remark(row)
    )


def _label(text: str) -> Label:
    stripped = text.strip().removesuffix(".0")
    return int(stripped) if stripped.isascii() and stripped.isdigit() else text.strip()


def _pixel_rows(file: Path, form: Form) -> Iterator[Content | InvalidRequest]:
    dropped = sorted(form.columns.dropped | {form.columns.label}, reverse=True)
    for _, row in _pixel_body(file, form):
        for place in dropped:
            del row[place : place + 1]
        yield _pixels(row, form.width - len(dropped))


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
