"""gRPC over real sockets, with a surface that is made up."""

import asyncio
import math
import shutil
import socket
import subprocess
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from itertools import takewhile

import grpc
import ngh2
import pytest

from tests.torture import attackers
from tests.torture.attackers import PREFACE, frame
from tests.unit.embedded.flows import flowing
from tfserve_kit.embedded import grpc_transport
from tfserve_kit.embedded.front import EventLoop
from tfserve_kit.embedded.grpc_surface import GrpcAnswer
from tfserve_kit.embedded.grpc_transport import (
    GrpcOptions,
    GrpcServer,
    Ports,
    Unheard,
    options_of,
)
from tfserve_kit.embedded.http2 import Http2Limits
from tfserve_kit.embedded.http_transport import HttpServer
from tfserve_kit.embedded.kinds import CallKind
from tfserve_kit.embedded.lanes import Lanes, processors
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.limits import MOST_INFLATED_BYTES
from tfserve_kit.embedded.rest_surface import RestAnswer
from tfserve_kit.embedded.settings import Tls
from tfserve_kit.embedded.status import Code, ServingError

PATIENCE_S = 10.0
GIB = 1 << 30
OPTIONS = GrpcOptions()


def serving(surface, address, threads, *, options=OPTIONS, **more):
    """A transport on `address`, not started."""
    ports = Ports(address, **more)
    return GrpcServer(flowing(surface), Lanes(threads), Ledger(GIB), ports, options)


def wait_until(condition):
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


class EchoSurface:
    """Answers `path request`; request `wait` waits for `go`, and a code's name answers with it.

    Attributes:
        entered: set when a `wait` request has arrived.
        go: lets the waiting requests answer.
        asked: all requests.
    """

    def __init__(self):
        self.entered, self.go = threading.Event(), threading.Event()
        self.asked = []

    def __call__(self, path, request, call):
        request = bytes(request)
        self.asked.append(request)
        if request == b"wait":
            self.entered.set()
            assert self.go.wait(PATIENCE_S)
        if request.decode("latin-1") in Code.__members__:
            return GrpcAnswer(Code[request.decode()], f"details of {request.decode()} é")
        return GrpcAnswer(body=path.encode() + b" " + request)


@pytest.fixture
def surface():
    surface = EchoSurface()
    yield surface
    surface.go.set()


@pytest.fixture
def server(surface):
    transport = serving(surface, "127.0.0.1:0", threads=2)
    transport.start()
    yield transport
    surface.go.set()
    transport.stop(PATIENCE_S)


@contextmanager
def calling(server, method="/a.B/C"):
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
        yield channel.unary_unary(method)


def test_port_of_zero_asks_the_system_for_one(server):
    assert 0 < server.port < 65536


def test_server_speaks_first_and_says_its_settings_once(server):
    with socket.create_connection(("localhost", server.port), PATIENCE_S) as connection:
        connection.settimeout(PATIENCE_S)
        settings = connection.recv(1 << 16)
        assert settings[3:9] == b"\x04" + bytes(5)
        connection.sendall(PREFACE)
        answered = connection.recv(1 << 16)
        connection.sendall(frame(6, 0, 0, bytes(8)))
        while not answered.endswith(frame(6, 1, 0, bytes(8))):
            answered += connection.recv(1 << 16)
    assert answered == frame(4, 1, 0, b"") + frame(6, 1, 0, bytes(8))


@pytest.mark.parametrize("method", ["/a.B/C", "/tensorflow.serving.PredictionService/Predict"])
def test_every_method_reaches_the_surface_as_bytes(server, method):
    with calling(server, method) as call:
        assert call(b"\x00\xff", timeout=PATIENCE_S) == method.encode() + b" \x00\xff"


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_code_and_details_arrive(server, code):
    with calling(server) as call, pytest.raises(grpc.RpcError) as caught:
        call(code.name.encode(), timeout=PATIENCE_S)
    assert caught.value.code().value[0] == code
    assert caught.value.details() == f"details of {code.name} é"


