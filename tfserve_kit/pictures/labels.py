"""The names of a model's classes, in its order: brought to its number of them, and read from files.

Label files may be JSON, lists in YAML, label maps of the TensorFlow Object Detection API, tables,
and lines, numbered or not. The form is told by the content, never by the name of the file.

Source: research/object_detection/protos/string_int_label_map.proto of tensorflow/models.
"""

import ast
import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from tfserve_kit.errors import UsageError, file_error
from tfserve_kit.input_files import decode

# What the class is called that stands for "none of these"; it is often listed and not answered,
# or answered and not listed.
_BACKGROUND = "background"
_BACKGROUNDS = {_BACKGROUND, "__background__", "_background_", "dummy", "unknown", "none", "???"}
# What a column of names is called where it has a header.
_HEADINGS = {"label", "labels", "name", "names", "class", "classes", "class_name", "display_name"}
MOST_SHOWN = 10


class Labels(tuple[str, ...]):  # noqa: SLOT001 (a tuple can have none that are not empty)
    """Names of classes; a tuple that knows where it comes from.

    Attributes:
        source: the file, or what else says so; empty where nobody asked.
        first: the class index of the first name: 1 where a file counts from 1, else 0.
        aliases: other names, such as `n01440764` of `tench`, and the place of the name.
        remarks: what was taken for granted, a sentence each.
    """

    source: str
    first: int
    aliases: Mapping[str, int]
    remarks: tuple[str, ...]

    def __new__(
        cls,
        names: Iterable[str] = (),
        *,
        source: str = "",
        first: int = 0,
        aliases: Mapping[str, int] | None = None,
        remarks: Sequence[str] = (),
    ) -> Self:
        """Make them."""
        self = super().__new__(cls, names)
        self.source, self.first = source, first
        self.aliases, self.remarks = dict(aliases or {}), tuple(remarks)
        return self

    @classmethod
    def of(cls, names: Sequence[str]) -> "Labels":
        """Return names as labels, those that are as they are."""
        return names if isinstance(names, Labels) else cls(names)

    def fit(self, classes: int, *, is_one_column: bool = False) -> "Labels":
        """Return the names of exactly so many classes, counted from 0.

        What decides which class has which name is proved by the number of names: a first line
        that only says `background` is left out where there is one too many, ids that run from 1
        are shifted where they are as many as the classes, and leave class 0 to the background
        where they are one fewer.

        Args:
            classes: how many there are.
            is_one_column: whether they are two, and the model answers with the score of the second
                alone; then one name is that of the second.

        Raises:
            UsageError: there are more or fewer, for no reason that is known.
        """
        if is_one_column and (len(self), classes) == (1, 2):
            text = (
                f"{self.source or 'the label'}: class 1 is {self[0]!r}, class 0 is everything else "
                "(change: name both classes in it, that of class 0 first)"
            )
            return self._changed((f"not {self[0]}", self[0]), 1, text)
        if self.first == 1 and len(self) == classes:
            text = (
                f"{self.source} counts from 1: class 0 is {self[0]!r} (change: number its names "
                "from 0)"
            )
            return self._changed(self, 0, text)
        if self.first == 1 and len(self) == classes - 1:
            text = (
                f"{self.source} counts from 1: class 0, which it does not name, is background "
                "(change: name class 0 in it)"
            )
            return self._changed((_BACKGROUND, *self), 1, text)
        if self.first == 0 and len(self) == classes:
            return self
        if self.first == 0 and len(self) == classes + 1 and _is_extra(self[0]):
            where = self.source or "the labels"
            text = (
                f"{where}: the first label, {self[0]!r}, is left out: there is one label "
                "more than classes (change: give as many labels as classes)"
            )
            return self._changed(self[1:], -1, text)
        raise self._unfit(classes)

    def _changed(self, names: Iterable[str], shift: int, remark: str) -> "Labels":
        moved = {name: place + shift for name, place in self.aliases.items() if place + shift >= 0}
        remarks = (*self.remarks, remark)
        return Labels(names, source=self.source, aliases=moved, remarks=remarks)

    def extended(self, name: str) -> "Labels":
        """Return these names and one more."""
        return Labels((*self, name), source=self.source, first=self.first, aliases=self.aliases,
                      remarks=self.remarks)  # fmt: skip

    def by_id(self, index: int) -> str | None:
        """Return the name of a class by its number as the source counts; None where it has none.

        For models that answer with a class, such as detectors: nothing shows how many they have.
        """
        place = index - self.first
        return self[place] if 0 <= place < len(self) else None

    def repeated(self) -> dict[str, list[int]]:
        """Return the names that several classes share, and the places of those."""
        places = defaultdict(list)
        for place, name in enumerate(self):
            if name:
                places[name].append(place)
        return {name: found for name, found in places.items() if len(found) > 1}

    def _unfit(self, classes: int) -> UsageError:
        counts = f"{len(self)} labels for a model with {classes} classes"
        remedy = "give one label for each class, in the order of the classes"
        if not self.source:
            return UsageError(counts, remedy=f"{remedy}, one on each line of a file")
        text = f"{self.source}: {counts}"
        if self:
            text += f"; the first label is {self[0]!r}, the last {self[-1]!r}"
        if blank := [place + 1 for place, name in enumerate(self) if not name]:
            text += f"; {'line' if len(blank) == 1 else 'lines'} {shown(blank)} blank"
            remedy = "delete the blank lines, if they stand for no class"
        elif (len(self), classes) == (1, 2):
            remedy = "name both classes, first the one that a low score means"
        elif len(self) == classes - 1:
            remedy += f"; if class 0 is background, add {_BACKGROUND!r} as the first line"
        return UsageError(text, remedy=remedy)


