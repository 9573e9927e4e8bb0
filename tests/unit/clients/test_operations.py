"""What is remembered of models, and how batches are cut: flows over made-up servers."""

import numpy as np
import pytest

from tests.unit.clients.scripts import WIRES, FakeClock, Run, failed, operations
from tfserve_kit import protos
from tfserve_kit.clients.protocol import Reply
from tfserve_kit.clients.results import Target
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    ServerUnreachable,
)
from tfserve_kit.tensors import from_proto, predict_response

TARGET = Target("m")
SIGNATURES = """
    signature_def { key: "serving_default" value {
      inputs { key: "x" value { dtype: DTYPE tensor_shape { dim { size: -1 } } } }
      outputs { key: "y" value { dtype: DT_FLOAT tensor_shape {
        dim { size: -1 } dim { size: 3 } dim { size: -1 } } } }
    } }
"""


class Model:
    """Answers y = x over gRPC: metadata and predict requests, as a server would.

    Attributes:
        version: the one that answers.
        dtype: of the input.
        limit: rows it takes at most.
        bad: rows with these values make a request fail.
        asked: the method of each request, and its rows.
    """

    def __init__(self, **options):
        self.version, self.dtype, self.limit, self.bad = 1, "DT_FLOAT", None, set()
        self.fault, self.answer, self.asked = None, None, []
        self.__dict__.update(options)

    def __call__(self, request):
        if request.method == "GetModelMetadata":
            self.asked.append("metadata")
            return Reply(True, self._metadata())
        message = protos.PredictRequest.FromString(request.body)
        rows = from_proto(message.inputs["x"])
        self.asked.append(len(rows) if rows.ndim else "scalar")
        if self.fault:
            return self.fault
        if self.limit and len(rows) > self.limit:
            text = f"Task size {len(rows)} is larger than maximum input batch size {self.limit}"
            return failed("INVALID_ARGUMENT", text)
        if self.bad & set(rows.ravel().tolist()):
            return failed("INTERNAL", "poisoned")
        spec = protos.ModelSpec(name="m", version={"value": self.version})
        answer = self.answer(rows) if self.answer else rows
        return Reply(True, predict_response({"y": answer}, spec.SerializeToString()))

    def _metadata(self):
        signatures = protos.from_text("SignatureDefMap", SIGNATURES.replace("DTYPE", self.dtype))
        answer = protos.GetModelMetadataResponse(model_spec={"version": {"value": self.version}})
        answer.metadata["signature_def"].Pack(signatures)
        return answer.SerializeToString()


@pytest.fixture
def clock():
    return FakeClock()


class Session:
    """One connection to a model."""

    def __init__(self, clock, model, **options):
        self.clock, self.model = clock, model
        self.operations = operations(clock, **options)

    def predict(self, inputs, target=TARGET):
        return Run(self.operations.predict(target, inputs, (), 30.0), self.model, self.clock).result

    def batch(self, inputs, timeout_s=30.0, takes_s=0.0, **wanted):
        wanted = {"output_filter": (), "batch_size": None, "on_error": "raise"} | wanted
        flow = self.operations.predict_batch(TARGET, inputs, timeout_s=timeout_s, **wanted)
        return Run(flow, self.model, self.clock, takes_s).result


@pytest.fixture
def session(clock):
    def make(options=None, **model):
        return Session(clock, Model(**model), **(options or {}))

    return make


# Signatures


def test_signature_is_read_once_for_a_model(session):
    made = session()
    for _ in range(3):
        assert made.predict([1, 2]).version == 1
    assert made.model.asked == ["metadata", 2, 2, 2]


def test_each_version_and_label_has_signatures_of_its_own(session):
    made = session()
    for target in (TARGET, Target("m", 1), Target("m", label="stable"), Target("m", 1)):
        made.predict([1], target)
    assert made.model.asked.count("metadata") == 3


def test_signature_is_read_again_when_another_version_answered(session):
    made = session()
    made.predict([1])
    made.model.version = 2
    made.predict([1])
    made.predict([1])
    assert made.model.asked == ["metadata", 1, 1, "metadata", 1]


@pytest.mark.parametrize(
    ("status", "kind"), [("NOT_FOUND", ModelNotFound), ("INVALID_ARGUMENT", InvalidRequest)]
)
def test_signature_is_read_again_after_a_refusal(session, status, kind):
    made = session()
    made.predict([1])
    made.model.fault = failed(status)
    with pytest.raises(kind):
        made.predict([1])
    made.model.fault = None
    made.predict([1])
    assert made.model.asked == ["metadata", 1, 1, "metadata", 1]


