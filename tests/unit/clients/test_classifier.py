"""Pictures in, sorted scores out, over a client that is made up."""

import io

import numpy as np
import pytest
from PIL import Image

from tfserve_kit.clients import Prediction, Target
from tfserve_kit.clients.classifier import Classifier, choose_signature
from tfserve_kit.clients.labels import ClassScore
from tfserve_kit.errors import InvalidRequest, ServerFault, UsageError
from tfserve_kit.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

TARGET = Target("m", version=3)


def tensor(dtype, shape):
    return TensorSpec("t:0", dtypes.by_name(dtype) if dtype else None, shape)


PIXELS = tensor("float", (None, 1, 1, 3))
SCORES = tensor("float", (None, 3))


def signature(inputs=None, **outputs):
    return Signature("serving_default", inputs or {"image": PIXELS}, outputs, "")


class FixedClient:
    """Answers `predict` with fixed outputs, and remembers what it was sent."""

    url = "grpc://fixed"

    def __init__(self, **outputs):
        self._outputs = {alias: np.asarray(value) for alias, value in outputs.items()}
        self.sent = []

    def predict(self, target, inputs, *, output_filter=(), timeout_s=30.0):
        self.sent.append((target, inputs, timeout_s))
        return Prediction(self._outputs, 7, 0.25)


def png(pixel=(255, 0, 51)):
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), pixel).save(buffer, "PNG")
    return buffer.getvalue()


def classifier(client, given=None, note=Preprocessing(), **options):  # noqa: B008
    return Classifier(client, TARGET, given or signature(scores=SCORES), note, **options)


def test_picture_is_sent_as_a_batch_of_one_to_the_target():
    client = FixedClient(scores=np.float32([[0.1, 0.7, 0.2]]))
    classifier(client, timeout_s=5).classify(png())
    ((target, inputs, timeout_s),) = client.sent
    assert (target, timeout_s, list(inputs)) == (TARGET, 5, ["image"])
    np.testing.assert_allclose(inputs["image"], np.float32([[[[1, 0, 0.2]]]]), atol=1e-6)


def test_scores_come_back_sorted_with_version_and_times():
    client = FixedClient(scores=np.float32([[0.1, 0.7, 0.2]]))
    note = Preprocessing(labels=("ant", "bee", "cat"))
    found = classifier(client, note=note).classify(png(), top=2)
    assert [(each.index, each.label) for each in found.scores] == [(1, "bee"), (2, "cat")]
    assert found.version == 7
    assert found.request_s == 0.25
    assert 0 < found.prepare_s < 10


@pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (5, 3)])
def test_no_more_than_the_classes_there_are_come_back(top, count):
    client = FixedClient(scores=np.float32([[1, 2, 3]]))
    assert len(classifier(client).classify(png(), top=top).scores) == count


def test_labels_in_the_answer_name_the_classes():
    names = np.array([[b"ant", b"b\xff", b"cat"]], object)
    client = FixedClient(scores=np.float32([[3, 2, 1]]), names=names)
    found = classifier(client).classify(png()).scores
    assert [each.label for each in found] == ["ant", "b\ufffd", "cat"]


def test_labels_of_the_note_win_over_those_in_the_answer():
    names = np.array([[b"x", b"y", b"z"]], object)
    client = FixedClient(scores=np.float32([[3, 2, 1]]), names=names)
    note = Preprocessing(labels=("ant", "bee", "cat"))
    assert classifier(client, note=note).classify(png()).scores[0].label == "ant"


def test_text_of_another_shape_is_not_taken_for_labels():
    client = FixedClient(scores=np.float32([[3, 2, 1]]), note=np.array([b"a", b"b", b"c"], object))
    assert classifier(client).classify(png()).scores[0] == ClassScore(0, None, 3.0)


def test_encoded_input_gets_the_bytes_of_the_file():
    client = FixedClient(scores=np.float32([[1, 2, 3]]))
    given = signature({"bytes": tensor("string", (None,))}, scores=SCORES)
    classifier(client, given).classify(png())
    sent = client.sent[0][1]["bytes"]
    assert (sent.shape, sent[0]) == ((1,), png())


@pytest.mark.parametrize(
    ("outputs", "chosen"),
    [
        ({"y": SCORES}, "y"),
        ({"a": SCORES, "probabilities": SCORES}, "probabilities"),
        ({"logits": SCORES, "scores": SCORES}, "scores"),
        ({"logits": SCORES, "softmax": SCORES}, "softmax"),
        ({"classes": tensor("int64", (None,)), "z": SCORES}, "z"),
        ({"embedding": tensor("float", (None, 4, 4)), "z": SCORES}, "z"),
        ({"scores": tensor("int32", (None, 3)), "z": SCORES}, "z"),
        ({"scores": tensor(None, (None, 3)), "z": tensor("float", None)}, "z"),
        ({"z": tensor("half", (None, 3))}, "z"),
    ],
)
def test_scores_are_taken_from_the_output_that_looks_like_them(outputs, chosen):
    answer = {alias: np.float32([[0, 0, 0]]) for alias in outputs}
    client = FixedClient(**answer | {chosen: np.float32([[0, 0, 9]])})
    assert classifier(client, signature(**outputs)).classify(png()).scores[0].score == 9


