"""Sending a set: batches, threads, bad examples, failed requests, versions."""

import io
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.unit.evaluation.made import EchoClient, dataset, rows_set, subject, tensor
from tfserve_kit.clients import Prediction, Target
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    UsageError,
)
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.examples import as_png, row_of, thumbnail
from tfserve_kit.evaluation.report import as_data, as_text, build, page, predictions_csv
from tfserve_kit.evaluation.run import (
    PATIENCE,
    EvaluationOptions,
    _Subject,
    evaluate,
    evaluate_versions,
    own_names,
)
from tfserve_kit.pictures.model import PictureModel, PictureOptions
from tfserve_kit.pictures.prepare import prepare
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature

SCORES = [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.2, 0.6, 0.2], [0.5, 0.5, 0.0]]
LABELS = [0, 2, 1, 1, 1]


def run(client, subjects=None, rows=SCORES, labels=LABELS, wanted=None, progress=None, **how):
    options = EvaluationOptions(**{"batch_size": 2, "concurrency": 1, "timeout_s": 5.0, **how})
    chosen = range(len(rows)) if wanted is None else wanted
    more = {} if progress is None else {"progress": progress}
    return evaluate(client, subjects or [subject()], dataset(rows, labels), chosen, options, **more)


class Steps:
    def __init__(self):
        self.seen = []

    def advance(self, done, total):
        self.seen.append((done, total))


def test_answers_are_judged_in_the_order_of_the_set():
    client, steps = EchoClient(), Steps()
    found = run(client, progress=steps)
    (outcome,) = found.outcomes
    judged = [(a.index, a.true, a.predicted, a.rank) for a in outcome.answers]
    assert judged == [(0, 0, 0, 0), (1, 2, 2, 0), (2, 1, 2, 2), (3, 1, 1, 0), (4, 1, 0, 1)]
    assert [a.score for a in outcome.answers] == pytest.approx([0.7, 0.7, 0.4, 0.6, 0.5])
    assert outcome.answers[2].name == "set[2]"
    assert (outcome.classes, outcome.versions, outcome.are_probabilities) == (3, (1,), True)
    assert client.sent == [(1, 2, 5.0), (1, 2, 5.0), (1, 1, 5.0)]
    assert steps.seen == [(2, 5), (4, 5), (5, 5)]
    assert (found.source, found.examples, found.unusable) == ("set", 5, [])


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_every_example_is_answered_once_by_any_number_of_threads(concurrency):
    rows = np.random.default_rng(0).random((501, 3))
    found = run(EchoClient(), rows=rows, labels=[0] * 501, concurrency=concurrency, batch_size=7)
    (outcome,) = found.outcomes
    assert [a.index for a in outcome.answers] == list(range(501))
    assert [a.predicted for a in outcome.answers] == rows.argmax(axis=1).tolist()


def test_as_many_requests_as_asked_for_are_in_flight():
    together = threading.Barrier(3, timeout=30)

    def answer(target, rows):
        together.wait()  # breaks unless three are here at once
        return rows

    found = run(EchoClient(answer), rows=SCORES[:3], labels=LABELS[:3], batch_size=1, concurrency=3)
    assert len(found.outcomes[0].answers) == 3


def test_only_what_is_wanted_is_sent():
    found = run(EchoClient(), wanted=[1, 4])
    assert [a.index for a in found.outcomes[0].answers] == [1, 4]
    assert found.examples == 2


def test_model_of_a_fixed_batch_gets_full_batches():
    client = EchoClient()
    found = run(client, [subject(shape=(4, 3))], batch_size=32)
    assert [rows for _, rows, _ in client.sent] == [4, 4]
    assert [a.index for a in found.outcomes[0].answers] == [0, 1, 2, 3, 4]


