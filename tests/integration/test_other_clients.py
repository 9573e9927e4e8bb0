"""Clients that others wrote call the embedded engine: gRPC's in three languages, and HTTP tools.

Each asks the same over every kind of connection that it knows. Programs in other languages read
calls from their standard input, see `clients/`; those that are not installed are skipped.
"""

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from bench import generators
from bench.harness import Unavailable
from tests.certificates import Authority, ssl_config
from tfserve_kit import protos, tensors
from tfserve_kit.embedded.server import EmbeddedServer
from tfserve_kit.embedded.status import Code

pytestmark = pytest.mark.tensorflow

HERE = Path(__file__).parent / "clients"
MODULES = Path(__file__).parents[2] / "build" / "node" / "node_modules"
PATIENCE_S = 30
PREDICT = protos.METHODS["Predict"].path
METADATA = (("a", "b"), ("c-bin", b"\0\1\xff"))
# What these clients ping far more often than the server allows unless it is told to.
PINGS = "grpc.http2.min_ping_interval_without_data_ms=10,grpc.keepalive_permit_without_calls=1"
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 100),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
LARGE = np.arange(2 << 20, dtype=np.float32)  # 8 MiB


@dataclass(frozen=True)
class Way:
    """How a server is reached: an address, and files to prove who is who."""

    address: str
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def arguments(self):
        return [str(each) for each in (self.address, self.ca, self.cert, self.key) if each]

    @property
    def credentials(self):
        if not self.ca:
            return None
        pair = [each and each.read_bytes() for each in (self.ca, self.key, self.cert)]
        return grpc.ssl_channel_credentials(*pair)


def serving(models, **flags):
    served = {name: models / name for name in ("half_plus_two", "batchy")}
    served["m"] = models / "half_plus_two"  # what load generators ask for
    return EmbeddedServer.of(served, port=0, grpc_channel_arguments=PINGS, **flags)


@pytest.fixture(scope="module")
def plain(models, tmp_path_factory):
    """A server in plain text, at TCP ports and at a UNIX socket."""
    socket = tmp_path_factory.mktemp("plain") / "socket"
    with serving(models, grpc_socket_path=str(socket)) as server:
        yield server, Way(f"unix:{socket}")


@pytest.fixture(scope="module")
def ways(models, plain, tmp_path_factory):
    """The ways to servers: plain text and a UNIX socket, TLS, mutual TLS."""
    folder = tmp_path_factory.mktemp("ways")
    authority = Authority(folder / "ca")
    server = authority.issue("server", alternative="DNS:localhost,IP:127.0.0.1")
    client = authority.issue("client")

    def start(name, text):
        (folder / name).write_text(text)
        server = stack.enter_context(serving(models, ssl_config_file=str(folder / name)))
        return f"localhost:{server.grpc_port}"

    with ExitStack() as stack:
        ca = authority.own.cert
        mutual = ssl_config(server, custom_ca=ca, client_verify=True)
        yield {
            "plaintext": Way(f"127.0.0.1:{plain[0].grpc_port}"),
            "unix": plain[1],
            "tls": Way(start("tls", ssl_config(server)), ca),
            "mutual tls": Way(start("mutual", mutual), ca, client.cert, client.key),
        }


# Clients: ask(method, message, deadline_s, cancel_s) -> (code, details, answer)


@contextmanager
def grpcio(way):
    if way.credentials:
        channel = grpc.secure_channel(way.address, way.credentials, OPTIONS)
    else:
        channel = grpc.insecure_channel(way.address, OPTIONS)

    def ask(method, message, deadline_s=None, cancel_s=None):
        call = channel.unary_unary(method).future(message, deadline_s, METADATA)
        if cancel_s:
            threading.Timer(cancel_s, call.cancel).start()
        try:
            return Code.OK, "", call.result(PATIENCE_S)
        except grpc.RpcError as error:
            return Code(error.code().value[0]), error.details(), b""
        except grpc.FutureCancelledError:
            return Code(call.code().value[0]), call.details(), b""

    with channel:
        yield ask


