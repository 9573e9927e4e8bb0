"""Requests say which span they belong to; a server that reads them by OpenTelemetry agrees."""

import asyncio
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import tfserve_kit
from tests.ports import free_port
from tfserve_kit.errors import RequestError

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class GrpcRecorder(grpc.GenericRpcHandler):
    """Keeps the metadata of every call, and refuses it."""

    def __init__(self):
        self.seen = []

    def service(self, details):
        self.seen.append(dict(details.invocation_metadata))


@pytest.fixture
def grpc_server():
    recorder = GrpcRecorder()
    server = grpc.server(ThreadPoolExecutor(2), handlers=(recorder,))
    port = server.add_insecure_port(f"127.0.0.1:{free_port()}")
    server.start()
    yield f"grpc://127.0.0.1:{port}", recorder.seen
    server.stop(None).wait()


@pytest.fixture
def rest_server():
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append({name.lower(): value for name, value in self.headers.items()})
            body = json.dumps({"error": "no"}).encode()
            self.send_response(404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["grpc_server", "rest_server"])
def server(request):
    """A URL, and the headers of each request that came there."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def span():
    """A current span, as a program that traces begins it."""
    with TracerProvider().get_tracer("test").start_as_current_span("work") as span:
        yield span.get_span_context()


def ask(url, **options):
    with tfserve_kit.connect(url, retries=0) as client, suppress(RequestError):
        client.status("digits", **options)


def received(headers):
    """Return the span that a server's OpenTelemetry reads out of the headers."""
    context = TraceContextTextMapPropagator().extract(headers)
    return trace.get_current_span(context).get_span_context()


def test_a_request_belongs_to_the_current_span(server, span):
    url, seen = server
    ask(url)
    (headers,) = seen
    assert received(headers).trace_id == span.trace_id
    assert received(headers).span_id == span.span_id


def test_so_does_one_that_is_awaited(server, span):
    url, seen = server

    async def work():
        async with tfserve_kit.connect_async(url, retries=0) as client:
            with suppress(RequestError):
                await client.status("digits")

    asyncio.run(work())
    (headers,) = seen
    assert received(headers).span_id == span.span_id


def test_headers_of_a_call_win(server, span):
    url, seen = server
    ask(url, headers={"Traceparent": GIVEN, "x-mine": "1"})
    (headers,) = seen
    assert headers["traceparent"] == GIVEN
    assert headers["x-mine"] == "1"


def test_without_a_span_nothing_is_sent(server):
    url, seen = server
    ask(url)
    (headers,) = seen
    assert "traceparent" not in headers


def test_a_program_that_does_not_trace_does_not_load_opentelemetry():
    code = """
import sys, tfserve_kit
from tfserve_kit.clients.protocol import with_headers
flow = iter(())
assert with_headers(flow, None) is flow
with tfserve_kit.connect("grpc://127.0.0.1:1"):
    pass
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