def test_input_is_refused_only_after_a_look_at_the_signature_as_it_is_now(session):
    made = session(dtype="DT_INT32")
    made.predict([1])
    with pytest.raises(InvalidRequest, match="it is double, the model takes int32"):
        made.predict([1.5])
    made.model.dtype = "DT_FLOAT"
    made.predict([1.5])
    assert made.model.asked == ["metadata", 1, "metadata", "metadata", 1]


def test_input_that_rest_cannot_carry_is_named():
    inputs = {"x": np.float32([1]), "z": np.complex64([1])}
    with pytest.raises(InvalidRequest, match="send the input 'z': REST cannot carry complex64"):
        WIRES["rest"].predict(TARGET, inputs, (), None)
    inputs["z"] = np.zeros((2, 0, 3), np.float32)  # [[], []]
    with pytest.raises(InvalidRequest, match=r"'z': REST cannot carry the shape \[2, 0, 3\]"):
        WIRES["rest"].predict(TARGET, inputs, (), None)
    inputs["z"] = np.zeros((2, 0), np.float32)
    WIRES["rest"].predict(TARGET, inputs, (), None)


@pytest.mark.parametrize("check", [True, False])
def test_name_in_place_of_a_list_of_names_is_no_list_of_letters(session, check):
    made = session({"check": check})
    flow = made.operations.predict(TARGET, {"x": np.float32([1])}, "y", 30.0)
    with pytest.raises(InvalidRequest, match="output_filter is 'y', not a list") as caught:
        Run(flow, made.model, made.clock)
    assert caught.value.remedy == "give ['y']"


def test_input_that_is_called_by_a_number_is_named(session):
    with pytest.raises(InvalidRequest, match="has no input 1 in signature"):
        session().predict({1: [1.0]})


def test_without_the_check_no_signature_is_read(session):
    made = session({"check": False})
    made.predict({"x": np.float32([1])})
    assert made.model.asked == [1]


def test_faults_do_not_make_it_forget(session):
    made = session({"retries": 0})
    made.predict([1])
    made.model.fault = failed("UNAVAILABLE")
    with pytest.raises(ServerUnreachable):
        made.predict([1])
    made.model.fault = None
    made.predict([1])
    assert made.model.asked == ["metadata", 1, 1, 1]


# Batches


def test_batch_goes_as_one_request_where_there_is_no_limit(session):
    found = session().batch(np.arange(1000))
    assert (found.requests, len(found.outputs["y"]), found.versions) == (1, 1000, {1})


@pytest.mark.parametrize(
    ("limit", "sizes"), [(4, [10, 4, 4, 2]), (5, [10, 5, 5]), (1, [10] + [1] * 10)]
)
def test_batch_is_cut_by_the_limit_the_server_names(session, limit, sizes):
    made = session(limit=limit)
    found = made.batch(np.arange(10))
    assert made.model.asked == ["metadata", *sizes]
    assert found.outputs["y"].tolist() == list(range(10))
    assert found.rows.tolist() == list(range(10))


def test_limit_that_has_become_smaller_cuts_the_parts_again(session):
    made = session(limit=4)
    made.batch(np.arange(4))
    made.model.limit = 2
    assert made.batch(np.arange(6), batch_size=4).outputs["y"].tolist() == list(range(6))
    assert made.model.asked == ["metadata", 4, 4, 2, 2, 2]


def test_old_servers_word_the_limit_differently(session):
    made = session(answer=None)
    made.model.fault = failed("INVALID_ARGUMENT", "Task size 9 is larger than maximum batch size 3")
    with pytest.raises(InvalidRequest):
        made.batch(np.arange(9))
    assert made.model.asked == ["metadata", 9, 3]  # no endless cutting


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("bad", [[3], [0, 9], [4, 5, 6], list(range(10))])
def test_bad_rows_are_found_by_halving(session, limit, bad):
    made = session(limit=limit, bad=set(bad))
    found = made.batch(np.arange(10), on_error="isolate")
    assert sorted(found.errors) == bad
    good = [row for row in range(10) if row not in bad]
    assert found.rows.tolist() == good
    assert found.outputs.get("y", np.zeros(0)).tolist() == good
    assert {type(error) for error in found.errors.values()} == {ServerFault}


def test_one_bad_row_in_many_costs_few_requests(session):
    found = session(bad={700}).batch(np.arange(1024), on_error="isolate")
    assert found.requests == 1 + 2 * 10


def test_server_that_goes_away_is_no_reason_to_halve(session):
    made = session({"retries": 0})
    made.model.fault = failed("UNAVAILABLE")
    found = made.batch(np.arange(8), on_error="isolate", batch_size=4)
    assert found.requests == 2
    assert sorted(found.errors) == list(range(8))
    assert found.outputs == {}


