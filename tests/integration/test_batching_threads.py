"""A batched model behind real ports: many requests wait, and no thread with them."""

import json
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from tfserve_kit import protos, tensors
from tfserve_kit.embedded.server import EmbeddedServer

pytest.importorskip("tensorflow")

MODEL = Path(__file__).parents[1] / "data" / "models" / "half_plus_two"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
PATIENCE_S = 60.0
OVER_GRPC, OVER_REST = 200, 20
# The first calls of a kind are made in threads; a few of these may be there, idle.
MOST_THREADS = 2 * (4 + 2)


@pytest.fixture
def server(tmp_path):
    parameters = tmp_path / "batching.txt"
    parameters.write_text(
        f"max_batch_size {{ value: {OVER_GRPC + OVER_REST} }} num_batch_threads {{ value: 1 }} "
        "batch_timeout_micros { value: 60000000 }"
    )
    options = {"grpc_max_threads": 4, "rest_api_num_threads": 4}
    with EmbeddedServer.of(
        {"m": MODEL}, enable_batching=True, batching_parameters_file=str(parameters), **options
    ) as made:
        yield made


def waiting(server):
    queues = server._scheduler._queues
    return sum(len(batch.tasks) for queue in queues for batch in queue.batches)


def workers():
    names = ("grpc_predict", "rest_predict")
    return [each for each in threading.enumerate() if each.name.startswith(names)]


def post(server, value):
    url = f"{server.rest_url}/v1/models/m:predict"
    body = json.dumps({"instances": [value]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=PATIENCE_S) as answer:
        return json.load(answer)["predictions"]


def test_requests_of_both_protocols_wait_for_one_batch_and_keep_no_thread(server):
    spec = protos.ModelSpec(name="m").SerializeToString()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(OVER_REST))
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))
        call = channel.unary_unary(PREDICT)

        def ask(value):
            request = tensors.predict_request({"x": np.float32([value])}, spec)
            return call.future(request, timeout=PATIENCE_S)

        asked = [ask(value) for value in range(OVER_GRPC - 1)]
        posted = [pool.submit(post, server, value) for value in range(OVER_REST)]
        end_s = time.monotonic() + PATIENCE_S
        while waiting(server) < OVER_GRPC + OVER_REST - 1:
            assert time.monotonic() < end_s, waiting(server)
            time.sleep(0.01)
        assert len(workers()) <= MOST_THREADS
        assert not any(each.done() for each in [*asked, *posted])
        asked.append(ask(OVER_GRPC - 1))  # fills the batch
        found = [
            tensors.from_proto(protos.PredictResponse.FromString(each.result()).outputs["y"])
            for each in asked
        ]
        assert np.concatenate(found).tolist() == [value / 2 + 3 for value in range(OVER_GRPC)]
        assert [each.result(PATIENCE_S) for each in posted] == [
            [value / 2 + 3] for value in range(OVER_REST)
        ]
    assert len(workers()) <= MOST_THREADS
