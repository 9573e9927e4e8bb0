"""Labelled sets stored as tables: a path and a label, or a label and pixels, in each row.

What the separator and the columns are is found out from the header, the first rows and the files
that they name; what the user says wins.
"""

import csv
import glob
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from tfserve_kit import input_files
from tfserve_kit.errors import InvalidRequest, UsageError, did_you_mean
from tfserve_kit.evaluation.examples import (
    Content,
    Dataset,
    Failure,
    Label,
    file_reader,
    row_reader,
)
from tfserve_kit.pictures.files import SUFFIXES, is_picture
from tfserve_kit.pictures.labels import shown

# What columns are called, in small letters without gaps.
_PATHS = {"path", "file", "filename", "filepath", "filepaths", "image", "images", "img", "picture",
         "photo", "imagepath", "imagefile", "imagename", "imgpath", "imageid", "id",
         "name"}  # fmt: skip
_LABELS = {"label", "labels", "class", "classes", "classname", "labelname", "classlabel",
          "category", "target", "truth", "groundtruth", "y", "classid", "labelid", "species",
          "breed"}  # fmt: skip
_FOLDERS = {"folder", "dir", "directory", "subfolder"}
_PARTS = {"split", "set", "subset", "partition", "dataset", "usage"}
_ENDINGS = tuple(SUFFIXES)
_ROW_NUMBERS = {"", "index", "unnamed:0"}
_NUMBER = re.compile(r"\s*-?\d+(\.\d+)?([eE][+-]?\d+)?\s*|\s*nan\s*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """What the user says of a table; None for what is to be found out.

    Attributes:
        header: whether its first row is one.
        columns: names or numbers, from 1, of the columns of path and label; of the label alone
            before pixels.
        separator: of the columns.
        encoding: of the text.
    """

    header: bool | None = None
    columns: tuple[str, ...] | None = None
    separator: str | None = None
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the path of a picture stands in a row, and what it starts from.

    Attributes:
        path: column of the path.
        folder: column of its folder; None without one.
        root: the folder that both start from.
    """

    path: int
    folder: int | None
    root: Path

    def locate(self, row: Sequence[str]) -> Path:
        """Return where the picture of a row is; where it would be if there is none."""
        parts = [row[place].strip() for place in (self.folder, self.path) if place is not None]
        written = self.root.joinpath(*parts)
        if not any("\\" in part for part in parts) or _is_file(written):
            return written
        other = self.root.joinpath(*(part.replace("\\", "/") for part in parts))  # of Windows
        return other if _is_file(other) else written


def _is_file(path: Path) -> bool:
    """Say whether there is a file; a name that is too long or holds a zero byte is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_number(cell: str) -> bool:
    """Say whether a cell holds a number, or the nan of a missing one."""
    return bool(_NUMBER.fullmatch(cell))


def _ends_as_picture(cell: str) -> bool:
    """Say whether a cell ends as the names of pictures do."""
    return cell.rstrip().lower().endswith(_ENDINGS)


def _plain(name: str) -> str:
    """Return the name of a column without case, gaps and the # before it."""
    return re.sub(r"[\s_-]+", "", name.lower().lstrip("#"))


class _Sample:
    """The first rows of a table.

    Args:
        file: the table.
        rows: its first rows, first the header if there is one.
        given: what the user says of it.

    Attributes:
        first: the first row.
        names: its cells, as names of columns.
        width: how many columns most rows have.
        body: the other rows of that width; the first where there are no others.
        columns: the columns that hold anything.
    """

    def __init__(self, file: Path, rows: Sequence[Sequence[str]], given: CsvOptions) -> None:
        self.file, self.given = file, given
        self.first = rows[0]
        self.names = [_plain(cell) for cell in self.first]
        widths = Counter(len(row) for row in rows)
        self.width = max(widths, key=lambda width: (widths[width], width))
        self.body = [row for row in rows[1:] if len(row) == self.width] or [self.first]
        self.columns = [
            i for i in range(self.width) if any(row[i].strip() for row in self.body if row[i:])
        ]
        self.names += [""] * (self.width - len(self.names))

    @cached_property
    def folder(self) -> int | None:
        """The column of folders, by its name."""
        return next((i for i, name in enumerate(self.names) if name in _FOLDERS), None)

    def named(self, words: set[str]) -> list[int]:
        """Return the columns that are called so."""
        return [i for i in self.columns if self.names[i] in words]

    def given_column(self, which: int) -> int | None:
        """Return the column that the user names or numbers.

        Raises:
            UsageError: there is none.
        """
        if self.given.columns is None:
            return None
        name = self.given.columns[which].strip()
        cells = [cell.strip().lower() for cell in self.first]
        if name.lower() in cells:
            return cells.index(name.lower())
        if name.isdigit() and 1 <= int(name) <= self.width:
            return int(name) - 1
        raise UsageError(
            f"{self.file} has no column {name!r}",
            remedy=f"give a name of its first row or a number from 1 to {self.width}; "
            + did_you_mean(name, self.first),
        )

    def names_file(self, row: Sequence[str], place: int) -> bool:
        """Say whether a cell names a file, from wherever paths may start."""
        if place >= len(row) or not row[place].strip():
            return False
        folder = self.folder if row is not self.first and self.folder != place else None
        return any(_is_file(_Places(place, folder, root).locate(row)) for root in self.roots)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where paths may start: in the table's folder, or the current one."""
        return (self.file.parent, Path())

    def called(self, place: int, *, header: bool) -> str:
        """Return what to call a column."""
        return f"column {self.first[place]!r}" if header else f"column {place + 1}"

    def listed(self, places: Sequence[int]) -> str:
        """Return the numbers of columns, with what stands first in them."""
        return shown([f"{place + 1} ({self.first[place]})" for place in places])

    def unclear(self, text: str) -> UsageError:
        """Return the error for columns whose meaning is not known."""
        return UsageError(
            f"cannot read {self.file}: {text}",
            remedy="give --csv-columns PATH,LABEL, by their names or numbers, such as 1,3; before "
            "pixels LABEL alone",
        )


# By the names that the command line knows; a space counts once, before the label.
_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}
_NAMES = {character: name for name, character in _SEPARATORS.items()}
_DECLARED = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # how Excel says it, in a line of its own
_HEAD_LINES = 50


