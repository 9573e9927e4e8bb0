"""Pictures in, sorted class scores out, over any client."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients.base import DEFAULT_TIMEOUT_S, Client, Target
from tfserve_kit.clients.labels import ClassScore, top_scores
from tfserve_kit.errors import ServerFault, UsageError, did_you_mean
from tfserve_kit.pictures.prepare import ImageInput, image_input, prepare
from tfserve_kit.preprocessing import Preprocessing
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature
from tfserve_kit.tensors import dtypes


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """One row of the model's input, and how long decoding and preparing it took, in seconds."""

    row: NDArray[Any]
    prepare_s: float


@dataclass(frozen=True, slots=True)
class Classified:
    """The classes of one picture, best first.

    Attributes:
        scores: index, name and score of each class.
        version: the model version that answered; None over REST, which does not say.
        prepare_s: decoding and preparing the picture, in seconds.
        request_s: from sending the request to holding the decoded answer, in seconds.
        batch_rows: how many pictures that one request was for.
    """

    scores: tuple[ClassScore, ...]
    version: int | None
    prepare_s: float
    request_s: float
    batch_rows: int = 1


class Classifier:
    """Classifies pictures with one model; what it wants is read from its signature, once.

    Thread-safe.

    Args:
        client: a connection; not closed here.
        target: model, version or label, and signature.
        signature: the signature of that name, from `Client.metadata`.
        note: what is known beside the signature.
        timeout_s: deadline of each request, in seconds.

    Raises:
        UsageError: the signature takes no picture or gives no scores.
    """

    def __init__(
        self,
        client: Client,
        target: Target,
        signature: Signature,
        note: Preprocessing,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._client = client
        self._target = target
        self._input: ImageInput = image_input(signature, note)
        self._scores = score_output(signature)
        self._labels = note.labels
        self._timeout_s = timeout_s

    @property
    def fixed_rows(self) -> int | None:
        """The number of rows that every request must have; None if that is open."""
        shape = self._input.spec.shape
        return shape[0] if shape else None

    def classify(self, data: bytes, *, name: str = "image", top: int = 5) -> Classified:
        """Classify one encoded picture.

        Args:
            data: the bytes of a JPEG, PNG or other picture.
            name: what errors call it.
            top: how many classes to return.

        Raises:
            InvalidRequest: the data is no picture.
            RequestError: the request failed.
        """
        (found,) = self.score([self.prepare(data, name=name)], top=top)
        return found

    def prepare(self, data: bytes, *, name: str) -> PreparedPicture:
        """Decode a picture and bring it into the form that the model wants.

        Args:
            data: the bytes of a JPEG, PNG or other picture.
            name: what errors call it.

        Raises:
            InvalidRequest: the data is no picture.
        """
        started_s = time.perf_counter()
        row = prepare(data, self._input, name=name)
        return PreparedPicture(row, time.perf_counter() - started_s)

    def score(self, pictures: Sequence[PreparedPicture], *, top: int) -> list[Classified]:
        """Classify prepared pictures with one request.

        Args:
            pictures: at least one; no more than `fixed_rows`, up to which the last is repeated.
            top: how many classes to return.

        Raises:
            RequestError: the request failed.
            UsageError: there is another number of labels than of classes.
        """
        rows = [picture.row for picture in pictures]
        rows += rows[-1:] * ((self.fixed_rows or 0) - len(rows))
        batch = np.stack(rows) if len(rows) > 1 else rows[0][np.newaxis]
        answer = self._client.predict(
            self._target, {self._input.alias: batch}, timeout_s=self._timeout_s
        )
        scores = self._score_rows(answer.outputs, len(rows))
        labels = [self._labels] * len(rows)
        if self._labels is None:
            labels = _labels_in(answer.outputs, scores.shape) or labels
        return [
            Classified(
                tuple(top_scores(scores[i], labels[i], top)),
                answer.version,
                picture.prepare_s,
                answer.duration_s,
                len(pictures),
            )
            for i, picture in enumerate(pictures)
        ]

    def _score_rows(self, outputs: Mapping[str, NDArray[Any]], rows: int) -> NDArray[Any]:
        scores = outputs.get(self._scores)
        if scores is None or scores.ndim != 2 or len(scores) != rows:  # noqa: PLR2004 ([batch, classes])
            shape = None if scores is None else list(scores.shape)
            wanted = f"should be [{rows}, classes] but is {shape}"
            raise ServerFault(f"{self._target}: output {self._scores!r} {wanted}")
        return scores


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


def score_output(signature: Signature) -> str:
    """Return the alias of the output that holds scores, float [batch, classes].

    Raises:
        UsageError: there is none.
    """
    if (found := signature.score_output) is None:
        outputs = ", ".join(f"{alias}: {spec}" for alias, spec in signature.outputs.items())
        raise UsageError(
            f"signature {signature.name!r} has no output with scores [batch, classes]: {outputs}",
            remedy="choose another with --signature; `tfkit metadata` lists them",
        )
    return found


def _labels_in(
    outputs: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
) -> list[tuple[str, ...] | None] | None:
    """Return each row's class names where the model answers with them: string [batch, classes]."""
    for array in outputs.values():
        if array.shape == shape and dtypes.by_numpy(array.dtype) is dtypes.STRING:
            return [tuple(item.decode("utf-8", "replace") for item in row) for row in array]
    return None
