"""The rows of a text table: how they are separated, and reading them one by one."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tfserve_kit.errors import UsageError
from tfserve_kit.evaluation.table_sample import is_file
from tfserve_kit.pictures.labels import text

# By the names that the command line knows; a space counts once, before the label.
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}
_NAMES = {character: name for name, character in SEPARATORS.items()}
_DECLARED = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # how Excel says it, in a line of its own
_HEAD_LINES = 50


def head_of(file: Path, encoding: str | None) -> list[str]:
    """Return the first lines of a file that hold anything.

    Raises:
        UsageError: it cannot be read, or is in another encoding.
    """
    filled = (line for line in text.lines(file, encoding) if line.strip())
    return list(islice(filled, _HEAD_LINES))


def find_separator(file: Path, head: Sequence[str]) -> str:
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
    return any(is_file(root / cell) for cell in cells for root in (file.parent, Path()))


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
        f"cannot read {file}: it has {min(len(lines), 1)} columns",
        remedy="write path,label or label,pixel,pixel,... rows",
    )


def separator_name(separator: str) -> str:
    """Return what to call a separator."""
    return _NAMES.get(separator, repr(separator))


def numbered_rows(
    file: Path, separator: str, encoding: str | None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that hold anything, each with the number of its last line, from 1.

    Raises:
        UsageError: the file cannot be read, or is in another encoding.
    """
    lines = text.lines(file, encoding)
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
