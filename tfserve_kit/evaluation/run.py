"""Sends a labelled set to a server, in batches from several threads, and keeps what matters."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients import Client
from tfserve_kit.errors import InvalidRequest, RequestError, ServerFault, UsageError
from tfserve_kit.evaluation import own_names
from tfserve_kit.evaluation.examples import Content, Dataset, Example
from tfserve_kit.evaluation.scores import are_probabilities, rank_of
from tfserve_kit.evaluation.subjects import Subject
from tfserve_kit.progress import SILENT, Progress

if TYPE_CHECKING:
    from tfserve_kit.pictures.prepare import ImageInput

# After so many failed requests without an answer between them, the rest is not sent.
PATIENCE = 16


@dataclass(frozen=True, slots=True)
class Sending:
    """How to send.

    Attributes:
        batch_size: examples in a request, at most.
        concurrency: requests in flight, at most.
        timeout_s: deadline of each request, in seconds.
    """

    batch_size: int = 32
    concurrency: int = 4
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model made of one example.

    Attributes:
        index: of the example in the set.
        name: of the example.
        true: index of its class.
        predicted: index of the class with the highest score; the lowest where scores tie.
        score: that score.
        rank: how many classes come before the true one.
        version: the version that answered; None over REST, which does not say.
    """

    index: int
    name: str
    true: int
    predicted: int
    score: float
    rank: int
    version: int | None

    @property
    def is_right(self) -> bool:
        """Whether the prediction is the true class."""
        return self.predicted == self.true


@dataclass(frozen=True, slots=True)
class Failure:
    """An example without an answer, and why; without an index if it is no example at all."""

    index: int | None
    name: str
    reason: str


@dataclass(slots=True)
class Outcome:
    """What came of one subject.

    Attributes:
        subject: what was asked.
        answers: in the order of the set.
        failures: examples whose requests failed.
        versions: the versions that answered, rising; more than one if it changed meanwhile.
        classes: number of scores in an answer, 0 without any answer.
        are_probabilities: whether the scores of every example lie in 0-1 and sum to 1.
        error: the first error of a request.
    """

    subject: Subject
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    versions: tuple[int, ...] = ()
    classes: int = 0
    are_probabilities: bool = True
    error: RequestError | None = None


@dataclass(frozen=True, slots=True)
class Run:
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
    outcomes: list[Outcome]
    assumed: tuple[str, ...] = ()


def evaluate(
    client: Client,
    subjects: Sequence[Subject],
    dataset: Dataset,
    wanted: Sequence[int],
    sending: Sending,
    progress: Progress = SILENT,
) -> Run:
    """Have each subject answer the same examples.

    Args:
        client: a connection; not closed here.
        subjects: what to evaluate; each batch goes to one after the other.
        dataset: the examples.
        wanted: indices of those to use, rising.
        sending: how to send them.
        progress: told how many examples are done.

    Raises:
        UsageError: no example can be used, or the model and the set do not go together.
        RequestError: no request was answered; the first error.
    """
    work = _Work(client, subjects, sending, progress, len(wanted))
    with ThreadPoolExecutor(sending.concurrency, "evaluate") as threads:
        batches = _Batches(dataset.examples(wanted), sending.batch_size)
        try:
            futures = [threads.submit(work.through, batches) for _ in range(sending.concurrency)]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            batches.end()  # for the other threads where one failed, for all on Ctrl-C
        for future in futures:
            future.result()
    left_out = [Failure(None, each.name, each.reason) for each in dataset.about.left_out]
    run = Run(
        dataset.source,
        len(wanted),
        left_out + work.unusable(),
        list(work.outcomes.values()),
        (*dataset.about.remarks, *assumed(subjects)),
    )
    _require_answers(run)
    for outcome in run.outcomes:
        outcome.answers.sort(key=lambda answer: answer.index)
        outcome.failures.sort(key=lambda failure: failure.index or 0)
        outcome.versions = _versions(client, outcome, sending.timeout_s)
    return run