class TestTwoClasses:
    COLUMN = [[0.9], [0.4], [0.5], [0.1]]

    @pytest.mark.parametrize(
        ("threshold", "predicted"),
        [(None, [1, 0, 0, 0]), (0.5, [1, 0, 0, 0]), (0.3, [1, 1, 1, 0]), (0.95, [0, 0, 0, 0])],
    )
    def test_one_column_is_the_probability_of_the_second(self, threshold, predicted):
        about = subject(shape=(None, 1), threshold=threshold)
        found = run(EchoClient(), [about], rows=self.COLUMN, labels=[1, 1, 0, 0])
        (outcome,) = found.outcomes
        assert [each.predicted for each in outcome.answers] == predicted
        assert [each.rank for each in outcome.answers] == [
            int(true != best) for true, best in zip([1, 1, 0, 0], predicted, strict=True)
        ]
        assert (outcome.classes, outcome.are_probabilities) == (2, True)
        assert f"a score above {threshold or 0.5:g} means class 1 (change: --threshold" in " ".join(
            found.assumed
        )
        assert any("the probability of class 1" in text for text in found.assumed)

    def test_names_are_those_of_class_0_and_class_1(self):
        about = subject(shape=(None, 1), labels=("blue", "red"), names={"blue", "red"})
        found = run(EchoClient(), [about], rows=self.COLUMN[:2], labels=["red", "blue"])
        assert [each.is_right for each in found.outcomes[0].answers] == [True, True]

    def test_one_column_of_logits_ends_the_run(self):
        with pytest.raises(UsageError, match="is not a probability"):
            run(EchoClient(), [subject(shape=(None, 1))], rows=[[3.0]], labels=[1])

    def test_a_threshold_for_more_classes_is_refused_as_soon_as_it_is_known(self):
        with pytest.raises(UsageError, match="a threshold is for two classes"):
            subject(threshold=0.5)
        about = subject(shape=(None, None), threshold=0.5)
        with pytest.raises(UsageError, match="a threshold is for two classes"):
            run(EchoClient(), [about])


class TestAssumed:
    def test_what_concerns_one_of_two_subjects_names_it(self):
        both = [subject(names={"a", "b", "c"}), subject(version=2, labels=("a", "b", "c"))]
        found = run(EchoClient(), both, labels=["a", "b", "c", "a", "b"])
        assert [text.partition(":")[0] for text in found.assumed] == ["version 1"]

    def test_labels_that_come_to_fit_at_the_first_answer_count_for_all(self):
        about = subject(shape=(None, None), labels=("background", "a", "b", "c"), names={"a", "c"})
        found = run(EchoClient(), [about], rows=SCORES[:2], labels=["a", "c"])
        assert [each.true for each in found.outcomes[0].answers] == [0, 2]
        assert "is left out" in found.assumed[0]


class TestBadExamples:
    def test_they_are_named_and_the_others_sent(self):
        rows = [SCORES[0], InvalidRequest("holds no number"), SCORES[1], [1.0, 2.0]]
        found = run(EchoClient(), rows=rows, labels=[0, 0, 2, 0])
        assert [a.index for a in found.outcomes[0].answers] == [0, 2]
        assert [(bad.index, bad.name) for bad in found.unusable] == [(1, "set[1]"), (3, "set[3]")]
        assert found.unusable[0].reason == "holds no number"
        assert "has the shape [2]" in found.unusable[1].reason

    @pytest.mark.parametrize(
        ("label", "reason"),
        [(3, "its class is 3, and the model has 3"), (-1, "its class is -1"),
         ("bird", "no class 'bird'")],
    )  # fmt: skip
    def test_class_that_the_model_lacks(self, label, reason):
        about = subject(labels=("cat", "dog", "cow"), names={"cat", "bird"})
        found = run(EchoClient(), [about], rows=SCORES[:2], labels=["cat", label])
        assert [a.index for a in found.outcomes[0].answers] == [0]
        assert reason in found.unusable[0].reason

    def test_a_set_of_nothing_else_is_refused_with_the_first(self):
        rows = [InvalidRequest("is empty"), InvalidRequest("is full")]
        with pytest.raises(
            UsageError, match=r"none of the 2 examples of set .* set\[0\]: is empty"
        ):
            run(EchoClient(), rows=rows, labels=[0, 0])

    def test_labels_of_another_model_end_the_run(self):
        with pytest.raises(UsageError, match="2 labels for a model with 3 classes"):
            run(EchoClient(), [subject(labels=("a", "b"))], concurrency=2)

    def test_a_fault_of_one_thread_ends_the_others(self):
        def answer(target, rows):
            if len(client.sent) == 3:
                raise RuntimeError("a bug")
            return rows

        client = EchoClient(answer)
        with pytest.raises(RuntimeError, match="a bug"):
            run(client, rows=SCORES * 2000, labels=LABELS * 2000, batch_size=1, concurrency=2)
        assert len(client.sent) < 10_000

    def test_a_set_that_breaks_off_ends_the_run(self):
        def rows():
            yield np.float32(SCORES[0])
            raise UsageError("the file is damaged")

        broken = rows_set(LABELS, rows, ready=True)
        with pytest.raises(UsageError, match="damaged"):
            evaluate(EchoClient(), [subject()], broken, range(5), EvaluationOptions(concurrency=3))