def _is_extra(name: str) -> bool:
    return name.strip().lower() in _BACKGROUNDS | _HEADINGS


def shown(values: Sequence[object], between: str = ", ") -> str:
    """Return the first few of many, and how many more there are."""
    more = len(values) - MOST_SHOWN
    text = between.join(map(str, values[:MOST_SHOWN])) or "none"
    return f"{text} and {more} more" if more > 0 else text


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
        told = file_error(UsageError, "read", file, error)
        raise UsageError(f"cannot read {what}: {error.strerror}", remedy=told.remedy) from error
    if len(data) > _MOST_BYTES:
        raise UsageError(
            f"cannot read {what}: it has more than {_MOST_BYTES:,} bytes",
            remedy="give the file of class names, not the data",
        )
    return parse(decode(data, what, encoding), str(file))


def parse(text: str, source: str) -> Labels:
    """Return the labels in the text of a label file, see `read`.

    Raises:
        UsageError: it does not say which class has which name.
    """
    with _refusing(source):
        if not text.strip():
            raise _Unreadable("it is empty")
        if text.lstrip().startswith("<"):
            raise _Unreadable("it is HTML or XML")
        return _as_labels(_json(text) or _label_map(text) or _lines(text), source)


def from_json(content: Any, source: str) -> Labels:
    """Return the labels that a JSON value holds, see `read`.

    Raises:
        UsageError: it does not say which class has which name.
    """
    with _refusing(source):
        return _as_labels(_Found(_json_entries(content)), source)


@contextmanager
def _refusing(source: str) -> Iterator[None]:
    try:
        yield
    except (_Unreadable, csv.Error) as error:
        remedy = getattr(error, "remedy", "") or _FORMS
        raise UsageError(f"cannot read the labels in {source}: {error}", remedy=remedy) from error


class _Unreadable(ValueError):
    """A label file says nothing, or two things at once; `remedy` is what its owner can do."""

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


class _Entry(NamedTuple):
    """One class.

    Attributes:
        names: what it is called, first the name to show.
        number: its index as the file counts; None where its place says it.
    """

    names: tuple[str, ...]
    number: int | None = None


class _Found(NamedTuple):
    """What was read.

    Attributes:
        entries: the classes, in the order of the file.
        remarks: what was taken for granted to read them so.
    """

    entries: Sequence[_Entry]
    remarks: tuple[str, ...] = ()


def _is_complete(indices: Sequence[int]) -> bool:
    """Say whether numbers are 0, 1, 2, ... or 1, 2, 3, ... in any order."""
    return min(indices, default=-1) in {0, 1} and sorted(indices) == list(
        range(min(indices), min(indices) + len(indices))
    )


