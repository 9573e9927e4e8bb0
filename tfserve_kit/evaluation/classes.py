"""Which class of a model a label means."""

from collections.abc import Iterable, Mapping, Sequence

from tfserve_kit.errors import InvalidRequest, UsageError, did_you_mean
from tfserve_kit.evaluation.examples import Label


class Classes:
    """Translates the labels of a set into a model's class indices.

    A number is an index. A name is looked up in the model's labels; where those are not known,
    names that are all whole numbers are indices, and others stand in sorted order for the classes.

    Args:
        labels: names of the model's classes in its order; None if they are not known.
        names: the names that the set uses.
    """

    def __init__(self, labels: Sequence[str] | None, names: Iterable[str]) -> None:
        self._labels = None if labels is None else tuple(labels)
        used = sorted(names)
        self._sorted: tuple[str, ...] | None = None
        if self._labels is None and not all(_is_index(name) for name in used):
            self._sorted = tuple(used)
        known = self._labels or self._sorted or ()
        # Of labels that occur twice the first counts, as it does when scores tie.
        self._index: Mapping[str, int] = {
            name: index for index, name in reversed(list(enumerate(known)))
        }

    @property
    def is_guessed(self) -> bool:
        """Whether classes were numbered by sorting their names."""
        return self._sorted is not None

    def index(self, label: Label) -> int:
        """Return the class index of a label.

        Raises:
            InvalidRequest: the model has no such class.
        """
        if isinstance(label, int):
            return label
        if label in self._index:
            return self._index[label]
        if _is_index(label):
            return int(label)
        raise InvalidRequest(
            f"the model has no class {label!r} ({did_you_mean(label, self._index)})"
        )

    def name(self, index: int) -> str:
        """Return the name of a class, its index where it has none."""
        known = self._labels or self._sorted or ()
        return known[index] if index < len(known) else str(index)

    def require(self, classes: int) -> None:
        """Check that the names are as many as the scores of the model.

        Raises:
            UsageError: they are not.
        """
        if self._labels is not None and len(self._labels) != classes:
            raise UsageError(
                f"{len(self._labels)} labels for a model with {classes} classes",
                remedy="give --labels with one label on each line, in the order of the classes",
            )
        if self._sorted is not None and len(self._sorted) != classes:
            raise UsageError(
                f"the set has {len(self._sorted)} classes, the model {classes}, and which is which "
                "is not known",
                remedy="give --labels with the names of all of the model's classes, in its order",
            )


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdigit()
