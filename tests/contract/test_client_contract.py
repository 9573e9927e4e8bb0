"""One suite over every client and every server."""

import contextlib
import http.server
import socket
import threading
import time

import numpy as np
import pytest

from tfserve_kit.clients import Target
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    ServerFault,
    ServerUnreachable,
)
from tfserve_kit.savedmodel import TensorSpec
from tfserve_kit.tensors import dtypes

HALF = Target("half_plus_two")
ECHO, ECHO_INT = Target("scalars", signature="echo"), Target("scalars", signature="echo_int")


def both(endpoints):
    return [endpoints.grpc, endpoints.rest]


# Predictions


def test_prediction_has_the_values_and_the_type_of_the_signature(client):
    answer = client.predict(HALF, {"x": np.float32([1, 2, -4])})
    np.testing.assert_array_equal(answer.outputs["y"], np.float32([3.5, 4, 1]), strict=True)
    assert 0 < answer.duration_s < 30


@pytest.mark.parametrize(("version", "expected"), [(1, 2.5), (2, 3.5), (None, 3.5)])
def test_prediction_comes_from_the_version_asked_for(client, version, expected):
    answer = client.predict(Target("half_plus_two", version), {"x": np.float32([1])})
    assert answer.outputs["y"].tolist() == [expected]
    # REST answers do not say which version made them.
    assert answer.version in {version or 2, None}


