"""`tfkit warmup`, and a server that replays what it stored."""

import json
import shutil

import numpy as np
import pytest
import requests
from PIL import Image

from tests.unit.saved_models import meta_graph, tensor, write
from tfserve_kit import protos, tfrecord
from tfserve_kit.embedded.server import EmbeddedServer
from tfserve_kit.embedded.status import ServingError
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import WARMUP_FILE
from tfserve_kit.tensors import from_proto


@pytest.fixture
def exported(models, tmp_path):
    """Copy a model to where one lies that is about to be pushed."""

    def copy(name):
        return shutil.copytree(models / name / "1", tmp_path / "exported" / name)

    return copy


def logs(version_dir):
    return [protos.PredictionLog.FromString(r) for r in tfrecord.read(version_dir / WARMUP_FILE)]


def sent(version_dir):
    """Return (signature, value per input) of each stored predict request."""
    found = [log.predict_log.request for log in logs(version_dir)]
    return [(each.model_spec.signature_name, values(each.inputs)) for each in found]


def values(inputs):
    return {alias: from_proto(tensor).tolist() for alias, tensor in inputs.items()}


def rows(version_dir):
    return [len(next(iter(inputs.values()))) for _, inputs in sent(version_dir)]


# Writing


def test_random_requests_are_stored_and_told(tfkit, exported):
    model = exported("mlp")
    done = tfkit("warmup", model, "--random", "--batch-size", 1, "--batch-size", 4)
    assert done.code == 0, done.err
    file = model / WARMUP_FILE
    size_bytes = file.stat().st_size
    assert done.out == f"Wrote {file}: 2 requests, batch sizes 1, 4 ({size_bytes:,} bytes)\n"
    assert rows(model) == [1, 4]
    assert logs(model)[0].predict_log.request.model_spec.name == "mlp"


def test_result_as_json(tfkit, exported):
    model = exported("mlp")
    done = tfkit("warmup", model, "--json")
    assert (done.code, done.kind) == (0, "warmup")
    assert done.data == {
        "file": str(model / WARMUP_FILE),
        "signatures": ["serving_default"],
        "batch_sizes": [1],
        "records": 1,
        "size_bytes": (model / WARMUP_FILE).stat().st_size,
    }


def test_signatures_are_those_named_or_all(tfkit, exported):
    model = exported("multi_io")
    assert tfkit("warmup", model, "--signature", "only_sum").code == 0
    assert [name for name, _ in sent(model)] == ["only_sum"]
    assert tfkit("warmup", model, "--all-signatures", "--replace", "--batch-size", 2).code == 0
    assert [name for name, _ in sent(model)] == ["only_sum", "serving_default"]
    assert {alias for _, inputs in sent(model) for alias in inputs} == {"a", "b"}


def test_pictures_are_prepared_as_the_models_note_says(tfkit, exported, tmp_path):
    model = exported("image")
    Preprocessing(value_range=(0, 100)).write(model)
    for name, value in (("black.png", 0), ("white.png", 255)):
        Image.new("RGB", (4, 4), (value,) * 3).save(tmp_path / name)
    done = tfkit("warmup", model, "--input", "black.png", "--input", "white.png",
                 "--batch-size", 3)  # fmt: skip
    assert done.code == 0, done.err
    ((_, inputs),) = sent(model)
    assert [np.unique(row).tolist() for row in inputs["image"]] == [[0], [100], [0]]
    assert np.shape(inputs["image"]) == (3, 8, 8, 3)


def test_request_of_a_body_in_json(tfkit, exported, tmp_path):
    (tmp_path / "body.json").write_text('{"instances": [1, 2]}')
    model = exported("half_plus_two")
    assert tfkit("warmup", model, "--input", "body.json", "--batch-size", 3).code == 0
    assert sent(model) == [("serving_default", {"x": [1, 2, 1]})]


def test_examples_are_stored_for_the_method_of_the_signature(tfkit, exported, tmp_path):
    (tmp_path / "body.json").write_text('{"examples": [{"x": 1.5}]}')
    model = exported("legacy")
    done = tfkit("warmup", model, "--input", "body.json", "--batch-size", 2,
                 "--signature", "classify_both", "--signature", "regress",
                 "--signature", "parse_predict")  # fmt: skip
    assert done.code == 0, done.err
    found = [log.WhichOneof("log_type") for log in logs(model)]
    assert found == ["classify_log", "regress_log", "predict_log"]
    assert len(logs(model)[0].classify_log.request.input.example_list.examples) == 2


