"""Sends a labelled set to one or two versions of a model, and judges what they answer."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients import Client, Target
from tfserve_kit.clients.classifier import (
    PreparedPicture,
    answer_all,
    find_model,
    inputs_of,
    isolated,
)
from tfserve_kit.errors import InvalidRequest, RequestError, ServerFault, UsageError
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.examples import Dataset, Example, Failure, choose, row_of
from tfserve_kit.evaluation.scores import rank_of
from tfserve_kit.pictures.inputs import ImageInput
from tfserve_kit.pictures.labels import Labels
from tfserve_kit.pictures.model import PictureModel, PictureOptions
from tfserve_kit.pictures.outputs import NAN_REMEDY, Outputs, Ranking, are_probabilities, ranking
from tfserve_kit.progress import SILENT, Progress

# After so many failed requests without an answer between them, the rest is not sent.
PATIENCE = 16
# The rank of a class that a model does not answer with: no K of a top-K error rate reaches it.
_LAST = 1 << 31
_NOTHING = PictureOptions()
_OWN_NAMES = "the model's own answer"
_NO_NUMBERS = "the model's scores are NaN or infinite"
_BEST_ONLY = (
    "a class that the model does not answer with counts as a top-K error (change: choose an output "
    "with the scores of all classes by --output)"
)
_TRIES = 16  # a picture or two may be damaged


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        batch_size: examples in a request, at most.
        concurrency: requests in flight, at most.
        timeout_s: deadline of each request, in seconds.
        asked: what is known of the model beside its signature.
        base_path: where its versions can be read here; None if they cannot.
        first_class: see `Classes`.
        threshold: see `_Subject`.
        count: how many examples to use; None for all.
        seed: draw them at random; None takes the first.
    """

    batch_size: int = 32
    concurrency: int = 4
    timeout_s: float = 30.0
    asked: PictureOptions = _NOTHING
    base_path: Path | None = None
    first_class: int | None = None
    threshold: float | None = None
    count: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class _Subject:
    """A version of a model to evaluate.

    Attributes:
        name: what to call it, such as `version 3` or `label canary`.
        target: where requests go.
        version: what the server said it is, before the run.
        model: what goes in and comes out.
        classes: which class a label means.
        threshold: of two classes the second is predicted where its score is above this; None for
            the one with the higher score, the first where they are equal.
    """

    name: str
    target: Target
    version: int
    model: PictureModel
    classes: Classes
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be evaluated so, as far as the signature tells it.

        Raises:
            UsageError: the model answers with no classes, or there is a threshold for other than
                two.
        """
        kind = self.model.head.kind
        if kind == "detections":
            raise UsageError(
                f"{self.target} answers with objects, and only class scores can be evaluated",
                remedy="`tfkit predict` shows the objects; to evaluate, choose an output with "
                "classes by --output, or a signature by --signature: `tfkit metadata` lists them",
            )
        if self.threshold is not None and kind != "scores":
            raise UsageError(
                f"a threshold is for scores of two classes, and {self.target} answers with classes",
                remedy="leave out --threshold",
            )
        if self.model.classes is not None:
            self._require_two(self.model.classes)

    def _require_two(self, classes: int) -> None:
        if self.threshold is not None and classes != 2:  # noqa: PLR2004 (no and yes)
            raise UsageError(
                f"a threshold is for two classes, and {self.target} has {classes}",
                remedy="leave out --threshold",
            )

    def predicted(self, scores: NDArray[np.float64]) -> int:
        """Return the class that scores, float64 [classes], speak for.

        Raises:
            UsageError: there is a threshold, and not two classes.
        """
        if self.threshold is None:
            return int(scores.argmax())
        self._require_two(len(scores))
        return int(scores[1] > self.threshold)

    def assumed(self) -> list[str]:
        """Return what is taken for granted of the model and its classes, a sentence each."""
        said = self.model.assumed
        if self.model.is_one_column or self.threshold is not None:
            limit = 0.5 if self.threshold is None else self.threshold
            said = [*said, f"a score above {limit:g} means class 1 (change: --threshold SCORE)"]
        if self.model.head.kind != "scores":
            said = [*said, _BEST_ONLY]
        return [*said, *self.classes.remarks()]


def _open_subject(
    client: Client, target: Target, dataset: Dataset, options: "EvaluationOptions"
) -> _Subject:
    """Find out what a served version takes and says, and check that the set goes with it.

    Args:
        client: a connection.
        target: the version.
        dataset: what it will be evaluated on.
        options: what is known beside its signature.

    Raises:
        UsageError: the model does not take pictures, or it and the set do not go together.
        RequestError: the server did not answer.
    """
    timeout_s = options.timeout_s
    model, version = find_model(
        client,
        target,
        options.asked,
        base_path=options.base_path,
        timeout_s=timeout_s,
        ready=dataset.ready,
    )
    labels = model.labels or own_names(client, target, model, dataset, timeout_s)
    first, are_answered = options.first_class, model.answers_with_names
    classes = Classes.of(dataset, labels, first, are_answered=are_answered)
    classes.agree(dataset, model.classes, is_one_column=model.is_one_column)
    name = f"label {target.label}" if target.label else f"version {version}"
    return _Subject(name, target, version, model, classes, options.threshold)


def own_names(
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
    for example in dataset.read(range(min(len(dataset), _TRIES))):
        with contextlib.suppress(RequestError):  # the run will tell of it
            row = row_of(example.load(), model.input, example.name)
            picture = PreparedPicture(row, 0.0, example.name, example.index)
            inputs = inputs_of(model, [picture])
            outputs = client.predict(target, inputs, timeout_s=timeout_s).outputs
            scores, _ = model.scores(outputs, model.input.rows or 1, str(target))
            found = model.labels_in(outputs, scores.shape)
            return Labels(found[0], source=_OWN_NAMES) if found else None
    return None


def _require_same_names(subject: _Subject, outputs: Outputs, shape: tuple[int, ...]) -> None:
    """Check that each row of an answer has its classes in the order of the first answer.

    Raises:
        UsageError: the model sorts them anew for each picture.
    """
    known = subject.classes.labels
    if known is None or known.source != _OWN_NAMES:
        return
    for row in subject.model.labels_in(outputs, shape) or []:
        if row != tuple(known):
            raise UsageError(
                f"{subject.target} names its classes in another order, or other ones, for each "
                f"picture, such as {row[0]!r} first, then {known[0]!r}",
                remedy="evaluate an output with the scores of all classes in one order: --output, "
                "and --labels with their names",
            )


@dataclass(frozen=True, slots=True)
class ExampleAnswer:
    """What a model made of one example.

    Attributes:
        index: of the example in the set.
        name: of the example.
        true: index of its class.
        predicted: index of the class with the highest score; the lowest where scores tie.
        score: that score; None of a model that answers with a class alone.
        rank: how many classes come before the true one.
        version: the version that answered; None over REST, which does not say.
    """

    index: int
    name: str
    true: int
    predicted: int
    score: float | None
    rank: int
    version: int | None

    @property
    def is_right(self) -> bool:
        """Whether the prediction is the true class."""
        return self.predicted == self.true


@dataclass(slots=True)
class SubjectResult:
    """What came of one subject.

    Attributes:
        subject: what was asked.
        answers: in the order of the set.
        failures: examples whose requests failed.
        versions: the versions that answered, rising; more than one if it changed meanwhile.
        classes: number of scores in an answer, 0 without any answer; of a model that answers
            with classes, those that are known.
        are_probabilities: whether the scores of every example lie in 0-1 and sum to 1.
        error: the first error of a request.
    """

    subject: _Subject
    answers: list[ExampleAnswer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    versions: tuple[int, ...] = ()
    classes: int = 0
    are_probabilities: bool = True
    error: RequestError | None = None

    def fail(self, example: Example, error: RequestError) -> None:
        """Note that an example got no answer."""
        self.error = self.error or error
        reason = f"{type(error).__name__}: {_with_remedy(error.message, error.remedy)}"
        self.failures.append(Failure(example.index, example.name, reason))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of a set.

    Attributes:
        source: name of the set.
        examples: how many were used.
        unusable: examples that were not sent: no picture, no such class, of another size.
        outcomes: one for each subject, in their order.
        assumed: what was taken for granted to read the set and to know its classes.
    """

    source: str
    examples: int
    unusable: list[Failure]
    outcomes: list[SubjectResult]
    assumed: tuple[str, ...] = ()


