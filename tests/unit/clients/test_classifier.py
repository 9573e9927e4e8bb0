"""Pictures in, sorted scores out, over a client that is made up."""

import io
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tfserve_kit.clients import Metadata, Prediction, Target
from tfserve_kit.clients.classifier import (
    Classified,
    Classifier,
    ClassScore,
    PreparedPicture,
    choose_batch_rows,
    classify_all,
    find_model,
    top_scores,
)
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    ServerOverloaded,
    ServerUnreachable,
    UsageError,
)
from tfserve_kit.pictures.files import PictureFile
from tfserve_kit.pictures.graph import PictureFacts
from tfserve_kit.pictures.labels import parse
from tfserve_kit.pictures.model import PictureModel, PictureOptions
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

TARGET = Target("m", version=3)


def tensor(dtype, shape):
    return TensorSpec("t:0", dtypes.by_name(dtype) if dtype else None, shape)


PIXELS = tensor("float", (None, 1, 1, 3))
SCORES = tensor("float", (None, 3))
NAMES = tensor("string", (None, 3))


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
    asked = PictureOptions(note, **options.pop("asked", {}))
    graph = options.pop("graph", None)
    model = PictureModel(given or signature(scores=SCORES), asked, graph)
    return Classifier(client, TARGET, model, **options)


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
    found = classifier(client, signature(scores=SCORES, names=NAMES)).classify(png()).scores
    assert [each.label for each in found] == ["ant", "b\ufffd", "cat"]


def test_labels_of_the_note_win_over_those_in_the_answer():
    names = np.array([[b"x", b"y", b"z"]], object)
    client = FixedClient(scores=np.float32([[3, 2, 1]]), names=names)
    note = Preprocessing(labels=("ant", "bee", "cat"))
    given = signature(scores=SCORES, names=NAMES)
    assert classifier(client, given, note).classify(png()).scores[0].label == "ant"


def test_text_of_another_shape_is_not_taken_for_labels():
    client = FixedClient(scores=np.float32([[3, 2, 1]]), note=np.array([b"a", b"b", b"c"], object))
    given = signature(scores=SCORES, note=tensor("string", (None,)))
    assert classifier(client, given).classify(png()).scores[0] == ClassScore(0, None, 3.0)


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
        ({"predictions": SCORES, "probabilities": SCORES}, "probabilities"),
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
        {"scores": tensor("string", (None, 3))},
        {},
    ],
)
def test_signature_without_scores_is_refused(outputs):
    with pytest.raises(UsageError, match="has no output with scores"):
        classifier(FixedClient(), signature(**outputs))


def test_signature_without_a_picture_is_refused():
    with pytest.raises(UsageError, match="input 'x' takes float"):
        classifier(FixedClient(), signature({"x": tensor("float", (None,))}, scores=SCORES))


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        ({}, "should have 1 rows but is None"),
        ({"scores": np.zeros(3)}, "should have 1 rows but is [3]"),
        ({"scores": np.zeros((2, 3))}, "should have 1 rows but is [2, 3]"),
        ({"scores": np.zeros((1, 2, 3))}, "should be [1, classes] but is [1, 2, 3]"),
        ({"scores": np.zeros((1, 0))}, "should be [1, classes] but is [1, 0]"),
    ],
)
def test_answer_of_another_shape_is_the_servers_fault(outputs, fault):
    with pytest.raises(ServerFault) as caught:
        classifier(FixedClient(**outputs)).classify(png())
    assert caught.value.message == (f"model 'm' version 3: output 'scores' {fault}")


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
    two = {"scores": tensor("float", (None, 2)), "names": tensor("string", (None, 2))}
    given = classifier(client, signature(**two))
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


class Described:
    """A server that tells of several signatures."""

    def metadata(self, target, *, timeout_s):
        rows = signature(y=tensor("float", (None,)))
        numbers = replace(rows, inputs={"x": tensor("float", (None,))})
        return Metadata(1, {"serving_default": numbers, "pictures": rows, self.other: rows})

    other = "others"


def test_input_that_is_no_picture_is_told_with_the_request_and_the_other_signatures():
    with pytest.raises(UsageError, match=r"input 'x' takes .*, not a picture") as caught:
        find_model(Described(), TARGET, PictureOptions())
    assert "`tfkit request FILE.npy`, an array of shape [rows], float" in caught.value.remedy
    assert "--signature others or pictures" in caught.value.remedy