class TestFailedRequests:
    def test_each_example_of_the_request_counts(self):
        def answer(target, rows):
            if rows[0, 0] == np.float32(0.3):
                raise DeadlineExceeded("no answer within 5 s")
            return rows

        (outcome,) = run(EchoClient(answer)).outcomes
        assert [a.index for a in outcome.answers] == [0, 1, 4]
        assert [failure.index for failure in outcome.failures] == [2, 3]
        assert outcome.failures[0].reason == "DeadlineExceeded: no answer within 5 s"

    def test_one_refused_input_does_not_cost_its_neighbours(self):
        def answer(target, rows):
            if np.float32(0.4) in rows:
                raise InvalidRequest("not this one")
            return rows

        (outcome,) = run(EchoClient(answer), batch_size=5).outcomes
        assert [a.index for a in outcome.answers] == [0, 1, 3, 4]
        assert [failure.index for failure in outcome.failures] == [2]

    def test_without_any_answer_the_first_error_is_raised(self):
        def answer(target, rows):
            raise ModelNotFound("no such model")

        with pytest.raises(ModelNotFound, match="no such model"):
            run(EchoClient(answer))

    def test_dead_server_is_not_asked_for_ever(self):
        def answer(target, rows):
            if len(client.sent) > 1:
                raise DeadlineExceeded("late")
            return rows

        client = EchoClient(answer)
        (outcome,) = run(client, rows=SCORES * 20, labels=LABELS * 20, batch_size=1).outcomes
        assert len(client.sent) == 1 + PATIENCE
        assert len(outcome.failures) == 99
        assert "not sent" in outcome.failures[-1].reason

    def test_refused_inputs_are_no_sign_of_a_dead_server(self):
        def answer(target, rows):
            if len(client.sent) > 1:
                raise InvalidRequest("no")
            return rows

        client = EchoClient(answer)
        run(client, rows=SCORES * 20, labels=LABELS * 20, batch_size=1)
        assert len(client.sent) == 100

    @pytest.mark.parametrize(
        ("scores", "reason"),
        [
            ([[0.1, np.nan, 0.2]], "NaN"),
            ([[0.1, np.inf, 0.2]], "infinite"),
            ([[0.1], [0.2]], r"should have 1 rows but is \[2, 1\]"),
            ([0.1, 0.2], r"is \[2\]"),
            (np.zeros((1, 0)), r"is \[1, 0\]"),
        ],
    )
    def test_answers_that_are_no_scores_are_the_server_s_fault(self, scores, reason):
        client = EchoClient(lambda target, rows: scores)
        with pytest.raises(ServerFault, match=reason):
            run(client, rows=SCORES[:1], labels=[0])

    def test_minus_infinity_is_a_score(self):
        client = EchoClient(lambda target, rows: [[-np.inf, 0.0, -1.0]])
        (outcome,) = run(client, rows=SCORES[:1], labels=[2]).outcomes
        assert (outcome.answers[0].predicted, outcome.answers[0].rank) == (1, 1)
        assert not outcome.are_probabilities


@pytest.mark.parametrize("place", [0, 4])
def test_one_answer_that_is_no_probability_decides(place):
    rows = [*SCORES[:place], [3.0, -1.0, 0.5], *SCORES[place + 1 :]]
    assert not run(EchoClient(), rows=rows).outcomes[0].are_probabilities


