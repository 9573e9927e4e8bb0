"""Servers in this process: `EmbeddedServer.of` and the fixture `tfkit_server`."""

import re
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import requests

from tfserve_kit import Target, connect
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.embedded.server import EmbeddedServer
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.errors import TfkitError

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).parents[2]

ROWS = np.array([1.0, 2.0, 5.0], np.float32)
NEWEST_ANSWER = [3.5, 4.0, 5.5]  # version 2 adds three


def predicted(url, model="half_plus_two", **inputs):
    with connect(url) as client:
        return client.predict(Target(model), inputs or {"x": ROWS}).outputs


def test_one_server_answers_over_both_protocols(tfkit_server, models):
    server = tfkit_server({"half_plus_two": models / "half_plus_two"})
    for url in (server.grpc_url, server.rest_url):
        assert predicted(url)["y"].tolist() == NEWEST_ANSWER


def test_several_servers_run_side_by_side_and_end_apart(models):
    first = EmbeddedServer.of({"half_plus_two": models / "half_plus_two"})
    with EmbeddedServer.of({"mlp": str(models / "mlp")}) as second:
        with first:
            assert len({first.grpc_port, first.rest_port, second.grpc_port}) == 3
            assert requests.get(f"{first.rest_url}/v1/models/mlp", timeout=10).status_code == 404
            url = first.rest_url
        assert first.grpc_port == first.rest_port == 0
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/v1/models/half_plus_two", timeout=10)
        assert requests.get(f"{second.rest_url}/v1/models/mlp", timeout=10).ok


def test_flags_are_those_of_the_command_line(tfkit_server, models, tmp_path):
    file = tmp_path / "batching.txt"
    file.write_text("max_batch_size { value: 2 }")
    server = tfkit_server(
        {"half_plus_two": models / "half_plus_two"},
        enable_batching=True,
        batching_parameters_file=str(file),
    )
    with pytest.raises(TfkitError, match="Task size 3 is larger than maximum input batch size 2"):
        predicted(server.grpc_url)


def test_a_flag_that_does_not_exist_is_named_with_its_neighbour(models):
    with pytest.raises(TypeError, match="'enable_batchin'; did you mean enable_batching"):
        EmbeddedServer.of({"m": models / "half_plus_two"}, enable_batchin=True)


def test_without_models_the_flags_say_what_to_serve(tfkit_server, models):
    server = tfkit_server(
        {}, model_name="half_plus_two", model_base_path=str(models / "half_plus_two")
    )
    assert predicted(server.grpc_url)["y"].tolist() == NEWEST_ANSWER
    with pytest.raises(ServingError, match="model_base_path"):
        EmbeddedServer.of({})


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason(tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    server = EmbeddedServer.of({"broken": tmp_path / "broken"}, max_num_load_retries=0)
    with pytest.raises(ServingError, match=r"Could not find SavedModel \.pb"), server:
        pytest.fail("it started")


@pytest.fixture(scope="module")
def tflite_base(tmp_path_factory, models):
    """A base path whose version holds a TensorFlow Lite model beside a SavedModel."""
    import tensorflow as tf

    class Doubler(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
        def __call__(self, x):
            return {"doubled": x * 2.0, "sum": tf.reduce_sum(x, axis=1)}

    module = Doubler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = tf.lite.TFLiteConverter.from_concrete_functions(
            [module.__call__.get_concrete_function()], module
        ).convert()
    base = tmp_path_factory.mktemp("tflite") / "m"
    version = max((models / "half_plus_two").iterdir())
    shutil.copytree(version, base / "1")
    (base / "1" / "model.tflite").write_bytes(converted)
    return base


def test_a_lite_model_is_served_where_it_is_preferred(tfkit_server, tflite_base):
    server = tfkit_server({"m": tflite_base}, prefer_tflite_model=True)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    for url in (server.grpc_url, server.rest_url):
        outputs = predicted(url, "m", x=x)
        np.testing.assert_array_equal(outputs["doubled"], x * 2)
        np.testing.assert_array_equal(outputs["sum"], x.sum(axis=1))
    with connect(server.grpc_url) as client:
        (signature,) = client.metadata(Target("m")).signatures.values()
    assert signature.inputs["x"].shape == (None, 2)


def test_a_lite_model_is_ignored_where_it_is_not_preferred(tfkit_server, tflite_base):
    server = tfkit_server({"m": tflite_base})
    assert predicted(server.grpc_url, "m")["y"].tolist() == NEWEST_ANSWER


def test_a_damaged_lite_model_is_refused_with_its_path(tmp_path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.tflite").write_bytes(b"no model")
    server = EmbeddedServer.of(
        {"m": tmp_path / "m"}, prefer_tflite_model=True, max_num_load_retries=0
    )
    with pytest.raises(ServingError, match=r"cannot load .*/m/1/model\.tflite"), server:
        pytest.fail("it started")


def test_example_on_the_page_runs(monkeypatch, capsys):
    page = (ROOT / "docs" / "embedded.md").read_text("utf-8")
    monkeypatch.chdir(ROOT)
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    printed, url = capsys.readouterr().out.splitlines()
    assert printed == "[3.5 4.  5.5]"
    assert url.startswith("http://127.0.0.1:")


# Out of turn


def test_server_that_was_started_or_stopped_does_not_start_again(models):
    served = {"half_plus_two": models / "half_plus_two"}
    started, stopped = EmbeddedServer.of(served), EmbeddedServer.of(served)
    with started, pytest.raises(ServingError, match="started once"):
        started.start()
    with pytest.raises(ServingError, match="started once"):
        started.start()
    stopped.stop()
    stopped.stop()
    with pytest.raises(ServingError, match="started once"):
        stopped.start()


def test_server_that_is_stopped_while_it_starts_says_so_and_leaves_nothing_open(tmp_path):
    (tmp_path / "never").mkdir()
    server = EmbeddedServer.of({"never": tmp_path / "never"})
    raised = []

    def start():
        try:
            server.start()
        except ServingError as error:
            raised.append(error.code)

    thread = threading.Thread(target=start)
    thread.start()
    begun = wait_until(
        lambda: server._has_begun or None, timeout_s=30, interval_s=0.01, clock=SystemClock()
    )
    assert begun
    server.stop()
    thread.join(30)
    assert raised == [Code.CANCELLED]
    assert server.grpc_port == server.rest_port == 0
