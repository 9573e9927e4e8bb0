"""Headers of callers in a measurement: they arrive whatever sends, and stay out of what is kept."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.clients import Target
from tfserve_kit.clients.options import Options
from tfserve_kit.perf import payloads, sending
from tfserve_kit.perf.load import Closed, Load

SECRET = "s3cret-value"
HEADERS = {"Authorization": SECRET, "trace-bin": b"\x00\xff"}


@pytest.mark.parametrize("sender", ["own", "grpcio"])
def test_metadata_arrives_from_either_sender(sender):
    seen = []

    class Routes(grpc.GenericRpcHandler):
        def service(self, details):
            seen.append(dict(details.invocation_metadata))
            answer = protos.PredictResponse().SerializeToString()
            return grpc.unary_unary_rpc_method_handler(lambda *_: answer)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Routes()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    url = f"grpc://127.0.0.1:{port}"
    payload = payloads.predict_payload(
        "grpc", url, Target("m"), {"x": np.zeros(1)}, headers=HEADERS
    )
    samples = sending.run(Load(url, "grpc", Closed(1, requests=3), sender=sender), [payload])
    server.stop(None)
    assert len(samples) == len(seen) == 3
    assert {(each["authorization"], each["trace-bin"]) for each in seen} == {(SECRET, b"\x00\xff")}


def test_headers_arrive_over_rest():
    seen = []

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.headers["authorization"], self.headers["trace-bin"]))
            self.send_response(200)
            self.send_header("Content-Length", "15")
            self.end_headers()
            self.wfile.write(b'{"outputs":[1]}')

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        payload = payloads.predict_payload(
            "rest", url, Target("m"), {"x": np.zeros(1)}, headers=HEADERS
        )
        sending.run(Load(url, "rest", Closed(1, requests=3)), [payload])
        server.shutdown()
    assert seen == [(SECRET, "AP8=")] * 3


def test_settings_that_a_run_keeps_hold_neither_headers_nor_files():
    options = Options(headers={"x": SECRET}, ca_file="/secret/ca.pem")
    load = Load("grpcs://h:1", "grpc", options=options)
    assert "secret" not in json.dumps(load.settings(), default=str).lower()
    assert SECRET not in repr(load)
