"""What the columns of a table are: found out from its header, its rows, and the files it names."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tfserve_kit.errors import UsageError, did_you_mean
from tfserve_kit.evaluation.table_rows import (
    find_separator,
    head_of,
    numbered_rows,
    separator_name,
)
from tfserve_kit.labels import shown
from tfserve_kit.pictures.files import SUFFIXES

_PATHS = {"path", "file", "filename", "filepath", "filepaths", "image", "images", "img", "picture",
          "photo", "imagepath", "imagefile", "imagename", "imgpath", "imageid", "id",
          "name"}  # fmt: skip
_LABELS = {"label", "labels", "class", "classes", "classname", "labelname", "classlabel",
           "category", "target", "truth", "groundtruth", "y", "classid", "labelid", "species",
           "breed"}  # fmt: skip
_FOLDERS = {"folder", "dir", "directory", "subfolder"}
_PARTS = {"split", "set", "subset", "partition", "dataset", "usage"}
_NUMBERS_OF_ROWS = {"", "index", "unnamed: 0"}
_NUMBER = re.compile(r"\s*-?\d+(\.\d+)?([eE][+-]?\d+)?\s*|\s*nan\s*", re.ASCII | re.IGNORECASE)
_PIXEL_COLUMNS = 3  # a label and two pixels: fewer are a path and a label
_SAMPLE = 100


@dataclass(frozen=True, slots=True)
class Given:
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
class Places:
    """Where the path of a picture stands in a row, and what it starts from.

    Attributes:
        path: column of the path.
        folder: column of its folder; None without one.
        roots: folders that a path may start from, first the one that counts.
    """

    path: int
    folder: int | None
    roots: tuple[Path, ...]

    def locate(self, row: Sequence[str]) -> Path:
        """Return where the picture of a row is; where it would be if there is none."""
        parts = [row[place].strip() for place in (self.folder, self.path) if place is not None]
        written = [self._join(root, parts) for root in self.roots]
        if any("\\" in part for part in parts):  # as Windows writes it
            written += [self._join(root, [p.replace("\\", "/") for p in parts])
                        for root in self.roots]  # fmt: skip
        return next((path for path in written if _is_file(path)), written[0])

    def _join(self, root: Path, parts: Iterable[str]) -> Path:
        return root.joinpath(*parts)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return False


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a table.

    Attributes:
        separator: of its columns.
        encoding: of its text, None for what its first bytes say.
        width: how many columns it has.
        header: the names of the columns, if its first row says them.
        starts_after: number of the line after which its rows begin.
        label: column of the label.
        places: column of the path; None where pixels stand in the rows.
        dropped: columns between pixels that are none.
        remarks: what was taken for granted, a sentence each.
    """

    separator: str
    encoding: str | None
    width: int
    header: tuple[str, ...] | None
    starts_after: int
    label: int
    places: Places | None
    dropped: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = field(default=())


def is_remark(row: Sequence[str]) -> bool:
    """Say whether a row begins as a remark does."""
    return row[0].startswith("#")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower().lstrip("#"))


def find_form(file: Path, given: Given) -> Form:
    """Find out the form of a table.

    Raises:
        UsageError: it cannot be read, or what its columns are is not known.
    """
    head = head_of(file, given.encoding)
    separator = given.separator or find_separator(file, head, _Rows(file, []).names_a_file)
    numbered = list(islice(numbered_rows(file, separator, given.encoding), _SAMPLE))
    if head and head[0].lower().startswith("sep="):
        del numbered[:1]
    while len(numbered) > 1 and is_remark(numbered[0][1]) and not _is_header_remark(numbered):
        del numbered[:1]
    if not numbered:
        raise UsageError(f"{file} has no rows")
    return _Rows(file, [row for _, row in numbered]).form(given, separator, numbered[0][0])


def _is_header_remark(numbered: Sequence[tuple[int, Sequence[str]]]) -> bool:
    """Say whether a first row such as `#filename,label` names columns."""
    names = [_plain(cell) for cell in numbered[0][1]]
    return len(names) > 1 and len(names) == len(numbered[1][1]) and names[0] in _PATHS | _LABELS