def test_batch_sizes_of_the_deployment(tfkit, exported, tmp_path):
    model = exported("half_plus_two")
    batching = "[batching]\nmax_batch_size = 4\n"
    toml = tmp_path / "tfkit.toml"
    toml.write_text(f'{batching}allowed_batch_sizes = [2, 4]\n[models.m]\nbase_path = "m"\n')
    assert tfkit("warmup", model, "--config", toml).code == 0
    assert rows(model) == [2, 4]
    toml.write_text(f'{batching}[models.m]\nbase_path = "m"\n')
    assert tfkit("warmup", model, "--config", toml, "--replace").code == 0
    assert rows(model) == [4]


def test_batch_sizes_of_the_servers_own_file(tfkit, exported, tmp_path):
    model = exported("half_plus_two")
    (tmp_path / "batching_config.txt").write_text("max_batch_size { value: 3 }")
    assert tfkit("warmup", model, "--batching-config", "batching_config.txt").code == 0
    assert rows(model) == [3]


def test_version_in_a_base_path_is_only_changed_if_that_is_wanted(tfkit, models, tmp_path):
    base = shutil.copytree(models / "mlp", tmp_path / "mlp")
    done = tfkit("warmup", base / "1")
    assert done.code == 2
    assert "looks like version 1 of the base path" in done.err and "--in-place" in done.err
    assert not (base / "1" / "assets.extra").exists()
    assert tfkit("warmup", base / "1", "--in-place").code == 0
    assert logs(base / "1")[0].predict_log.request.model_spec.name == "mlp"


