"""gRPC over real sockets, with a surface that is made up."""

import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager

import grpc
import pytest

from tfserve_kit.embedded.grpc_surface import Answer
from tfserve_kit.embedded.grpc_transport import GrpcTransport
from tfserve_kit.embedded.settings import Tls
from tfserve_kit.embedded.status import Code, ServingError

PATIENCE_S = 10.0


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
        self.asked.append(request)
        if request == b"wait":
            self.entered.set()
            assert self.go.wait(PATIENCE_S)
        if request.decode("latin-1") in Code.__members__:
            return Answer(Code[request.decode()], f"details of {request.decode()} é")
        return Answer(body=path.encode() + b" " + request)


@pytest.fixture
def surface():
    surface = EchoSurface()
    yield surface
    surface.go.set()


@pytest.fixture
def server(surface):
    transport = GrpcTransport(surface, "127.0.0.1:0", threads=2)
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
        ("x" * 7000, "x" * 7000),
        ("x" * 100_000, "x" * 7000),
        ("é" * 100_000, "é" * 1166),
        ("%" * 100_000, "%" * 2333),
        ("a\n\0% é", "a\n\0% é"),
        ("a\udcffb", "a?b"),
    ],
    ids=["longest", "longer", "not-ascii", "percent", "controls", "surrogate"],
)
def test_details_are_cut_to_what_a_client_takes(details, arrives):
    server = GrpcTransport(
        lambda path, request, call: Answer(Code.NOT_FOUND, details), "127.0.0.1:0", threads=1
    )
    server.start()
    with calling(server) as call, pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=PATIENCE_S)
    server.stop(PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    # The character that was cut in two may leave a trace.
    assert caught.value.details()[: len(arrives)] == arrives
    assert len(caught.value.details()) <= len(arrives) + 5


def test_call_whose_client_has_gone_before_its_turn_is_not_answered(surface):
    server = GrpcTransport(surface, "127.0.0.1:0", threads=1)
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
    server = GrpcTransport(surface, "127.0.0.1:0", threads=2)
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
    server = GrpcTransport(surface, "127.0.0.1:0", threads=2)
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
            GrpcTransport(surface, address, threads=1)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == (
        f"Failed to BuildAndStart gRPC server: cannot listen on {address}"
    )


def test_port_of_another_server_is_not_shared(server, surface):
    with pytest.raises(ServingError):
        GrpcTransport(surface, f"127.0.0.1:{server.port}", threads=1)


@pytest.mark.parametrize("address", ["127.0.0.1:-1", "127.0.0.1:70000"])
def test_port_that_cannot_exist_is_refused(surface, address):
    with pytest.raises(ServingError, match="cannot listen on"):
        GrpcTransport(surface, address, threads=1)


def test_surface_is_told_how_long_the_client_will_wait():
    waits = []

    def surface(path, request, call):
        waits.append(call.timeout_s)
        return Answer(body=b"ok")

    server = GrpcTransport(surface, "127.0.0.1:0", threads=1)
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
        server = GrpcTransport(surface, address, threads=1, socket_path=str(path))
        server.start()
        assert bool(server.port) == bool(address)
        with grpc.insecure_channel(f"unix:{path}") as channel:
            assert channel.unary_unary("/a.B/C")(b"x", timeout=PATIENCE_S) == b"/a.B/C x"
        server.stop(PATIENCE_S)


def test_unix_socket_that_cannot_be_made_is_refused(surface, tmp_path):
    path = tmp_path / "no" / "such" / "folder" / "grpc.sock"
    with pytest.raises(ServingError, match="cannot listen on unix:"):
        GrpcTransport(surface, "127.0.0.1:0", threads=1, socket_path=str(path))


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
    server = GrpcTransport(surface, "127.0.0.1:0", threads=1, tls=Tls(key, cert, b"", False))
    server.start()
    credentials = grpc.ssl_channel_credentials(root_certificates=cert)
    with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
        assert channel.unary_unary("/a.B/C")(b"x", timeout=PATIENCE_S) == b"/a.B/C x"
    with calling(server) as call, pytest.raises(grpc.RpcError):
        call(b"x", timeout=PATIENCE_S)
    server.stop(PATIENCE_S)


def test_server_that_verifies_clients_refuses_one_without_a_certificate(surface, certificate):
    key, cert = certificate
    server = GrpcTransport(surface, "127.0.0.1:0", threads=1, tls=Tls(key, cert, cert, True))
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
        GrpcTransport(surface, "127.0.0.1:0", threads=1, tls=Tls(b"no", b"pem", b"", False))
