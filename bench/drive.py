"""Clients that keep a fixed number of requests in flight, with little work of their own."""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from bench.harness import Side

PREDICT = "/tensorflow.serving.PredictionService/Predict"
_MOST_BYTES = 1 << 16
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


@contextmanager
def http_side(port: int, body: bytes, path: str, *, calls: int, in_flight: int) -> Iterator[Side]:
    """Yield a side that posts `calls` times over `in_flight` connections that stay open."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(in_flight):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(client, selectors.EVENT_READ)
        yield lambda: _post(selector, request, calls)


def _post(selector: selectors.BaseSelector, request: bytes, calls: int) -> float:
    """Each answer is small and comes in one piece; a connection sends again when it has one."""
    started_s = time.perf_counter()
    connections = [key.fileobj for key in selector.get_map().values()]
    for client in connections:
        client.send(request)  # type: ignore[union-attr]
    answers, sent = 0, len(connections)
    while answers < calls:
        for key, _ in selector.select():
            answer = key.fileobj.recv(_MOST_BYTES)  # type: ignore[union-attr]
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the server answered {answer[:200]!r}")
            answers += 1
            if sent < calls:
                key.fileobj.send(request)  # type: ignore[union-attr]
                sent += 1
    return time.perf_counter() - started_s
