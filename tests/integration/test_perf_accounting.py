"""Whatever becomes of the server, every request is in the samples once: sent is ok and the rest."""

import os
import shutil
import threading
import time
from collections import Counter

import numpy as np
import pytest

from tests.integration.answering import answering, sent_while
from tfserve_kit import connect, repository
from tfserve_kit.clients import Target
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import build
from tfserve_kit.engines import process
from tfserve_kit.perf import payloads
from tfserve_kit.perf.load import Closed, Load, Open
from tfserve_kit.perf.samples import CANCELLED_AT_END, CONNECTION_LOST, Run
from tfserve_kit.perf.stats import summarize
from tfserve_kit.serving import launch

DEADLINE_EXCEEDED, UNAVAILABLE = 4, 14
# Both go on for as long as it takes; each test ends its run itself.
EVENLY = Open((np.arange(100 * 60) * 1e7).astype(np.int64), max_in_flight=40)
FOUR_AT_ONCE = Closed(4, duration_s=60.0)
EVERY_WAY = pytest.mark.parametrize(
    ("protocol", "schedule", "processes"),
    [
        ("grpc", EVENLY, 1),
        ("grpc", FOUR_AT_ONCE, 2),
        ("rest", EVENLY, 2),
        ("rest", FOUR_AT_ONCE, 1),
    ],
    ids=["grpc-open", "grpc-closed-2", "rest-open-2", "rest-closed"],
)


@pytest.fixture
def server():
    with answering() as running:
        yield running


def sent(load, act, **options):
    """Run a load while `act(start_ns)` goes on beside it, and no longer."""
    stop = threading.Event()

    def act_and_stop(start_ns):
        time.sleep(0.4)
        act(start_ns)
        stop.set()

    samples, _ = sent_while(act_and_stop, load, stop=stop, **options)
    return samples


def accounted(samples, load):
    """Check that each request is there once, and in the summary once.

    Returns those that were sent, and their statuses: one that was just due at the end was not.
    """
    assert (samples["sent_ns"] >= samples["due_ns"]).all()
    assert (samples["done_ns"] >= samples["sent_ns"]).all()
    if isinstance(load.schedule, Open):
        for worker in range(load.processes):  # each stops at a moment of its own
            mine = samples[samples["worker"] == worker]
            assert mine["sequence"].tolist() == [
                worker + load.processes * number for number in range(len(mine))
            ]
            assert (mine["due_ns"] == load.schedule.due_ns[mine["sequence"]]).all()
    else:
        assert samples["sequence"].tolist() == list(range(len(samples)))
    summary = summarize(Run(samples, {"warmup_s": 0.0}))
    assert summary.requests == len(samples) == (
        summary.latency.count + sum(summary.errors.values()) + summary.latency.unfinished
    )  # fmt: skip
    is_unsent = (samples["status"] == CANCELLED_AT_END) & (samples["sent_ns"] == samples["done_ns"])
    asked = samples[~is_unsent]
    return asked, Counter(asked["status"].tolist())


@EVERY_WAY
def test_a_server_that_is_killed_leaves_no_request_untold(server, protocol, schedule, processes):
    def act(start_ns):
        server.kill()
        time.sleep(0.4)

    load = Load(server.urls[protocol], protocol, schedule, processes=processes)
    _, found = accounted(sent(load, act), load)
    # At the end some may wait for a connection that does not come.
    assert {0, CONNECTION_LOST} <= set(found) <= {0, CONNECTION_LOST, CANCELLED_AT_END}


@EVERY_WAY
def test_a_server_that_becomes_slow_is_late_for_some_and_none_is_missing(
    server, protocol, schedule, processes
):
    def act(start_ns):
        server.tell(delay_s=1.0)
        time.sleep(0.8)
        server.tell(delay_s=0.0)
        time.sleep(0.8)

    load = Load(server.urls[protocol], protocol, schedule, processes=processes, timeout_s=0.4)
    samples, found = accounted(sent(load, act), load)
    assert set(found) == {0, DEADLINE_EXCEEDED}
    assert samples["status"][0] == samples["status"][-1] == 0  # quick again, it answers again
    late = samples[samples["status"] == DEADLINE_EXCEEDED]
    assert ((late["done_ns"] - late["sent_ns"]) >= 0.4e9).all()
    came, _ = server.told()
    assert found[0] <= came <= len(samples)  # none came twice


@EVERY_WAY
def test_a_server_that_is_swapped_for_another_loses_some_and_none_is_missing(
    server, protocol, schedule, processes
):
    moments_ns = []

    def act(start_ns):
        moments_ns.append(time.monotonic_ns() - start_ns)
        server.kill()
        server.begin_again()
        moments_ns.append(time.monotonic_ns() - start_ns)
        time.sleep(0.6)

    load = Load(server.urls[protocol], protocol, schedule, processes=processes)
    samples, found = accounted(sent(load, act), load)
    assert {0, CONNECTION_LOST} <= set(found) <= {0, CONNECTION_LOST, UNAVAILABLE}
    assert samples["status"][-1] == 0
    came, held_ns = server.told()  # to the second one
    end_ns = samples["done_ns"][samples["status"] == 0]
    killed_ns, back_ns = moments_ns
    assert (end_ns > back_ns).sum() <= came == len(held_ns) <= (end_ns > killed_ns).sum()


@EVERY_WAY
def test_a_stop_cancels_what_a_slow_server_does_not_answer_and_none_is_missing(
    server, protocol, schedule, processes
):
    def act(start_ns):
        server.tell(delay_s=30.0)
        time.sleep(0.6)

    load = Load(server.urls[protocol], protocol, schedule, processes=processes, grace_s=0.2)
    samples, found = accounted(sent(load, act), load)
    assert set(found) == {0, CANCELLED_AT_END}
    assert samples["status"][0] == 0 and samples["status"][-1] == CANCELLED_AT_END


@pytest.mark.tensorflow
class TestVersionSwap:
    @pytest.fixture
    def base_path(self, tmp_path, models):
        shutil.copytree(models / "half_plus_two" / "1", tmp_path / "half" / "1")
        return tmp_path / "half"

    @pytest.fixture
    def served(self, base_path, state_dir):
        document = {
            "server": {"name": f"swapped-{os.getpid()}", "grpc_port": 0, "rest_port": 0},
            "models": {"half": {"base_path": str(base_path)}},
        }
        deployment = build(document, source="test", folder=base_path)
        handle = launch.up(deployment, process.embedded())
        yield handle
        handle.stop(grace_s=5)

    def test_under_load_costs_no_request(self, served, base_path, models):
        inputs, clock, seen = {"x": np.float32([1])}, SystemClock(), []

        def act(start_ns):
            pushed = repository.push(models / "half_plus_two" / "2", base_path, version="next")

            def is_served():
                seen.append(client.predict(Target("half"), inputs).version)
                return seen[-1] == pushed.version or None

            with connect(served.endpoints.grpc) as client:
                wait_until(is_served, timeout_s=60, interval_s=0.05, clock=clock)
            time.sleep(0.3)

        for protocol in ("grpc", "rest"):
            url = getattr(served.endpoints, protocol)
            (payload,) = payloads.encoded(protocol, url, Target("half"), [inputs])
            load = Load(url, protocol, EVENLY, grace_s=30.0)  # a busy machine is none of its costs
            _, found = accounted(sent(load, act, payload=payload), load)
            assert set(found) == {0}
        assert {2, 3} <= set(seen)