class _Row(NamedTuple):
    """An example, and what each input makes of it."""

    example: Example
    values: dict[ImageInput, NDArray[np.generic]]


class _Reading(NamedTuple):
    """One row of an answer: the scores of all classes, or the classes it names, best first."""

    said: NDArray[np.float64] | Ranking
    version: int | None
    are_probabilities: bool = False


def evaluate_versions(
    client: Client,
    targets: Sequence[Target],
    dataset: Dataset,
    options: EvaluationOptions,
    progress: Progress = SILENT,
) -> Evaluation:
    """Evaluate served versions on the same examples; what `tfkit evaluate` does.

    Args:
        client: a connection; not closed here.
        targets: one version, or two to compare.
        dataset: the examples.
        options: how to evaluate.
        progress: told what is taken for granted, and how many examples are done.

    Raises:
        UsageError: no example can be used, or a model and the set do not go together.
        RequestError: no request was answered; the first error.
    """
    subjects = [_open_subject(client, each, dataset, options) for each in targets]
    model = subjects[0].model
    progress.note(f"Input {model}")
    for text in _assumed(subjects):
        if text not in model.assumed:  # which has just been told
            progress.note(f"Assumed: {text}")
    wanted = choose(len(dataset), options.count, options.seed)
    progress.step(f"Evaluating {len(wanted)} examples")
    return evaluate(client, subjects, dataset, wanted, options, progress)


