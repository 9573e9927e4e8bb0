"""Takes the place of tensorflow_model_server where its death matters: SIGTERM kills it at once.

Same flags, real gRPC (with the official server's library, and its channel arguments) and REST. It
serves the newest version of each base path, which it looks for twice a second: `x / 2 + 2`, after
$DELAY_S seconds, or after -x where the first x is negative. A version without a graph is one that
could not be loaded. Over REST a body may ask for more: `{"sleep": S}`, `{"burn": S}` of CPU,
`{"bytes": N}` of answer.
"""

import http.server
import json
import os
import signal
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc

from tfserve_kit import protos

DELAY_S = float(os.environ.get("DELAY_S", "0.05"))
POLL_S = 0.5
FAILED = 255
HANDLERS = 64


def main(arguments):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in the official server
    flags = dict(each.removeprefix("--").partition("=")[::2] for each in arguments)
    models = Models()
    try:
        if file := flags.get("model_config_file"):
            text = Path(file).read_text("utf-8")
            models.configure(protos.from_text("ModelServerConfig", text))
        options = channel_arguments(flags.get("grpc_channel_arguments", ""))
        server = grpc.server(futures.ThreadPoolExecutor(HANDLERS), options=options)
        server.add_generic_rpc_handlers(handlers(models))
        if "port" in flags:
            listen(server, f"0.0.0.0:{flags['port']}", flags.get("ssl_config_file", ""))
        web = WebServer(("0.0.0.0", int(flags["rest_api_port"])), Handler)
    except (OSError, RuntimeError, protos.TextFormatError) as error:
        print(f"Failed to start server. Error: {error}", flush=True)
        return FAILED
    web.models = models
    threading.Thread(target=models.watch, daemon=True).start()
    server.start()
    print("Running gRPC ModelServer", flush=True)
    web.serve_forever()
    return 0


def listen(server, address, ssl_config_file):
    if not ssl_config_file:
        server.add_insecure_port(address)
        return
    config = protos.from_text("SSLConfig", Path(ssl_config_file).read_text("utf-8"))
    pair = (config.server_key.encode(), config.server_cert.encode())
    ca = config.custom_ca.encode() or None
    verified = {"root_certificates": ca, "require_client_auth": config.client_verify}
    server.add_secure_port(address, grpc.ssl_server_credentials([pair], **verified))


def channel_arguments(text):
    pairs = [each.partition("=")[::2] for each in text.split(",") if each]
    numbers = [(name, int(value)) for name, value in pairs]
    return [*numbers, ("grpc.so_reuseport", 0)]


class Models:
    """What is served: by model, the newest version, and what could not be loaded."""

    def __init__(self):
        self.base_paths, self.versions, self.broken, self.signatures = {}, {}, {}, {}

    def configure(self, config):
        self.base_paths = {
            each.name: Path(each.base_path) for each in config.model_config_list.config
        }
        self.look()

    def look(self):
        for name, base_path in self.base_paths.items():
            found = sorted(int(each.name) for each in base_path.iterdir() if each.name.isdecimal())
            sound = [n for n in found if is_sound(base_path / str(n))]
            self.broken[name] = [n for n in found[-1:] if n not in sound]
            if sound and sound[-1] != self.versions.get(name):
                self.signatures[name] = signatures_in(base_path / str(sound[-1]))
                self.versions[name] = sound[-1]

    def watch(self):
        while True:
            time.sleep(POLL_S)
            self.look()

    def status(self, name):
        """Return version, state and error of each version known; None of an unknown model."""
        if name not in self.base_paths:
            return None
        rows = [(n, "END", "no graph") for n in self.broken.get(name, ())]
        if name in self.versions:
            rows.append((self.versions[name], "AVAILABLE", ""))
        return rows


def is_sound(folder):
    graph = folder / "saved_model.pb"
    return graph.is_file() and graph.stat().st_size > 0


# gRPC


