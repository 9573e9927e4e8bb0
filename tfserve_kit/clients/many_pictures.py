"""Many pictures: prepared ahead in threads, sent in batches, and none that fails loses another."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from tfserve_kit.clients.classifier import Classified, Classifier, PreparedPicture
from tfserve_kit.errors import (
    DeadlineExceeded,
    ModelNotFound,
    RequestError,
    ServerUnreachable,
    UsageError,
)
from tfserve_kit.pictures.files import PictureFile

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
