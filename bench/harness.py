"""Interleaved rounds: baseline, subject, baseline, subject, ... in one run on one machine.

A round goes on until its time is up and every side has had the same number of turns; its figure
compares the means of the two sides. A benchmark's figure is the median of its rounds.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.report import Figure, Other, Run
from bench.stats import Goal, Turns, compared, spread, verdict
from tfserve_kit.perf import measuring

Side = Callable[[], float]
"""One turn of a side; returns its length in seconds, without what had to be set up for it."""


# Variables that change how fast the libraries are.
_FLAGS = (
    "GRPC_POLL_STRATEGY",
    "OMP_NUM_THREADS",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION",
    "PYTHONOPTIMIZE",
    "TF_ENABLE_ONEDNN_OPTS",
)


class Unavailable(Exception):
    """A benchmark cannot run here; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Sides:
    """What takes turns.

    Attributes:
        baseline: what the subject is held against.
        subject: what is measured.
        others: more subjects, measured for comparison, without a goal.
        notes: what a reader should know about this run, such as the file system.
    """

    baseline: Side
    subject: Side
    others: Mapping[str, Side] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A subject, its baseline and its goal.

    Attributes:
        id: its number in the table of goals, such as `C1`.
        what: the subject.
        against: the baseline.
        goal: what to reach.
        prepare: given an empty folder, sets the sides up and cleans up after them; raises
            `Unavailable`.
    """

    id: str
    what: str
    against: str
    goal: Goal
    prepare: Callable[[Path], AbstractContextManager[Sides]]


def measure(benchmark: Benchmark, scratch: Path, *, rounds: int, seconds: float) -> Figure:
    """Run one benchmark.

    Args:
        benchmark: what to run.
        scratch: an empty folder for its files.
        rounds: number of rounds.
        seconds: length of a round, in seconds; the turns under way are finished.

    Raises:
        Unavailable: something it needs is missing.
    """
    started_s = time.perf_counter()
    with benchmark.prepare(scratch) as sides:
        named = {"baseline": sides.baseline, "subject": sides.subject, **sides.others}
        for side in named.values():  # fills the page cache, compiles modules, grows the heap
            side()
        measured = []
        for number in range(1, rounds + 1):
            _say(f"{benchmark.id}: round {number} of {rounds}")
            measured.append(_round(named, seconds))
        notes = dict(sides.notes)
    return _figure(benchmark, measured, notes, time.perf_counter() - started_s)


def _round(sides: Mapping[str, Side], seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    end_s = time.perf_counter() + seconds
    while not times["baseline"] or time.perf_counter() < end_s:
        for name, side in sides.items():
            times[name].append(side())
    return times


def _figure(
    benchmark: Benchmark, rounds: list[dict[str, list[float]]], notes: dict[str, str], run_s: float
) -> Figure:
    def values(name: str) -> list[float]:
        return [
            compared(Turns(times["baseline"], times[name]), benchmark.goal.compare)
            for times in rounds
        ]

    others = [name for name in rounds[0] if name not in {"baseline", "subject"}]
    result = spread(values("subject"))
    return Figure(
        id=benchmark.id,
        what=benchmark.what,
        against=benchmark.against,
        goal=str(benchmark.goal),
        unit=benchmark.goal.compare.value,
        result=result,
        verdict=verdict(result.median, benchmark.goal),
        others=[Other(name, spread(values(name))) for name in others],
        notes=notes,
        run_s=run_s,
        rounds=rounds,
    )


def describe(run: Run) -> Run:
    """Write into a run where it was made: processor, versions, flags and load."""
    flags = {name: os.environ[name] for name in _FLAGS if name in os.environ}
    run.environment |= measuring.describe_environment()
    run.environment |= {name: _version(name) for name in ("protobuf", "pillow", "tensorflow")}
    run.environment |= flags | {"load before": f"{os.getloadavg()[0]:.1f}"}
    return run


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
