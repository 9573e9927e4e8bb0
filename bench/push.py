"""Staging a model version: S1 (500 MB), S2 (2,000 small files), and the swap under load (S3)."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from bench.harness import Benchmark, Side, Sides
from bench.processes import MODELS, PYTHON, ROOT, Place, require_tensorflow
from bench.stats import Compare, Goal
from tfserve_kit import connect
from tfserve_kit.repository import push
from tfserve_kit.serving.swap import Traffic, verify

_LARGE_MEGABYTES = 500
_SMALL_FILES, _SMALL_BYTES = 2_000, 4_096
_LOAD = Traffic(rate=200.0, settle_s=0.5)


@contextmanager
def _large(scratch: Path) -> Iterator[Sides]:
    require_tensorflow()
    source = scratch / "source"
    argv = [PYTHON, "-m", "bench.savedmodel", str(source), str(_LARGE_MEGABYTES)]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(argv, cwd=ROOT, env=quiet, check=True, stderr=subprocess.DEVNULL)
    yield _sides(source, scratch, keep=False)


@contextmanager
def _small(scratch: Path) -> Iterator[Sides]:
    source = scratch / "source"
    shutil.copytree(MODELS / "half_plus_two" / "1", source)
    (source / "assets").mkdir(exist_ok=True)
    for number in range(_SMALL_FILES):
        (source / "assets" / f"{number:04}.bin").write_bytes(os.urandom(_SMALL_BYTES))
    yield _sides(source, scratch, keep=True)


def _sides(source: Path, scratch: Path, *, keep: bool) -> Sides:
    def by_cp(base_path: Path) -> None:
        command = ["sh", "-c", 'cp -r "$0" "$1" && sync', str(source), str(base_path / "1")]
        subprocess.run(command, check=True)

    def by_push(base_path: Path) -> None:
        push(source, base_path)

    copies = (scratch / f"copy-{number}" for number in count())
    return Sides(
        _turn(by_cp, copies, keep=keep),
        _turn(by_push, copies, keep=keep),
        notes={"file system": file_system(scratch)},
    )


@contextmanager
def _swaps(scratch: Path) -> Iterator[Sides]:
    require_tensorflow()
    place, base_path = Place(scratch), scratch / "m"
    sources = [MODELS / "half_plus_two" / version for version in ("1", "2")]
    push(sources[0], base_path)
    sent: list[int] = []
    url = ""

    def swap() -> float:
        """Push the other model under load; return how many requests were lost or wrong."""
        source = sources[len(sent) % 2]
        with connect(url, retries=0) as client:
            report = verify(client, "m", lambda: push(source, base_path).version, traffic=_LOAD)
        sent.append(report.sent)
        noticed = sum(report.lost.values()) + sum(report.wrong.values()) + report.stale
        return float(noticed + (not report.passed))

    with place.server({"m": base_path}) as server:
        url = server["grpc"]
        yield Sides(lambda: 0.0, swap, notes={"load": f"{_LOAD.rate:g} requests/s, open loop"})


def _turn(copy: Callable[[Path], None], base_paths: Iterator[Path], *, keep: bool) -> Side:
    """Return a side that copies to a new place, with nothing left from before to write to disk.

    Args:
        copy: what is measured; given an empty folder.
        base_paths: where the folders are made.
        keep: leave the copies until the end. Ext4 makes new files ten times more slowly where
            many were deleted in the last minutes, so small files must not go between turns.
    """

    def side() -> float:
        base_path = next(base_paths)
        base_path.mkdir()
        os.sync()
        started_s = time.perf_counter()
        copy(base_path)
        duration_s = time.perf_counter() - started_s
        if not keep:
            shutil.rmtree(base_path)
        return duration_s

    return side


def file_system(path: Path) -> str:
    """Return the type of the file system that holds a path, as the kernel names it."""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    mounts = [line.split()[1:3] for line in lines]
    holding = [each for each in mounts if path.resolve().is_relative_to(each[0])]
    return max(holding, key=lambda each: len(each[0]), default=["", "unknown"])[1]


BENCHMARKS = (
    Benchmark(
        "S1", "push of a SavedModel of 500 MB", "`cp -r && sync`", Goal(1.15, equality=True), _large
    ),
    Benchmark(
        "S2",
        "push of a SavedModel with 2,000 files of 4 KiB",
        "`cp -r && sync`",
        Goal(1.15, equality=True),
        _small,
    ),
    Benchmark(
        "S3",
        "requests lost or answered wrongly while a version is pushed and taken up",
        "none",
        Goal(0, Compare.COUNT),
        _swaps,
    ),
)
