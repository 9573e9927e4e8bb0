"""Recorded behaviour of the official server: the cases, and what it takes to try a server on them.

The recordings (tests/data/golden/, see its README) hold requests and life cycles with the answers
that a build of TensorFlow Serving 2.20.0 gave. `SOURCES` names the upstream file behind each group.
"""

import base64
import concurrent.futures
import contextlib
import gzip
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc

from tests.contract import warm
from tests.ports import free_port
from tfserve_kit import protos

DATA = Path(__file__).parents[1] / "data"
MODELS = DATA / "models"
_GOLDEN = DATA / "golden"

_MS, _ST = "tensorflow_serving/model_servers", "tensorflow_serving/servables/tensorflow"
_REST = f"{_MS}/http_rest_api_handler.cc"
_JSON = "tensorflow_serving/util/json_tensor.cc"
_BATCHING = "tensorflow_serving/batching/batching_session.cc"
SOURCES = {
    "grpc-batching": _BATCHING,
    "grpc-classify": f"{_ST}/classifier.cc",
    "grpc-dtypes": "tensorflow/core/framework/tensor.cc",
    "grpc-health": f"{_MS}/server.cc",
    "grpc-metadata": f"{_ST}/get_model_metadata_impl.cc",
    "grpc-model-spec": f"{_MS}/server_core.cc",
    "grpc-multi-inference": f"{_ST}/multi_inference.cc",
    "grpc-op-errors": f"{_ST}/predict_util.cc",
    "grpc-output-filter": f"{_ST}/predict_util.cc",
    "grpc-predict": f"{_ST}/predict_util.cc",
    "grpc-raw": f"{_MS}/prediction_service_impl.cc",
    "grpc-regress": f"{_ST}/regressor.cc",
    "grpc-reload": f"{_MS}/model_service_impl.cc",
    "grpc-status": f"{_MS}/get_model_status_impl.cc",
    "grpc-tensor-content": f"{_ST}/predict_util.cc",
    "rest-batching": _BATCHING,
    "rest-classify": _JSON,
    "rest-cors": _REST,
    "rest-deep": _JSON,
    "rest-dtypes": _JSON,
    "rest-echo": _JSON,
    "rest-examples": _JSON,
    "rest-headers": "tensorflow_serving/util/net_http/server/internal/evhttp_request.cc",
    "rest-metadata": _REST,
    "rest-method-check": f"{_ST}/classifier.cc",
    "rest-methods": _REST,
    "rest-numbers": _JSON,
    "rest-op-errors": _REST,
    "rest-paths": _REST,
    "rest-predict": _JSON,
    "rest-regress": _JSON,
    "rest-signature": _JSON,
    "rest-single": f"{_MS}/http_server.cc",
    "rest-status": _REST,
    "rest-strings": _JSON,
    "startup": f"{_MS}/main.cc",
    "lifecycle": "tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc",
}

# Where the embedded engine differs, and why; docs/embedded.md tells the same.
DEVIATIONS = {
    "rest.batching.empty": "no rows: an error, where the official server never answers",
    "rest.deep.depth-254": "numpy arrays have at most 64 dimensions",
    "startup.batching-zero": "an error, where the official server crashes",
    "startup.batching-timeout-negative": "an error, where the official server crashes",
    "startup.batching-split-bigger": "an error, where the official server crashes",
    "startup.int-huge": "an error, where the official server crashes",
}

EMBEDDED = [sys.executable, "-m", "tfserve_kit.embedded"]
WARM = ["a fork of a warm process"]  # in the place of EMBEDDED, see warm.py

SETUPS = json.loads((_GOLDEN / "setups.json").read_text("utf-8"))


