"""What is evaluated: one version of a model, what it takes and what its scores are called.

Names of classes that a model answers with: what it says itself needs no guess.

Sends a labelled set to a server, in batches from several threads, and keeps what matters.
"""

import contextlib
import io
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tfserve_kit.clients import Client, Target
from tfserve_kit.errors import InvalidRequest, RequestError, ServerFault, UsageError
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.examples import Content, Dataset, Example
from tfserve_kit.evaluation.scores import are_probabilities, rank_of
from tfserve_kit.pictures.inputs import ImageInput
from tfserve_kit.pictures.labels import Labels
from tfserve_kit.pictures.model import PictureModel
from tfserve_kit.pictures.outputs import Outputs
from tfserve_kit.pictures.prepare import prepare
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.savedmodel import TensorSpec

_FLAT_RANK, _COLOUR_RANK = 1, 3


@dataclass(frozen=True, slots=True)
class Subject:
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
            UsageError: the model gives no scores of classes, or there is a threshold for more than
                two.
        """
        if self.model.head.kind != "scores":
            what = {
                "class": "a class without scores",
                "ranked": "the best classes alone",
                "detections": "objects",
            }
            raise UsageError(
                f"{self.target} answers with {what[self.model.head.kind]}, and what is evaluated "
                "are scores of all classes",
                remedy="choose an output with scores by --output, or a signature by --signature; "
                "`tfkit metadata` lists them",
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
            said = [*said, f"scores of class 1 above {limit:g} speak for it (--threshold)"]
        return [*said, *self.classes.remarks()]

    @property
    def input(self) -> ImageInput:
        """The input that examples fill."""
        return self.model.input

    @property
    def fixed_batch(self) -> int | None:
        """Rows that each request must have; None if any number goes."""
        return self.model.input.rows

    def row(self, content: Content, name: str) -> NDArray[Any]:
        """Return one row of the input, of the model's dtype, without the batch axis.

        Raises:
            InvalidRequest: the content is no picture, or does not fit.
        """
        if isinstance(content, bytes):
            return prepare(content, self.input, name=name)
        if content.dtype == np.uint8:
            return prepare(as_png(content, self.input.how), self.input, name=name)
        return _as_it_is(content, self.input.spec, name)


def _as_it_is(values: NDArray[Any], spec: TensorSpec, name: str) -> NDArray[Any]:
    """Give a row the dtype of the input, if it is of the same kind, and its shape."""
    dtype = spec.dtype.numpy if spec.dtype else None
    if dtype is None or _kind(dtype) != _kind(values.dtype):
        text = f"{name} is {values.dtype}, and the input is {spec}"
        raise InvalidRequest(text, remedy="store the input's dtype; pictures are uint8")
    try:
        return values.reshape(_row_shape(values, spec)).astype(dtype)
    except ValueError as error:
        text = f"{name} has the shape {list(values.shape)}, and the input is {spec}"
        raise InvalidRequest(text, remedy="store rows of the input's shape") from error


def _row_shape(values: NDArray[Any], spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of a row of the input, as far as it is known; the values say the rest."""
    axes = values.shape if spec.shape is None else spec.shape[1:]
    if len(axes) == values.ndim:
        return tuple(size or own for size, own in zip(axes, values.shape, strict=True))
    return tuple(size or -1 for size in axes)


def _kind(dtype: np.dtype[Any]) -> str:
    return {"u": "i"}.get(dtype.kind, dtype.kind) if dtype.kind != "V" else "f"  # V: bfloat16


def as_png(pixels: NDArray[np.uint8], how: Preprocessing | None = None) -> bytes:
    """Return pixels as an encoded picture.

    Args:
        pixels: uint8 [height, width], [height, width, 1 or 3] or [values].
        how: the size of the model's pictures, which a row of values may have; a square otherwise.

    Raises:
        InvalidRequest: the values make no picture.
    """
    if pixels.ndim == _FLAT_RANK:
        pixels = pixels.reshape(_shape_of(len(pixels), how))
    if pixels.ndim == _COLOUR_RANK and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _shape_of(values: int, how: Preprocessing | None) -> tuple[int, int, int]:
    if how and how.height and how.width and how.channels in {1, 3}:
        size = (how.height, how.width, how.channels)
        if how.height * how.width * how.channels == values:
            return size
    for channels in (1, 3):
        side = round((values / channels) ** 0.5)
        if side and side * side * channels == values:
            return side, side, channels
    raise InvalidRequest(f"{values} pixels make neither a square nor the model's picture")


def thumbnail(content: Content, how: Preprocessing, side: int) -> bytes | None:
    """Return a small PNG of a picture that was prepared before; None for what is none.

    Args:
        content: of an example.
        how: the size of the model's pictures, see `as_png`.
        side: the most pixels it is wide and high.
    """
    if not isinstance(content, bytes):
        if content.dtype != np.uint8:
            return None
        content = as_png(content, how)
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
        small = upright.convert("RGB") if upright.mode not in {"L", "RGB"} else upright
        small.thumbnail((side, side))
        stream = io.BytesIO()
        small.save(stream, "PNG")
        return stream.getvalue()


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
            require_same(subject, answer.outputs, scores.shape)
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
