"""Clients that mean harm, or just fail: a real server goes on for everybody else, and stays small.

What each of them is told is for the unit tests; here it counts that the process does not mind.
"""

import gzip
import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest

from tests.ports import free_port
from tests.torture.attackers import begun_calls, frame
from tfserve_kit import protos
from tfserve_kit.clock import SystemClock, wait_until

pytestmark = pytest.mark.tensorflow

MODELS = Path(__file__).parents[1] / "data" / "models"
PATIENCE_S = 30.0
MIB = 1 << 20
CLAIM = b"POST /v1/models/batchy:predict HTTP/1.1\r\nContent-Length: 2147483647\r\n\r\n"
ROW = b'{"instances": [1]}'


def predict(body=ROW, headers=""):
    head = (
        f"POST /v1/models/batchy:predict HTTP/1.1\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def eventually(condition):
    return wait_until(
        lambda: condition() or None, timeout_s=PATIENCE_S, interval_s=0.05, clock=SystemClock()
    )


class Server:
    """A server process of `batchy`, with limits on its descriptors as a process may have."""

    def __init__(self, log, descriptors, *flags):
        self.ports = {"grpc": free_port(), "rest": free_port()}
        soft, hard = descriptors
        command = [
            *("sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh"),
            *(sys.executable, "-m", "tfserve_kit.embedded", "--bind_address=127.0.0.1"),
            *(f"--port={self.ports['grpc']}", f"--rest_api_port={self.ports['rest']}"),
            *("--model_name=batchy", f"--model_base_path={MODELS / 'batchy'}", *flags),
        ]
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        if not eventually(lambda: self.process.poll() is not None or self._is_open()):
            self.process.kill()
        assert self.process.poll() is None, log.read_text()

    def _is_open(self):
        with suppress(OSError):
            self.connect().close()
            return True
        return False

    def connect(self, kind="rest"):
        return socket.create_connection(("127.0.0.1", self.ports[kind]), PATIENCE_S)

    @contextmanager
    def crowd(self, count, kind="rest"):
        """Hold many connections open."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.connect(kind)) for _ in range(count)]

    def ask(self, body=ROW, timeout_s=PATIENCE_S):
        """Return the status and body of a predict request on a connection of its own."""
        client = http.client.HTTPConnection("127.0.0.1", self.ports["rest"], timeout=timeout_s)
        with closing(client):
            client.request("POST", "/v1/models/batchy:predict", body)
            answer = client.getresponse()
            return answer.status, answer.read()

    def is_well(self):
        """Say whether it answers, on both protocols."""
        request = protos.GetModelStatusRequest(model_spec={"name": "batchy"})
        method = protos.METHODS["GetModelStatus"].path
        with grpc.insecure_channel(f"127.0.0.1:{self.ports['grpc']}") as channel:
            channel.unary_unary(method)(request.SerializeToString(), timeout=PATIENCE_S)
        return self.process.poll() is None and self.ask()[0] == 200

    def resident_bytes(self):
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self):
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def descriptors(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def most_descriptors():
    """Let the test itself open what it may: how many that is."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def server(tmp_path_factory, most_descriptors):
    log = tmp_path_factory.mktemp("hostile") / "output.log"
    server = Server(log, (256, most_descriptors))
    assert server.is_well()
    yield server
    assert server.is_well()
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    assert "Traceback" not in log.read_text()


@pytest.fixture
def stays_small(server):
    """The server needs little more memory after a test than before it, and no connection."""
    before, descriptors = server.resident_bytes(), server.descriptors()
    yield
    assert eventually(lambda: server.descriptors() <= descriptors + 5)
    assert server.is_well()
    assert server.resident_bytes() < before + 200 * MIB


def test_server_opens_as_many_descriptors_as_it_may(server, most_descriptors):
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    assert line.split()[3:5] == [str(most_descriptors)] * 2


GREETING = begun_calls([])
PING = frame(6, 0, 0, b"12345678")


@pytest.mark.parametrize(
    ("kind", "greeting", "sent", "answer"),
    [("rest", b"", predict(), b"HTTP/1.1 200 OK"), ("grpc", GREETING, PING, b"\0\0\x08\6\1")],
)
def test_idle_connections_by_the_thousand_are_no_burden(
    server, most_descriptors, stays_small, kind, greeting, sent, answer
):
    count = min(10_000, most_descriptors - 1000)
    before = server.resident_bytes()
    with server.crowd(count, kind) as idle:
        for client in idle:
            client.sendall(greeting)
        assert eventually(lambda: server.descriptors() > count)
        for _ in range(20):
            assert server.ask(timeout_s=20.0)[0] == 200
        used_s = server.cpu_s()
        time.sleep(2)
        assert server.cpu_s() - used_s < 0.1  # of which a clock tick is 0.01
        assert server.resident_bytes() < before + count * 6000
        for client in idle[:: count // 20]:  # they may still speak
            client.settimeout(PATIENCE_S)
            if greeting:
                client.recv(1000)  # the server's
            client.sendall(sent)
            assert client.recv(1000).startswith(answer)


@pytest.mark.parametrize(
    "sent",
    [b"", b"P", predict()[:60], predict()[:-1], CLAIM, CLAIM + b"x" * 1000, b"\x16\x03\x01"],
    ids=["nothing", "byte", "headers", "body", "claim", "claim-and-body", "tls"],
)
def test_unfinished_requests_by_the_hundred_are_no_burden(server, stays_small, sent):
    with server.crowd(300) as clients:
        for client in clients:
            client.sendall(sent)
        for _ in range(5):
            assert server.ask(timeout_s=20.0)[0] == 200


def test_clients_that_vanish_are_forgotten(server, stays_small):
    for sent in (predict(), predict() * 500, predict(b"[" * 100_000)[:-1], CLAIM + b"x" * 100_000):
        with server.crowd(50) as clients:
            for client in clients:
                # With this, closing resets the connection.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.sendall(sent)
        assert server.ask()[0] == 200


def test_client_that_pipelines_without_reading_fills_its_own_buffers_only(server, stays_small):
    before = server.resident_bytes()
    sent = predict() * 1000
    with server.crowd(10) as clients:
        for client in clients:
            client.settimeout(0.1)
            with suppress(TimeoutError):
                for _ in range(200):
                    client.sendall(sent)
        assert server.ask(timeout_s=20.0)[0] == 200
        assert server.resident_bytes() < before + 200 * MIB


def test_bombs_are_defused(server, stays_small):
    zeros = gzip.compress(bytes(90_000_000), 6)
    deep = b'{"instances": ' + b"[" * 1_000_000
    for body, headers, status in (
        (zeros, "Content-Encoding: gzip\r\n", b"400"),
        (gzip.compress(zeros), "Content-Encoding: gzip\r\n", b"400"),
        (deep, "", b"400"),
        (deep + b"\xff", "", b"400"),
        (b"", "A: " + "x" * 100_000, b"431"),
    ):
        with server.connect() as client:
            client.sendall(predict(body, headers))
            assert client.recv(100).split()[1] == status


def test_claims_in_grpc_messages_are_refused(server, stays_small):
    before = server.resident_bytes()
    request = protos.PredictRequest(model_spec={"name": "batchy"})
    for alias in map(str, range(50)):  # 50 GiB, were they filled in
        request.inputs[alias].dtype = 1
        request.inputs[alias].tensor_shape.dim.add(size=1 << 28)
    huge = protos.PredictRequest(model_spec={"name": "batchy"})
    huge.inputs["x"].dtype = 1
    huge.inputs["x"].tensor_shape.dim.add(size=1 << 40)
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        call = channel.unary_unary(protos.METHODS["Predict"].path)
        codes = []
        for message in (request.SerializeToString(), huge.SerializeToString(), b"\xff" * 1000):
            with pytest.raises(grpc.RpcError) as caught:
                call(message, timeout=PATIENCE_S)
            codes.append(caught.value.code().name)
    assert codes == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "INTERNAL"]
    assert server.resident_bytes() < before + 200 * MIB


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 1000,
    ],
    ids=["nothing", "http1", "preface", "frames", "settings"],
)
def test_garbage_on_the_grpc_port_is_no_burden(server, stays_small, sent):
    with server.crowd(200, "grpc") as clients:
        for client in clients:
            with suppress(OSError):
                client.sendall(sent)
        assert server.is_well()


