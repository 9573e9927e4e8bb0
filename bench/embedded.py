"""The embedded engine against what else would answer: E2 to E6, F1, F2 and F6."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.drive import grpc_side, http_side, threads_side
from bench.generators import found, grpc_server, h2load, h2load_posts, nginx
from bench.harness import Benchmark, Side, Sides, Unavailable
from bench.processes import MODELS, PYTHON, ROOT, Place, require_tensorflow
from bench.stats import Compare, Goal
from tfserve_kit import protos, tensors

_TINY = MODELS / "half_plus_two"
_ROWS = np.array([1.0, 2.0, 5.0], np.float32)
_CALLS, _IN_FLIGHT = 2000, 32
_PICTURE = (1, 224, 224, 3)
_PICTURE_CALLS, _PICTURES_IN_FLIGHT = 16, 4
_FLOAT = 1  # DT_FLOAT
_SWAPS, _LARGE_SWAPS, _LARGE_MB = 200, 4, 100


@contextmanager
def _grpc_against(kind: str, *arguments: str | Path, scratch: Path) -> Iterator[Sides]:
    """Set our server with a tiny model against another gRPC server."""
    require_tensorflow()
    with ExitStack() as stack:
        ours = stack.enter_context(Place(scratch).server({"m": _TINY}))
        theirs = stack.enter_context(_other(kind, *arguments))
        request = tensors.predict_request(
            {"x": _ROWS}, protos.ModelSpec(name="m").SerializeToString()
        )
        driven = partial(grpc_side, request=request, calls=_CALLS, in_flight=_IN_FLIGHT)
        yield Sides(
            stack.enter_context(driven(theirs)),
            stack.enter_context(driven(_port(ours["grpc"]))),
            notes={"load": f"{_IN_FLIGHT} in flight, 1 connection"},
        )


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


@contextmanager
def _grpc_rate(in_flight: int, calls: int, scratch: Path) -> Iterator[Sides]:
    """Set our server with a tiny model against one in C++ that answers at once."""
    require_tensorflow()
    with ExitStack() as stack:
        theirs = stack.enter_context(grpc_server(scratch))
        ours = stack.enter_context(Place(scratch).server({"m": _TINY}))
        spec: bytes = protos.ModelSpec(name="m").SerializeToString()
        request = tensors.predict_request({"x": _ROWS}, spec)

        def side(port: int) -> Side:
            return lambda: _took(
                calls, h2load(scratch, port, in_flight, "-n", str(calls), message=request)
            )

        notes = {"load": f"h2load, {in_flight} in flight, 1 connection"}
        yield Sides(side(theirs.port), side(_port(ours["grpc"])), notes=notes)


@contextmanager
def _rest_rate(scratch: Path) -> Iterator[Sides]:
    """Set our server with a tiny model against nginx with a constant answer."""
    require_tensorflow()
    body = json.dumps({"instances": _ROWS.tolist()}).encode()
    with ExitStack() as stack:
        theirs = stack.enter_context(nginx(scratch))
        ours = stack.enter_context(Place(scratch).server({"m": _TINY}))

        def side(port: int) -> Side:
            url = f"http://127.0.0.1:{port}/v1/models/m:predict"
            return lambda: _took(_CALLS, h2load_posts(scratch, url, _IN_FLIGHT, _CALLS, body))

        notes = {"load": f"h2load, {_IN_FLIGHT} connections"}
        yield Sides(side(theirs), side(_port(ours["rest"])), notes=notes)


def _took(calls: int, printed: str) -> float:
    """Return how long h2load took for calls that must all have succeeded, in seconds."""
    if f"{calls} succeeded" not in printed:
        raise RuntimeError(printed)
    return calls / float(found(r"([\d.]+) req/s", printed))


def _tutorial(scratch: Path) -> Any:
    newest = max(_TINY.iterdir(), key=lambda version: int(version.name))
    return _grpc_against("tutorial", newest, scratch=scratch)


@contextmanager
def _other(kind: str, *arguments: str | Path) -> Iterator[int]:
    """Run one of `bench.servers`; yield its port."""
    with _running("bench.servers", kind, *arguments) as process:
        yield int(process.stdout.readline())


@contextmanager
def _running(*argv: str | Path) -> Iterator[Any]:
    process = subprocess.Popen(
        [PYTHON, "-m", *argv],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _network(name: str, batch: int, scratch: Path) -> Iterator[Sides]:
    """Set a network served over gRPC against calls of the same network in this process."""
    require_tensorflow()
    from tfserve_kit.embedded.loader import SavedModelLoader
    from tfserve_kit.embedded.settings import SessionOptions

    version = _made(scratch, name)
    images = np.random.default_rng(0).random((batch, *_PICTURE[1:]), np.float32)
    servable = SavedModelLoader(SessionOptions())(version)
    signature = servable.signatures["serving_default"]
    feed, fetch = signature.inputs["x"].name, signature.outputs["scores"].name
    calls = {"calls": max(4, _PICTURE_CALLS // batch), "in_flight": _PICTURES_IN_FLIGHT}
    with ExitStack() as stack:
        ours = stack.enter_context(Place(scratch).server({"m": version.parent}))
        request = tensors.predict_request(
            {"x": images}, protos.ModelSpec(name="m").SerializeToString()
        )
        yield Sides(
            threads_side(lambda: servable.run({feed: images}, [fetch]), **calls),
            stack.enter_context(grpc_side(_port(ours["grpc"]), request, **calls)),
            notes={"load": f"{_PICTURES_IN_FLIGHT} in flight, on both sides"},
        )


def _made(scratch: Path, what: str) -> Path:
    """Make a SavedModel; return its version's folder."""
    version = scratch / "made" / "1"
    subprocess.run(
        [PYTHON, "-m", "bench.savedmodel", version, what],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return version


@contextmanager
def _rest(scratch: Path) -> Iterator[Sides]:
    require_tensorflow()
    body = json.dumps({"instances": _ROWS.tolist()}).encode()
    driven = partial(
        http_side, body=body, path="/v1/models/m:predict", calls=_CALLS, in_flight=_IN_FLIGHT
    )
    with ExitStack() as stack:
        ours = stack.enter_context(Place(scratch).server({"m": _TINY}))
        theirs = stack.enter_context(_other("constant"))
        yield Sides(
            stack.enter_context(driven(theirs)),
            stack.enter_context(driven(_port(ours["rest"]))),
            notes={"load": f"{_IN_FLIGHT} connections"},
        )


@contextmanager
def _json(dtype: type[np.generic], scratch: Path) -> Iterator[Sides]:
    """Read one picture from a predict request, in this process."""
    del scratch
    try:
        import orjson

        from tfserve_kit.embedded.json_reader import PredictBody
        from tfserve_kit.embedded.ledger import Call
    except ImportError as error:
        raise Unavailable(str(error)) from error
    pixels = (np.random.default_rng(0).random(_PICTURE, np.float32) * 255).astype(dtype)
    body = json.dumps({"instances": pixels.tolist()}).encode()
    info = {"x": protos.TensorInfo(name="x:0", dtype=_FLOAT)}

    def usual(read: Callable[[bytes], Any]) -> object:
        return np.array(read(body)["instances"], np.float32)

    account = Call.unbounded().account
    yield Sides(
        _timed(lambda: usual(orjson.loads)),
        _timed(lambda: PredictBody(body, lambda _: info, account)),
        {"json + numpy": _timed(lambda: usual(json.loads))},
        {"body": f"{len(body):,} bytes"},
    )


def _timed(call: Callable[[], object]) -> Side:
    def side() -> float:
        started_s = time.perf_counter()
        call()
        return time.perf_counter() - started_s

    return side


@contextmanager
def _swapped(version: Path, swaps: int) -> Iterator[Sides]:
    """Hold the memory after more and more swaps against the memory before the first one."""
    with _running("bench.swaps", version) as process:
        before = float(process.stdout.readline())

        def after() -> float:
            process.stdin.write(f"{swaps}\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield Sides(lambda: before, after, notes={"memory before": f"{before / 1e6:.0f} MB"})


def _tiny_swaps(scratch: Path) -> Any:
    del scratch
    require_tensorflow()
    return _swapped(max(_TINY.iterdir(), key=lambda version: int(version.name)), _SWAPS)


def _large_swaps(scratch: Path) -> Any:
    require_tensorflow()
    return _swapped(_made(scratch, str(_LARGE_MB)), _LARGE_SWAPS)


def _e3(name: str, batch: int) -> Benchmark:
    return Benchmark(
        f"E3-{name}-{batch}",
        f"Predict of the embedded server, {name}, batch {batch}",
        "the same calls in one process without a server",
        Goal(0.9, Compare.SPEED, equality=True),
        partial(_network, name, batch),
    )


def _e5(dtype: type[np.generic]) -> Benchmark:
    return Benchmark(
        f"E5-{dtype.__name__}",
        f"REST request with a picture 1x224x224x3 of {dtype.__name__} to tensor",
        "orjson + numpy",
        Goal(5, Compare.SPEED),
        partial(_json, dtype),
    )


BENCHMARKS = (
    Benchmark(
        "E2",
        "Predict of the embedded server, tiny model",
        "a server as tutorials write it",
        Goal(2.5, Compare.SPEED),
        _tutorial,
    ),
    _e3("MobileNetV2", 1),
    _e3("MobileNetV2", 8),
    _e3("ResNet50", 1),
    _e3("ResNet50", 8),
    Benchmark(
        "E4",
        "REST predict of the embedded server, tiny model",
        "the same HTTP transport with a constant answer",
        Goal(0.5, Compare.SPEED),
        _rest,
    ),
    _e5(np.float32),
    _e5(np.uint8),
    Benchmark(
        "E6",
        f"memory of the embedded server after 1 to 6 times {_SWAPS} swaps of a tiny model",
        "its memory before",
        Goal(1.05),
        _tiny_swaps,
    ),
    Benchmark(
        f"E6-{_LARGE_MB}MB",
        f"the same after 1 to 6 times {_LARGE_SWAPS} swaps of a model of {_LARGE_MB} MB",
        "its memory before",
        Goal(1.05),
        _large_swaps,
    ),
    Benchmark(
        "F1",
        f"Predict of the embedded server, tiny model, {_IN_FLIGHT} in flight",
        "a gRPC server in C++ that answers at once",
        Goal(0.5, Compare.SPEED),
        partial(_grpc_rate, _IN_FLIGHT, 10 * _CALLS),
    ),
    Benchmark(
        "F2",
        "the same, 1 in flight",
        "the same",
        Goal(0.6, Compare.SPEED),
        partial(_grpc_rate, 1, _CALLS),
    ),
    Benchmark(
        "F6",
        f"REST predict of the embedded server, tiny model, {_IN_FLIGHT} connections",
        "nginx with a constant answer",
        Goal(0.25, Compare.SPEED),
        _rest_rate,
    ),
)
