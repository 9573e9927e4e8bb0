"""What the columns of a table are: found out from its header, its rows, and the files it names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from tfserve_kit.errors import UsageError
from tfserve_kit.evaluation.table_rows import (
    find_separator,
    head_of,
    numbered_rows,
    separator_name,
)
from tfserve_kit.evaluation.table_sample import (
    LABELS,
    PARTS,
    PATHS,
    ROW_NUMBERS,
    Given,
    Places,
    Sample,
    ends_as_picture,
    is_file,
    is_number,
    plain,
)
from tfserve_kit.pictures.labels import shown

_PIXEL_COLUMNS = 3  # a label and two pixels: fewer are a path and a label
_SAMPLE_ROWS = 50


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table hold.

    Attributes:
        header: the names of the columns, if its first row says them.
        label: column of the label.
        places: column of the path; None where pixels stand in the rows.
        dropped: columns between pixels that are none.
        remarks: what was taken for granted, a sentence each.
    """

    header: tuple[str, ...] | None
    label: int
    places: Places | None = None
    dropped: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Form:
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
    columns: Columns


def is_remark(row: Sequence[str]) -> bool:
    """Say whether a row begins as a remark does."""
    return row[0].startswith("#")


def find_form(file: Path, given: Given) -> Form:
    """Find out the form of a table.

    Raises:
        UsageError: it cannot be read, or what its columns are is not known.
    """
    head = head_of(file, given.encoding)
    separator = given.separator or find_separator(file, head)
    numbered = list(islice(numbered_rows(file, separator, given.encoding), _SAMPLE_ROWS))
    if head and head[0].lower().startswith("sep="):
        del numbered[:1]
    while len(numbered) > 1 and is_remark(numbered[0][1]) and not _is_header_remark(numbered):
        del numbered[:1]
    sample = Sample(file, [row for _, row in numbered] or [[]], given)
    if sample.width < 2:  # noqa: PLR2004 (a label, and something)
        raise UsageError(
            f"cannot read {file}: it has {sample.width} columns",
            remedy="write path,label or label,pixel,pixel,... rows",
        )
    path = _path(sample)
    columns = _of_pixels(sample) if path is None else _of_pictures(sample, path)
    said = [] if separator == "," else [f"columns separated by {separator_name(separator)}"]
    remarks = tuple(f"{file}: {text}" for text in (*said, *columns.remarks))
    start = numbered[0][0] if columns.header else numbered[0][0] - 1
    return Form(
        separator, given.encoding, sample.width, start, replace(columns, remarks=remarks)
    )  # fmt: skip


def _is_header_remark(numbered: Sequence[tuple[int, Sequence[str]]]) -> bool:
    """Say whether a first row such as `#filename,label` names columns."""
    names = [plain(cell) for cell in numbered[0][1]]
    return len(names) > 1 and len(names) == len(numbered[1][1]) and names[0] in PATHS | LABELS


def _path(sample: Sample) -> int | None:
    """Return the column of paths; None where the rows hold pixels."""
    if len(sample.given.columns or ()) > 1:
        return sample.given_column(0)
    existing = [i for i in sample.columns if _names_files(sample, i)]
    if len(existing) > 1:
        existing = [i for i in sample.named(PATHS) if i in existing] or existing
    if len(existing) > 1:
        raise sample.unclear(f"its columns {sample.listed(existing)} all name files")
    ending = [i for i in sample.columns if any(ends_as_picture(row[i]) for row in sample.body)]
    if existing or ending:
        return (existing or ending)[0]
    if sample.width < _PIXEL_COLUMNS:
        return (sample.named(PATHS) or [0])[0]
    if _are_pixels(sample):
        return None
    raise sample.unclear("no column holds paths of pictures, and the rows are no pixels")


def _names_files(sample: Sample, place: int) -> bool:
    """Say whether a column names files; one of many numbers may be a pixel, and a file as well."""
    return any(
        sample.names_file(row, place)
        for row in (sample.first, *sample.body)
        if sample.width < _PIXEL_COLUMNS or (row[place:] and not is_number(row[place]))
    )