def _as_labels(found: _Found, source: str) -> Labels:
    """Return labels in the order of their indices.

    Raises:
        _Unreadable: there are none, or the indices have gaps or name two classes at once.
    """
    if not found.entries:
        raise _Unreadable("it holds no labels")
    first = 0
    entries = found.entries
    if any(each.number is not None for each in entries):
        entries = sorted(entries, key=_index)
        _require_complete([_index(each) for each in entries])
        first = _index(entries[0])
    aliases = {name: place for place, each in enumerate(entries) for name in each.names[1:]}
    labels = Labels([each.names[0] for each in entries], source=source, first=first,
                    aliases=aliases)  # fmt: skip
    remarks = [f"{source}: {text}" for text in (*found.remarks, *_oddities(labels))]
    return Labels(labels, source=source, first=first, aliases=aliases, remarks=remarks)


def _oddities(labels: Labels) -> Iterator[str]:
    """Say what may be meant so, and may be a slip."""
    if blank := [place + labels.first for place, name in enumerate(labels) if not name]:
        yield (
            f"blank lines are the names of the classes {shown(blank)} (change: delete them, if "
            "they stand for no class)"
        )
    for name, places in list(labels.repeated().items())[:MOST_SHOWN]:
        classes = shown([place + labels.first for place in places])
        yield f"several classes have the name {name!r}: {classes} (change: rename them in it)"


def _index(entry: _Entry) -> int:
    if entry.number is None:
        raise _Unreadable(f"{entry.names[0]!r} has no index, and others have one")
    return entry.number


def _require_complete(indices: Sequence[int]) -> None:
    if _is_complete(indices):
        return
    lowest, highest = min(indices), max(indices)
    if lowest < 0:
        raise _Unreadable(f"it has the index {lowest}, which is below 0")
    if twice := [index for index, count in Counter(indices).items() if count > 1]:
        text = f"several names have the index {shown(twice)}"
        raise _Unreadable(text, remedy="give each class an index of its own")
    start = min(lowest, 1)
    missing = _missing(set(indices), start, highest)
    text = (
        f"its indices run from {lowest} to {highest}, and {shown(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} missing"
    )
    raise _Unreadable(text, remedy="name every class, from 0 (or from 1) without gaps; if the "
                     "numbers are part of the names, give a JSON list of names")  # fmt: skip


def _missing(have: set[int], start: int, end: int) -> list[int]:
    """Return the first of the missing numbers: an index may be in the billions."""
    found: list[int] = []
    for index in range(start, end):
        if index not in have:
            found.append(index)
        if len(found) > len(have) + MOST_SHOWN:
            break
    return found


# A list or an object, not a line of text such as `[UNK]`.
_OPENING = re.compile(r"\s*(\{|\[\s*([\"'\[{\]\d-]|$))", re.MULTILINE)
# As YOLO's data.yaml writes it: between brackets, in one line or in several, quoted or not.
_YAML = re.compile(
    r"^(?:names|labels|classes|id2label):[ \t]*(\[[^\[\]]*\]|\{[^{}]*\})[ \t]*(?:#.*)?$",
    re.MULTILINE,
)
_YAML_ITEM = re.compile(
    r"""\s*(?:(?P<key>-?\d+)\s*:\s+)?"""
    r"""(?:'(?P<single>(?:[^']|'')*)'|"(?P<double>[^"\\]*)"|(?P<plain>[^\s,'"#&*!|>][^,]*?))"""
    r"""\s*(?:,\s*|\Z)"""
)
# What labels are called within a larger object, such as the config.json of Hugging Face, the notes
# of tfkit, or the categories of COCO.
_WRAPPERS = ("id2label", "label2id", "labels", "classes", "class_names", "names", "categories",
             "class_indices", "class_to_idx", "idx_to_class", "label_map")  # fmt: skip
_INDEX_KEYS = ("id", "index", "idx", "class_id", "class_index", "label_id", "class_idx")
_NAME_KEYS = ("display_name", "name", "label", "class_name", "label_name", "class", "title")
_INTEGER = re.compile(r"-?\d+", re.ASCII)