def test_rows_that_were_not_reached_in_time_have_the_deadline_as_their_error(session):
    found = session().batch(
        np.arange(8), on_error="isolate", batch_size=2, timeout_s=2.5, takes_s=1.0
    )
    assert found.rows.tolist() == [0, 1]  # the signature took the first second
    assert {type(error) for error in found.errors.values()} == {DeadlineExceeded}
    assert sorted(found.errors) == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("answer", [lambda rows: rows.sum(), lambda rows: rows[:1]])
def test_outputs_that_are_not_row_by_row_are_no_batch(session, answer):
    with pytest.raises(ServerFault, match="use predict"):
        session(answer=answer).batch(np.arange(3))


def test_parts_that_do_not_go_together_are_no_batch(session):
    made = session(answer=lambda rows: np.zeros((len(rows), len(rows)), np.float32))
    with pytest.raises(ServerFault, match="do not go together"):
        made.batch(np.arange(5), batch_size=3)


def test_batch_without_rows_has_outputs_as_far_as_the_signature_tells(session):
    made = session()
    found = made.batch(np.zeros(0))
    assert (found.outputs["y"].shape, found.outputs["y"].dtype) == ((0, 3, 0), np.float32)
    assert made.model.asked == ["metadata"]
    with pytest.raises(InvalidRequest, match="without rows"):
        session({"check": False}).batch({"x": np.zeros(0, np.float32)})


# Batches of signatures that are not all rows


class Shaped:
    """Answers with the rows of `x`, for signatures of any kind; keeps what it was sent."""

    def __init__(self, signature):
        self.signature, self.sent = signature, []

    def __call__(self, request):
        if request.method == "GetModelMetadata":
            signatures = protos.from_text("SignatureDefMap", self.signature)
            answer = protos.GetModelMetadataResponse(model_spec={"version": {"value": 1}})
            answer.metadata["signature_def"].Pack(signatures)
            return Reply(True, answer.SerializeToString())
        inputs = protos.PredictRequest.FromString(request.body).inputs
        self.sent.append({alias: from_proto(each).tolist() for alias, each in inputs.items()})
        spec = protos.ModelSpec(name="m", version={"value": 1})
        rows = from_proto(inputs["x"])
        return Reply(True, predict_response({"y": rows}, spec.SerializeToString()))


def shaped(inputs, output):
    """Return a signature in text format: shapes by alias, 0 for an open axis."""

    def info(kind, alias, shape):
        dims = " ".join(f"dim {{ size: {size or -1} }}" for size in shape)
        return f'{kind} {{ key: "{alias}" value {{ dtype: DT_FLOAT tensor_shape {{ {dims} }} }} }}'

    texts = [info("inputs", *item) for item in inputs.items()]
    texts += [info("outputs", *item) for item in output.items()]
    return f'signature_def {{ key: "serving_default" value {{ {" ".join(texts)} }} }}'


def test_parameters_go_with_each_part_as_they_are(clock):
    model = Shaped(shaped({"x": [0], "w": [3], "keep": []}, {"y": [0]}))
    inputs = {"x": [1, 2, 3], "w": [7, 8, 9], "keep": 0.5}
    found = Session(clock, model).batch(inputs, batch_size=2)
    assert found.outputs["y"].tolist() == [1, 2, 3]
    assert [each["x"] for each in model.sent] == [[1, 2], [3]]
    assert all(each["w"] == [7, 8, 9] and each["keep"] == 0.5 for each in model.sent)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8])
def test_parts_have_just_the_rows_that_the_model_takes(clock, rows):
    model = Shaped(shaped({"x": [2]}, {"y": [2]}))
    found = Session(clock, model).batch({"x": list(range(rows))})
    assert found.outputs["y"].tolist() == list(range(rows))
    assert all(len(each["x"]) == 2 for each in model.sent)
    assert len(model.sent) == (rows + 1) // 2


@pytest.mark.parametrize("shape", [[1], [2], []])
def test_outputs_that_are_not_row_by_row_are_never_put_together(clock, shape):
    model = Shaped(shaped({"x": [0]}, {"y": [0], "whole": shape}))
    with pytest.raises(InvalidRequest, match=r"'whole' is float .*, not row by row") as refused:
        Session(clock, model).batch({"x": [1, 2]}, batch_size=1)
    assert "output_filter of y" in refused.value.remedy
    assert not model.sent
    found = Session(clock, model).batch({"x": [1, 2]}, batch_size=1, output_filter=["y"])
    assert found.outputs["y"].tolist() == [1, 2]


def test_parts_of_a_ragged_tensor_are_never_cut(clock):
    text = shaped({"x": [0], "x_1": [0]}, {"y": [0]})
    ragged = text.replace(
        'key: "x_1" value { dtype: DT_FLOAT', 'key: "x_1" value { dtype: DT_INT64'
    )
    with pytest.raises(InvalidRequest, match="parts of one ragged tensor"):
        Session(clock, Shaped(ragged)).batch({"x": [1.0, 2.0], "x_1": [0, 2]})
