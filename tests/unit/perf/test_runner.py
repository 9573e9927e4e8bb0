"""Requests go out when they are due, and every one is accounted for."""

import threading

from tfserve_kit.errors import ServerOverloaded
from tfserve_kit.perf import runner


def test_open_loop_sends_each_due_request_once_and_never_early():
    due = [0.0, 0.01, 0.02, 0.05]
    taken = runner.open_loop(lambda: None, iter(due), concurrency=2)
    assert [sample.due_ns for sample in taken] == [round(each * 1e9) for each in due]
    assert all(sample.sent_ns >= sample.due_ns for sample in taken)
    assert all(sample.done_ns >= sample.sent_ns for sample in taken)


def test_open_loop_counts_a_stall_against_every_request_that_was_due_meanwhile():
    stalled = threading.Event()

    def send():
        if not stalled.is_set():
            stalled.set()
            threading.Event().wait(0.2)

    taken = runner.open_loop(send, iter([i / 100 for i in range(10)]), concurrency=1)
    waits = [sample.latency_s for sample in taken]
    assert waits[1] > 0.15  # due at 10 ms, sent only when the stall was over
    assert sum(wait > 0.09 for wait in waits) == len(waits)


def test_failed_requests_are_samples_with_the_error_as_status():
    def send():
        raise ServerOverloaded("full")

    (sample,) = runner.open_loop(send, iter([0.0]), concurrency=1)
    assert sample.status == "ServerOverloaded"