def test_lack_of_descriptors_and_the_end_are_survived_by_requests_in_flight(tmp_path):
    slow = b'{"signature_name": "slow", "instances": [1]}'
    server = Server(tmp_path / "output.log", (300, 300), "--rest_api_num_threads=1")
    with server.connect() as known, server.crowd(400), server.crowd(400, "grpc"):
        assert eventually(lambda: server.descriptors() > 150)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (server.descriptors(), 300))
        for _ in range(10):
            known.sendall(predict())
            assert known.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert eventually(lambda: server.ask()[0] == 200)  # now that there is room again
    with ThreadPoolExecutor(8) as pool:
        started = threading.Barrier(9)

        def ask():
            with server.connect() as client:
                client.sendall(predict(slow))
                started.wait(PATIENCE_S)
                return client.recv(1000)

        answers = [pool.submit(ask) for _ in range(8)]
        started.wait(PATIENCE_S)
        time.sleep(0.1)  # what was sent arrives
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: not server._is_open())
        found = [answer.result(PATIENCE_S) for answer in answers]
    assert [each[:15] for each in found] == [b"HTTP/1.1 200 OK"] * 8
    assert server.process.wait(PATIENCE_S) == 0


class Patient:
    """Clients that wait for their answers, over both protocols, until told to stop.

    Attributes:
        answered: (status, body) of each answer.
        lost: what happened to requests that were accepted and not answered.
    """

    def __init__(self, server):
        self.server, self.stop = server, threading.Event()
        self.answered, self.lost = [], []

    def over_rest(self, *, stays):
        """Ask on one connection, or on a new one each time."""
        while not self.stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.server.ports["rest"])
            with closing(connection):
                try:
                    connection.connect()
                except OSError:  # refused: nothing was accepted
                    return
                self._ask(connection)
                while stays and connection.sock and not self.stop.is_set():
                    self._ask(connection)

    def _ask(self, connection):
        try:
            connection.request("POST", "/v1/models/batchy:predict", ROW)
            answer = connection.getresponse()
            self.answered.append((answer.status, answer.read()))
        except (OSError, http.client.HTTPException) as error:
            self.lost.append(error)

    def over_grpc(self):
        """Ask on one channel."""
        request = protos.PredictRequest(model_spec={"name": "batchy"})
        tensor = request.inputs["x"]
        tensor.dtype = 1
        tensor.tensor_shape.dim.add(size=1)
        tensor.float_val.append(1)
        with grpc.insecure_channel(f"127.0.0.1:{self.server.ports['grpc']}") as channel:
            call = channel.unary_unary(protos.METHODS["Predict"].path)
            while not self.stop.is_set():
                try:
                    answer = call(request.SerializeToString(), timeout=PATIENCE_S)
                    self.answered.append((200, answer))
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNAVAILABLE:  # never taken
                        return
                    self.lost.append(error)


