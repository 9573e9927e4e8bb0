"""The load harness against other load generators and against the truth: P1 to P4.

The servers answer at once, so that what is measured is who asks; see `generators.py`.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.generators import GRPC, REST, found, grpc_server, h2load, nginx, wrk
from bench.harness import Benchmark, Side, Sides
from bench.stats import Compare, Goal
from tfserve_kit.perf.load import Closed, Load, Open, Payload
from tfserve_kit.perf.sending import run

_IN_FLIGHT = 32
_CALLS = 40_000
_RATE, _RATE_S = 1000, 1.0
# Long enough that the 32 requests h2load has in flight are less than one in a hundred.
_STALL_RATE, _STALL_S, _STALLED_RUN_S = 1000, 1.0, 4.0
_WRK_S = 1


def _sent(load: Load, payload: Payload, **options: Any) -> NDArray[np.void]:
    samples = run(load, [payload], **options)
    if samples["status"].any():
        raise RuntimeError(f"{(samples['status'] != 0).sum()} requests failed")
    return samples


def _ours(load: Load, payload: Payload) -> Side:
    """Return a side that sends a number of requests as quickly as it can."""

    def side() -> float:
        samples = _sent(load, payload)
        return float(samples["done_ns"].max() - samples["sent_ns"].min()) / 1e9

    return side


def _h2load_calls(scratch: Path, port: int) -> Side:
    def side() -> float:
        text = h2load(scratch, port, _IN_FLIGHT, "-n", str(_CALLS))
        if f"{_CALLS} succeeded" not in text:
            raise RuntimeError(text)
        return _CALLS / float(found(r"([\d.]+) req/s", text))

    return side


def _h2load_latencies(scratch: Path, port: int, rate: int, seconds: float) -> NDArray[np.float64]:
    """Return what h2load says requests took, in seconds."""
    log = scratch / "h2load.log"
    log.unlink(missing_ok=True)
    asked = (f"--rps={rate}", "-n", str(round(rate * seconds)), f"--log-file={log}")
    h2load(scratch, port, _IN_FLIGHT, *asked)
    latencies: NDArray[np.float64] = np.loadtxt(log, usecols=2, ndmin=1) / 1e6
    return latencies


def _due(rate: int, seconds: float) -> NDArray[np.int64]:
    return (np.arange(round(rate * seconds)) * (1e9 / rate)).astype(np.int64)


@contextmanager
def _most_grpc(scratch: Path) -> Iterator[Sides]:
    with grpc_server(scratch) as server:
        port = server.port
        url, closed = f"grpc://127.0.0.1:{port}", Closed(_IN_FLIGHT, requests=_CALLS)
        yield Sides(
            _h2load_calls(scratch, port),
            _ours(Load(url, "grpc", closed), GRPC),
            {
                "the harness, 2 processes": _ours(Load(url, "grpc", closed, processes=2), GRPC),
                "the harness over grpcio": _times(
                    10,
                    _ours(
                        Load(url, "grpc", Closed(_IN_FLIGHT, requests=_CALLS // 10),
                             sender="grpcio"), GRPC,
                    ),
                ),
            },
            {"load": f"{_IN_FLIGHT} in flight, 1 connection, a C++ server that answers at once"},
        )  # fmt: skip


def _times(factor: int, side: Side) -> Side:
    return lambda: factor * side()


@contextmanager
def _median_latency(scratch: Path) -> Iterator[Sides]:
    with grpc_server(scratch) as server:
        port = server.port
        load = Load(f"grpc://127.0.0.1:{port}", "grpc", Open(_due(_RATE, _RATE_S)))

        def ours() -> float:
            samples = _sent(load, GRPC)
            return float(np.median(samples["done_ns"] - samples["due_ns"])) / 1e9

        yield Sides(
            lambda: float(np.median(_h2load_latencies(scratch, port, _RATE, _RATE_S))),
            ours,
            notes={"load": f"{_RATE}/s; h2load counts from sent, the harness from due"},
        )


class _Stalled:
    """A run whose server is frozen for a while, and what its requests must have waited."""

    def __init__(self, load: Load, pid: int) -> None:
        self._load, self._pid = load, pid
        self.found_s = self.truth_s = 0.0

    def truth(self) -> float:
        """Run; return the 99th percentile as calculated."""
        stall_ns: list[int] = []
        threads: list[threading.Thread] = []

        def started(start_ns: int) -> None:
            threads.append(threading.Thread(target=_freeze, args=(self._pid, start_ns, stall_ns)))
            threads[0].start()

        samples = _sent(self._load, GRPC, started=started)
        threads[0].join()
        began_ns, ended_ns = stall_ns
        due_ns = samples["due_ns"]
        waits_ns = np.where((due_ns >= began_ns) & (due_ns < ended_ns), ended_ns - due_ns, 0)
        self.found_s = float(np.quantile(samples["done_ns"] - due_ns, 0.99)) / 1e9
        return float(np.quantile(waits_ns, 0.99)) / 1e9

    def found(self) -> float:
        """Return the 99th percentile that the harness found in the same run."""
        return self.found_s


def _freeze(pid: int, start_ns: int, stall_ns: list[int]) -> None:
    time.sleep((_STALLED_RUN_S - _STALL_S) / 2)
    stall_ns.append(time.monotonic_ns() - start_ns)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(_STALL_S)
    os.kill(pid, signal.SIGCONT)
    stall_ns.append(time.monotonic_ns() - start_ns)


@contextmanager
def _stall(scratch: Path) -> Iterator[Sides]:
    with grpc_server(scratch) as server:
        port, pid = server.port, server.process.pid
        due = Open(_due(_STALL_RATE, _STALLED_RUN_S))
        stalled = _Stalled(Load(f"grpc://127.0.0.1:{port}", "grpc", due), pid)

        def theirs() -> float:
            beside = threading.Thread(target=_freeze, args=(pid, time.monotonic_ns(), []))
            beside.start()
            found = _h2load_latencies(scratch, port, _STALL_RATE, _STALLED_RUN_S)
            beside.join()
            return float(np.quantile(found, 0.99))

        yield Sides(
            stalled.truth,
            stalled.found,
            {"h2load --rps": theirs},
            {"load": f"{_STALL_RATE}/s for {_STALLED_RUN_S} s, the server frozen for {_STALL_S} s"},
        )


@contextmanager
def _most_rest(scratch: Path) -> Iterator[Sides]:
    with nginx(scratch) as port:
        url = f"http://127.0.0.1:{port}"

        def theirs() -> float:
            text = wrk(scratch, port, _IN_FLIGHT, _WRK_S)
            return _CALLS / float(found(r"Requests/sec:\s+([\d.]+)", text))

        load = Load(url, "rest", Closed(_IN_FLIGHT, requests=_CALLS))
        yield Sides(theirs, _ours(load, REST), notes={"load": f"{_IN_FLIGHT} connections, nginx"})


def _benchmark(
    number: int, what: str, against: str, goal: Goal, prepare: Callable[[Path], Any]
) -> Benchmark:
    return Benchmark(f"P{number}", what, against, goal, prepare)


BENCHMARKS = (
    _benchmark(1, "the harness's most gRPC requests per second", "h2load",
               Goal(0.9, Compare.SPEED, equality=True), _most_grpc),
    _benchmark(2, f"the harness's median latency at {_RATE}/s", "h2load",
               Goal(100, Compare.MICROSECONDS), _median_latency),
    _benchmark(3, "99th percentile over a stall, as the harness finds it", "as calculated",
               Goal(1.05, equality=True), _stall),
    _benchmark(4, "the harness's most REST requests per second", "wrk",
               Goal(0.5, Compare.SPEED), _most_rest),
)  # fmt: skip