class TestVersions:
    def test_two_subjects_answer_the_same_examples(self):
        def answer(target, rows):
            return rows if target.version == 1 else rows[:, ::-1]

        client = EchoClient(answer)
        first, second = run(client, [subject(version=1), subject(version=2)]).outcomes
        assert [a.index for a in first.answers] == [a.index for a in second.answers]
        assert [a.predicted for a in first.answers[:2]] == [0, 2]
        assert [a.predicted for a in second.answers[:2]] == [2, 0]
        assert (first.versions, second.versions) == ((1,), (2,))

    def test_failures_of_one_subject_are_not_the_other_s(self):
        def answer(target, rows):
            if target.version == 2 and len(client.sent) > 3:
                raise ServerFault("broken")
            return rows

        client = EchoClient(answer)
        first, second = run(client, [subject(version=1), subject(version=2)]).outcomes
        assert (len(first.answers), len(first.failures)) == (5, 0)
        assert (len(second.answers), len(second.failures)) == (2, 3)

    @pytest.mark.parametrize("says_version", [True, False])
    def test_a_swap_during_the_run_is_seen(self, says_version):
        def answer(target, rows):
            client.serves = 2 if len(client.sent) > 1 else 1
            return rows

        client = EchoClient(answer, says_version=says_version)
        about = subject()
        newest = replace(about, target=type(about.target)("m"))
        assert run(client, [newest]).outcomes[0].versions == (1, 2)


def signature(inputs=None, **outputs):
    return Signature("serving_default", inputs or {"x": tensor("float", (None, 4))}, outputs, "")


def made_subject(spec, note=Preprocessing(), *, ready=False):  # noqa: B008
    outputs = {"scores": tensor("float", (None, 3))}
    model = PictureModel(signature({"x": spec}, **outputs), PictureOptions(note), ready=ready)
    return _Subject("version 1", Target("m"), 1, model, Classes(None, ()))


PIXELS = np.array([[0, 51], [102, 255]], np.uint8)


class TestRow:
    @pytest.mark.parametrize("content", [PIXELS, PIXELS[..., None], PIXELS.ravel()])
    def test_pixels_are_prepared_as_pictures_are(self, content):
        row = row_of(content, made_subject(tensor("float", (None, 2, 2, 1))).model.input, "x")
        np.testing.assert_allclose(row[..., 0], [[0, 0.2], [0.4, 1]], rtol=1e-6)

    def test_encoded_pictures_are_prepared(self):
        about = made_subject(tensor("float", (None, 4)))
        encoded = as_png(PIXELS)
        np.testing.assert_array_equal(
            row_of(encoded, about.model.input, "x"), prepare(encoded, about.model.input, name="x")
        )

    def test_the_note_counts(self):
        note = Preprocessing(value_range=(-1.0, 1.0))
        row = row_of(PIXELS, made_subject(tensor("float", (None, 4)), note).model.input, "x")
        np.testing.assert_allclose(row, [-1, -0.6, -0.2, 1], rtol=1e-6)

    def test_a_row_of_pixels_has_the_model_s_size_if_it_fits(self):
        spec = tensor("uint8", (None, 1, 4, 1))
        assert row_of(PIXELS.ravel(), made_subject(spec).model.input, "x").shape == (1, 4, 1)

    def test_a_row_of_pixels_that_is_no_picture_is_refused(self):
        with pytest.raises(InvalidRequest, match="5 pixels make neither a square"):
            row_of(np.zeros(5, np.uint8), made_subject(tensor("float", (None, 4))).model.input, "x")

    def test_models_that_decode_get_a_picture(self):
        row = row_of(PIXELS, made_subject(tensor("string", (None,))).model.input, "x")
        assert Image.open(io.BytesIO(row[()])).size == (2, 2)

    @pytest.mark.parametrize(
        "shape", [(None, 2, 2), (None, 4), (None, None), (None, None, None), None]
    )
    def test_other_numbers_are_sent_as_they_are(self, shape):
        values = np.array([[-3.5, 0], [7, 1e6]])
        row = row_of(values, made_subject(tensor("float", shape), ready=True).model.input, "x")
        assert row.dtype == np.float32
        assert row.ravel().tolist() == [-3.5, 0, 7, 1e6]

    @pytest.mark.parametrize(
        ("dtype", "values", "fault"),
        [
            ("float", np.int64([1, 2, 3, 4]), "is int64, and the input is float"),
            ("int32", np.float32([1, 2, 3, 4]), "is float32, and the input is int32"),
            ("int8", np.int64([1, 2, 3, 300]), "input is int8 .*, which cannot hold 300"),
            ("float", np.float64([1, 2, 3, 1e300]), "which cannot hold 1e"),
            ("float", np.float32([1, 2]), r"has the shape \[2\]"),
            (None, np.float32([1, 2, 3, 4]), "the input is opaque"),
        ],
    )
    def test_numbers_of_another_kind_or_shape_are_refused(self, dtype, values, fault):
        with pytest.raises(InvalidRequest, match=fault):
            row_of(values, made_subject(tensor(dtype, (None, 4)), ready=True).model.input, "x")

    def test_pictures_need_an_input_for_pictures(self):
        with pytest.raises(UsageError, match="picture size"):
            made_subject(tensor("float", (None, 5)))
        assert made_subject(tensor("float", (None, 5)), ready=True).model.input.alias == "x"


