"""The embedded engine against what else would answer: E3 to E6, F1 to F6, F8 and F9."""

import gc
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from bench.drive import PREDICT, grpc_side, threads_side
from bench.generators import found, grpc_server, h2load, h2load_posts, nginx
from bench.harness import Benchmark, Side, Sides, Unavailable
from bench.idle import CONNECTIONS, idle_connections
from bench.processes import MODELS, PYTHON, ROOT, Place, python_module, require_tensorflow
from bench.stats import Compare, Goal
from tfserve_kit import protos, tensors
from tfserve_kit.perf.load import Closed, Load, Open, Payload
from tfserve_kit.perf.sending import run

_TINY = MODELS / "half_plus_two"
_ROWS = np.array([1.0, 2.0, 5.0], np.float32)
_CALLS, _IN_FLIGHT = 2000, 32
_PICTURE = (1, 224, 224, 3)
_PICTURE_CALLS, _PICTURES_IN_FLIGHT, _PICTURES_TO_SUM = 48, 4, 8
_FLOAT = 1  # DT_FLOAT
_SWAPS, _LARGE_SWAPS, _LARGE_MB = 200, 4, 100
_DIGIT = (1, 784)
_BATCHING = f"[batching]\nmax_batch_size = {_IN_FLIGHT}\nnum_batch_threads = 1\n"
_RATE, _RATE_S = 200, 4.0
_SLOW_CLIENTS, _SLOW_S = 8, 0.2


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _at_once(scratch: Path) -> Any:
    return grpc_server(scratch)


def _as_in_tutorials(scratch: Path) -> Any:
    del scratch
    return _other("tutorial", max(_TINY.iterdir(), key=lambda version: int(version.name)))


def _counting(scratch: Path) -> Any:
    del scratch
    return _other("counting")


def _tiny(scratch: Path) -> tuple[Path, NDArray[np.float32]]:
    del scratch
    return _TINY, _ROWS


def _picture(scratch: Path) -> tuple[Path, NDArray[np.float32]]:
    """Return a model that only sums, and what it is sent."""
    picture = np.random.default_rng(0).random(_PICTURE, np.float32)
    return _made(scratch, "summing").parent, picture


@contextmanager
def _grpc_rate(
    against: Callable[[Path], Any],
    sent: Callable[[Path], tuple[Path, NDArray[np.float32]]],
    in_flight: int,
    calls: int,
    scratch: Path,
) -> Iterator[Sides]:
    """Set our server against another one, both asked by h2load."""
    require_tensorflow()
    model, array = sent(scratch)
    with ExitStack() as stack:
        server = stack.enter_context(against(scratch))
        theirs = server if isinstance(server, int) else server.port
        ours = _port(stack.enter_context(Place(scratch).server({"m": model}))["grpc"])
        spec: bytes = protos.ModelSpec(name="m").SerializeToString()
        request = tensors.predict_request({"x": array}, spec)
        for port in (ours, theirs):  # h2load does not look at gRPC's codes
            with grpc_side(port, request, calls=1, in_flight=1) as side:
                side()

        def rate(port: int) -> Side:
            return lambda: _took(
                calls, h2load(scratch, port, in_flight, "-n", str(calls), message=request)
            )

        notes = {"load": f"h2load, {in_flight} in flight, 1 connection"}
        yield Sides(rate(theirs), rate(ours), notes=notes)


@contextmanager
def _batched_rate(scratch: Path) -> Iterator[Sides]:
    """Set our server with batching against one in C++ that answers at once."""
    require_tensorflow()
    version, calls = _made(scratch, "digits"), 5 * _CALLS
    image = np.random.default_rng(0).random(_DIGIT, np.float32)
    with ExitStack() as stack:
        theirs = stack.enter_context(grpc_server(scratch))
        ours = stack.enter_context(Place(scratch).server({"m": version.parent}, _BATCHING))
        request = _request("m", images=image)

        def side(port: int) -> Side:
            return lambda: _took(
                calls, h2load(scratch, port, _IN_FLIGHT, "-n", str(calls), message=request)
            )

        notes = {"load": f"h2load, {_IN_FLIGHT} in flight, 1 connection; one thread for batches"}
        yield Sides(side(theirs.port), side(_port(ours["grpc"])), notes=notes)


def _request(model: str, **inputs: np.ndarray[Any, Any]) -> bytes:
    spec: bytes = protos.ModelSpec(name=model).SerializeToString()
    return tensors.predict_request(inputs, spec)


