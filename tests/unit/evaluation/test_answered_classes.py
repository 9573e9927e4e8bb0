"""Models that answer with a class, or with the best classes alone: counted as they answer."""

import numpy as np
import pytest

from tests.unit.evaluation.made import dataset, tensor
from tfserve_kit.clients import Prediction, Target
from tfserve_kit.errors import ServerFault, UsageError
from tfserve_kit.evaluation.report import as_data, as_text, build, page, predictions_csv
from tfserve_kit.evaluation.run import Options, evaluate_versions
from tfserve_kit.pictures.model import PictureOptions
from tfserve_kit.savedmodel import Signature

ROWS = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]


class FixedClient:
    """Answers with a part of fixed outputs: as many rows as were sent, in their order."""

    url = "grpc://fixed"

    def __init__(self, **outputs):
        self._outputs = {alias: np.asarray(value) for alias, value in outputs.items()}
        self._sent = 0

    def metadata(self, target, *, timeout_s=30.0):
        outputs = {
            alias: tensor(
                {"S": "string", "O": "string", "i": "int64", "f": "float"}[value.dtype.kind],
                (None, *value.shape[1:]),
            )
            for alias, value in self._outputs.items()
        }
        spec = {"x": tensor("float", (None, 2))}

        class Found:
            version = 1
            signatures = {"serving_default": Signature("serving_default", spec, outputs, "")}

        return Found()

    def predict(self, target, inputs, *, timeout_s=30.0):
        count = len(inputs["x"])
        part = slice(self._sent, self._sent + count)
        self._sent += count
        return Prediction({alias: each[part] for alias, each in self._outputs.items()}, 1, 0.0)


def run(truth, *, given=None, **outputs):
    asked = PictureOptions(output=outputs.pop("output", ""))
    if given:
        from dataclasses import replace

        from tfserve_kit.pictures.preprocessing import Preprocessing

        asked = replace(asked, options=Preprocessing(labels=given))
    options = Options(batch_size=2, concurrency=1, asked=asked)
    return evaluate_versions(FixedClient(**outputs), [Target("m")], dataset(ROWS, truth), options)


def judged(found):
    (outcome,) = found.outcomes
    return [(each.true, each.predicted, each.score, each.rank) for each in outcome.answers]


LAST = 1 << 31


def test_the_number_of_a_class_alone_is_compared():
    found = run([1, 0, 1], classes=np.int64([1, 0, 0]))
    assert judged(found) == [(1, 1, None, 0), (0, 0, None, 0), (1, 0, None, LAST)]
    assert found.outcomes[0].classes == 2
    assert any("not among its top K" in text for text in found.assumed)


def test_the_name_of_a_class_alone_is_compared_without_a_guess():
    found = run(["dog", "cat", "dog"], label=np.array([b"dog", b"cat", b"cow"], object))
    assert [each.is_right for each in found.outcomes[0].answers] == [True, True, False]
    assert [found.outcomes[0].subject.classes.name(place) for place in range(3)] == [
        "cat", "dog", "cow",
    ]  # fmt: skip
    assert not any("sorted by name" in text for text in found.assumed)


def test_names_are_looked_up_in_labels_that_are_given():
    found = run([1, 0, 1], given=("cat", "dog"), label=np.array([b"dog", b"cat", b"cow"], object))
    assert judged(found) == [(1, 1, None, 0), (0, 0, None, 0), (1, 2, None, LAST)]


def test_numbers_are_those_of_labels_that_are_given():
    found = run(["dog", "cat", "dog"], given=("cat", "dog"), classes=np.int64([1, 0, 0]))
    assert [each.is_right for each in found.outcomes[0].answers] == [True, True, False]


def test_the_best_classes_alone_have_ranks_and_scores():
    found = run(
        ["dog", "cat", "cow"],
        labels=np.array([[b"dog", b"cat"], [b"dog", b"cat"], [b"cat", b"dog"]], object),
        scores=np.float32([[0.75, 0.25], [0.5, 0.25], [0.75, 0.125]]),
        indices=np.int64([[2, 0], [2, 0], [0, 2]]),
    )
    (outcome,) = found.outcomes
    assert [(each.is_right, each.score, each.rank) for each in outcome.answers] == [
        (True, 0.75, 0), (False, 0.5, 1), (False, 0.75, LAST),
    ]  # fmt: skip
    assert build(found, 2).summaries[0].top_k_error_rate == pytest.approx(1 / 3)


def test_report_shows_classes_without_scores():
    found = run([1, 0, 1], classes=np.int64([1, 0, 0]))
    shown = build(found, 5)
    assert shown.summaries[0].top_k_error_rate == shown.summaries[0].error_rate
    assert "1 of 3 wrong" in as_text(shown)
    assert as_data(shown)["results"][0]["worst"][0]["score"] is None
    assert "score -" in page(shown, {})
    assert predictions_csv(found).splitlines()[1] == "1,1,,set[0]"


@pytest.mark.parametrize(
    ("labels", "outputs", "said"),
    [
        ([1, 0, 1], {"label": np.array([b"dog", b"cat", b"cow"], object)},
         "the classes of the set are numbers"),
        (["a", "b", "a"], {"classes": np.int64([1, 0, 7])},
         "answers with class 7, and the set has 2 classes"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_told_are_refused(labels, outputs, said):
    with pytest.raises(UsageError, match=said) as caught:
        run(labels, **outputs)
    assert "--labels" in caught.value.remedy


def test_a_number_below_zero_is_no_answer():
    found = run([1, 0, 1], classes=np.int64([1, 0, -1]))
    assert [each.reason for each in found.outcomes[0].failures] == ["ServerFault: its class is -1"]
    with pytest.raises(ServerFault, match="its class is -1"):
        run([1, 0, 1], classes=np.int64([-1, -1, -1]))
