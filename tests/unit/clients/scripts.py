"""Flows run over scripts: a list of outcomes, a clock that only moves when it is told to."""

from tfserve_kit.clients.grpc import GrpcProtocol
from tfserve_kit.clients.operations import Operations
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.protocol import Attempts, Lost, Reply, Send
from tfserve_kit.clients.rest import RestProtocol

__all__ = ["FakeClock", "Run", "attempts", "failed", "operations"]


class FakeClock:
    def __init__(self):
        self.time_s = 100.0

    def now_s(self):
        return self.time_s

    def sleep(self, duration_s):
        self.time_s += duration_s


WIRES = {"grpc": GrpcProtocol("grpc://h:1"), "rest": RestProtocol("http://h:1")}


def attempts(clock, wire="grpc", chance=1.0, **options):
    return Attempts(WIRES[wire], Options(**options), clock, lambda: chance)


def operations(clock, wire="grpc", **options):
    return Operations(
        WIRES[wire], attempts(clock, wire, **options), check=options.get("check", True)
    )


def failed(status, text="", cause=None):
    return Reply(False, b"", status, text, cause)


class Run:
    """Runs a flow: `answer` is asked for each Send and may be a list; each takes `takes_s`.

    `sent` holds the effects, `slept_s` the pauses.
    """

    def __init__(self, flow, answer, clock, takes_s=0.0):
        self.sent, self.slept_s = [], []
        outcomes = iter(answer) if isinstance(answer, list) else None
        self.result = None
        effect = next(flow)
        try:
            while True:
                if isinstance(effect, Send):
                    self.sent.append(effect)
                    outcome = next(outcomes) if outcomes else answer(effect.request)
                    late = takes_s > effect.timeout_s
                    clock.time_s += min(takes_s, effect.timeout_s)
                    effect = flow.send(failed("DEADLINE_EXCEEDED") if late else outcome)
                else:
                    self.slept_s.append(effect.duration_s)
                    clock.sleep(effect.duration_s)
                    effect = flow.send(None)
        except StopIteration as end:
            self.result = end.value


def lost(how, text="", cause=None):
    return Lost(how, text, cause)