def test_names_in_a_remedy_can_be_pasted_into_a_shell():
    described = Described()
    described.other = "other one"
    with pytest.raises(UsageError) as caught:
        find_model(described, TARGET, PictureOptions())
    assert "--signature 'other one' or pictures" in caught.value.remedy
    outputs = {"my scores": SCORES, "bright": tensor("float", (None, 2))}
    with pytest.raises(UsageError) as caught:
        classifier(FixedClient(), signature(**outputs))
    assert caught.value.remedy == "choose one: --output 'my scores' or --output bright"
    inputs = {"image": PIXELS, "keep it": tensor("float", ())}
    with pytest.raises(UsageError) as caught:
        classifier(
            FixedClient(), signature(inputs, scores=SCORES), asked={"picture_input": "image"}
        )
    assert "--set 'keep it'=VALUE" in caught.value.remedy


def test_fault_of_an_option_is_not_that_of_the_signature():
    asked = PictureOptions(options=Preprocessing(std=(0.0,)))
    with pytest.raises(UsageError, match="--std") as caught:
        find_model(Described(), replace(TARGET, signature="pictures"), asked)
    assert "--signature" not in caught.value.remedy


# What is shown, and what is only assumed


class Graph:
    """Tells what it is told to tell."""

    def __init__(self, facts=None, made_by=None):
        self._facts, self._made_by = facts or PictureFacts(), made_by

    def input(self, alias):
        return self._facts

    def output(self, alias):
        return self._made_by


def choice(given, what):
    return next(each for each in given.model.choices if each.what == what)


def sent_pixel(given, client):
    given.classify(png((255, 255, 255)))
    return client.sent[0][1]["image"].ravel()[0]


def test_range_that_nothing_tells_is_assumed_and_said():
    client = FixedClient(scores=np.float32([[0, 0, 1]]))
    given = classifier(client, graph=Graph())
    assert (choice(given, "range").source, choice(given, "range").value) == ("assumed", "0 to 1")
    assert sent_pixel(given, client) == 1


def test_range_of_the_graph_is_taken_and_said():
    client = FixedClient(scores=np.float32([[0, 0, 1]]))
    given = classifier(client, graph=Graph(PictureFacts((0.0, 255.0), None, "rescaling/mul")))
    assert str(choice(given, "range")) == "range 0 to 255 (from the graph: rescaling/mul)"
    assert sent_pixel(given, client) == 255


@pytest.mark.parametrize(
    ("note", "options", "source", "pixel"),
    [
        (Preprocessing(value_range=(-1, 1)), Preprocessing(), "note", 1),
        (Preprocessing(mode="caffe"), Preprocessing(value_range=(0, 2)), "option", 2 - 103.939),
        (Preprocessing(), Preprocessing(value_range=(0, 7)), "option", 7),
    ],
)
def test_note_and_options_win_over_the_graph(note, options, source, pixel):
    client = FixedClient(scores=np.float32([[0, 0, 1]]))
    graph = Graph(PictureFacts((0.0, 255.0), None, "rescaling/mul"))
    given = classifier(client, note=note, asked={"options": options}, graph=graph)
    assert choice(given, "range").source == source
    assert sent_pixel(given, client) == pytest.approx(pixel, abs=1e-3)


def test_two_outputs_that_may_be_scores_are_refused_unless_one_is_chosen():
    outputs = {"colour": SCORES, "bright": tensor("float", (None, 2))}
    with pytest.raises(UsageError) as caught:
        classifier(FixedClient(), signature(**outputs))
    assert "bright float [?, 2]" in caught.value.message
    assert "--output" in caught.value.remedy
    client = FixedClient(colour=np.float32([[0, 1, 0]]), bright=np.float32([[1, 0]]))
    given = classifier(client, signature(**outputs), asked={"output": "colour"})
    assert given.classify(png()).scores[0].index == 1
    assert choice(given, "output").source == "option"


