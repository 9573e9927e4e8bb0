"""Schedules become requests, and each request becomes exactly one sample."""

import resource
import threading
from array import array
from collections import deque

import numpy as np
import pytest

from tfserve_kit.errors import UsageError
from tfserve_kit.perf.load import Closed, Load, Open, Payload, check, dealt, shares
from tfserve_kit.perf.samples import CANCELLED_AT_END, status_of_http
from tfserve_kit.perf.sending.driving import (
    Driver,
    Snapshot,
    SnapshotListener,
    feed,
)
from tfserve_kit.perf.sending.http1 import _Heads, _most_connections
from tfserve_kit.perf.sending.workers import _in_a_thread, _merged, _SnapshotMerger
from tfserve_kit.progress import SILENT, Silent

MS = 1_000_000
PAYLOAD = Payload("/m", (), b"ask")


def due(*times_ms):
    return np.array(times_ms, np.int64) * MS


class FakePool:
    """Answers each request after a while, on a clock that only waiting moves."""

    replicas = None

    def __init__(self, takes_ms=lambda key: 1.0, status=0):
        self.now_ns, self.notes = 5_000_000_000, {}
        self.takes_ms, self.status = takes_ms, status
        self.under_way, self.started, self.cancelled = {}, [], []
        self.most = 0
        self.sends_at_once = False
        self.at_ms = deque()  # (time, what to do)

    def clock(self):
        self.now_ns += 1000
        return self.now_ns

    def start(self, keys):
        for key in keys:
            self.started.append(key)
            takes = self.takes_ms(key)
            self.under_way[key] = float("inf") if takes is None else self.now_ns + takes * MS
        self.most = max(self.most, len(self.under_way))

    def flush(self):
        pass

    def wait(self, timeout_s):
        end = self.now_ns + round(timeout_s * 1e9)
        first = min([*self.under_way.values(), end])
        self.now_ns = max(self.now_ns, int(min(first, end)))
        while self.at_ms and self.now_ns >= 5_000_000_000 + self.at_ms[0][0] * MS:
            self.at_ms.popleft()[1]()
        done = [key for key, at in self.under_way.items() if at <= self.now_ns]
        for key in done:
            del self.under_way[key]
        return [(key, self.status, self.now_ns - 10, self.now_ns, 7) for key in done]

    def cancel(self, keys):
        self.cancelled += sorted(keys)
        for key in keys:
            del self.under_way[key]


def drive(pool, schedule, *, timeout_s=10.0, stop=None, grace_s=0.05):
    driver = Driver(pool, feed(schedule), [3, 5], timeout_s, grace_s)
    return driver.run(
        5_000_000_000, stop or threading.Event(), lambda ended, now_ns: None, pool.clock
    )


def assert_consistent(samples):
    assert samples["sequence"].tolist() == list(range(len(samples)))
    assert (samples["free_ns"] >= samples["due_ns"]).all()
    assert (samples["sent_ns"] >= samples["free_ns"]).all()
    assert (samples["done_ns"] >= samples["first_byte_ns"]).all()
    assert (samples["first_byte_ns"] >= samples["sent_ns"] - MS).all()


class TestClosedLoop:
    def test_as_many_as_asked_for_are_in_flight_and_no_more(self):
        pool = FakePool()
        samples = drive(pool, Closed(3, duration_s=0.05))
        assert_consistent(samples)
        assert pool.most == 3
        assert 100 <= len(samples) <= 150
        assert (samples["due_ns"] < 50 * MS).all()
        assert set(samples["sent_bytes"][::2]) == {3} and set(samples["sent_bytes"][1::2]) == {5}
        assert set(samples["received_bytes"]) == {7}

    @pytest.mark.parametrize(("concurrency", "requests"), [(3, 10), (10, 3), (1, 1)])
    def test_a_number_of_requests_is_kept_exactly(self, concurrency, requests):
        assert len(drive(FakePool(), Closed(concurrency, requests=requests))) == requests

    def test_a_request_is_due_when_an_answer_makes_its_slot_free(self):
        samples = drive(FakePool(), Closed(1, requests=3))
        assert samples["due_ns"][1:].tolist() == samples["done_ns"][:-1].tolist()
        assert samples["due_ns"].tolist() == samples["free_ns"].tolist()