class TestPictures:
    @pytest.mark.parametrize(
        ("shape", "mode", "size"),
        [((2, 3), "L", (3, 2)), ((2, 3, 1), "L", (3, 2)), ((2, 3, 3), "RGB", (3, 2)),
         ((16,), "L", (4, 4)), ((27,), "RGB", (3, 3))],
    )  # fmt: skip
    def test_pixels_come_back_from_png(self, shape, mode, size):
        pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        with Image.open(io.BytesIO(as_png(pixels))) as image:
            assert (image.mode, image.size) == (mode, size)
            np.testing.assert_array_equal(np.asarray(image).ravel(), pixels.ravel())

    def test_thumbnail_is_small_and_upright(self):
        stream, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        Image.new("CMYK", (300, 100)).save(stream, "JPEG", exif=exif)
        with Image.open(io.BytesIO(thumbnail(stream.getvalue(), Preprocessing(), 60))) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (20, 60))

    def test_thumbnail_of_a_row_has_the_model_s_size(self):
        how = Preprocessing(height=2, width=8, channels=1)
        with Image.open(io.BytesIO(thumbnail(np.zeros(16, np.uint8), how, 60))) as image:
            assert image.size == (8, 2)

    def test_numbers_have_no_thumbnail(self):
        assert thumbnail(np.zeros((2, 2), np.float32), Preprocessing(), 60) is None


def test_fixed_batch_is_the_first_size():
    spec = tensor("float", (8, 4))
    assert made_subject(spec).model.input.rows == 8


def test_a_detector_is_refused_before_anything_is_sent():
    outputs = {
        "boxes": tensor("float", (None, 9, 4)),
        "scores": tensor("float", (None, 9)),
        "classes": tensor("float", (None, 9)),
    }
    model = PictureModel(signature(**outputs), PictureOptions(), ready=True)
    with pytest.raises(UsageError, match="answers with objects") as caught:
        _Subject("version 1", Target("m"), 1, model, Classes(None, ()))
    assert "--output" in caught.value.remedy


def test_a_threshold_needs_scores():
    model = PictureModel(signature(classes=tensor("int64", (None,))), PictureOptions(), ready=True)
    with pytest.raises(UsageError, match="a threshold is for scores"):
        _Subject("version 1", Target("m"), 1, model, Classes(None, ()), 0.5)


TWO_ROWS = [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]
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
    return own_names(client, Target("m"), model(**about), labelled, 5.0)


def test_the_names_of_one_answer_are_those_of_the_model():
    client = NamingClient()
    assert ask(client, dataset(TWO_ROWS, ["red", "blue"])) == ("red", "green", "blue")
    assert client.sent == [1]


def test_a_model_of_a_fixed_batch_is_asked_with_a_full_one():
    client = NamingClient()
    assert ask(client, dataset(TWO_ROWS, ["red", "blue"]), rows=4) == ("red", "green", "blue")
    assert client.sent == [4]


def test_an_example_that_cannot_be_used_is_passed_over():
    labelled = dataset([InvalidRequest("is empty"), TWO_ROWS[0]], ["red", "red"])
    assert ask(NamingClient(), labelled) == ("red", "green", "blue")