def evaluate(
    client: Client,
    subjects: Sequence[_Subject],
    dataset: Dataset,
    wanted: Sequence[int],
    options: EvaluationOptions,
    progress: Progress = SILENT,
) -> Evaluation:
    """Have each subject answer the same examples.

    Args:
        client: a connection; not closed here.
        subjects: what to evaluate; each batch goes to one after the other.
        dataset: the examples.
        wanted: indices of those to use, rising.
        options: how to send them.
        progress: told how many examples are done.

    Raises:
        UsageError: no example can be used, or the model and the set do not go together.
        RequestError: no request was answered; the first error.
    """
    work = _Work(client, subjects, options)
    batches = answer_all(
        dataset.read(wanted),
        work.prepare,
        work.ask,
        batch_rows=options.batch_size,
        concurrency=options.concurrency,
    )
    done = 0
    with closing(batches):
        for batch in batches:
            for example, found in batch:
                work.judge(example, found)
            done += len(batch)
            progress.advance(done, len(wanted))
    run = Evaluation(
        dataset.source,
        len(wanted),
        [*dataset.left_out, *work.unusable.values()],
        work.outcomes,
        (*dataset.remarks, *_assumed(subjects)),
    )
    _require_answers(run)
    for outcome in run.outcomes:
        outcome.classes = outcome.classes or _count(outcome)
        outcome.versions = _versions(client, outcome, options.timeout_s)
    return run


def _assumed(subjects: Sequence[_Subject]) -> tuple[str, ...]:
    """Return what is taken for granted, a sentence each; all once the classes are counted."""
    said: dict[str, list[str]] = {}
    for subject in subjects:
        for text in subject.assumed():
            said.setdefault(text, []).append(subject.name)
    return tuple(
        text if len(names) == len(subjects) else f"{names[0]}: {text}"
        for text, names in said.items()
    )


def _require_answers(run: Evaluation) -> None:
    for outcome in run.outcomes:
        if outcome.answers:
            continue
        if outcome.error is not None:
            raise outcome.error
        if not run.unusable:
            raise UsageError(
                f"{run.source} holds no examples",
                remedy="give a set with pictures or rows, each with its class",
            )
        first = run.unusable[0]
        raise UsageError(
            f"none of the {run.examples} examples of {run.source} can be used; the first, "
            f"{first.name}: {first.reason}",
            remedy="mend the files, or the labels, that the reason names; `tfkit metadata` shows "
            "the input that the model takes",
        )


def _count(outcome: SubjectResult) -> int:
    """Return how many classes a model may have that only answers with some."""
    seen = (max(answer.true, answer.predicted) + 1 for answer in outcome.answers)
    return max(len(outcome.subject.classes.known), *seen)


def _versions(client: Client, outcome: SubjectResult, timeout_s: float) -> tuple[int, ...]:
    """Return the versions in the answers; over REST, that before and that after the run."""
    found = {answer.version for answer in outcome.answers if answer.version is not None}
    if not found:
        found = {outcome.subject.version}
        with contextlib.suppress(RequestError):  # if the server has gone since, its answers stand
            found.add(client.metadata(outcome.subject.target, timeout_s=timeout_s).version)
    return tuple(sorted(found))


