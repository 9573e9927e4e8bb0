"""A gRPC service of our own, `Classifier`, in front of a model that tfkit serves.

Every picture is a request of its own; the model server behind groups them into batches. What it
cannot queue is refused with UNAVAILABLE, and the client may come again later.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import services_pb2
import services_pb2_grpc

from tfserve_kit import Client, Target, connect
from tfserve_kit.clients.classifier import top_scores
from tfserve_kit.deployment import Spec, build
from tfserve_kit.engines import registry
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RequestError,
    ServerOverloaded,
    ServerUnreachable,
    SpecError,
    TfkitError,
)
from tfserve_kit.pictures.outputs import choose_head
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.serving import launch

MODEL = "classifier"
BACKEND = "classification-backend"
_CALLS_AT_ONCE = 64  # calls that wait for one batch together
_STATUS = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ServerOverloaded: grpc.StatusCode.UNAVAILABLE,
    ServerUnreachable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Classifier(services_pb2_grpc.ClassifierServicer):  # type: ignore[misc] # generated, untyped
    """Answers with the sorted scores of a model that takes one flat picture a row.

    Args:
        client: a connection to the model server.
        labels: names of the classes, None if they are not known.
    """

    def __init__(self, client: Client, labels: tuple[str, ...] | None) -> None:
        self._client, self._labels = client, labels
        signature = client.metadata(Target(MODEL)).signatures["serving_default"]
        (self._input,) = signature.inputs
        self._scores = choose_head(signature).scores

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 (gRPC's)
        """Classify one picture; see services.proto."""
        row = np.array([request.image], np.float32)
        try:
            answer = self._client.predict(Target(MODEL), {self._input: row})
        except RequestError as error:
            context.abort(_STATUS.get(type(error), grpc.StatusCode.INTERNAL), error.message)
        scores = answer.outputs[self._scores][0]
        best_first = top_scores(scores, self._labels, len(scores))
        return services_pb2.ClassifyResponse(
            scores=[
                services_pb2.ClassScore(index=each.index, score=each.score, label=each.label or "")
                for each in best_first
            ]
        )


def deployment(options: argparse.Namespace) -> Spec:
    """Return what the flags ask for, as tfkit's deployment.

    Raises:
        SpecError: with every flag that cannot be so.
    """
    document: dict[str, Any] = {
        "server": {"name": BACKEND, "engine": options.engine, "grpc_port": 0, "rest_port": 0},
        "models": {MODEL: {"base_path": str(options.model.resolve())}},
        "docker": {"image": options.image} if options.image else {},
    }
    if options.use_batching:
        document["batching"] = {name: getattr(options, name) for name in BATCHING}
    return build(document, source="flags", folder=Path.cwd())


@contextmanager
def backend(wanted: Spec) -> Iterator[str]:
    """Run the model server for a `with` block and give its address."""
    engine, _ = registry.choose(wanted.server.engine, docker=wanted.docker)
    handle = launch.up(wanted, engine)
    try:
        yield handle.endpoints.grpc
    finally:
        handle.stop()


def serve(options: argparse.Namespace, wanted: Spec) -> None:
    """Answer calls until Ctrl-C or SIGTERM."""
    version = max(int(each.name) for each in options.model.iterdir() if each.name.isdecimal())
    labels = Preprocessing.read(options.model / str(version)).labels
    # Without repeats a full queue is told to the client at once, who knows whether to wait.
    with backend(wanted) as url, connect(url, retries=0) as client:
        server = grpc.server(ThreadPoolExecutor(_CALLS_AT_ONCE))
        services_pb2_grpc.add_ClassifierServicer_to_server(Classifier(client, labels), server)
        port = server.add_insecure_port(f"localhost:{options.port}")
        server.start()
        print(f"Listening on localhost:{port}, batching {_described(wanted)}", flush=True)
        try:
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
        finally:
            server.stop(grace=1).wait()


def _described(wanted: Spec) -> str:
    if wanted.batching is None:
        return "off"
    return ", ".join(f"{name}={getattr(wanted.batching, name)}" for name in BATCHING)


def _sizes(text: str) -> list[int]:
    return [int(part) for part in text.replace(",", " ").split()]


def _switch(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


# Name, type, default and meaning of the flags that become the backend's batching parameters.
BATCHING: dict[str, tuple[Any, Any, str]] = {
    "thread_pool_name": (str, "batch_threads", "name of the threads that run batches"),
    "num_batch_threads": (int, 1, "batches that run at once"),
    "max_batch_size": (int, 1000, "most pictures in a batch"),
    "batch_timeout_micros": (int, 1000, "longest wait for a batch to fill, in microseconds"),
    "max_enqueued_batches": (int, 1, "batches that may wait; more are refused: UNAVAILABLE"),
    "allowed_batch_sizes": (_sizes, "", "sizes to pad to, as '8 16' or '8,16'; '' for any"),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    made = argparse.ArgumentParser(description=__doc__)
    flag = made.add_argument
    flag("--model", type=Path, required=True, metavar="DIR", help="base path: holds versions")
    flag("--port", type=int, default=9000, help="port of this service, 0 for a free one")
    flag("--engine", default="auto", help="what runs the model: auto, docker, native, embedded")
    flag("--image", help="image for the Docker engine")
    flag("--use_batching", type=_switch, nargs="?", const=True, default=True, metavar="BOOL",
         help="whether requests are grouped (true)")  # fmt: skip
    for name, (kind, default, meaning) in BATCHING.items():
        flag(f"--{name}", type=kind, default=default, help=f"{meaning} ({default!r})")
    return made


def main() -> int:
    """Parse the flags and serve; exit status 2 for a flag that cannot be so."""
    made = parser()
    options = made.parse_args()
    if not any(options.model.glob("*/saved_model.pb")):
        made.error(f"--model {options.model} holds no version such as {options.model}/1")
    try:
        wanted = deployment(options)
    except SpecError as error:
        made.error("; ".join(str(problem) for problem in error.problems))
    # Blocked before threads start, which inherit it; `sigwait` gets the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        serve(options, wanted)
    except TfkitError as error:
        sys.stderr.write(f"server.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
