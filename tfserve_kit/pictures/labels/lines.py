"""Labels as lines of text: a name each, numbered or not, or rows of a table."""

import csv
import re
from collections.abc import Sequence

from tfserve_kit.pictures.labels.entries import Entry, Found, Unreadable, is_complete
from tfserve_kit.pictures.labels.names import shown
from tfserve_kit.pictures.labels.objects import INDEX_KEYS, NAME_KEYS

SEPARATORS = ",;\t|"
_ENDS = re.compile(r"\r\n|\n|\r")
_NUMBER = re.compile(r"-?\d+", re.ASCII)
# 0 cat, 0: cat, 0) cat, 0 - cat; but not 0-2 or 0.5.
_NUMBERED = re.compile(r"(\d+)(?:\s*[:;,)=|]\s*|\.\s+|\s+-\s+|\s+)(\S.*)", re.ASCII)
_NUMBER_LAST = re.compile(r"(\S.*?)[\s:=]+(\d+)", re.ASCII)  # cat 0
_SYNSET = re.compile(r"(n\d{8})[\s,:]+(\S.*)", re.ASCII)  # n01440764 tench, Tinca tinca
_BLOCK = re.compile(r"^(?:names|labels|classes|id2label):[ \t]*\r?\n((?:(?:[ \t]+|- ).*\r?\n?)+)",
                    re.MULTILINE)  # fmt: skip
_QUOTED = re.compile(r"([\"'])(.*)\1,?")


def read(text: str) -> Found:
    """Return the labels of lines.

    Numbers are indices where every line has one and they count from 0 or 1; else they are part of
    the names.

    Raises:
        Unreadable: the lines are numbered with gaps, or a table says two things.
    """
    lines = _listed([line.strip() for line in _ENDS.split(_yaml_block(text))])
    while lines and not lines[-1]:
        lines.pop()
    filled = [line for line in lines if line]
    for form in (_table, _numbered, _numbered_last, _synsets, _one_line):
        if found := form(filled):
            return found
    if all(_QUOTED.fullmatch(line) for line in filled):
        lines = [_QUOTED.sub(r"\2", line) for line in lines]
    return Found([Entry((line,)) for line in lines])


def _yaml_block(text: str) -> str:
    """Return what stands below `names:` in a text that looks like YAML, such as YOLO's."""
    block = _BLOCK.search(text)
    return block[1] if block else text


def _listed(lines: list[str]) -> list[str]:
    """Return `- cat`, `- dog` without what makes them a list."""
    if all(line.startswith("- ") for line in lines if line):
        return [_QUOTED.sub(r"\2", line[2:].strip()) for line in lines]
    return lines


def _table(lines: Sequence[str]) -> Found | None:
    for separator in SEPARATORS:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
        widths = {len(row) for row in rows}
        # Fewer rows than lines: a quotation mark that goes on to a later line.
        if len(rows) < len(lines) or len(widths) > 1 or widths == {1}:
            continue
        if found := _of_rows(rows):
            return found
    return None


def _of_rows(rows: list[list[str]]) -> Found | None:
    columns = range(len(rows[0]))
    heads = [cell.lower().replace(" ", "_").lstrip("#") for cell in rows[0]]
    has_header = not any(_is_number(cell) for cell in rows[0]) and len(rows) > 1
    body = rows[1:] if has_header else rows
    numbers = [place for place in columns if all(_is_number(row[place]) for row in body)]
    named = [place for key in INDEX_KEYS for place in columns if heads[place] == key]
    index = next((place for place in [*named, *numbers] if place in numbers), None)
    names = [place for key in NAME_KEYS for place in columns if heads[place] == key]
    names = [place for place in names if place != index]
    if index is None:
        if not (has_header and names and len(named) + len(names) > 1):
            return None
    elif not has_header and len(numbers) > 1:
        index = _the_index(body, numbers)
    if index is not None and not (has_header or _counts(body, index)):
        return None
    others = [place for place in reversed(columns) if place not in {index, *names, *numbers}]
    order = [*names, *others] or [place for place in reversed(columns) if place != index]
    remark = _columns_remark(rows[0], index, order[0]) if has_header else ()
    return Found([_entry(row, index, order) for row in body], remark)


def _columns_remark(header: list[str], index: int | None, name: int) -> tuple[str, ...]:
    taken = "" if index is None else f"{header[index]!r} as the index and "
    return (f"the first line is a header; {taken}{header[name]!r} as the name",)


def _entry(row: list[str], index: int | None, order: Sequence[int]) -> Entry:
    names = dict.fromkeys(row[place] for place in order if row[place])
    return Entry(tuple(names) or ("",), None if index is None else int(row[index]))


def _the_index(body: list[list[str]], numbers: Sequence[int]) -> int:
    """Return which of several columns of numbers is the index."""
    found = [place for place in numbers if is_complete([int(row[place]) for row in body])]
    if len(found) == 1 or (found and all(row[found[0]] == row[found[-1]] for row in body)):
        return found[0]
    places = shown([place + 1 for place in numbers])
    raise Unreadable(f"its columns {places} are numbers, and which is the index is not known",
                     remedy="put a line with the header index,name before it")  # fmt: skip


def _counts(body: list[list[str]], place: int) -> bool:
    return _count_up([int(row[place]) for row in body])


def _count_up(numbers: Sequence[int]) -> bool:
    """Say whether numbers count classes, be it with gaps: some order, from 0 or 1."""
    return min(numbers) in {0, 1} and (is_complete(numbers) or list(numbers) == sorted(numbers))


def _is_number(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell))


def _numbered(lines: Sequence[str]) -> Found | None:
    found = [_NUMBERED.fullmatch(line) for line in lines]
    entries = [Entry((match[2],), int(match[1])) for match in found if match]
    if len(entries) < len(lines) or not _count_up([each.index or 0 for each in entries]):
        return None
    # 1 euro, 2 euro, 5 euro: what is left without the numbers tells nothing apart.
    return Found(entries) if _are_different(entries) else None


def _numbered_last(lines: Sequence[str]) -> Found | None:
    found = [_NUMBER_LAST.fullmatch(line) for line in lines]
    entries = [Entry((match[1],), int(match[2])) for match in found if match]
    if len(entries) < max(2, len(lines)) or not is_complete([each.index or 0 for each in entries]):
        return None
    remark = "the number at the end of each line is taken as the index"
    return Found(entries, (remark,)) if _are_different(entries) else None


def _are_different(entries: Sequence[Entry]) -> bool:
    return len(entries) == 1 or len({each.names for each in entries}) > 1


def _synsets(lines: Sequence[str]) -> Found | None:
    found = [match for line in lines if (match := _SYNSET.fullmatch(line))]
    if len(found) < len(lines):
        return None
    names = [match[2] for match in found]
    numbered = _numbered(names)  # n02119789 1 kit_fox
    entries = numbered.entries if numbered else [Entry((name,)) for name in names]
    return Found([
        Entry((*entry.names, match[1]), entry.index)
        for entry, match in zip(entries, found, strict=True)
    ])  # fmt: skip


def _one_line(lines: Sequence[str]) -> Found | None:
    """Read `cat,dog,cow`, if that is all there is."""
    if len(lines) > 1:
        return None
    for separator in SEPARATORS:
        (row,) = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        names = [cell.strip() for cell in row if cell.strip()]
        if len(names) > 1:
            remark = f"its one line is taken as a list of {len(names)} names"
            return Found([Entry((name,)) for name in names], (remark,))
    return None