def _head_of(file: Path, encoding: str | None) -> list[str]:
    """Return the first lines of a file that hold anything.

    Raises:
        UsageError: it cannot be read, or is in another encoding.
    """
    filled = (line for line in input_files.lines(file, encoding) if line.strip())
    return list(islice(filled, _HEAD_LINES))


_WRITE_ROWS = (
    "write rows of path,label or label,pixel,pixel,...; --csv-separator says what separates them"
)


def _find_separator(file: Path, head: Sequence[str]) -> str:
    """Return what separates the columns of a table.

    That into which most lines fall apart to the same number of columns; where that leaves several,
    the one that leaves names of files in the columns.

    Args:
        file: the table.
        head: its first lines.

    Raises:
        UsageError: there is one column, or several separators would do.
    """
    if declared := _DECLARED.fullmatch(head[0]) if head else None:
        return declared[1]
    lines = [line for line in head if not line.startswith("#")] or list(head)
    tables = {character: _split(lines, character) for character in ",;\t|"}
    hits = {character: _alike(rows) for character, rows in tables.items()}
    best = max(hits.values())
    if not best:
        return _space(file, lines)
    found = [character for character, count in hits.items() if count == best]
    if len(found) > 1:
        proved = [each for each in found if _name_files(file, tables[each])]
        found = proved if len(proved) == 1 else found
    if len(found) > 1:
        names = " or ".join(_NAMES[each] for each in found)
        raise UsageError(
            f"cannot read {file}: its columns may be separated by {names}",
            remedy=f"give --csv-separator {_NAMES[found[0]]}, or the other",
        )
    return found[0]


