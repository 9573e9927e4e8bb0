"""Which class of a model a label means, and what was taken for granted to know it."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tfserve_kit.errors import InvalidRequest, ServerFault, UsageError, did_you_mean
from tfserve_kit.evaluation.examples import Dataset, Label
from tfserve_kit.pictures.labels import MOST_SHOWN, Labels, shown

_GAPS = re.compile(r"[\s_-]+")


def _normal(name: str) -> str:
    """Return a name without what differs between systems: case, gaps, accents' forms, zeros."""
    plain = _GAPS.sub(" ", unicodedata.normalize("NFKC", name).casefold()).strip()
    return str(int(plain)) if plain.isascii() and plain.isdigit() else plain


def _is_number(name: str) -> bool:
    """Say whether a name is a whole number."""
    return name.isascii() and name.isdigit()


def _written_alike(names: Iterable[str]) -> list[list[str]]:
    """Return the names that differ only in how they are written, in groups."""
    groups = defaultdict(list)
    for name in sorted(names):
        groups[_normal(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


class _Lookup:
    """Finds the class that a name means: written the same, by another name of it, or alike.

    Args:
        labels: names of the classes; of those that are equal the first counts, as it does when
            scores tie.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        known = Labels.of(labels)
        self._exact = {name: index for index, name in reversed(list(enumerate(known)))}
        self._exact = {**known.aliases, **self._exact}
        alike: dict[str, set[int]] = defaultdict(set)
        for name, index in self._exact.items():
            alike[_normal(name)].add(index)
        self._alike = {name: min(found) for name, found in alike.items() if len(found) == 1}

    def __call__(self, name: str) -> int | None:
        """Return the index of a class; None where no class has such a name."""
        found = self._exact.get(name)
        return found if found is not None else self._alike.get(_normal(name))


_NAME_ALL = (
    "give --labels FILE with the names of all the model's classes, one a line, in the model's order"
)
_RENAME = "rename or remove it in the set, or give --labels FILE with the names that the set uses"

# Up to so many classes their numbers in order are their numbers sorted as texts.
_ONE_DIGIT = 10
_MOST_CLASSES = 1_000_000  # a table has a row for each


class Classes:
    """Translates the labels of a set into a model's class indices.

    A number is an index, less the number of the first class. A name is looked up in the model's
    labels; where those are not known, names that are all whole numbers are indices, and others
    stand in sorted order for the classes.

    Args:
        labels: names of the model's classes in its order; None if they are not known.
        names: the names that the set uses.
        numbers: the indices that the set uses, or the lowest and the highest of them.
        first_class: the number of the set's first class; None if the user does not say, then 0.
        are_answered: whether the model names classes in its answers, so that nothing is guessed.
    """

    def __init__(
        self,
        labels: Sequence[str] | None,
        names: Iterable[str],
        *,
        numbers: Iterable[int] = (),
        first_class: int | None = None,
        are_answered: bool = False,
    ) -> None:
        self._are_answered = are_answered
        self._labels = None if labels is None else Labels.of(labels)
        self._names = sorted(set(names))
        self._first = first_class or 0
        self._sorted: tuple[str, ...] | None = None
        if self._labels is None and not all(map(_is_number, self._names)):
            self._sorted = tuple(self._names)
        self._lookup = _Lookup(self.known)
        self._numbers = sorted({*numbers, *(int(name) for name in self._names_of_numbers())})
        if first_class is not None and not self._numbers:
            raise UsageError(
                "--first-class is for classes that are numbers, and those of the set are names: "
                f"{shown(self._names)}",
                remedy="leave out --first-class; --labels FILE says which name is which class",
            )
        self._count: int | None = None

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        labels: Sequence[str] | None,
        first_class: int | None = None,
        *,
        are_answered: bool = False,
    ) -> "Classes":
        """Return the classes of a set, once it is known which of its names count.

        Raises:
            UsageError: the set's names of classes may be none, and the model's do not prove them.
        """
        used = dataset.class_names - dataset.empty_classes
        if dataset.doubt is not None:
            lookup = _Lookup(labels or ())
            if not used or any(lookup(name) is None for name in used):
                raise dataset.doubt
        # An empty folder was a class to whoever trained on such folders, and sorted them.
        names = dataset.class_names if labels is None else used
        return cls(
            labels,
            names,
            numbers=dataset.indices,
            first_class=first_class,
            are_answered=are_answered,
        )

    @property
    def known(self) -> Sequence[str]:
        """The names of the classes that have one."""
        return self._labels or self._sorted or ()

    @property
    def labels(self) -> Labels | None:
        """The names of the model's classes; None where they are not known."""
        return self._labels

    def _names_of_numbers(self) -> list[str]:
        """Return the names that are taken as indices."""
        if self._sorted is not None:
            return []
        return [name for name in self._names if _is_number(name) and self._lookup(name) is None]

    def index(self, label: Label) -> int:
        """Return the class index of a label.

        Raises:
            InvalidRequest: the model has no such class.
        """
        if isinstance(label, int):
            return label - self._first
        if (found := self._lookup(label)) is not None:
            return found
        if _is_number(label):
            return int(label) - self._first
        raise InvalidRequest(
            f"the model has no class {label!r}", remedy=f"{self._nearest(label)}; {_RENAME}"
        )

    def answered(self, index: int | None, name: str | None) -> int:
        """Return the class index of a class that a model answers with, by its number or its name.

        Raises:
            ServerFault: that is not the number of a class.
            UsageError: nothing tells which class of the set that is.
        """
        if name is not None and (index is None or self._are_answered):
            return self._answered_name(name)
        place = (index or 0) - (self._labels.first if self._labels is not None else 0)
        if not 0 <= place < _MOST_CLASSES:
            raise ServerFault(
                f"the model answers with class {index}, and classes are counted from 0",
                remedy="choose another output with --output; `tfkit metadata` lists them",
            )
        if self._sorted is not None and place >= len(self._sorted):
            raise UsageError(
                f"the model answers with class {index}, and the set has {len(self._sorted)} "
                f"classes: {shown(self._sorted)}; it is not known which is which",
                remedy=_NAME_ALL,
            )
        return place

    def _answered_name(self, name: str) -> int:
        if (found := self._lookup(name)) is not None:
            return found
        if self._labels is not None:
            self._labels = self._labels.extended(name)
        elif self._sorted is not None:
            self._sorted = (*self._sorted, name)
        elif _is_number(name):
            return int(name) - self._first
        else:
            raise UsageError(
                f"the model answers with the class {name!r}, and the classes of the set are "
                "numbers",
                remedy="give --labels with the names of the model's classes, in the set's order",
            )
        self._lookup = _Lookup(self.known)
        return len(self.known) - 1

    def _nearest(self, name: str) -> str:
        near = did_you_mean(name, self.known)
        return near if near.startswith("did") else f"the model has: {shown(self.known)}"

    def name(self, index: int) -> str:
        """Return the name of a class, its number in the set where it has none."""
        known = self.known
        return known[index] if index < len(known) else str(index + self._first)

    def require(self, classes: int, *, is_one_column: bool = False) -> None:
        """Bring the names to the number of scores of the model, and check what the set says.

        Args:
            classes: how many the model has.
            is_one_column: whether it answers with one score, that of the second of two.

        Raises:
            UsageError: the names are more or fewer, or the set's numbers are beyond the model's.
        """
        if classes == self._count:
            return
        if self._labels is not None:
            self._labels = self._labels.fit(classes, is_one_column=is_one_column)
            self._lookup = _Lookup(self._labels)
        if self._sorted is not None and len(self._sorted) != classes:
            raise UsageError(
                f"the set has {len(self._sorted)} classes ({shown(self._sorted)}), the model "
                f"{classes} (numbers 0 to {classes - 1}, names not known), and it is not known "
                "which is which",
                remedy=self._way_out(classes, is_one_column=is_one_column),
            )
        self._require_numbers(classes)
        self._count = classes

    def _way_out(self, classes: int, *, is_one_column: bool) -> str:
        """Return what to do where the set has more or fewer classes than the model."""
        more = len(self._sorted or ()) - classes
        if more < 0:
            return f"{_NAME_ALL}, including those not in the set"
        drop = "the extra class" if more == 1 else f"the {more} extra classes"
        measured = "; if its one number is a measurement, it has no classes" * is_one_column
        return f"remove {drop} from the set, or {_NAME_ALL}{measured}"

    def _require_numbers(self, classes: int) -> None:
        if not self._numbers:
            return
        lowest, highest = self._numbers[0], self._numbers[-1]
        if lowest >= self._first and highest - self._first < classes:
            return
        last = classes - 1 + self._first
        text = (
            f"the classes of the set are numbered {lowest} to {highest}, and those of the model "
            f"{self._first} to {last}"
        )
        remedy = _NAME_ALL
        if lowest > self._first and highest == last + lowest - self._first:
            remedy = (
                f"give --first-class {lowest} if class {lowest} of the set is the model's first"
            )
        raise UsageError(text, remedy=remedy)

    def agree(self, dataset: Dataset, classes: int | None, *, is_one_column: bool = False) -> None:
        """Check that the set and the model have the same classes, before anything is sent.

        Args:
            dataset: the set whose classes these are.
            classes: how many the model has, if that is known.
            is_one_column: see `require`.

        Raises:
            UsageError: the model lacks classes that the set names, both lists are shown; or
                another one of `require`.
        """
        if classes is not None:
            self.require(classes, is_one_column=is_one_column)
        lacking = [
            name for name in self._names if not _is_number(name) and self._lookup(name) is None
        ]
        if not lacking:
            return
        source = (self._labels.source if self._labels is not None else "") or "the model's names"
        if len(lacking) == len(self._names):
            text = f"no class of {dataset.source} ({shown(lacking)}) is in"
        else:
            verb = "is" if len(lacking) == 1 else "are"
            text = f"{shown([*map(repr, lacking)])} of {dataset.source} {verb} not in"
        raise UsageError(
            f"{text} {source} ({shown(self.known)})",
            remedy=f"{self._hints(lacking)}where the model knows a class by another name, give "
            "--labels FILE with the set's names, one a line, in the order of "
            f"{source}; remove from the set the folders, or the rows, of classes that the model "
            "does not know",
        )

    def _hints(self, lacking: Sequence[str]) -> str:
        """Return which name of the model may be meant by which of the set, where some are near."""
        near = {name: did_you_mean(name, self.known) for name in lacking[:MOST_SHOWN]}
        pairs = [
            f"{found.removeprefix('did you mean ').removesuffix('?')} for {name}"
            for name, found in near.items()
            if found.startswith("did")
        ]
        return f"did you mean {', '.join(pairs)}? Else: " if pairs else ""

    def remarks(self) -> list[str]:
        """Return what was taken for granted, and what is odd, a sentence each."""
        return [
            *(self._labels.remarks if self._labels is not None else ()),
            *self._remarks_on_order(),
            *self._remarks_on_numbers(),
            *self._remarks_on_names(),
        ]

    def _remarks_on_order(self) -> Iterator[str]:
        if self._sorted is not None and not self._are_answered:
            last = len(self._sorted) - 1
            yield (
                f"the model's classes 0 to {last} are the set's, sorted by name: "
                f"{shown(self._sorted)} (change: --labels FILE with the names in the model's order)"
            )

    def _remarks_on_numbers(self) -> Iterator[str]:
        if not self._numbers:
            return
        lowest, highest = self._numbers[0], self._numbers[-1]
        if self._first:
            yield (
                f"the set's classes are counted from {self._first}: class {self._first} is the "
                "model's first (change: --first-class N)"
            )
            return
        if lowest == 1 and self._count is not None:
            yield (
                "the set's numbers begin at 1, and are the model's class indices, counted from 0 "
                "(change: --first-class 1, if the set counts from 1)"
            )
        if self._names_of_numbers() and highest >= _ONE_DIGIT and self._labels is None:
            yield (
                "names that are numbers are the model's class indices (change: --labels FILE; a "
                "model that was trained on folders sorted as texts, 0, 1, 10, 11, 2, needs it)"
            )
        elif self._names_of_numbers() and self._labels is not None:
            numbers = shown(self._names_of_numbers())
            yield (
                f"names that are numbers are class indices: {numbers} (change: have the file of "
                "--labels name them)"
            )

    def _remarks_on_names(self) -> Iterator[str]:
        for group in _written_alike(self._names):
            yield (
                f"classes that differ only in how they are written are different: {shown(group)} "
                "(change: rename them in the set)"
            )
        if self._labels is None:
            return
        found = {name: self._lookup(name) for name in self._names}
        other = [
            f"{name} is {self._labels[index]}"
            for name, index in found.items()
            if index is not None and name != self._labels[index]
        ]
        if other:
            yield (
                f"classes of the set that the model writes otherwise: {shown(other)} (change: "
                "--labels FILE with the set's names)"
            )
        missing = sorted({*range(len(self._labels))} - {*found.values()})
        if self._names and missing and not self._numbers:
            names = shown([self._labels[index] for index in missing])
            yield (
                f"the set has no examples of {len(missing)} of the model's classes: {names}; the "
                "error rate says nothing of these (change: add pictures of them)"
            )
