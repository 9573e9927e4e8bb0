"""Servers that break the rules: each tells one lie, to one request after another."""

import contextlib
import gzip
import json
import socket
import threading
from concurrent import futures

import grpc

from tfserve_kit import protos

SHAPE = {"dim": [{"size": "-1"}]}
SIGNATURE = {
    "inputs": {"x": {"dtype": "DT_FLOAT", "tensor_shape": SHAPE, "name": "x:0"}},
    "outputs": {"y": {"dtype": "DT_FLOAT", "tensor_shape": SHAPE, "name": "y:0"}},
    "method_name": "tensorflow/serving/predict",
}
SIGNATURES = {"signature_def": {"serving_default": SIGNATURE}}
METADATA = json.dumps(
    {
        "model_spec": {"name": "half_plus_two", "signature_name": "", "version": "7"},
        "metadata": {"signature_def": SIGNATURES},
    }
).encode()


def http(body, status="200 OK", **headers):
    """Return an HTTP answer; header names with _ for -, None leaves Content-Length out."""
    named = {"Content-Type": "application/json", "Content-Length": len(body)}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in named.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


ANSWER = b'{"outputs": [1.5]}'


class Liar:
    """An HTTP server that tells signatures rightly, and answers predict as it is told.

    `requests` holds the bodies of the predict requests that came; `connections` counts. `about` is
    what it answers when it is asked for its signatures or versions.
    """

    def __init__(self, lie, about=http(METADATA), address=("127.0.0.1", 0)):  # noqa: B008 (bytes do not change)
        self.lie, self.about, self.requests, self.connections = lie, about, [], 0
        self._listening = socket.create_server(address)
        self.url = f"http://{address[0]}:{self._listening.getsockname()[1]}"
        self._stop, self._open = threading.Event(), []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while head := self._head(stream):
                length = int(head.get(b"content-length", 0))
                body = stream.read(length)
                if b"GET" in head[b""]:
                    connection.sendall(self.about)
                    continue
                self.requests.append(body)
                if self.lie(self, connection) is not None:
                    return

    def _head(self, stream):
        lines = []
        while line := stream.readline().strip():
            lines.append(line)
        if not lines:
            return None
        pairs = [line.split(b":", 1) for line in lines[1:]]
        return {b"": lines[0]} | {key.lower(): value.strip() for key, value in pairs}

    def wait(self, seconds):
        """Sleep, but not beyond the end of the test."""
        return self._stop.wait(seconds)

    def close(self):
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)


def says(data, *, then_close=False):
    """Send these bytes; close the connection after them, or not."""

    def lie(liar, connection):
        connection.sendall(data)
        return "close" if then_close else None

    return lie


def drips(data, every_s=0.02):
    """Send a byte every now and then, for ever."""

    def lie(liar, connection):
        connection.sendall(data)
        while not liar.wait(every_s):
            connection.sendall(b" ")
        return "close"

    return lie


def floods(liar, connection):
    """Send an answer without end, as fast as it is taken."""
    connection.sendall(http(b"[", Content_Length=None, Transfer_Encoding="chunked")[:-1])
    piece = b"10000\r\n" + b"1" * 0x10000 + b"\r\n"
    while True:
        connection.sendall(piece)


BOMB = gzip.compress(b" " * 50_000_000)

