"""Options of a client, and the headers that callers add."""

import asyncio
import base64
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfserve_kit import protos
from tfserve_kit.clients import connect, connect_async
from tfserve_kit.clients.options import OptionNames, Options, for_grpc, for_http, read_pem
from tfserve_kit.errors import UsageError

STATUS = protos.message_class("GetModelStatusResponse")(
    model_version_status=[{"version": 1, "state": "AVAILABLE"}]
)


SECRET = "s3cret-value"


class TestWhatCanBeSent:
    def test_names_of_metadata_become_lower_case(self):
        assert for_grpc({"Authorization": "Bearer x"}) == (("authorization", "Bearer x"),)

    def test_binary_values_are_bytes_over_grpc_and_base64_over_http(self):
        assert for_grpc({"trace-bin": b"\x00\xff"}) == (("trace-bin", b"\x00\xff"),)
        assert for_grpc({"trace-bin": "AP8"}) == (("trace-bin", b"\x00\xff"),)
        assert for_http({"trace-bin": b"\x00\xff"}) == {"trace-bin": "AP8="}

    @given(st.binary(max_size=40))
    def test_base64_of_binary_values_is_read_with_and_without_padding(self, value):
        text = base64.b64encode(value).decode()
        for each in (text, text.rstrip("=")):
            assert for_grpc({"x-bin": each}) == (("x-bin", value),)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("x y", SECRET), ("", SECRET), ("x:", SECRET), (":path", SECRET), ("x\n", SECRET),
            ("ümlaut", SECRET), ("x", f"{SECRET}\r\nHost: y"), ("x", f"{SECRET}\0"),
            ("x", f"{SECRET} ☃"), ("x", 7), (7, SECRET),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("form", [for_http, for_grpc])
    def test_what_cannot_be_sent_is_refused_by_name_and_no_value_is_told(self, form, name, value):
        with pytest.raises(UsageError) as caught:
            form({name: value})
        assert repr(name) in str(caught.value)
        assert SECRET not in str(caught.value)
        assert caught.value.__context__ is None

    @pytest.mark.parametrize(
        ("form", "name"),
        [
            (for_http, "Content-Length"), (for_http, "transfer-encoding"), (for_grpc, "te"),
            (for_grpc, "grpc-timeout"), (for_grpc, "Content-Type"), (for_grpc, "Host"),
        ],
    )  # fmt: skip
    def test_names_of_the_protocol_are_refused(self, form, name):
        with pytest.raises(UsageError, match="is set by the protocol"):
            form({name: "x"})

    @pytest.mark.parametrize("value", ["no base64!", "A"])
    def test_text_that_is_no_base64_is_refused_where_bytes_are_wanted(self, value):
        with pytest.raises(UsageError, match="is not valid base64") as caught:
            for_grpc({"x-bin": value})
        assert caught.value.__suppress_context__

    @given(st.text(), st.text())
    def test_nothing_that_is_accepted_can_begin_a_line(self, name, value):
        try:
            found = for_http({name: value})
        except UsageError:
            return
        assert not set("\r\n\0") & set("".join([*found, *found.values()]))


@contextmanager
def grpc_server():
    """A server that answers GetModelStatus, and what metadata it saw."""
    seen = []

    class Routes(grpc.GenericRpcHandler):
        def service(self, details):
            seen.append(dict(details.invocation_metadata))
            return grpc.unary_unary_rpc_method_handler(lambda *_: STATUS.SerializeToString())

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Routes()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}", seen
    server.stop(None)


@contextmanager
def rest_server():
    """The same over REST; names in lower case."""
    seen = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append({name.lower(): value for name, value in self.headers.items()})
            body = b'{"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


@pytest.fixture(params=[grpc_server, rest_server], ids=["grpc", "rest"])
def server(request):
    with request.param() as found:
        yield found


def test_headers_of_a_connection_and_of_a_call_arrive_and_those_of_the_call_win(server):
    url, seen = server
    with connect(url, headers={"X-Team": "a", "Authorization": "Bearer 1"}) as client:
        client.status("m")
        client.status("m", headers={"authorization": "Bearer 2", "x-more": "b"})
        client.status("m")
    names = ("x-team", "authorization", "x-more")
    assert [[each.get(name) for name in names] for each in seen] == [
        ["a", "Bearer 1", None], ["a", "Bearer 2", "b"], ["a", "Bearer 1", None],
    ]  # fmt: skip
    assert all(each["user-agent"].startswith("tfkit/") for each in seen)


def test_headers_of_a_call_arrive_with_asyncio(server):
    url, seen = server

    async def ask():
        async with connect_async(url, headers={"x-team": "a"}) as client:
            await client.status("m", headers={"x-more": "b"})

    asyncio.run(ask())
    assert (seen[0]["x-team"], seen[0]["x-more"]) == ("a", "b")


def test_header_of_a_call_that_cannot_be_sent_is_refused_before_anything_is_sent(server):
    url, seen = server
    with connect(url) as client, pytest.raises(UsageError, match="x y"):
        client.status("m", headers={"x y": SECRET})
    assert not seen


def test_header_of_a_connection_that_cannot_be_sent_is_refused_at_once(server):
    url, _ = server
    with pytest.raises(UsageError, match="x y"):
        connect(url, headers={"x y": SECRET})


@pytest.mark.parametrize(
    "wrong",
    [
        {"retries": -1}, {"retry_share": 1.5}, {"retry_share": -0.1}, {"hedge_after_s": 0},
        {"hedge_after_s": math.nan},
        {"max_answer_bytes": 0}, {"max_answer_bytes": 1 << 31},
        {"cert_file": "a"}, {"key_file": "a"},
        {"hedge_after_s": 1, "idempotent": False},
    ],
)  # fmt: skip
def test_option_out_of_range_is_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Options(**wrong)


def test_options_have_the_same_names_in_both_places():
    assert list(OptionNames.__annotations__) == list(Options.__slots__)
    assert {name: Options.__annotations__[name] for name in Options.__slots__} == (
        OptionNames.__annotations__
    )


def test_headers_are_not_shown():
    assert "secret" not in repr(Options(headers={"authorization": "secret"}))


def test_file_that_cannot_be_read_is_named(tmp_path):
    assert read_pem(None) is None
    (tmp_path / "a.pem").write_bytes(b"pem")
    assert read_pem(tmp_path / "a.pem") == b"pem"
    with pytest.raises(UsageError, match=r"no\.pem"):
        read_pem(tmp_path / "no.pem")
