"""Class scores: sorted, with index and name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class: its index in the score vector, its name (None where unknown) and its score."""

    index: int
    label: str | None
    score: float


def top_scores(scores: NDArray[Any], labels: Sequence[str] | None, count: int) -> list[ClassScore]:
    """Return the best classes, best first; the lower index wins a tie.

    Args:
        scores: number [classes].
        labels: a name for each class, None if they are unknown.
        count: how many to return, at most.

    Raises:
        UsageError: there is another number of labels than of classes.
    """
    if labels is not None and len(labels) != len(scores):
        raise UsageError(
            f"{len(labels)} labels for a model with {len(scores)} classes",
            remedy="give a file with one label on each line, in the order of the classes",
        )
    order = np.argsort(-scores.astype(np.float64), kind="stable")[:count]
    return [
        ClassScore(int(i), labels[int(i)] if labels is not None else None, float(scores[i]))
        for i in order
    ]


def read_labels(file: Path) -> tuple[str, ...]:
    """Read a label file: UTF-8, one label on each line; blank lines at the end do not count.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        return tuple(file.read_text("utf-8-sig").rstrip("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the labels in {file}: {error}") from error