def handlers(models):
    def answering(answer):
        return grpc.unary_unary_rpc_method_handler(answer)

    prediction = {
        "Predict": answering(lambda data, context: predict(models, data, context)),
        "GetModelMetadata": answering(lambda data, context: metadata(models, data, context)),
    }
    model = {
        "GetModelStatus": answering(lambda data, context: status(models, data, context)),
        "HandleReloadConfigRequest": answering(lambda data, context: configure(models, data)),
    }
    made = grpc.method_handlers_generic_handler
    return [
        made("tensorflow.serving.PredictionService", prediction),
        made("tensorflow.serving.ModelService", model),
    ]


def require(models, name, context):
    if name not in models.versions:
        context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")


def predict(models, data, context):
    request = protos.PredictRequest.FromString(data)
    name = request.model_spec.name
    require(models, name, context)
    version = models.versions[name]
    reply = protos.PredictResponse()
    reply.model_spec.name, reply.model_spec.version.value = name, version
    reply.model_spec.signature_name = request.model_spec.signature_name or "serving_default"
    given = request.inputs["x"]
    values = list(given.float_val)
    if given.tensor_content:
        values = list(memoryview(given.tensor_content).cast("f"))
    time.sleep(delay_s(values))
    result = reply.outputs["y"]
    result.dtype = given.dtype
    result.tensor_shape.CopyFrom(given.tensor_shape)
    result.float_val.extend(x / 2 + 2 for x in values)
    return reply.SerializeToString()


def delay_s(values):
    return -values[0] if values and values[0] < 0 else DELAY_S


def signatures_in(folder):
    graph = (folder / "saved_model.pb").read_bytes()
    signatures = protos.SavedModel.FromString(graph).meta_graphs[0].signature_def
    known = protos.SignatureDefMap()
    for key, value in signatures.items():
        known.signature_def[key].CopyFrom(value)
    return known


def metadata(models, data, context):
    name = protos.GetModelMetadataRequest.FromString(data).model_spec.name
    require(models, name, context)
    reply = protos.GetModelMetadataResponse()
    reply.model_spec.name, reply.model_spec.version.value = name, models.versions[name]
    reply.metadata["signature_def"].Pack(models.signatures[name])
    return reply.SerializeToString()


def status(models, data, context):
    name = protos.GetModelStatusRequest.FromString(data).model_spec.name
    rows = models.status(name)
    if rows is None:
        context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
    found = [
        {
            "version": version,
            "state": state,
            "status": {"error_code": 9 if error else 0, "error_message": error},
        }
        for version, state, error in rows
    ]
    return protos.GetModelStatusResponse(model_version_status=found).SerializeToString()


def configure(models, data):
    print("Reload", flush=True)
    models.configure(protos.ReloadConfigRequest.FromString(data).config)
    return protos.ReloadConfigResponse().SerializeToString()


# REST


class WebServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing of connections that were cut."""

    request_queue_size = 128


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """Say nothing."""

    def do_GET(self):
        path = self.path.removeprefix("/v1/models/")
        name, _, what = path.partition("/")
        rows = self.server.models.status(name)
        if rows is None:
            self.answer({"error": "Could not find any versions of model"}, 404)
            return
        if what == "metadata":
            known = self.server.models.signatures[name]
            shown = {"signature_def": json.loads(protos.to_json(known))}
            spec = {"name": name, "version": str(self.server.models.versions[name])}
            self.answer({"model_spec": spec, "metadata": shown})
            return
        shown = [{"version": str(n), "state": state} for n, state, _ in rows]
        self.answer({"model_version_status": shown})

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        asked = json.loads(self.rfile.read(length) or b"{}")
        name = self.path.rpartition("/")[2].partition(":")[0]
        if ("instances" in asked or "inputs" in asked) and name not in self.server.models.versions:
            self.answer({"error": f"Servable not found for request: Latest({name})"}, 404)
            return
        time.sleep(asked.get("sleep", DELAY_S))
        end_s = time.process_time() + asked.get("burn", 0)
        while time.process_time() < end_s:
            pass
        more = {"filler": "x" * asked["bytes"]} if "bytes" in asked else {}
        if (columns := asked.get("inputs")) is not None:
            values = columns["x"] if isinstance(columns, dict) else columns
            self.answer({"outputs": [x / 2 + 2 for x in values]})
            return
        self.answer({"predictions": [x / 2 + 2 for x in asked.get("instances", ())], **more})

    def answer(self, data, code=200):
        text = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
