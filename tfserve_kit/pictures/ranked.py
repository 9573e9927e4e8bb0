"""Models that answer with the best classes alone, in their own order for each picture."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import ServerFault, UsageError
from tfserve_kit.pictures.heads import Head, Outputs, is_whole, named, rows_of
from tfserve_kit.savedmodel import Signature

_ID_WORDS = ("class", "id", "ind", "label", "top")


def as_ranked(head: Head, signature: Signature, *, is_sorted: bool) -> Head:
    """Return what a head with scores is where their places are not the classes.

    Args:
        head: as `choose_head` found it.
        signature: of the model.
        is_sorted: whether it is proved that the scores are sorted anew for each picture.

    Raises:
        UsageError: they are, and no output says which classes they are of.
    """
    if head.kind != "scores":
        return head
    spec = signature.outputs[head.scores]
    ids = [
        alias
        for alias, each in signature.outputs.items()
        if is_whole(each) and each.shape is not None and spec.shape is not None
        and len(each.shape) == len(spec.shape) > 1 and each.shape[-1] == spec.shape[-1] != 1
        and any(word in alias.lower() for word in _ID_WORDS)
    ]  # fmt: skip
    if not (is_sorted or ids):
        return head
    if not (head.classes or ids):
        raise UsageError(
            f"output {head.scores!r} is sorted for each picture, and no output says which classes "
            "its scores are of",
            remedy="choose another with --output, or export the classes beside their scores",
        )
    return replace(head, kind="ranked", ids=ids[0] if ids else "")


def ranking(
    outputs: Outputs, head: Head, rows: int, labels: Sequence[str] | None, where: str
) -> list[list[tuple[int | None, str | None, float]]]:
    """Return number, name and score of the classes that a model ranks, for each row.

    Raises:
        ServerFault: outputs that contradict each other.
    """
    scores = rows_of(outputs, head.scores, rows, head, where)
    said = [rows_of(outputs, each, rows, head, where) for each in (head.ids, head.classes) if each]
    if any(each.shape != scores.shape for each in said):
        shapes = ", ".join(str(list(each.shape)) for each in (scores, *said))
        raise ServerFault(f"{where}: scores and their classes do not fit together: {shapes}")
    found = []
    for row in range(rows):
        order = np.argsort(-scores[row].astype(np.float64), kind="stable")
        found.append([(*_both(said, (row, at), labels), float(scores[row][at])) for at in order])
    return found


def _both(
    said: Sequence[NDArray[Any]], place: tuple[int, int], labels: Sequence[str] | None
) -> tuple[int | None, str | None]:
    """Return number and name of a class out of the outputs that say one of them."""
    told = [named(each[place], labels) for each in said]
    index = next((index for index, _ in told if index is not None), None)
    return index, next((label for _, label in told if label is not None), None)
