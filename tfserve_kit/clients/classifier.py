"""Pictures in, what the model says of them out, over any client.

Many are prepared ahead in threads and sent in batches, and one that fails costs no other.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients.options import DEFAULT_TIMEOUT_S
from tfserve_kit.clients.results import Target
from tfserve_kit.clients.sync import Client
from tfserve_kit.errors import (
    DeadlineExceeded,
    ModelNotFound,
    RequestError,
    ServerUnreachable,
    UsageError,
)
from tfserve_kit.pictures.files import PictureFile
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.labels import Labels, shown
from tfserve_kit.pictures.model import Meaning, PictureModel, PictureOptions
from tfserve_kit.pictures.outputs import Detection, Outputs, detections, ranking
from tfserve_kit.pictures.prepare import prepare
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import choose_signature


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


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """One row of the model's input, and how long decoding and preparing it took, in seconds."""

    row: NDArray[Any]
    prepare_s: float
    name: str = "image"
    index: int = 0


@dataclass(frozen=True, slots=True)
class Classified:
    """What the model says of one picture.

    Attributes:
        scores: index, name and score of each class, best first; a score of NaN comes last. Of a
            model that answers with a class alone, that class, with no score.
        version: the model version that answered; None over REST, which does not say.
        prepare_s: decoding and preparing the picture, in seconds.
        request_s: from sending the request to holding the decoded answer, in seconds.
        batch_rows: how many pictures that one request was for.
        detections: of a detector, the objects, the surest first.
        meaning: what the scores are.
        nan_scores: how many of all its scores are NaN.
        replica: address of the server that answered.
    """

    scores: tuple[ClassScore, ...]
    version: int | None
    prepare_s: float
    request_s: float
    batch_rows: int = 1
    detections: tuple[Detection, ...] | None = None
    meaning: Meaning = "probabilities"
    nan_scores: int = 0
    replica: str = ""

    def said(self) -> dict[str, Any]:
        """Return what the model says, as JSON holds it: `meaning`, `scores`, and `detections`."""
        scores: list[Any] = [
            {"index": each.index, "label": each.label, "score": each.score} for each in self.scores
        ]
        found: dict[str, Any] = {"meaning": self.meaning, "scores": scores}
        if self.detections is not None:
            found["detections"] = [
                {"box": each.box, "index": each.index, "label": each.label, "score": each.score}
                for each in self.detections
            ]
        return found


