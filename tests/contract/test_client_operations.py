"""What a client adds to single requests: checks, batches, examples; the same on every twin."""

import http.server
import ssl
import subprocess
import threading
from concurrent import futures

import grpc
import numpy as np
import pytest

from tests.contract.conftest import MODELS
from tfserve_kit import connect
from tfserve_kit.clients.results import LabelScore
from tfserve_kit.deployment import build
from tfserve_kit.engines import process
from tfserve_kit.errors import InvalidRequest, ModelNotFound, ServerUnreachable, UsageError
from tfserve_kit.serving import launch


@pytest.fixture(scope="module")
def batching_server(require, tmp_path_factory):
    """An embedded server that takes four rows at most, on a UNIX socket too: handle, socket."""
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("batching")
    socket = folder / "grpc.sock"
    names = ("half_plus_two", "failing", "defaults")
    models = {name: {"base_path": str(MODELS / name)} for name in names}
    document = {
        "server": {"name": "batching", "grpc_port": 0, "rest_port": 0,
                   "flags": {"grpc_socket_path": str(socket)}},
        "models": models,
        "batching": {"max_batch_size": 4, "batch_timeout_micros": 0},
    }  # fmt: skip
    deployment = build(document, source="test", folder=MODELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFKIT_STATE_DIR", str(folder / "state"))
        handle = launch.up(deployment, process.embedded())
    try:
        yield handle, socket
    finally:
        handle.stop()


@pytest.fixture(params=["grpc", "rest"])
def batched(request, batching_server, twin):
    """A client of every kind, connected to the server that takes four rows."""
    with twin(getattr(batching_server[0].endpoints, request.param)) as client:
        yield client


pytestmark = pytest.mark.tensorflow


# Inputs


def test_model_may_be_a_name_and_its_one_input_an_array_or_a_list(client):
    for inputs in (np.float32([1, 2]), [1, 2], np.array([1.0, 2.0]), {"x": [1, 2]}):
        answer = client.predict("half_plus_two", inputs)
        np.testing.assert_array_equal(answer.outputs["y"], np.float32([3.5, 4]), strict=True)


def test_signature_may_be_named_in_the_call(client):
    sent = np.arange(3)
    answer = client.predict("scalars", sent, signature="echo_int")
    assert answer.outputs["out"].tolist() == [0, 1, 2]


def test_text_may_be_text_or_bytes(client):
    answer = client.predict("strings", ["a", b"b\0"], signature="echo")
    assert answer.outputs["out"].tolist() == [b"a", b"b\0"]


@pytest.mark.parametrize(
    ("model", "signature", "inputs", "message", "remedy"),
    [
        ("half_plus_two", "", {"y": [1.0]}, "has no input 'y'", "choose one of: x"),
        ("half_plus_two", "", {"x": ["a"]}, "it is string, the model takes float", "type float"),
        ("half_plus_two", "", {"x": [[1.0]]}, "its shape is [1, 1], the model takes float [?]",
         "reshape"),
        ("half_plus_two", "serving_defualt", [1.0], "no signature 'serving_defualt'",
         "did you mean serving_default?"),
        ("mlp", "", np.zeros(784), "its shape is [784]", "array[numpy.newaxis]"),
        ("scalars", "echo_int", [1.5], "it is double, the model takes int64", "rint"),
        ("multi_io", "", [1.0], "has 2 inputs, but the value given has no name", "a, b"),
        ("multi_io", "", {"a": [[2**40, 1]], "b": [[1, 1]]}, "which cannot hold 1099511627776",
         "clip"),
        ("multi_io", "", {"a": [[1, 1]]}, "also needs the inputs b", "metadata"),
    ],
)  # fmt: skip
def test_refusal_names_the_input_and_says_what_to_do(
    client, model, signature, inputs, message, remedy
):
    with pytest.raises(InvalidRequest) as caught:
        client.predict(model, inputs, signature=signature)
    assert message in caught.value.message
    assert remedy in caught.value.remedy


def test_without_the_check_the_server_is_asked_as_it_is(twin, server):
    with twin(server.endpoints.grpc, check=False) as client:
        with pytest.raises(InvalidRequest, match="INVALID_ARGUMENT"):
            client.predict("half_plus_two", {"x": np.float64([1])})
        with pytest.raises(InvalidRequest, match="has no name"):
            client.predict("half_plus_two", np.float32([1]))


def test_input_with_a_default_may_be_left_out_over_grpc_only(batched):
    if batched.url.startswith("grpc"):
        assert batched.predict("defaults", {"a": [1.0]}).outputs["out"].size
    else:
        with pytest.raises(InvalidRequest, match="not over REST"):
            batched.predict("defaults", {"a": [1.0]})


# Batches


def test_batch_is_cut_as_the_server_wants_it_and_the_limit_is_remembered(batched):
    sent = np.arange(11, dtype=np.float32)
    found = [batched.predict_batch("half_plus_two", sent) for _ in range(2)]
    for each in found:
        np.testing.assert_array_equal(each.outputs["y"], sent / 2 + 3, strict=True)
        assert each.rows.tolist() == list(range(11))
        assert each.errors == {}
        assert each.versions == ({2} if batched.url.startswith("grpc") else set())
    assert [each.requests for each in found] == [4, 3]  # one was refused


def test_batch_may_be_cut_smaller(batched):
    found = batched.predict_batch("half_plus_two", np.zeros(5), batch_size=2)
    assert (len(found.outputs["y"]), found.requests) == (5, 3)


def test_single_request_that_is_too_large_says_so(batched):
    with pytest.raises(InvalidRequest, match="Task size 5 is larger than"):
        batched.predict("half_plus_two", np.zeros(5))


def test_batch_without_rows_is_answered_without_the_server(batched):
    found = batched.predict_batch("half_plus_two", np.zeros(0))
    assert found.outputs["y"].shape == (0,)
    assert found.outputs["y"].dtype == np.float32
    assert found.requests == 0


def poisoned(client, size, bad, **options):
    rows = np.zeros(size, np.float32)
    rows[bad] = 1e6  # beyond what the model gathers from
    return client.predict_batch("failing", rows, signature="gather", **options)


@pytest.mark.parametrize("bad", [[0], [6], [2, 3, 10], []])
def test_only_the_rows_that_fail_fail(batched, bad):
    found = poisoned(batched, 11, bad, on_error="isolate")
    assert sorted(found.errors) == bad
    assert found.rows.tolist() == [row for row in range(11) if row not in bad]
    assert len(found.outputs["y"]) == 11 - len(bad)
    assert all(isinstance(error, InvalidRequest) for error in found.errors.values())


def test_failure_ends_the_batch_unless_it_is_isolated(batched):
    with pytest.raises(InvalidRequest):
        poisoned(batched, 11, [6])


def test_failure_that_is_not_the_rows_fault_ends_the_batch(batched):
    with pytest.raises(ModelNotFound):
        batched.predict_batch("nope", np.zeros(5), on_error="isolate")


@pytest.mark.parametrize(
    "inputs", [np.float32(1), {"a": np.zeros((2, 2), np.int32), "b": np.zeros((3, 2))}]
)
def test_batch_needs_the_same_number_of_rows_everywhere(client, inputs):
    model = "multi_io" if isinstance(inputs, dict) else "scalars"
    with pytest.raises(InvalidRequest, match="different numbers of rows"):
        client.predict_batch(model, inputs, signature="" if model == "multi_io" else "echo")


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"on_error": "ignore"}])
def test_options_of_a_batch_are_checked(client, options):
    with pytest.raises(UsageError):
        client.predict_batch("half_plus_two", [1.0], **options)


