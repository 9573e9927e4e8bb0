"""Ctrl-C and SIGTERM that strike only where nothing can be left behind."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """A clock (see `clock.Clock`) whose sleep raises KeyboardInterrupt once a signal has come.

    An ordinary KeyboardInterrupt may come between starting a process and remembering it; this one
    comes only where the program waits.
    """

    def __init__(self) -> None:
        self._came = threading.Event()

    def now_s(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        """Wait, or raise KeyboardInterrupt as soon as a signal comes or has come."""
        if self._came.wait(duration_s):
            raise KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal."""
        del number, frame
        self._came.set()


@contextmanager
def deferred() -> Iterator[Interrupts]:
    """Hold back Ctrl-C and SIGTERM for a `with` block, in the main thread."""
    interrupts = Interrupts()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupts.handle) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
