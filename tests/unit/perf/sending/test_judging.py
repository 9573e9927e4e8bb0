"""Answers are held against what requests imply: right ones pass, each wrong one has its kind."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.perf import samples
from tfserve_kit.perf.load import Payload
from tfserve_kit.perf.sending.judging import Expected, Judges, of_calls
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes, to_proto


def signature(**outputs):
    """Return a signature with one open input, and outputs of (dtype, shape)."""
    specs = {
        alias: TensorSpec(f"{alias}:0", dtypes.by_name(dtype), shape)
        for alias, (dtype, shape) in outputs.items()
    }
    x = {"x": TensorSpec("x:0", dtypes.by_name("float"), (None, 2))}
    return Signature("serving_default", x, specs, "tensorflow/serving/predict")


SCORES = signature(scores=("float", (None, 3)))
ROWS = 4
INPUTS = {"x": np.zeros((ROWS, 2), np.float32)}


def judges(of=SCORES, *, is_rest=False, trial=None):
    (expected,) = of_calls([(of, INPUTS)], trial or {})
    return Judges([Payload("/p", (), b"", expected)], is_rest=is_rest)


def answer(version=1, *, as_content=False, **outputs):
    message = protos.PredictResponse()
    message.model_spec.version.value = version
    for alias, array in outputs.items():
        message.outputs[alias].CopyFrom(to_proto(array, as_content=as_content))
    return message.SerializeToString()


def scores(seed=0, rows=ROWS, columns=3, dtype=np.float32):
    return np.random.default_rng(seed).random((rows, columns)).astype(dtype) + 1


def status(judged, body, key=0):
    return samples.status_name(judged.judge(key, body))


GOOD = answer(scores=scores())
WRONG = {
    "nothing": (b"", "empty answer"),
    "only a version": (answer(), "empty answer"),
    "garbage": (b"\xff\xff\xff", "unreadable answer"),
    "cut off": (GOOD[:-3], "unreadable answer"),
    "cut in the middle": (GOOD[: len(GOOD) // 2], "unreadable answer"),
    "as long, but garbage": (b"\xff" * len(GOOD), "unreadable answer"),
    "a page": (b"<html>login</html>", "unreadable answer"),
    "other output": (answer(other=scores()), "missing output"),
    "double": (answer(scores=scores(dtype=np.float64)), "wrong dtype"),
    "strings": (answer(scores=np.full((ROWS, 3), b"a", object)), "wrong dtype"),
    "one rank less": (answer(scores=scores()[0]), "wrong rank"),
    "one rank more": (answer(scores=scores()[None]), "wrong rank"),
    "one row less": (answer(scores=scores(rows=ROWS - 1)), "wrong rows"),
    "no rows": (answer(scores=scores(rows=0)), "wrong rows"),
    "one class more": (answer(scores=scores(columns=4)), "wrong shape"),
    "as many values otherwise": (answer(scores=scores(rows=3, columns=ROWS)), "wrong rows"),
}  # fmt: skip


@pytest.mark.parametrize("after", [0, 1, 5000])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_answer_over_grpc_is_told_by_its_kind_however_many_were_right(what, after):
    body, kind = WRONG[what]
    judged = judges()
    for number in range(after):
        assert judged.judge(number, GOOD) == samples.OK
    assert status(judged, body) == kind
    assert judged.why
    assert judged.judge(0, GOOD) == samples.OK
    assert judged.tally().checked == after + 2
    assert judged.tally().versions == {1: after + 1}


def claim(values):
    message = protos.PredictResponse.FromString(GOOD)
    del message.outputs["scores"].float_val[values:]
    return message.SerializeToString()


@pytest.mark.parametrize("values", [0, 1, 11])
def test_answer_that_claims_more_values_than_it_has_is_unreadable(values):
    judged = judges()
    assert judged.judge(0, GOOD) == samples.OK
    assert status(judged, claim(values)) == "unreadable answer"


NUMBERS = [
    ("float", np.float32), ("double", np.float64), ("int32", np.int32), ("int64", np.int64),
    ("uint8", np.uint8), ("bool", np.bool_), ("half", np.float16), ("complex64", np.complex64),
    ("uint32", np.uint32), ("uint64", np.uint64),
]  # fmt: skip


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize(("name", "dtype"), NUMBERS)
def test_right_answers_of_every_type_pass_and_hardly_any_is_decoded(name, dtype, as_content):
    judged = judges(signature(y=(name, (None, 3))))
    for seed in range(500):
        values = (np.random.default_rng(seed).random((ROWS, 3)) * 1.99 + 1).astype(dtype)
        assert judged.judge(seed, answer(y=values, as_content=as_content)) == samples.OK
    tally = judged.tally()
    assert (tally.checked, tally.versions) == (500, {1: 500})
    assert tally.decoded < 20


@given(st.data())
@settings(max_examples=300)
def test_no_change_of_a_right_answer_that_matters_passes(data):
    """What a quick look lets pass, a full decoding finds to be what was asked for, too."""
    of = signature(a=("float", (None, 2)), n=("int64", (None,)), s=("string", (None,)))
    whole = {"a": scores(columns=2), "n": np.arange(ROWS) % 3, "s": np.full(ROWS, b"ab", object)}
    judged = judges(of)
    body = answer(**whole)
    for _ in range(3):
        assert judged.judge(0, body) == samples.OK
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["set", "drop", "add"])):
            case "set":
                changed[at] = data.draw(st.integers(0, 255))
            case "drop":
                del changed[at]
            case "add":
                changed.insert(at, data.draw(st.integers(0, 255)))
        if not changed:
            break
    quick, full = judged.judge(0, bytes(changed)), judges(of).judge(0, bytes(changed))
    assert (quick == samples.OK) == (full == samples.OK)


def test_change_of_version_is_counted_and_no_error():
    judged = judges()
    for version in (1, 1, 2, 1, 2):
        assert judged.judge(0, answer(version, scores=scores(version))) == samples.OK
    assert judged.tally().versions == {1: 3, 2: 2}


def test_outputs_that_come_in_another_order_pass():
    of = signature(a=("float", (None,)), b=("float", (None,)))
    judged, values = judges(of), {"a": np.float32([1] * ROWS), "b": np.float32([2] * ROWS)}
    parts = [answer(0, **{alias: array})[:-4] for alias, array in values.items()]
    assert judged.judge(0, b"".join(parts)) == judged.judge(0, b"".join(parts[::-1])) == 0


def rest(document):
    return json.dumps(document).encode()


COLUMNS = {"outputs": scores().tolist()}
REST_WRONG = {
    "nothing": (b"", "empty answer"),
    "space": (b" \n", "empty answer"),
    "an empty object": (b"{}", "empty answer"),
    "an error": (rest({"error": "model exploded"}), "error as answer"),
    "a page": (b"\n<!doctype html><html>login", "page as answer"),
    "cut off": (rest(COLUMNS)[:-4], "unreadable answer"),
    "another thing": (rest({"status": "ok"}), "unreadable answer"),
    "deep": (b"[" * 100_000, "unreadable answer"),
    "ragged": (rest({"outputs": [[1.5, 2, 3], [1], [1], [1]]}), "unreadable answer"),
    "text": (rest({"outputs": [["a"] * 3] * ROWS}), "wrong dtype"),
    "null": (rest({"outputs": None}), "unreadable answer"),
    "one row less": (rest({"outputs": scores(rows=3).tolist()}), "wrong rows"),
    "one row more": (rest({"predictions": scores(rows=5).tolist()}), "wrong rows"),
    "one rank less": (rest({"outputs": [1.5] * ROWS}), "wrong rank"),
    "one class less": (rest({"outputs": scores(columns=2).tolist()}), "wrong shape"),
    "a gap": (rest(COLUMNS).replace(b", ", b", , ", 1), "unreadable answer"),
    "a number left out": (b'{"outputs": [[1, 2, 3], [1, , 3], [1, 2, 3], [1, 2, 3]]}',
                          "unreadable answer"),
    "numbers that are none": (b'{"outputs": [[1, 2, 3], [1, 2.3.4, 3], [1, 2, 3], [1, 2, 3]]}',
                              "unreadable answer"),
}  # fmt: skip


@pytest.mark.parametrize("after", [0, 2000])
@pytest.mark.parametrize("what", REST_WRONG)
def test_wrong_answer_over_rest_is_told_by_its_kind_however_many_were_right(what, after):
    body, kind = REST_WRONG[what]
    judged = judges(is_rest=True)
    for number in range(after):
        assert judged.judge(number, rest({"outputs": scores(number).tolist()})) == samples.OK
    assert status(judged, body) == kind
    assert judged.why
    assert judged.tally().checked == after + 1
    assert judged.tally().decoded <= 10


@pytest.mark.parametrize("what", ["a gap", "cut off", "one row less", "an error"])
def test_long_answers_over_rest_are_told_too(what):
    of = signature(scores=("float", (None, 1000)))
    good = scores(columns=1000)
    wrong = {
        "a gap": rest({"outputs": good.tolist()}).replace(b", ", b", , ", 1),
        "cut off": rest({"outputs": good.tolist()})[:-7],
        "one row less": rest({"outputs": good[1:].tolist()}),
        "an error": rest({"error": "x" * 10_000}),
    }[what]
    judged = judges(of, is_rest=True)
    for _ in range(3):
        assert judged.judge(0, rest({"outputs": good.tolist()})) == samples.OK
    assert judged.judge(0, wrong) != samples.OK
    assert judged.tally().decoded == 2


@pytest.mark.parametrize("values", [[float("nan"), 1.0, 2.0], [float("inf"), -0.0, 1e-30]])
def test_numbers_that_json_lacks_pass(values):
    judged = judges(is_rest=True)
    for _ in range(3):
        assert judged.judge(0, rest({"predictions": [values] * ROWS})) == samples.OK


def test_patterns_of_long_strings_take_bounded_memory():
    judged = judges(signature(s=("string", (None,))))
    for number in range(100):
        text = np.full(ROWS, b"%7d" % number + b"x" * 500_000, object)
        assert judged.judge(number, answer(s=text)) == samples.OK
    kept = [each for some in judged._all[0]._patterns.values() for each in some]
    assert sum(len(piece) for each in kept for _, piece in each.pieces) <= 1 << 24
    assert judged.tally().checked == 100


class TestExpected:
    def test_rows_are_those_of_the_request(self):
        expected = Expected.of(SCORES, INPUTS)
        assert [str(each) for each in expected.outputs] == ["float [4, 3]"]
        assert expected.without_rows == ()

    def test_rows_of_a_model_that_does_not_go_by_rows_are_unknown_and_told(self):
        seen = {"scores": scores(rows=7)}
        (expected,) = of_calls([(SCORES, INPUTS)], seen)
        assert expected.without_rows == ("scores",)
        judged = judges(trial=seen)
        assert judged.judge(0, answer(scores=scores(rows=9))) == samples.OK
        assert status(judged, answer(scores=scores(columns=5))) == "wrong shape"
        assert judged.tally().without_rows == {"scores"}

    def test_rank_that_the_signature_has_wrong_is_not_expected(self):
        judged = judges(trial={"scores": scores()[0]})
        assert judged.judge(0, answer(scores=scores()[0])) == samples.OK

    def test_each_request_implies_its_own_rows(self):
        calls = [(SCORES, {"x": np.zeros((rows, 2), np.float32)}) for rows in (1, 4)]
        expected = of_calls(calls, {"scores": scores(rows=1)})
        judged = Judges([Payload("/p", (), b"", each) for each in expected], is_rest=False)
        one, four = answer(scores=scores(rows=1)), answer(scores=scores(rows=4))
        assert [judged.judge(key, body) for key, body in enumerate([one, four] * 2)] == [0] * 4
        assert status(judged, four, key=0) == status(judged, one, key=1) == "wrong rows"

    def test_payloads_that_expect_nothing_are_not_looked_into(self):
        assert Judges([Payload("/p", (), b"")], is_rest=False).judge is None