class TestOneColumn:
    COLUMN = signature(y=tensor("float", (None, 1)))

    @pytest.mark.parametrize(("value", "order"), [(0.9, [1, 0]), (0.2, [0, 1])])
    def test_is_two_classes(self, value, order):
        found = classifier(FixedClient(y=np.float32([[value]])), self.COLUMN).classify(png())
        assert [each.index for each in found.scores] == order
        assert sum(each.score for each in found.scores) == pytest.approx(1)
        assert found.meaning == "one probability"

    def test_labels_name_both(self):
        note = Preprocessing(labels=("cat", "dog"))
        found = classifier(FixedClient(y=np.float32([[0.9]])), self.COLUMN, note).classify(png())
        assert found.scores[0].label == "dog"

    def test_single_label_names_what_is_found(self):
        given = classifier(
            FixedClient(y=np.float32([[0.2]])), self.COLUMN, Preprocessing(labels=("cat",))
        )
        assert [each.label for each in given.classify(png()).scores] == ["not cat", "cat"]

    def test_number_that_is_no_probability_is_refused(self):
        with pytest.raises(UsageError, match="such as 42, which is not a probability") as caught:
            classifier(FixedClient(y=np.float32([[42]])), self.COLUMN).classify(png())
        assert "--softmax" in caught.value.remedy

    def test_logit_on_request(self):
        given = classifier(FixedClient(y=np.float32([[2]])), self.COLUMN, asked={"softmax": True})
        assert given.classify(png()).scores[0].score == pytest.approx(0.8808, abs=1e-4)

    @pytest.mark.parametrize(("made_by", "source"), [("sigmoid", "graph"), (None, "assumed")])
    def test_graph_proves_it(self, made_by, source):
        given = classifier(FixedClient(), self.COLUMN, graph=Graph(made_by=made_by))
        assert choice(given, "output").source == source

    def test_softmax_of_one_number_is_refused_because_it_is_always_one(self):
        with pytest.raises(
            UsageError, match="a softmax of one number, which is the same"
        ) as caught:
            classifier(FixedClient(), self.COLUMN, graph=Graph(made_by="softmax"))
        assert "sigmoid" in caught.value.remedy

    def test_column_without_its_axis_is_the_same(self):
        given = signature(y=tensor("float", (None,)))
        found = classifier(FixedClient(y=np.float32([0.7])), given).classify(png())
        assert found.scores[0].index == 1


@pytest.mark.parametrize(
    ("scores", "softmax", "meaning", "best"),
    [
        ([[0.2, 0.5, 0.3]], False, "probabilities", 0.5),
        ([[2, 5, 1]], False, "logits or other scores", 5),
        ([[0.9, 0.8, 0.7]], False, "logits or other scores", 0.9),
        ([[2, 5, 1]], True, "probabilities", 0.9362),
        ([[1000, 0, 0]], True, "probabilities", 1),
    ],
)
def test_scores_are_called_what_they_are(scores, softmax, meaning, best):
    given = classifier(FixedClient(scores=np.float32(scores)), asked={"softmax": softmax})
    found = given.classify(png())
    assert found.meaning == meaning
    assert found.scores[0].score == pytest.approx(best, abs=1e-4)


def test_scores_that_are_nan_are_counted_and_come_last():
    client = FixedClient(scores=np.float32([[np.nan, 0.5, np.nan]]))
    found = classifier(client).classify(png())
    assert (found.nan_scores, found.scores[0].index) == (2, 1)
    assert found.meaning != "probabilities"  # of which nothing is left to tell


@pytest.mark.parametrize(
    ("outputs", "scores", "expected"),
    [
        ({"scores": tensor("float", (1, 3))}, [[0.1, 0.7, 0.2]], [1, 2, 0]),
        ({"scores": tensor("float", (3,))}, [0.1, 0.7, 0.2], [1, 2, 0]),
        ({"p": tensor("float", (1, 1))}, [[0.9]], [1, 0]),
        ({"p": tensor("float", (1,))}, [0.9], [1, 0]),
    ],
)
@pytest.mark.parametrize("given", [("string", ()), ("float", (1, 1, 3))])
def test_one_picture_without_an_axis_for_more_may_have_an_answer_with_one(
    given, outputs, scores, expected
):
    client = FixedClient(**{alias: np.float32(scores) for alias in outputs})
    found = classifier(client, signature({"image": tensor(*given)}, **outputs)).classify(png())
    assert [each.index for each in found.scores] == expected


class FixedGraph:
    """A graph that tells what makes the scores, or whether anything decodes pictures."""

    def __init__(self, made_by=None, *, may_decode=True):
        self.made_by, self.may_decode = made_by, may_decode

    def input(self, alias):
        return PictureFacts()

    def output(self, alias):
        return self.made_by


@pytest.mark.parametrize(
    ("alias", "made_by", "source"),
    [
        ("scores", None, "signature"),
        ("class_probabilities", None, "signature"),
        ("output_0", "softmax", "graph"),
        ("output_0", "sigmoid", "graph"),
        ("output_0", "logits", "assumed"),
        ("embedding", None, "assumed"),
    ],
)
def test_who_says_that_numbers_are_scores_is_told(alias, made_by, source):
    made = classifier(FixedClient(), signature(**{alias: SCORES}), graph=FixedGraph(made_by))
    change = "; change: --output NAME" if source == "assumed" else ""
    assert str(made.model).endswith(f"output '{alias}', class scores ({source}{change})")