class TestOpenLoop:
    def test_requests_go_out_when_they_are_due_whatever_the_server_does(self):
        pool = FakePool(lambda key: 100.0)
        samples = drive(pool, Open(due(0, 10, 20, 500)))
        assert_consistent(samples)
        assert samples["due_ns"].tolist() == due(0, 10, 20, 500).tolist()
        assert (samples["sent_ns"] - samples["due_ns"] < 0.2 * MS).all()
        assert pool.most == 3

    def test_what_finds_no_room_is_late_and_not_dropped(self):
        samples = drive(FakePool(lambda key: 100.0), Open(due(0, 10, 20, 30), max_in_flight=2))
        assert_consistent(samples)
        late = samples["sent_ns"] - samples["due_ns"]
        assert [round(each / MS) for each in late] == [0, 0, 80, 80]
        assert (samples["sent_ns"] - samples["free_ns"] < 0.2 * MS).all()  # no fault of the sender

    def test_a_stall_counts_against_all_that_was_due_meanwhile(self):
        pool = FakePool(lambda key: 200.0 if key == 0 else 0.01)
        samples = drive(pool, Open(due(*range(0, 100, 10)), max_in_flight=1))
        waits = (samples["done_ns"] - samples["due_ns"]) / MS
        assert np.allclose(waits, np.arange(200, 100, -10), atol=1)

    def test_a_schedule_without_requests_ends_at_once(self):
        assert len(drive(FakePool(), Open(due()))) == 0


class TestEnd:
    def test_what_takes_too_long_is_given_up_and_its_slot_free_again(self):
        pool = FakePool(lambda key: None if key == 0 else 1.0)
        samples = drive(pool, Closed(1, requests=3), timeout_s=0.03)
        assert samples["status"].tolist() == [4, 0, 0]
        assert pool.cancelled == [0]
        assert samples["done_ns"][0] == pytest.approx(30 * MS, abs=MS)

    def test_only_what_is_late_is_given_up(self):
        pool = FakePool(lambda key: None if key in {1, 3} else 5.0)
        samples = drive(pool, Open(due(0, 1, 2, 40, 60)), timeout_s=0.03)
        assert samples["status"].tolist() == [0, 4, 0, 4, 0]

    def test_a_stop_waits_a_while_and_cancels_the_rest_and_nothing_is_missing(self):
        stop = threading.Event()
        pool = FakePool(lambda key: [1.0, 40.0, None, 1.0][min(key, 3)])
        pool.at_ms.append((20, stop.set))
        schedule = Open(due(0, 1, 2, 3, 4, 5, 1000), max_in_flight=2)
        samples = drive(pool, schedule, stop=stop)
        assert samples["due_ns"].tolist() == due(0, 1, 2, 3, 4, 5).tolist()
        assert samples["status"].tolist() == [0, 0, *[CANCELLED_AT_END] * 4]
        assert pool.cancelled == [2] and pool.started == [0, 1, 2]

    def test_failures_keep_their_status(self):
        assert set(drive(FakePool(status=14), Closed(2, requests=5))["status"]) == {14}


