"""What a type checker sees of the clients; read by mypy, never run."""

from collections.abc import Mapping
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import (
    BatchPrediction,
    Classification,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
    connect,
    connect_async,
)
from tfserve_kit.clients.aio import AsyncClient
from tfserve_kit.clients.sync import Client


def blocking() -> None:
    with connect("grpc://h:1", retries=0, check=False, ca_file=None) as client:
        assert_type(client, Client)
        narrow: Client = client
        narrow.status(Target("m"))
        answer = client.predict("m", np.zeros(3), timeout_s=5)
        assert_type(answer, Prediction)
        assert_type(answer.outputs, Mapping[str, NDArray[Any]])
        assert_type(answer.version, int | None)
        client.predict(Target("m", 1), {"x": [1.0], "y": np.zeros(1)}, output_filter=["y"])
        assert_type(client.predict_batch("m", [1.0], on_error="isolate"), BatchPrediction)
        assert_type(client.classify("m", [{"x": 1.0}, b""]), Classification)
        assert_type(client.regress("m", [{"x": [1.0, 2.0]}]), Regression)
        assert_type(client.metadata("m"), Metadata)
        assert_type(client.status("m"), list[VersionStatus])
        client.multi_inference("m", {"a": "classify"}, [{"x": "text"}])


async def awaited() -> None:
    async with connect_async("http://h:1", hedge_after_s=0.1, headers={"a": "b"}) as client:
        assert_type(client, AsyncClient)
        assert_type(await client.predict("m", {"x": [1]}), Prediction)
        assert_type(await client.predict_batch("m", [1.0], batch_size=4), BatchPrediction)
        assert_type(await client.metadata("m"), Metadata)
        assert_type(await client.status("m"), list[VersionStatus])


def refused() -> None:
    connect("grpc://h:1", retry=0)  # type: ignore[call-arg]
    connect("grpc://h:1", retries="two")  # type: ignore[arg-type]
    client = connect("grpc://h:1")
    client.predict_batch("m", [1.0], on_error="ignore")  # type: ignore[arg-type]
    client.predict(5, [1.0])  # type: ignore[arg-type]
    client.predict("m", [1.0], ["y"])  # type: ignore[call-arg, arg-type]