class _Work:
    """What happens to an example: prepared and sent in threads, then judged in the order."""

    def __init__(
        self, client: Client, subjects: Sequence[_Subject], options: EvaluationOptions
    ) -> None:
        self.outcomes = [SubjectResult(subject) for subject in subjects]
        self.unusable: dict[int, Failure] = {}
        self._client, self._subjects, self._timeout_s = client, subjects, options.timeout_s
        self._failed_in_a_row = 0
        self._counting = threading.Lock()

    def prepare(self, example: Example) -> _Row:
        """Bring an example into the form that each subject wants; mostly it is the same.

        Raises:
            InvalidRequest: it cannot be used.
        """
        for subject in self._subjects:
            with contextlib.suppress(InvalidRequest):
                subject.classes.index(example.label)
                break
        else:
            self._subjects[0].classes.index(example.label)  # raises
        content = example.load()
        inputs = dict.fromkeys(subject.model.input for subject in self._subjects)
        return _Row(example, {each: row_of(content, each, example.name) for each in inputs})

    def ask(self, rows: Sequence[_Row]) -> list[list[_Reading | RequestError]]:
        """Return what each subject says of each row."""
        answers: list[list[_Reading | RequestError]] = []
        for subject in self._subjects:
            step = subject.model.input.rows or len(rows)
            parts = (rows[start : start + step] for start in range(0, len(rows), step))
            send: Callable[[Sequence[_Row]], list[_Reading]] = partial(self._send, subject)
            answers.append([found for part in parts for found in isolated(send, part)])
        return [list(each) for each in zip(*answers, strict=True)]

    def _send(self, subject: _Subject, rows: Sequence[_Row]) -> list[_Reading]:
        if self._failed_in_a_row >= PATIENCE:
            raise ServerFault(
                f"not sent: {PATIENCE} requests in a row had failed",
                remedy="mend what the failures before it name, then repeat",
            )
        wanted = subject.model.input
        pictures = [
            PreparedPicture(row.values[wanted], 0.0, row.example.name, row.example.index)
            for row in rows
        ]
        try:
            inputs = inputs_of(subject.model, pictures)
            answer = self._client.predict(subject.target, inputs, timeout_s=self._timeout_s)
            found = _readings(subject, answer.outputs, len(rows), answer.version)
        except RequestError as error:
            with self._counting:  # a server that refuses an input lives
                self._failed_in_a_row += not isinstance(error, InvalidRequest)
            raise
        with self._counting:
            self._failed_in_a_row = 0
        return found

    def judge(
        self, example: Example, found: Sequence[_Reading | RequestError] | RequestError
    ) -> None:
        """Compare what was said of an example with its label."""
        if isinstance(found, RequestError):
            self._drop(example, found)
            return
        for outcome, reading in zip(self.outcomes, found, strict=True):
            if isinstance(reading, RequestError):
                outcome.fail(example, reading)
                continue
            try:
                outcome.answers.append(_answer(outcome, example, reading))
            except InvalidRequest as error:
                self._drop(example, error)
            except ServerFault as error:
                outcome.fail(example, error)
            else:
                outcome.are_probabilities &= reading.are_probabilities

    def _drop(self, example: Example, error: RequestError) -> None:
        reason = error.message.removeprefix(example.name).lstrip(": ")
        reason = _with_remedy(reason, error.remedy)
        self.unusable.setdefault(example.index, Failure(example.index, example.name, reason))


def _with_remedy(message: str, remedy: str) -> str:
    return f"{message} ({remedy})" if remedy else message


def _readings(
    subject: _Subject, outputs: Outputs, rows: int, version: int | None
) -> list[_Reading]:
    """Return what an answer says of each row, without those that filled a batch up."""
    model, where = subject.model, str(subject.target)
    sent = model.input.rows or rows
    if model.head.kind != "scores":
        found = ranking(outputs, model.head, sent, None, where)
        return [_Reading(each, version) for each in found[:rows]]
    scores, _ = model.scores(outputs, sent, where)
    _require_same_names(subject, outputs, scores.shape)
    return [_Reading(row, version, are_probabilities(row[np.newaxis])) for row in scores[:rows]]


def _answer(outcome: SubjectResult, example: Example, reading: _Reading) -> ExampleAnswer:
    """Judge one row.

    Raises:
        InvalidRequest: the model has no such class as the example's.
        ServerFault: the row says nothing.
        UsageError: the classes of the set and of the model do not go together.
    """
    subject, classes = outcome.subject, outcome.subject.classes
    if isinstance(reading.said, list):
        places = [classes.answered(index, name) for index, name, _ in reading.said]
        score = reading.said[0][2] if reading.said else None
        if not places or (score is not None and not np.isfinite(score)):
            raise ServerFault(_NO_NUMBERS, remedy=NAN_REMEDY)
        true, best = classes.index(example.label), places[0]
        if true < 0:
            raise InvalidRequest(
                f"its class is {true}, and classes are counted from 0",
                remedy="number the classes of the set from 0, or from N with --first-class N",
            )
        rank = places.index(true) if true in places else _LAST
        return ExampleAnswer(example.index, example.name, true, best, score, rank, reading.version)
    scores = reading.said
    classes.require(len(scores), is_one_column=subject.model.is_one_column)
    outcome.classes = len(scores)
    true = classes.index(example.label)
    if not 0 <= true < len(scores):
        text = f"its class is {true}, and the model has {len(scores)}, counted from 0"
        raise InvalidRequest(
            text,
            remedy="give --first-class 1 if the set counts from 1; else leave such examples out",
        )
    if np.isnan(scores).any() or np.isinf(scores.max()):
        raise ServerFault(_NO_NUMBERS, remedy=NAN_REMEDY)
    best = subject.predicted(scores)
    rank = rank_of(scores, true) if subject.threshold is None else int(best != true)
    score = float(scores[best])
    return ExampleAnswer(example.index, example.name, true, best, score, rank, reading.version)
