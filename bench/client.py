"""The clients against what else one would call a model server with: C3."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench.drive import PREDICT
from bench.harness import Benchmark, Side, Sides
from bench.processes import MODELS, Place, require_tensorflow
from bench.stats import Compare, Goal
from tfserve_kit import connect, connect_async, protos, tensors

_ROWS = np.array([1.0, 2.0, 5.0], np.float32)
_CALLS = 300
_MODEL, _VERSION = "m", 2
_TIMEOUT_S = 30.0


@contextmanager
def _sync(scratch: Path) -> Iterator[Sides]:
    """One caller that waits for each answer, so that nothing hides what the client itself takes."""
    require_tensorflow()
    with ExitStack() as stack:
        urls = stack.enter_context(Place(scratch).server({_MODEL: MODELS / "half_plus_two"}))
        address = urls["grpc"].removeprefix("grpc://")
        channel = stack.enter_context(grpc.insecure_channel(address))
        bare, request = channel.unary_unary(PREDICT), _request()
        ours = stack.enter_context(connect(urls["grpc"]))
        unchecked = stack.enter_context(connect(urls["grpc"], check=False))
        rest = stack.enter_context(connect(urls["rest"]))
        yield Sides(
            _turn(lambda: bare(request, timeout=_TIMEOUT_S)),
            _turn(lambda: ours.predict(_MODEL, {"x": _ROWS})),
            {
                "this client, `check=False`": _turn(
                    lambda: unchecked.predict(_MODEL, {"x": _ROWS})
                ),
                "this client over REST": _turn(lambda: rest.predict(_MODEL, {"x": _ROWS})),
                **_official(channel),
                **_ovms(address),
            },
            {"load": "1 caller, answers decoded to numpy on all sides but the baseline"},
        )


def _request() -> bytes:
    return tensors.predict_request({"x": _ROWS}, protos.ModelSpec(name=_MODEL).SerializeToString())


def _turn(call: Callable[[], object]) -> Side:
    def side() -> float:
        started_s = time.perf_counter()
        for _ in range(_CALLS):
            call()
        return time.perf_counter() - started_s

    return side


def _official(channel: Any) -> dict[str, Side]:
    """Return the way of the tutorials, where the official packages are installed."""
    try:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError:
        return {}
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def call() -> object:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = _MODEL
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(_ROWS))
        answer = stub.Predict(request, timeout=_TIMEOUT_S)
        return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}

    return {"tensorflow-serving-api, make_tensor_proto, make_ndarray": _turn(call)}


def _ovms(address: str) -> dict[str, Side]:
    """Return ovmsclient, which needs no tensorflow either, where it is installed."""
    try:
        import ovmsclient
    except ImportError:
        return {}
    client = ovmsclient.make_grpc_client(address)
    return {"ovmsclient": _turn(lambda: client.predict({"x": _ROWS}, _MODEL, _VERSION))}


@contextmanager
def _async(scratch: Path) -> Iterator[Sides]:
    """One task that awaits each answer; the event loop of all sides is the same one."""
    require_tensorflow()
    with ExitStack() as stack:
        urls = stack.enter_context(Place(scratch).server({_MODEL: MODELS / "half_plus_two"}))
        runner = stack.enter_context(asyncio.Runner())

        async def opened() -> Any:
            return grpc.aio.insecure_channel(urls["grpc"].removeprefix("grpc://"))

        channel = runner.run(opened())
        stack.callback(lambda: runner.run(channel.close()))
        ours, rest = connect_async(urls["grpc"]), connect_async(urls["rest"])
        stack.callback(lambda: runner.run(ours.close()))
        stack.callback(lambda: runner.run(rest.close()))
        bare, request = channel.unary_unary(PREDICT), _request()
        yield Sides(
            _awaited(runner, lambda: bare(request, timeout=_TIMEOUT_S)),
            _awaited(runner, lambda: ours.predict(_MODEL, {"x": _ROWS})),
            {"this client over REST": _awaited(runner, lambda: rest.predict(_MODEL, {"x": _ROWS}))},
            {"load": "1 task"},
        )


def _awaited(runner: asyncio.Runner, call: Callable[[], Awaitable[object]]) -> Side:
    async def turn() -> float:
        started_s = time.perf_counter()
        for _ in range(_CALLS):
            await call()
        return time.perf_counter() - started_s

    return lambda: runner.run(turn())


BENCHMARKS = (
    Benchmark(
        "C3",
        "Predict calls of the client, tiny model",
        "a bare `channel.unary_unary` that sends ready bytes",
        Goal(0.85, Compare.SPEED, equality=True),
        _sync,
    ),
    Benchmark(
        "C3-async",
        "Predict calls of the asyncio client, tiny model",
        "a bare `grpc.aio` `channel.unary_unary` that sends ready bytes",
        Goal(0.85, Compare.SPEED, equality=True),
        _async,
    ),
)
