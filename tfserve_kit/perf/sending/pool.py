"""What every sender can do, so that one loop drives them all."""

from collections.abc import Sequence
from typing import Protocol

from tfserve_kit.perf.sending.judging import Judges

# After an attempt to connect has failed, the next one waits this long.
RETRY_NS = 100_000_000


# The end of a request: key, status of a sample, when the first byte of the answer came, when the
# last one did (both as the pool's clock gives it), and the length of its body or message.
Finished = tuple[int, int, int, int, int]


class Pool(Protocol):
    """Connections that requests are sent over; used by one thread.

    Requests that have no connection yet, or whose connection takes no more at once, wait inside.
    Whatever happens, each request that was started is returned by `wait` once, unless it was
    cancelled before.
    """

    sends_at_once: bool  # whether `start` sends, rather than `flush`
    notes: dict[int, str]  # what the server said with the first answer of each status but OK
    judges: Judges  # of what answers hold

    def open(self, timeout_s: float) -> None:
        """Connect, before the start; raises ServerUnreachable."""

    def start(self, keys: Sequence[int]) -> None:
        """Take requests; key modulo the number of payloads says which of them each sends."""

    def flush(self) -> None:
        """Hand over to the operating system what was started."""

    def wait(self, timeout_s: float) -> list[Finished]:
        """Return the requests that ended, as soon as there are any or the time is up."""

    def cancel(self, keys: set[int]) -> None:
        """Give requests up; what comes of them is ignored."""

    def close(self) -> None:
        """Close the connections."""
