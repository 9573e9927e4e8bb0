"""Servers that die of SIGTERM are ended once nobody waits for an answer, and not before."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.ports import free_port
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import build
from tfserve_kit.engines import Availability, draining
from tfserve_kit.engines.process import ProcessEngine

MORTAL = Path(__file__).parents[2] / "integration" / "mortal_server.py"
PATIENCE_S = 100.0
QUIET_S = 2.0  # as in the script
AT_ONCE_S = QUIET_S - 0.2  # the quiet time is not waited for
SHORT_S, LONG_S = 5, 80
LARGE = 64 << 20  # bytes: more than a connection's queues hold


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return None


class Served:
    """A server behind the script, or bare: asked, told to end, and how it ended."""

    def __init__(self, process, port):
        self.process, self.port = process, port
        self.answers = []

    def ask(self, **body):
        """Send a request; return what can be joined once it is answered or lost."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("POST", "/v1/models/m:predict", json.dumps(body))

        def wait():
            try:
                self.answers.append(len(connection.getresponse().read()))
            except OSError as error:
                self.answers.append(type(error))
            connection.close()

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)  # it has arrived
        return thread

    def end(self):
        """Send SIGTERM; return how long it took to end, in seconds."""
        start_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)
        return time.monotonic() - start_s


@pytest.fixture
def serve(tmp_path):
    """Start the mortal server with a port of its own, in the script or bare."""
    (tmp_path / draining.SCRIPT).write_text(draining.script())
    started = []

    def run(*, drain_s=LONG_S, settle_s=0, command=(sys.executable, str(MORTAL))):
        port = free_port()
        argv = [*command, f"--rest_api_port={port}"]
        if drain_s is not None:
            script = tmp_path / draining.SCRIPT
            bounds = {"drain_s": drain_s, "settle_s": settle_s}
            argv = draining.around(argv, script, [port], **bounds)
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        wait_until(
            lambda: listens(port), timeout_s=PATIENCE_S, interval_s=0.05, clock=SystemClock()
        )
        return Served(process, port)

    yield run
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each.wait()
        each.stderr.close()


def test_without_the_script_a_request_in_flight_is_lost(serve):
    served = serve(drain_s=None)
    asked = served.ask(sleep=0.5)
    assert served.end() < AT_ONCE_S
    asked.join()
    assert served.answers == [http.client.RemoteDisconnected]


@pytest.mark.parametrize("work", [{"sleep": 1.5}, {"burn": QUIET_S + 1}])
def test_request_in_flight_is_answered_and_then_the_server_ends(serve, work):
    served = serve()
    asked = served.ask(**work)
    assert sum(work.values()) - 0.5 < served.end() < LONG_S - 5  # of CPU, the latter
    asked.join()
    assert served.answers == [len('{"predictions": []}')]
    assert served.process.returncode == 0


def test_answer_that_is_fetched_slowly_arrives_whole(serve):
    served = serve()
    with socket.create_connection(("127.0.0.1", served.port)) as slow:
        body = json.dumps({"bytes": LARGE}).encode()
        head = f"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body)
        time.sleep(0.5)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(QUIET_S + 1)
        assert served.process.poll() is None
        received = 0
        while chunk := slow.recv(1 << 20):
            received += len(chunk)
    assert received > LARGE
    assert served.process.wait(PATIENCE_S) == 0


def test_server_that_nobody_is_connected_to_ends_at_once(serve):
    served = serve()
    assert served.end() < AT_ONCE_S
    assert served.process.returncode == 0


def test_connection_that_is_only_kept_open_is_not_waited_for_longer_than_the_quiet_time(serve):
    served = serve()
    with socket.create_connection(("127.0.0.1", served.port)):
        time.sleep(0.1)
        assert QUIET_S - 0.5 < served.end() < LONG_S - 5


def test_server_that_is_never_idle_ends_at_the_bound_and_says_so(serve):
    served = serve(drain_s=SHORT_S)
    asked = served.ask(burn=4 * SHORT_S)
    assert SHORT_S - 0.5 < served.end() < 3 * SHORT_S
    asked.join()
    assert "ending after 5 s; connections still in use: 1" in served.process.stderr.read()


def test_new_requests_are_answered_while_it_may_still_be_in_service(serve):
    served = serve(settle_s=2)
    served.process.send_signal(signal.SIGTERM)
    for _ in range(10):
        served.ask(sleep=0).join()
        time.sleep(0.1)
    assert set(served.answers) == {len('{"predictions": []}')}
    served.process.wait(PATIENCE_S)
    assert served.process.returncode == 0


def test_behind_a_gateway_an_open_connection_has_a_request_however_quiet_it_is(serve):
    served = serve(settle_s=1)
    asked = served.ask(sleep=QUIET_S + 2)
    assert QUIET_S + 1.5 < served.end() < LONG_S - 5
    asked.join()
    assert served.answers == [len('{"predictions": []}')]


HANDLING = """
import signal, sys, http.server
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
port = int(sys.argv[1].partition("=")[2])
http.server.HTTPServer(("127.0.0.1", port), http.server.BaseHTTPRequestHandler).serve_forever()
"""


def test_server_that_handles_sigterm_is_told_at_once(serve):
    served = serve(command=(sys.executable, "-c", HANDLING))
    with socket.create_connection(("127.0.0.1", served.port)):
        assert served.end() < AT_ONCE_S
    assert served.process.returncode == 7


@pytest.mark.parametrize("status", [0, 3, 255])
def test_status_of_a_server_that_ends_by_itself_is_kept(tmp_path, status):
    (tmp_path / "drain.sh").write_text(draining.script())
    command = draining.around(["sh", "-c", f"exit {status}"], tmp_path / "drain.sh", [1], drain_s=1)
    assert subprocess.run(command, check=False).returncode == status


# Processes of this machine


@pytest.mark.parametrize(("drain_s", "kept"), [(10.0, True), (0.0, False)])
def test_process_is_stopped_once_its_request_is_answered(state_dir, models, drain_s, kept):
    engine = ProcessEngine(
        "mortal", [sys.executable, str(MORTAL)], Availability(True, ""), binds_host=False
    )
    document = {
        "server": {"grpc_port": free_port(), "rest_port": free_port(), "drain_s": drain_s},
        "models": {"half_plus_two": {"base_path": str(models / "half_plus_two")}},
    }
    handle = engine.start(engine.plan(build(document, source="test", folder=models), {}))
    port = document["server"]["rest_port"]
    wait_until(lambda: listens(port), timeout_s=PATIENCE_S, interval_s=0.05, clock=SystemClock())
    served = Served(None, port)
    asked = served.ask(sleep=1)
    handle.stop()
    asked.join()
    assert (served.answers == [len('{"predictions": []}')]) is kept
    assert handle.replicas() == []