# name -> (lie, the error that it is)
HTTP_LIES = {
    "nothing": (says(b"", then_close=True), "ServerUnreachable"),
    "no http": (says(b"SSH-2.0-OpenSSH_9.6\r\n", then_close=True), "ServerFault"),
    "half a head": (says(b"HTTP/1.1 200 OK\r\nContent-", then_close=True),
                    "ServerUnreachable"),
    "half a body": (says(http(ANSWER, Content_Length=400), then_close=True), "ServerUnreachable"),
    "short length": (says(http(ANSWER, Content_Length=9), then_close=True), "ServerFault"),
    "length is no number": (says(http(ANSWER, Content_Length="many"), then_close=True),
                            "ServerFault"),
    "negative length": (says(http(ANSWER, Content_Length="-5"), then_close=True),
                        "ServerFault"),
    "huge length": (says(http(ANSWER, Content_Length=10**15)), "InvalidRequest"),
    "bad chunks": (says(http(b"zz\r\n{}", Content_Length=None, Transfer_Encoding="chunked"),
                        then_close=True), "ServerFault"),
    "half chunks": (says(http(b"12\r\n{", Content_Length=None, Transfer_Encoding="chunked"),
                         then_close=True), "ServerUnreachable"),
    "endless head": (says(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000, then_close=True),
                     "ServerFault"),
    "half json": (says(http(ANSWER[:9])), "ServerFault"),
    "html": (says(http(b"<html>Bad Gateway</html>", Content_Type="text/html")), "ServerFault"),
    "html error": (says(http(b"<html>Bad Gateway</html>", "502 Bad Gateway")), "ServerFault"),
    "redirect": (says(http(b"", "302 Found", Location="/login")), "ServerFault"),
    "no gzip": (says(http(ANSWER, Content_Encoding="gzip")), "ServerFault"),
    "half gzip": (says(http(gzip.compress(ANSWER)[:-9], Content_Encoding="gzip")), "ServerFault"),
    "other encoding": (says(http(ANSWER, Content_Encoding="br")), "ServerFault"),
    "bomb": (says(http(BOMB, Content_Encoding="gzip")), "InvalidRequest"),
    "flood": (floods, "InvalidRequest"),
    "deep json": (says(http(b"[" * 100_000)), "ServerFault"),
    "ragged": (says(http(b'{"outputs": [[1], [2, 3]]}')), "ServerFault"),
    "text for numbers": (says(http(b'{"outputs": ["a"]}')), "ServerFault"),
    "other outputs": (says(http(b'{"predictions": 5}')), "ServerFault"),
    "no utf-8": (says(http(b'{"outputs": ["\xff"]}')), "ServerFault"),
    "drip of the head": (drips(b"HTTP/1.1 200 OK\r\nX: "), "DeadlineExceeded"),
    "drip of the body": (drips(http(b"{", Content_Length=10**6)), "DeadlineExceeded"),
}  # fmt: skip


def tensor(text):
    return protos.from_text("PredictResponse", text).SerializeToString()


_SHAPE = "tensor_shape { dim { size: %d } }"
# name -> (what Predict answers, the error that it is)
GRPC_LIES = {
    "garbage": (b"\xff\xff\xff\xff", "ServerFault"),
    "text": (b"<html></html>", "ServerFault"),
    "cut off": (tensor('outputs { key: "y" value { dtype: DT_FLOAT float_val: 1 } }')[:-3],
                "ServerFault"),
    "wrong shape": (tensor('outputs { key: "y" value { dtype: DT_FLOAT tensor_content: "abcd" '
                           + _SHAPE % 7 + " } }"), "ServerFault"),
    "negative shape": (tensor('outputs { key: "y" value { dtype: DT_FLOAT ' + _SHAPE % -2 + " } }"),
                       "ServerFault"),
    "immense shape": (tensor('outputs { key: "y" value { dtype: DT_FLOAT float_val: 1 float_val: 2 '
                             + _SHAPE % (1 << 50) + " } }"), "ServerFault"),
    "claims floats": (tensor('outputs { key: "y" value { dtype: DT_FLOAT ' + _SHAPE % (1 << 28)
                             + " } }"), "ServerFault"),
    "claims a few floats": (tensor('outputs { key: "y" value { dtype: DT_FLOAT float_val: 1 '
                                   + _SHAPE % 3 + " } }"), "ServerFault"),
    "claims strings": (tensor('outputs { key: "y" value { dtype: DT_STRING ' + _SHAPE % (1 << 27)
                              + " } }"), "ServerFault"),
    "claims string content": (tensor('outputs { key: "y" value { dtype: DT_STRING '
                                     'tensor_content: "\\000\\000" ' + _SHAPE % (1 << 27)
                                     + " } }"), "ServerFault"),
    "claims halves": (tensor('outputs { key: "y" value { dtype: DT_HALF half_val: 1 '
                             + _SHAPE % (1 << 28) + " } }"), "ServerFault"),
    "claims empty rows": (tensor('outputs { key: "y" value { dtype: DT_FLOAT tensor_shape { '
                                 f"dim {{ size: {1 << 28} }} dim {{ size: 0 }} }} }} }}"),
                          "ServerFault"),
    "no such type": (tensor('outputs { key: "y" value { dtype: DT_VARIANT } }'), "ServerFault"),
    "too large": (b"\0" * 2_000_000, "InvalidRequest"),
    "trailers only": (grpc.StatusCode.UNKNOWN, "ServerFault"),
    "ok without words": (grpc.StatusCode.DATA_LOSS, "ServerFault"),
    "full": (grpc.StatusCode.RESOURCE_EXHAUSTED, "ServerOverloaded"),
    "gone": (grpc.StatusCode.UNAVAILABLE, "ServerUnreachable"),
    "silent": (None, "DeadlineExceeded"),
}  # fmt: skip