@pytest.mark.parametrize(
    ("details", "arrives"),
    [
        ("x" * 1024, "x" * 1024),
        ("x" * 1025, "x" * 1024 + "...TRUNCATED"),
        ("x" * 100_000, "x" * 1024 + "...TRUNCATED"),
        ("é" * 100_000, "é" * 512 + "...TRUNCATED"),
        ("%" * 100_000, "%" * 1024 + "...TRUNCATED"),
        ("a\n\0% é", "a\n\0% é"),
        # What is no UTF-8 is sent as it is; this client takes it for Latin-1.
        ("a\udcffb", "a\xffb"),
        ("a" + "é" * 600, "a" + "Ã©" * 511 + "Ã...TRUNCATED"),
    ],
    ids=["longest", "longer", "long", "not-ascii", "percent", "controls", "no-utf8", "cut-in-two"],
)
def test_details_are_cut_to_what_a_client_takes(details, arrives):
    server = serving(
        lambda path, request, call: GrpcAnswer(Code.NOT_FOUND, details),
        "127.0.0.1:0",
        threads=1,
    )
    server.start()
    with calling(server) as call, pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=PATIENCE_S)
    server.stop(PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == arrives
    assert len(caught.value.details()) <= len(arrives) + 5


def test_call_whose_client_has_gone_before_its_turn_is_not_answered(surface):
    server = serving(surface, "127.0.0.1:0", threads=1)
    server.start()
    with calling(server) as call:
        slow = call.future(b"wait", timeout=PATIENCE_S)
        assert surface.entered.wait(PATIENCE_S)
        gone = call.future(b"gone", timeout=0.2)
        assert gone.exception(PATIENCE_S).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        surface.go.set()
        assert slow.result(PATIENCE_S) == b"/a.B/C wait"
        assert call(b"next", timeout=PATIENCE_S) == b"/a.B/C next"
    server.stop(PATIENCE_S)
    assert surface.asked == [b"wait", b"next"]


def test_calls_by_the_thousand_on_one_connection_are_all_answered(server):
    # A limit of streams would not make further calls wait: this library refuses some of them.
    with calling(server) as call:
        futures = [call.future(b"%d" % number, timeout=PATIENCE_S) for number in range(1000)]
        for number, future in enumerate(futures):
            assert future.result(PATIENCE_S) == b"/a.B/C %d" % number


def test_messages_may_be_larger_than_the_library_would_allow(server):
    body = b"x" * 5_000_000
    with calling(server) as call:
        assert call(body, timeout=PATIENCE_S) == b"/a.B/C " + body


def test_slow_answer_does_not_hold_up_another(server, surface):
    with calling(server) as call:
        slow = call.future(b"wait", timeout=PATIENCE_S)
        assert surface.entered.wait(PATIENCE_S)
        assert call(b"quick", timeout=PATIENCE_S) == b"/a.B/C quick"
        surface.go.set()
        assert slow.result(PATIENCE_S) == b"/a.B/C wait"


def test_stop_lets_the_answer_in_flight_out(surface):
    server = serving(surface, "127.0.0.1:0", threads=2)
    server.start()
    with calling(server) as call:
        slow = call.future(b"wait", timeout=PATIENCE_S)
        assert surface.entered.wait(PATIENCE_S)
        thread = threading.Thread(target=server.stop, args=(PATIENCE_S,))
        thread.start()
        surface.go.set()
        assert slow.result(PATIENCE_S) == b"/a.B/C wait"
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_stop_does_not_wait_longer_than_its_grace(surface):
    server = serving(surface, "127.0.0.1:0", threads=2)
    server.start()
    with calling(server) as call:
        slow = call.future(b"wait", timeout=PATIENCE_S)
        assert surface.entered.wait(PATIENCE_S)
        server.stop(0.05)
        with pytest.raises(grpc.RpcError):
            slow.result(PATIENCE_S)
    surface.go.set()


def test_port_in_use_is_refused_by_address(surface):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServingError) as caught:
            serving(surface, address, threads=1)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == (
        f"Failed to BuildAndStart gRPC server: cannot listen on {address}"
    )


def test_port_of_another_server_is_not_shared(server, surface):
    with pytest.raises(ServingError):
        serving(surface, f"127.0.0.1:{server.port}", threads=1)


@pytest.mark.parametrize("address", ["127.0.0.1:-1", "127.0.0.1:70000"])
def test_port_that_cannot_exist_is_refused(surface, address):
    with pytest.raises(ServingError, match="cannot listen on"):
        serving(surface, address, threads=1)


def test_surface_is_told_how_long_the_client_will_wait():
    waits = []

    def surface(path, request, call):
        waits.append(call.timeout_s)
        return GrpcAnswer(body=b"ok")

    server = serving(surface, "127.0.0.1:0", threads=1)
    server.start()
    with calling(server) as call:
        call(b"", timeout=PATIENCE_S)
        call(b"")
    server.stop(PATIENCE_S)
    # On its way a deadline becomes a duration and is rounded up, so a little more may arrive.
    assert 0 < waits[0] < 2 * PATIENCE_S
    assert waits[1] is None


def test_unix_socket_answers_beside_or_without_a_port(surface, tmp_path):
    path = tmp_path / "grpc.sock"
    for address in ("127.0.0.1:0", ""):
        server = serving(surface, address, threads=1, socket_path=str(path))
        server.start()
        assert bool(server.port) == bool(address)
        with grpc.insecure_channel(f"unix:{path}") as channel:
            assert channel.unary_unary("/a.B/C")(b"x", timeout=PATIENCE_S) == b"/a.B/C x"
        server.stop(PATIENCE_S)


