"""Pictures in, sorted class scores out, over any client."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients.base import DEFAULT_TIMEOUT_S, Client, Target
from tfserve_kit.clients.images import ImageInput, image_input, prepare
from tfserve_kit.clients.labels import ClassScore, top_scores
from tfserve_kit.errors import ServerFault, UsageError, did_you_mean
from tfserve_kit.preprocessing import Preprocessing
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature
from tfserve_kit.tensors import dtypes

_SCORE_NAMES = ("scores", "probabilities", "predictions", "softmax", "logits")


@dataclass(frozen=True, slots=True)
class Classified:
    """The classes of one picture, best first.

    Attributes:
        scores: index, name and score of each class.
        version: the model version that answered; None over REST, which does not say.
        prepare_s: decoding and preparing the picture, in seconds.
        request_s: from sending the request to holding the decoded answer, in seconds.
    """

    scores: tuple[ClassScore, ...]
    version: int | None
    prepare_s: float
    request_s: float


class Classifier:
    """Classifies pictures with one model; what it wants is read from its signature, once.

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
        self._scores = _score_output(signature)
        self._labels = note.labels
        self._timeout_s = timeout_s

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
        started_s = time.perf_counter()
        row = prepare(data, self._input, name=name)
        batch = row[np.newaxis]
        prepare_s = time.perf_counter() - started_s
        answer = self._client.predict(
            self._target, {self._input.alias: batch}, timeout_s=self._timeout_s
        )
        scores = self._rows(answer.outputs)
        labels = self._labels or _labels_in(answer.outputs, len(scores))
        ranked = tuple(top_scores(scores, labels, top))
        return Classified(ranked, answer.version, prepare_s, answer.duration_s)

    def _rows(self, outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        scores = outputs.get(self._scores)
        if scores is None or scores.ndim != 2 or len(scores) != 1:  # noqa: PLR2004 ([batch, classes])
            shape = None if scores is None else list(scores.shape)
            raise ServerFault(
                f"{self._target}: output {self._scores!r} should be [1, classes] but is {shape}"
            )
        row: NDArray[Any] = scores[0]
        return row


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


def _score_output(signature: Signature) -> str:
    """Return the alias of the output that holds [batch, classes] scores."""
    found = [
        alias
        for alias, spec in signature.outputs.items()
        if spec.dtype is not None
        and spec.dtype.name in {"float", "double", "half", "bfloat16"}
        and (spec.shape is None or len(spec.shape) == 2)  # noqa: PLR2004 ([batch, classes])
    ]
    preferred = [name for name in _SCORE_NAMES if name in found]
    if not found:
        outputs = ", ".join(f"{alias}: {spec}" for alias, spec in signature.outputs.items())
        raise UsageError(
            f"signature {signature.name!r} has no output with scores [batch, classes]: {outputs}",
            remedy="choose another with --signature; `tfkit metadata` lists them",
        )
    return (preferred or found)[0]


def _labels_in(outputs: Mapping[str, NDArray[Any]], classes: int) -> tuple[str, ...] | None:
    """Return class names where the model itself answers with them, as string [1, classes]."""
    for array in outputs.values():
        if dtypes.by_numpy(array.dtype) is dtypes.STRING and array.shape == (1, classes):
            return tuple(item.decode("utf-8", "replace") for item in array[0])
    return None
