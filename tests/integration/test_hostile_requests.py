"""Requests that mean harm, to a real server process: it answers with an error and goes on."""

import http.client
import json
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from tests.ports import free_port
from tfserve_kit import protos
from tfserve_kit.clock import SystemClock, wait_until

pytestmark = pytest.mark.tensorflow

MODELS = Path(__file__).parents[1] / "data" / "models"
PATIENCE_S = 60.0
MIB = 1 << 20


class Server:
    """A server process of some models."""

    def __init__(self, folder):
        self.ports = {"grpc": free_port(), "rest": free_port()}
        config = folder / "models.config"
        entries = [
            f'config {{ name: "{name}" base_path: "{MODELS / name}" model_platform: "tensorflow" }}'
            for name in ("strings", "legacy", "half_plus_two")
        ]
        config.write_text(f"model_config_list {{ {' '.join(entries)} }}")
        self.log = folder / "log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tfserve_kit.embedded", "--bind_address=127.0.0.1",
                 f"--port={self.ports['grpc']}", f"--rest_api_port={self.ports['rest']}",
                 f"--model_config_file={config}"],
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def is_open(self):
        try:
            socket.create_connection(("127.0.0.1", self.ports["rest"]), 1).close()
        except OSError:
            return None
        return True

    def post(self, target, body):
        with closing(
            http.client.HTTPConnection("127.0.0.1", self.ports["rest"], timeout=PATIENCE_S)
        ) as client:
            client.request("POST", f"/v1/models/{target}", body)
            answer = client.getresponse()
            return answer.status, answer.read()

    def call(self, method, request):
        """Return the code's name and the details or the answer's bytes."""
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.ports['grpc']}", options) as channel:
            call = channel.unary_unary(protos.METHODS[method].path)
            try:
                return "OK", call(request, timeout=PATIENCE_S)
            except grpc.RpcError as error:
                return error.code().name, error.details()

    def resident_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("hostile"))
    assert wait_until(server.is_open, timeout_s=PATIENCE_S, interval_s=0.1, clock=SystemClock())
    yield server
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(autouse=True)
def goes_on(server):
    """Whatever happens, the next request is answered."""
    yield
    assert server.post("half_plus_two:predict", b'{"instances": [1.0]}')[0] == 200


def strings(rank, size=1):
    request = protos.PredictRequest(model_spec={"name": "strings"})
    tensor = request.inputs["s"]
    tensor.dtype = 7
    tensor.string_val.append(b"a")
    for _ in range(rank):
        tensor.tensor_shape.dim.add(size=size)
    return request.SerializeToString()


@pytest.mark.parametrize("rank", [0, 1, 32, 33, 40, 64, 65, 128, 254, 255, 1000])
@pytest.mark.parametrize("size", [0, 1])
def test_strings_of_any_rank_are_answered(server, rank, size):
    code, text = server.call("Predict", strings(rank, size))
    assert code == ("OK" if rank <= 32 else "INVALID_ARGUMENT"), text


@pytest.mark.parametrize("rank", [1, 32, 33, 64, 65, 254, 300])
def test_lists_of_strings_of_any_depth_are_answered(server, rank):
    body = b'{"signature_name": "serving_default", "inputs": %s"a"%s}'
    status, text = server.post("strings:predict", body % (b"[" * rank, b"]" * rank))
    assert status == (200 if rank <= 32 else 400), text


def test_equal_tasks_by_the_thousand_cost_nothing(server):
    request = protos.MultiInferenceRequest()
    for _ in range(3000):
        task = request.tasks.add(method_name="tensorflow/serving/regress")
        task.model_spec.name, task.model_spec.signature_name = "legacy", "regress"
    for _ in range(3000):
        feature = request.input.example_list.examples.add().features.feature["x"]
        feature.float_list.value.append(1)
    before, started_s = server.resident_bytes(), time.monotonic()
    code, text = server.call("MultiInference", request.SerializeToString())
    assert (code, text) == ("INVALID_ARGUMENT", "Duplicate evaluation of signature: regress")
    assert time.monotonic() - started_s < 10
    assert server.resident_bytes() < before + 100 * MIB


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ('"signature_name": "\\ud800"', "surrogate"),
        ('"\\ud800": 1', "surrogate"),
        ('"y": "\\udcff"', None),  # RapidJSON takes the second half alone
    ],
)
def test_half_a_character_beside_bytes_is_answered_at_once_and_costs_nothing(server, where, fault):
    body = b"{" + where.encode() + b', "x": "\xff", "instances": [1]}' + b" " * MIB
    started_s = time.monotonic()
    for _ in range(20):
        status, text = server.post("half_plus_two:predict", body)
        assert status == (400 if fault else 200)
        assert fault is None or fault in json.loads(text)["error"]
    assert time.monotonic() - started_s < 20


@pytest.mark.parametrize("method", ["Predict", "Classify", "MultiInference"])
def test_message_of_nothing_but_tiny_pieces_is_refused_before_it_is_parsed(server, method):
    before = server.resident_bytes()
    code, text = server.call(method, b"\x12\0" * (150 * MIB // 2) if method == "Predict"
                             else b"\x0a\0" * (250 * MIB // 2))  # fmt: skip
    assert code == "RESOURCE_EXHAUSTED" and "too large" in text
    assert server.resident_bytes() < before + 1200 * MIB
