"""Class scores: sorted, with index and name.

Pictures in, what the model says of them out, over any client.

Many pictures: prepared ahead in threads, sent in batches, and none that fails loses another.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
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
    did_you_mean,
)
from tfserve_kit.pictures import outputs as heads
from tfserve_kit.pictures.files import PictureFile
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.labels import Labels
from tfserve_kit.pictures.labels import read as read_labels
from tfserve_kit.pictures.model import Asked, Meaning, PictureModel
from tfserve_kit.pictures.outputs import Detection, Outputs, ranking
from tfserve_kit.pictures.prepare import prepare
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature

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
    """

    scores: tuple[ClassScore, ...]
    version: int | None
    prepare_s: float
    request_s: float
    batch_rows: int = 1
    detections: tuple[Detection, ...] | None = None
    meaning: Meaning = "probabilities"
    nan_scores: int = 0


class Classifier:
    """Classifies pictures with one model; what it wants is found out once.

    Thread-safe.

    Args:
        client: a connection; not closed here.
        target: model, version or label, and signature.
        signature: the signature of that name, from `Client.metadata`.
        asked: what is known beside the signature.
        graph: the version's graph, where it can be read here: it tells what else is open.
        timeout_s: deadline of each request, in seconds.

    Attributes:
        model: what goes in and comes out, and what decided so.
        labels: the names of its classes, brought to their number once that is known; None if
            nobody says them.

    Raises:
        UsageError: the signature takes no picture, or it is not clear what it says of one.
    """

    def __init__(
        self,
        client: Client,
        target: Target,
        signature: Signature,
        asked: Asked,
        *,
        graph: PictureGraph | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._client = client
        self._target = target
        self.model = PictureModel(signature, asked, graph)
        self.labels = self._fitted(
            asked.labels, self.model.classes, is_one_column=self.model.is_one_column
        )
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
            InvalidRequest: the data is no picture.
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
            InvalidRequest: the data is no picture.
        """
        started_s = time.perf_counter()
        row = prepare(data, self.model.input, name=name)
        return PreparedPicture(row, time.perf_counter() - started_s, name, index)

    def score(self, pictures: Sequence[PreparedPicture], *, top: int) -> list[Classified]:
        """Classify prepared pictures with one request.

        Args:
            pictures: at least one; no more than `fixed_rows`, up to which the last is repeated.
            top: how many classes or objects to return.

        Raises:
            RequestError: the request failed.
            UsageError: there is another number of labels than of classes, or the answer cannot be
                shown as classes.
        """
        missing = max(0, (self.fixed_rows or 0) - len(pictures))
        sent = [*pictures, *[pictures[-1]] * missing]
        inputs = self.model.inputs(
            [each.row for each in sent], [(each.name, each.index) for each in sent]
        )
        answer = self._client.predict(self._target, inputs, timeout_s=self._timeout_s)
        read = {
            "scores": self._scored,
            "ranked": self._ranked,
            "class": self._named,
            "detections": self._detected,
        }
        said = read[self.model.head.kind](answer.outputs, len(sent), top)
        return [
            Classified(
                each.scores,
                answer.version,
                picture.prepare_s,
                answer.duration_s,
                len(pictures),
                each.detections,
                each.meaning,
                each.nan_scores,
            )
            for each, picture in zip(said, pictures, strict=False)
        ]

    def _scored(self, outputs: Outputs, rows: int, top: int) -> list["_Said"]:
        scores, meaning = self.model.scores(outputs, rows, str(self._target))
        one = meaning == "one probability"
        self.labels = self._fitted(self.labels, scores.shape[1], is_one_column=one)
        labels: Sequence[Sequence[str] | None] = [self.labels] * rows
        if self.labels is None:
            labels = self.model.labels_in(outputs, scores.shape) or labels
        return [
            _Said(
                tuple(top_scores(scores[i], labels[i], top)),
                None,
                meaning,
                int(np.isnan(scores[i]).sum()),
            )
            for i in range(rows)
        ]

    def _ranked(self, outputs: Outputs, rows: int, top: int) -> list["_Said"]:
        found = ranking(outputs, self.model.head, rows, self.labels, str(self._target))
        return [
            _Said(
                tuple(ClassScore(*each) for each in row[:top]),
                None,
                "scores of the best classes",
                sum(np.isnan(score) for _, _, score in row),
            )
            for row in found
        ]

    def _named(self, outputs: Outputs, rows: int, top: int) -> list["_Said"]:
        del top
        head, where = self.model.head, str(self._target)
        classes = heads.rows_of(outputs, head.classes, rows, head, where).reshape(rows, -1)[:, 0]
        scores: list[float | None] = [None] * rows
        if head.scores:
            found = heads.rows_of(outputs, head.scores, rows, head, where).reshape(rows, -1)[:, 0]
            scores = [float(each) for each in found]
        return [
            _Said((ClassScore(*heads.named(value, self.labels), score),), None, "classes")
            for value, score in zip(classes, scores, strict=True)
        ]

    def _detected(self, outputs: Outputs, rows: int, top: int) -> list["_Said"]:
        found = heads.detections(outputs, self.model.head, rows, self.labels, str(self._target))
        return [_Said((), tuple(each[:top]), "boxes") for each in found]


@dataclass(frozen=True, slots=True)
class _Said:
    scores: tuple[ClassScore, ...]
    detections: tuple[Detection, ...] | None
    meaning: Meaning
    nan_scores: int = 0


def choose_signature(signatures: Mapping[str, Signature], name: str) -> Signature:
    """Return the signature of a name; empty means `serving_default`.

    Raises:
        UsageError: the model has none of that name.
    """
    wanted = name or DEFAULT_SIGNATURE
    if wanted not in signatures:
        raise UsageError(
            f"the model has no signature {wanted!r}", remedy=did_you_mean(wanted, signatures)
        )
    return signatures[wanted]


# Rows of a request if nobody says; enough to keep a server busy, little to wait for.
DEFAULT_BATCH_ROWS = 16
_MOST_WORKERS = 4
# With these, the next picture would fare no better.
_FATAL = (DeadlineExceeded, ModelNotFound, ServerUnreachable)

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one picture: its classes, or the error that concerns it alone."""

    name: str
    result: Classified | RequestError


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
) -> Generator[Outcome, None, None]:
    """Yield what becomes of each picture, in order.

    While a batch is with the server, the next ones are prepared: at most three batches (or
    four pictures) are in memory, and as many decoded pictures as there are threads.

    Args:
        classifier: prepares and asks.
        pictures: read only when their turn comes.
        batch_rows: pictures in each request.
        top: how many classes to return.

    Raises:
        RequestError: the server is gone, does not know the model, or did not answer in time.
        UsageError: there is another number of labels than of classes.
    """

    def prepare(numbered: tuple[int, PictureFile]) -> tuple[str, PreparedPicture | RequestError]:
        index, picture = numbered
        try:
            data = picture.read()
            return picture.name, classifier.prepare(data, name=picture.name, index=index)
        except RequestError as error:
            return picture.name, error

    with closing(_ahead(prepare, enumerate(pictures), max(2 * batch_rows, _MOST_WORKERS))) as ahead:
        while batch := list(islice(ahead, batch_rows)):
            ready = [item for _, item in batch if isinstance(item, PreparedPicture)]
            scored = iter(_scored(classifier, ready, top))
            for name, item in batch:
                yield Outcome(name, next(scored) if isinstance(item, PreparedPicture) else item)


def _scored(
    classifier: Classifier, pictures: Sequence[PreparedPicture], top: int
) -> Sequence[Classified | RequestError]:
    """Return a result for each picture; where a batch is refused, each is tried alone."""
    if not pictures:
        return []
    try:
        return classifier.score(pictures, top=top)
    except _FATAL:
        raise
    except RequestError as error:
        if len(pictures) == 1:
            return [error]
        return [result for each in pictures for result in _scored(classifier, [each], top)]


def _ahead(
    make: Callable[[In], Out], items: Iterable[In], count: int
) -> Generator[Out, None, None]:
    """Yield what a function makes of items, in order, with some of them in work beforehand."""
    source = iter(items)
    first = list(islice(source, 2))
    if len(first) <= 1:  # threads would take longer to import than they save
        yield from map(make, first)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    pool = ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1))
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
