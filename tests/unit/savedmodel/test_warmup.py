"""Warm-up requests: made, stored, and held against the model."""

import shutil

import numpy as np
import pytest

from tests.unit import saved_models
from tests.unit.signatures import RAGGED, made
from tfserve_kit import protos, savedmodel, tfrecord
from tfserve_kit.errors import PushRefused, UsageError
from tfserve_kit.savedmodel import Signature, TensorSpec, warmup
from tfserve_kit.tensors import dtypes, from_proto, to_proto

SERVING = "serving_default"


@pytest.fixture
def model(models, tmp_path):
    """Copy one of the models; its folder is called `exported`."""

    def copy(name):
        return shutil.copytree(models / name / "1", tmp_path / "exported")

    return copy


def signature(name=SERVING, method="", outputs=(), **inputs):
    specs = {
        alias: TensorSpec(f"{alias}:0", dtypes.by_name(dtype), shape)
        for alias, (dtype, shape) in inputs.items()
    }
    return Signature(name, specs, dict.fromkeys(outputs), method)


VECTOR = signature(x=("float", (None,)))


def logs(inputs, wanted=VECTOR, sizes=(1,)):
    records = warmup.build(inputs, wanted, model="m", sizes=sizes)
    return [protos.PredictionLog.FromString(record) for record in records]


def predicted(log):
    return {alias: from_proto(each) for alias, each in log.predict_log.request.inputs.items()}


def store(version_dir, *records):
    """Write records past all checks; messages and text format are serialized."""
    file = version_dir / savedmodel.WARMUP_FILE
    file.parent.mkdir(exist_ok=True)
    texts = [protos.from_text("PredictionLog", r) if isinstance(r, str) else r for r in records]
    tfrecord.write(file, [r if isinstance(r, bytes) else r.SerializeToString() for r in texts])
    return file


def predict_log(signature_name="", output_filter=(), **inputs):
    log = protos.PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = signature_name
    request.output_filter.extend(output_filter)
    for alias, value in inputs.items():
        is_array = isinstance(value, np.ndarray | np.generic)
        request.inputs[alias].CopyFrom(to_proto(value) if is_array else value)
    return log


def messages(version_dir):
    found = warmup.problems(version_dir)
    assert {each.path for each in found} <= {"assets.extra/tf_serving_warmup_requests"}
    return [each.message for each in found]


ROWS = np.float32([1, 2, 3])


# Requests


def test_each_batch_size_has_a_request_of_as_many_rows():
    found = logs({"x": ROWS}, sizes=[1, 2, 3, 7])
    assert [predicted(log)["x"].tolist() for log in found] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 3, 1, 2, 3, 1],
    ]  # fmt: skip


def test_a_size_that_is_given_twice_has_one_request():
    assert len(logs({"x": ROWS}, sizes=[2, 1, 2])) == 2


def test_request_names_model_and_signature():
    (log,) = logs({"x": ROWS}, signature("named", x=("float", (None,))))
    spec = log.predict_log.request.model_spec
    assert (spec.name, spec.signature_name) == ("m", "named")


def test_same_inputs_make_the_same_bytes():
    wanted = signature(**dict.fromkeys("dbca", ("float", (None,))))
    made = [
        list(warmup.build(dict.fromkeys(order, ROWS), wanted, model="m", sizes=[2]))
        for order in ("abcd", "dcba")
    ]
    assert made[0] == made[1]


def test_inputs_of_fixed_size_stay_beside_those_that_grow():
    wanted = signature(x=("float", (None, 2)), scale=("float", ()), pair=("int32", (2,)))
    inputs = {"x": np.float32([[1, 2]]), "scale": np.float32(5), "pair": np.int32([8, 9])}
    (log,) = logs(inputs, wanted, sizes=[3])
    found = predicted(log)
    assert found["x"].tolist() == [[1, 2]] * 3
    assert (found["scale"], found["pair"].tolist()) == (5, [8, 9])


@pytest.mark.parametrize(
    ("spec", "array"),
    [
        (("float", (2,)), np.float32([1, 2])),
        (("float", ()), np.float32(1)),
        (("float", None), np.float32(1)),
    ],
)
def test_signature_without_an_open_first_axis_has_one_request_as_it_is(spec, array):
    (log,) = logs({"x": array}, signature(x=spec), sizes=[4, 8])
    np.testing.assert_array_equal(predicted(log)["x"], array)