def _name_files(file: Path, rows: Sequence[Sequence[str]]) -> bool:
    """Say whether a cell of a table names a file, from the table's folder or the current one."""
    cells = {cell.strip() for row in rows for cell in row} - {""}
    return any(_is_file(root / cell) for cell in cells for root in (file.parent, Path()))


def _split(lines: Sequence[str], separator: str) -> list[list[str]]:
    try:
        return list(csv.reader(lines, delimiter=separator, skipinitialspace=True))
    except csv.Error:
        return []


def _alike(rows: Sequence[Sequence[str]]) -> int:
    """Return how many rows have the number of columns that most have, if that is above one."""
    widths = Counter(len(row) for row in rows if len(row) > 1)
    return max(widths.values(), default=0)


def _space(file: Path, lines: Sequence[str]) -> str:
    if lines and all(len(line.split()) > 1 for line in lines):
        return " "
    raise UsageError(
        f"cannot read {file}: it has {'only one column' if lines else 'no column'}",
        remedy=_WRITE_ROWS,
    )


def _separator_name(separator: str) -> str:
    """Return what to call a separator."""
    return _NAMES.get(separator, repr(separator))


def _numbered_rows(
    file: Path, separator: str, encoding: str | None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that hold anything, each with the number of its last line, from 1.

    Raises:
        UsageError: the file cannot be read, or is in another encoding.
    """
    lines = input_files.lines(file, encoding)
    if separator == " ":
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.strip().rsplit(None, 1)
        return
    # Strict, so that a quotation mark that is not closed does not swallow the rest in silence.
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if any(row):
                yield reader.line_num, row
    except csv.Error as error:
        raise UsageError(
            f"cannot read {file}, line {reader.line_num}: {error}",
            remedy="close its quotation marks, and double those within a cell",
        ) from error


_PIXEL_COLUMNS = 3  # a label and two pixels: fewer are a path and a label
_SAMPLE_ROWS = 50


@dataclass(frozen=True, slots=True)
class _Columns:
    """What the columns of a table hold.

    Attributes:
        header: the names of the columns, if its first row says them.
        label: column of the label.
        places: column of the path; None where pixels stand in the rows.
        dropped: columns between pixels that hold something else.
        remarks: what was taken for granted, a sentence each.
    """

    header: tuple[str, ...] | None
    label: int
    places: _Places | None = None
    dropped: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Form:
    """How a table is read.

    Attributes:
        separator: of its columns.
        encoding: of its text, None for what its first bytes say.
        width: how many columns it has.
        starts_after: number of the line after which its rows begin.
        columns: what they hold.
    """

    separator: str
    encoding: str | None
    width: int
    starts_after: int
    columns: _Columns


def _is_remark(row: Sequence[str]) -> bool:
    """Say whether a row begins as a remark does."""
    return row[0].startswith("#")


def _find_form(file: Path, given: CsvOptions) -> _Form:
    """Find out the form of a table.

    Raises:
        UsageError: it cannot be read, or what its columns are is not known.
    """
    head = _head_of(file, given.encoding)
    separator = given.separator or _find_separator(file, head)
    numbered = list(islice(_numbered_rows(file, separator, given.encoding), _SAMPLE_ROWS))
    if head and head[0].lower().startswith("sep="):
        del numbered[:1]
    while len(numbered) > 1 and _is_remark(numbered[0][1]) and not _is_header_remark(numbered):
        del numbered[:1]
    sample = _Sample(file, [row for _, row in numbered] or [[]], given)
    if sample.width < 2:  # noqa: PLR2004 (a label, and something)
        raise UsageError(
            f"cannot read {file}: it has {'only one column' if sample.width else 'no column'}",
            remedy=_WRITE_ROWS,
        )
    path = _path(sample)
    columns = _of_pixels(sample) if path is None else _of_pictures(sample, path)
    said = [f"columns are separated by {_separator_name(separator)} (change: --csv-separator)"] * (
        separator != ","
    )
    remarks = tuple(f"{file}: {text}" for text in (*said, *columns.remarks))
    start = numbered[0][0] if columns.header else numbered[0][0] - 1
    return _Form(
        separator, given.encoding, sample.width, start, replace(columns, remarks=remarks)
    )  # fmt: skip


def _is_header_remark(numbered: Sequence[tuple[int, Sequence[str]]]) -> bool:
    """Say whether a first row such as `#filename,label` names columns."""
    names = [_plain(cell) for cell in numbered[0][1]]
    return len(names) > 1 and len(names) == len(numbered[1][1]) and names[0] in _PATHS | _LABELS


def _path(sample: _Sample) -> int | None:
    """Return the column of paths; None where the rows hold pixels."""
    if len(sample.given.columns or ()) > 1:
        return sample.given_column(0)
    existing = [i for i in sample.columns if _names_files(sample, i)]
    if len(existing) > 1:
        existing = [i for i in sample.named(_PATHS) if i in existing] or existing
    if len(existing) > 1:
        raise sample.unclear(f"its columns {sample.listed(existing)} all name files")
    ending = [i for i in sample.columns if any(_ends_as_picture(row[i]) for row in sample.body)]
    if existing or ending:
        return (existing or ending)[0]
    if sample.width < _PIXEL_COLUMNS:
        return (sample.named(_PATHS) or [0])[0]
    if _are_pixels(sample):
        return None
    raise sample.unclear("no column holds paths of pictures, and the rows are not pixels")


def _names_files(sample: _Sample, place: int) -> bool:
    """Say whether a column names files; one of many numbers may be a pixel, and a file as well."""
    return any(
        sample.names_file(row, place)
        for row in (sample.first, *sample.body)
        if sample.width < _PIXEL_COLUMNS or (row[place:] and not _is_number(row[place]))
    )


def _are_pixels(sample: _Sample) -> bool:
    numeric = [row for row in sample.body if sum(map(_is_number, row)) >= len(sample.columns) - 1]
    is_header_alone = sample.body[0] is sample.first and sample.named(_LABELS)
    return len(numeric) * 2 > len(sample.body) or bool(is_header_alone)


_NO_HEADER = "change: --no-csv-header"


def _of_pictures(sample: _Sample, path: int) -> _Columns:
    has_header = _is_header(sample, path)
    folder = sample.folder if has_header and sample.folder != path else None
    label = sample.given_column(-1)
    if label is None:
        label = _label_column(sample, path, folder, named=has_header)
    root = _root(sample, path, folder)
    said = []
    if has_header:
        said.append(f"the first row is a header: {', '.join(sample.first)} ({_NO_HEADER})")
    if path > label or sample.width > 2:  # noqa: PLR2004 (path, label)
        said.append(f"{sample.called(path, header=has_header)} is the path, "
                    f"{sample.called(label, header=has_header)} the label "
                    "(change: --csv-columns PATH,LABEL)")  # fmt: skip
    if root != sample.file.parent:
        said.append(
            "paths start from the current folder, where the files are (change: write full paths)"
        )
    for part in sample.named(_PARTS) if has_header else ():
        values = shown(sorted({row[part] for row in sample.body}))
        said.append(
            f"all rows count, whatever column {sample.first[part]!r} says: {values} (change: give "
            "a table with the rows that should count)"
        )
    header = tuple(sample.first) if has_header else None
    return _Columns(header, label, _Places(path, folder, root), remarks=tuple(said))


def _is_header(sample: _Sample, path: int) -> bool:
    """Say whether the first row names columns: it does not name a picture, and others do.

    Raises:
        UsageError: it names columns and a file.
    """
    first = sample.first
    if sample.given.header is not None:
        return sample.given.header
    if len(first) != sample.width:
        return False
    names_file = sample.names_file(first, path)
    if names_file and sample.names[path] in _PATHS:
        raise UsageError(
            f"{sample.file}: its first row may be a header or an example: {', '.join(first)}",
            remedy="give --csv-header or --no-csv-header",
        )
    if names_file or _ends_as_picture(first[path]):
        return False
    is_named = sample.names[path] in _PATHS or any(i != path for i in sample.named(_LABELS))
    return is_named or any(_ends_as_picture(row[path]) for row in sample.body)


def _label_column(sample: _Sample, path: int, folder: int | None, *, named: bool) -> int:
    others = [i for i in sample.columns if i not in {path, folder}]
    found = [i for i in others if named and i in sample.named(_LABELS)] or others
    if len(found) == 1:
        return found[0]
    raise sample.unclear(f"the label may be in any of its columns {sample.listed(found)}")


def _root(sample: _Sample, path: int, folder: int | None) -> Path:
    """Return the folder that paths start from: the table's own, unless all are in another."""
    for root in sample.roots:
        if any(_is_file(_Places(path, folder, root).locate(row)) for row in sample.body):
            return root
    return sample.roots[0]


def _of_pixels(sample: _Sample) -> _Columns:
    first, has_header = sample.first, sample.given.header
    if has_header is None:
        numbers = sum(map(_is_number, first))
        has_header = bool(sample.named(_LABELS)) or numbers < len(sample.columns) - 1
    label = sample.given_column(-1)
    if label is None:
        label = _pixel_label(sample, named=has_header)
    numbering = {i for i in sample.named(_ROW_NUMBERS) if has_header and i != label}
    empty = set(range(sample.width)) - {*sample.columns}
    said = f"the first row is a header ({_NO_HEADER}); " if has_header else ""
    said += f"{sample.called(label, header=has_header)} is the label, the others are pixels"
    if numbering:
        said += f", but for those that number the rows: {sample.listed(sorted(numbering))}"
    said += " (change: --csv-columns LABEL)"
    header = tuple(first) if has_header else None
    return _Columns(header, label, None, frozenset(numbering | empty), (said,))


def _pixel_label(sample: _Sample, *, named: bool) -> int:
    """Return the column of the label beside pixels: by its name, or as the one of words."""
    words = [i for i in sample.columns if not any(_is_number(row[i]) for row in sample.body)]
    found = (sample.named(_LABELS) if named else []) or words
    if len(found) == 1:
        return found[0]
    stems = [re.sub(r"\d+", "", name) for name in sample.names]
    if found or (named and stems[0] == stems[1]):
        raise sample.unclear("which of its columns is the label is not known")
    return 0


_BRIGHTEST = 255
_AS_WRITTEN = CsvOptions()


def open_csv(file: Path, given: CsvOptions = _AS_WRITTEN) -> Dataset:
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
    form = _find_form(file, given)
    places = form.columns.places
    return _pixels_set(file, form) if places is None else _pictures(file, form, places)


def _pictures(file: Path, form: _Form, places: _Places) -> Dataset:
    entries, left_out = [], []
    for number, row in _body(file, form):
        if _is_remark(row) and not (len(row) > places.path and _is_file(places.locate(row))):
            continue
        if reason := _broken(row, form):
            left_out.append(Failure(None, f"{file} line {number}", reason))
            continue
        path = places.locate(row)
        entries.append((path, str(path), row[form.columns.label].strip()))
    if not entries:
        what = "a header and no rows" if form.columns.header else "no rows that can be used"
        raise UsageError(f"{file} has {what}", remedy=_WRITE_ROWS)
    entries = _without_fractions(entries)
    unproved = _unproved(file, entries)
    return Dataset(
        str(file),
        [label for _, _, label in entries],
        file_reader(entries),
        left_out=left_out,
        remarks=[*form.columns.remarks, *_repetitions(entries)],
        unproved=unproved,
    )


def _broken(row: list[str], form: _Form) -> str:
    """Return why a row is not an example; empty if it is one."""
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


def _unproved(file: Path, entries: list[tuple[Path, str, str]]) -> frozenset[str]:
    """Return the labels of which no picture exists; such a row may be anything.

    Raises:
        UsageError: no picture at all exists.
    """
    waiting = defaultdict(list)
    for path, _, label in entries:
        waiting[label].append(path)
    found = frozenset(
        label
        for label, paths in waiting.items()
        if not any(path.is_file() and is_picture(path) for path in paths)
    )
    if len(found) == len(waiting):
        lacks = "" if entries[0][0].exists() else " (missing)"
        raise UsageError(
            f"none of the {len(entries)} examples of {file} can be used: none of the files it "
            f"names is a picture; the first is {entries[0][1]}{lacks}",
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
    return ("write paths relative to the table's folder; --csv-columns PATH,LABEL says which "
            "columns hold what")  # fmt: skip


_DELETE_ROWS = "change: delete the rows that should not count"


def _repetitions(entries: list[tuple[Path, str, str]]) -> Iterator[str]:
    labels = defaultdict(list)
    for _, name, label in entries:
        labels[name].append(label)
    if twice := [name for name, found in labels.items() if len(found) > 1]:
        yield f"files that several rows name count as often: {shown(twice)} ({_DELETE_ROWS})"
    if torn := [name for name in twice if len(set(labels[name])) > 1]:
        yield (
            f"files with several labels count once for each, and at most one is right: "
            f"{shown(torn)} ({_DELETE_ROWS})"
        )


def _body(file: Path, form: _Form) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows below the header, with their line numbers."""
    return (
        (number, row)
        for number, row in _numbered_rows(file, form.separator, form.encoding)
        if number > form.starts_after
    )


def _pixels_set(file: Path, form: _Form) -> Dataset:
    labels = [_label(row[form.columns.label]) for _, row in _pixel_body(file, form)]
    if not labels:
        raise UsageError(f"{file} has a header and no rows", remedy=_WRITE_ROWS)
    reader = row_reader(str(file), labels, lambda: _pixel_rows(file, form))
    return Dataset(str(file), labels, reader, remarks=form.columns.remarks)


def _pixel_body(file: Path, form: _Form) -> Iterator[tuple[int, list[str]]]:
    return (
        (number, row)
        for number, row in _body(file, form)
        if len(row) > form.columns.label and not _is_remark(row)
    )


def _label(text: str) -> Label:
    stripped = text.strip().removesuffix(".0")
    return int(stripped) if stripped.isascii() and stripped.isdigit() else text.strip()


def _pixel_rows(file: Path, form: _Form) -> Iterator[Content | InvalidRequest]:
    dropped = sorted(form.columns.dropped | {form.columns.label}, reverse=True)
    for _, row in _pixel_body(file, form):
        for place in dropped:
            del row[place : place + 1]
        yield _pixels(row, form.width - len(dropped))


def _pixels(cells: list[str], width: int) -> Content | InvalidRequest:
    if len(cells) != width:
        return InvalidRequest(
            f"has {len(cells)} pixels, most rows {width}",
            remedy="give each row the same number of pixels, or delete it",
        )
    try:
        values = np.array(cells, np.float64)
    except ValueError as error:
        return InvalidRequest(
            f"holds something that is not a number: {error}",
            remedy="write pixels as whole numbers from 0 to 255, or delete the row",
        )
    if not np.all((values >= 0) & (values <= _BRIGHTEST) & (values == np.rint(values))):
        return InvalidRequest(
            "holds values that are not whole numbers from 0 to 255",
            remedy="store inputs that are not pixels in an .npz file",
        )
    return values.astype(np.uint8)
