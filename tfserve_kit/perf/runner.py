"""Sends requests when they are due, from a fixed number of threads."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tfserve_kit.errors import RequestError

Send = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times in nanoseconds since the start of the run.

    Attributes:
        sequence: number of the request, from 0.
        due_ns: when it should have been sent.
        free_ns: when the sender was free to send it.
        sent_ns: when it was sent.
        done_ns: when its answer was there.
        status: `OK`, or the name of the error.
    """

    sequence: int
    due_ns: int
    free_ns: int
    sent_ns: int
    done_ns: int
    status: str

    @property
    def latency_s(self) -> float:
        """From due to done: what a user waits, in seconds."""
        return (self.done_ns - self.due_ns) / 1e9


def open_loop(send: Send, due_s: Iterator[float], *, concurrency: int) -> list[Sample]:
    """Send at given times, whatever the server does, as far as `concurrency` senders can.

    Args:
        send: sends one request and waits for the answer; raises RequestError.
        due_s: when each request is due, in seconds since the start.
        concurrency: number of senders; a request that finds none free is late, and counts so.

    Returns:
        A sample of every request, in the order they were due.
    """
    start_ns = time.perf_counter_ns()

    def now_ns() -> int:
        return time.perf_counter_ns() - start_ns

    numbered = enumerate(due_s)
    turn = threading.Lock()
    samples: list[Sample] = []

    def sender() -> None:
        while True:
            free_ns = now_ns()
            with turn:
                sequence, due = next(numbered, (None, 0.0))
            if sequence is None:
                return
            due_ns = round(due * 1e9)
            _wait(due_ns - now_ns())
            sent_ns = now_ns()
            status = _status(send)
            samples.append(Sample(sequence, due_ns, free_ns, sent_ns, now_ns(), status))

    threads = [threading.Thread(target=sender) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(samples, key=lambda sample: sample.sequence)


def _wait(remaining_ns: int) -> None:
    if remaining_ns > 0:
        time.sleep(remaining_ns / 1e9)


def _status(send: Send) -> str:
    try:
        send()
    except RequestError as error:
        return type(error).__name__
    return "OK"