def test_version_is_recognized_through_a_link_and_from_within(tfkit, models, tmp_path, monkeypatch):
    base = shutil.copytree(models / "mlp", tmp_path / "mlp")
    (tmp_path / "link").symlink_to(base / "1")
    (tmp_path / "7").symlink_to(shutil.copytree(base / "1", tmp_path / "stored"))
    assert tfkit("warmup", "link").code == tfkit("warmup", "7").code == 2
    monkeypatch.chdir(base / "1")
    assert tfkit("warmup", ".").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere"], 2, "cannot read the SavedModel in nowhere: No such file"),
        (["exported/half_plus_two", "--signature", "serving"], 2, "did you mean serving_default?"),
        (["exported/half_plus_two", "--signature", "a", "--all-signatures"], 2, "not both"),
        (["exported/half_plus_two", "--random", "--input", "a.json"], 2, "not both"),
        (["exported/half_plus_two", "--batch-size", "0"], 2, "0 is not in the range"),
        (["exported/half_plus_two", "--batch-size", "1", "--config", "a"], 2, "give one of"),
        (["exported/half_plus_two", "--batching-config", "empty"], 2, "sets neither"),
        (
            ["exported/half_plus_two", "--config", "none.toml"],
            2,
            "cannot read none.toml: No such file",
        ),
        (["exported/half_plus_two", "--input", "empty.json"], 6, "empty.json is not a request"),
        (["exported/half_plus_two", "--input", "empty.png"], 2, "takes float [?], not a picture"),
        (["exported/strings", "--random"], 2, "signature 'serving_default': input 's' is string"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_written(
    tfkit, exported, tmp_path, arguments, code, text
):
    folders = [exported("half_plus_two"), exported("strings")]
    for name in ("empty", "empty.json", "empty.png"):
        (tmp_path / name).touch()
    done = tfkit("warmup", *arguments)
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert not any((folder / WARMUP_FILE).exists() for folder in folders)


def test_requests_that_are_there_stay_unless_they_are_to_be_replaced(tfkit, exported):
    model = exported("half_plus_two")
    assert tfkit("warmup", model).code == 0
    done = tfkit("warmup", model, "--batch-size", 2)
    assert done.code == 2 and "exists already" in done.err and "--replace" in done.err
    assert rows(model) == [1]
    assert tfkit("warmup", model, "--batch-size", 2, "--replace").code == 0
    assert rows(model) == [2]


def test_input_that_is_missing_is_refused_unless_it_has_a_default(tfkit, exported, tmp_path):
    model = exported("defaults")
    body = tmp_path / "body.json"
    body.write_text('{"inputs": {"b": [1]}}')
    done = tfkit("warmup", model, "--input", body)
    assert done.code == 8
    assert "record 1: input 'a' of signature 'serving_default' is missing" in done.err
    body.write_text('{"inputs": {"a": [1]}}')
    assert tfkit("warmup", model, "--input", body).code == 0


# Checking


def lie(version_dir):
    """Store a request for a signature that the model does not have."""
    log = protos.from_text("PredictionLog", "predict_log { request { model_spec {"
                           " signature_name: 'nope' } } }")  # fmt: skip
    file = version_dir / WARMUP_FILE
    file.parent.mkdir()
    tfrecord.write(file, [log.SerializeToString()])


def test_check_of_good_requests_changes_nothing(tfkit, exported):
    model = exported("half_plus_two")
    tfkit("warmup", model, "--batch-size", 1, "--batch-size", 2)
    before = (model / WARMUP_FILE).read_bytes()
    done = tfkit("warmup", model, "--check")
    assert (done.code, done.out) == (0, f"{model / WARMUP_FILE}: 2 requests, valid\n")
    assert (model / WARMUP_FILE).read_bytes() == before
    done = tfkit("warmup", model, "--check", "--json")
    assert (done.kind, done.data["records"]) == ("warmup-check", 2)


def test_check_of_a_model_without_requests_passes(tfkit, models):
    model = models / "mlp" / "1"
    done = tfkit("warmup", model, "--check")
    assert (done.code, done.out) == (0, f"{model} has no warm-up requests.\n")


def test_check_refuses_a_request_for_a_signature_that_is_not_there(tfkit, exported):
    model = exported("half_plus_two")
    lie(model)
    done = tfkit("warmup", model, "--check")
    assert (done.code, done.out) == (8, "")
    assert "record 1: the model has no signature 'nope'" in done.err
    done = tfkit("warmup", model, "--check", "--json")
    assert done.code == 8
    assert done.data["error"] == "PushRefused"


# A server


@pytest.mark.tensorflow
def test_server_replays_what_was_stored(tfkit, exported, tmp_path):
    model = exported("half_plus_two")
    assert tfkit("warmup", model, "--random", "--batch-size", 1, "--batch-size", 4).code == 0
    assert tfkit("push-model", model, "--to", tmp_path / "base").code == 0
    page = tmp_path / "monitoring.txt"
    page.write_text('prometheus_config { enable: true path: "/metrics" }')
    server = EmbeddedServer.of({"m": tmp_path / "base"}, monitoring_config_file=str(page))
    with server:
        lines = requests.get(f"{server.rest_url}/metrics", timeout=10).text.splitlines()
        answer = requests.post(f"{server.rest_url}/v1/models/m:predict",
                               json={"instances": [2]}, timeout=10)  # fmt: skip
    labels = f'{{model_path="{tmp_path / "base" / "1"}"}}'
    assert f":tensorflow:serving:model_warmup_records_read{labels} 2" in lines
    assert json.loads(answer.text) == {"predictions": [3.0]}


@pytest.mark.tensorflow
def test_server_refuses_what_the_check_refuses(exported, tmp_path):
    model = exported("half_plus_two")
    lie(model)
    (tmp_path / "base").mkdir()
    model.rename(tmp_path / "base" / "1")
    server = EmbeddedServer.of({"m": tmp_path / "base"}, max_num_load_retries=0)
    with pytest.raises(ServingError, match='Serving signature key "nope" not found'), server:
        pytest.fail("it started")


# Signatures that are not all rows


def test_parameter_is_one_and_is_said(tfkit, exported):
    model = exported("scalars")
    done = tfkit("warmup", model, "--signature", "scalar", "--batch-size", 4)
    assert (done.code, sent(model)) == (0, [("scalar", {"sc": 1.0})])
    assert "the same value in every request: 'sc' = 1.0" in done.err
    assert "1 request (" in done.out  # of no batch size
    assert tfkit("warmup", model, "--check").code == 0


def test_all_signatures_are_warmed_up_whatever_their_rows(tfkit, exported):
    model = exported("scalars")
    done = tfkit("warmup", model, "--all-signatures", "--batch-size", 2)
    assert done.code == 0, done.err
    assert dict(sent(model))["no_input"] == {}
    assert len(dict(sent(model))["head"]["v"]) == 2


@pytest.fixture
def ragged(tmp_path):
    graph = meta_graph(output="x")
    tensor(graph.signature_def["serving_default"].inputs["x_1"], "x_1:0", dtype=9)
    function = graph.object_graph_def.concrete_functions["f"].canonicalized_input_signature
    function.tuple_value.values.add().type_spec_value.type_spec_class = 3
    return write(tmp_path / "ragged", graph)


def test_rows_of_a_ragged_tensor_are_made_to_fit(tfkit, ragged):
    done = tfkit("warmup", ragged, "--batch-size", 1, "--batch-size", 3)
    assert done.code == 0, done.err
    splits = [inputs["x_1"] for _, inputs in sent(ragged)]
    assert splits == [[0, 1], [0, 1, 2, 3]]
    assert [len(inputs["x"]) for _, inputs in sent(ragged)] == [1, 3]
    assert "parts of one ragged tensor" in done.err


def test_push_refuses_parts_that_do_not_go_together(tfkit, ragged, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.float32([1, 2]), x_1=np.int64([0, 5]))
    done = tfkit("warmup", ragged, "--input", "in.npz")
    assert done.code == 8
    assert "row splits end at 5" in done.err
    assert not (ragged / WARMUP_FILE).exists()
