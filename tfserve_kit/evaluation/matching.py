"""Names of classes as they are written in different places: which mean the same."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tfserve_kit.pictures.labels import Labels

_GAPS = re.compile(r"[\s_-]+")


def normal(name: str) -> str:
    """Return a name without what differs between systems: case, gaps, accents' forms, zeros."""
    plain = _GAPS.sub(" ", unicodedata.normalize("NFKC", name).casefold()).strip()
    return str(int(plain)) if plain.isascii() and plain.isdigit() else plain


def is_number(name: str) -> bool:
    """Say whether a name is a whole number."""
    return name.isascii() and name.isdigit()


def written_alike(names: Iterable[str]) -> list[list[str]]:
    """Return the names that differ only in how they are written, in groups."""
    groups = defaultdict(list)
    for name in sorted(names):
        groups[normal(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


class Lookup:
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
            alike[normal(name)].add(index)
        self._alike = {name: min(found) for name, found in alike.items() if len(found) == 1}

    def __call__(self, name: str) -> int | None:
        """Return the index of a class; None where no class has such a name."""
        found = self._exact.get(name)
        return found if found is not None else self._alike.get(normal(name))
