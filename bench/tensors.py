"""Encoding a Predict request with one picture: C2."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Benchmark, Side, Sides
from bench.stats import Goal
from tfserve_kit import protos, tensors

_SHAPE = (1, 224, 224, 3)
# Calls in a turn: long against the clock, and the first call's cold cache hardly counts.
_CALLS = 100


@contextmanager
def _encode(scratch: Path) -> Iterator[Sides]:
    del scratch
    image = np.random.default_rng(0).random(_SHAPE, np.float32)
    spec = protos.ModelSpec(name="resnet", signature_name="serving_default")
    target = np.empty_like(image)

    def by_messages() -> bytes:
        request = protos.PredictRequest(model_spec=spec)
        request.inputs["image"].CopyFrom(tensors.to_proto(image))
        encoded: bytes = request.SerializeToString()
        return encoded

    others = {
        "a copy into memory that is there already": _turn(lambda: np.copyto(target, image)),
        "protobuf's messages, `tensor_content`": _turn(by_messages),
        **_official(image),
    }
    yield Sides(
        _turn(lambda: bytes(memoryview(image))),  # type: ignore[arg-type]
        _turn(lambda: tensors.predict_request({"image": image}, spec.SerializeToString())),
        others,
        {"tensor": f"float32 {list(_SHAPE)}, {image.nbytes:,} bytes"},
    )


def _turn(call: Callable[[], object]) -> Side:
    def side() -> float:
        started_s = time.perf_counter()
        for _ in range(_CALLS):
            call()
        return time.perf_counter() - started_s

    return side


def _official(image: Any) -> dict[str, Side]:
    """Return the usual way with the official packages, where they are installed."""
    try:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2
    except ImportError:
        return {}

    def encode() -> bytes:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "resnet"
        request.model_spec.signature_name = "serving_default"
        request.inputs["image"].CopyFrom(tf.make_tensor_proto(image))
        encoded: bytes = request.SerializeToString()
        return encoded

    return {"`tf.make_tensor_proto` and the official messages": _turn(encode)}


BENCHMARKS = (
    Benchmark(
        "C2",
        "encoding a PredictRequest of 1x224x224x3 float32",
        "copying its bytes (`bytes(memoryview(array))`)",
        Goal(1.5),
        _encode,
    ),
)