def _many_signatures(count):
    """Return the JSON metadata of a model with so many signatures."""
    named = {f"s{number}": {} for number in range(count)}
    spec = {"name": "half_plus_two", "version": "7"}
    document = {"model_spec": spec, "metadata": {"signature_def": {"signature_def": named}}}
    return json.dumps(document).encode()


def _many_versions(count):
    """Return the JSON status of a model with so many versions."""
    version = {"version": "1", "state": "END"}
    return json.dumps({"model_version_status": [version] * count}).encode()


def _many_dimensions(count):
    """Return the JSON metadata of a model whose input has so many dimensions."""
    return METADATA.replace(b'[{"size": "-1"}]', b"[" + b",".join([b"{}"] * count) + b"]", 1)


# What a REST server may say of itself; each is a ServerFault.
HTTP_ABOUT = {
    "many signatures": http(_many_signatures(50_000)),
    "many versions": http(_many_versions(150_000)),
    "many bytes": http(b" " * (1 << 24) + METADATA),
    "many dimensions": http(_many_dimensions(5000)),
    "deep": http(b'{"model_spec":' * 50_000),
    "deep, and closed": http(b'{"a":' * 900 + b"1" + b"}" * 900),
    "a list": http(b"[]"),
    "null": http(b"null"),
    "version is text": http(METADATA.replace(b'"7"', b'"seven"')),
    "version is huge": http(METADATA.replace(b'"7"', b'"' + b"7" * 5000 + b'"')),
}


def grpc_metadata():
    signatures = protos.from_json("SignatureDefMap", SIGNATURES)
    answer = protos.GetModelMetadataResponse()
    answer.model_spec.version.value = 7
    answer.metadata["signature_def"].Pack(signatures)
    return answer.SerializeToString()


@contextlib.contextmanager
def grpc_liar(lie, address="127.0.0.1:0"):
    """Run a gRPC server that tells signatures rightly, and answers Predict with a lie: its URL."""
    stop = threading.Event()

    def predict(request, context):
        if lie is None:
            stop.wait(20)
            return b""
        if isinstance(lie, grpc.StatusCode):
            context.abort(lie, "")
        return lie

    handlers = {
        name: grpc.unary_unary_rpc_method_handler(answer)
        for name, answer in {
            "Predict": predict, "GetModelMetadata": lambda *_: grpc_metadata()
        }.items()
    }  # fmt: skip
    service = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", handlers)
    pool = futures.ThreadPoolExecutor(4)
    server = grpc.server(pool, handlers=[service], options=[("grpc.max_send_message_length", -1)])
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"grpc://{address.partition(':')[0]}:{port}"
    finally:
        stop.set()
        server.stop(None).wait()
        pool.shutdown()


@contextlib.contextmanager
def grpc_server(**answers):
    """Run a gRPC server that gives each method, by name, bytes or an error (code, text): its URL.

    An answer may be a function that is called for each request.
    """

    def handler(name):
        def handle(request, context):
            answer = answers[name]() if callable(answers[name]) else answers[name]
            if isinstance(answer, tuple):
                context.abort(*answer)
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details):
            name = details.method.rpartition("/")[2]
            return handler(name) if name in answers else None

    pool = futures.ThreadPoolExecutor(4)
    server = grpc.server(
        pool, handlers=[Handlers()], options=[("grpc.max_send_message_length", -1)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
        pool.shutdown()
