"""Clients that mean harm: `python -m tests.torture.attackers NAME GRPC_PORT REST_PORT
MODEL BASE_PATH...`, with the models that are served.

Each goes on until it is killed. They run in a process of their own, and from an address of their
own (127.0.0.2), so that only the server can make the other clients wait.
"""

import gzip
import itertools
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress

import grpc

from tfserve_kit import protos

HERE, MIB = "127.0.0.2", 1 << 20
GRPC_PORT, REST_PORT = map(int, sys.argv[2:4]) if __name__ == "__main__" else (0, 0)
ROW = b'{"instances": [1]}'
SLOW = b'{"signature_name": "slow", "instances": [1]}'
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def connected(port):
    return socket.create_connection(("127.0.0.1", port), 10, source_address=(HERE, 0))


def relayed():
    """Return a port that leads to the gRPC port, from the attackers' address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source, target):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept():
        while True:
            client, _ = listener.accept()
            server = connected(GRPC_PORT)
            threading.Thread(target=copy, args=(client, server), daemon=True).start()
            threading.Thread(target=copy, args=(server, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def channel(compression=None):
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(f"127.0.0.1:{relayed()}", options, compression)


def method(name, opened):
    return opened.unary_unary(protos.METHODS[name].path)


def post(model, body, headers=""):
    head = (
        f"POST /v1/models/{model}:predict HTTP/1.1\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


def frame(kind, flags, stream, payload=b""):
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def begun_calls(streams, *, encoding=b"identity"):
    """Return the frames of gRPC calls that have begun: headers, no message."""

    def literal(name, value):
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    headers = b"\x83\x86" + b"".join(
        literal(name, value)
        for name, value in (
            (b":path", protos.METHODS["Predict"].path.encode()),
            (b":authority", b"a"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"grpc-encoding", encoding),
        )
    )
    return PREFACE + frame(4, 1, 0) + b"".join(frame(1, 4, number, headers) for number in streams)


def repeat(attack, threads=4):
    """Do it again and again, in several threads."""

    def work():
        while True:
            with suppress(OSError, grpc.RpcError):
                attack()

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    threading.Event().wait()


def ask(request):
    """Send a REST request and wait for its answer."""
    with connected(REST_PORT) as client:
        client.sendall(request)
        return client.recv(1000)


def silent_streams():
    clients = deque(maxlen=10)
    while True:
        clients.append(connected(GRPC_PORT))
        clients[-1].sendall(begun_calls(range(1, 201, 2)))
        time.sleep(0.5)


def held_messages():
    clients = []
    for _ in range(20):
        client = connected(GRPC_PORT)
        piece = b"\0" + (2**31 - 1).to_bytes(4, "big") + bytes(16_000)
        client.sendall(begun_calls([1]) + frame(0, 0, 1, piece))
        clients.append(client)
    held = connected(REST_PORT)
    held.sendall(b"POST /v1/models/batchy:predict HTTP/1.1\r\nContent-Length: 2147483647\r\n\r\n")
    while True:
        held.sendall(bytes(MIB))
        time.sleep(0.05)


def cancelled_reloads():
    with channel() as opened:
        reload = method("HandleReloadConfigRequest", opened)
        for number in itertools.count():
            request = protos.message_class("ReloadConfigRequest")()
            config = request.config.model_config_list.config
            for name, path in zip(sys.argv[4::2], sys.argv[5::2], strict=True):
                config.add(name=name, base_path=path, model_platform="tensorflow")
            config.add(name=f"later{number % 8}", base_path="/nowhere", model_platform="tensorflow")
            call = reload.future(request.SerializeToString())
            time.sleep(0.02)
            call.cancel()


def multi_inference():
    request = protos.message_class("MultiInferenceRequest")()
    for _ in range(1000):
        task = request.tasks.add(method_name="tensorflow/serving/regress")
        task.model_spec.name, task.model_spec.signature_name = "legacy", "regress"
    example = protos.Example()
    example.features.feature["x"].float_list.value.append(1.0)
    for _ in range(1000):
        request.input.example_list.examples.add().CopyFrom(example)
    sent = request.SerializeToString()
    with channel() as opened:
        repeat(lambda: method("MultiInference", opened)(sent, timeout=5))


def odd_shapes():
    request = protos.PredictRequest(model_spec={"name": "strings"})
    tensor = request.inputs["s"]
    tensor.dtype = 7
    tensor.string_val.append(b"a")
    for _ in range(64):
        tensor.tensor_shape.dim.add(size=1)
    sent = request.SerializeToString()
    deep = post("strings", b'{"inputs":' + b"[" * 40 + b'"a"' + b"]" * 40 + b"}")
    with channel() as opened:

        def attack():
            with suppress(grpc.RpcError):
                method("Predict", opened)(sent, timeout=5)
            ask(deep)

        repeat(attack)


def surrogates():
    body = b'{"signature_name":"\\ud800","x":"\xff","instances":[1]}' + b" " * MIB
    repeat(lambda: ask(post("batchy", body)))


def gzip_bombs():
    bomb = gzip.compress(bytes(90_000_000), 6)
    repeat(lambda: ask(post("batchy", bomb, "Content-Encoding: gzip\r\n")))


def grpc_gzip_bombs():
    packed = gzip.compress(bytes(55_000_000), 9)  # as much as may be sent without being asked
    message = b"\1" + len(packed).to_bytes(4, "big") + packed
    pieces = [message[at : at + 16384] for at in range(0, len(message), 16384)]
    data = [frame(0, int(piece is pieces[-1]), 1, piece) for piece in pieces]

    def attack():
        with connected(GRPC_PORT) as client:
            client.settimeout(2)
            client.sendall(begun_calls([1], encoding=b"gzip") + b"".join(data))
            while client.recv(1000):
                pass

    repeat(attack)


def slow_readers():
    rows = b'{"instances": [' + b",".join([b"1.0"] * 50_000) + b"]}"  # the answer is larger still

    def attack():
        with connected(REST_PORT) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(1)
            with suppress(TimeoutError):
                client.sendall(post("half_plus_two", rows) * 100)
            while client.recv(10):
                time.sleep(0.1)

    repeat(attack, threads=5)


def slow_models():
    request = protos.PredictRequest(model_spec={"name": "batchy", "signature_name": "slow"})
    tensor = request.inputs["x"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add(size=1)
    tensor.float_val.append(1)
    sent = request.SerializeToString()
    with channel() as opened:

        def attack():
            calls = [method("Predict", opened).future(sent, timeout=20) for _ in range(20)]
            for call in calls:
                with suppress(grpc.RpcError):
                    call.result()

        threading.Thread(target=repeat, args=(attack, 2), daemon=True).start()
        repeat(lambda: ask(post("batchy", SLOW)), threads=40)


def huge_json():
    rows = b'{"instances": [' + b",".join([b'{"a": [1, "x", null]}'] * 200_000) + b"]}"
    repeat(lambda: ask(post("batchy", rows)), threads=2)


ATTACKS = {
    attack.__name__: attack
    for attack in (
        silent_streams,
        held_messages,
        cancelled_reloads,
        multi_inference,
        odd_shapes,
        surrogates,
        gzip_bombs,
        grpc_gzip_bombs,
        slow_readers,
        slow_models,
        huge_json,
    )
}

if __name__ == "__main__":
    ATTACKS[sys.argv[1]]()
