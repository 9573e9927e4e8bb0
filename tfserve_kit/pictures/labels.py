"""The names of a model's classes, in its order, and how they are brought to its number of them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from tfserve_kit.errors import UsageError

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
            text = f"{self.source or 'the label'}: class 1 is {self[0]!r}, class 0 is not"
            return self._changed((f"not {self[0]}", self[0]), 1, text)
        if self.first == 1 and len(self) == classes:
            text = f"{self.source} counts from 1: class 0 is {self[0]!r}"
            return self._changed(self, 0, text)
        if self.first == 1 and len(self) == classes - 1:
            text = f"{self.source} counts from 1: class 0, which it does not name, is background"
            return self._changed((_BACKGROUND, *self), 1, text)
        if self.first == 0 and len(self) == classes:
            return self
        if self.first == 0 and len(self) == classes + 1 and _is_extra(self[0]):
            where = self.source or "the labels"
            text = f"{where}: the first label, {self[0]!r}, is left out: it is one too many"
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
            remedy += f"; if class 0 is none of these, put {_BACKGROUND!r} on a line before them"
        return UsageError(text, remedy=remedy)


def _is_extra(name: str) -> bool:
    return name.strip().lower() in _BACKGROUNDS | _HEADINGS


def shown(values: Sequence[object]) -> str:
    """Return the first few of many, and how many more there are."""
    more = len(values) - MOST_SHOWN
    text = ", ".join(map(str, values[:MOST_SHOWN])) or "none"
    return f"{text} and {more} more" if more > 0 else text
