"""Time as an object, so that whatever waits can be tested without sleeping."""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """A monotonic clock in seconds, and a way to let time pass."""

    def now_s(self) -> float:
        """Return seconds since some fixed moment; never goes backwards."""

    def sleep(self, duration_s: float) -> None:
        """Let `duration_s` seconds pass."""


class SystemClock:
    """The real clock. Thread-safe."""

    def now_s(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        """Block the calling thread."""
        time.sleep(duration_s)


def wait_until(
    probe: Callable[[], T | None], *, timeout_s: float, interval_s: float, clock: Clock
) -> T | None:
    """Call `probe` until it returns something other than None, or time is up.

    Args:
        probe: asked at once and then every `interval_s` seconds; its exceptions pass through.
        timeout_s: after this many seconds the last answer counts.
        interval_s: pause between two calls, in seconds.
        clock: what to measure and sleep with.

    Returns:
        The first answer that is not None, or None when the time ran out.
    """
    end_s = clock.now_s() + timeout_s
    while (answer := probe()) is None and clock.now_s() < end_s:
        clock.sleep(interval_s)
    return answer
