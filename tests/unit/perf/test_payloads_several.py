"""Several inputs become several requests, as the clients would write them."""

import json

import numpy as np
import pytest

from tfserve_kit import protos, savedmodel
from tfserve_kit.clients import Target
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import payloads
from tfserve_kit.tensors import from_proto

ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_several_random_inputs_differ(models):
    signature = savedmodel.read_signatures(models / "mlp" / "1")["serving_default"]
    first, second, again = (
        *payloads.several_random_inputs(signature, 1, seed=0, count=2),
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