def test_input_of_any_rank_is_taken_for_rows():
    (log,) = logs({"x": np.float32([[1, 2]])}, signature(x=("float", None)), sizes=[2])
    assert predicted(log)["x"].tolist() == [[1, 2], [1, 2]]


def test_texts_are_repeated_whole():
    texts = np.array([b"a\0", b"bcd"], object)
    (log,) = logs({"x": texts}, signature(x=("string", (None,))), sizes=[3])
    assert predicted(log)["x"].tolist() == [b"a\0", b"bcd", b"a\0"]


@pytest.mark.parametrize(
    ("inputs", "sizes", "text"),
    [
        ({"y": ROWS}, [1], "signature 'serving_default' has no input 'y'"),
        ({"x": ROWS[:0]}, [1], "input 'x' has no rows"),
        ({"x": np.float32(1)}, [1], "input 'x' has no rows"),
        ({"x": ROWS}, [0], "a batch cannot have 0 rows"),
        ({"x": ROWS}, [1 << 29], "more than the 2 GiB"),
    ],
)
def test_what_no_request_can_be_made_of_is_refused(inputs, sizes, text):
    with pytest.raises(UsageError, match=text):
        logs(inputs, sizes=sizes)


def examples(*values):
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        example = protos.Example()
        example.features.feature["x"].float_list.value.append(value)
        array[index] = example.SerializeToString()
    return array


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_signature_that_takes_examples_gets_a_log_of_its_kind(kind):
    method = f"tensorflow/serving/{kind}"
    wanted = signature("s", method, inputs=("string", (None,)))
    (log,) = logs({"inputs": examples(1, 2)}, wanted, sizes=[3])
    assert log.WhichOneof("log_type") == f"{kind}_log"
    request = getattr(log, f"{kind}_log").request
    assert (request.model_spec.name, request.model_spec.signature_name) == ("m", "s")
    rows = request.input.example_list.examples
    found = [row.features.feature["x"].float_list.value[0] for row in rows]
    assert found == [1, 2, 1]


@pytest.mark.parametrize("rows", [np.array([b"\xff\xff"], object), ROWS])
def test_rows_that_are_no_examples_are_refused(rows):
    wanted = signature("s", "tensorflow/serving/classify", inputs=("string", (None,)))
    with pytest.raises(UsageError, match=r"signature 's' takes tf\.Example"):
        logs({"inputs": rows}, wanted)


# Batch sizes


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("max_batch_size { value: 8 }", (8,)),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [1, 4, 8]", (1, 4, 8)),
        ("num_batch_threads { value: 2 }", ()),
    ],
)
def test_batch_sizes_are_those_the_server_pads_to(tmp_path, text, sizes):
    file = tmp_path / "batching_config.txt"
    file.write_text(text)
    assert warmup.read_sizes(file) == sizes


def test_batching_parameters_that_cannot_be_read_are_refused(tmp_path):
    file = tmp_path / "batching_config.txt"
    with pytest.raises(UsageError, match="cannot read"):
        warmup.read_sizes(file)
    for content in (b"max_batch: 8", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="holds no batching parameters"):
            warmup.read_sizes(file)


# Storing


def vectors(count):
    (record,) = warmup.build({"x": ROWS}, VECTOR, model="m", sizes=[1])
    return [record] * count


def folder(version_dir):
    return sorted(each.name for each in version_dir.glob("assets.extra/*"))


def test_requests_are_stored_where_the_server_looks(model):
    version_dir = model("half_plus_two")
    file = warmup.write(version_dir, iter(vectors(2)))
    assert file == version_dir / "assets.extra" / "tf_serving_warmup_requests"
    assert list(tfrecord.read(file)) == vectors(2)
    assert folder(version_dir) == ["tf_serving_warmup_requests"]
    assert warmup.problems(version_dir) == []


def test_stored_requests_can_be_read_by_whom_the_folder_lets(model):
    version_dir = model("half_plus_two")
    (version_dir / "plain").touch()
    file = warmup.write(version_dir, vectors(1))
    assert file.stat().st_mode == (version_dir / "plain").stat().st_mode


