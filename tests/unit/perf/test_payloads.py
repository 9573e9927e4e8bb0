"""Random inputs fit the signature they are for."""

import json

import numpy as np
import pytest

from tests.unit.signatures import NESTED, RAGGED, SPARSE, made
from tfserve_kit import protos, savedmodel, tfrecord
from tfserve_kit.clients import Target
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.perf import payloads
from tfserve_kit.perf.load import Load, Open
from tfserve_kit.perf.payloads import assumptions, inputs_of, random_inputs
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, warmup
from tfserve_kit.tensors import dtypes, from_proto


@pytest.mark.parametrize(("model", "batch", "shapes"), [
    ("mlp", 3, {"images": ((3, 784), np.float32)}),
    ("image", 2, {"image": ((2, 8, 8, 3), np.uint8)}),
    ("multi_io", 1, {"a": ((1, 2), np.int32), "b": ((1, 2), np.float32)}),
])  # fmt: skip
def test_random_inputs_have_the_signature_s_shapes_and_dtypes(models, model, batch, shapes):
    signature = savedmodel.read_signatures(models / model / "1")["serving_default"]
    inputs = payloads.random_inputs(signature, batch, seed=0)
    assert {alias: (array.shape, array.dtype) for alias, array in inputs.items()} == shapes


def test_the_same_seed_gives_the_same_inputs(models):
    signature = savedmodel.read_signatures(models / "mlp" / "1")["serving_default"]
    first, again, other = (
        payloads.random_inputs(signature, 1, seed)["images"] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("drawn", [True, False])
def test_shape_that_was_made_up_is_told(drawn):
    spec = savedmodel.TensorSpec("x:0", dtypes.by_name("float"), None)
    signature = savedmodel.Signature("s", {"x": spec}, {}, "")
    told = payloads.assumptions(signature, drawn=drawn)
    assert ["'x' is of unknown rank" in each for each in told] == [True] * drawn


def test_string_inputs_are_refused_with_the_way_out(models):
    signature = savedmodel.read_signatures(models / "strings" / "1")["serving_default"]
    with pytest.raises(UsageError, match=r"'s'.*string") as refused:
        payloads.random_inputs(signature, 1, seed=0)
    assert "--input" in refused.value.remedy


ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_several_random_inputs_differ(models):
    signature = savedmodel.read_signatures(models / "mlp" / "1")["serving_default"]
    first, second, again = (
        *(payloads.random_inputs(signature, 1, seed=seed) for seed in (0, 1)),
        payloads.random_inputs(signature, 1, seed=0),
    )
    assert not np.array_equal(first["images"], second["images"])
    assert np.array_equal(first["images"], again["images"])


def test_arrays_are_cut_into_batches():
    made = payloads.recorded_inputs({"a": np.arange(5), "b": np.arange(10).reshape(5, 2)}, 2)
    assert [each["a"].tolist() for each in made] == [[0, 1], [2, 3]]
    assert made[1]["b"].tolist() == [[4, 5], [6, 7]]


@pytest.mark.parametrize("arrays", [
    {"a": np.arange(2), "b": np.arange(3)}, {"a": np.arange(1)}, {"a": np.float32(1)},
])  # fmt: skip
def test_arrays_without_a_whole_batch_are_refused(arrays):
    with pytest.raises(UsageError, match="batches of 2"):
        payloads.recorded_inputs({k: np.asarray(v) for k, v in arrays.items()}, 2)


def test_grpc_requests_are_serialized_messages_for_the_target():
    made = payloads.encoded(
        "grpc", "grpc://h:1", Target("m", version=3), [{"x": ROWS}, {"x": ROWS + 1}]
    )
    for number, payload in enumerate(made):
        request = protos.PredictRequest.FromString(payload.body)
        assert payload.path == "/tensorflow.serving.PredictionService/Predict"
        assert request.model_spec.name == "m" and request.model_spec.version.value == 3
        assert np.array_equal(from_proto(request.inputs["x"]), ROWS + number)


def test_rest_requests_are_json_for_the_target():
    (made,) = payloads.encoded("rest", "http://h:1", Target("m", label="stable"), [{"x": ROWS}])
    assert made.path == "/v1/models/m/labels/stable:predict"
    assert (b"content-type", b"application/json") in made.headers
    assert json.loads(made.body)["inputs"] == {"x": ROWS.tolist()}


ROW, SCALAR = ("float", (None, 2)), ("float", ())
FIXED = made({"x": ("float", (4, 2)), "k": SCALAR}, {"y": ("float", (4,))})


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "in.npz", **arrays)
        return str(tmp_path / "in.npz")

    return write


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (SCALAR, 1.0), (("bool", ()), True), (("int64", ()), 1), (("float", (3,)), [1, 1, 1]),
        (("complex64", ()), 1), (("half", ()), 1),
    ],
)  # fmt: skip
def test_parameters_are_ones_in_their_own_shape(spec, value):
    drawn = random_inputs(made({"x": ROW, "p": spec}), 3, seed=7)
    assert drawn["x"].shape == (3, 2)
    assert drawn["p"].tolist() == value


