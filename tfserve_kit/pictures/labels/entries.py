"""What a label file holds, whatever its form: names, in order or with an index each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tfserve_kit.pictures.labels.names import MOST_SHOWN, Labels, shown


class Unreadable(ValueError):
    """A label file says nothing, or two things at once; `remedy` is what its owner can do."""

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Entry:
    """One class.

    Attributes:
        names: what it is called, first the name to show.
        index: its number as the file counts; None where its place says it.
    """

    names: tuple[str, ...]
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What was read.

    Attributes:
        entries: the classes, in the order of the file.
        remarks: what was taken for granted to read them so.
    """

    entries: Sequence[Entry]
    remarks: tuple[str, ...] = ()


def is_complete(indices: Sequence[int]) -> bool:
    """Say whether numbers are 0, 1, 2, ... or 1, 2, 3, ... in any order."""
    return min(indices, default=-1) in {0, 1} and sorted(indices) == list(
        range(min(indices), min(indices) + len(indices))
    )


def as_labels(found: Found, source: str) -> Labels:
    """Return labels in the order of their indices.

    Raises:
        Unreadable: there are none, or the indices have gaps or name two classes at once.
    """
    if not found.entries:
        raise Unreadable("it holds no labels")
    first = 0
    entries = found.entries
    if any(each.index is not None for each in entries):
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
        yield f"blank lines are the names of the classes {shown(blank)}"
    for name, places in list(labels.repeated().items())[:MOST_SHOWN]:
        classes = shown([place + labels.first for place in places])
        yield f"several classes have the name {name!r}: {classes}"


def _index(entry: Entry) -> int:
    if entry.index is None:
        raise Unreadable(f"{entry.names[0]!r} has no index, and others have one")
    return entry.index


def _require_complete(indices: Sequence[int]) -> None:
    if is_complete(indices):
        return
    lowest, highest = min(indices), max(indices)
    if lowest < 0:
        raise Unreadable(f"it has the index {lowest}, which is below 0")
    if twice := [index for index, count in Counter(indices).items() if count > 1]:
        text = f"several names have the index {shown(twice)}"
        raise Unreadable(text, remedy="give each class an index of its own")
    start = min(lowest, 1)
    missing = _missing(set(indices), start, highest)
    text = f"its indices run from {lowest} to {highest}, and {shown(missing)} is missing"
    raise Unreadable(text, remedy="name every class, from 0 (or from 1) without gaps; where the "
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
