"""Servers whose answers are none: perf counts them as errors, by kind, however it sends."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.contract import lying_servers
from tests.contract.lying_servers import METADATA
from tfserve_kit import protos
from tfserve_kit.tensors import to_proto

GOOD_ANSWERS = 20


def answer(array, version=7):
    message = protos.PredictResponse()
    message.model_spec.version.value = version
    message.outputs["y"].CopyFrom(to_proto(array, as_content=False))
    return message.SerializeToString()


GOOD = answer(np.float32([3.5]))
GRPC = {
    "empty answer": b"",
    "unreadable answer": GOOD[:5],
    "wrong dtype": answer(np.float64([3.5])),
    "wrong rank": answer(np.float32([[3.5]])),
    "wrong rows": answer(np.float32([3.5, 4])),
}
REST = {
    "empty answer": b"",
    "unreadable answer": b'{"outputs": [3.',
    "error as answer": b'{"error": "model exploded"}',
    "page as answer": b"<html>login</html>",
    "wrong rows": b'{"outputs": [3.5, 4]}',
}


def after(good, then, *, good_answers=GOOD_ANSWERS):
    """Return what gives good answers at first, and others later."""
    count = iter(range(10**9))
    return lambda: good if next(count) < good_answers else then


@contextmanager
def grpc(then, *, good_answers=GOOD_ANSWERS):
    with lying_servers.grpc_server(
        Predict=after(GOOD, then, good_answers=good_answers),
        GetModelMetadata=lying_servers.grpc_metadata(),
    ) as url:
        yield url


@contextmanager
def rest(then):
    answers = after(b'{"outputs": [3.5]}', then)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _say(self, body):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        def do_GET(self):
            self._say(METADATA)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self._say(answers())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


LIES = [(grpc, kind, lie) for kind, lie in GRPC.items()] + [
    (rest, kind, lie) for kind, lie in REST.items()
]
IDS = [f"{serve.__name__}, {kind}" for serve, kind, _ in LIES]


def measured(tfkit, url, *options, duration="0.6"):
    done = tfkit("perf", "--url", url, "--model", "m", "--duration", duration, "--warmup", "0",
                 "--json", *options)  # fmt: skip
    return done, json.loads(done.out)["data"]


@pytest.mark.parametrize(("serve", "kind", "lie"), LIES, ids=IDS)
def test_answers_that_are_none_are_errors_of_their_kind(tfkit, serve, kind, lie, tmp_path):
    page = tmp_path / "page.html"
    with serve(lie) as url:
        done, found = measured(tfkit, url, "--concurrency", "2", "--report", str(page))
    assert done.code == 0
    assert list(found["errors"]) == [kind]
    # The first request was the trial; the others were right as long as answers were.
    assert found["requests"] - found["errors"][kind] - found["unfinished"] == GOOD_ANSWERS - 1
    assert found["answers"]["checked"] >= found["requests"] - found["unfinished"]
    assert kind in done.err and kind in page.read_text("utf-8")


@pytest.mark.parametrize("serve", [grpc, rest])
@pytest.mark.parametrize(
    "how",
    [["--rate", "200"], ["--ramp", "50:400"], ["--concurrency", "4", "--processes", "2"],
     ["--rate", "200", "--during", "poison"]],
    ids=" ".join,
)  # fmt: skip
def test_however_it_is_sent(tfkit, serve, how):
    with serve(b"") as url:
        _, found = measured(tfkit, url, *how)
    assert found["errors"]["empty answer"] > 10
    assert found["answers"]["checked"] > found["errors"]["empty answer"]


def test_over_grpcio_too(tfkit):
    with grpc(GRPC["wrong rows"]) as url:
        _, found = measured(tfkit, url, "--sender", "grpcio")
    assert list(found["errors"]) == ["wrong rows"]


def test_replayed_requests_too(tfkit, tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f'{{"at": {n / 100}, "inputs": [1.0]}}\n' for n in range(60)))
    with grpc(GRPC["wrong dtype"]) as url:
        done = tfkit("perf", "--url", url, "--model", "m", "--replay", str(log), "--json")
    found = json.loads(done.out)["data"]
    assert found["errors"] == {"wrong dtype": 60 + 1 - GOOD_ANSWERS}


def test_no_rate_is_found_that_a_liar_keeps(tfkit):
    # One right answer, for the trial: any more would pass for a rate that was kept.
    with grpc(b"", good_answers=1) as url:
        done, found = measured(tfkit, url, "--find-max", "--slo", "p50<1s", duration="0.3")
    assert done.code == 7
    assert found["max_rate"] == 0


def test_server_that_never_answers_right_ends_with_a_failed_request(tfkit):
    with lying_servers.grpc_server(
        Predict=answer(np.float64([1])), GetModelMetadata=lying_servers.grpc_metadata()
    ) as url:
        done, found = measured(tfkit, url)
    assert done.code == 6
    assert found["invalid"] == "no request succeeded"


def test_change_of_version_is_a_note_and_no_error(tfkit):
    with grpc(answer(np.float32([4]), version=8)) as url:
        done, found = measured(tfkit, url)
        text = tfkit("perf", "--url", url, "--model", "m", "--duration", "0.2").out
    assert done.code == 0
    assert found["errors"] == {}
    assert found["answers"]["versions"]["7"] == GOOD_ANSWERS - 1
    assert found["answers"]["versions"]["8"] > 0
    assert "checked for framing, outputs, dtype, rank, rows" in text


def test_kept_run_says_how_its_answers_were_checked(tfkit, tmp_path):
    file = tmp_path / "run.npz"
    with grpc(GOOD) as url:
        _, found = measured(tfkit, url, "--output", str(file))
    kept = json.loads(tfkit("perf", "report", str(file), "--json").out)["data"]
    assert kept["answers"] == found["answers"]
