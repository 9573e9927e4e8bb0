"""Models that answer with the names of their classes: taken at their word, unless it changes."""

import numpy as np
import pytest

from tests.unit.evaluation.made import dataset, tensor
from tfserve_kit.clients import Prediction, Target
from tfserve_kit.errors import InvalidRequest, ServerFault, UsageError
from tfserve_kit.evaluation import run
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.run import Options, Subject, evaluate
from tfserve_kit.pictures.model import PictureModel, PictureOptions
from tfserve_kit.savedmodel import Signature

SCORES = [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]
NAMES = [b"red", b"green", b"blue"]


def model(rows=None, **outputs):
    spec = tensor("float", (rows, 3))
    outputs = outputs or {"labels": tensor("string", (rows, 3))}
    return PictureModel(
        Signature("s", {"x": spec}, {"scores": spec, **outputs}, ""), PictureOptions(), ready=True
    )


class NamingClient:
    """Answers with the scores that were sent, and names; those of a row, if it is given some."""

    def __init__(self, *names):
        self._names = names or (NAMES,)
        self.sent = []

    def predict(self, target, inputs, *, timeout_s=30.0):
        rows = inputs["x"]
        self.sent.append(len(rows))
        names = [self._names[min(i, len(self._names) - 1)] for i in range(len(rows))]
        return Prediction({"scores": rows, "labels": np.array(names, object)}, 1, 0.0)


def ask(client, labelled, **about):
    return run.own_names(client, Target("m"), model(**about), labelled, 5.0)


def test_the_names_of_one_answer_are_those_of_the_model():
    client = NamingClient()
    assert ask(client, dataset(SCORES, ["red", "blue"])) == ("red", "green", "blue")
    assert client.sent == [1]


def test_a_model_of_a_fixed_batch_is_asked_with_a_full_one():
    client = NamingClient()
    assert ask(client, dataset(SCORES, ["red", "blue"]), rows=4) == ("red", "green", "blue")
    assert client.sent == [4]


def test_an_example_that_cannot_be_used_is_passed_over():
    labelled = dataset([InvalidRequest("is empty"), SCORES[0]], ["red", "red"])
    assert ask(NamingClient(), labelled) == ("red", "green", "blue")


def test_a_server_that_fails_is_left_to_the_run():
    class Failing(NamingClient):
        def predict(self, target, inputs, *, timeout_s=30.0):
            raise ServerFault("broken")

    assert ask(Failing(), dataset(SCORES, ["red", "blue"])) is None


def test_a_model_without_names_is_not_asked():
    client = NamingClient()
    assert ask(client, dataset(SCORES, [0, 2]), other=tensor("int64", (None,))) is None
    assert client.sent == []


class TestInARun:
    def evaluated(self, client):
        labelled = dataset(SCORES, ["red", "blue"])
        classes = Classes.of(labelled, run.own_names(client, Target("m"), model(), labelled, 5.0))
        about = Subject("version 1", Target("m"), 1, model(), classes)
        return evaluate(client, [about], labelled, range(2), Options(concurrency=1))

    def test_they_are_no_guess(self):
        found = self.evaluated(NamingClient())
        assert [each.is_right for each in found.outcomes[0].answers] == [True, True]
        assert not any("sorted by name" in text for text in found.assumed)

    def test_a_model_that_sorts_its_classes_by_score_is_refused(self):
        with pytest.raises(UsageError, match="names its classes in another order") as caught:
            self.evaluated(NamingClient(NAMES, NAMES[::-1]))
        assert "--labels" in caught.value.remedy
