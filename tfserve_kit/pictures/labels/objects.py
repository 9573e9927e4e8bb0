"""Labels as JSON, of the forms that training frameworks write."""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfserve_kit.pictures.labels.entries import Entry, Found, Unreadable

# A list or an object, not a line of text such as `[UNK]`.
_OPENING = re.compile(r"\s*(\{|\[\s*([\"'\[{\]\d-]|$))", re.MULTILINE)
# As YOLO's data.yaml writes it in one line.
_YAML = re.compile(r"^(?:names|labels|classes|id2label):[ \t]*([\[{].*[\]}])\s*$", re.MULTILINE)
# What labels are called within a larger object, such as the config.json of Hugging Face, the notes
# of tfkit, or the categories of COCO.
_WRAPPERS = ("id2label", "label2id", "labels", "classes", "class_names", "names", "categories",
             "class_indices", "class_to_idx", "idx_to_class", "label_map")  # fmt: skip
INDEX_KEYS = ("id", "index", "idx", "class_id", "class_index", "label_id", "class_idx")
NAME_KEYS = ("display_name", "name", "label", "class_name", "label_name", "class", "title")
_INTEGER = re.compile(r"-?\d+", re.ASCII)


def read(text: str) -> Found | None:
    """Return the labels of a JSON text; None if it is none.

    Lines of objects (JSONL) and dictionaries as Python prints them are read as well.

    Raises:
        Unreadable: it is JSON that says nothing about classes, or is broken off.
    """
    if line := _YAML.search(text):
        text = line[1]
    elif not _OPENING.match(text):
        return None
    return Found(entries(_load(text)))


def _load(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        for other in (_json_lines, ast.literal_eval):
            load: Callable[[str], Any] = other
            try:
                return load(text.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
        raise Unreadable(f"it looks like JSON but is not: {error}") from error


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line, object_pairs_hook=_unique) for line in text.splitlines() if line]


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Unreadable(f"it has the key {twice!r} twice")
    return found


def entries(content: Any) -> list[Entry]:
    """Return the classes that a JSON value names.

    Raises:
        Unreadable: it names none.
    """
    if isinstance(content, Mapping):
        wrapped = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping | list)]
        if wrapped:
            return _agreed({key: entries(content[key]) for key in wrapped})
        return _of_object(content)
    if isinstance(content, list | tuple):
        return [_of_item(item) for item in content]
    raise Unreadable(f"it holds {_short(content)}, no list and no object")


def _agreed(found: Mapping[str, list[Entry]]) -> list[Entry]:
    """Return the first of several lists, if the others say the same."""
    (first, chosen), *others = found.items()
    for key, other in others:
        if _by_index(other) != _by_index(chosen):
            raise Unreadable(f"its {first!r} and its {key!r} do not say the same")
    return chosen


def _by_index(found: Sequence[Entry]) -> dict[int, str]:
    return {
        place if each.index is None else each.index: each.names[0]
        for place, each in enumerate(found)
    }


def _of_object(content: Mapping[Any, Any]) -> list[Entry]:
    """Read names by index, or indices by name: class_indices may be {"0": 0, "1": 1, "10": 2}."""
    numbered = all(_is_integer(key) for key in content)
    if numbered and not all(type(value) is int for value in content.values()):
        return [Entry(_names(value), int(key)) for key, value in content.items()]
    if all(_is_integer(value) for value in content.values()):
        return [Entry((str(key),), int(value)) for key, value in content.items()]
    shown = ", ".join(f"{key!r}: {_short(value)}" for key, value in list(content.items())[:2])
    raise Unreadable(f"{{{shown}, ...}} maps neither indices to names nor names to indices")


def _of_item(item: Any) -> Entry:
    if isinstance(item, Mapping):
        index = next((item[key] for key in INDEX_KEYS if _is_integer(item.get(key))), None)
        return Entry(_names(item), None if index is None else int(index))
    if isinstance(item, list | tuple) and len(item) == 2 and type(item[0]) is int:  # noqa: PLR2004
        return Entry(_names(item[1]), item[0])
    return Entry(_names(item))


def _names(value: Any) -> tuple[str, ...]:
    """Return what one class is called; of ["n01440764", "tench"] the last is for people."""
    if isinstance(value, str):
        return (value.strip(),)
    if type(value) is int:
        return (str(value),)
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return (value[-1], *value[:-1])
    if isinstance(value, Mapping):
        found = [value[key] for key in NAME_KEYS if isinstance(value.get(key), str)]
        if found:
            return tuple(found)
    raise Unreadable(f"{_short(value)} is no name")


def _is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and bool(_INTEGER.fullmatch(value)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."  # noqa: PLR2004