class TestLoads:
    def test_shares_are_the_whole(self):
        schedule = Open(due(*range(10)), max_in_flight=7)
        parts = shares(Load("grpc://h:1", "grpc", schedule, connections=3, processes=3))
        assert sorted(t for part in parts for t in part.schedule.due_ns) == list(schedule.due_ns)
        assert [part.schedule.max_in_flight for part in parts] == [3, 2, 2]
        assert [part.connections for part in parts] == [1, 1, 1]

    def test_shares_of_a_closed_loop_keep_its_number_in_flight(self):
        load = Load("grpc://h:1", "grpc", Closed(5, requests=12), processes=2)
        assert [(p.schedule.concurrency, p.schedule.requests) for p in shares(load)] == [
            (3, 6), (2, 6)
        ]  # fmt: skip
        assert len(shares(Load("grpc://h:1", "grpc", Closed(1, 1.0), processes=4))) == 1

    def test_samples_of_an_open_loop_return_to_their_places(self):
        schedule = Open(due(*range(7)))
        parts = [
            drive(FakePool(), part.schedule)
            for part in shares(Load("grpc://h:1", "grpc", schedule, processes=3))
        ]
        merged = _merged(parts, is_open=True)
        assert_consistent(merged)
        assert merged["due_ns"].tolist() == schedule.due_ns.tolist()
        assert merged["worker"].tolist() == [0, 1, 2, 0, 1, 2, 0]

    def test_samples_of_a_closed_loop_are_in_the_order_they_were_sent(self):
        merged = _merged(
            [drive(FakePool(), Closed(2, requests=9)) for _ in range(2)], is_open=False
        )
        assert_consistent(merged)
        assert (np.diff(merged["sent_ns"]) >= 0).all() and len(merged) == 18

    @pytest.mark.parametrize("wrong", [
        {"url": "http://h:1"}, {"url": "grpc://h"}, {"url": "grpc://h:x"}, {"url": "h:1"},
        {"connections": 0}, {"processes": 0}, {"timeout_s": 0}, {"schedule": Closed(0, 1.0)},
        {"schedule": Closed(1)}, {"schedule": Open(due(0), 0)}, {"schedule": Open(due(2, 1))},
    ])  # fmt: skip
    def test_what_cannot_be_run_is_refused(self, wrong):
        fine = {"url": "grpc://h:1", "protocol": "grpc", "schedule": Closed(1, 1.0)}
        check(Load(**fine), [PAYLOAD])
        with pytest.raises(UsageError):
            check(Load(**{**fine, **wrong}), [PAYLOAD])

    def test_nothing_to_send_is_refused(self):
        with pytest.raises(UsageError, match="nothing"):
            check(Load("http://h", "rest", Closed(1, 1.0)), [])


@pytest.mark.parametrize(
    ("http", "code"), [(200, 0), (400, 3), (404, 5), (503, 14), (504, 4), (599, 2)]
)
def test_http_statuses_have_their_codes(http, code):
    assert status_of_http(http) == code


def test_there_are_never_more_connections_than_files():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 0 < _most_connections(1) < limit
    with pytest.raises(UsageError, match="ulimit"):
        _most_connections(limit)


class TestHeads:
    HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"

    CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def response(self, body, *, stays_open=True):
        from tfserve_kit.http.messages import Response

        return Response(200, "OK", body, stays_open)

    def test_a_head_that_was_read_is_known_with_a_body_of_its_length(self):
        heads = _Heads()
        assert heads.status(self.HEAD + b"yes") is None
        heads.learn(self.HEAD + b"yes", self.response(b"yes"))
        assert heads.status(self.HEAD + b"not") == (200, 3)
        assert heads.status(self.HEAD + b"no") is None
        assert heads.status(self.HEAD + b"more") is None

    @pytest.mark.parametrize(("data", "body", "stays_open"), [
        (CHUNKED + b"3\r\nyes\r\n0\r\n\r\n", b"yes", True),
        (HEAD + b"yes", b"yes", False),
        (b"end of a long one\r\n\r\nyes", b"yes", True),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nzip", b"yes", True),
    ])  # fmt: skip
    def test_what_does_not_repeat_is_not_learnt(self, data, body, stays_open):
        heads = _Heads()
        heads.learn(data, self.response(body, stays_open=stays_open))
        assert heads.status(data) is None


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
        with _in_a_thread(told.append) as take:
            for at_ns in range(50):
                take(EMPTY._replace(at_ns=at_ns))
        assert [each.at_ns for each in told] == list(range(50))

    def test_one_who_does_not_come_back_holds_up_nobody(self):
        may_end, told = threading.Event(), []

        def slow(seen):
            assert may_end.wait(60)
            told.append(seen)

        with _in_a_thread(slow) as take:
            for _ in range(3):
                take(EMPTY)
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
        together = _SnapshotMerger(2, told.append)
        together.take(0, self.seen(500, 10, [1, 2], total=50, end_ns=5, failed=1, in_flight=3,
                                   late_ns=7))  # fmt: skip
        assert not told
        together.take(1, self.seen(510, 20, [3], total=51, end_ns=6, in_flight=4, late_ns=2))
        (found,) = told
        assert found[:7] == (510 * MS, 6, 30, 101, 1, 7, 7)
        assert found.latencies_ns.tolist() == [1 * MS, 2 * MS, 3 * MS]

    def test_a_worker_that_has_ended_counts_but_is_not_waited_for(self):
        told = []
        together = _SnapshotMerger(2, told.append)
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