# Examples


def test_classify_gives_labels_and_scores(client):
    found = client.classify("legacy", [{"x": 1.0}, {"x": [2.0]}], signature="classify_both")
    assert found.classes[0] == (
        LabelScore("low", 2.5), LabelScore("high", 5.0), LabelScore('né"g', -2.5)
    )  # fmt: skip
    assert found.classes[1][0].score == 3.0
    assert found.version in {1, None}
    assert found.duration_s > 0


def test_regress_gives_a_value_for_each_example(client):
    found = client.regress("legacy", [{"x": 1.0}, {"x": 2.0}], signature="regress")
    np.testing.assert_array_equal(found.values, np.float32([2.5, 3]), strict=True)


def test_several_signatures_answer_in_one_request_over_grpc(client):
    tasks = {"regress": "regress", "classify_both": "classify"}
    if client.url.startswith("http"):
        with pytest.raises(UsageError, match="not available over REST"):
            client.multi_inference("legacy", tasks, [{"x": 1.0}])
        return
    found = client.multi_inference("legacy", tasks, [{"x": 1.0}])
    assert list(found) == ["regress", "classify_both"]
    assert found["regress"].values.tolist() == [2.5]
    assert found["classify_both"].classes[0][1] == LabelScore("high", 5.0)


@pytest.mark.parametrize(
    "examples", [[], [{"x": object()}], [b"\xff\xff"], [{"x": [[1.0]]}], ["x"]]
)
def test_examples_that_are_none_are_refused(client, examples):
    with pytest.raises(InvalidRequest):
        client.classify("legacy", examples, signature="classify_both")