def _json(text: str) -> _Found | None:
    """Return the labels of a JSON text; None if it is not JSON.

    Lines of objects (JSONL) and dictionaries as Python prints them are read as well.

    Raises:
        _Unreadable: it is JSON that says nothing about classes, or is broken off.
    """
    if line := _YAML.search(text):
        text = line[1]
    elif not _OPENING.match(text):
        return None
    return _Found(_json_entries(_load(text)))


def _load(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        for other in (_json_lines, ast.literal_eval, _yaml_items):
            load: Callable[[str], Any] = other
            try:
                return load(text.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
        raise _Unreadable(f"it looks like JSON but is not: {error}") from error


def _yaml_items(text: str) -> dict[str, str] | list[str]:
    """Return what YAML holds between brackets: names alone, or each with its number.

    Raises:
        ValueError: it holds something else.
    """
    inner, at, found = text[1:-1].strip(), 0, list[tuple[str | None, str]]()
    while at < len(inner):
        if (item := _YAML_ITEM.match(inner, at)) is None:
            raise ValueError(inner[at:])
        single = item["single"].replace("''", "'") if item["single"] is not None else None
        found.append((item["key"], single or item["double"] or item["plain"] or ""))
        at = item.end()
    keys = [key for key, _ in found if key is not None]
    if len(keys) != (len(found) if text.startswith("{") else 0):
        raise ValueError(text)
    return _unique([(key or "", name) for key, name in found]) if keys else [n for _, n in found]


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line, object_pairs_hook=_unique) for line in text.splitlines() if line]


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Unreadable(f"it has the key {twice!r} twice")
    return found


def _json_entries(content: Any) -> list[_Entry]:
    """Return the classes that a JSON value names.

    Raises:
        _Unreadable: it names none.
    """
    if isinstance(content, Mapping):
        wrapped = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping | list)]
        if wrapped:
            return _agreed({key: _json_entries(content[key]) for key in wrapped})
        return _of_object(content)
    if isinstance(content, list | tuple):
        return [_of_item(item) for item in content]
    raise _Unreadable(f"it holds {_short(content)}, no list and no object")


def _agreed(found: Mapping[str, list[_Entry]]) -> list[_Entry]:
    """Return the first of several lists, if the others say the same."""
    (first, chosen), *others = found.items()
    for key, other in others:
        if _by_index(other) != _by_index(chosen):
            raise _Unreadable(f"its {first!r} and its {key!r} do not say the same")
    return chosen


def _by_index(found: Sequence[_Entry]) -> dict[int, str]:
    return {
        place if each.number is None else each.number: each.names[0]
        for place, each in enumerate(found)
    }


def _of_object(content: Mapping[Any, Any]) -> list[_Entry]:
    """Read names by index, or indices by name: class_indices may be {"0": 0, "1": 1, "10": 2}."""
    numbered = all(_is_integer(key) for key in content)
    if numbered and not all(type(value) is int for value in content.values()):
        return [_Entry(_names(value), int(key)) for key, value in content.items()]
    if all(_is_integer(value) for value in content.values()):
        return [_Entry((str(key),), int(value)) for key, value in content.items()]
    shown = ", ".join(f"{key!r}: {_short(value)}" for key, value in list(content.items())[:2])
    raise _Unreadable(f"{{{shown}, ...}} maps neither indices to names nor names to indices")


def _of_item(item: Any) -> _Entry:
    if isinstance(item, Mapping):
        index = next((item[key] for key in _INDEX_KEYS if _is_integer(item.get(key))), None)
        return _Entry(_names(item), None if index is None else int(index))
    if isinstance(item, list | tuple) and len(item) == 2 and type(item[0]) is int:  # noqa: PLR2004
        return _Entry(_names(item[1]), item[0])
    return _Entry(_names(item))


def _names(value: Any) -> tuple[str, ...]:
    """Return what one class is called; of ["n01440764", "tench"] the last is for people."""
    if isinstance(value, str):
        return (value.strip(),)
    if type(value) is int:
        return (str(value),)
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return (value[-1], *value[:-1])
    if isinstance(value, Mapping):
        found = [value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)]
        if found:
            return tuple(found)
    raise _Unreadable(f"{_short(value)} is not a name")