@pytest.mark.parametrize(
    ("made_by", "scores", "meaning"),
    [
        ("sigmoid", [0.9, 0.8, 0.1], "a probability for each class"),
        ("sigmoid", [0.2, 0.7, 0.1], "probabilities"),
        (None, [0.9, 0.8, 0.1], "logits or other scores"),
        ("softmax", [0.2, 0.7, 0.1], "probabilities"),
    ],
)
def test_scores_that_a_sigmoid_makes_are_a_probability_each(made_by, scores, meaning):
    client = FixedClient(scores=np.float32([scores]))
    assert classifier(client, graph=FixedGraph(made_by)).classify(png()).meaning == meaning


BEST = tensor("float", (None, 2))
NUMBERS = tensor("int32", (None, 2))
TWO_NAMES = tensor("string", (None, 2))
SORTED = {"scores": np.float32([[0.7, 0.2]])}


def ranked(outputs, answer, labels=None, graph=None):
    client, note = FixedClient(**SORTED, **answer), Preprocessing(labels=labels)
    wanted = signature(scores=BEST, **outputs)
    found = classifier(client, wanted, note, graph=graph or FixedGraph("top_k")).classify(png())
    assert found.meaning == "scores of the best classes"
    return [(each.index, each.label) for each in found.scores]


@pytest.mark.parametrize("graph", [FixedGraph("top_k"), FixedGraph()])
@pytest.mark.parametrize("alias", ["classes", "indices", "top_ids"])
def test_numbers_beside_scores_are_the_classes(alias, graph):
    answer = {alias: np.int32([[7, 3]])}
    assert ranked({alias: NUMBERS}, answer, graph=graph) == [(7, None), (3, None)]


def test_labels_are_those_of_the_numbers_not_of_the_places():
    labels = tuple("abcdefgh")
    assert ranked({"ids": NUMBERS}, {"ids": np.int32([[7, 3]])}, labels) == [(7, "h"), (3, "d")]


def test_names_beside_sorted_scores_have_no_number():
    answer = {"classes": np.array([[b"red", b"blue"]], object)}
    assert ranked({"classes": TWO_NAMES}, answer) == [(None, "red"), (None, "blue")]


def test_names_and_numbers_go_together():
    answer = {"ids": np.int32([[7, 3]]), "names": np.array([[b"red", b"blue"]], object)}
    outputs = {"ids": NUMBERS, "names": TWO_NAMES}
    assert ranked(outputs, answer) == [(7, "red"), (3, "blue")]


def test_sorted_scores_of_classes_that_nothing_names_are_refused():
    with pytest.raises(UsageError, match="best scores of each picture, sorted") as caught:
        classifier(FixedClient(), signature(scores=BEST), graph=FixedGraph("top_k"))
    assert "export the model again" in caught.value.remedy
    assert "--output" not in caught.value.remedy  # there is no other


def test_other_scores_than_the_sorted_ones_are_named():
    outputs = signature(best=BEST, logits=SCORES)
    with pytest.raises(UsageError) as caught:
        classifier(FixedClient(), outputs, graph=FixedGraph("top_k"), asked={"output": "best"})
    assert "--output logits" in caught.value.remedy


def test_whole_numbers_that_are_no_classes_leave_the_scores_alone():
    given = signature(scores=SCORES, one_hot=tensor("int32", (None, 3)))
    client = FixedClient(scores=np.float32([[0.1, 0.7, 0.2]]))
    assert classifier(client, given).classify(png()).scores[0].index == 1


def test_numbers_that_do_not_fit_the_scores_are_a_fault_of_the_server():
    with pytest.raises(ServerFault, match="do not fit together"):
        ranked({"ids": NUMBERS}, {"ids": np.int32([[7, 3, 1]])})


def test_softmax_needs_all_classes():
    with pytest.raises(UsageError, match="--softmax"):
        classifier(FixedClient(), signature(scores=BEST, ids=NUMBERS), asked={"softmax": True})


@pytest.mark.parametrize("alias", ["text", "text_b64", "image_bytes"])
def test_picture_for_a_model_that_decodes_none_is_refused(alias):
    wanted = signature({alias: tensor("string", (None,))}, scores=SCORES)
    with pytest.raises(UsageError, match="nothing in the model decodes a picture") as caught:
        classifier(FixedClient(), wanted, graph=FixedGraph(may_decode=False))
    assert "tfkit request" in str(caught.value.remedy)


def test_picture_for_a_model_that_decodes_none_is_sent_when_asked_for():
    wanted = signature({"text": tensor("string", (None,))}, scores=SCORES)
    note = Preprocessing(encoding="raw")
    assert classifier(FixedClient(), wanted, note, graph=FixedGraph(may_decode=False)).prepare(
        png(), name="a"
    )


