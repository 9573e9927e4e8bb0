"""A load spread over the servers of a fleet: who gets what, and what is told of each."""

from array import array

import numpy as np
import pytest

from tests.unit.clients.scripts import FakeClock
from tfserve_kit.perf import report, report_html, samples, stats
from tfserve_kit.perf.load import Closed, Load, Payload, Tally, check
from tfserve_kit.perf.samples import CONNECTION_LOST, OK, SAMPLE, UNAVAILABLE, Run
from tfserve_kit.perf.sending.pools import FleetPool
from tfserve_kit.perf.stats import NamedRun

URLS = ("grpc://a:1", "grpc://b:1", "grpc://c:1")


class Pool:
    """Answers when it is told to."""

    sends_at_once = False
    replicas = None

    def __init__(self):
        self.notes, self.under_way, self.ended, self.cancelled = {}, [], [], set()
        self.judges = self

    def tally(self):
        return Tally(checked=1)

    def start(self, keys):
        self.under_way += keys

    def answer(self, status=OK):
        self.ended += [(key, status, 1, 1, 1) for key in self.under_way]
        self.under_way = []

    def wait(self, timeout_s):
        found, self.ended = self.ended, []
        return found

    def cancel(self, keys):
        self.cancelled |= keys
        self.under_way = [key for key in self.under_way if key not in keys]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def pools():
    return [Pool() for _ in URLS]


@pytest.fixture
def fleet(pools, clock):
    return FleetPool(URLS, pools, clock)


def test_requests_go_to_the_server_with_the_fewest(fleet, pools):
    fleet.start(range(7))
    assert sorted(len(each.under_way) for each in pools) == [2, 2, 3]
    pools[1].answer()
    assert len(fleet.wait(0)) in {2, 3}
    fleet.start([7, 8])
    assert pools[1].under_way == [7, 8]
    assert [fleet.replicas[key] for key in (7, 8)] == [1, 1]


@pytest.mark.parametrize("status", [CONNECTION_LOST, UNAVAILABLE])
def test_server_that_fails_draws_no_more_load_until_it_is_tried_again(fleet, pools, clock, status):
    fleet.start(range(3))
    pools[0].answer(status)
    fleet.wait(0)
    fleet.start(range(3, 30))
    assert pools[0].under_way == []
    clock.sleep(1.0)
    fleet.start([30])
    assert pools[0].under_way == [30]
    assert len(fleet.replicas) == 31


def test_requests_given_up_are_owed_no_more(fleet, pools):
    fleet.start(range(6))
    stuck = set(pools[0].under_way)
    fleet.cancel(stuck)
    assert all(each.cancelled == stuck for each in pools)
    fleet.start([6, 7])
    assert len(pools[0].under_way) == 2


def test_messages_name_the_server_and_counts_are_joined(fleet, pools):
    pools[2].notes[UNAVAILABLE] = "going down"
    assert fleet.notes == {UNAVAILABLE: "grpc://c:1: going down"}
    assert fleet.tally().checked == 3


def run_over(urls):
    found = np.zeros(3000, SAMPLE)
    found["sequence"] = np.arange(3000)
    found["due_ns"] = found["free_ns"] = found["sent_ns"] = found["sequence"] * 1_000_000
    found["replica"] = found["sequence"] % len(urls)
    found["done_ns"] = found["due_ns"] + 1_000_000 * (1 + found["replica"].astype(np.int64))
    found["first_byte_ns"] = found["done_ns"]
    found["status"][::6] = UNAVAILABLE
    settings = {"url": ",".join(urls), "loop": "open", "warmup_s": 0.0}
    return Run(found, settings)


def test_report_has_a_row_for_each_server():
    run = run_over(URLS)
    summary = stats.summarize(run)
    parts = stats.by_replica(run)
    assert [(each.url, each.requests) for each in parts] == [(url, 1000) for url in URLS]
    assert [each.errors for each in parts] == [{"UNAVAILABLE": 500}, {}, {}]
    assert [each.latency.value_s("p50") for each in parts] == pytest.approx([0.001, 0.002, 0.003])
    data = report.as_data(summary, run)["replicas"]
    assert [each["url"] for each in data] == list(URLS)
    assert data[1]["latency_s"]["p99"] == pytest.approx(0.002)
    for text in (
        report.as_text(summary, run),
        report.as_markdown(summary, run),
        report_html.page([NamedRun("a run", run, summary)]),
    ):
        assert all(url in text for url in URLS) and "p99 (ms)" in text and "500 UNAVAILABLE" in text


def test_report_of_one_server_says_nothing_of_servers():
    run = run_over(URLS[:1])
    summary = stats.summarize(run)
    assert report.as_data(summary, run)["replicas"] == []
    assert "replica" not in report.as_text(summary, run)
    assert "fleet" not in report_html.page([NamedRun("a run", run, summary)])


def test_file_from_before_there_were_fleets_is_read(tmp_path):
    run = run_over(URLS[:1])
    file = tmp_path / "run.npz"
    old = run.samples[[name for name in SAMPLE.names if name != "replica"]]
    packed = np.array(old.tolist(), np.dtype(SAMPLE.descr[:-1]))
    samples.write(Run(packed, run.settings), file)
    assert np.array_equal(samples.read(file).samples, run.samples)


def test_each_address_of_a_load_is_checked():
    payloads = [Payload("/", (), b"")]
    check(Load("grpc://a:1,grpc://b:2", "grpc", Closed(1, 1.0)), payloads)
    load = Load("grpc://a:1,grpc://b:2", "rest", Closed(1, 1.0))
    with pytest.raises(Exception, match="grpc://a:1' is not an address for rest"):
        check(load, payloads)
    assert load.urls == ("grpc://a:1", "grpc://b:2")
    assert isinstance(FleetPool(load.urls, [Pool(), Pool()]).replicas, array)