@pytest.mark.parametrize(
    "outputs",
    [
        {"classes": tensor("int64", (None,))},
        {"scores": tensor("float", (None,))},
        {"scores": tensor("string", (None, 3))},
        {},
    ],
)
def test_signature_without_scores_is_refused(outputs):
    with pytest.raises(UsageError, match="has no output with scores"):
        classifier(FixedClient(), signature(**outputs))


def test_signature_without_a_picture_is_refused():
    with pytest.raises(UsageError, match="is not a picture"):
        classifier(FixedClient(), signature({"x": tensor("float", (None,))}, scores=SCORES))


@pytest.mark.parametrize(
    ("outputs", "shape"),
    [({}, "None"), ({"scores": np.zeros(3)}, "[3]"), ({"scores": np.zeros((2, 3))}, "[2, 3]")],
)
def test_answer_of_another_shape_is_the_servers_fault(outputs, shape):
    with pytest.raises(ServerFault) as caught:
        classifier(FixedClient(**outputs)).classify(png())
    assert caught.value.message == (
        f"model 'm' version 3: output 'scores' should be [1, classes] but is {shape}"
    )


# Several pictures in one request


def test_prepared_pictures_are_one_batch_and_each_gets_its_row():
    client = FixedClient(scores=np.float32([[0.1, 0.7, 0.2], [0.9, 0, 0.1]]))
    given = classifier(client, note=Preprocessing(labels=("ant", "bee", "cat")))
    pictures = [given.prepare(png(), name="a"), given.prepare(png((51, 0, 0)), name="b")]
    found = given.score(pictures, top=1)
    ((_, inputs, _),) = client.sent
    assert inputs["image"].shape == (2, 1, 1, 3)
    np.testing.assert_allclose(inputs["image"][:, 0, 0, 0], [1, 0.2], atol=1e-6)
    assert [each.scores[0].label for each in found] == ["bee", "ant"]
    assert [(each.batch_rows, each.request_s, each.version) for each in found] == [(2, 0.25, 7)] * 2
    assert [each.prepare_s for each in found] == [each.prepare_s for each in pictures]


def test_each_row_has_its_own_labels_in_the_answer():
    names = np.array([[b"ant", b"bee"], [b"cow", b"dog"]], object)
    client = FixedClient(scores=np.float32([[1, 2], [2, 1]]), names=names)
    given = classifier(client, signature(scores=tensor("float", (None, 2))))
    found = given.score([given.prepare(png(), name="a")] * 2, top=1)
    assert [each.scores[0].label for each in found] == ["bee", "cow"]


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (3, 3), (None, None)])
def test_number_of_rows_is_that_of_the_signature(rows, expected):
    given = signature({"image": tensor("float", (rows, 1, 1, 3))}, scores=SCORES)
    assert classifier(FixedClient(), given).fixed_rows == expected
    unknown = signature({"image": tensor("string", None)}, scores=SCORES)
    assert classifier(FixedClient(), unknown).fixed_rows is None


def test_batch_of_a_fixed_size_is_filled_with_the_last_picture():
    client = FixedClient(scores=np.float32([[3, 2, 1], [1, 2, 3], [1, 2, 3]]))
    fixed = signature({"image": tensor("float", (3, 1, 1, 3))}, scores=SCORES)
    given = classifier(client, fixed)
    pictures = [given.prepare(png(), name="a"), given.prepare(png((51, 0, 0)), name="b")]
    found = given.score(pictures, top=1)
    sent = client.sent[0][1]["image"]
    np.testing.assert_allclose(sent[:, 0, 0, 0], [1, 0.2, 0.2], atol=1e-6)
    assert [each.scores[0].index for each in found] == [0, 2]


def test_data_that_is_no_picture_is_refused_before_anything_is_sent():
    client = FixedClient(scores=np.float32([[1, 2, 3]]))
    with pytest.raises(InvalidRequest, match=r"notes\.txt is not a picture"):
        classifier(client).classify(b"text", name="notes.txt")
    assert client.sent == []


def test_other_number_of_labels_than_classes_is_refused():
    client = FixedClient(scores=np.float32([[1, 2, 3]]))
    with pytest.raises(UsageError, match="2 labels for a model with 3 classes"):
        classifier(client, note=Preprocessing(labels=("a", "b"))).classify(png())


@pytest.mark.parametrize(("name", "expected"), [("", "serving_default"), ("other", "other")])
def test_signature_is_chosen_by_name(name, expected):
    found = {key: Signature(key, {}, {}, "") for key in ("other", "serving_default")}
    assert choose_signature(found, name).name == expected


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("servin_default", "did you mean serving_default?"), ("zzz", "known: serving_default")],
)
def test_unknown_signature_is_refused_with_the_known_ones(name, remedy):
    found = {"serving_default": Signature("serving_default", {}, {}, "")}
    with pytest.raises(UsageError) as caught:
        choose_signature(found, name)
    assert caught.value.message == f"the model has no signature {name!r}"
    assert caught.value.remedy == remedy
