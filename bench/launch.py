"""What `tfkit serve` adds to the engine's own start: L1."""

import contextlib
import http.client
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Benchmark, Sides
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


def _engine_alone(place: Place) -> float:
    """Start the engine without tfkit; return the seconds until its model is available."""
    rest = free_port()
    flags = (f"--port={free_port()}", f"--rest_api_port={rest}", "--bind_address=127.0.0.1")
    model = ("--model_name=mlp", f"--model_base_path={_BASE_PATH}")
    started_s = time.perf_counter()
    process = subprocess.Popen(
        [PYTHON, "-m", "tfserve_kit.embedded", *flags, *model],
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
        except OSError:
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
)
