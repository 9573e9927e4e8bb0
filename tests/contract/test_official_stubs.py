"""The official package's stubs and classes against our server, and our client's requests."""

import grpc
import numpy as np
import pytest

from tfserve_kit.clients import Target
from tfserve_kit.clients.grpc import GrpcProtocol

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def apis():
    """The modules of tensorflow_serving.apis by short name, and the two tensor functions."""
    pytest.importorskip("tensorflow_serving.apis")
    from tensorflow.python.framework.tensor_util import MakeNdarray, make_tensor_proto
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        model_management_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
        regression_pb2,
    )

    class Apis:
        predict, prediction = predict_pb2, prediction_service_pb2_grpc
        metadata, status, model = (
            get_model_metadata_pb2,
            get_model_status_pb2,
            model_service_pb2_grpc,
        )
        classification, regression, inference = classification_pb2, regression_pb2, inference_pb2
        management = model_management_pb2
        to_tensor, to_array = staticmethod(make_tensor_proto), staticmethod(MakeNdarray)

    return Apis


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.endpoints.grpc.removeprefix("grpc://")) as channel:
        yield channel


def predict_request(apis, model, signature="", **inputs):
    request = apis.predict.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(apis.to_tensor(value))
    return request


# The official client, our server


def test_official_stub_predicts(apis, channel):
    stub = apis.prediction.PredictionServiceStub(channel)
    answer = stub.Predict(predict_request(apis, "half_plus_two", x=np.float32([1, 2])), timeout=10)
    np.testing.assert_array_equal(apis.to_array(answer.outputs["y"]), np.float32([3.5, 4]))
    assert answer.model_spec.name == "half_plus_two"
    assert answer.model_spec.version.value == 2
    assert answer.model_spec.signature_name == "serving_default"


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("float", np.float32([0.1, np.inf])),
        ("double", np.float64([0.1, -1e300])),
        ("half", np.float16([0.5, 65504])),
        ("int8", np.int8([-128, 127])),
        ("uint16", np.uint16([0, 65535])),
        ("int64", np.int64([-(2**63), 2**63 - 1])),
        ("uint64", np.uint64([0, 2**64 - 1])),
        ("bool", np.array([True, False])),
        ("complex64", np.complex64([1 + 2j, -3j])),
        ("string", np.array([b"a\0", b"\xff"], object)),
    ],
)
def test_official_classes_read_the_answers_of_every_type(apis, channel, signature, values):
    stub = apis.prediction.PredictionServiceStub(channel)
    answer = stub.Predict(predict_request(apis, "dtypes", signature, x=values), timeout=10)
    got = apis.to_array(answer.outputs["y"])
    np.testing.assert_array_equal(got, values)
    assert got.dtype == values.dtype


def test_official_stub_gets_the_metadata(apis, channel):
    request = apis.metadata.GetModelMetadataRequest()
    request.model_spec.name = "half_plus_two"
    request.metadata_field.append("signature_def")
    answer = apis.prediction.PredictionServiceStub(channel).GetModelMetadata(request, timeout=10)
    signatures = apis.metadata.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert signature.inputs["x"].name == "serving_default_x:0"
    assert answer.model_spec.version.value == 2


def test_official_stub_gets_the_status(apis, channel):
    request = apis.status.GetModelStatusRequest()
    request.model_spec.name = "half_plus_two"
    answer = apis.model.ModelServiceStub(channel).GetModelStatus(request, timeout=10)
    states = apis.status.ModelVersionStatus.State
    assert [(each.version, states.Name(each.state)) for each in answer.model_version_status] == [
        (2, "AVAILABLE"),
        (1, "AVAILABLE"),
    ]


