"""What is reported is what users of a server that stalls would have waited."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tfserve_kit.perf.samples import CANCELLED_AT_END, CONNECTION_LOST
from tfserve_kit.perf.sending import Closed, Load, Open, Payload, run

RATE, SECONDS = 60, 5.0
STALL_S = 1.0
DUE_NS = (np.arange(round(RATE * SECONDS)) * (1e9 / RATE)).astype(np.int64)
PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "rest"])
SERVER = Path(__file__).parent / "answering_server.py"


class Server:
    """A process that answers at once, unless it is frozen."""

    def __init__(self, process):
        self.process = process
        grpc_port, rest_port = process.stdout.readline().split()
        self.urls = {
            "grpc": f"grpc://127.0.0.1:{int(grpc_port)}",
            "rest": f"http://127.0.0.1:{int(rest_port)}",
        }
        self.stalls_ns = []

    def freeze(self, seconds):
        before_ns = time.monotonic_ns()
        os.kill(self.process.pid, signal.SIGSTOP)
        frozen_ns = time.monotonic_ns()
        time.sleep(seconds)
        thawed_ns = time.monotonic_ns()
        os.kill(self.process.pid, signal.SIGCONT)
        self.stalls_ns.append((before_ns, frozen_ns, thawed_ns))

    def freeze_every_other_second(self, end_ns):
        while time.monotonic_ns() < end_ns - 2.2e9:
            time.sleep(STALL_S)
            self.freeze(STALL_S)


@pytest.fixture
def server():
    process = subprocess.Popen(
        [sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    yield Server(process)
    process.kill()
    process.communicate()


def payload():
    return Payload("/test.S/Echo", (), b"hello")


def sent(server, protocol, schedule, act, stop=None, **options):
    """Run a load while `act(start_ns)` goes on beside it; return samples and start."""
    starts, threads = [], []

    def started(start_ns):
        starts.append(start_ns)
        threads.append(threading.Thread(target=act, args=(start_ns,)))
        threads[0].start()

    load = Load(server.urls[protocol], protocol, schedule, **options)
    samples = run(load, [payload()], stop=stop, started=started)
    threads[0].join()
    return samples, starts[0]


def waits_s(stalls_ns, start_ns, due_ns):
    """Return how long requests due at these times had to wait for the server to go on."""
    waits = np.zeros(len(due_ns))
    for began_ns, ended_ns in stalls_ns:
        within = (due_ns + start_ns >= began_ns) & (due_ns + start_ns < ended_ns)
        waits[within] = (ended_ns - start_ns - due_ns[within]) / 1e9
    return waits


def figures(values):
    return np.array([values.mean(), np.quantile(values, 0.99)])


def measured(server, protocol):
    """Return mean and p99: the least they can truly be, as they were found, and the most."""
    server.stalls_ns.clear()

    def act(start_ns):
        server.freeze_every_other_second(start_ns + SECONDS * 1e9)

    # Few in flight: most requests of a stall are sent after it, and would look quick from there.
    samples, start_ns = sent(server, protocol, Open(DUE_NS, max_in_flight=4), act)
    assert (samples["status"] == 0).all() and samples["due_ns"].tolist() == DUE_NS.tolist()
    stalls_ns = [(frozen, thawed) for _, frozen, thawed in server.stalls_ns]
    truth_s = waits_s(stalls_ns, start_ns, DUE_NS)
    # On a busy machine a process that may go on is not given a processor at once.
    done_ns = samples["done_ns"] + start_ns
    longest_ns = [
        (before, done_ns[done_ns >= thawed].min()) for before, _, thawed in server.stalls_ns
    ]
    most_s = waits_s(longest_ns, start_ns, DUE_NS)
    found_s = (samples["done_ns"] - samples["due_ns"]) / 1e9
    # And where it answers slowly even without a stall, a stall's queue drains slowly.
    slack_s = 20 * np.median(found_s[most_s == 0])
    from_sent_s = (samples["done_ns"] - samples["sent_ns"]) / 1e9
    assert from_sent_s.mean() < 0.5 * truth_s.mean()  # what this test is there to tell apart
    return figures(truth_s), figures(found_s), figures(most_s) + slack_s


@PROTOCOLS
def test_mean_and_p99_after_known_stalls_are_the_calculated_ones(server, protocol):
    for _ in range(3):  # a machine that pauses disturbs one run; a wrong count is wrong in all
        least_s, found_s, most_s = measured(server, protocol)
        assert (found_s >= 0.95 * least_s).all() and (least_s > 0.15).all()
        if (found_s <= 1.05 * most_s).all():
            return
    pytest.fail(f"mean and p99 were {found_s} s, where at most {most_s} s are true")


@PROTOCOLS
def test_the_stall_is_the_server_s_fault_and_not_the_harness_s(server, protocol):
    schedule = Open(DUE_NS[: 2 * RATE], 4)
    samples, _ = sent(server, protocol, schedule, lambda start_ns: server.freeze(STALL_S))
    late_s = (samples["sent_ns"] - samples["due_ns"]) / 1e9
    harness_s = (samples["sent_ns"] - samples["free_ns"]) / 1e9
    assert np.quantile(late_s, 0.9) > 0.25 * STALL_S
    assert np.quantile(harness_s, 0.9) < 0.1 * STALL_S


@PROTOCOLS
@pytest.mark.parametrize("schedule", [Open(DUE_NS[:RATE], 4), Closed(4, duration_s=1.0)])
def test_a_server_killed_under_load_leaves_no_request_untold(server, protocol, schedule):
    def act(start_ns):
        time.sleep(0.5)
        server.process.kill()

    samples, _ = sent(server, protocol, schedule, act)
    assert samples["sequence"].tolist() == list(range(len(samples)))
    assert set(samples["status"]) == {0, CONNECTION_LOST}
    if isinstance(schedule, Open):
        assert samples["due_ns"].tolist() == schedule.due_ns.tolist()
    assert (samples["done_ns"] >= samples["sent_ns"]).all()


@PROTOCOLS
def test_a_frozen_server_makes_requests_time_out_or_be_cancelled_but_none_is_missing(
    server, protocol
):
    stop = threading.Event()

    def act(start_ns):
        time.sleep(0.3)
        threading.Timer(1.2, stop.set).start()
        server.freeze(2.0)

    limits = {"timeout_s": 0.5, "grace_s": 0.2}
    samples, _ = sent(server, protocol, Open(DUE_NS, 8), act, stop, **limits)
    counts = {status: int((samples["status"] == status).sum()) for status in set(samples["status"])}
    assert set(counts) == {0, 4, CANCELLED_AT_END}
    assert sum(counts.values()) == len(samples)
    assert samples["due_ns"].tolist() == DUE_NS[: len(samples)].tolist()
    assert len(samples) >= 1.2 * RATE