def test_unix_socket_that_cannot_be_made_is_refused(surface, tmp_path):
    path = tmp_path / "no" / "such" / "folder" / "grpc.sock"
    with pytest.raises(ServingError, match="cannot listen on unix:"):
        serving(surface, "127.0.0.1:0", threads=1, socket_path=str(path))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate for `localhost`, made for this run."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not on PATH")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out",
         "cert.pem"], cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return (folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes()


def test_server_with_a_certificate_speaks_tls_and_nothing_else(surface, certificate):
    key, cert = certificate
    server = serving(surface, "127.0.0.1:0", threads=1, tls=Tls(key, cert, b"", False))
    server.start()
    credentials = grpc.ssl_channel_credentials(root_certificates=cert)
    with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
        assert channel.unary_unary("/a.B/C")(b"x", timeout=PATIENCE_S) == b"/a.B/C x"
    with calling(server) as call, pytest.raises(grpc.RpcError):
        call(b"x", timeout=PATIENCE_S)
    server.stop(PATIENCE_S)


def test_message_of_many_tls_records_arrives_whole(surface, certificate):
    key, cert = certificate
    server = serving(surface, "127.0.0.1:0", threads=1, tls=Tls(key, cert, b"", False))
    server.start()
    body = bytes(range(256)) * 8000
    credentials = grpc.ssl_channel_credentials(root_certificates=cert)
    with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
        for _ in range(5):
            assert channel.unary_unary("/a.B/C")(body, timeout=PATIENCE_S) == b"/a.B/C " + body
    server.stop(PATIENCE_S)


def test_server_that_verifies_clients_refuses_one_without_a_certificate(surface, certificate):
    key, cert = certificate
    server = serving(surface, "127.0.0.1:0", threads=1, tls=Tls(key, cert, cert, True))
    server.start()
    for credentials, served in (
        (grpc.ssl_channel_credentials(cert), False),
        (grpc.ssl_channel_credentials(cert, key, cert), True),
    ):
        with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
            call = channel.unary_unary("/a.B/C")
            if served:
                assert call(b"x", timeout=PATIENCE_S) == b"/a.B/C x"
            else:
                with pytest.raises(grpc.RpcError):
                    call(b"x", timeout=PATIENCE_S)
    server.stop(PATIENCE_S)


def test_certificate_that_is_none_is_refused(surface):
    with pytest.raises(ServingError, match="Failed to BuildAndStart gRPC server"):
        serving(
            surface,
            "127.0.0.1:0",
            threads=1,
            tls=Tls(b"no", b"pem", b"", False),
        )


PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"


@contextmanager
def silent_calls(server, count, *, client="127.0.0.1"):
    """Begin calls that send no message, all on one connection."""

    def never():
        end.wait(2 * PATIENCE_S)
        return iter(())
        yield

    end = threading.Event()
    # A port of one's own would be the library's to choose; the address is what clients go by.
    with grpc.insecure_channel(f"{client}:{server.port}") as channel:
        call = channel.stream_unary(PREDICT)
        calls = [call.future(never()) for _ in range(count)]
        try:
            yield calls
        finally:
            for each in calls:
                each.cancel()
            end.set()


def test_calls_that_never_send_their_message_keep_no_other_from_being_answered(server):
    with silent_calls(server, 20), calling(server, PREDICT) as call:
        for _ in range(5):
            assert call(b"x", timeout=PATIENCE_S).endswith(b" x")


def test_silent_call_gives_way_when_there_are_too_many_of_them():
    unheard, told = Unheard(most=2), []
    streams = {name: object() for name in ("a1", "a2", "b1", "b2", "c1")}
    for name, stream in streams.items():  # the first letter is the client
        evicted = unheard.add(name[0], stream, name)
        if evicted:
            assert streams[evicted[1]] is evicted[0]
            told.append(evicted[1])
    # Whoever has the most loses the one that has waited longest; of two with as many the first.
    assert told == ["a1", "a2", "b1"]
    assert unheard.add("c", streams["c1"], "c1") is None  # it is known
    for name, stream in streams.items():
        unheard.forget(name[0], stream)
    assert unheard._count == 0
    assert unheard._by_client == {}


def test_status_is_told_while_every_prediction_computes(server, surface):
    with calling(server, PREDICT) as predict, calling(server, STATUS) as status:
        slow = [predict.future(b"wait", timeout=PATIENCE_S) for _ in range(20)]
        assert surface.entered.wait(PATIENCE_S)
        for _ in range(5):
            assert status(b"x", timeout=PATIENCE_S).endswith(b" x")
        surface.go.set()
        for each in slow:
            assert each.result(PATIENCE_S)


def test_call_that_is_cancelled_while_it_waits_for_its_turn_is_not_answered(surface):
    lanes = Lanes(1)
    server = GrpcServer(flowing(surface), lanes, Ledger(GIB), Ports("127.0.0.1:0"))
    server.start()
    with calling(server) as call:
        slow = call.future(b"wait", timeout=PATIENCE_S)
        assert surface.entered.wait(PATIENCE_S)
        gone = [call.future(b"gone", timeout=PATIENCE_S) for _ in range(5)]
        wait_until(lambda: lanes.predictions.waiting == 5)
        for each in gone:
            assert each.cancel()
        wait_until(lambda: not lanes.predictions.waiting)  # the news travels
        surface.go.set()
        assert slow.result(PATIENCE_S)
        assert call(b"next", timeout=PATIENCE_S) == b"/a.B/C next"
    server.stop(PATIENCE_S)
    assert surface.asked == [b"wait", b"next"]


@pytest.mark.parametrize("how", ["cancelled", "too late"])
def test_call_that_waits_for_a_processor_until_nobody_wants_it_is_not_begun(surface, how):
    lanes = Lanes(8, processors(1))
    server = GrpcServer(flowing(surface), lanes, Ledger(GIB), Ports("127.0.0.1:0"))
    runner, long = server._shared.runner, CallKind(worked_s=1.0)
    runner.kinds.find = lambda _: long
    server.start()
    with calling(server) as call:
        slow = call.future(b"wait", timeout=PATIENCE_S)
        assert surface.entered.wait(PATIENCE_S)
        timeout_s = 0.3 if how == "too late" else PATIENCE_S
        gone = [call.future(b"gone", timeout=timeout_s) for _ in range(5)]
        wait_until(lambda: lanes.long.waiting == 5)
        for each in gone:
            if how == "cancelled":
                assert each.cancel()
            else:
                assert each.exception(PATIENCE_S).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        time.sleep(0.1)  # the news travels
        surface.go.set()
        assert slow.result(PATIENCE_S)
        assert call(b"next", timeout=PATIENCE_S) == b"/a.B/C next"
    server.stop(PATIENCE_S)
    assert surface.asked == [b"wait", b"next"]
    assert not lanes.long._parties
    assert not lanes.predictions._parties


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_message_arrives_as_it_was_meant(server, compression):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", compression=compression) as channel:
        call = channel.unary_unary("/a.B/C")
        for body in (b"x" * 5000, b"", b"\x1f\x8b not really", b"x" * 3_000_000):
            assert call(body, timeout=PATIENCE_S) == b"/a.B/C " + body


@pytest.mark.parametrize("prefix", [b"\x1f\x8b", b"\x78\x9c", b"\x78\x01"])
def test_message_that_only_begins_like_a_compressed_one_passes_as_it_is(server, prefix):
    with calling(server) as call:
        assert call(prefix + b"abc", timeout=PATIENCE_S) == b"/a.B/C " + prefix + b"abc"


def test_message_that_inflates_beyond_the_limit_is_refused_and_gives_everything_back(surface):
    ledger = Ledger(GIB)
    server = GrpcServer(flowing(surface), Lanes(2), ledger, Ports("127.0.0.1:0"))
    server.start()
    gzip = grpc.Compression.Gzip
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options, gzip) as channel:
        call = channel.unary_unary("/a.B/C")
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(MOST_INFLATED_BYTES + 1), timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(b"next", timeout=PATIENCE_S) == b"/a.B/C next"
    server.stop(PATIENCE_S)
    assert ledger.held_bytes == 0
    assert surface.asked == [b"next"]