@contextmanager
def grpcio_aio(way):
    async def opened():
        if way.credentials:
            return grpc.aio.secure_channel(way.address, way.credentials, OPTIONS)
        return grpc.aio.insecure_channel(way.address, OPTIONS)

    async def asked(method, message, deadline_s, cancel_s):
        call = channel.unary_unary(method)(message, timeout=deadline_s, metadata=METADATA)
        if cancel_s:
            asyncio.get_running_loop().call_later(cancel_s, call.cancel)
        try:
            return Code.OK, "", await call
        except grpc.RpcError as error:
            return Code(error.code().value[0]), error.details(), b""
        except asyncio.CancelledError:
            return Code((await call.code()).value[0]), await call.details(), b""

    with asyncio.Runner() as runner:
        channel = runner.run(opened())
        yield lambda method, message, deadline_s=None, cancel_s=None: runner.run(
            asked(method, message, deadline_s, cancel_s)
        )
        runner.run(channel.close())


@contextmanager
def _program(folder, *command, **more):
    """Have a program in another language make the calls."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **more) as process:
        file = folder / "message"

        def ask(method, message, deadline_s=0.0, cancel_s=0.0):
            file.write_bytes(message)
            times = f"{deadline_s * 1000:.0f} {cancel_s * 1000:.0f}"
            process.stdin.write(f"{method} {file} {times}\n")
            process.stdin.flush()
            code, _, details = process.stdout.readline().rstrip("\n").partition(" ")
            answer = file.with_name("message.answer").read_bytes() if code == "0" else b""
            return Code(int(code)), bytes.fromhex(details).decode(), answer

        yield ask
        process.stdin.close()
        process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def node_modules(require):
    if not shutil.which("node") or not (MODULES / "@grpc").is_dir():
        require("node", "node or its modules are not installed: make node-modules")
    return MODULES


@pytest.fixture(scope="module")
def compiled(require, tmp_path_factory):
    try:
        flags = generators.grpc_library()
        return generators.compiled(HERE / "client.cc", tmp_path_factory.mktemp("cc"), *flags)
    except Unavailable as reason:
        require("grpc++", str(reason))


CLIENTS = ("grpcio", "grpcio aio", "grpc-js", "C++")
WAYS = ("plaintext", "unix", "tls", "mutual tls")


@pytest.fixture(scope="module", params=[f"{client}, {way}" for client in CLIENTS for way in WAYS])
def ask(request, ways, tmp_path_factory):
    client, _, way = request.param.partition(", ")
    way, folder = ways[way], tmp_path_factory.mktemp("client")
    if client == "grpc-js":
        environment = os.environ | {"NODE_PATH": str(request.getfixturevalue("node_modules"))}
        opened = _program(folder, "node", HERE / "client.cjs", *way.arguments, env=environment)
    elif client == "C++":
        opened = _program(folder, request.getfixturevalue("compiled"), *way.arguments)
    else:
        opened = grpcio(way) if client == "grpcio" else grpcio_aio(way)
    with opened as ask:
        yield ask


def predict(values, model="half_plus_two", signature="", alias="x"):
    spec = protos.ModelSpec(name=model, signature_name=signature).SerializeToString()
    return tensors.predict_request({alias: np.asarray(values, np.float32)}, spec)


SLOW = predict([1.0], "batchy", "slow", "w")


def outputs(answer):
    (value,) = protos.message_class("PredictResponse").FromString(answer).outputs.values()
    return tensors.from_proto(value)


def test_prediction_is_right(ask):
    code, _, answer = ask(PREDICT, predict([1.0, 2.0, 5.0]))
    assert code is Code.OK
    assert outputs(answer).tolist() == [3.5, 4.0, 5.5]


def test_error_comes_with_its_details(ask):
    code, details, _ = ask(PREDICT, predict([1.0], model="modèle ü 模型"))
    assert code is Code.NOT_FOUND
    assert details == "Servable not found for request: Latest(modèle ü 模型)"


def test_method_that_is_unknown_is_unimplemented(ask):
    assert ask("/tensorflow.serving.PredictionService/Nothing", b"")[0] is Code.UNIMPLEMENTED


def test_large_messages_pass_both_ways(ask):
    code, _, answer = ask(PREDICT, predict(LARGE))
    assert code is Code.OK
    assert np.array_equal(outputs(answer), LARGE / 2 + 3)


def test_deadline_passes(ask):
    started_s = time.monotonic()
    assert ask(PREDICT, SLOW, deadline_s=0.05)[0] is Code.DEADLINE_EXCEEDED
    assert time.monotonic() - started_s < PATIENCE_S


def test_call_is_cancelled_and_the_next_one_answered(ask):
    assert ask(PREDICT, SLOW, cancel_s=0.05)[0] is Code.CANCELLED
    assert ask(PREDICT, predict([1.0]))[0] is Code.OK


def test_connection_outlives_its_pings(ask):
    time.sleep(0.5)  # a ping every 0.1 s
    assert ask(PREDICT, SLOW)[0] is Code.OK


# Tools that speak HTTP


ROWS = [1.0, 2.0, 5.0]
REST_BODY = json.dumps({"instances": ROWS})
CALLS = 500


def framed(message):
    return b"\0" + len(message).to_bytes(4, "big") + message


@pytest.fixture
def tool(require, tmp_path, plain):
    """Run a program with a message in a file; give what it printed."""

    def run(name, message, *arguments):
        if not shutil.which(name):
            require(name, f"{name} is not installed")
        (tmp_path / "message").write_bytes(message)
        done = subprocess.run([name, *arguments], capture_output=True, cwd=tmp_path, check=True)
        return done.stdout

    return run


@pytest.mark.parametrize("values", [ROWS, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "command",
    [
        ("curl", "-sS", "--http2-prior-knowledge", "--data-binary", "@message"),
        ("nghttp", "-d", "message", "-H:method: POST", "-w", "20", "-W", "24"),
    ],
    ids=["curl", "nghttp"],
)
def test_http2_tool_gets_an_answer_over_grpc(tool, plain, command, values):
    address = f"http://127.0.0.1:{plain[0].grpc_port}{PREDICT}"
    headers = ("-Hcontent-type: application/grpc", "-Hte: trailers")
    said = tool(command[0], framed(predict(values)), *command[1:], *headers, address)
    assert said[:5] == framed(said[5:])[:5]
    assert np.array_equal(outputs(said[5:]), np.asarray(values) / 2 + 3)


def test_http2_tool_sees_the_error_in_the_headers(tool, plain):
    address = f"http://127.0.0.1:{plain[0].grpc_port}{PREDICT}"
    command = ("-sSi", "--http2-prior-knowledge", "--data-binary", "@message", address)
    headers = ("-Hcontent-type: application/grpc", "-Hte: trailers")
    said = tool("curl", framed(predict(ROWS, model="ü")), *command, *headers).decode()
    assert said.startswith("HTTP/2 200")
    assert "grpc-status: 5" in said
    assert "grpc-message: Servable not found for request: Latest(%C3%BC)" in said


@pytest.mark.parametrize(
    "more",
    [
        (), ("-H", "Expect: 100-continue"), ("--http1.0",),
        ("-H", "Transfer-Encoding: chunked"), ("--http2",),
    ],
    ids=["plainly", "expecting", "http1.0", "chunked", "upgrading"],
)  # fmt: skip
def test_curl_gets_an_answer_over_rest(tool, plain, more):
    url = f"http://127.0.0.1:{plain[0].rest_port}/v1/models/half_plus_two:predict"
    sent = json.dumps({"instances": LARGE[:100_000].tolist()}).encode()
    said = tool("curl", sent, "-sS", "--data-binary", "@message", *more, url)
    assert json.loads(said)["predictions"] == (LARGE[:100_000] / 2 + 3).tolist()


def unavailable(require, reason):
    require(str(reason).partition(" ")[0], str(reason))


def test_load_generators_count_no_failure(require, plain, tmp_path):
    server, message = plain[0], predict(ROWS)
    try:
        said = generators.h2load(tmp_path, server.grpc_port, 32, f"-n{CALLS}", message=message)
        assert f"{CALLS} succeeded, 0 failed, 0 errored" in said
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/m:predict"
        said = generators.h2load_posts(tmp_path, url, 8, CALLS, REST_BODY.encode())
        assert f"{CALLS} succeeded, 0 failed, 0 errored" in said
        assert f"status codes: {CALLS} 2xx" in said
        said = generators.wrk(tmp_path, server.rest_port, 8, 1, REST_BODY)
        assert "Non-2xx" not in said and "Socket errors" not in said
        assert int(generators.found(r"(\d+) requests in", said)) > 0
    except Unavailable as reason:
        unavailable(require, reason)


def test_autocannon_counts_no_failure(node_modules, plain):
    program = node_modules / ".bin" / "autocannon"
    said = generators.autocannon(plain[0].rest_port, 8, 1, REST_BODY, str(program))
    assert said["2xx"] > 0
    assert (said["non2xx"], said["errors"], said["timeouts"]) == (0, 0, 0)
