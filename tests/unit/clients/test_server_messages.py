"""What the words of failures say: of servers, proxies, TLS and other protocols."""

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import grpc
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.certificates import Authority
from tfserve_kit.clients import addresses, connect, connect_async, server_messages
from tfserve_kit.clients.addresses import Address
from tfserve_kit.clients.grpc import GrpcProtocol
from tfserve_kit.clients.protocol import Reply
from tfserve_kit.clients.results import Target
from tfserve_kit.errors import (
    InvalidRequest,
    RequestError,
    ServerFault,
    ServerUnreachable,
)

PAGE = b"<!DOCTYPE html><html><head><title>%b</title></head><body>nginx</body></html>"


class Pages(BaseHTTPRequestHandler):
    """Answers /STATUS/... with a web page."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status = self.path.split("/")[1]
        body = PAGE % (b"502 Bad Gateway" if status == "502" else b"Log  in &amp; go")
        self.send_response(int(status) if status.isdigit() else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("ca"))
    return authority.issue("server", alternative="DNS:localhost")


@pytest.fixture(scope="module")
def ports(pair):
    """Ports by what is behind them: grpc, grpcs, http, https."""
    found, ends = {}, []
    for name in ("grpc", "grpcs"):
        server = grpc.server(ThreadPoolExecutor(2))
        if name == "grpc":
            found[name] = server.add_insecure_port("localhost:0")
        else:
            secret = (pair.key.read_bytes(), pair.cert.read_bytes())
            found[name] = server.add_secure_port(
                "localhost:0", grpc.ssl_server_credentials([secret])
            )
        server.start()
        ends.append(lambda server=server: server.stop(None))
    for name in ("http", "https"):
        web = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        if name == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pair.cert, pair.key)
            web.socket = context.wrap_socket(web.socket, server_side=True)
        web.handle_error = lambda *_: None
        Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        found[name] = web.server_port
        ends += [web.shutdown, web.server_close]
    yield found
    for end in ends:
        end()


def failure(url, **options):
    """Return the error of asking a server, which is the same with asyncio."""
    with connect(url, retries=0, **options) as client, pytest.raises(RequestError) as caught:
        client.status("m", timeout_s=10)

    async def twin():
        async with connect_async(url, retries=0, **options) as client:
            await client.status("m", timeout_s=10)

    with pytest.raises(type(caught.value)):
        asyncio.run(twin())
    return caught.value


@pytest.mark.parametrize(
    ("scheme", "behind", "said", "remedy"),
    [
        ("http", "grpc", "it speaks HTTP/2, as gRPC does", "write grpc://localhost:{port}, or"),
        ("grpc", "http", "answers with HTTP/1.1", "write http://localhost:{port}, or"),
        ("https", "http", "the server does not use TLS", "write http://localhost:{port}"),
        ("https", "grpc", "the server does not use TLS", "or grpc://localhost:{port}"),
        ("grpcs", "grpc", "the server does not use TLS", "write grpc://localhost:{port}"),
        ("grpcs", "http", "the server does not use TLS", "or http://localhost:{port}"),
        ("grpcs", "https", "speaks TLS, but not gRPC", "write https://localhost:{port}"),
        ("grpc", "grpcs", "it closes the connection", "write grpcs://localhost:{port}"),
        ("grpc", "https", "it closes the connection", "write grpcs://localhost:{port}"),
        ("http", "https", "it closes the connection", "write https://localhost:{port}"),
    ],
)
def test_other_protocol_is_named_and_the_right_address(ports, pair, scheme, behind, said, remedy):
    options = {"ca_file": pair.cert} if scheme in {"https", "grpcs"} else {}
    error = failure(f"{scheme}://localhost:{ports[behind]}", **options)
    assert isinstance(error, ServerUnreachable)
    assert said in error.message
    assert remedy.format(port=ports[behind]) in error.remedy


@pytest.mark.parametrize("behind", ["grpc", "grpcs", "http", "https"])
@pytest.mark.parametrize("scheme", ["grpc", "grpcs", "http", "https"])
def test_what_answers_is_found_out_by_asking(ports, scheme, behind):
    found = addresses.other_protocol(Address(f"{scheme}://localhost:{ports[behind]}/x"))
    if scheme == behind:
        assert found is None
    else:
        assert found[1] == f"write {behind}://localhost:{ports[behind]}"
        named = {"grpc": "gRPC", "grpcs": "gRPC with TLS", "http": "HTTP", "https": "HTTP with TLS"}
        assert found[0] == f"that port speaks {named[behind]}, not {named[scheme]}"


def test_nothing_is_found_where_nobody_listens_and_where_nobody_speaks():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert addresses.other_protocol(Address(f"grpc://127.0.0.1:{port}")) is None
    for url in (f"grpc://127.0.0.1:{port}", "unix:/x", "http://h"):
        assert addresses.other_protocol(Address(url)) is None


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_certificate_that_is_not_trusted_or_of_another_name_is_told(ports, pair, scheme):
    port = ports[scheme]
    assert "--ca-file" in failure(f"{scheme}://localhost:{port}").remedy
    other = failure(f"{scheme}://127.0.0.1:{port}", ca_file=pair.cert)
    assert "is for another name" in other.message and "--server-name" in other.remedy
    named = failure(f"{scheme}://127.0.0.1:{port}", ca_file=pair.cert, server_name="localhost")
    assert "certificate" not in named.message


@pytest.mark.parametrize(
    ("status", "kind", "said", "remedy"),
    [
        ("200", ServerFault, "not answer with JSON but with a web page titled 'Log in & go'",
         "check the address"),
        ("302", ServerFault, "a web page titled 'Log in & go' (HTTP 302)", "redirects"),
        ("401", InvalidRequest, "(HTTP 401)", "--header NAME"),
        ("403", InvalidRequest, "(HTTP 403)", "--header NAME"),
        ("404", ServerFault, "(HTTP 404)", "a path before /v1"),
        ("413", InvalidRequest, "(HTTP 413)", "fewer rows"),
        ("502", ServerFault, "a web page titled '502 Bad Gateway'", "check the address"),
    ],
)  # fmt: skip
def test_page_of_a_proxy_is_called_a_page(ports, status, kind, said, remedy):
    error = failure(f"http://localhost:{ports['http']}/{status}")
    assert type(error) is kind
    assert said in error.message and "<html" not in error.message
    assert remedy in error.remedy


def http2_proxy(status):
    """A proxy that answers each call with a web page over HTTP/2: its port."""
    door = socket.create_server(("127.0.0.1", 0))
    block = hpack.Encoder().encode([(":status", status), ("content-type", "text/html")])

    def frame(kind, flags, stream, payload=b""):
        return (
            len(payload).to_bytes(3, "big")
            + bytes((kind, flags))
            + stream.to_bytes(4, "big")
            + payload
        )

    def serve():
        with door, door.accept()[0] as connection, connection.makefile("rb") as stream:
            stream.read(24)
            connection.sendall(frame(4, 0, 0))
            while head := stream.read(9):
                stream.read(int.from_bytes(head[:3], "big"))
                number = int.from_bytes(head[5:], "big")
                if head[3] == 4 and not head[4]:
                    connection.sendall(frame(4, 1, 0))
                if head[3] == 1:
                    connection.sendall(frame(1, 4, number, block) + frame(0, 1, number, PAGE))

    Thread(target=serve, daemon=True).start()
    return door.getsockname()[1]


@pytest.mark.parametrize(
    ("status", "kind", "said", "remedy"),
    [
        ("502", ServerUnreachable, "the server behind it does not", "the proxy"),
        ("401", InvalidRequest, "status: 401", "--header NAME"),
        ("403", InvalidRequest, "status: 403", "--header NAME"),
        ("404", InvalidRequest, "not with gRPC", "address of gRPC"),
        ("302", ServerFault, "redirects", "--header NAME"),
        ("413", ServerFault, "refuses requests this large", "fewer rows"),
        ("200", ServerUnreachable, "is not gRPC", "address of gRPC"),
    ],
)
def test_page_of_a_proxy_for_grpc_is_told_as_such(status, kind, said, remedy):
    url = f"grpc://127.0.0.1:{http2_proxy(status)}"
    with connect(url, retries=0) as client, pytest.raises(RequestError) as caught:
        client.status("m", timeout_s=10)
    assert type(caught.value) is kind
    assert said in caught.value.message and remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("words", "what", "remedy"),
    [
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to "
         "connect to remote host: Connection refused", "nothing listens on that port", "tfkit ps"),
        ("DNS resolution failed for h:1: C-ares status", "unknown host", "host in --url"),
        ("[Errno -2] Name or service not known", "unknown host", "host in --url"),
        ("connect timed out", "nothing answers in time", "firewalls"),
        ("[Errno 113] No route to host", "no network leads there", "firewalls"),
    ],
)  # fmt: skip
def test_failed_connection_is_told_by_its_cause_and_without_the_system_s_words(words, what, remedy):
    error = server_messages.unreachable("grpc://h:1", words)
    assert error.message == f"no model server answers at grpc://h:1: {what}"
    assert remedy in error.remedy


def test_words_of_a_failed_connection_that_nobody_knows_are_shown():
    error = server_messages.unreachable("http://h:1", "a strange thing")
    assert error.message.endswith(": a strange thing")


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_type_that_rest_cannot_hold_is_sent_by_grpc(name):
    words = f"Conversion of JSON Value: 0.5 to type: {name}"
    assert server_messages.remedy(words) == (
        f"the server's REST API takes no inputs of type {name}: send it over gRPC: --protocol "
        "grpc, or --url grpc://HOST:PORT"
    )


def test_model_that_is_not_there_is_told_with_the_options_and_the_commands_that_list():
    reply = Reply(False, b"", "NOT_FOUND", "Servable not found for request: Latest(m)")
    error = GrpcProtocol("grpc://h:1").error(reply, Target("m"), 1.0)
    assert "the server has no such model, version or label: Servable not found" in error.message
    assert all(
        each in error.remedy for each in ("--model", "`tfkit ps`", "`tfkit status", "configuration")
    )


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
def test_refusal_for_want_of_a_header_says_how_to_send_one(code):
    error = GrpcProtocol("grpc://h:1").error(Reply(False, b"", code, "who?"), Target("m"), 1.0)
    assert isinstance(error, InvalidRequest) and "--header" in error.remedy


def test_words_of_a_model_are_not_taken_for_those_of_a_connection():
    reply = Reply(False, b"", "INTERNAL", "Socket closed by op")
    error = GrpcProtocol("grpc://h:1").error(reply, Target("m"), 1.0)
    assert "TLS" not in error.remedy


@given(st.binary(max_size=200), st.text(max_size=200))
def test_any_words_and_pages_can_be_looked_at(body, text):
    server_messages.page(body)
    server_messages.page(b"<html>" + body)
    for scheme in ("grpc", "grpcs", "http", "https"):
        server_messages.explained(f"{scheme}://h:1", text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("Task size 5 is larger than maximum input batch size 2 [[{{node x}}]]", 2),
        ("Task size 5 is larger than maximum batch size 12", 12),
        ("Task size 5 is larger than maximum input batch size 0", None),
        ("Task size is large", None),
        ("", None),
    ],
)
def test_batch_limit_is_found_in_the_words(text, limit):
    assert server_messages.batch_limit(text) == limit


@pytest.mark.parametrize(("limit", "rows"), [(1, "send one row"), (12, "send at most 12 rows")])
def test_remedy_for_too_many_rows_names_the_limit(limit, rows):
    text = f"Task size 20 is larger than maximum input batch size {limit}"
    assert server_messages.remedy(text).startswith(rows)
    assert server_messages.remedy("Task size") is None


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("Server Threadpool Exhausted", "grpc_max_threads"),
        (
            "The batch scheduling queue to which this task was submitted is full; currently 10",
            "max_enqueued_batches",
        ),
        ("The batching queue to which this task was submitted is full", "num_batch_threads"),
        ("GOAWAY received; Error code: 11; Debug Text: too_many_pings", "keepalive"),
    ],
)
def test_refusal_of_a_full_server_names_the_flag_that_helps(text, flag):
    assert flag in server_messages.remedy(text)
    reply = Reply(False, b"", "RESOURCE_EXHAUSTED", text)
    assert flag in GrpcProtocol("grpc://h:1").error(reply, Target("m"), 1.0).remedy


def test_other_words_of_servers():
    full = "The batch scheduling queue to which this task was submitted is full; currently 1"
    assert server_messages.is_full_queue(full)
    assert server_messages.is_full_queue("Run() timeout exceeded while waiting in batching queue")
    assert not server_messages.is_full_queue("connection refused")
    assert server_messages.is_message_too_large(
        "CLIENT: Received message larger than max (5 vs. 4)"
    )
    assert not server_messages.is_message_too_large("out of memory")
