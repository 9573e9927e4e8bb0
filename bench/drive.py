"""Clients that keep a fixed number of requests in flight, with little work of their own."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from bench.harness import Side

PREDICT = "/tensorflow.serving.PredictionService/Predict"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@contextmanager
def grpc_side(port: int, request: bytes, *, calls: int, in_flight: int) -> Iterator[Side]:
    """Yield a side that makes `calls` calls over one connection."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", _OPTIONS) as channel:
        call = channel.unary_unary(PREDICT)
        call(request, wait_for_ready=True)

        def side() -> float:
            slots, failed = threading.Semaphore(in_flight), []

            def done(future: Any) -> None:
                if future.exception() is not None:
                    failed.append(future.exception())
                slots.release()

            started_s = time.perf_counter()
            for _ in range(calls):
                slots.acquire()
                call.future(request).add_done_callback(done)
            for _ in range(in_flight):
                slots.acquire()
            elapsed_s = time.perf_counter() - started_s
            if failed:
                raise RuntimeError(f"{len(failed)} calls failed: {failed[0]}")
            return elapsed_s

        yield side


def threads_side(call: Callable[[], object], *, calls: int, in_flight: int) -> Side:
    """Return a side that makes `calls` calls in this process, from `in_flight` threads."""

    def side() -> float:
        numbers = iter(range(calls))

        def work() -> None:
            for _ in numbers:  # one iterator for all: each number is taken once
                call()

        threads = [threading.Thread(target=work) for _ in range(in_flight)]
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started_s

    return side
