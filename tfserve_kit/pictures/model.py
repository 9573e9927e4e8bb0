"""A model that takes pictures, without any server: what goes in, and what its answers mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError
from tfserve_kit.pictures.graph import PictureGraph, ScoreKind
from tfserve_kit.pictures.inputs import Choice, Companions, ImageInput, Source, image_input, told
from tfserve_kit.pictures.outputs import (
    Head,
    Outputs,
    are_one_row,
    are_probabilities,
    as_probabilities,
    as_ranked,
    choose_head,
    class_count,
    class_scores,
    is_one_column,
    is_usual,
    two_classes,
)
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature
from tfserve_kit.tensors import dtypes

# What scores are: told by their values, or made so on request.
Meaning = Literal[
    "probabilities",
    "a probability for each class",
    "logits or other scores",
    "one probability",
    "scores of the best classes",
    "classes",
    "boxes",
]

_NOTHING = Preprocessing()


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """What is said about a model that its signature does not say.

    Attributes:
        note: how pictures are prepared, as stored with the version.
        options: the same as the caller says; it wins over the note.
        output: alias of the output to show; empty to find it.
        softmax: turn scores into probabilities.
        picture_input: alias of the input that takes pictures; empty to find it.
        companions: text of the value of each further input, see `Companions`.
    """

    note: Preprocessing = _NOTHING
    options: Preprocessing = _NOTHING
    output: str = ""
    softmax: bool = False
    picture_input: str = ""
    companions: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> Sequence[str] | None:
        """The names of the classes, None where nobody says them."""
        return self.note.overridden_by(self.options).labels


class PictureModel:
    """What a signature takes and says; found out once. Thread-safe.

    Args:
        signature: of the model.
        asked: what is known beside it.
        graph: the version's graph, where it can be read here: it tells what else is open.
        ready: whether what is sent are rows of the input, not pictures.

    Attributes:
        input: the input for the pictures.
        head: the outputs that are read.
        labels: the names of its classes, None where nobody says them.
        classes: how many classes there are scores for, as far as the signature says it.
        answers_with_names: whether the class that it answers with, if it does, is a name.
        is_one_column: whether the scores are one number for each picture, that of class 1.
        choices: what was decided about inputs and output, and by what.

    Raises:
        UsageError: the signature takes no picture, or it is not clear what it says of one.
    """

    def __init__(
        self,
        signature: Signature,
        asked: PictureOptions,
        graph: PictureGraph | None = None,
        *,
        ready: bool = False,
    ) -> None:
        self.labels = asked.labels
        self.input = _ready_input(signature, asked) if ready else _input(signature, asked, graph)
        self._companions = Companions(signature, self.input.alias, asked.companions)
        batched = self.input.batched or are_one_row(signature)
        self.head = choose_head(signature, asked.output, batched=batched)
        self._made_by = graph.output(self.head.scores) if graph and self.head.scores else None
        self.head = as_ranked(self.head, signature, is_sorted=self._made_by == "top_k")
        if asked.softmax and self.head.kind == "ranked":
            raise UsageError(
                f"output {self.head.scores!r} holds the best classes' scores alone, and --softmax "
                "needs those of all classes",
                remedy="leave out --softmax, or choose an output with all scores by --output",
            )
        self._softmax = asked.softmax
        self.classes = class_count(self.head, signature)
        self.is_one_column = self.head.kind == "scores" and is_one_column(
            self.head, signature.outputs[self.head.scores]
        )
        self.answers_with_names = (
            self.head.kind in {"class", "ranked"}
            and self.head.classes in signature.outputs
            and signature.outputs[self.head.classes].dtype is dtypes.STRING
        )
        self.choices = (
            *self.input.choices,
            *self._companions.choices,
            _output_choice(self.head, signature, asked, graph),
        )

    def __str__(self) -> str:
        """Tell what was decided, but for what the input's shape leaves no doubt about."""
        return told(self.input.alias, self.choices)

    @property
    def assumed(self) -> list[str]:
        """What was decided though nothing shows that it is so."""
        return [
            f"{each.what} {each.value} ({each.change})"
            for each in self.choices
            if each.source == "assumed"
        ]

    def inputs(
        self, rows: Sequence[NDArray[Any]], pictures: Sequence[tuple[str, int]]
    ) -> dict[str, NDArray[Any]]:
        """Return the value of each input.

        Args:
            rows: prepared pictures.
            pictures: name and number of each.
        """
        values = self._companions.values(pictures)
        values[self.input.alias] = self.input.join(rows)
        return values

    def scores(
        self, outputs: Outputs, rows: int, where: str
    ) -> tuple[NDArray[np.float64], Meaning]:
        """Return the scores of each class, and what they are.

        Args:
            outputs: of an answer.
            rows: how many pictures were sent.
            where: named in errors.

        Returns:
            float64 [rows, classes], with two classes at least.

        Raises:
            ServerFault: the output has another shape.
            UsageError: the model gives no scores, or one column that is not a probability.
        """
        if self.head.kind != "scores":
            raise UsageError(
                f"output {self.head.boxes or self.head.classes!r} does not hold class scores",
                remedy="choose one with scores of all classes by --output; `tfkit metadata` lists "
                "the outputs",
            )
        scores = class_scores(outputs, self.head, rows, where)
        if self._softmax:
            scores = as_probabilities(scores)
        return two_classes(scores, self.head), _meaning(scores, self._made_by)

    def labels_in(self, outputs: Outputs, shape: tuple[int, ...]) -> list[tuple[str, ...]] | None:
        """Return each row's class names where the model says them: string [batch, classes]."""
        array = outputs.get(self.head.classes)
        if array is None:
            return None
        array = array if self.head.batched else array[np.newaxis]
        if array.shape != shape:
            return None
        return [tuple(item.decode("utf-8", "replace") for item in row) for row in array]