@pytest.mark.parametrize(
    "dtype",
    ["float", "double", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool"],
)
def test_numbers_of_every_type_pass_through_and_keep_their_type(client, dtype):
    sent = np.array([0, 1, 1, 0], dtypes.by_name(dtype).numpy)
    answer = client.predict(Target("dtypes", signature=dtype), {"x": sent})
    np.testing.assert_array_equal(answer.outputs["y"], sent, strict=True)


@pytest.mark.parametrize("dtype", ["half", "uint16", "complex64"])
def test_types_that_json_lacks_pass_over_grpc_and_are_refused_over_rest(twin, server, dtype):
    target = Target("dtypes", signature=dtype)
    sent = np.array([1, 2], dtypes.by_name(dtype).numpy)
    with twin(server.endpoints.grpc) as client:
        answer = client.predict(target, {"x": sent})
        np.testing.assert_array_equal(answer.outputs["y"], sent, strict=True)
    with twin(server.endpoints.rest) as client, pytest.raises(InvalidRequest):
        client.predict(target, {"x": sent})


def test_several_inputs_and_outputs_keep_their_names(client):
    answer = client.predict(
        Target("multi_io"), {"a": np.int32([[1, 2]]), "b": np.float32([[0.5, 1.5]])}
    )
    assert {alias: array.tolist() for alias, array in answer.outputs.items()} == {
        "double_a": [[2, 4]],
        "sum": [[1.5, 3.5]],
    }
    assert answer.outputs["double_a"].dtype == np.int32


def test_output_filter_leaves_the_other_outputs_out(client):
    inputs = {"a": np.int32([[1, 2]]), "b": np.float32([[0.5, 1.5]])}
    answer = client.predict(Target("multi_io"), inputs, output_filter=["sum"])
    assert list(answer.outputs) == ["sum"]


@pytest.mark.parametrize(
    "value", [4.5, [], [[1.5, 2], [3, 4]], np.zeros((2, 0)), np.ones((1, 2, 3, 4))]
)
def test_tensor_of_any_shape_passes_scalars_and_empty_ones_too(client, value):
    sent = np.asarray(value, np.float32)
    got = client.predict(ECHO, {"u": sent}).outputs["out"]
    np.testing.assert_array_equal(got, sent, strict=True)


def test_special_floats_pass(client):
    sent = np.float32([np.nan, np.inf, -np.inf, -0.0, 0.1, 3.4028235e38, 1.1754944e-38, 1 / 3])
    got = client.predict(ECHO, {"u": sent}).outputs["out"]
    np.testing.assert_array_equal(got, sent, strict=True)
    assert np.signbit(got[3])


def test_doubles_keep_every_bit(client):
    sent = np.array([0.1, 1 / 3, 2**53 + 1, 1e-300, 1.7976931348623157e308])
    answer = client.predict(Target("dtypes", signature="double"), {"x": sent})
    np.testing.assert_array_equal(answer.outputs["y"], sent, strict=True)


def test_largest_and_smallest_integers_pass(client):
    sent = np.array([2**63 - 1, -(2**63), 2**53 + 1, -1])
    got = client.predict(ECHO_INT, {"i": sent}).outputs["out"]
    np.testing.assert_array_equal(got, sent, strict=True)


def strings(*items):
    array = np.empty(len(items), object)
    array[:] = items
    return array


@pytest.mark.parametrize("items", [[b"abc", b""], ["grün".encode(), b'a"b\\c\n\x01']])
def test_text_passes(client, items):
    answer = client.predict(Target("strings", signature="echo"), {"s": strings(*items)})
    assert answer.outputs["out"].tolist() == items


def test_any_bytes_pass_where_the_output_is_called_so(client):
    sent = strings(b"\xff\xfe\x00\x80", b"trailing zeros\0\0")
    answer = client.predict(Target("strings", signature="echo_bytes"), {"s": sent})
    assert answer.outputs["out_bytes"].tolist() == sent.tolist()


def test_any_bytes_reach_the_model(client):
    answer = client.predict(
        Target("strings", signature="length"), {"s": strings(b"\xff\xfe\x00", b"", b"\0")}
    )
    assert answer.outputs["n"].tolist() == [3, 0, 1]


def test_scalar_string_passes(client):
    sent = np.empty((), object)
    sent[()] = b"one"
    got = client.predict(Target("strings", signature="any"), {"g": sent}).outputs["out"]
    assert (got.shape, got[()]) == ((), b"one")


def test_large_tensor_passes(client):
    rows = 1200 if client.url.startswith("grpc") else 20  # 4.8 MB is above grpcio's own limit
    sent = np.arange(rows * 1000, dtype=np.float32).reshape(rows, 1000)
    got = client.predict(Target("scalars", signature="matrix"), {"m": sent}).outputs["out"]
    assert got.shape == sent.shape
    assert got[-1, -1] == sent[-1, -1]


# Requests that cannot succeed


@pytest.mark.parametrize(
    "target", [Target("nope"), Target("half_plus_two", 9), Target("nope", 1), Target("")]
)
def test_unknown_model_or_version_is_not_found(client, target):
    calls = [
        lambda: client.predict(target, {"x": np.float32([1])}),
        lambda: client.metadata(target),
        lambda: client.status(target),
    ]
    for call in calls:
        with pytest.raises((ModelNotFound, InvalidRequest)) as caught:
            call()
        # Without any name there is nothing to find; but gRPC's status looks all the same
        # (tensorflow_serving/model_servers/get_model_status_impl.cc).
        looks = target.model or (call is calls[-1] and client.url.startswith("grpc"))
        assert caught.type is (ModelNotFound if looks else InvalidRequest)
        assert str(target) in caught.value.message
        assert client.url in caught.value.message


def test_unknown_label_is_an_invalid_request(client):
    target = Target("half_plus_two", label="stable")
    for call in (lambda: client.predict(target, {"x": [1.0]}), lambda: client.metadata(target)):
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert "Unrecognized servable version label: stable" in caught.value.message


@pytest.mark.parametrize(
    ("target", "inputs"),
    [
        pytest.param(HALF, {"x": np.array([b"a"], object)}, id="dtype"),
        pytest.param(Target("mlp"), {"images": np.zeros((1, 783), np.float32)}, id="shape"),
        pytest.param(Target("mlp"), {"images": np.zeros(784, np.float32)}, id="rank"),
        pytest.param(Target("multi_io"), {"a": np.int32([[1, 2]])}, id="missing-input"),
        pytest.param(HALF, {"z": np.float32([1])}, id="other-input"),
        pytest.param(Target("half_plus_two", signature="nope"), {"x": [1.0]}, id="signature"),
    ],
)
def test_input_that_does_not_fit_is_an_invalid_request(client, target, inputs):
    with pytest.raises(InvalidRequest) as caught:
        client.predict(target, inputs)
    assert caught.value.remedy


def test_unknown_output_is_an_invalid_request(client):
    with pytest.raises(InvalidRequest, match="nope"):
        client.predict(HALF, {"x": np.float32([1])}, output_filter=["nope"])


@pytest.mark.parametrize("value", [np.datetime64("2020-01-01"), object()])
def test_value_that_no_tensor_can_hold_is_refused_before_it_is_sent(client, value):
    with pytest.raises(InvalidRequest, match="cannot send the input"):
        client.predict(HALF, {"x": value})


# Metadata and status


@pytest.mark.parametrize("model", ["half_plus_two", "multi_io", "scalars", "dtypes", "strings"])
def test_metadata_is_the_same_over_both_protocols(twin, server, model):
    answers = []
    for url in both(server.endpoints):
        with twin(url) as client:
            answers.append(client.metadata(Target(model)))
    assert answers[0] == answers[1]
    assert answers[0].signatures


@pytest.mark.parametrize("version", [1, 2])
def test_metadata_belongs_to_the_version_asked_for(client, version):
    assert client.metadata(Target("half_plus_two", version)).version == version


def test_metadata_describes_inputs_and_outputs(client):
    found = client.metadata(HALF)
    assert found.version == 2
    signature = found.signatures["serving_default"]
    assert signature.inputs == {
        "x": TensorSpec("serving_default_x:0", dtypes.by_name("float"), (None,))
    }
    assert list(signature.outputs) == ["y"]
    assert signature.method_name == "tensorflow/serving/predict"


def test_metadata_tells_an_unknown_rank_from_a_scalar(client):
    found = client.metadata(Target("scalars")).signatures
    assert found["echo"].inputs["u"].shape is None
    assert found["scalar"].inputs["sc"].shape == ()


def test_status_lists_versions_from_the_highest_down(client):
    found = client.status(HALF)
    assert [(each.version, each.state, each.error) for each in found] == [
        (2, "AVAILABLE", ""),
        (1, "AVAILABLE", ""),
    ]


def test_status_of_one_version_lists_only_it(client):
    assert [each.version for each in client.status(Target("half_plus_two", 1))] == [1]


# Time


def test_answer_that_takes_too_long_exceeds_the_deadline(client):
    target = Target("batchy", signature="slow")  # takes 0.09 s and more
    client.predict(target, {"w": np.float32([0])})
    with pytest.raises(DeadlineExceeded) as caught:
        client.predict(target, {"w": np.float32([0])}, timeout_s=0.03)
    assert "no answer within 0.03 s" in caught.value.message


def test_client_is_of_use_after_a_deadline_and_from_several_threads(client):
    with contextlib.suppress(DeadlineExceeded):
        client.predict(Target("batchy", signature="slow"), {"w": np.float32([0])}, timeout_s=0.05)
    found = {}

    def ask(number):
        answer = client.predict(HALF, {"x": np.float32([number])})
        found[number] = answer.outputs["y"][0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number / 2 + 3 for number in range(8)}


def test_proxy_for_the_web_is_none_for_the_model_server(twin, server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for url in both(server.endpoints):
        with twin(url) as client:
            assert client.status(HALF)


# No model server


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


CALLS = {
    "predict": lambda client: client.predict(HALF, {"x": np.float32([1])}, timeout_s=5),
    "metadata": lambda client: client.metadata(HALF, timeout_s=5),
    "status": lambda client: client.status(HALF, timeout_s=5),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_at_the_address_is_unreachable(twin, free_port, scheme, call):
    url = f"{scheme}://127.0.0.1:{free_port}"
    with twin(url) as client, pytest.raises(ServerUnreachable) as caught:
        CALLS[call](client)
    assert url in caught.value.message
    assert "tfkit serve" in caught.value.remedy


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_host_that_does_not_exist_is_unreachable(twin, scheme):
    with twin(f"{scheme}://host.invalid:1") as client, pytest.raises(ServerUnreachable):
        client.status(HALF, timeout_s=5)


class Website(http.server.BaseHTTPRequestHandler):
    """Answers everything with `answer`: status, content type, body."""

    answer = (200, "text/html", b"<html><body>Welcome!</body></html>")

    def do_GET(self):
        status, kind, body = self.answer
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def website():
    """Serve one fixed answer over HTTP; returns its URL."""
    with contextlib.ExitStack() as stack:

        def serve(*answer):
            handler = type("Handler", (Website,), {"answer": answer} if answer else {})
            site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            stack.callback(site.server_close)
            stack.callback(site.shutdown)
            threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
            return f"127.0.0.1:{site.server_address[1]}"

        yield serve


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_website_is_told_from_a_model_server(twin, website, scheme, call):
    with twin(f"{scheme}://{website()}") as client, pytest.raises(RequestError) as caught:
        CALLS[call](client)
    assert caught.type in {ServerFault, ServerUnreachable}
    assert client.url in caught.value.message


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "body", [b"[]", b'"x"', b"null", b"{}", b'{"model_version_status": 3, "outputs": 1}', b"\xff"]
)
def test_json_of_another_kind_is_told_from_a_model_server(twin, website, body, call):
    url = f"http://{website(200, 'application/json', body)}"
    with twin(url) as client, pytest.raises(ServerFault) as caught:
        CALLS[call](client)
    assert url in caught.value.message


_NONE_SUCH = "the server has no such model, version or label"


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (400, b'{"error": "bad"}', InvalidRequest, "bad (HTTP 400)"),
        (404, b'{"error": "gone"}', ModelNotFound, f"{_NONE_SUCH}: gone (HTTP 404)"),
        (404, b"<html>Not here</html>", ModelNotFound,
         f"{_NONE_SUCH}: <html>Not here</html> (HTTP 404)"),
        (404, b"", ModelNotFound, f"{_NONE_SUCH}: Not Found (HTTP 404)"),
        (500, b'{"error": "broke"}', ServerFault, "broke (HTTP 500)"),
        (501, b'{"error": "cannot"}', InvalidRequest, "cannot (HTTP 501)"),
        (504, b'{"error": "late"}', DeadlineExceeded, "late (HTTP 504)"),
        (400, b'["no", "object"]', InvalidRequest, '["no", "object"] (HTTP 400)'),
    ],
)  # fmt: skip
def test_http_status_becomes_the_error_with_the_servers_words(
    twin, website, status, body, error, text
):
    url = f"http://{website(status, 'text/plain', body)}"
    with twin(url) as client, pytest.raises(RequestError) as caught:
        client.status(HALF)
    assert caught.type is error
    assert caught.value.message == f"model 'half_plus_two' at {url}: {text}"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_server_that_never_answers_exceeds_the_deadline(twin, scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        started_s = time.perf_counter()
        with twin(url) as client, pytest.raises(DeadlineExceeded):
            client.status(HALF, timeout_s=0.5)
        assert 0.45 <= time.perf_counter() - started_s < 20
