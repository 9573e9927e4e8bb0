"""Flows driven over made-up transports: sleeping, and the second request of a hedge."""

import asyncio
import threading

import pytest

from tests.unit.clients.scripts import FakeClock, failed
from tfserve_kit.clients.aio import run_async
from tfserve_kit.clients.protocol import GrpcRequest, Reply, Send, Sleep
from tfserve_kit.clients.sync import run

REQUEST = GrpcRequest("Predict", b"")
FIRST, SECOND = Reply(True, b"first"), Reply(True, b"second")
SOON_S, NEVER_S = 0.01, 1000.0


class Transport:
    """Answers attempt after attempt: (seconds it takes, outcome); never sleeps longer than told."""

    def __init__(self, *script):
        self.script, self.timeouts_s, self.stopped = list(script), [], 0
        self._end = threading.Event()

    def send(self, request, timeout_s):
        takes_s, outcome = self.script[len(self.timeouts_s)]
        self.timeouts_s.append(timeout_s)
        self._end.wait(takes_s)
        return outcome

    def start(self, request, timeout_s, done):
        thread = threading.Thread(target=lambda: done(self.send(request, timeout_s)), daemon=True)
        before = len(self.timeouts_s)
        thread.start()
        while len(self.timeouts_s) == before:  # the script is taken in order
            pass

        def stop():
            self.stopped += 1
            self._end.set()

        return stop


class AsyncTransport:
    def __init__(self, *script):
        self.script, self.timeouts_s, self.stopped = list(script), [], 0

    async def send(self, request, timeout_s):
        takes_s, outcome = self.script[len(self.timeouts_s)]
        self.timeouts_s.append(timeout_s)
        try:
            await asyncio.sleep(takes_s)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return outcome


def ask(*effects):
    """Return a flow with these effects that returns what came of them."""
    first, *others = effects
    found = [(yield first)]
    return found + ((yield from ask(*others)) if others else [])


def drive(kind, transport, flow, clock=None):
    if kind == "sync":
        return run(flow, transport, clock or FakeClock())
    return asyncio.run(run_async(flow, transport))


@pytest.fixture(params=["sync", "async"])
def kind(request):
    return request.param


def made(kind, *script):
    return (Transport if kind == "sync" else AsyncTransport)(*script)


def test_flow_gets_what_comes_of_each_effect_and_its_result_is_returned(kind):
    transport = made(kind, (0, FIRST), (0, SECOND))
    flow = ask(Send(REQUEST, 5), Sleep(0.001), Send(REQUEST, 3))
    assert drive(kind, transport, flow) == [FIRST, None, SECOND]
    assert transport.timeouts_s == [5, 3]


def test_sleeping_is_the_clocks_business():
    clock = FakeClock()
    run(ask(Sleep(1000)), Transport(), clock)
    assert clock.time_s == 1100


def test_errors_of_the_flow_pass_through(kind):
    def breaks():
        yield Send(REQUEST, 1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        drive(kind, made(kind, (0, FIRST)), breaks())


def hedged(timeout_s=50, may=True):
    return ask(Send(REQUEST, timeout_s, SOON_S, lambda: may))


def test_quick_answer_needs_no_second_request(kind):
    transport = made(kind, (0, FIRST))
    flow = ask(Send(REQUEST, 50, 20, lambda: True))
    assert drive(kind, transport, flow) == [FIRST]
    assert transport.timeouts_s == [50]


def test_slow_answer_is_overtaken_and_called_off(kind):
    transport = made(kind, (NEVER_S, FIRST), (0, SECOND))
    assert drive(kind, transport, hedged()) == [SECOND]
    assert transport.timeouts_s == [50, 50 - SOON_S]
    assert transport.stopped >= 1


def test_first_request_may_still_win(kind):
    transport = made(kind, (0.1, FIRST), (NEVER_S, SECOND))
    assert drive(kind, transport, hedged()) == [FIRST]


def test_failure_of_one_waits_for_the_other(kind):
    transport = made(kind, (0.1, FIRST), (0, failed("UNAVAILABLE")))
    assert drive(kind, transport, hedged()) == [FIRST]


def test_failure_of_both_is_a_failure(kind):
    transport = made(kind, (0.05, failed("UNAVAILABLE")), (0, failed("UNAVAILABLE")))
    assert drive(kind, transport, hedged())[0].status == "UNAVAILABLE"


def test_second_request_needs_leave(kind):
    transport = made(kind, (0.05, FIRST), (0, SECOND))
    assert drive(kind, transport, hedged(may=False)) == [FIRST]
    assert len(transport.timeouts_s) == 1


def test_cancelled_task_closes_its_flow():
    closed = []

    def flow():
        try:
            yield Send(REQUEST, 1)
        finally:
            closed.append(True)

    async def main():
        task = asyncio.create_task(run_async(flow(), AsyncTransport((NEVER_S, FIRST))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert closed == [True]