class TestClassAlone:
    @pytest.mark.parametrize(
        ("outputs", "answer", "expected"),
        [
            ({"c": tensor("int64", (None,))}, {"c": np.array([2])}, ClassScore(2, "cat", None)),
            ({"c": tensor("int32", (None, 1))}, {"c": np.array([[1]])}, ClassScore(1, "bee", None)),
            ({"c": tensor("string", (None,))}, {"c": np.array([b"dog"], object)},
             ClassScore(None, "dog", None)),
            ({"label": tensor("string", (None,)), "p": tensor("float", (None,))},
             {"label": np.array([b"dog"], object), "p": np.float32([0.5])},
             ClassScore(None, "dog", 0.5)),
        ],
    )  # fmt: skip
    def test_is_shown_with_what_is_known(self, outputs, answer, expected):
        note = Preprocessing(labels=("ant", "bee", "cat"))
        given = classifier(FixedClient(**answer), signature(**outputs), note)
        assert given.classify(png()).scores == (expected,)

    def test_scores_beside_it_win(self):
        client = FixedClient(c=np.array([0]), z=np.float32([[0, 0, 1]]))
        given = signature(c=tensor("int64", (None,)), z=SCORES)
        assert classifier(client, given).classify(png()).scores[0].index == 2


class TestDetections:
    OUTPUTS = {
        "detection_boxes": tensor("float", (None, None, 4)),
        "detection_scores": tensor("float", (None, None)),
        "detection_classes": tensor("float", (None, None)),
        "detection_multiclass_scores": tensor("float", (None, None, 91)),
        "num_detections": tensor("float", (None,)),
    }
    ANSWER = {
        "detection_boxes": np.float32([[[0, 0, 0.5, 0.5], [0, 0, 1, 1], [9, 9, 9, 9]]]),
        "detection_scores": np.float32([[0.2, 0.9, 0.99]]),
        "detection_classes": np.float32([[1, 0, 2]]),
        "num_detections": np.float32([2]),
    }

    def test_are_the_objects_that_count_the_surest_first(self):
        note = Preprocessing(labels=("ant", "bee", "cat"))
        given = classifier(FixedClient(**self.ANSWER), signature(**self.OUTPUTS), note)
        first, second = given.classify(png()).detections
        assert (first.label, first.score, first.box) == ("ant", pytest.approx(0.9), (0, 0, 1, 1))
        assert (second.index, second.label) == (1, "bee")
        assert "objects" in choice(given, "output").value

    def test_no_more_than_asked_for(self):
        given = classifier(FixedClient(**self.ANSWER), signature(**self.OUTPUTS))
        assert len(given.classify(png(), top=1).detections) == 1

    def test_that_contradict_each_other_are_the_servers_fault(self):
        answer = self.ANSWER | {"detection_classes": np.float32([[1]])}
        given = classifier(FixedClient(**answer), signature(**self.OUTPUTS))
        with pytest.raises(ServerFault, match="do not fit together"):
            given.classify(png())

    def test_other_exporters_names(self):
        names = {"boxes": (None, 100, 4), "scores": (None, 100), "labels": (None, 100)}
        outputs = {name: tensor("float", shape) for name, shape in names.items()}
        assert classifier(FixedClient(), signature(**outputs)).model.head.kind == "detections"


def test_mask_is_refused_by_name():
    with pytest.raises(UsageError, match=r"output 'mask' is float \[\?, 8, 8, 3\]: .*segmentation"):
        classifier(FixedClient(), signature(mask=tensor("float", (None, 8, 8, 3))))