def test_parameters_are_said():
    (text,) = assumptions(made({"x": ROW, "keep": SCALAR, "on": ("bool", ())}))
    assert "'keep' = 1.0, 'on' = true" in text
    assert not assumptions(made({"x": ROW}))


def test_fixed_rows_are_drawn_and_said_and_no_others():
    assert random_inputs(FIXED, 1, seed=0)["x"].shape == (4, 2)
    assert random_inputs(FIXED, 4, seed=0)["x"].shape == (4, 2)
    assert any("4 rows" in text for text in assumptions(FIXED))
    with pytest.raises(UsageError, match="takes 4 rows in each request, so 2 rows"):
        random_inputs(FIXED, 2, seed=0)


@pytest.mark.parametrize("inputs", [{"n": ("int32", ())}, {}])
def test_rows_cannot_be_drawn_where_there_are_none(inputs):
    random_inputs(made(inputs), 1, seed=0)
    with pytest.raises(UsageError, match="no input with a batch axis"):
        random_inputs(made(inputs), 2, seed=0)


@pytest.mark.parametrize("inputs", [RAGGED, NESTED, RAGGED | {"r_1": ("int32", (6,))}])
def test_parts_of_a_ragged_tensor_are_drawn_together(inputs):
    signature = made(inputs)
    drawn = random_inputs(signature, 5, seed=0)
    (composite,) = signature.composites
    assert not composite.fault(drawn)
    assert all(signature.inputs[alias].takes(drawn[alias].shape) for alias in inputs)
    assert len(drawn["r_1"]) == 6


def test_parts_of_a_sparse_tensor_are_not_drawn():
    with pytest.raises(UsageError, match="parts of one sparse tensor"):
        random_inputs(made(SPARSE), 1, seed=0)


def test_parameters_of_a_file_go_with_each_batch(npz):
    signature = made({"x": ROW, "keep": SCALAR, "w": ("float", (3,))})
    file = npz(x=np.arange(10.0).reshape(5, 2), keep=np.float32(0.5), w=np.ones(3))
    found = inputs_of(file, signature, 2, Preprocessing())
    assert [each["x"].tolist() for each in found] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert all(each["keep"] == 0.5 and each["w"].shape == (3,) for each in found)


def test_one_row_is_repeated_beside_its_parameters(npz):
    file = npz(x=np.ones((1, 2)), keep=np.float32(0.5))
    (found,) = inputs_of(file, made({"x": ROW, "keep": SCALAR}), 3, Preprocessing())
    assert found["x"].shape == (3, 2) and found["keep"].shape == ()


def test_rows_are_repeated_or_cut_to_the_fixed_number(npz):
    (one,) = inputs_of(npz(x=np.ones((1, 2)), k=np.float32(1)), FIXED, 1, Preprocessing())
    assert one["x"].shape == (4, 2)
    two = inputs_of(npz(x=np.ones((9, 2)), k=np.float32(1)), FIXED, 4, Preprocessing())
    assert [each["x"].shape for each in two] == [(4, 2), (4, 2)]
    with pytest.raises(UsageError, match="must have 4 rows"):
        inputs_of(npz(x=np.ones((2, 2)), k=np.float32(1)), FIXED, 2, Preprocessing())


@pytest.mark.parametrize(
    ("inputs", "arrays", "why"),
    [
        (RAGGED, {"r": np.ones(3), "r_1": np.int64([0, 1, 3])}, "ragged"),
        ({"n": ("int32", ())}, {"n": np.int32(3)}, "no input has a batch axis"),
    ],
)
def test_batches_of_what_cannot_be_cut_are_refused(npz, inputs, arrays, why):
    assert len(inputs_of(npz(**arrays), made(inputs), 1, Preprocessing())) == 1
    with pytest.raises(UsageError, match=why):
        inputs_of(npz(**arrays), made(inputs), 2, Preprocessing())


@pytest.fixture
def signatures(models):
    return savedmodel.read_signatures(models / "half_plus_two" / "1")


@pytest.fixture
def log(tmp_path):
    def write(*lines):
        file = tmp_path / "log.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        file.write_text("\n".join(texts) + "\n")
        return file

    return write