def test_stored_requests_are_only_replaced_if_that_is_wanted(model):
    version_dir = model("half_plus_two")
    file = warmup.write(version_dir, vectors(1))
    with pytest.raises(UsageError, match=f"{file} exists already"):
        warmup.write(version_dir, vectors(2))
    assert len(list(tfrecord.read(file))) == 1
    warmup.write(version_dir, vectors(2), replace=True)
    assert len(list(tfrecord.read(file))) == 2


def test_thousand_requests_are_stored_and_one_more_is_refused(model):
    version_dir = model("half_plus_two")
    warmup.write(version_dir, vectors(1000))
    with pytest.raises(UsageError, match="more than the 1,000 records"):
        warmup.write(version_dir, vectors(1001), replace=True)
    assert folder(version_dir) == ["tf_serving_warmup_requests"]
    assert sum(1 for _ in tfrecord.read(version_dir / savedmodel.WARMUP_FILE)) == 1000


def test_endless_requests_are_not_read_to_an_end(model):
    def endless():
        while True:
            yield from vectors(1)

    with pytest.raises(UsageError, match="more than the 1,000 records"):
        warmup.write(model("half_plus_two"), endless())


def test_request_that_does_not_fit_the_model_leaves_nothing(model):
    version_dir = model("half_plus_two")
    with pytest.raises(PushRefused, match=r"record 2: the model has no signature 'no'"):
        warmup.write(version_dir, [*vectors(1), predict_log("no").SerializeToString()])
    assert not (version_dir / "assets.extra").exists()


