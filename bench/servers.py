"""Servers to hold ours against: `python -m bench.servers KIND [MODEL_DIR]` prints its port.

`tutorial`: generated classes, `make_ndarray`, a restored signature, `make_tensor_proto`, as guides
show it. `counting`: grpcio without classes, the number of bytes it was sent. `constant`: our HTTP
transport, one fixed answer.
"""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

_THREADS = 4 * (os.cpu_count() or 1)  # as tensorflow_model_server's grpc_max_threads
_ANY_PORT = "127.0.0.1:0"


def tutorial(model_dir: str) -> int:
    """Serve one SavedModel as tutorials do."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    signature = tf.saved_model.load(model_dir).signatures["serving_default"]

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
        def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
            del context
            inputs = {
                name: tf.constant(tf.make_ndarray(tensor))
                for name, tensor in request.inputs.items()
            }
            response = predict_pb2.PredictResponse()
            for name, tensor in signature(**inputs).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor.numpy()))
            return response

    server = grpc.server(ThreadPoolExecutor(_THREADS))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    return _started(server)


def counting() -> int:
    """Answer every gRPC request with how many bytes it has."""

    def count(request: bytes, context: Any) -> bytes:
        del context
        return str(len(request)).encode()

    class Everything(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: Any) -> Any:
            del call
            return grpc.unary_unary_rpc_method_handler(count)

    server = grpc.server(ThreadPoolExecutor(_THREADS), [Everything()])
    return _started(server)


def constant() -> int:
    """Answer every HTTP request with the same few bytes."""
    from tfserve_kit.embedded.http_transport import HttpServer, RestOptions
    from tfserve_kit.embedded.ledger import Ledger
    from tfserve_kit.embedded.rest_surface import RestAnswer

    reply = RestAnswer(200, b'{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}')

    async def answer(*_: Any) -> RestAnswer:
        return reply

    transport = HttpServer(
        answer,
        Ledger(1 << 30),
        ("127.0.0.1", 0),
        RestOptions(_THREADS),
        at_once=lambda _, asked: [reply] * len(asked),
    )
    transport.start()
    _running.append(transport)
    return transport.port


_running: list[Any] = []


def _started(server: Any) -> int:
    port: int = server.add_insecure_port(_ANY_PORT)
    server.start()
    _running.append(server)
    return port


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    kinds: dict[str, Callable[..., int]] = {
        "tutorial": tutorial, "counting": counting, "constant": constant
    }  # fmt: skip
    sys.stdout.write(f"{kinds[kind](*arguments)}\n")
    sys.stdout.flush()
    threading.Event().wait()
