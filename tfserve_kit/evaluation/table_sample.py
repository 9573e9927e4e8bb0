"""The first rows of a table: what its columns look like, and what the user says of them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tfserve_kit.errors import UsageError, did_you_mean
from tfserve_kit.pictures.files import SUFFIXES
from tfserve_kit.pictures.labels import shown

# What columns are called, in small letters without gaps.
PATHS = {"path", "file", "filename", "filepath", "filepaths", "image", "images", "img", "picture",
         "photo", "imagepath", "imagefile", "imagename", "imgpath", "imageid", "id",
         "name"}  # fmt: skip
LABELS = {"label", "labels", "class", "classes", "classname", "labelname", "classlabel",
          "category", "target", "truth", "groundtruth", "y", "classid", "labelid", "species",
          "breed"}  # fmt: skip
FOLDERS = {"folder", "dir", "directory", "subfolder"}
PARTS = {"split", "set", "subset", "partition", "dataset", "usage"}
_ENDINGS = tuple(SUFFIXES)
ROW_NUMBERS = {"", "index", "unnamed:0"}
_NUMBER = re.compile(r"\s*-?\d+(\.\d+)?([eE][+-]?\d+)?\s*|\s*nan\s*", re.ASCII | re.IGNORECASE)


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
        root: the folder that both start from.
    """

    path: int
    folder: int | None
    root: Path

    def locate(self, row: Sequence[str]) -> Path:
        """Return where the picture of a row is; where it would be if there is none."""
        parts = [row[place].strip() for place in (self.folder, self.path) if place is not None]
        written = self.root.joinpath(*parts)
        if not any("\\" in part for part in parts) or is_file(written):
            return written
        other = self.root.joinpath(*(part.replace("\\", "/") for part in parts))  # of Windows
        return other if is_file(other) else written


def is_file(path: Path) -> bool:
    """Say whether there is a file; a name that is too long or holds a zero byte is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_number(cell: str) -> bool:
    """Say whether a cell holds a number, or the nan of a missing one."""
    return bool(_NUMBER.fullmatch(cell))


def ends_as_picture(cell: str) -> bool:
    """Say whether a cell ends as the names of pictures do."""
    return cell.rstrip().lower().endswith(_ENDINGS)


def plain(name: str) -> str:
    """Return the name of a column without case, gaps and the # before it."""
    return re.sub(r"[\s_-]+", "", name.lower().lstrip("#"))


class Sample:
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

    def __init__(self, file: Path, rows: Sequence[Sequence[str]], given: Given) -> None:
        self.file, self.given = file, given
        self.first = rows[0]
        self.names = [plain(cell) for cell in self.first]
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
        return next((i for i, name in enumerate(self.names) if name in FOLDERS), None)

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
        return any(is_file(Places(place, folder, root).locate(row)) for root in self.roots)

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