def test_a_server_that_fails_is_left_to_the_run():
    class Failing(NamingClient):
        def predict(self, target, inputs, *, timeout_s=30.0):
            raise ServerFault("broken")

    assert ask(Failing(), dataset(TWO_ROWS, ["red", "blue"])) is None


def test_a_model_without_names_is_not_asked():
    client = NamingClient()
    assert ask(client, dataset(TWO_ROWS, [0, 2]), other=tensor("int64", (None,))) is None
    assert client.sent == []


class TestInARun:
    def evaluated(self, client):
        labelled = dataset(TWO_ROWS, ["red", "blue"])
        classes = Classes.of(labelled, own_names(client, Target("m"), model(), labelled, 5.0))
        about = _Subject("version 1", Target("m"), 1, model(), classes)
        return evaluate(client, [about], labelled, range(2), EvaluationOptions(concurrency=1))

    def test_they_are_no_guess(self):
        found = self.evaluated(NamingClient())
        assert [each.is_right for each in found.outcomes[0].answers] == [True, True]
        assert not any("sorted by name" in text for text in found.assumed)

    def test_a_model_that_sorts_its_classes_by_score_is_refused(self):
        with pytest.raises(UsageError, match="names its classes in another order") as caught:
            self.evaluated(NamingClient(NAMES, NAMES[::-1]))
        assert "--labels" in caught.value.remedy


# Models that answer with a class, or with the best classes alone: counted as they answer.


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


def answered(truth, *, given=None, **outputs):
    asked = PictureOptions(output=outputs.pop("output", ""))
    if given:
        from dataclasses import replace

        from tfserve_kit.pictures.preprocessing import Preprocessing

        asked = replace(asked, options=Preprocessing(labels=given))
    options = EvaluationOptions(batch_size=2, concurrency=1, asked=asked)
    return evaluate_versions(FixedClient(**outputs), [Target("m")], dataset(ROWS, truth), options)


def judged(found):
    (outcome,) = found.outcomes
    return [(each.true, each.predicted, each.score, each.rank) for each in outcome.answers]


LAST = 1 << 31


def test_the_number_of_a_class_alone_is_compared():
    found = answered([1, 0, 1], classes=np.int64([1, 0, 0]))
    assert judged(found) == [(1, 1, None, 0), (0, 0, None, 0), (1, 0, None, LAST)]
    assert found.outcomes[0].classes == 2
    assert any("counts as a top-K error (change: " in text for text in found.assumed)


def test_the_name_of_a_class_alone_is_compared_without_a_guess():
    found = answered(["dog", "cat", "dog"], label=np.array([b"dog", b"cat", b"cow"], object))
    assert [each.is_right for each in found.outcomes[0].answers] == [True, True, False]
    assert [found.outcomes[0].subject.classes.name(place) for place in range(3)] == [
        "cat", "dog", "cow",
    ]  # fmt: skip
    assert not any("sorted by name" in text for text in found.assumed)


def test_names_are_looked_up_in_labels_that_are_given():
    found = answered(
        [1, 0, 1], given=("cat", "dog"), label=np.array([b"dog", b"cat", b"cow"], object)
    )
    assert judged(found) == [(1, 1, None, 0), (0, 0, None, 0), (1, 2, None, LAST)]


def test_numbers_are_those_of_labels_that_are_given():
    found = answered(["dog", "cat", "dog"], given=("cat", "dog"), classes=np.int64([1, 0, 0]))
    assert [each.is_right for each in found.outcomes[0].answers] == [True, True, False]


def test_the_best_classes_alone_have_ranks_and_scores():
    found = answered(
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
    found = answered([1, 0, 1], classes=np.int64([1, 0, 0]))
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
        answered(labels, **outputs)
    assert "--labels" in caught.value.remedy


def test_a_number_below_zero_is_no_answer():
    found = answered([1, 0, 1], classes=np.int64([1, 0, -1]))
    assert [each.reason for each in found.outcomes[0].failures] == [
        "ServerFault: the model answers with class -1, and classes are counted from 0 (choose "
        "another output with --output; `tfkit metadata` lists them)"
    ]
    with pytest.raises(ServerFault, match="answers with class -1"):
        answered([1, 0, 1], classes=np.int64([-1, -1, -1]))
