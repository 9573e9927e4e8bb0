"""Class scores: sorted, with index and name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.pictures.labels import Labels
from tfserve_kit.pictures.labels import read as read_labels

__all__ = ["ClassScore", "read_labels", "top_scores"]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class: its index in the score vector, its name and its score; None what is unknown."""

    index: int | None
    label: str | None
    score: float | None


def top_scores(scores: NDArray[Any], labels: Sequence[str] | None, count: int) -> list[ClassScore]:
    """Return the best classes, best first; the lower index wins a tie.

    Args:
        scores: number [classes].
        labels: a name for each class, brought to their number by `Labels.fit`; None if they are
            unknown.
        count: how many to return, at most.

    Raises:
        UsageError: there is another number of labels than of classes.
    """
    names = None if labels is None else Labels.of(labels).fit(len(scores))
    order = np.argsort(-scores.astype(np.float64), kind="stable")[:count]
    return [
        ClassScore(int(i), names[int(i)] if names is not None else None, float(scores[i]))
        for i in order
    ]
