"""Labelled examples, read one at a time, from files of their own or from rows of a stream."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.pictures.files import read_file

# An encoded picture; or its pixels, uint8; or a row of the model's input, of any other type.
Content = bytes | NDArray[Any]
# The name of a class as it is written somewhere, or its index where a format stores numbers.
Label = str | int


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled example.

    Attributes:
        index: its place in the set, from 0.
        name: what to call it: its file, or its place in one, such as `digits.npz[7]`.
        label: the class it belongs to.
        load: returns its content; raises InvalidRequest if there is none to be had.
    """

    index: int
    name: str
    label: Label
    load: Callable[[], Content]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What stands in a set and is no example, such as a file that is no picture."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a set besides its examples.

    Attributes:
        left_out: what stands in it and is no example.
        remarks: what was taken for granted to read it so, a sentence each.
        empty_classes: names of classes without examples.
        doubt: why its names of classes may be none, unless the model knows them; None for no doubt.
    """

    left_out: Sequence[LeftOut] = ()
    remarks: Sequence[str] = ()
    empty_classes: frozenset[str] = frozenset()
    doubt: UsageError | None = None


_NOTHING = About()


class Dataset(Protocol):
    """A labelled set on disk.

    Attributes:
        source: what to call it.
        class_names: every label that is a name; empty where labels are indices.
        indices: every label that is an index.
        ready: whether it holds rows of a model's input, to be sent as they are, not pictures.
        about: what is known of it besides.
    """

    source: str
    class_names: frozenset[str]
    indices: frozenset[int]
    ready: bool
    about: About

    def __len__(self) -> int: ...

    def examples(self, wanted: Collection[int]) -> Iterator[Example]:
        """Yield the examples of some indices, in rising order, reading as little as is needed."""


def choose(total: int, count: int | None, seed: int | None) -> range | list[int]:
    """Return the indices of the examples to use, in rising order.

    Args:
        total: size of the set.
        count: how many to use; None for all.
        seed: draw them at random; None takes the first.
    """
    if count is None or count >= total:
        return range(total)
    if seed is None:
        return range(count)
    return sorted(np.random.default_rng(seed).choice(total, count, replace=False).tolist())


class Files:
    """Pictures in files of their own; a `Dataset`.

    Args:
        source: what to call the set.
        entries: file, name and label of each.
        unproved: labels that no picture stands for, so that they may be none.
        about: see `Dataset`.
    """

    ready = False
    indices: frozenset[int] = frozenset()

    def __init__(
        self,
        source: str,
        entries: Sequence[tuple[Path, str, str]],
        *,
        unproved: Collection[str] = (),
        about: About = _NOTHING,
    ) -> None:
        self.source, self.about = source, about
        self._entries = entries
        found = frozenset(label for _, _, label in entries)
        self.class_names = (found - frozenset(unproved)) | about.empty_classes

    def __len__(self) -> int:
        return len(self._entries)

    def examples(self, wanted: Collection[int]) -> Iterator[Example]:
        """Yield examples; see `Dataset`."""
        for index in wanted:
            file, name, label = self._entries[index]
            yield Example(index, name, label, _reader(file))


def _reader(file: Path) -> Callable[[], bytes]:
    return lambda: read_file(file)


class Rows:
    """Examples that are rows of one stream, read from its start each time; a `Dataset`.

    Args:
        source: what to call the set.
        labels: label of each row.
        rows: opens the stream and yields each row, or what is wrong with it.
        ready: see `Dataset`.
        about: see `Dataset`.
    """

    def __init__(
        self,
        source: str,
        labels: Sequence[Label],
        rows: Callable[[], Iterator[Content | InvalidRequest]],
        *,
        ready: bool = False,
        about: About = _NOTHING,
    ) -> None:
        self.source, self.ready, self.about = source, ready, about
        self.class_names = frozenset(label for label in labels if isinstance(label, str))
        self.indices = frozenset(label for label in labels if isinstance(label, int))
        self._labels, self._rows = labels, rows

    def __len__(self) -> int:
        return len(self._labels)

    def examples(self, wanted: Collection[int]) -> Iterator[Example]:
        """Yield examples; see `Dataset`."""
        chosen = wanted if isinstance(wanted, range) else frozenset(wanted)
        last = max(chosen, default=-1)
        if last < 0:
            return
        for index, row in enumerate(self._rows()):
            if index in chosen:
                name = f"{self.source}[{index}]"
                yield Example(index, name, self._labels[index], _given(row, name))
            if index == last:
                return


def _given(row: Content | InvalidRequest, name: str) -> Callable[[], Content]:
    def load() -> Content:
        if isinstance(row, InvalidRequest):
            raise InvalidRequest(f"{name}: {row.message}", remedy=row.remedy)
        return row

    return load
