"""How a run stands while it goes on: counted exactly, and nobody who looks holds it up."""

import threading
from array import array

import pytest

from tests.unit.perf.test_sending import MS, FakePool, due
from tfserve_kit.perf.load import Closed, Open, Payload, dealt
from tfserve_kit.perf.sending.driving import Driver, feed
from tfserve_kit.perf.sending.snapshots import (
    Snapshot,
    SnapshotListener,
    SnapshotMerger,
    SnapshotThread,
)
from tfserve_kit.progress import SILENT, Silent

EMPTY = Snapshot(0, None, 0, None, 0, 0, None, array("q"))


def looked_at(pool, schedule, *, timeout_s=10.0, stop=None):
    """Return every snapshot of a run, and its samples."""
    driver = Driver(pool, feed(schedule), [3], timeout_s, 0.05)
    seen = []
    samples = driver.run(
        5_000_000_000,
        stop or threading.Event(),
        lambda ended, now_ns: seen.append(driver.snapshot(now_ns)),
        pool.clock,
    )
    return seen, samples


class TestDriver:
    def test_what_ended_is_counted_and_its_latencies_are_handed_over_once(self):
        seen, samples = looked_at(FakePool(lambda key: 10.0), Closed(2, duration_s=2.0))
        assert [round(each.at_ns / 1e9, 1) for each in seen] == [0.0, 0.5, 1.0, 1.5, 2.0]
        assert [each.ended for each in seen] == pytest.approx([0, 100, 200, 300, 400], abs=4)
        assert [each.in_flight for each in seen] == [2, 2, 2, 2, 0]
        counts = [len(each.latencies_ns) for each in seen]
        assert sum(counts) == seen[-1].ended
        assert max(counts) < 110
        assert seen[2].quantile_s(0.99) == pytest.approx(0.01, rel=0.01)
        assert {(each.end_ns, each.total, each.late_ns) for each in seen} == {
            (2_000_000_000, None, None)
        }
        assert len(samples) >= seen[-1].ended

    def test_failures_and_timeouts_are_errors_and_have_no_latency(self):
        seen, _ = looked_at(FakePool(status=14), Closed(1, duration_s=1.2))
        assert seen[-1].failed == seen[-1].ended > 0
        assert not seen[-1].latencies_ns
        pool = FakePool(lambda key: None if key < 5 else 100.0)
        seen, _ = looked_at(pool, Closed(5, duration_s=2.0), timeout_s=0.3)
        assert seen[-1].failed == 5

    def test_what_was_cancelled_at_the_end_is_no_error(self):
        stop, pool = threading.Event(), FakePool(lambda key: None)
        pool.at_ms.append((400, stop.set))
        driver = Driver(pool, feed(Closed(3, duration_s=9.0)), [3], 10.0, 0.05)
        driver.run(5_000_000_000, stop, lambda ended, now_ns: None, pool.clock)
        assert driver.snapshot(450 * MS).failed == 0

    def test_an_open_loop_knows_its_end_and_how_late_it_is(self):
        schedule = Open(due(*range(0, 2000, 100)), max_in_flight=1)
        seen, _ = looked_at(FakePool(lambda key: 300.0), schedule)
        assert {(each.total, each.end_ns) for each in seen} == {(20, 1900 * MS)}
        waits_ms = [each.late_ns / MS for each in seen]
        assert waits_ms[0] < 1
        assert waits_ms[1:4] == pytest.approx([300, 600, 1000], abs=110)  # 100 become 300
        on_time, _ = looked_at(FakePool(), Open(due(*range(0, 2000, 100))))
        assert max(each.late_ns for each in on_time) < MS


class TestQuantile:
    def test_is_one_of_the_latencies(self):
        seen = EMPTY._replace(latencies_ns=array("q", [i * MS for i in range(100, 0, -1)]))
        assert seen.quantile_s(0.5) == 0.05
        assert seen.quantile_s(0.99) == 0.099

    def test_of_nothing_is_unknown(self):
        assert EMPTY.quantile_s(0.5) is None


class TestTeller:
    def test_tells_in_order_and_all_before_it_ends(self):
        told = []
        with SnapshotThread(told.append) as teller:
            for at_ns in range(50):
                teller.put(EMPTY._replace(at_ns=at_ns))
        assert [each.at_ns for each in told] == list(range(50))

    def test_one_who_does_not_come_back_holds_up_nobody(self):
        may_end, told = threading.Event(), []

        def slow(seen):
            assert may_end.wait(60)
            told.append(seen)

        with SnapshotThread(slow) as teller:
            for _ in range(3):
                teller.put(EMPTY)
            assert not told
            may_end.set()
        assert len(told) == 3

    def test_only_a_snapshot_listener_wants_snapshots(self):
        class Looking(Silent):
            def snapshot(self, seen):
                pass

        assert isinstance(Looking(), SnapshotListener)
        assert not isinstance(SILENT, SnapshotListener)


class TestTogether:
    def seen(self, at_ms, ended, latencies_ms=(), **others):
        latencies_ns = array("q", [ms * MS for ms in latencies_ms])
        return EMPTY._replace(at_ns=at_ms * MS, ended=ended, latencies_ns=latencies_ns, **others)

    def test_a_round_of_all_workers_is_one_snapshot(self):
        told = []
        together = SnapshotMerger(2, told.append)
        together.take(0, self.seen(500, 10, [1, 2], total=50, end_ns=5, failed=1, in_flight=3,
                                   late_ns=7))  # fmt: skip
        assert not told
        together.take(1, self.seen(510, 20, [3], total=51, end_ns=6, in_flight=4, late_ns=2))
        (found,) = told
        assert found[:7] == (510 * MS, 6, 30, 101, 1, 7, 7)
        assert found.latencies_ns.tolist() == [1 * MS, 2 * MS, 3 * MS]

    def test_a_worker_that_has_ended_counts_but_is_not_waited_for(self):
        told = []
        together = SnapshotMerger(2, told.append)
        for worker, seen in (
            (0, self.seen(500, 10)), (1, self.seen(500, 20, [9])),
            (0, self.seen(1000, 15, [4])), (0, self.seen(1500, 18, [5])),
        ):  # fmt: skip
            together.take(worker, seen)
        assert [each.ended for each in told] == [30, 35]
        assert told[1].latencies_ns.tolist() == [4 * MS]
        assert told[1].total is None


class TestDealt:
    @pytest.mark.parametrize("distinct", [1, 2, 3, 4, 7, 12])
    @pytest.mark.parametrize("count", [1, 2, 3, 8])
    def test_the_nth_request_of_all_has_the_nth_payload(self, distinct, count):
        payloads = [Payload(f"/{number}", (), b"") for number in range(distinct)]
        parts = [dealt(payloads, worker, count) for worker in range(count)]
        sent = [parts[n % count][n // count % len(parts[n % count])] for n in range(100)]
        assert sent == [payloads[n % distinct] for n in range(100)]