class Classifier:
    """Classifies pictures with one model; what it wants is found out once.

    Thread-safe.

    Args:
        client: a connection; not closed here.
        target: model, version or label, and signature.
        model: what goes in and comes out, see `find_model`.
        timeout_s: deadline of each request, in seconds.

    Attributes:
        model: the same.
        labels: the names of its classes, brought to their number once that is known; None if
            nobody says them.

    Raises:
        UsageError: there is another number of labels than of classes.
    """

    def __init__(
        self,
        client: Client,
        target: Target,
        model: PictureModel,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._client = client
        self._target = target
        self.model = model
        self.labels = self._fitted(model.labels, model.classes, is_one_column=model.is_one_column)
        self._timeout_s = timeout_s

    def _fitted(
        self, labels: Sequence[str] | None, classes: int | None, *, is_one_column: bool
    ) -> Labels | None:
        """Return labels of as many names as there are classes, where it is known how many."""
        if labels is None:
            return None
        known = Labels.of(labels)
        if classes is None or self.model.head.kind != "scores":
            return known
        return known.fit(classes, is_one_column=is_one_column)

    @property
    def how(self) -> dict[str, dict[str, str]]:
        """What was decided, by what it is about: `value`, `source`, and `because` if that is known.

        The names of classes are told of once they are brought to their number.
        """
        found: dict[str, tuple[str, str, str]] = {
            each.what: (each.value, each.source, each.because) for each in self.model.choices
        }
        if self.labels is not None and self.labels.source:
            value = f"{len(self.labels)} names of {self.labels.source}"
            found["labels"] = (value, "file", "; ".join(self.labels.remarks))
        return {
            what: {"value": value, "source": source} | ({"because": because} if because else {})
            for what, (value, source, because) in found.items()
        }

    @property
    def fixed_rows(self) -> int | None:
        """The number of rows that every request must have; None if that is open."""
        return self.model.input.rows

    def classify(self, data: bytes, *, name: str = "image", top: int = 5) -> Classified:
        """Classify one encoded picture.

        Args:
            data: the bytes of a JPEG, PNG or other picture.
            name: what errors call it.
            top: how many classes or objects to return.

        Raises:
            InvalidRequest: the data is not a picture.
            RequestError: the request failed.
        """
        (found,) = self.score([self.prepare(data, name=name)], top=top)
        return found

    def prepare(self, data: bytes, *, name: str, index: int = 0) -> PreparedPicture:
        """Decode a picture and bring it into the form that the model wants.

        Args:
            data: the bytes of a JPEG, PNG or other picture.
            name: what errors call it.
            index: its number, for the inputs beside it.

        Raises:
            InvalidRequest: the data is not a picture.
        """
        started_s = time.perf_counter()
        row = prepare(data, self.model.input, name=name)
        return PreparedPicture(row, time.perf_counter() - started_s, name, index)

    def score(self, pictures: Sequence[PreparedPicture], *, top: int) -> list[Classified]:
        """Classify prepared pictures with one request.

        Args:
            pictures: at least one, see `inputs_of`.
            top: how many classes or objects to return.

        Raises:
            RequestError: the request failed.
            UsageError: there is another number of labels than of classes, or the answer cannot be
                shown as classes.
        """
        inputs = inputs_of(self.model, pictures)
        answer = self._client.predict(self._target, inputs, timeout_s=self._timeout_s)
        said = self.read(answer.outputs, self.fixed_rows or len(pictures), top=top)
        return [
            Classified(
                **each,
                version=answer.version,
                replica=answer.replica,
                prepare_s=picture.prepare_s,
                request_s=answer.duration_s,
                batch_rows=len(pictures),
            )
            for each, picture in zip(said, pictures, strict=False)
        ]

    def read(self, outputs: Outputs, rows: int, *, top: int) -> list[dict[str, Any]]:
        """Return what outputs say of each row, as the fields of `Classified` of that name.

        Args:
            outputs: of an answer.
            rows: how many were sent.
            top: how many classes or objects to return.

        Raises:
            ServerFault: the outputs have another shape.
            UsageError: there is another number of labels than of classes, or the answer cannot be
                shown as classes.
        """
        read = {"scores": self._scored, "detections": self._detected}
        return read.get(self.model.head.kind, self._ranked)(outputs, rows, top)

    def _scored(self, outputs: Outputs, rows: int, top: int) -> list[dict[str, Any]]:
        scores, meaning = self.model.scores(outputs, rows, str(self._target))
        one = meaning == "one probability"
        self.labels = self._fitted(self.labels, scores.shape[1], is_one_column=one)
        labels: Sequence[Sequence[str] | None] = [self.labels] * rows
        if self.labels is None:
            labels = self.model.labels_in(outputs, scores.shape) or labels
        return [
            {
                "scores": tuple(top_scores(scores[i], labels[i], top)),
                "meaning": meaning,
                "nan_scores": int(np.isnan(scores[i]).sum()),
            }
            for i in range(rows)
        ]

    def _ranked(self, outputs: Outputs, rows: int, top: int) -> list[dict[str, Any]]:
        meaning = "classes" if self.model.head.kind == "class" else "scores of the best classes"
        return [
            {
                "scores": tuple(ClassScore(*each) for each in row[:top]),
                "meaning": meaning,
                "nan_scores": sum(score is not None and np.isnan(score) for _, _, score in row),
            }
            for row in ranking(outputs, self.model.head, rows, self.labels, str(self._target))
        ]

    def _detected(self, outputs: Outputs, rows: int, top: int) -> list[dict[str, Any]]:
        found = detections(outputs, self.model.head, rows, self.labels, str(self._target))
        return [
            {"scores": (), "meaning": "boxes", "detections": tuple(each[:top])} for each in found
        ]


def inputs_of(model: PictureModel, pictures: Sequence[PreparedPicture]) -> dict[str, NDArray[Any]]:
    """Return the value of each input for prepared pictures.

    Args:
        model: what goes in.
        pictures: at least one; no more than the rows that the model takes, up to which the last
            is repeated.
    """
    missing = max(0, (model.input.rows or 0) - len(pictures))
    sent = [*pictures, *[pictures[-1]] * missing]
    return model.inputs([each.row for each in sent], [(each.name, each.index) for each in sent])


def find_model(
    client: Client,
    target: Target,
    asked: PictureOptions,
    *,
    base_path: Path | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    ready: bool = False,
) -> tuple[PictureModel, int]:
    """Find out from a server, and from the version itself, what a model takes and says.

    Args:
        client: a connection.
        target: model, version or label, and signature.
        asked: what the caller says beside that; a note stored with the version is read.
        base_path: where the versions can be read here; None if they cannot.
        timeout_s: deadline, in seconds.
        ready: whether what is sent are rows of the input, not pictures.

    Returns:
        The model, and the version that answers.

    Raises:
        RequestError: the server does not answer, or does not know the model.
        UsageError: the signature does not take pictures, or it is not clear what it says of one.
    """
    found = client.metadata(target, timeout_s=timeout_s)
    signature = choose_signature(found.signatures, target.signature)
    version_dir = base_path / str(found.version) if base_path else None
    if version_dir:
        asked = replace(asked, note=Preprocessing.read(version_dir))
    graph = PictureGraph(version_dir, signature.name)
    try:
        return PictureModel(signature, asked, graph, ready=ready), found.version
    except UsageError as error:
        others = sorted(found.signatures.keys() - {signature.name})
        if not others or error.message.startswith("--"):  # an option is wrong, not the signature
            raise
        quoted = shown([quote(each) for each in others], " or ")
        known = f"the model has other signatures: --signature {quoted}"
        raise UsageError(error.message, remedy=f"{error.remedy}; {known}") from error


# Rows of a request if nobody says; enough to keep a server busy, little to wait for.
DEFAULT_BATCH_ROWS = 16
_MOST_WORKERS = 4
# With these, the next picture would fare no better.
_FATAL = (DeadlineExceeded, ModelNotFound, ServerUnreachable)

In = TypeVar("In")
Row = TypeVar("Row")
Out = TypeVar("Out")


def choose_batch_rows(classifier: Classifier, pictures: int, wanted: int | None) -> int:
    """Return how many pictures a request should hold.

    Args:
        classifier: whose model may ask for a certain number.
        pictures: how many there are.
        wanted: what the user says; None for `DEFAULT_BATCH_ROWS` at most.

    Raises:
        UsageError: the model wants another number than the user.
    """
    fixed = classifier.fixed_rows
    if fixed and wanted not in {None, fixed}:
        raise UsageError(
            f"the model wants {fixed} rows in each request, not {wanted}",
            remedy="leave out --batch-size",
        )
    return fixed or min(wanted or DEFAULT_BATCH_ROWS, max(pictures, 1))


def classify_all(
    classifier: Classifier, pictures: Iterable[PictureFile], *, batch_rows: int, top: int
) -> Generator[tuple[str, Classified | RequestError], None, None]:
    """Yield the name of each picture, and its classes or the error that concerns it alone.

    Args:
        classifier: prepares and asks.
        pictures: read only when their turn comes.
        batch_rows: pictures in each request.
        top: how many classes to return.

    Raises:
        RequestError: the server is gone, does not know the model, or did not answer in time.
        UsageError: there is another number of labels than of classes.
    """

    def prepare(numbered: tuple[int, PictureFile]) -> PreparedPicture:
        index, picture = numbered
        return classifier.prepare(picture.read(), name=picture.name, index=index)

    def score(prepared: Sequence[PreparedPicture]) -> Sequence[Classified | RequestError]:
        return isolated(lambda some: classifier.score(some, top=top), prepared)

    batches = answer_all(enumerate(pictures), prepare, score, batch_rows=batch_rows)
    with closing(batches):
        for (_, picture), found in chain.from_iterable(batches):
            if isinstance(found, _FATAL):
                raise found
            yield picture.name, found


def isolated(
    send: Callable[[Sequence[Row]], Sequence[Out]], rows: Sequence[Row]
) -> Sequence[Out | RequestError]:
    """Return a result for each row; where a request is refused, each row is tried alone.

    Args:
        send: sends rows as one request; raises RequestError.
        rows: at least one.
    """
    try:
        return send(rows)
    except RequestError as error:
        if len(rows) == 1 or isinstance(error, _FATAL):
            return [error] * len(rows)
    found: list[Out | RequestError] = []
    for place, row in enumerate(rows):
        (result,) = isolated(send, [row])
        if isinstance(result, _FATAL):
            return [*found, *[result] * (len(rows) - place)]
        found.append(result)
    return found


def answer_all(
    items: Iterable[In],
    prepare: Callable[[In], Row],
    answer: Callable[[Sequence[Row]], Sequence[Out | RequestError]],
    *,
    batch_rows: int,
    concurrency: int = 1,
) -> Generator[list[tuple[In, Out | RequestError]], None, None]:
    """Yield batches of items with what became of each, in order.

    While batches are with the server, the next ones are prepared: at most three batches (or four
    items) are in memory beside those in flight.

    Args:
        items: read only when their turn comes.
        prepare: makes a row of an item; a RequestError that it raises is that item's result.
        answer: returns a result for each row of a batch.
        batch_rows: items in a batch.
        concurrency: how many batches may be with the server at once.
    """

    def prepared(item: In) -> tuple[In, Row | RequestError]:
        try:
            return item, prepare(item)
        except RequestError as error:
            return item, error

    def answered(batch: list[tuple[In, Row | RequestError]]) -> list[tuple[In, Out | RequestError]]:
        rows = [row for _, row in batch if not isinstance(row, RequestError)]
        found = iter(answer(rows) if rows else ())
        return [
            (item, row if isinstance(row, RequestError) else next(found)) for item, row in batch
        ]

    with closing(_ahead(prepared, items, max(2 * batch_rows, _MOST_WORKERS))) as ahead:
        batches = iter(lambda: list(islice(ahead, batch_rows)), [])
        if concurrency == 1:
            yield from map(answered, batches)
            return
        with closing(_ahead(answered, batches, 2 * concurrency, concurrency)) as results:
            yield from results


def _ahead(
    make: Callable[[In], Out], items: Iterable[In], count: int, workers: int | None = None
) -> Generator[Out, None, None]:
    """Yield what a function makes of items, in order, with some of them in work beforehand."""
    source = iter(items)
    first = list(islice(source, 2))
    if len(first) <= 1:  # threads would take longer to import than they save
        yield from map(make, first)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    pool = ThreadPoolExecutor(workers or min(_MOST_WORKERS, os.cpu_count() or 1))
    waiting: deque[Future[Out]] = deque(pool.submit(make, item) for item in first)
    try:
        for item in source:
            waiting.append(pool.submit(make, item))
            if len(waiting) >= count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