@contextmanager
def _beside_slow(scratch: Path) -> Iterator[Sides]:
    """Set the tail of a tiny model beside a slow one against the same alone."""
    require_tensorflow()
    version = _made(scratch, "slow")
    with ExitStack() as stack:
        server = Place(scratch).server({"m": _TINY, "slow": version.parent})
        url = stack.enter_context(server)["grpc"]
        payload = Payload(PREDICT, (), _request("m", x=_ROWS))
        due = Open((np.arange(round(_RATE * _RATE_S)) * (1e9 / _RATE)).astype(np.int64))
        notes = {"load": f"{_RATE}/s; {_SLOW_CLIENTS} callers of {_SLOW_S * 1e3:.0f} ms"}

        def tail() -> float:
            samples = run(Load(url, "grpc", due), [payload])
            if samples["status"].any():
                raise RuntimeError("a request failed")
            return float(np.quantile(samples["done_ns"] - samples["due_ns"], 0.99)) / 1e9

        def beside() -> float:
            with _kept_busy(url, slow):
                found = tail()
            notes["p99 beside"] = f"{found * 1e3:.2f} ms in the last turn"
            return found

        slow = Payload(PREDICT, (), _request("slow", x=np.array([_rounds(url)], np.int32)))
        yield Sides(tail, beside, notes=notes)


def _rounds(url: str) -> int:
    """Return how many rounds of the slow model take the time that it is to take."""
    few = 200
    payload = Payload(PREDICT, (), _request("slow", x=np.array([few], np.int32)))
    samples = run(Load(url, "grpc", Closed(1, requests=5)), [payload])
    took_s = float((samples["done_ns"] - samples["sent_ns"]).min()) / 1e9
    return round(few * _SLOW_S / took_s)


@contextmanager
def _kept_busy(url: str, payload: Payload) -> Iterator[None]:
    """Have some callers ask again and again."""
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(url.removeprefix("grpc://")))
        call, is_over = channel.unary_unary(PREDICT), threading.Event()

        def ask() -> None:
            while not is_over.is_set():
                call(payload.body)

        callers = [threading.Thread(target=ask) for _ in range(_SLOW_CLIENTS)]
        for caller in callers:
            caller.start()
        time.sleep(2 * _SLOW_S)
        try:
            yield
        finally:
            is_over.set()
            for caller in callers:
                caller.join()


@contextmanager
def _rest_rate(scratch: Path) -> Iterator[Sides]:
    """Set our server with a tiny model against nginx with a constant answer."""
    require_tensorflow()
    body = json.dumps({"instances": _ROWS.tolist()}).encode()
    with ExitStack() as stack:
        theirs = stack.enter_context(nginx(scratch))
        ours = stack.enter_context(Place(scratch).server({"m": _TINY}))
        yield Sides(
            _posts(scratch, theirs, body),
            _posts(scratch, _port(ours["rest"]), body),
            notes={"load": f"h2load, {_IN_FLIGHT} connections"},
        )


def _took(calls: int, printed: str) -> float:
    """Return how long h2load took for calls that must all have succeeded, in seconds."""
    if f"{calls} succeeded" not in printed:
        raise RuntimeError(printed)
    return calls / float(found(r"([\d.]+) req/s", printed))


@contextmanager
def _other(kind: str, *arguments: str | Path) -> Iterator[int]:
    """Run one of `bench.servers`; yield its port."""
    with python_module("bench.servers", kind, *arguments) as process:
        yield int(process.stdout.readline())