def _is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and bool(_INTEGER.fullmatch(value)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."  # noqa: PLR2004


_STRING = r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'"
# An item, with messages of one level within it, such as keypoints.
_ITEM = re.compile(rf"item\s*:?\s*\{{((?:[^{{}}\"'#]|{_STRING}|\{{[^{{}}]*\}})*)\}}[\s,;]*")
_FIELD = re.compile(rf"(\w+)\s*:\s*({_STRING}|-?\w+)|\{{[^{{}}]*\}}")
_COMMENT = re.compile(rf"({_STRING})|#[^\n\r]*")
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_SIMPLE = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


def _label_map(text: str) -> _Found | None:
    """Return the labels of a label map; None if the text is not one.

    Raises:
        _Unreadable: it is damaged, or an item has no name or no id.
    """
    bare = _COMMENT.sub(lambda match: match[1] or "", text).strip()
    if not re.match(r"item\s*:?\s*\{", bare):
        return None
    entries, end = [], 0
    while end < len(bare):
        item = _ITEM.match(bare, end)
        if item is None:
            raise _Unreadable(f"it is a label map that breaks off at {bare[end : end + 40]!r}")
        entries.append(_map_entry(item[1]))
        end = item.end()
    return _Found(entries)


def _map_entry(body: str) -> _Entry:
    fields = {match[1]: match[2] for match in _FIELD.finditer(body) if match[1]}
    names = [_text(fields[key]) for key in ("display_name", "name") if key in fields]
    if not names or not fields.get("id", "").lstrip("-").isdigit():
        raise _Unreadable(
            f"an item of its label map has no name or no id: {' '.join(body.split())}"
        )
    return _Entry(tuple(dict.fromkeys(names)), int(fields["id"]))


def _text(quoted: str) -> str:
    """Return a text without its quotes and escapes, which stand for the bytes of UTF-8."""

    def byte(match: re.Match[bytes]) -> bytes:
        octal, hexadecimal, other = match.groups()
        if octal is not None:
            return bytes([int(octal, 8) & 0xFF])
        return bytes([int(hexadecimal, 16)]) if hexadecimal else _SIMPLE.get(other, other)

    return _ESCAPE.sub(byte, quoted[1:-1].encode("utf-8")).decode("utf-8", "replace")


_SEPARATORS = ",;\t|"
_ENDS = re.compile(r"\r\n|\n|\r")
# 0 cat, 0: cat, 0) cat, 0 - cat; but not 0-2 or 0.5.
_NUMBERED = re.compile(r"(\d+)(?:\s*[:;,)=|]\s*|\.\s+|\s+-\s+|\s+)(\S.*)", re.ASCII)
_NUMBER_LAST = re.compile(r"(\S.*?)[\s:=]+(\d+)", re.ASCII)  # cat 0
_SYNSET = re.compile(r"(n\d{8})[\s,:]+(\S.*)", re.ASCII)  # n01440764 tench, Tinca tinca
_BLOCK = re.compile(r"^(?:names|labels|classes|id2label):[ \t]*\r?\n((?:(?:[ \t]+|- ).*\r?\n?)+)",
                    re.MULTILINE)  # fmt: skip
_QUOTED = re.compile(r"([\"'])(.*)\1,?")


def _lines(text: str) -> _Found:
    """Return the labels of lines.

    Numbers are indices where every line has one and they count from 0 or 1; else they are part of
    the names.

    Raises:
        _Unreadable: the lines are numbered with gaps, or a table says two things.
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
    return _Found([_Entry((line,)) for line in lines])


def _yaml_block(text: str) -> str:
    """Return what stands below `names:` in a text that looks like YAML, such as YOLO's."""
    block = _BLOCK.search(text)
    return block[1] if block else text


def _listed(lines: list[str]) -> list[str]:
    """Return `- cat`, `- dog` without what makes them a list."""
    if all(line.startswith("- ") for line in lines if line):
        return [_QUOTED.sub(r"\2", line[2:].strip()) for line in lines]
    return lines


def _table(lines: Sequence[str]) -> _Found | None:
    for separator in _SEPARATORS:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
        widths = {len(row) for row in rows}
        # Fewer rows than lines: a quotation mark that goes on to a later line.
        if len(rows) < len(lines) or len(widths) > 1 or widths == {1}:
            continue
        if found := _of_rows(rows):
            return found
    return None


def _of_rows(rows: list[list[str]]) -> _Found | None:
    columns = range(len(rows[0]))
    heads = [cell.lower().replace(" ", "_").lstrip("#") for cell in rows[0]]
    has_header = not any(_is_integer(cell) for cell in rows[0]) and len(rows) > 1
    body = rows[1:] if has_header else rows
    numbers = [place for place in columns if all(_is_integer(row[place]) for row in body)]
    named = [place for key in _INDEX_KEYS for place in columns if heads[place] == key]
    index = next((place for place in [*named, *numbers] if place in numbers), None)
    names = [place for key in _NAME_KEYS for place in columns if heads[place] == key]
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
    return _Found([_entry(row, index, order) for row in body], remark)


_PLAIN = "give a file of lines with the names alone, in the order of the classes"


def _columns_remark(header: list[str], index: int | None, name: int) -> tuple[str, ...]:
    taken = "" if index is None else f"{header[index]!r} as the index and "
    return (f"the first line is a header; {taken}{header[name]!r} as the name (change: {_PLAIN})",)


def _entry(row: list[str], index: int | None, order: Sequence[int]) -> _Entry:
    names = dict.fromkeys(row[place] for place in order if row[place])
    return _Entry(tuple(names) or ("",), None if index is None else int(row[index]))


def _the_index(body: list[list[str]], numbers: Sequence[int]) -> int:
    """Return which of several columns of numbers is the index."""
    found = [place for place in numbers if _is_complete([int(row[place]) for row in body])]
    if len(found) == 1 or (found and all(row[found[0]] == row[found[-1]] for row in body)):
        return found[0]
    places = shown([place + 1 for place in numbers])
    raise _Unreadable(f"its columns {places} are numbers, and which is the index is not known",
                     remedy="put a line with the header index,name before it")  # fmt: skip


def _counts(body: list[list[str]], place: int) -> bool:
    return _count_up([int(row[place]) for row in body])


def _count_up(numbers: Sequence[int]) -> bool:
    """Say whether numbers count classes, be it with gaps: some order, from 0 or 1."""
    return min(numbers) in {0, 1} and (_is_complete(numbers) or list(numbers) == sorted(numbers))


def _numbered(lines: Sequence[str]) -> _Found | None:
    found = [_NUMBERED.fullmatch(line) for line in lines]
    entries = [_Entry((match[2],), int(match[1])) for match in found if match]
    if len(entries) < len(lines) or not _count_up([each.number or 0 for each in entries]):
        return None
    # 1 euro, 2 euro, 5 euro: what is left without the numbers tells nothing apart.
    return _Found(entries) if _are_different(entries) else None


def _numbered_last(lines: Sequence[str]) -> _Found | None:
    found = [_NUMBER_LAST.fullmatch(line) for line in lines]
    entries = [_Entry((match[1],), int(match[2])) for match in found if match]
    if len(entries) < max(2, len(lines)) or not _is_complete(
        [each.number or 0 for each in entries]
    ):
        return None
    remark = f"the number at the end of each line is taken as the index (change: {_PLAIN})"
    return _Found(entries, (remark,)) if _are_different(entries) else None


def _are_different(entries: Sequence[_Entry]) -> bool:
    return len(entries) == 1 or len({each.names for each in entries}) > 1


def _synsets(lines: Sequence[str]) -> _Found | None:
    found = [match for line in lines if (match := _SYNSET.fullmatch(line))]
    if len(found) < len(lines):
        return None
    names = [match[2] for match in found]
    numbered = _numbered(names)  # n02119789 1 kit_fox
    entries = numbered.entries if numbered else [_Entry((name,)) for name in names]
    return _Found([
        _Entry((*entry.names, match[1]), entry.number)
        for entry, match in zip(entries, found, strict=True)
    ])  # fmt: skip


def _one_line(lines: Sequence[str]) -> _Found | None:
    """Read `cat,dog,cow`, if that is all there is."""
    if len(lines) > 1:
        return None
    for separator in _SEPARATORS:
        (row,) = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        names = [cell.strip() for cell in row if cell.strip()]
        if len(names) > 1:
            remark = (
                f"its one line is taken as a list of {len(names)} names (change: write each name "
                "on a line of its own)"
            )
            return _Found([_Entry((name,)) for name in names], (remark,))
    return None