class TestCompanions:
    def inputs(self, **beside):
        return signature({"image": PIXELS, **beside}, scores=SCORES)

    def sent(self, given, companions, *, pictures=1):
        client = FixedClient(scores=np.float32([[0, 0, 1]] * pictures))
        made = classifier(client, given, asked={"companions": companions})
        names = [f"photos/cat-{i}.png" for i in range(pictures)]
        rows = [made.prepare(png(), name=name, index=i) for i, name in enumerate(names)]
        made.score(rows, top=1)
        return client.sent[0][1]

    def test_key_is_the_picture_s_name_and_that_is_said(self):
        given = self.inputs(key=tensor("string", (None,)))
        sent = self.sent(given, {}, pictures=2)
        assert sent["key"].tolist() == [b"cat-0.png", b"cat-1.png"]
        made = classifier(FixedClient(), given)
        assert choice(made, "input 'key'").source == "assumed"

    @pytest.mark.parametrize(
        ("dtype", "shape", "text", "expected"),
        [
            ("string", (None,), "{stem}/{index}", [b"cat-0/0", b"cat-1/1"]),
            ("string", (None, 1), "x", [[b"x"], [b"x"]]),
            ("string", (), "{x}", b"{x}"),
            ("float", (), "0.5", 0.5),
            ("float", (None,), "1", [1, 1]),
            ("int32", (None, 2), "[3,4]", [[3, 4], [3, 4]]),
            ("int32", (2,), "[3,4]", [3, 4]),
            ("bool", (), "true", True),
            ("bool", (None,), "0", [False, False]),
            ("int64", (None,), "{index}", [0, 1]),
        ],
    )
    def test_values_are_brought_to_the_input(self, dtype, shape, text, expected):
        given = self.inputs(beside=tensor(dtype, shape))
        value = self.sent(given, {"beside": text}, pictures=2)["beside"]
        assert value.tolist() == expected

    @pytest.mark.parametrize(
        ("dtype", "shape", "companions", "text"),
        [
            ("float", (None,), {}, "needs more than a picture: beside float"),
            ("float", (None,), {"besides": "1"}, "no input 'besides'"),
            ("float", (None,), {"image": "1", "beside": "1"}, "the pictures fill this input"),
            ("int32", (None,), {"beside": "0.5"}, "cannot hold it"),
            ("uint8", (None,), {"beside": "300"}, "cannot hold it"),
            ("float", (None,), {"beside": "abc"}, "cannot hold it"),
            ("bool", (None,), {"beside": "2"}, "cannot hold it"),
            ("float", (None, 3), {"beside": "[1,2]"}, "does not fit"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, dtype, shape, companions, text):
        given = self.inputs(beside=tensor(dtype, shape))
        asked = {"companions": companions, "picture_input": "image"}
        with pytest.raises(UsageError) as caught:
            classifier(FixedClient(), given, asked=asked)
        assert text in str(caught.value)

    def test_input_beside_the_only_one_is_refused_with_what_to_leave_out(self):
        given = self.inputs()
        with pytest.raises(UsageError) as caught:
            classifier(FixedClient(), given, asked={"companions": {"keep": "1"}})
        assert caught.value.remedy == "leave out --set keep: the picture is the only input"


class TestWithoutBatchAxis:
    @pytest.mark.parametrize(
        ("dtype", "shape", "sent"),
        [("float", (1, 1, 3), (1, 1, 3)), ("string", (), ()), ("float", (3,), (3,))],
    )
    def test_pictures_go_one_by_one(self, dtype, shape, sent):
        client = FixedClient(scores=np.float32([0, 1, 0]))
        given = signature({"image": tensor(dtype, shape)}, scores=tensor("float", (3,)))
        made = classifier(client, given)
        assert made.fixed_rows == 1
        assert made.classify(png()).scores[0].index == 1
        assert client.sent[0][1]["image"].shape == sent


class TestLabels:
    def test_they_are_brought_to_the_classes_before_anything_is_sent(self):
        labels = parse("background\nant\nbee\ncat\n", "f")
        made = classifier(FixedClient(scores=np.float32([[3, 2, 1]])),
                          note=Preprocessing(labels=labels))  # fmt: skip
        assert made.labels == ("ant", "bee", "cat")
        assert "is left out" in made.labels.remarks[0]
        with pytest.raises(UsageError, match="f: 2 labels for a model with 3 classes"):
            classifier(FixedClient(), note=Preprocessing(labels=parse("a\nb\n", "f")))

    def test_they_are_brought_to_the_first_answer_where_nothing_else_shows_the_classes(self):
        made = classifier(
            FixedClient(scores=np.float32([[1, 2]])),
            signature(scores=tensor("float", (None, None))),
            Preprocessing(labels=parse("1: ant\n2: bee\n", "f")),
        )
        assert made.classify(png()).scores[0].label == "bee"
        assert made.labels.remarks == (
            "f counts from 1: class 0 is 'ant' (change: number its names from 0)",
        )

    def test_a_class_that_is_answered_has_the_name_of_its_number_in_the_file(self):
        made = classifier(
            FixedClient(classes=np.int64([1])),
            signature(classes=tensor("int64", (None,))),
            Preprocessing(labels=parse("item { id: 1 name: 'ant' }", "f")),
        )
        assert made.classify(png()).scores[0] == ClassScore(1, "ant", None)


class TestOutputsWithoutRows:
    def test_a_constant_is_not_the_scores_of_as_many_pictures(self):
        given = signature(version=tensor("float", (2,)))
        with pytest.raises(UsageError, match=r"float \[2\]: its first axis is fixed") as caught:
            classifier(FixedClient(version=np.float32([1, 2])), given)
        assert "--output" not in caught.value.remedy  # there is no other
        assert "`tfkit request PICTURE`" in caught.value.remedy

    def test_another_constant_is_named(self):
        given = signature(version=tensor("float", (2,)), build=tensor("float", (3,)))
        with pytest.raises(UsageError) as caught:
            classifier(FixedClient(), given)
        assert "--output build" in caught.value.remedy

    def test_it_is_no_rival_of_scores(self):
        given = signature(version=tensor("float", (2,)), scores=SCORES)
        client = FixedClient(version=np.float32([1, 2]), scores=np.float32([[0.1, 0.7, 0.2]]))
        assert classifier(client, given).classify(png()).scores[0].index == 1

    def test_as_many_rows_as_the_inputs_always_have_are_rows(self):
        inputs = {"image": tensor("float", (2, 1, 1, 3))}
        given = signature(inputs, odds=tensor("float", (2,)))
        found = classifier(FixedClient(odds=np.float32([0.25, 0.25])), given).classify(png())
        assert [each.score for each in found.scores] == [0.75, 0.25]


# Many pictures: in order, in batches, ahead of the server, and none loses another.


class FakeClassifier:
    """Takes numbers for pictures; refuses some when they are prepared, some when they are sent.

    Args:
        fixed_rows: see `Classifier`.
        unreadable: numbers that are no pictures.
        failing: errors by the number that brings them about, in whatever batch.
    """

    def __init__(self, *, fixed_rows=None, unreadable=(), failing=None):
        self.fixed_rows = fixed_rows
        self._unreadable, self._failing = unreadable, failing or {}
        self.sent = []
        self.prepared = []

    def prepare(self, data, *, name, index=0):
        number = int(data)
        self.prepared.append(number)
        if number in self._unreadable:
            raise InvalidRequest(f"{name} is no picture")
        return PreparedPicture(np.array(number), 0.5)

    def score(self, pictures, *, top):
        numbers = [int(picture.row) for picture in pictures]
        self.sent.append(numbers)
        for number in numbers:
            if number in self._failing:
                raise self._failing[number]
        return [Classified((number, top), 1, 0.5, 0.25, len(numbers)) for number in numbers]


def files(count, read=lambda number: str(number).encode()):
    return [PictureFile(f"{n}.png", lambda n=n: read(n)) for n in range(count)]


def run(classifier, count, batch_rows):
    return list(classify_all(classifier, files(count), batch_rows=batch_rows, top=3))


def results(outcomes):
    return {
        name: found.scores if isinstance(found, Classified) else found for name, found in outcomes
    }


@pytest.mark.parametrize(
    ("count", "rows", "sent"),
    [
        (0, 4, []),
        (1, 4, [[0]]),
        (3, 1, [[0], [1], [2]]),
        (4, 4, [[0, 1, 2, 3]]),
        (9, 4, [[0, 1, 2, 3], [4, 5, 6, 7], [8]]),
    ],
)
def test_pictures_are_sent_in_batches_and_come_back_in_order(count, rows, sent):
    classifier = FakeClassifier()
    outcomes = run(classifier, count, rows)
    assert classifier.sent == sent
    assert [name for name, _ in outcomes] == [f"{n}.png" for n in range(count)]
    assert [found.scores for _, found in outcomes] == [(n, 3) for n in range(count)]


def test_picture_that_is_none_leaves_its_place_to_no_other():
    classifier = FakeClassifier(unreadable={1, 4, 5})
    outcomes = run(classifier, 6, 2)
    assert classifier.sent == [[0], [2, 3]]
    found = results(outcomes)
    assert [found[f"{n}.png"] for n in (0, 2, 3)] == [(0, 3), (2, 3), (3, 3)]
    assert [str(found[f"{n}.png"]) for n in (1, 4, 5)] == [
        f"{n}.png is no picture" for n in (1, 4, 5)
    ]


def test_file_that_cannot_be_read_is_an_outcome():
    def read(number):
        if number == 1:
            raise InvalidRequest("cannot read 1.png")
        return str(number).encode()

    pictures = files(3, read)
    outcomes = list(classify_all(FakeClassifier(), pictures, batch_rows=2, top=3))
    assert [isinstance(found, InvalidRequest) for _, found in outcomes] == [False, True, False]


@pytest.mark.parametrize("kind", [InvalidRequest, ServerFault, ServerOverloaded])
def test_refused_batch_is_tried_picture_by_picture(kind):
    error = kind("too red")
    classifier = FakeClassifier(failing={2: error})
    found = results(run(classifier, 6, 3))
    assert classifier.sent == [[0, 1, 2], [0], [1], [2], [3, 4, 5]]
    assert found["2.png"] is error
    assert [found[f"{n}.png"] for n in (0, 1, 3, 4, 5)] == [(n, 3) for n in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize("kind", [DeadlineExceeded, ModelNotFound, ServerUnreachable, UsageError])
def test_error_that_the_others_would_meet_too_ends_it_after_those_before(kind):
    classifier = FakeClassifier(failing={3: kind("gone")})
    outcomes = classify_all(classifier, files(6), batch_rows=2, top=3)
    assert [next(outcomes)[0], next(outcomes)[0]] == ["0.png", "1.png"]
    with pytest.raises(kind):
        next(outcomes)
    assert classifier.sent == [[0, 1], [2, 3]]


def test_no_more_is_read_ahead_than_said():
    read, lock = [], threading.Lock()

    def note(number):
        with lock:
            read.append(number)
        return str(number).encode()

    outcomes = classify_all(FakeClassifier(), files(500, note), batch_rows=8, top=3)
    for done in range(100):
        next(outcomes)
        assert len(read) <= done + 1 + 8 + 2 * 8
    outcomes.close()


def test_next_batch_is_prepared_while_the_server_answers():
    ahead = threading.Event()

    class Slow(FakeClassifier):
        def prepare(self, data, *, name, index=0):
            if int(data) == 3:
                ahead.set()
            return super().prepare(data, name=name)

        def score(self, pictures, *, top):
            assert ahead.wait(10), "nobody prepares what comes next"
            return super().score(pictures, top=top)

    assert len(run(Slow(), 4, 2)) == 4


def test_leaving_early_leaves_the_rest_unread():
    classifier = FakeClassifier()
    outcomes = classify_all(classifier, files(1000), batch_rows=4, top=3)
    next(outcomes)
    outcomes.close()
    assert len(classifier.prepared) < 50


def test_single_picture_needs_no_thread(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: pytest.fail("a pool was made"))
    assert len(run(FakeClassifier(), 1, 16)) == 1


@pytest.mark.parametrize(
    ("fixed", "pictures", "wanted", "rows"),
    [
        (None, 1, None, 1),
        (None, 5, None, 5),
        (None, 100, None, 16),
        (None, 100, 32, 32),
        (None, 3, 32, 3),
        (1, 100, None, 1),
        (4, 1, None, 4),
        (4, 100, 4, 4),
        (None, 0, None, 1),
    ],
)
def test_rows_of_a_batch_fit_the_model_and_the_pictures(fixed, pictures, wanted, rows):
    assert choose_batch_rows(FakeClassifier(fixed_rows=fixed), pictures, wanted) == rows


def test_other_rows_than_the_model_wants_are_refused():
    with pytest.raises(UsageError, match="wants 4 rows in each request, not 2"):
        choose_batch_rows(FakeClassifier(fixed_rows=4), 8, 2)


# The best classes


@pytest.mark.parametrize(
    ("count", "indices"), [(1, [2]), (2, [2, 0]), (3, [2, 0, 1]), (9, [2, 0, 1])]
)
def test_best_classes_come_first_and_no_more_than_asked_for(count, indices):
    found = top_scores(np.float32([0.3, 0.1, 0.6]), None, count)
    assert [each.index for each in found] == indices
    assert all(each.label is None for each in found)


def test_score_is_the_models_own_number():
    (best,) = top_scores(np.float32([0.1, 0.7]), ["no", "yes"], 1)
    assert best == ClassScore(1, "yes", float(np.float32(0.7)))
    assert isinstance(best.index, int)
    assert isinstance(best.score, float)


def test_lower_index_wins_a_tie():
    found = top_scores(np.array([1, 3, 3, 1]), ["a", "b", "c", "d"], 4)
    assert [each.label for each in found] == ["b", "c", "a", "d"]


def test_unsigned_and_extreme_scores_are_ordered_by_value():
    found = top_scores(np.uint8([0, 255, 7]), None, 3)
    assert [each.index for each in found] == [1, 2, 0]
    found = top_scores(np.float32([-np.inf, np.nan, np.inf, 0]), None, 4)
    assert [each.index for each in found] == [2, 3, 0, 1]


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "c"], []])
def test_best_of_another_number_of_classes_than_labels_is_refused(labels):
    with pytest.raises(UsageError) as caught:
        top_scores(np.zeros(2), labels, 1)
    assert caught.value.message == f"{len(labels)} labels for a model with 2 classes"