def cases(kind):
    """Return the recorded cases of a kind: rest, grpc, startup or lifecycle."""
    with gzip.open(_GOLDEN / f"{kind}.jsonl.gz", "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [case for case in found if not case.get("flaky")]


class Server:
    """A server process of a recorded setup, in a folder of its own.

    Args:
        command: what to run, or WARM.
    """

    def __init__(self, command, setup, folder):
        self.folder = folder
        self.ports = {"grpc": free_port(), "rest": free_port()}
        self._places = {
            "${MODELS}": str(MODELS),
            "${TMP}": str(folder),
            "${GRPC_PORT}": str(self.ports["grpc"]),
            "${REST_PORT}": str(self.ports["rest"]),
        }
        for name, text in setup.get("files", {}).items():
            (folder / name).write_text(self.fill(text), "utf-8")
        for operation in setup.get("prepare", []):
            self.do(operation)
        flags = [self.fill(flag) for flag in setup["flags"]]
        self.output = (folder / "output.log").open("wb")
        if command == WARM:
            self.process = warm.Server(flags, self.output.name)
        else:
            self.process = subprocess.Popen(
                [*command, *flags], stdin=subprocess.DEVNULL, stdout=self.output,
                stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.ports['grpc']}")

    def fill(self, text):
        for place, value in self._places.items():
            text = text.replace(place, value)
        return text

    def hide(self, text):
        for place in ("${TMP}", "${MODELS}"):
            text = text.replace(self._places[place], place)
        return text

    def is_open(self, name):
        try:
            socket.create_connection(("127.0.0.1", self.ports[name]), 1).close()
        except OSError:
            return False
        return True

    def wait_ready(self):
        wait_for(lambda: self.process.poll() is not None or self.is_open("rest"), 60)
        assert self.process.poll() is None, (self.folder / "output.log").read_text()

    def stop(self):
        self._channel.close()
        self.process.kill()
        self.process.wait()
        self.output.close()

    # Requests

    def send(self, request):
        if "burst" in request:
            with concurrent.futures.ThreadPoolExecutor(request["burst"]) as pool:
                found = list(pool.map(lambda _: self._rest(request), range(request["burst"])))
            shown = sorted(json.dumps([each["status"], each.get("body")]) for each in found)
            kinds = dict.fromkeys(shown)
            return {"burst": [[*json.loads(kind), shown.count(kind)] for kind in kinds]}
        return self._rest(request) if request["kind"] == "rest" else self._grpc(request)

    def _rest(self, request):
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.ports["rest"], timeout=request.get("timeout_s", 10)
        )
        with contextlib.closing(connection):
            try:
                return self._exchange(connection, request)
            except (OSError, http.client.HTTPException) as error:
                return {"status": None, "error": type(error).__name__}

    def _exchange(self, connection, request):
        body = _body(request)
        headers = dict(request.get("headers", {}))
        if body is not None:
            headers.setdefault("Content-Length", str(len(body)))
        connection.putrequest(request["method"], request["path"], skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        data = response.read()
        answer = {"status": response.status, "headers": dict(response.getheaders())}
        try:
            return {**answer, "body": self.hide(data.decode())}
        except UnicodeDecodeError:
            return {**answer, "body_b64": base64.b64encode(data).decode()}

    def _grpc(self, request):
        raw = base64.b64decode(request["request_b64"])
        if request.get("fill"):
            document = json.loads(self.fill(json.dumps(request["request_json"])))
            raw = protos.from_json("ReloadConfigRequest", document).SerializeToString()
        call = self._channel.unary_unary(request["method"])
        try:
            body = call(raw, timeout=request.get("timeout_s", 20), wait_for_ready=True)
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": self.hide(error.details() or "")}
        return {"code": "OK", "details": "", "body": body}

    # Changes on disk

    def do(self, operation):
        kind = operation["op"]
        if kind == "grpc":
            return self.send(operation["request"])
        path = self.folder / operation.get("path", operation.get("dst", ""))
        if kind == "put":
            self._put(path, operation)
        elif kind == "rm":
            gone = path.rename(self.folder / f".gone{time.monotonic_ns()}")
            shutil.rmtree(gone) if gone.is_dir() and not gone.is_symlink() else gone.unlink()
        elif kind == "rename":
            path.rename(self.folder / operation["to"])
        elif kind == "mkdir":
            path.mkdir(parents=True)
        elif kind == "symlink":
            path.symlink_to(self.fill(operation["to"]))
        elif kind == "file":
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(path.name + ".w~")
            draft.write_text(self.fill(operation["text"]), "utf-8")
            draft.rename(path)
        return None

    def _put(self, path, operation):
        stage = self.folder / f".stage{time.monotonic_ns()}"
        shutil.copytree(MODELS / operation["src"], stage)
        for name in operation.get("without", []):
            gone = stage / name
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        for name, text in operation.get("overwrite", {}).items():
            (stage / name).write_text(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        stage.rename(path)


def _body(request):
    if "body" in request:
        return request["body"].encode()
    if "body_b64" in request:
        return base64.b64decode(request["body_b64"])
    if "body_parts" in request:
        return "".join(text * count for text, count in request["body_parts"]).encode()
    return None


def wait_for(condition, timeout_s):
    """Ask until a condition holds or time is up; say whether it holds."""
    end_s = time.monotonic() + timeout_s
    while not (found := condition()) and time.monotonic() < end_s:
        time.sleep(0.05)
    return found


def disagreement(request, want, got):
    """Return how an answer differs from the recorded one, None if it does not."""
    if "burst" in want:
        return None if want == got else f"want {want}, got {got}"
    if request["kind"] == "rest":
        same = want["status"] == got["status"] and _same_body(want, got)
        return None if same else f"want {want}, got {got}"
    if (want["code"], want["details"]) != (got["code"], got["details"]):
        return f"want {want['code']} {want['details']!r}, got {got['code']} {got['details']!r}"
    if want["code"] != "OK":
        return None
    have, expected = got["body"], base64.b64decode(want["response_b64"])
    method = protos.METHODS.get(request["method"].rpartition("/")[2])
    if have == expected or (method and _plain(method, have) == _plain(method, expected)):
        return None
    return f"want {want.get('response_json', expected)}, got {have}"


def _same_body(want, got):
    one, other = (each.get("body", each.get("body_b64")) for each in (want, got))
    if one == other:
        return True
    try:
        return json.loads(one) == json.loads(other)
    except (TypeError, ValueError):
        return False


def _plain(method, data):
    """Return a message without regard to the order of its maps, also inside of `Any`."""
    message = protos.message_class(method.response).FromString(data)
    return json.loads(protos.to_json(message))