class _Rows:
    """The first rows of a table, and what can be told from them."""

    def __init__(self, file: Path, rows: Sequence[Sequence[str]]) -> None:
        self._file = file
        self._rows = rows
        self._roots = (file.parent, Path())
        widths = Counter(len(row) for row in rows)
        self._width = max(widths, key=lambda width: (widths[width], width), default=0)
        self._body = [row for row in rows[1:] if len(row) == self._width] or list(rows[:1])
        self._names = [_plain(cell) for cell in rows[0]] if rows else []

    def names_a_file(self, row: Sequence[str]) -> bool:
        """Say whether a cell is the path of a file."""
        return any(self._exists(row, place) for place in range(len(row)))

    def _exists(self, row: Sequence[str], place: int, folder: int | None = None) -> bool:
        if not row[place].strip():
            return False
        return _is_file(Places(place, folder, self._roots).locate(row))

    def form(self, given: Given, separator: str, first_line: int) -> Form:
        """Return the form of the table; its first row ends in a certain line."""
        if self._width < 2:  # noqa: PLR2004 (a label, and something)
            raise UsageError(f"cannot read {self._file}: it has 1 columns",
                             remedy="write path,label or label,pixel,pixel,... rows")  # fmt: skip
        said = [] if separator == "," else [f"columns separated by {separator_name(separator)}"]
        folder = next((i for i, name in enumerate(self._names) if name in _FOLDERS), None)
        path = self._given_place(given, 0) if len(given.columns or ()) > 1 else self._path(folder)
        if path is None:
            form = self._of_pixels(given, separator, first_line)
        else:
            form = self._of_pictures(given, separator, first_line, (path, folder))
        return Form(
            separator, given.encoding, self._width, form.header, form.starts_after, form.label,
            form.places, form.dropped, tuple(f"{self._file}: {text}" for text in
                                             (*said, *form.remarks)),
        )  # fmt: skip

    def _given_place(self, given: Given, which: int) -> int | None:
        """Return the column that the user names or numbers."""
        if given.columns is None:
            return None
        name = given.columns[which]
        if name.strip().lower() in (cells := [cell.strip().lower() for cell in self._rows[0]]):
            return cells.index(name.strip().lower())
        if name.isdigit() and 1 <= int(name) <= self._width:
            return int(name) - 1
        raise UsageError(
            f"{self._file} has no column {name!r}",
            remedy=f"give a name of its first row or a number from 1 to {self._width}; "
            + did_you_mean(name, self._rows[0]),
        )

    def _path(self, folder: int | None) -> int | None:
        """Return the column of paths; None where the rows hold pixels."""
        rows = [row for row in self._rows if len(row) == self._width]
        columns = range(self._width)
        existing = [i for i in columns if any(self._is_path(row, i, folder) for row in rows)]
        if len(existing) > 1:
            existing = [i for i in existing if self._names[i] in _PATHS] or existing
        if len(existing) > 1:
            raise self._unclear(f"its columns {self._shown(existing)} all name files")
        if existing:
            return existing[0]
        ending = [i for i in columns if any(_ends_as_picture(row[i]) for row in self._body)]
        if ending:
            return ending[0]
        if self._width < _PIXEL_COLUMNS:
            named = [i for i in columns if self._names[i] in _PATHS]
            return named[0] if named else 0
        if sum(_numbers(row) >= self._width - 1 for row in self._body) * 2 > len(self._body):
            return None
        if self._is_pixel_header():
            return None
        raise self._unclear("no column holds paths of pictures, and the rows are no pixels")

    def _is_pixel_header(self) -> bool:
        """Say whether there is nothing but the header of a table of pixels."""
        return len(self._rows) == 1 and any(name in _LABELS for name in self._names)

    def _is_path(self, row: Sequence[str], place: int, folder: int | None) -> bool:
        if self._width >= _PIXEL_COLUMNS and _NUMBER.fullmatch(row[place]):
            return False  # a file may be called 7, and so may a pixel
        under = folder if folder != place and row is not self._rows[0] else None
        return self._exists(row, place, under)

    def _of_pictures(
        self, given: Given, separator: str, first_line: int, places: tuple[int, int | None]
    ) -> Form:
        path, folder = places
        has_header = self._has_header(given, path)
        names = self._names if has_header else []
        folder = folder if has_header and folder != path else None
        label = self._given_place(given, -1)
        if label is None:
            label = self._label(path, folder, names)
        said = []
        if has_header:
            said.append(f"first row taken as a header: {', '.join(self._rows[0])}")
        if path > label or self._width > 2:  # noqa: PLR2004 (path, label)
            said.append(f"{self._called(path, has_header)} is taken as the path, "
                        f"{self._called(label, has_header)} as the label")  # fmt: skip
        place = Places(path, folder, self._settled(path, folder))
        if place.roots != (self._file.parent,):
            said.append("paths start from the current folder, where the files are")
        said += self._parts(names)
        header = tuple(self._rows[0]) if has_header else None
        start = first_line if has_header else first_line - 1
        return Form(separator, None, self._width, header, start, label, place, remarks=tuple(said))

    def _settled(self, path: int, folder: int | None) -> tuple[Path, ...]:
        """Return the folder that paths start from: the table's own, if any file is there."""
        here, current = self._roots
        rows = [row for row in self._body if len(row) == self._width]
        for root in (here, current):
            if any(_is_file(Places(path, folder, (root,)).locate(row)) for row in rows):
                return (root,)
        return (here,)

    def _parts(self, names: Sequence[str]) -> list[str]:
        """Tell of a column that sorts the rows into parts, such as train and test."""
        return [
            f"all rows count, whatever column {self._rows[0][i]!r} says: "
            + shown(sorted({row[i] for row in self._body}))
            for i, name in enumerate(names)
            if name in _PARTS
        ]

    def _has_header(self, given: Given, path: int) -> bool:
        if given.header is not None:
            return given.header
        first = self._rows[0]
        if len(first) != self._width:
            return False
        named = self._names[path] in _PATHS or any(
            name in _LABELS for i, name in enumerate(self._names) if i != path
        )
        is_file = self._exists(first, path)
        if is_file and self._names[path] in _PATHS:
            raise UsageError(
                f"{self._file}: its first row may be a header or an example: {', '.join(first)}",
                remedy="give --csv-header or --no-csv-header",
            )
        if is_file or _ends_as_picture(first[path]):
            return False
        others = self._rows[1:]
        seen = any(_ends_as_picture(row[path]) for row in others if len(row) == self._width)
        return named or seen

    def _label(self, path: int, folder: int | None, names: Sequence[str]) -> int:
        others = [i for i in range(self._width) if i not in {path, folder}]
        found = [i for i in others if names and names[i] in _LABELS] or others
        if len(found) == 1:
            return found[0]
        raise self._unclear(f"the label may be in any of its columns {self._shown(found)}")

    def _of_pixels(self, given: Given, separator: str, first_line: int) -> Form:
        first = self._rows[0]
        named = [i for i, name in enumerate(self._names) if name in _LABELS]
        has_header = given.header
        if has_header is None:
            has_header = bool(named) or _numbers(first) < self._width - 1
        label = self._given_place(given, -1)
        if label is None:
            label = self._pixel_label(named) if has_header else 0
        dropped = frozenset(
            i for i, name in enumerate(self._names)
            if has_header and i != label and name in _NUMBERS_OF_ROWS
        )  # fmt: skip
        said = []
        if has_header:
            said.append(f"first row taken as a header; the label is in column {first[label]!r}")
        if dropped:
            said.append(
                f"left out, as they number the rows: columns {self._shown(sorted(dropped))}"
            )
        header, start = (tuple(first), first_line) if has_header else (None, first_line - 1)
        return Form(separator, None, self._width, header, start, label, None, dropped, tuple(said))

    def _pixel_label(self, named: Sequence[int]) -> int:
        """Return the column of the label of a table of pixels with a header."""
        if len(named) == 1:
            return named[0]
        stems = [re.sub(r"\d+", "", name) for name in self._names]
        if named or stems[0] == stems[1]:
            raise self._unclear("which of its columns is the label is not known")
        return 0

    def _called(self, place: int, has_header: bool) -> str:  # noqa: FBT001
        return f"column {self._rows[0][place]!r}" if has_header else f"column {place + 1}"

    def _shown(self, places: Sequence[int]) -> str:
        return shown([f"{place + 1} ({self._rows[0][place]})" for place in places])

    def _unclear(self, text: str) -> UsageError:
        return UsageError(
            f"cannot read {self._file}: {text}",
            remedy="give --csv-columns PATH,LABEL, by their names or numbers, such as 1,3",
        )


def _ends_as_picture(cell: str) -> bool:
    return Path(cell.strip()).suffix.lower() in SUFFIXES


def _numbers(row: Sequence[str]) -> int:
    return sum(bool(_NUMBER.fullmatch(cell)) for cell in row)