def test_message_for_which_there_is_no_room_is_refused_and_others_are_served(surface):
    ledger = Ledger(10_000_000)
    server = GrpcServer(flowing(surface), Lanes(2), ledger, Ports("127.0.0.1:0"))
    server.start()
    with calling(server) as call:
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(9_000_000), timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(call(bytes(1_000_000), timeout=PATIENCE_S)) > 1_000_000
    server.stop(PATIENCE_S)
    assert ledger.held_bytes == 0


def test_stop_loses_no_call_of_clients_that_wait_for_their_answers(surface):
    lost, answered, stop = [], [], threading.Event()

    def client(port):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(PREDICT)
            while not stop.is_set():
                try:
                    answered.append(call(b"x", timeout=PATIENCE_S))
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        lost.append(error)
                    time.sleep(0.01)

    for _ in range(5):
        stop.clear()
        server = serving(surface, "127.0.0.1:0", threads=2)
        server.start()
        threads = [threading.Thread(target=client, args=(server.port,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        before = len(answered)
        deadline = time.monotonic() + PATIENCE_S
        while len(answered) < before + 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        server.stop(PATIENCE_S)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not lost
    assert len(answered) >= 500


# What the arguments of the library say, and who goes too far


class Echo:
    """Answers with the request."""

    def __call__(self, path, request, call):
        return GrpcAnswer(body=request)


@contextmanager
def echoing(options=OPTIONS, surface=None, ledger=None, repeat=None):
    """A server that answers with the request; it is stopped at the end."""
    answering, ports = flowing(surface or Echo()), Ports("127.0.0.1:0")
    server = GrpcServer(answering, Lanes(2), ledger or Ledger(GIB), ports, options, repeat=repeat)
    server.start()
    try:
        yield server
    finally:
        server.stop(0.2)


@contextmanager
def raw(server, *frames):
    """A connection that has sent its preface and these frames."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
        client.sendall(PREFACE + b"".join(frames))
        yield client


def is_hung_up_on(client):
    """Read until the server has closed the connection."""
    client.settimeout(PATIENCE_S)
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def is_well(server):
    with calling(server) as call:
        return call(b"well", timeout=PATIENCE_S) == b"well"


def begun(number, data=b"", flags=0):
    """Frames of a call that has begun, with some of its message."""
    return attackers.begun(number) + (frame(0, flags, number, data) if data else b"")


@pytest.mark.parametrize(
    ("arguments", "attributes"),
    [
        ([], {"most_age_s": math.inf, "keepalive_s": 7200.0, "keepalive_timeout_s": 20.0}),
        ([("grpc.max_connection_age_ms", 2500)], {"most_age_s": 2.5}),
        ([("grpc.max_connection_age_grace_ms", 500)], {"age_grace_s": 0.5}),
        ([("grpc.max_connection_idle_ms", 500)], {"most_idle_s": 0.5}),
        ([("grpc.max_connection_idle_ms", 2**31 - 1)], {"most_idle_s": math.inf}),
        ([("grpc.keepalive_time_ms", 100)], {"keepalive_s": 0.1}),
        ([("grpc.keepalive_timeout_ms", 100)], {"keepalive_timeout_s": 0.1}),
        ([("grpc.unknown", 1), ("grpc.keepalive_time_ms", "x")], {"keepalive_s": 7200.0}),
    ],
)
def test_arguments_of_the_library_are_understood(arguments, attributes):
    options = options_of(arguments)
    assert {name: getattr(options, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    ("argument", "value", "name", "limit"),
    [
        ("grpc.max_receive_message_length", 5, "most_message_bytes", 5),
        ("grpc.max_receive_message_length", -1, "most_message_bytes", 2**31 - 1),
        ("grpc.max_send_message_length", 5, "most_answer_bytes", 5),
        ("grpc.max_send_message_length", -1, "most_answer_bytes", None),
        ("grpc.http2.max_ping_strikes", 0, "most_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10, "ping_interval_s", 0.01),
        ("grpc.http2.min_ping_interval_without_data_ms", 10, "idle_ping_interval_s", 7200.0),
        ("grpc.max_concurrent_streams", 7, "http2", Http2Limits(most_streams=7)),
        ("grpc.max_metadata_size", 7, "http2", Http2Limits(most_header_bytes=7)),
    ],
)
def test_limits_of_the_library_are_understood(argument, value, name, limit):
    assert getattr(options_of([(argument, value)]).limits, name) == limit


def test_message_over_the_given_limit_is_refused():
    with (
        echoing(options_of([("grpc.max_receive_message_length", 10)])) as server,
        calling(server) as call,
    ):
        assert call(b"x" * 10, timeout=PATIENCE_S) == b"x" * 10
        with pytest.raises(grpc.RpcError) as caught:
            call(b"x" * 11, timeout=PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_connection_that_is_old_enough_ends_and_its_client_loses_nothing():
    with (
        echoing(options_of([("grpc.max_connection_age_ms", 100)])) as server,
        calling(server) as call,
    ):
        seen, end_s = set(), time.monotonic() + PATIENCE_S
        while len(seen) < 5:
            assert call(b"x", timeout=PATIENCE_S) == b"x"
            seen |= server._shared.connections
            assert time.monotonic() < end_s


def test_connection_that_is_old_enough_ends_after_its_grace_whatever_it_waits_for(surface):
    arguments = [("grpc.max_connection_age_ms", 50), ("grpc.max_connection_age_grace_ms", 100)]
    with echoing(options_of(arguments), surface) as server, calling(server) as call:
        slow = call.future(b"wait", timeout=PATIENCE_S)
        assert slow.exception(PATIENCE_S).code() is grpc.StatusCode.UNAVAILABLE
        surface.go.set()


def test_connection_without_calls_ends_when_it_is_told_to():
    with echoing(options_of([("grpc.max_connection_idle_ms", 100)])) as server:
        with raw(server, frame(4, 1, 0)) as client:
            assert is_hung_up_on(client)
        assert is_well(server)


def test_client_that_gives_no_sign_of_life_is_hung_up_on():
    arguments = [("grpc.keepalive_time_ms", 50), ("grpc.keepalive_timeout_ms", 1000)]
    with echoing(options_of(arguments)) as server, calling(server) as call:
        assert call(b"x", timeout=PATIENCE_S) == b"x"
        (connection,) = server._shared.connections
        with raw(server, begun(1)) as dead:  # came later, and knows no answer to a ping
            assert is_hung_up_on(dead)
        assert call(b"x", timeout=PATIENCE_S) == b"x"
        assert server._shared.connections == {connection}


def test_client_that_pings_too_often_is_told_to_calm_down():
    with echoing() as server, raw(server, frame(6, 0, 0, b"12345678") * 5) as client:
        answer = b""
        while data := client.recv(1 << 16):
            answer += data
        assert b"too_many_pings" in answer
        assert is_well(server)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 1000,
        PREFACE + b"\xff" * 1000,
        PREFACE + frame(4, 0, 0) * 20_000,
        PREFACE + b"".join(begun(n) + frame(3, 0, n, bytes(4)) for n in range(1, 60_001, 2)),
        PREFACE + frame(1, 0, 1, b"\x83") + frame(9, 0, 1, b"x") * 1000,
    ],
    ids=["http1", "garbage", "frames", "settings", "resets", "continuations"],
)
def test_client_that_breaks_the_protocol_is_hung_up_on_and_others_are_served(sent):
    with echoing() as server:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
            with suppress(ConnectionError):
                client.sendall(sent)
            assert is_well(server)
            assert is_hung_up_on(client)
        wait_until(lambda: not server._shared.connections)
        assert is_well(server)
        assert server._shared.ledger.held_bytes == 0


def test_client_that_wastes_time_rests_with_all_its_connections_and_others_are_served():
    resets = b"".join(begun(n) + frame(3, 0, n, bytes(4)) for n in range(1, 2001, 2))

    def opened(server):
        address = ("127.0.0.1", server.port)
        client = socket.create_connection(address, PATIENCE_S, ("127.0.0.2", 0))
        client.sendall(PREFACE)
        return client

    with echoing() as server, opened(server) as wasteful:
        wasteful.sendall(resets)
        shared = server._shared
        wait_until(lambda: any(each._is_resting for each in shared.connections))
        until_s = shared.rest("127.0.0.2", 0)
        assert until_s - shared.loop.time() <= 2000 * grpc_transport._WASTED_S
        with opened(server) as second:
            assert is_well(server)  # from another address
            for client in (wasteful, second):
                client.sendall(begun(3001, b"\0\0\0\0\1x", 1))
                while not ends_stream_of(client, 3001):
                    pass
            assert shared.loop.time() >= until_s
        wait_until(lambda: not any(each._is_resting for each in shared.connections))
    assert shared.rest("127.0.0.1", 0) <= shared.loop.time()


def test_new_connection_waits_half_a_second_for_the_rest_of_others_of_its_address():
    with echoing() as server:
        shared = server._shared
        owed_s = shared.rest("127.0.0.3", 1_000_000) - shared.loop.time()
        assert owed_s == pytest.approx(200, abs=1)
        assert shared.rest("127.0.0.3", 0) - shared.loop.time() == pytest.approx(0.5, abs=0.1)
        assert shared.rest("127.0.0.3", 1000) - shared.loop.time() > owed_s - 1


def test_connection_that_would_rest_for_long_is_told_to_calm_down_and_closed():
    with echoing() as server:
        server._shared.rest("127.0.0.1", 1_000_000)
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client:
            client.sendall(PREFACE + b"\0\0\0\4\0\0\0\0\0" * 1000)
            assert is_hung_up_on(client)
        assert is_well(server)


def ends_stream_of(client, number):
    """Read on; say whether the last HEADERS of a stream were among it."""
    data = client.recv(1 << 16)
    assert data
    return b"\1\5" + number.to_bytes(4, "big") in data


def brisk(**more):
    return GrpcOptions(patience_s=0.1, **more)


def test_message_that_does_not_come_on_ends_its_call_and_holds_nothing():
    with echoing(brisk()) as server:
        piece = b"\0" + (10**8).to_bytes(4, "big") + bytes(10_000)
        with raw(server, begun(1, piece)) as client, calling(server) as call:
            wait_until(lambda: server._shared.ledger.held_bytes)
            wait_until(lambda: not server._shared.ledger.held_bytes)
            assert call(b"x", timeout=PATIENCE_S) == b"x"
            assert len(server._shared.connections) == 2
            client.close()


def test_call_that_has_sent_nothing_may_take_its_time():
    with echoing(brisk()) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:

        def late():
            time.sleep(0.6)
            yield b"late"

        assert channel.stream_unary("/a.B/C")(late(), timeout=PATIENCE_S) == b"late"


def large(size):
    return lambda path, request, call: GrpcAnswer(body=bytes(size))


@pytest.mark.parametrize("window", [0, 1000])
def test_answer_that_no_window_is_opened_for_is_dropped(window):
    settings = frame(4, 0, 0, b"\0\4" + window.to_bytes(4, "big"))
    with (
        echoing(brisk(), large(1_000_000)) as server,
        raw(server, settings, begun(1, b"\0\0\0\0\0", 1)),
        calling(server) as call,
    ):
        shared = server._shared
        wait_until(lambda: any(
            each._protocol and each._protocol.unsent_bytes() for each in shared.connections
        ))  # fmt: skip
        assert len(call(b"", timeout=PATIENCE_S)) == 1_000_000
        wait_until(lambda: not any(
            each._protocol and each._protocol.streams for each in shared.connections
        ))  # fmt: skip


def test_client_that_reads_nothing_is_hung_up_on():
    windows = frame(4, 0, 0, b"\0\4" + (2**31 - 1).to_bytes(4, "big")) + frame(
        8, 0, 0, (2**31 - 1 - 65535).to_bytes(4, "big")
    )
    with (
        echoing(brisk(), large(30_000_000)) as server,
        raw(server, windows, begun(1, b"\0\0\0\0\0", 1)),
    ):
        wait_until(lambda: server._shared.connections)
        (connection,) = server._shared.connections
        wait_until(lambda: connection._is_full)
        assert connection._transport.get_write_buffer_size() < 2_000_000
        wait_until(lambda: not server._shared.connections)


def ends_stream(data):
    """Say whether one of these frames of an answer is the stream's last."""
    while len(data) >= 9:
        if data[3] == 1 and data[4] & 1:
            return True
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return False


def test_deadline_passes_while_it_computes_and_the_client_is_told(surface):
    with echoing(surface=surface) as server:
        timeout = b"\x00\x0cgrpc-timeout\x03" + b"50m"
        head = begun(1)
        head = (int.from_bytes(head[:3], "big") + len(timeout)).to_bytes(3, "big") + head[3:]
        with raw(server, head, timeout, frame(0, 1, 1, b"\0\0\0\0\4wait")) as client:
            assert surface.entered.wait(PATIENCE_S)
            answer = b""
            while not ends_stream(answer):
                data = client.recv(1 << 16)
                assert data
                answer += data
            wait_until(lambda: not any(
                each._protocol.streams for each in server._shared.connections
            ))  # fmt: skip
        surface.go.set()


class Health:
    """Answers health checks as the surface does."""

    def __call__(self, path, request, call):
        assert path == "/grpc.health.v1.Health/Check"
        if request == b"x":
            return GrpcAnswer(Code.NOT_FOUND, "service name unknown")
        if request == b"off":
            return GrpcAnswer(Code.UNIMPLEMENTED)
        return GrpcAnswer(body=b"\x08\x01")


@pytest.mark.parametrize(("request_", "first"), [(b"", b"\x08\x01"), (b"x", b"\x08\x03")])
def test_health_is_watched_until_the_server_ends(request_, first):
    with (
        echoing(surface=Health()) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        answers = channel.unary_stream("/grpc.health.v1.Health/Watch")(request_)
        assert next(answers) == first
        stopping = threading.Thread(target=server.stop, args=(PATIENCE_S,))
        stopping.start()
        assert next(answers) == b"\x08\x02"
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        stopping.join(PATIENCE_S)


def test_health_is_not_watched_where_it_is_not_offered():
    with (
        echoing(surface=Health()) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        answers = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"off")
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_quick_calls_are_made_on_the_spot_once_they_are_known():
    threads = []

    def quick(path, request, call):
        threads.append(threading.current_thread().name)
        return GrpcAnswer(body=b"")

    with echoing(surface=quick) as server, calling(server, PREDICT) as call:
        for _ in range(200):
            call(b"x", timeout=PATIENCE_S)
        assert threads[0] == "grpc_predict"
        assert threads[-1] == "front"


class InRows:
    """Answers with the request, in rows of those that begin alike; to what begins with `?` not.

    Attributes:
        rows: what it was asked at once.
    """

    def __init__(self):
        self.rows = []

    def __call__(self, asked):
        requests = [bytes(request) for request, _ in asked]
        self.rows.append(requests)
        first = requests[0][:1]
        alike = takewhile(lambda each: each[:1] == first != b"?", requests)
        return [GrpcAnswer(body=each) for each in alike]


HEADERS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", PREDICT.encode()),
    (b":authority", b"a"),
    (b"content-type", b"application/grpc"),
]


def answers_at_once(server, messages, *, cancelled=(), late=()):
    """Make calls in one piece; return their messages and codes in the order of the calls."""
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection({})
    calls, bodies, codes = [], {}, {}
    for index, message in enumerate(messages):
        timeout = [(b"grpc-timeout", b"1n")] if index in late else []
        calls.append(client.send_request([*HEADERS, *timeout]))
        content = b"\0" + len(message).to_bytes(4, "big") + message
        client.send_data(calls[-1], content, end_stream=True)
    sent = client.data_to_send()
    for index in cancelled:
        client.reset_stream(calls[index], ngh2.ErrorCode.CANCEL)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
        connection.settimeout(PATIENCE_S)
        connection.sendall(sent + client.data_to_send())
        while len([code for code in codes.values() if code]) < len(calls) - len(cancelled):
            client.receive_data(connection.recv(1 << 16))
            for event in client.events():
                if isinstance(event, ngh2.DataReceived):
                    bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                elif isinstance(event, ngh2.TrailersReceived | ngh2.ResponseReceived):
                    codes[event.stream_id] = dict(event.headers).get(b"grpc-status")
    return [(bodies.get(each, b"")[5:], codes.get(each)) for each in calls]


def test_calls_that_arrive_together_are_made_in_rows_and_each_is_answered():
    repeat = InRows()
    with echoing(repeat=repeat) as server:
        with calling(server, PREDICT) as call:
            for message in [b"a0", b"long"] * 100:
                assert call(message, timeout=PATIENCE_S) == message
        messages = [b"a1", b"a2", b"b1", b"long", b"?0", b"a3", b"a4", b"a5", b"a6", b"a7"]
        repeat.rows.clear()
        found = answers_at_once(server, messages, cancelled=[6], late=[8])
    ok, too_late = b"0", b"%d" % Code.DEADLINE_EXCEEDED
    expected = [(message, ok) for message in messages]
    expected[6], expected[8] = (b"", None), (b"", too_late)
    assert found == expected
    # What is as long is asked for together, but for those that nobody waits for any more.
    assert repeat.rows == [
        [b"a1", b"a2", b"b1"], [b"b1"], [b"long"], [b"?0", b"a3", b"a5"], [b"a3", b"a5"], [b"a7"]
    ]  # fmt: skip


def test_large_messages_that_have_arrived_are_read_before_calls_are_made():
    repeat, message = InRows(), b"a" + bytes(300_000)  # more than is read at once
    with echoing(repeat=repeat) as server, calling(server, PREDICT) as call:

        def are_made_in_a_row():
            server._loop.loop.call_soon_threadsafe(time.sleep, 0.1)
            waiting = [call.future(message, timeout=PATIENCE_S) for _ in range(8)]
            assert all(each.result() == message for each in waiting)
            return any(len(row) > 1 for row in repeat.rows)

        for _ in range(100):
            assert call(message, timeout=PATIENCE_S) == message
        wait_until(are_made_in_a_row)


@pytest.mark.parametrize("method", [RELOAD, STATUS])
def test_calls_that_may_wait_for_others_never_keep_the_loop(method):
    threads = set()

    def quick(path, request, call):
        threads.add(threading.current_thread().name)
        return GrpcAnswer(body=b"")

    with echoing(surface=quick) as server, calling(server, method) as call:
        for _ in range(50):
            call(b"x", timeout=PATIENCE_S)
    assert len(threads) == 1
    assert "front" not in threads


def test_kind_that_becomes_slow_holds_up_others_for_one_call_only():
    slow, go, begun_slowly, quick = threading.Event(), threading.Event(), [], deque(maxlen=5)

    def surface(path, request, call):
        if slow.is_set() and request == b"x":
            begun_slowly.append(path)
            if len(begun_slowly) > 1:
                assert go.wait(PATIENCE_S)
            else:
                time.sleep(0.2)
        else:
            quick.append(threading.current_thread().name)
        return GrpcAnswer(body=b"")

    def is_made_on_the_spot():
        call(b"x", timeout=PATIENCE_S)
        return list(quick) == ["front"] * 5

    with echoing(surface=surface) as server, calling(server, PREDICT) as call:
        wait_until(is_made_on_the_spot)
        slow.set()
        waiting = [call.future(b"x", timeout=PATIENCE_S) for _ in range(10)]
        wait_until(lambda: len(begun_slowly) > 1)
        with calling(server, STATUS) as status:
            status(b"y", timeout=PATIENCE_S / 2)  # while the second one goes on
        go.set()
        for each in waiting:
            each.result(PATIENCE_S)


def test_connections_beyond_the_limit_of_both_protocols_wait_for_room(monkeypatch):
    monkeypatch.setattr("tfserve_kit.embedded.front.most_connections", lambda: 2)
    front, ledger = EventLoop(), Ledger(GIB)
    ping = frame(6, 0, 0, b"12345678")
    grpc_server = GrpcServer(flowing(Echo()), Lanes(1), ledger, Ports("127.0.0.1:0"), loop=front)
    rest_server = HttpServer(
        flowing(lambda *asked: RestAnswer(200)), ledger, ("127.0.0.1", 0), loop=front
    )
    for server in (grpc_server, rest_server):
        server.start()
    rest = socket.create_connection(("127.0.0.1", rest_server.port), PATIENCE_S)
    with raw(grpc_server, ping) as first, rest as second:
        second.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert first.recv(1) and second.recv(1)  # both are taken up, and stay
        with raw(grpc_server, ping) as third:
            third.settimeout(0.3)
            with pytest.raises(TimeoutError):
                third.recv(1)
            first.close()
            third.settimeout(PATIENCE_S)
            assert third.recv(1)
    for server in (grpc_server, rest_server):
        server.stop(PATIENCE_S)
    front.stop()


def test_asyncio_client_is_answered_too():
    async def main(port):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(PREDICT)
            return await asyncio.gather(*(call(b"%d" % n, timeout=PATIENCE_S) for n in range(200)))

    with echoing() as server:
        assert asyncio.run(main(server.port)) == [b"%d" % n for n in range(200)]


def test_asyncio_alone_does_where_there_is_no_uvloop(monkeypatch):
    monkeypatch.setattr("tfserve_kit.embedded.front.new_event_loop", asyncio.new_event_loop)
    with echoing() as server, calling(server) as call:
        assert type(server._loop.loop).__module__.startswith("asyncio")
        body = bytes(3_000_000)
        for _ in range(20):
            assert call(b"x", timeout=PATIENCE_S) == b"x"
        assert call(body, timeout=PATIENCE_S) == body