@contextmanager
def _network(name: str, batch: int, scratch: Path) -> Iterator[Sides]:
    """Set a network served over gRPC against calls of the same network in this process."""
    require_tensorflow()
    import tensorflow as tf

    version = _made(scratch, name)
    images = np.random.default_rng(0).random((batch, *_PICTURE[1:]), np.float32)
    # Restored by tensorflow itself: the embedded engine would have changed the graph.
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
    signature = graph.signature_def["serving_default"]
    call = session.make_callable(signature.outputs["scores"].name, [signature.inputs["x"].name])
    calls, in_flight = max(12, _PICTURE_CALLS // batch), _PICTURES_IN_FLIGHT
    with ExitStack() as stack:
        port = _port(stack.enter_context(Place(scratch).server({"m": version.parent}))["grpc"])
        request = _request("m", x=images)
        with grpc_side(port, request, calls=1, in_flight=1) as side:
            side()  # h2load does not look at gRPC's codes

        def served() -> float:
            return _took(calls, h2load(scratch, port, in_flight, "-n", str(calls), message=request))

        yield Sides(
            threads_side(lambda: call(images), calls=calls, in_flight=in_flight),
            served,
            notes={"load": f"{in_flight} in flight on both sides, by h2load and by threads"},
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
def _json(dtype: type[np.generic], scratch: Path) -> Iterator[Sides]:
    """Read one picture from a predict request, in this process, beside tensorflow as in a server.

    The lists of the baseline wake the garbage collector, which looks at all of tensorflow; a row
    shows it without that.
    """
    del scratch
    require_tensorflow()
    try:
        import orjson
        import tensorflow as tf  # noqa: F401 (it is to be there)

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
        {
            "json + numpy": _timed(lambda: usual(json.loads)),
            "orjson + numpy, no garbage collection": _timed(
                lambda: _uncollected(usual, orjson.loads)
            ),
        },
        {"body": f"{len(body):,} bytes"},
    )


def _uncollected(read: Callable[..., object], *arguments: object) -> object:
    gc.disable()
    try:
        return read(*arguments)
    finally:
        gc.enable()


def _timed(call: Callable[[], object]) -> Side:
    def side() -> float:
        started_s = time.perf_counter()
        call()
        return time.perf_counter() - started_s

    return side


@contextmanager
def _swapped(version: Path, swaps: int) -> Iterator[Sides]:
    """Hold the memory after more and more swaps against the memory before the first one."""
    with python_module("bench.swaps", version) as process:
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


@contextmanager
def _rest_share(scratch: Path) -> Iterator[Sides]:
    """Set our server with a tiny model against its own HTTP transport with a constant answer."""
    require_tensorflow()
    body = json.dumps({"instances": _ROWS.tolist()}).encode()
    with ExitStack() as stack:
        ours = stack.enter_context(Place(scratch).server({"m": _TINY}))
        theirs = stack.enter_context(_other("constant"))
        yield Sides(
            _posts(scratch, theirs, body),
            _posts(scratch, _port(ours["rest"]), body),
            notes={"load": f"h2load, {_IN_FLIGHT} connections"},
        )


def _posts(scratch: Path, port: int, body: bytes) -> Side:
    """Return a side that posts a predict request over and over."""
    url, calls = f"http://127.0.0.1:{port}/v1/models/m:predict", 10 * _CALLS
    return lambda: _took(calls, h2load_posts(scratch, url, _IN_FLIGHT, calls, body))


def _e3(name: str, batch: int) -> Benchmark:
    return Benchmark(
        f"E3-{name}-{batch}",
        f"Predict of the embedded server, {name}, batch {batch}",
        "the same calls of tensorflow in one process",
        Goal(0.95, Compare.SPEED, equality=True),
        partial(_network, name, batch),
    )


def _e5(dtype: type[np.generic]) -> Benchmark:
    return Benchmark(
        f"E5-{dtype.__name__}",
        f"REST request with a picture 1x224x224x3 of {dtype.__name__} to tensor",
        "orjson + numpy",
        Goal(10, Compare.SPEED),
        partial(_json, dtype),
    )


BENCHMARKS = (
    _e3("MobileNetV2", 1),
    _e3("MobileNetV2", 8),
    _e3("ResNet50", 1),
    _e3("ResNet50", 8),
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
        partial(_grpc_rate, _at_once, _tiny, _IN_FLIGHT, 10 * _CALLS),
    ),
    Benchmark(
        "F2",
        "the same, 1 in flight",
        "the same",
        Goal(0.6, Compare.SPEED),
        partial(_grpc_rate, _at_once, _tiny, 1, _CALLS),
    ),
    Benchmark(
        "F4",
        "Predict of the embedded server, 1x224x224x3 float32 to a model that sums, 8 in flight",
        "grpcio, counting the bytes of its requests",
        Goal(1.5, Compare.SPEED),
        partial(_grpc_rate, _counting, _picture, _PICTURES_TO_SUM, 10 * _PICTURES_TO_SUM),
    ),
    Benchmark(
        "F5",
        f"Predict of the embedded server, tiny model, {_IN_FLIGHT} in flight",
        "a server as tutorials write it",
        Goal(12, Compare.SPEED),
        partial(_grpc_rate, _as_in_tutorials, _tiny, _IN_FLIGHT, _CALLS),
    ),
    Benchmark(
        "F3",
        f"Predict with batching, one layer 784-10, {_IN_FLIGHT} in flight",
        "a gRPC server in C++ that answers at once",
        Goal(0.3, Compare.SPEED),
        _batched_rate,
    ),
    Benchmark(
        "F6",
        f"REST predict of the embedded server, tiny model, {_IN_FLIGHT} connections",
        "nginx with a constant answer",
        Goal(0.25, Compare.SPEED),
        _rest_rate,
    ),
    Benchmark(
        "F7",
        "the same",
        "the same HTTP transport with a constant answer",
        Goal(0.6, Compare.SPEED),
        _rest_share,
    ),
    Benchmark(
        "F8",
        f"p99 of a tiny model at {_RATE}/s beside {_SLOW_CLIENTS} callers of a slow one",
        "the same alone",
        Goal(0.005, Compare.DIFFERENCE),
        _beside_slow,
    ),
    Benchmark(
        "F9",
        f"memory that {CONNECTIONS:,} idle gRPC connections take",
        "a gRPC server in C++ that answers at once",
        Goal(0.5),
        idle_connections,
    ),
)