def _are_pixels(sample: Sample) -> bool:
    numeric = [row for row in sample.body if sum(map(is_number, row)) >= len(sample.columns) - 1]
    is_header_alone = sample.body[0] is sample.first and sample.named(LABELS)
    return len(numeric) * 2 > len(sample.body) or bool(is_header_alone)


def _of_pictures(sample: Sample, path: int) -> Columns:
    has_header = _is_header(sample, path)
    folder = sample.folder if has_header and sample.folder != path else None
    label = sample.given_column(-1)
    if label is None:
        label = _label(sample, path, folder, named=has_header)
    root = _root(sample, path, folder)
    said = []
    if has_header:
        said.append(f"first row taken as a header: {', '.join(sample.first)}")
    if path > label or sample.width > 2:  # noqa: PLR2004 (path, label)
        said.append(f"{sample.called(path, header=has_header)} is taken as the path, "
                    f"{sample.called(label, header=has_header)} as the label")  # fmt: skip
    if root != sample.file.parent:
        said.append("paths start from the current folder, where the files are")
    for part in sample.named(PARTS) if has_header else ():
        values = shown(sorted({row[part] for row in sample.body}))
        said.append(f"all rows count, whatever column {sample.first[part]!r} says: {values}")
    header = tuple(sample.first) if has_header else None
    return Columns(header, label, Places(path, folder, root), remarks=tuple(said))


def _is_header(sample: Sample, path: int) -> bool:
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
    if names_file and sample.names[path] in PATHS:
        raise UsageError(
            f"{sample.file}: its first row may be a header or an example: {', '.join(first)}",
            remedy="give --csv-header or --no-csv-header",
        )
    if names_file or ends_as_picture(first[path]):
        return False
    is_named = sample.names[path] in PATHS or any(i != path for i in sample.named(LABELS))
    return is_named or any(ends_as_picture(row[path]) for row in sample.body)


def _label(sample: Sample, path: int, folder: int | None, *, named: bool) -> int:
    others = [i for i in sample.columns if i not in {path, folder}]
    found = [i for i in others if named and i in sample.named(LABELS)] or others
    if len(found) == 1:
        return found[0]
    raise sample.unclear(f"the label may be in any of its columns {sample.listed(found)}")


def _root(sample: Sample, path: int, folder: int | None) -> Path:
    """Return the folder that paths start from: the table's own, unless all are in another."""
    for root in sample.roots:
        if any(is_file(Places(path, folder, root).locate(row)) for row in sample.body):
            return root
    return sample.roots[0]


def _of_pixels(sample: Sample) -> Columns:
    first, has_header = sample.first, sample.given.header
    if has_header is None:
        numbers = sum(map(is_number, first))
        has_header = bool(sample.named(LABELS)) or numbers < len(sample.columns) - 1
    label = sample.given_column(-1)
    if label is None:
        label = _pixel_label(sample, named=has_header)
    numbering = {i for i in sample.named(ROW_NUMBERS) if has_header and i != label}
    empty = set(range(sample.width)) - {*sample.columns}
    said = "first row taken as a header; " if has_header else ""
    said += f"{sample.called(label, header=has_header)} is taken as the label, the others as pixels"
    if numbering:
        said += f", but for those that number the rows: {sample.listed(sorted(numbering))}"
    header = tuple(first) if has_header else None
    return Columns(header, label, None, frozenset(numbering | empty), (said,))


def _pixel_label(sample: Sample, *, named: bool) -> int:
    """Return the column of the label beside pixels: by its name, or as the one of words."""
    words = [i for i in sample.columns if not any(is_number(row[i]) for row in sample.body)]
    found = (sample.named(LABELS) if named else []) or words
    if len(found) == 1:
        return found[0]
    stems = [re.sub(r"\d+", "", name) for name in sample.names]
    if found or (named and stems[0] == stems[1]):
        raise sample.unclear("which of its columns is the label is not known")
    return 0
