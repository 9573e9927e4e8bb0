"""Ctrl-C, SIGTERM and a closed terminal: whatever ends a command, it cleans up first."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tfserve_kit.clock import Clock

# A closed terminal sends SIGHUP. Who started the command with nohup wants it to go on.
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def listen() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, in the main thread."""
    for number in _heard():
        signal.signal(number, signal.default_int_handler)


def _heard() -> list[signal.Signals]:
    return [
        number
        for number in _NUMBERS
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]


class _Interrupts:
    """A clock whose sleep raises KeyboardInterrupt once a signal has come.

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
def deferred() -> Iterator[Clock]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP for a `with` block, in the main thread."""
    interrupts = _Interrupts()
    before = {number: signal.signal(number, interrupts.handle) for number in _heard()}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
