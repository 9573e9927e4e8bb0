"""Does the harness find the rate that other load generators find? P5 and P6.

The servers take one request after the other and a fixed time for each, so the rate is theirs: who
always keeps some waiting must find it. Each reports in its own way, ours as `tfkit perf` does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.generators import (
    GRPC,
    REST,
    autocannon,
    found,
    grpc_server,
    h2load,
    tool,
    waiting_server,
    wrk,
)
from bench.harness import Benchmark, Side, Sides, Unavailable
from bench.stats import Compare, Goal
from tfserve_kit.perf.load import Closed, Load, Payload
from tfserve_kit.perf.samples import Run
from tfserve_kit.perf.sending import run
from tfserve_kit.perf.stats import summarize

_EACH_US = 1000
_IN_FLIGHT = 64  # so that a pause of 60 ms leaves the server with something to do
_TURN_S = 3
_ANSWERS = 1000  # the length of a turn is told as what so many answers take
_LOAD = f"{_IN_FLIGHT} in flight, {_EACH_US / 1000:g} ms for each in turn, turns of {_TURN_S} s"


def _ours(load: Load, payload: Payload) -> Side:
    def side() -> float:
        samples = run(load, [payload])
        if samples["status"].any():
            raise RuntimeError(f"{(samples['status'] != 0).sum()} requests failed")
        return _ANSWERS / (summarize(Run(samples, {"loop": "closed"})).achieved_rate or 0.0)

    return side


@contextmanager
def _grpc(scratch: Path) -> Iterator[Sides]:
    with grpc_server(scratch, _EACH_US) as server:

        def theirs() -> float:
            text = h2load(scratch, server.port, _IN_FLIGHT, "-D", str(_TURN_S))
            return _ANSWERS / float(found(r"([\d.]+) req/s", text))

        url, closed = f"grpc://127.0.0.1:{server.port}", Closed(_IN_FLIGHT, _TURN_S)
        other = _ours(Load(url, "grpc", closed, processes=2), GRPC)
        yield Sides(
            theirs,
            _ours(Load(url, "grpc", closed), GRPC),
            {"the harness, 2 processes": other},
            {"load": _LOAD},
        )


@contextmanager
def _rest(scratch: Path) -> Iterator[Sides]:
    with waiting_server(scratch, _EACH_US) as server:

        def theirs() -> float:
            text = wrk(scratch, server.port, _IN_FLIGHT, _TURN_S)
            return _ANSWERS / float(found(r"Requests/sec:\s+([\d.]+)", text))

        def others() -> float:
            said = autocannon(server.port, _IN_FLIGHT, _TURN_S)
            return _ANSWERS / float(said["requests"]["average"])

        load = Load(f"http://127.0.0.1:{server.port}", "rest", Closed(_IN_FLIGHT, _TURN_S))
        beside, notes = {"autocannon": others}, {"load": _LOAD}
        try:
            tool("autocannon", "")
        except Unavailable:
            beside, notes = {}, notes | {"autocannon": "was not installed"}
        yield Sides(theirs, _ours(load, REST), beside, notes)


BENCHMARKS = (
    Benchmark("P5", "the gRPC rate that the harness finds", "that h2load finds",
              Goal(3, Compare.PERCENT), _grpc),
    Benchmark("P6", "the REST rate that the harness finds", "that wrk finds",
              Goal(3, Compare.PERCENT), _rest),
)  # fmt: skip