def test_reload_over_rest_is_refused(client):
    if client.url.startswith("http"):
        with pytest.raises(UsageError, match="not available over REST"):
            client.reload(None)


# Ways to connect


def test_socket_of_this_machine(batching_server, twin):
    with twin(f"unix:{batching_server[1]}") as client:
        assert client.predict("half_plus_two", [1.0]).outputs["y"].tolist() == [3.5]
        assert client.url == f"unix:{batching_server[1]}"


def test_compression_and_headers_over_both_protocols(server, twin):
    for url in (server.endpoints.grpc, server.endpoints.rest):
        with twin(url, gzip=True, headers={"x-team": "a"}) as client:
            answer = client.predict("scalars", np.zeros((9, 9)), signature="matrix")
            assert answer.outputs["out"].shape == (9, 9)


def test_answer_larger_than_allowed_is_refused(server, twin):
    for url in (server.endpoints.grpc, server.endpoints.rest):
        with (
            twin(url, max_answer_bytes=20_000) as client,
            pytest.raises(InvalidRequest, match=r"max_answer_bytes|larger than max"),
        ):
            client.predict("scalars", np.zeros((100, 100)), signature="matrix")


def test_closed_client_says_so(server):
    client = connect(server.endpoints.grpc)
    client.close()
    with pytest.raises(Exception, match="closed"):
        client.status("half_plus_two")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory, require):
    """A folder with a key and a certificate for `localhost`, made for this run."""
    folder = tmp_path_factory.mktemp("tls")
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
             "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout",
             "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        require("openssl", "openssl is not on PATH")
    return folder


def secured(certificate, *, mutual):
    """Return the port of a gRPC server with TLS that knows no method, and the server."""
    key, cert = (certificate / "key.pem").read_bytes(), (certificate / "cert.pem").read_bytes()
    credentials = grpc.ssl_server_credentials(
        [(key, cert)], cert if mutual else None, require_client_auth=mutual
    )
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return port, server


@pytest.mark.parametrize("mutual", [False, True])
def test_grpc_with_tls_checks_the_server_and_names_the_client(certificate, twin, mutual):
    port, server = secured(certificate, mutual=mutual)
    pair = {"cert_file": certificate / "cert.pem", "key_file": certificate / "key.pem"}
    trusted = {"ca_file": certificate / "cert.pem"}
    try:
        with (
            twin(f"grpcs://localhost:{port}", **trusted, **(pair if mutual else {})) as client,
            pytest.raises(InvalidRequest, match="UNIMPLEMENTED"),  # so the call came through
        ):
            client.status("m")
        untrusted = trusted if mutual else {}
        with (
            twin(f"grpcs://localhost:{port}", **untrusted) as client,
            pytest.raises(ServerUnreachable),
        ):
            client.status("m", timeout_s=5)
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("mutual", [False, True])
def test_https_checks_the_server_and_names_the_client(certificate, twin, mutual, tls_site):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificate / "cert.pem")
    url = tls_site(context)
    pair = {"cert_file": certificate / "cert.pem", "key_file": certificate / "key.pem"}
    trusted = {"ca_file": certificate / "cert.pem"}
    with twin(url, **trusted, **(pair if mutual else {})) as client:
        for _ in range(2):
            assert client.status("m")[0].state == "AVAILABLE"
    with (
        twin(url, **(trusted if mutual else {})) as client,
        pytest.raises(ServerUnreachable),
    ):
        client.status("m", timeout_s=5)


@pytest.fixture
def tls_site():
    """Serve one fixed status over HTTPS; makes its URL from a server's TLS context."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = b'{"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass  # a client that breaks off is what is tested

    sites = []

    def make(context):
        site = Server(("127.0.0.1", 0), Handler)
        site.socket = context.wrap_socket(site.socket, server_side=True)
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        sites.append(site)
        return f"https://localhost:{site.server_address[1]}"

    yield make
    for site in sites:
        site.shutdown()
        site.server_close()