def test_error_while_requests_are_made_leaves_what_was_there(model):
    version_dir = model("half_plus_two")
    file = warmup.write(version_dir, vectors(1))
    with pytest.raises(ZeroDivisionError):
        warmup.write(version_dir, (bytes(1 // (2 - i)) for i in range(5)), replace=True)
    assert list(tfrecord.read(file)) == vectors(1)
    assert folder(version_dir) == [file.name]


def test_folder_that_cannot_be_written_to_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write .*No such file"):
        warmup.write(tmp_path / "none", [])
    (tmp_path / "assets.extra").touch()
    with pytest.raises(UsageError, match="cannot write"):
        warmup.write(tmp_path, [])


# Checking


def test_model_without_requests_has_no_problem(model, tmp_path):
    assert warmup.problems(model("half_plus_two")) == []
    assert warmup.problems(tmp_path / "none") == []


FLOATS = np.float32([1])


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("half_plus_two", predict_log(x=FLOATS)),
        ("half_plus_two", predict_log(SERVING, ["y"], x=ROWS)),
        ("half_plus_two", predict_log(x=np.zeros(0, np.float32))),
        ("defaults", predict_log(a=FLOATS)),
        ("defaults", predict_log(a=FLOATS, b=FLOATS)),
        ("scalars", predict_log(u=np.float32(1))),
        ("scalars", predict_log(u=np.zeros((1, 2, 3), np.float32))),
        ("scalars", predict_log("no_input")),
        ("strings", predict_log(s=np.array([b"text"], object))),
        ("legacy", "classify_log { request { model_spec { signature_name: 'classify_both' }"
                   " input { example_list { examples {} } } } }"),
        ("legacy", "classify_log { request { model_spec { signature_name: 'classify_as_predict' }"
                   " input { example_list { examples {} } } } }"),
        ("legacy", "regress_log { request { model_spec { signature_name: 'regress' } input {"
                   " example_list_with_context { examples {} context {} } } } }"),
        ("legacy", "multi_inference_log { request { input { example_list { examples {} } } tasks {"
                   " method_name: 'tensorflow/serving/regress'"
                   " model_spec { signature_name: 'regress' } } } }"),
    ],
)  # fmt: skip
def test_request_that_fits_has_no_problem(model, name, record):
    version_dir = model(name)
    store(version_dir, record, record)
    assert warmup.problems(version_dir) == []


def of_tensor(text):
    return protos.from_text("TensorProto", text)


def task(kind, name, body="input { example_list { examples {} } }"):
    return f"{kind}_log {{ request {{ model_spec {{ signature_name: '{name}' }} {body} }} }}"


@pytest.mark.parametrize(
    ("name", "record", "text"),
    [
        ("half_plus_two", b"\xff\xff", "is not a PredictionLog"),
        ("half_plus_two", b"", "is a log without a type, which no server replays"),
        ("half_plus_two", "session_run_log {}", "is a session_run_log, which no server replays"),
        ("half_plus_two", predict_log("serving", x=FLOATS),
         "the model has no signature 'serving': did you mean serving_default?"),
        ("nodefault", predict_log(x=FLOATS), "the model has no signature 'serving_default'"),
        ("half_plus_two", predict_log(), "input 'x' of signature 'serving_default' is missing"),
        ("half_plus_two", predict_log(x=FLOATS, z=FLOATS),
         "signature 'serving_default' has no input 'z'"),
        ("half_plus_two", predict_log(x=np.float64([1])), "input 'x' is double [1], not float [?]"),
        ("half_plus_two", predict_log(x=np.float32(1)), "input 'x' is float [], not float [?]"),
        ("mlp", predict_log(images=np.zeros((2, 783), np.float32)),
         "input 'images' is float [2, 783], not float [?, 784]"),
        ("half_plus_two", predict_log(x=of_tensor("dtype: DT_RESOURCE")),
         "input 'x' is not a valid tensor: cannot read a tensor of DataType 20"),
        ("half_plus_two",
         predict_log(x=of_tensor("dtype: DT_FLOAT tensor_shape { dim { size: -1 } }")),
         "input 'x' is not a valid tensor: no tensor can have the shape [-1]"),
        ("half_plus_two", predict_log(x=of_tensor(
            "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } tensor_content: 'abc'")),
         "input 'x' is not a valid tensor: tensor_content holds 3 bytes"),
        ("defaults", predict_log(b=FLOATS), "input 'a' of signature 'serving_default' is missing"),
        ("half_plus_two", predict_log(SERVING, ["q"], x=FLOATS),
         "signature 'serving_default' has no output 'q'"),
        ("half_plus_two", predict_log(SERVING, ["y", "y"], x=FLOATS),
         "output 'y' is asked for twice"),
        ("legacy", task("classify", "classify_both", ""), "has no examples"),
        ("legacy", task("regress", "regress", "input { example_list {} }"), "has no examples"),
        ("legacy", task("classify", "nope"), "the model has no signature 'nope'"),
        ("legacy", task("classify", "regress"), "signature 'regress' cannot classify"),
        ("legacy", task("classify", "classify_three"),
         "signature 'classify_three' cannot classify"),
        ("legacy", task("classify", "classify_badkey"),
         "signature 'classify_badkey' does not take examples"),
        ("legacy", task("regress", "classify_both"), "signature 'classify_both' cannot regress"),
        ("legacy", task("regress", "regress_badout"), "signature 'regress_badout' cannot regress"),
        ("legacy", "multi_inference_log { request { input { example_list { examples {} } }"
                   " tasks { method_name: 'predict' } } }",
         "has a task of the unknown method 'predict'"),
        ("legacy", "multi_inference_log { request { tasks {"
                   " method_name: 'tensorflow/serving/regress'"
                   " model_spec { signature_name: 'regress' } } } }", "has no examples"),
    ],
)  # fmt: skip
def test_request_that_a_server_refuses_is_named(models, model, name, record, text):
    version_dir = model(name)
    good = predict_log("parse_predict", examples=examples(1)) if name == "legacy" else None
    store(version_dir, *([good] if good else []), record)
    (message,) = messages(version_dir)
    number = 2 if good else 1
    assert message.startswith(f"record {number}: {text}")


def test_every_problem_is_told_but_of_one_request_only_the_first_ones(model):
    version_dir = model("half_plus_two")
    many = predict_log(x=FLOATS, **{f"extra{i}": FLOATS for i in range(50)})
    store(version_dir, predict_log(), predict_log(x=FLOATS), many)
    found = messages(version_dir)
    assert [each.partition(":")[0] for each in found] == ["record 1"] + ["record 3"] * 10


def test_damaged_file_is_named_with_record_and_place(model):
    version_dir = model("half_plus_two")
    file = store(version_dir, *vectors(2))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (message,) = messages(version_dir)
    assert message == (
        f"record 2 is damaged (its checksum differs) at byte {len(content) // 2 + 12}"
    )


def test_too_many_requests_are_a_problem_and_not_all_read(model):
    version_dir = model("half_plus_two")
    file = store(version_dir, *vectors(1001))
    with file.open("ab") as stream:
        stream.write(b"damage further on")
    assert messages(version_dir) == ["holds more than 1,000 records"]


def test_folder_in_place_of_the_file_is_a_problem(model):
    version_dir = model("half_plus_two")
    (version_dir / savedmodel.WARMUP_FILE).mkdir(parents=True)
    assert messages(version_dir) == ["cannot be read: Is a directory"]


def test_model_that_cannot_be_read_is_a_problem_of_its_own(model):
    version_dir = model("half_plus_two")
    store(version_dir, *vectors(1))
    (version_dir / savedmodel.GRAPH_FILE).write_bytes(b"\xff")
    (problem,) = warmup.problems(version_dir)
    assert problem.path == "saved_model.pb"
    assert "cannot be read to check the warm-up requests" in problem.message


def test_signatures_are_those_of_the_graph_with_the_tag(models, tmp_path):
    version_dir = shutil.copytree(models / "othertag" / "1", tmp_path / "m")
    ((name, found),) = savedmodel.read_signatures(version_dir, tag="train").items()
    inputs = {alias: np.zeros(2, each.dtype.numpy) for alias, each in found.inputs.items()}
    store(version_dir, predict_log(name, **inputs), predict_log(name))
    assert [each.message for each in warmup.problems(version_dir, tag="train")] == [
        f"record 2: input {alias!r} of signature {name!r} is missing" for alias in sorted(inputs)
    ]
    (problem,) = warmup.problems(version_dir)
    assert "no graph is tagged 'serve'" in problem.message


def test_values_left_out_of_a_message_are_not_filled_in(model):
    import tracemalloc

    version_dir = model("half_plus_two")
    shape = "tensor_shape { dim { size: 200000000 } }"
    store(version_dir, predict_log(x=of_tensor(f"dtype: DT_FLOAT {shape} float_val: [1, 2]")))
    tracemalloc.start()
    try:
        assert warmup.problems(version_dir) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# Ragged, sparse, fixed


def test_fixed_number_of_rows_is_filled():
    fixed = made({"x": ("float", (4,))}, {"y": ("float", (4,))})
    (log,) = logs({"x": ROWS[:1]}, fixed, sizes=[1, 8])
    assert predicted(log)["x"].tolist() == [1, 1, 1, 1]


def test_parts_of_a_ragged_tensor_are_sent_as_they_are():
    inputs = {"r": ROWS, "r_1": np.int64([0, 1, 3])}
    (log,) = logs(inputs, made(RAGGED), sizes=[1, 8])
    assert {alias: value.tolist() for alias, value in predicted(log).items()} == {
        "r": [1, 2, 3],
        "r_1": [0, 1, 3],
    }


@pytest.fixture
def ragged(tmp_path):
    graph = saved_models.meta_graph(output="x")
    saved_models.tensor(graph.signature_def[SERVING].inputs["x_1"], "x_1:0", dtype=9)
    function = graph.object_graph_def.concrete_functions["f"].canonicalized_input_signature
    function.tuple_value.values.add().type_spec_value.type_spec_class = 3
    return saved_models.write(tmp_path / "ragged", graph)


def test_parts_that_do_not_go_together_are_found(ragged):
    store(ragged, predict_log(x=ROWS, x_1=np.int64([0, 1, 3])))
    assert not messages(ragged)
    store(ragged, predict_log(x=ROWS, x_1=np.int64([0, 1])))
    (found,) = messages(ragged)
    assert "parts of one ragged tensor, but row splits end at 1" in found


def test_parts_that_claim_more_than_they_hold_are_passed_over(ragged):
    huge = protos.TensorProto(dtype=9, int64_val=[0])
    huge.tensor_shape.dim.add(size=1 << 20)
    store(ragged, predict_log(x=ROWS, x_1=huge))
    assert not messages(ragged)
