"""A made-up model and set for the tests of evaluation."""

import numpy as np

from tfserve_kit.clients import Prediction, Target
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.examples import Dataset, Failure, row_reader
from tfserve_kit.evaluation.run import ExampleAnswer, SubjectResult, _Subject
from tfserve_kit.pictures.model import PictureModel, PictureOptions
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes


def tensor(dtype, shape):
    return TensorSpec("t:0", dtypes.by_name(dtype) if dtype else None, shape)


def subject(*, version=1, shape=(None, 3), labels=None, names=(), threshold=None, **target):
    """A subject whose input are the scores themselves."""
    return _Subject(
        f"version {version}",
        Target("m", version, **target),
        version,
        PictureModel(
            Signature("s", {"x": tensor("float", shape)}, {"scores": tensor("float", shape)}, ""),
            PictureOptions(),
            ready=True,
        ),
        Classes(labels, names),
        threshold,
    )


def dataset(scores, labels):
    """A set whose rows are the scores that the model answers with."""
    rows = [row if isinstance(row, Exception) else np.float32(row) for row in scores]
    return rows_set(labels, lambda: iter(rows), ready=True)


def rows_set(labels, rows, **known):
    """A set whose examples are rows of a stream."""
    return Dataset("set", labels, row_reader("set", labels, rows), **known)


class EchoClient:
    """Answers with what was sent, after a function of one's choice; remembers the requests.

    Args:
        answer: given target and rows, returns the scores or raises.
    """

    url = "grpc://echo"

    def __init__(self, answer=lambda target, rows: rows, *, says_version=True):
        self._answer, self._says_version = answer, says_version
        self.sent = []
        self.serves = 1

    def predict(self, target, inputs, *, timeout_s=30.0):
        rows = inputs["x"]
        self.sent.append((target.version, len(rows), timeout_s))
        scores = self._answer(target, rows)
        version = (target.version or self.serves) if self._says_version else None
        return Prediction({"scores": np.asarray(scores)}, version, 0.0)

    def metadata(self, target, *, timeout_s=30.0):
        class Found:
            version = self.serves

        return Found()


def answer(index, true, predicted, score=0.9, rank=None, name=None):
    place = (0 if true == predicted else 1) if rank is None else rank
    return ExampleAnswer(index, name or f"{index}.png", true, predicted, score, place, 1)


def outcome(answers, *, classes=3, failures=0, probabilities=True, versions=(1,), **about):
    failed = [Failure(900 + i, f"lost{i}.png", "ServerFault: it broke") for i in range(failures)]
    return SubjectResult(subject(**about), answers, failed, versions, classes, probabilities)