def assumed(subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Return what is taken for granted, a sentence each; all once the classes are counted."""
    said: dict[str, list[str]] = {}
    for subject in subjects:
        for text in subject.assumed():
            said.setdefault(text, []).append(subject.name)
    return tuple(
        text if len(names) == len(subjects) else f"{names[0]}: {text}"
        for text, names in said.items()
    )


def _require_answers(run: Run) -> None:
    for outcome in run.outcomes:
        if outcome.answers:
            continue
        if outcome.error is not None:
            raise outcome.error
        if not run.unusable:
            raise UsageError(f"{run.source} holds no examples")
        first = run.unusable[0]
        raise UsageError(f"none of the {run.examples} examples of {run.source} can be used; the "
                         f"first, {first.name}: {first.reason}")  # fmt: skip


def _versions(client: Client, outcome: Outcome, timeout_s: float) -> tuple[int, ...]:
    """Return the versions in the answers; over REST, that before and that after the run."""
    found = {answer.version for answer in outcome.answers if answer.version is not None}
    if not found:
        found = {outcome.subject.version}
        with contextlib.suppress(RequestError):  # if the server has gone since, its answers stand
            found.add(client.metadata(outcome.subject.target, timeout_s=timeout_s).version)
    return tuple(sorted(found))


class _Batches:
    """Hands out batches of a stream to several threads."""

    def __init__(self, examples: Iterator[Example], size: int) -> None:
        self._examples, self._size = examples, size
        self._turn = threading.Lock()

    def __iter__(self) -> Iterator[list[Example]]:
        while batch := self._next():
            yield batch

    def _next(self) -> list[Example]:
        with self._turn:
            return list(islice(self._examples, self._size))

    def end(self) -> None:
        """Have no further batch."""
        with self._turn:
            self._examples = iter(())


@dataclass(frozen=True, slots=True)
class _Row:
    """An example as one row of an input."""

    example: Example
    values: NDArray[Any]


class _Work:
    """The work of all threads, and its results."""

    def __init__(
        self,
        client: Client,
        subjects: Sequence[Subject],
        sending: Sending,
        progress: Progress,
        total: int,
    ) -> None:
        self.outcomes = {id(subject): Outcome(subject) for subject in subjects}
        self._client, self._sending = client, sending
        self._progress, self._done, self._total = progress, 0, total
        self._unusable: dict[int, Failure] = {}
        self._failed_in_a_row = 0
        self._results = threading.Lock()

    def unusable(self) -> list[Failure]:
        """Return the examples that were not sent, in the order of the set."""
        return [self._unusable[index] for index in sorted(self._unusable)]

    def through(self, batches: _Batches) -> None:
        """Send batches until there are no more."""
        for batch in batches:
            contents = {each.index: self._load(each) for each in batch}
            prepared: dict[ImageInput, dict[int, NDArray[Any]]] = {}
            for outcome in self.outcomes.values():
                subject = outcome.subject
                if subject.input not in prepared:  # versions mostly want the same of a picture
                    prepared[subject.input] = self._prepare(subject, batch, contents)
                rows = self._rows(subject, batch, prepared[subject.input])
                step = subject.fixed_batch or len(rows) or 1
                for start in range(0, len(rows), step):
                    self._send(outcome, rows[start : start + step])
            with self._results:
                self._done += len(batch)
                self._progress.advance(self._done, self._total)

    def _load(self, example: Example) -> Content | None:
        try:
            return example.load()
        except InvalidRequest as error:
            self._drop(example, error)
            return None

    def _prepare(
        self, subject: Subject, batch: list[Example], contents: dict[int, Content | None]
    ) -> dict[int, NDArray[Any]]:
        found = {}
        for example in batch:
            content = contents[example.index]
            if content is not None:
                try:
                    found[example.index] = subject.row(content, example.name)
                except InvalidRequest as error:
                    self._drop(example, error)
        return found

    def _rows(
        self, subject: Subject, batch: list[Example], values: dict[int, NDArray[Any]]
    ) -> list[_Row]:
        found = []
        for example in (each for each in batch if each.index in values):
            try:
                subject.classes.index(example.label)  # for good once the classes are counted
            except InvalidRequest as error:
                self._drop(example, error)
            else:
                found.append(_Row(example, values[example.index]))
        return found

    def _drop(self, example: Example, error: InvalidRequest) -> None:
        with self._results:
            reason = error.message.removeprefix(example.name).lstrip(": ")
            failure = Failure(example.index, example.name, reason)
            self._unusable.setdefault(example.index, failure)

    def _send(self, outcome: Outcome, rows: list[_Row]) -> None:
        """Send rows as one request; each by itself if the server takes offence at one of them."""
        if self._failed_in_a_row >= PATIENCE:
            text = f"not sent: {PATIENCE} requests in a row had failed"
            self._fail(outcome, rows, ServerFault(text))
            return
        subject = outcome.subject
        missing = max(0, (subject.fixed_batch or 0) - len(rows))
        sent = [*rows, *rows[-1:] * missing]
        inputs = subject.model.inputs(
            [row.values for row in sent], [(row.example.name, row.example.index) for row in sent]
        )
        try:
            answer = self._client.predict(subject.target, inputs, timeout_s=self._sending.timeout_s)
            scores, _ = subject.model.scores(answer.outputs, len(sent), str(subject.target))
            own_names.require_same(subject, answer.outputs, scores.shape)
            scores = scores[: len(rows)]
        except RequestError as error:
            if isinstance(error, InvalidRequest) and len(rows) > 1:
                for row in rows:
                    self._send(outcome, [row])
            else:
                self._fail(outcome, rows, error)
        else:
            subject.classes.require(scores.shape[1], is_one_column=subject.model.is_one_column)
            self._judge(outcome, rows, scores, answer.version)

    def _fail(self, outcome: Outcome, rows: list[_Row], error: RequestError) -> None:
        reason = f"{type(error).__name__}: {error.message}"
        with self._results:
            # A server that refuses an input lives.
            self._failed_in_a_row += not isinstance(error, InvalidRequest)
            outcome.error = outcome.error or error
            outcome.failures += [
                Failure(row.example.index, row.example.name, reason) for row in rows
            ]

    def _judge(
        self, outcome: Outcome, rows: list[_Row], scores: NDArray[Any], version: int | None
    ) -> None:
        classes = scores.shape[1]
        answers = []
        for row, line in zip(rows, scores, strict=True):
            true = outcome.subject.classes.index(row.example.label)
            if not 0 <= true < classes:
                text = f"its class is {true}, and the model has {classes}, counted from 0"
                self._drop(row.example, InvalidRequest(text))
            elif np.isnan(line).any() or np.isinf(line.max()):
                self._fail(outcome, [row], ServerFault("its scores are NaN or infinite"))
            else:
                answers.append(_answer(outcome.subject, row, true, line, version))
        with self._results:
            self._failed_in_a_row = 0
            outcome.classes = classes
            outcome.are_probabilities &= are_probabilities(scores)
            outcome.answers += answers


def _answer(
    subject: Subject, row: _Row, true: int, scores: NDArray[np.float64], version: int | None
) -> Answer:
    best, example = subject.predicted(scores), row.example
    rank = rank_of(scores, true) if subject.threshold is None else int(best != true)
    return Answer(example.index, example.name, true, best, float(scores[best]), rank, version)