@pytest.mark.parametrize("number", range(12 if os.environ.get("TFKIT_TORTURE") else 2))
def test_end_under_load_loses_nothing_that_was_accepted(tmp_path, number):
    server = Server(tmp_path / f"{number}.log", (1024, 1024))
    clients = Patient(server)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            pool.submit(clients.over_rest, stays=True)
            pool.submit(clients.over_rest, stays=False)
            pool.submit(clients.over_rest, stays=False)
            pool.submit(clients.over_grpc)
        assert eventually(lambda: len(clients.answered) > 300)
        server.process.terminate()
        assert server.process.wait(PATIENCE_S) == 0
        clients.stop.set()
    assert not clients.lost
    assert {status for status, _ in clients.answered} == {200}


def test_second_signal_ends_the_server_at_once(tmp_path):
    server = Server(tmp_path / "output.log", (1024, 1024))
    with server.connect() as client:
        client.sendall(predict()[:-1])  # it would be waited for
        time.sleep(0.2)
        server.process.terminate()
        assert eventually(lambda: not server._is_open())
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == -signal.SIGINT


def test_reloads_that_are_cancelled_leave_no_trace(server, stays_small):
    request = protos.message_class("ReloadConfigRequest")()
    path = protos.METHODS["HandleReloadConfigRequest"].path
    config = request.config.model_config_list.config
    base_path = str(MODELS / "batchy")
    config.add(name="batchy", base_path=base_path, model_platform="tensorflow")
    later = config.add(base_path="/nowhere", model_platform="tensorflow")
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        for number in range(50):
            later.name = f"later{number}"
            channel.unary_unary(path).future(request.SerializeToString()).cancel()
        assert server.is_well()
        del config[1]
        channel.unary_unary(path)(request.SerializeToString(), timeout=PATIENCE_S)


def test_calls_without_a_message_by_the_hundred_are_no_burden(server, stays_small):
    with server.crowd(20, "grpc") as clients:
        for client in clients:
            client.sendall(begun_calls(range(1, 101, 2)))
        for _ in range(5):
            assert server.is_well()


def test_compressed_grpc_messages_that_become_huge_are_refused(server, stays_small):
    bomb = bytes(300 * MIB)
    options = [("grpc.max_send_message_length", -1)]
    address, gzipped = f"127.0.0.1:{server.ports['grpc']}", grpc.Compression.Gzip
    before = server.resident_bytes()
    with grpc.insecure_channel(address, options, gzipped) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(protos.METHODS["Predict"].path)(bomb, timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.resident_bytes() < before + 200 * MIB