def test_official_stub_gets_code_and_details(apis, channel):
    stub = apis.prediction.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(predict_request(apis, "nope", x=[1.0]), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "Servable not found for request: Latest(nope)"


def about_examples(request, signature, *xs):
    """Fill a request of the classify family with one tf.Example per number."""
    spec = getattr(request, "model_spec", None)
    if spec is not None:
        spec.name, spec.signature_name = "legacy", signature
    for x in xs:
        request.input.example_list.examples.add().features.feature["x"].float_list.value.append(x)
    return request


def test_official_stub_classifies(apis, channel):
    request = about_examples(apis.classification.ClassificationRequest(), "classify_both", 1, 2)
    answer = apis.prediction.PredictionServiceStub(channel).Classify(request, timeout=10)
    first, second = answer.result.classifications
    assert [(each.label, each.score) for each in first.classes] == [
        ("low", 2.5), ("high", 5.0), ('né"g', -2.5)
    ]  # fmt: skip
    assert second.classes[0].score == 3.0
    assert answer.model_spec.signature_name == "classify_both"


def test_official_stub_regresses(apis, channel):
    request = about_examples(apis.regression.RegressionRequest(), "regress", 1, 2)
    answer = apis.prediction.PredictionServiceStub(channel).Regress(request, timeout=10)
    assert [each.value for each in answer.result.regressions] == [2.5, 3.0]


def test_official_stub_gets_several_inferences_in_one_call(apis, channel):
    request = about_examples(apis.inference.MultiInferenceRequest(), "", 1)
    for method, signature in (("classify", "classify_both"), ("regress", "regress")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "legacy", signature
    answer = apis.prediction.PredictionServiceStub(channel).MultiInference(request, timeout=10)
    classified, regressed = answer.results
    assert classified.classification_result.classifications[0].classes[1].label == "high"
    assert regressed.regression_result.regressions[0].value == 2.5


def test_official_stub_is_told_why_a_configuration_is_refused(apis, channel):
    request = apis.management.ReloadConfigRequest()
    request.config.model_config_list.config.add(
        name="m", base_path="m", model_platform="tensorflow"
    )
    stub = apis.model.ModelServiceStub(channel)
    with pytest.raises(grpc.RpcError, match="Expected model m to have an absolute path or URI"):
        stub.HandleReloadConfigRequest(request, timeout=10)


def test_official_stub_replaces_the_models(apis, tfkit_server, models):
    server = tfkit_server({"half_plus_two": models / "half_plus_two"})
    request = apis.management.ReloadConfigRequest()
    request.config.model_config_list.config.add(
        name="mlp", base_path=str(models / "mlp"), model_platform="tensorflow"
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = apis.model.ModelServiceStub(channel)
        answer = stub.HandleReloadConfigRequest(request, timeout=60)
        assert answer.status.error_code == 0
        status = apis.status.GetModelStatusRequest()
        status.model_spec.name = "mlp"
        (version,) = stub.GetModelStatus(status, timeout=10).model_version_status
        assert version.state == apis.status.ModelVersionStatus.AVAILABLE


# Our client, the official classes


WIRE = GrpcProtocol("grpc://h:1")


def test_predict_request_is_read_by_the_official_class(apis):
    target = Target("m", version=3, signature="s")
    inputs = {
        "x": np.float32([[1, 2], [3, 4]]).T,
        "s": np.array([b"a\0", "é"], object),
        "n": 7,
    }
    sent = WIRE.predict(target, inputs, ["y", "z"], None).request
    assert sent.method == "Predict"
    request = apis.predict.PredictRequest.FromString(sent.body)
    assert request.model_spec.name == "m"
    assert request.model_spec.version.value == 3
    assert request.model_spec.signature_name == "s"
    assert list(request.output_filter) == ["y", "z"]
    np.testing.assert_array_equal(
        apis.to_array(request.inputs["x"]), np.float32([[1, 3], [2, 4]]), strict=True
    )
    assert apis.to_array(request.inputs["s"]).tolist() == [b"a\0", "é".encode()]
    assert apis.to_array(request.inputs["n"]) == 7


def test_version_label_is_sent_in_the_place_of_a_version(apis):
    sent = WIRE.predict(Target("m", label="stable"), {"x": [1.0]}, [], None).request
    request = apis.predict.PredictRequest.FromString(sent.body)
    assert request.model_spec.version_label == "stable"
    assert not request.model_spec.HasField("version")


def test_status_request_is_read_by_the_official_class(apis):
    request = apis.status.GetModelStatusRequest.FromString(
        WIRE.status(Target("m", version=0)).request.body
    )
    assert request.model_spec.name == "m"
    assert request.model_spec.HasField("version")
    assert request.model_spec.version.value == 0