def test_lines_are_requests_with_times(log, signatures):
    file = log(
        {"at": 1700000000.5, "instances": [1, 2]},
        "",
        {"at": 1700000001, "inputs": {"x": [3]}, "signature_name": DEFAULT_SIGNATURE},
    )
    first, second = payloads.read_log(file, signatures)
    assert (first.at_s, second.at_s) == (1700000000.5, 1700000001.0)
    assert first.inputs["x"].tolist() == [1, 2]
    assert first.inputs["x"].dtype == np.float32
    assert second.inputs["x"].tolist() == [3]
    assert second.signature == DEFAULT_SIGNATURE


def test_requests_are_put_in_the_order_they_came(log, signatures):
    lines = [{"at": at, "instances": [n]} for n, at in enumerate([5, 3, 4, 3])]
    found = payloads.read_log(log(*lines), signatures)
    assert [each.inputs["x"].tolist() for each in found] == [[1], [3], [2], [0]]


def test_a_line_that_names_no_signature_calls_the_one_that_was_asked_for(models, log):
    signatures = savedmodel.read_signatures(models / "multi_io" / "1")
    with pytest.raises(UsageError, match="no signature 'other'"):
        payloads.read_log(log({"at": 0, "instances": [1]}), signatures, "other")


@pytest.mark.parametrize(("line", "why"), [
    ("{", "line 2 is not valid JSON"),
    ({"instances": [1]}, "line 2 has no time"),
    ({"at": "now", "instances": [1]}, "line 2 has no time"),
    ({"at": True, "instances": [1]}, "line 2 has no time"),
    ('{"at": NaN, "instances": [1]}', "line 2 has no time"),
    ("[1]", "line 2 has no time"),
    ({"at": 1}, "line 2 is not a request: it needs one of the keys"),
    ({"at": 1, "instances": [1], "inputs": [1]}, "line 2 is not a request"),
    ({"at": 1, "inputs": {"y": [1]}}, "line 2: signature .* has no input 'y'"),
    ({"at": 1, "instances": ["a"]}, "line 2"),
    ({"at": 1, "instances": [1], "signature_name": 5}, "line 2: signature_name is 5"),
])  # fmt: skip
def test_a_line_that_cannot_be_sent_is_named(log, signatures, line, why):
    with pytest.raises(InvalidRequest, match=why):
        payloads.read_log(log({"at": 0, "instances": [0]}, line), signatures)


def test_records_are_requests_without_times(tmp_path, signatures):
    file = tmp_path / "requests"
    rows = {"x": np.float32([1, 2, 3])}
    records = list(warmup.build(rows, signatures[DEFAULT_SIGNATURE], model="old", sizes=[1, 3]))
    tfrecord.write(file, records)
    found = payloads.read_log(file, signatures)
    assert [len(each.inputs["x"]) for each in found] == [1, 3]
    assert {each.at_s for each in found} == {None}
    assert {each.signature for each in found} <= {"", DEFAULT_SIGNATURE}


def test_a_record_that_does_not_fit_is_named(tmp_path, signatures):
    tfrecord.write(tmp_path / "requests", [b"\xff"])
    with pytest.raises(InvalidRequest, match="record 1 is not a PredictionLog"):
        payloads.read_log(tmp_path / "requests", signatures)


def test_a_record_of_another_kind_is_named(tmp_path, models):
    signatures = savedmodel.read_signatures(models / "legacy" / "1")
    from tfserve_kit import protos

    log = protos.PredictionLog()
    name = next(
        each.name for each in signatures.values() if set(each.outputs) & {"classes", "scores"}
    )
    log.classify_log.request.model_spec.signature_name = name
    log.classify_log.request.input.example_list.examples.add()
    tfrecord.write(tmp_path / "requests", [log.SerializeToString()])
    with pytest.raises(InvalidRequest, match="record 1 is a classify_log"):
        payloads.read_log(tmp_path / "requests", signatures)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"no log at all, but long enough"])
def test_what_is_no_log_is_refused(tmp_path, signatures, content):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises((UsageError, InvalidRequest)):
        payloads.read_log(tmp_path / "log", signatures)


def test_a_missing_log_is_refused(tmp_path, signatures):
    with pytest.raises(UsageError, match="cannot read"):
        payloads.read_log(tmp_path / "gone", signatures)


class TestReplay:
    schedule = Open(np.array([0, 5, 9], np.int64), max_in_flight=7)

    def test_recorded_times_take_the_place_of_a_rate(self):
        load = Load("grpc://h:1", "grpc", self.schedule)
        assert load.name == "replay"
        settings = load.settings()
        assert settings["loop"] == "open"
        assert settings["max_in_flight"] == 7
        assert not settings.keys() & {"due_ns", "arrivals", "concurrency", "rate"}
        json.dumps(settings)

    def test_no_more_than_asked_for_are_sent(self):
        assert self.schedule.first(2).due_ns.tolist() == [0, 5]
        assert self.schedule.first(None).due_ns.tolist() == [0, 5, 9]
