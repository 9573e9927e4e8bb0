"""What `tfkit serve` adds to the engine's own start: L1."""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Benchmark, Sides, Unavailable
from bench.processes import (
    MODELS,
    PYTHON,
    Place,
    console_script,
    free_port,
    require_tensorflow,
    serve_arguments,
)
from bench.stats import Compare, Goal

_BASE_PATH = MODELS / "mlp"
_POLL_S = 0.002
_TIMEOUT_S = 120.0


@contextmanager
def _launch(scratch: Path) -> Iterator[Sides]:
    require_tensorflow()
    place = Place(scratch)
    serve = place.timed(console_script(), *serve_arguments({"mlp": _BASE_PATH}))

    def by_tfkit() -> float:
        try:
            return serve()
        finally:
            place.tfkit("stop", "--all")

    yield Sides(lambda: _engine_alone(place), by_tfkit)


@contextmanager
def _launch_container(scratch: Path) -> Iterator[Sides]:
    image = os.environ.get("TFKIT_IMAGE", "")
    if not image or not shutil.which("docker"):
        raise Unavailable("TFKIT_IMAGE names no image that is here, or there is no docker")
    place = Place(scratch)
    arguments = serve_arguments({"mlp": _BASE_PATH}, engine="docker")
    serve = place.timed(console_script(), *arguments)

    def by_tfkit() -> float:
        try:
            return serve()
        finally:
            place.tfkit("stop", "--all")

    yield Sides(lambda: _container_alone(place, image), by_tfkit, notes={"image": image})


def _engine_alone(place: Place) -> float:
    """Start the engine without tfkit; return the seconds until its model is available."""
    rest = free_port()
    flags = (f"--port={free_port()}", f"--rest_api_port={rest}", "--bind_address=127.0.0.1")
    model = ("--model_name=mlp", f"--model_base_path={_BASE_PATH}")
    return _until_available(place, rest, PYTHON, "-m", "tfserve_kit.embedded", *flags, *model)


def _container_alone(place: Place, image: str) -> float:
    """Start the image as its documentation says; as `_engine_alone`."""
    rest = free_port()
    return _until_available(
        place, rest, "docker", "run", "--rm", "--init", f"--publish=127.0.0.1:{rest}:8501",
        f"--volume={_BASE_PATH}:/models/mlp:ro", "--env=MODEL_NAME=mlp", image,
    )  # fmt: skip


def _until_available(place: Place, rest: int, *argv: str) -> float:
    started_s = time.perf_counter()
    process = subprocess.Popen(
        argv,
        cwd=place.folder,
        env=place.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _available(rest):
            if process.poll() is not None or time.perf_counter() - started_s > _TIMEOUT_S:
                raise RuntimeError(f"the engine did not start: exit status {process.returncode}")
            time.sleep(_POLL_S)
        return time.perf_counter() - started_s
    finally:
        process.terminate()
        process.wait()


def _available(port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)) as asked:
        try:
            asked.request("GET", "/v1/models/mlp")
            answer = json.loads(asked.getresponse().read())
        except (OSError, http.client.HTTPException):  # Docker's proxy hangs up until it listens
            return False
    versions = answer.get("model_version_status", [])
    return any(each["state"] == "AVAILABLE" for each in versions)


BENCHMARKS = (
    Benchmark(
        "L1",
        "`tfkit serve --detach` until it returns",
        "difference to the engine alone until AVAILABLE",
        Goal(1.0, Compare.DIFFERENCE),
        _launch,
    ),
    Benchmark(
        "L1-docker",
        "`tfkit serve --engine docker --detach` until it returns",
        "difference to `docker run` until AVAILABLE",
        Goal(1.0, Compare.DIFFERENCE),
        _launch_container,
    ),
)