def _input(signature: Signature, asked: PictureOptions, graph: PictureGraph | None) -> ImageInput:
    return image_input(
        signature,
        asked.note,
        options=asked.options,
        graph=graph,
        alias=asked.picture_input,
        given=asked.companions.keys(),
    )


def _ready_input(signature: Signature, asked: PictureOptions) -> ImageInput:
    """Return the input for rows that are sent as they are."""
    left = [name for name in signature.inputs if name not in asked.companions]
    alias = asked.picture_input or (left[0] if len(left) == 1 else "")
    if alias not in signature.inputs:
        names = ", ".join(signature.inputs) or "none"
        raise UsageError(
            f"signature {signature.name!r} has the inputs {names}, and which of them takes the "
            "rows is not clear",
            remedy="give --picture-input NAME, and the others by --set NAME=VALUE",
        )
    how = asked.note.overridden_by(asked.options)
    return ImageInput(alias, signature.inputs[alias], how)


def _meaning(scores: NDArray[np.float64], made_by: ScoreKind | None) -> Meaning:
    if scores.shape[1] == 1:
        return "one probability"
    known = scores[~np.isnan(scores).any(axis=1)]
    sure = bool(len(known)) and are_probabilities(known)
    if not sure and made_by == "sigmoid":
        return "a probability for each class"
    return "probabilities" if sure else "logits or other scores"


def _output_choice(
    head: Head, signature: Signature, asked: PictureOptions, graph: PictureGraph | None
) -> Choice:
    """Say which output is shown; one column is taken for a probability unless the graph says so."""
    alias = head.boxes or head.scores or head.classes
    spec = signature.outputs[alias]
    if head.kind == "scores" and is_one_column(head, spec):
        made_by = graph.output(alias) if graph else None
        if made_by in {"softmax", "log_softmax"}:
            raise UsageError(
                f"output {alias!r} is {spec}, a softmax of one number, which is the same for every "
                "picture",
                remedy="export the model with a sigmoid in its place, or with two classes",
            )
        sure = made_by == "sigmoid" or asked.softmax
        value = f"{alias!r}, the probability of class 1"
        option = "--softmax for a logit, --output NAME for another"
        return Choice("output", value, "graph" if sure else "assumed", option=option)
    what = {
        "scores": "class scores",
        "ranked": f"scores of the classes in {head.ids or head.classes!r}",
        "class": "a class",
        "detections": "objects",
    }[head.kind]
    source: Source = "option" if asked.output else "signature"
    if head.kind == "scores" and not asked.output and not is_usual(alias):
        source = "graph" if graph and graph.output(alias) in _SURE else "assumed"
    return Choice("output", f"{alias!r}, {what}", source)


# What computes scores of classes, and hardly anything else at the end of a model.
_SURE = frozenset({"softmax", "log_softmax", "sigmoid"})
