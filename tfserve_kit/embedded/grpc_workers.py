"""The threads that grpcio runs calls in."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

_log = logging.getLogger(__name__)

_KEPT_IDLE = 256


class Workers:
    """What grpcio asks of a thread pool: `submit`; as many threads as there are calls.

    grpcio waits for a call's message in one of these threads, so a fixed number of them would let
    that many silent clients keep everybody else from being heard.

    A ThreadPoolExecutor makes a future with a lock of its own for each call, of which grpcio uses
    nothing but its end, and that only to limit the number of calls; so there is none here, which
    makes a server of small models a fifth faster.

    Args:
        most: threads at the same time; further calls wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._spare = 0  # threads without a call, less calls without a thread
        self._is_ending = False

    def submit(self, call: Callable[..., object], *arguments: object) -> None:
        """Have a call made."""
        with self._lock:
            self._spare -= 1
            is_short = self._spare < 0 and self._threads < self._most
        self._calls.put(partial(call, *arguments))
        if is_short:
            self._add()

    def end(self) -> None:
        """Let the threads end when they have made all calls."""
        with self._lock:
            self._is_ending = True
            for _ in range(self._threads):
                self._calls.put(None)

    def _add(self) -> None:
        with self._lock:
            self._threads += 1
            self._spare += 1
        try:
            threading.Thread(target=self._work, name="grpc", daemon=True).start()
        except (RuntimeError, MemoryError):  # the system has no more: the call waits for another
            with self._lock:
                self._threads -= 1
                self._spare -= 1

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:  # noqa: BLE001 (the thread must live)
                _log.exception("a call failed")
            del call  # it holds the request
            with self._lock:
                if self._spare >= _KEPT_IDLE and not self._is_ending:
                    self._threads -= 1
                    return
                self._spare += 1
