"""The senders against real servers, and against servers that do what none should."""

import os
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import psutil
import pytest

from tfserve_kit.cli.exits import REQUEST_FAILED, exit_code
from tfserve_kit.clients import Target
from tfserve_kit.clients.options import Options
from tfserve_kit.errors import RequestError, ServerUnreachable, UsageError
from tfserve_kit.perf import payloads
from tfserve_kit.perf.load import Closed, Load, Open, Payload
from tfserve_kit.perf.samples import (
    CANCELLED_AT_END,
    CONNECTION_LOST,
    SAMPLE,
    UNREADABLE_ANSWER,
)
from tfserve_kit.perf.sending import frames, run, workers

UNAVAILABLE = 14
LARGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Notes:
    """Keeps what is told."""

    def __init__(self):
        self.notes, self.counts = [], []

    def step(self, text):
        pass

    def note(self, text):
        self.notes.append(text)

    def advance(self, done, total):
        self.counts.append((done, total))


class Behaviour(grpc.GenericRpcHandler):
    """Answers as the method's name says; counts the requests that arrive."""

    def __init__(self):
        self.seen = Counter()
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    def service(self, details):
        name = details.method.rsplit("/", 1)[1]
        handle = getattr(self, name, None)
        if handle is None:
            return None

        def counted(request, context):
            with self.lock:
                self.seen[name] += 1
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                return handle(request, context)
            finally:
                with self.lock:
                    self.in_flight -= 1

        return grpc.unary_unary_rpc_method_handler(counted)

    def echo(self, request, context):
        return request

    def many(self, request, context):
        return bytes(int(request))

    def fail(self, request, context):
        context.set_trailing_metadata((("x-why-bin", b"\0\1\2"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no model € at all")

    def slow(self, request, context):
        time.sleep(float(request))
        return b"slow"


def serve(behaviour, *, port=0, options=()):
    server = grpc.server(ThreadPoolExecutor(32), handlers=[behaviour], options=[*LARGE, *options])
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


@pytest.fixture
def behaviour():
    return Behaviour()


@pytest.fixture
def url(behaviour):
    server, port = serve(behaviour)
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


def grpc_payload(name, body=b""):
    return Payload(f"/test.S/{name}", ((b"x-caller", b"test"),), body)


def grpc_load(url, schedule, **options):
    return Load(url, "grpc", schedule, **{"timeout_s": 20.0, **options})


def due(rate, seconds):
    return (np.arange(round(rate * seconds)) * (1e9 / rate)).astype(np.int64)


def statuses(samples):
    return dict(Counter(samples["status"].tolist()))


def assert_whole(samples):
    """Each request is there once, and its times are in order."""
    assert samples["sequence"].tolist() == list(range(len(samples)))
    assert (samples["due_ns"] <= samples["free_ns"]).all()
    assert (samples["free_ns"] <= samples["sent_ns"]).all()
    good = samples[samples["status"] == 0]
    assert (good["sent_ns"] <= good["first_byte_ns"]).all()
    assert (good["first_byte_ns"] <= good["done_ns"]).all()


SENDERS = pytest.mark.parametrize("sender", ["own", "grpcio"])


class TestGrpc:
    @SENDERS
    def test_payloads_go_out_in_turn_and_answers_come_back(self, url, behaviour, sender):
        made = [grpc_payload("echo", b"x" * size) for size in (0, 10, 200_000)]
        samples = run(grpc_load(url, Closed(5, requests=60), sender=sender), made)
        assert_whole(samples)
        assert statuses(samples) == {0: 60} and behaviour.seen["echo"] == 60
        assert samples["sent_bytes"].tolist() == [0, 10, 200_000] * 20
        assert samples["received_bytes"].tolist() == samples["sent_bytes"].tolist()

    @pytest.mark.parametrize("connections", [1, 3])
    def test_large_messages_pass_in_both_directions(self, url, connections):
        load = grpc_load(url, Closed(4, requests=24), connections=connections)
        samples = run(load, [grpc_payload("echo", b"x" * 600_000), grpc_payload("many", b"9000000"),
                             grpc_payload("echo", b"y" * (5 << 20))])  # fmt: skip
        assert statuses(samples) == {0: 24}
        assert samples["received_bytes"].tolist() == [600_000, 9_000_000, 5 << 20] * 8

    @SENDERS
    def test_errors_bear_their_status_and_are_told_once(self, url, sender):
        told = Notes()
        made = [grpc_payload("fail"), grpc_payload("echo"), grpc_payload("Unknown")]
        samples = run(grpc_load(url, Closed(2, requests=9), sender=sender), made, progress=told)
        assert statuses(samples) == {5: 3, 0: 3, 12: 3}
        assert told.notes[0] == "NOT_FOUND: no model € at all" and len(told.notes) == 2

    @SENDERS
    def test_what_takes_too_long_is_given_up(self, url, sender):
        made = [grpc_payload("slow", b"1.5"), grpc_payload("echo")]
        load = grpc_load(url, Closed(2, requests=4), timeout_s=0.3, sender=sender)
        samples = run(load, made)
        assert statuses(samples) == {4: 2, 0: 2}
        late = samples[samples["status"] == 4]
        assert ((late["done_ns"] - late["sent_ns"]) > 0.29e9).all()

    def test_as_many_are_in_flight_as_asked_for(self, url, behaviour):
        run(grpc_load(url, Closed(6, requests=30)), [grpc_payload("slow", b"0.02")])
        assert behaviour.most_in_flight == 6

    def test_a_server_that_takes_few_at_once_gets_few_at_once(self, behaviour):
        server, port = serve(behaviour, options=[("grpc.max_concurrent_streams", 3)])
        load = grpc_load(f"grpc://127.0.0.1:{port}", Closed(8, requests=40))
        samples = run(load, [grpc_payload("slow", b"0.01")])
        server.stop(None).wait()
        assert len(samples) == 40
        # It may still count a stream that has ended here, and turn the next one away.
        assert statuses(samples)[0] >= 36 and set(statuses(samples)) <= {0, 14}
        assert behaviour.most_in_flight == 3

    @SENDERS
    def test_an_open_loop_sends_on_time_and_late_but_all_where_there_is_no_room(self, url, sender):
        load = grpc_load(url, Open(due(200, 0.5), max_in_flight=4), sender=sender)
        samples = run(load, [grpc_payload("slow", b"0.05")])
        assert_whole(samples)
        assert (
            statuses(samples) == {0: 100} and samples["due_ns"].tolist() == due(200, 0.5).tolist()
        )
        # 4 at once, 50 ms each: 100 take 1.25 s, and the last was due after 0.5 s.
        assert samples["done_ns"][-1] - samples["due_ns"][-1] > 0.6e9

    def test_several_processes_share_the_load_and_the_start(self, url, behaviour):
        told = Notes()
        load = grpc_load(url, Open(due(400, 0.5)), processes=2)
        samples = run(load, [grpc_payload("echo"), grpc_payload("fail")], progress=told)
        assert_whole(samples)
        assert samples["due_ns"].tolist() == due(400, 0.5).tolist()
        assert samples["worker"].tolist() == [0, 1] * 100
        assert statuses(samples) == {0: 100, 5: 100} and told.notes
        assert behaviour.seen == {"echo": 100, "fail": 100}

    def test_several_processes_stop_when_they_are_told(self, url):
        stop = threading.Event()
        timer = threading.Timer(1.5, stop.set)
        timer.start()
        load = grpc_load(url, Closed(4, duration_s=60), processes=2, grace_s=0.2)
        samples = run(load, [grpc_payload("slow", b"0.01")], stop=stop)
        assert set(samples["worker"]) == {0, 1} and samples["done_ns"].max() < 30e9

    def test_a_stop_cancels_what_does_not_end_in_time(self, url):
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        load = grpc_load(url, Closed(2, duration_s=60), grace_s=0.1)
        samples = run(load, [grpc_payload("echo"), grpc_payload("slow", b"3")], stop=stop)
        assert statuses(samples)[CANCELLED_AT_END] in {1, 2}
        assert set(statuses(samples)) <= {0, CANCELLED_AT_END}

    def test_a_server_that_ends_in_peace_and_returns_costs_no_request(self, behaviour):
        server, port = serve(behaviour)
        load = grpc_load(f"grpc://127.0.0.1:{port}", Open(due(200, 2.0)))
        found = []
        sending = threading.Thread(
            target=lambda: found.append(run(load, [grpc_payload("slow", b"0.01")]))
        )
        sending.start()
        time.sleep(0.7)
        second, _ = serve(behaviour, port=port)
        server.stop(5).wait()  # says goodbye, answers what it has
        sending.join()
        second.stop(None).wait()
        assert_whole(found[0])
        assert statuses(found[0]) == {0: 400}

    def test_a_server_that_dies_loses_what_it_had_and_every_request_is_told(self, behaviour):
        server, port = serve(behaviour)
        load = grpc_load(f"grpc://127.0.0.1:{port}", Open(due(200, 2.0)))
        threading.Timer(0.7, lambda: server.stop(None)).start()
        samples = run(load, [grpc_payload("echo")])
        assert_whole(samples)
        assert len(samples) == 400
        found = statuses(samples)
        assert found[0] > 50 and found[CONNECTION_LOST] > 50
        assert samples["done_ns"].max() < 4e9  # it does not wait for the timeout

    def test_a_closed_loop_against_a_dead_server_neither_hangs_nor_spins(self, behaviour):
        server, port = serve(behaviour)
        load = grpc_load(f"grpc://127.0.0.1:{port}", Closed(4, duration_s=1.5))
        threading.Timer(0.5, lambda: server.stop(None)).start()
        samples = run(load, [grpc_payload("echo")])
        lost = statuses(samples)[CONNECTION_LOST]
        assert 4 <= lost <= 100  # 4 each 100 ms

    @SENDERS
    def test_nobody_there_is_told_before_the_start(self, sender):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        load = grpc_load(f"grpc://127.0.0.1:{port}", Closed(1, 1.0), sender=sender, timeout_s=1.0)
        with pytest.raises(ServerUnreachable):
            run(load, [grpc_payload("echo")])

    def test_nobody_there_is_told_by_workers_too(self):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        load = grpc_load(f"grpc://127.0.0.1:{port}", Closed(2, 1.0), processes=2)
        with pytest.raises(ServerUnreachable):
            run(load, [grpc_payload("echo")])


@contextmanager
def hostile(talk):
    """Run a server that accepts connections and hands each to `talk`, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    is_over = threading.Event()

    def answer(peer):
        with peer:
            try:
                talk(peer)
            except OSError:
                return

    def accept():
        while not is_over.is_set():
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        is_over.set()
        listener.close()


def until_request(peer, bytes_more=b""):
    """Say hello as an HTTP/2 server, and wait for a request."""
    peer.sendall(frames.settings({}) + bytes_more)
    seen = b""
    while b"/test.S/echo" not in seen:
        data = peer.recv(65536)
        if not data:
            raise OSError("closed")
        seen += data


def goodbye_at_once(peer):
    until_request(peer)
    peer.sendall(frames.frame(frames.GOAWAY, 0, 0, struct.pack(">II", 0, 0)))
    peer.recv(65536)


def cut_off(peer):
    until_request(peer)


def nonsense(peer):
    until_request(peer)
    peer.sendall(frames.frame(frames.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"))
    peer.recv(65536)


def half_a_frame(peer):
    until_request(peer)
    peer.sendall(frames.start(100, frames.DATA, 0))


class TestHostileGrpc:
    @pytest.mark.parametrize(("talk", "status"), [
        (goodbye_at_once, UNAVAILABLE), (cut_off, CONNECTION_LOST),
        (nonsense, UNREADABLE_ANSWER), (half_a_frame, CONNECTION_LOST),
    ])  # fmt: skip
    def test_every_request_is_told(self, talk, status):
        with hostile(talk) as port:
            load = grpc_load(f"grpc://127.0.0.1:{port}", Closed(2, requests=10), timeout_s=5)
            assert statuses(run(load, [grpc_payload("echo")])) == {status: 10}

    @pytest.mark.parametrize("talk", [
        lambda peer: None,
        lambda peer: peer.recv(1) and None,
        lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        lambda peer: time.sleep(2),
    ])  # fmt: skip
    def test_what_is_no_grpc_server_is_told_before_the_start(self, talk):
        with hostile(talk) as port:
            load = grpc_load(f"grpc://127.0.0.1:{port}", Closed(1, 1.0), timeout_s=0.5)
            with pytest.raises(ServerUnreachable, match="HTTP/2"):
                run(load, [grpc_payload("echo")])

    def test_a_server_that_never_answers_costs_the_timeout(self):
        def mute(peer):
            until_request(peer)
            time.sleep(3)

        with hostile(mute) as port:
            load = grpc_load(f"grpc://127.0.0.1:{port}", Closed(2, requests=4), timeout_s=0.2)
            assert statuses(run(load, [grpc_payload("echo")])) == {4: 4}


class Rest(BaseHTTPRequestHandler):
    """Answers as the path says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kind, _, argument = self.path.strip("/").partition("/")
        getattr(self, kind)(body, argument)

    def _send(self, status, body, *headers):
        self.send_response(status)
        for header in headers or (("Content-Length", str(len(body))),):
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def echo(self, body, argument):
        self._send(200, body)

    def status(self, body, argument):
        self._send(int(argument), b'{"error": "as asked"}')

    def chunks(self, body, argument):
        self._send(200, b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n", ("Transfer-Encoding", "chunked"))

    def close(self, body, argument):
        self._send(200, b"bye", ("Connection", "close"), ("Content-Length", "3"))
        self.close_connection = True

    def cut(self, body, argument):
        self._send(200, b"on", ("Content-Length", "3"))
        self.close_connection = True

    def drop(self, body, argument):
        self.close_connection = True

    def slow(self, body, argument):
        time.sleep(float(argument))
        self._send(200, b"slow")

    def garbage(self, body, argument):
        self.wfile.write(b"\x00\x01\x02 no answer at all\r\n\r\n")
        self.close_connection = True

    def log_message(self, *args):
        pass


class RestServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100

    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def rest_url():
    server = RestServer(("127.0.0.1", 0), Rest)
    thread = threading.Thread(target=lambda: server.serve_forever(0.05))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def rest_payload(path, body=b"{}"):
    return Payload(path, ((b"content-type", b"application/json"),), body)


def rest_load(url, schedule, **options):
    return Load(url, "rest", schedule, **{"timeout_s": 20.0, **options})


class TestRest:
    def test_payloads_go_out_in_turn_and_answers_come_back(self, rest_url):
        made = [rest_payload("/echo", b"x" * size) for size in (2, 50, 2_000_000)]
        samples = run(rest_load(rest_url, Closed(5, requests=60)), made)
        assert_whole(samples)
        assert statuses(samples) == {0: 60}
        assert samples["received_bytes"].tolist() == [2, 50, 2_000_000] * 20

    @pytest.mark.parametrize(("path", "status", "size"), [
        ("/status/400", 3, 21), ("/status/404", 5, 21), ("/status/503", 14, 21), ("/chunks", 0, 7),
        ("/close", 0, 3), ("/cut", CONNECTION_LOST, 0), ("/drop", CONNECTION_LOST, 0),
        ("/garbage", UNREADABLE_ANSWER, 0),
    ])  # fmt: skip
    def test_answers_of_all_kinds(self, rest_url, path, status, size):
        told = Notes()
        samples = run(rest_load(rest_url, Closed(3, requests=12)), [rest_payload(path)],
                      progress=told)  # fmt: skip
        assert statuses(samples) == {status: 12}
        assert set(samples["received_bytes"]) == {size}
        assert len(told.notes) == (status != 0)

    def test_a_failure_of_one_connection_is_none_of_the_others(self, rest_url):
        made = [rest_payload("/echo"), rest_payload("/drop")]
        assert statuses(run(rest_load(rest_url, Closed(4, requests=40)), made)) == {
            0: 20, CONNECTION_LOST: 20
        }  # fmt: skip

    def test_what_takes_too_long_is_given_up(self, rest_url):
        made = [rest_payload("/slow/1.5"), rest_payload("/echo")]
        samples = run(rest_load(rest_url, Closed(2, requests=4), timeout_s=0.3), made)
        assert statuses(samples) == {4: 2, 0: 2}

    def test_an_open_loop_opens_connections_as_it_needs_them(self, rest_url):
        load = rest_load(rest_url, Open(due(200, 0.5), max_in_flight=8))
        samples = run(load, [rest_payload("/slow/0.02")])
        assert_whole(samples)
        assert statuses(samples) == {0: 100}

    def test_nobody_there_is_told_before_the_start(self):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with pytest.raises(ServerUnreachable):
            run(rest_load(f"http://127.0.0.1:{port}", Closed(1, 1.0)), [rest_payload("/echo")])

    def test_a_server_that_is_gone_loses_requests_but_none_is_missing(self):
        def few(peer):
            for _ in range(5):
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        with hostile(few) as port:
            load = rest_load(f"http://127.0.0.1:{port}", Closed(3, requests=60))
            found = statuses(run(load, [rest_payload("/echo")]))
        assert sum(found.values()) == 60 and found[0] > 30
        assert set(found) <= {0, CONNECTION_LOST}

    def test_a_closed_loop_against_a_dead_server_neither_hangs_nor_spins(self):
        listener = socket.create_server(("127.0.0.1", 0))

        def answer_one():
            for _ in range(5):  # the first looks whether somebody is there
                listener.accept()[0].close()
            listener.close()

        threading.Thread(target=answer_one).start()
        load = rest_load(f"http://127.0.0.1:{listener.getsockname()[1]}", Closed(4, duration_s=1.0))
        lost = statuses(run(load, [rest_payload("/echo")]))
        assert set(lost) == {CONNECTION_LOST} and 4 <= lost[CONNECTION_LOST] <= 100

    def test_more_connections_than_files_are_refused(self, rest_url):
        load = rest_load(rest_url, Closed(10_000_000, requests=1))
        with pytest.raises(UsageError, match="ulimit"):
            run(load, [rest_payload("/echo")])


class TestEmbeddedServer:
    @pytest.mark.parametrize(("protocol", "sender", "processes"), [
        ("grpc", "own", 1), ("grpc", "own", 2), ("grpc", "grpcio", 1), ("rest", "own", 1),
    ])  # fmt: skip
    def test_predictions_are_made(self, embedded_server, protocol, sender, processes):
        url = getattr(embedded_server.endpoints, protocol)
        inputs = [{"x": np.array([1.0, float(number)], np.float32)} for number in range(3)]
        made = payloads.encoded(protocol, url, Target("half_plus_two"), inputs)
        load = Load(url, protocol, Closed(4, requests=60), sender=sender, processes=processes)
        samples = run(load, made)
        assert_whole(samples)
        assert statuses(samples) == {0: 60}
        assert samples["received_bytes"].min() > 10

    @pytest.mark.parametrize("protocol", ["grpc", "rest"])
    def test_errors_have_the_same_status_over_both_protocols(self, embedded_server, protocol):
        url = getattr(embedded_server.endpoints, protocol)
        inputs = [{"x": np.zeros(2, np.float32)}]
        made = payloads.encoded(protocol, url, Target("no_such_model"), inputs)
        assert statuses(run(Load(url, protocol, Closed(2, requests=10)), made)) == {5: 10}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory, require):
    """Files of a certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
             "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key,
             "-out", cert], check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        require("openssl", "openssl is not on PATH")
    return key, cert


class TestTls:
    def test_grpc_with_tls_goes_through_grpcio(self, behaviour, certificate):
        key, cert = certificate
        server = grpc.server(ThreadPoolExecutor(4), handlers=[behaviour])
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
        port = server.add_secure_port("localhost:0", credentials)
        server.start()
        load = grpc_load(
            f"grpcs://localhost:{port}", Closed(2, requests=10), options=Options(ca_file=cert)
        )
        samples = run(load, [grpc_payload("echo", b"hello")])
        server.stop(None).wait()
        assert statuses(samples) == {0: 10}

    def test_https_checks_the_server_and_carries_large_bodies(self, certificate):
        key, cert = certificate
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cert, key)
        server = RestServer(("localhost", 0), Rest)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=lambda: server.serve_forever(0.05))
        thread.start()
        url = f"https://localhost:{server.server_port}"
        load = rest_load(url, Closed(3, requests=30), options=Options(ca_file=cert))
        made = [rest_payload("/echo", b"x" * size) for size in (2, 3_000_000)]
        try:
            samples = run(load, made)
            with pytest.raises(ServerUnreachable, match="certificate"):
                run(rest_load(url, Closed(1, requests=1)), made)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
        assert statuses(samples) == {0: 30}
        assert samples["received_bytes"].tolist() == [2, 3_000_000] * 15


class TestInterruptions:
    def test_ctrl_c_stops_the_run_and_keeps_what_was_measured(self, url):
        stop = threading.Event()
        threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        before = signal.getsignal(signal.SIGINT)
        load = grpc_load(url, Closed(2, duration_s=60))
        samples = run(load, [grpc_payload("echo")], stop=stop)
        assert stop.is_set() and statuses(samples)[0] > 0
        assert signal.getsignal(signal.SIGINT) is before

    def test_a_worker_that_is_killed_is_told(self, url):
        def kill(start_ns):
            children = psutil.Process().children()
            next(each for each in children if "workers" in " ".join(each.cmdline())).kill()

        load = grpc_load(url, Closed(2, duration_s=60), processes=2)
        with pytest.raises(RequestError, match=r"killed before it finished \(Killed\)") as caught:
            run(load, [grpc_payload("echo")], started=kill)
        assert exit_code(caught.value) == REQUEST_FAILED

    def test_a_worker_that_fails_by_itself_is_a_bug(self, monkeypatch):
        monkeypatch.setattr(workers, "_CODE", "raise SystemExit(3)")
        with workers._worker() as worker, pytest.raises(RuntimeError, match="status 3"):
            workers._answer(worker)

    def test_a_worker_ends_with_its_parent(self, url):
        begun_s = time.monotonic()
        with workers._worker() as worker:
            load = grpc_load(url, Closed(1, duration_s=60), grace_s=0.1)
            workers._write(worker.stdin, (load, [grpc_payload("echo")]))
            assert workers._answer(worker) is None
            workers._write(worker.stdin, time.monotonic_ns())
            worker.stdin.close()  # as the system does for a parent that was killed
            samples, _ = workers._answer(worker)
            worker.stdin = None
        assert time.monotonic() - begun_s < 45 and samples.dtype == SAMPLE  # not the 60 s

    def test_what_is_sent_moves_on_is_told(self, url):
        told = Notes()
        run(grpc_load(url, Closed(1, requests=3)), [grpc_payload("slow", b"0.6")], progress=told)
        assert told.counts == sorted(told.counts) and told.counts[-1][1] == 3
        assert {done for done, _ in told.counts} >= {0, 1}
