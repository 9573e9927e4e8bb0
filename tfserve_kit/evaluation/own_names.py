"""Names of classes that a model answers with: what it says itself needs no guess."""

import contextlib

from tfserve_kit.clients import Client, Target
from tfserve_kit.errors import RequestError, UsageError
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.examples import Dataset
from tfserve_kit.evaluation.subjects import Subject
from tfserve_kit.pictures.heads import Outputs
from tfserve_kit.pictures.labels import Labels
from tfserve_kit.pictures.model import PictureModel

_SOURCE = "the model's own answer"
_TRIES = 16  # a picture or two may be damaged


def ask(
    client: Client, target: Target, model: PictureModel, dataset: Dataset, timeout_s: float
) -> Labels | None:
    """Return the names that a model gives its classes in an answer; None where it gives none.

    Args:
        client: a connection.
        target: where the request goes.
        model: what goes in and comes out.
        dataset: the first example of it that can be used is sent.
        timeout_s: deadline of the request, in seconds.
    """
    if model.head.kind != "scores" or not model.head.classes:
        return None
    asked = Subject("", target, 0, model, Classes(None, ()))
    for example in dataset.examples(range(min(len(dataset), _TRIES))):
        with contextlib.suppress(RequestError):  # the run will tell of it
            row = asked.row(example.load(), example.name)
            rows = model.input.rows or 1
            inputs = model.inputs([row] * rows, [(example.name, example.index)] * rows)
            outputs = client.predict(target, inputs, timeout_s=timeout_s).outputs
            scores, _ = model.scores(outputs, rows, str(target))
            found = model.labels_in(outputs, scores.shape)
            return Labels(found[0], source=_SOURCE) if found else None
    return None


def require_same(subject: Subject, outputs: Outputs, shape: tuple[int, ...]) -> None:
    """Check that each row of an answer has its classes in the order of the first answer.

    Raises:
        UsageError: the model sorts them anew for each picture.
    """
    known = subject.classes.labels
    if known is None or known.source != _SOURCE:
        return
    for row in subject.model.labels_in(outputs, shape) or []:
        if row != tuple(known):
            raise UsageError(
                f"{subject.target} names its classes in another order, or other ones, for each "
                f"picture, such as {row[0]!r} first, then {known[0]!r}",
                remedy="evaluate an output with the scores of all classes in one order: --output, "
                "and --labels with their names",
            )
