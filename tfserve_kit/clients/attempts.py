"""One call until it has an answer: its deadline, the retries and the pauses between them."""

import math
import random
import threading
from collections.abc import Callable
from typing import TypeVar

from tfserve_kit.clients.options import Options
from tfserve_kit.clients.protocol import (
    Call,
    Flow,
    Loss,
    Lost,
    Outcome,
    Send,
    ServerProtocol,
    Sleep,
)
from tfserve_kit.clients.results import Target
from tfserve_kit.clock import Clock
from tfserve_kit.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RequestError,
    ServerOverloaded,
    ServerUnreachable,
)


class RetryBudget:
    """Allows a share of the requests to be sent again. Thread-safe.

    A server that is full answers everybody with a refusal; if everybody asks again, it gets several
    times the load. So repeated requests are a small part of all of them, on average.

    Args:
        share: tokens that each request brings.
        most: tokens that the bucket holds, and holds at first; each repeated request takes one.
    """

    def __init__(self, share: float, most: float = 10.0) -> None:
        self._share, self._most = share, most
        self._tokens = most if share else 0.0
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Note a request."""
        if self._tokens < self._most:
            with self._lock:
                self._tokens = min(self._most, self._tokens + self._share)

    def spend(self) -> bool:
        """Take a token for sending a request again; False if there is none."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


T = TypeVar("T")

# The longest pause before the first repeated attempt; it doubles with each further one.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_FOREVER_S = 1e8  # three years; sockets, gRPC and threads refuse more, or end at once


class Deadline:
    """The moment by which a whole operation must have ended, however many requests it takes.

    Args:
        timeout_s: how long it may take, in seconds; `math.inf` for as long as it takes.
        clock: what it is measured with.
        replica: address of the server that is asked.

    Attributes:
        replica: address of the server that answered last.

    Raises:
        InvalidRequest: the timeout is not a number.
    """

    __slots__ = ("_clock", "began_s", "replica", "timeout_s")

    def __init__(self, timeout_s: float, clock: Clock, replica: str = "") -> None:
        try:
            is_number = not math.isnan(timeout_s)
        except TypeError:
            is_number = False
        if not is_number:
            text = f"timeout_s cannot be {timeout_s!r}"
            raise InvalidRequest(text, remedy="give seconds; math.inf waits as long as it takes")
        self.timeout_s = min(timeout_s, _FOREVER_S)
        self._clock, self.replica = clock, replica
        self.began_s = clock.now_s()

    def left_s(self) -> float:
        """Return how many seconds are left; not positive when time is up."""
        return self.began_s + self.timeout_s - self._clock.now_s()


class Attempts:
    """Sends a call, and sends it again where that is safe and promises something.

    Args:
        protocol: the protocol, for the errors it makes of outcomes.
        options: how often, and whether at all.
        clock: what time is measured with.
        chance: returns a number from 0 up to 1; pauses are that part of the longest one, so that
            clients that failed together do not come back together.
    """

    def __init__(
        self,
        protocol: ServerProtocol,
        options: Options,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._protocol, self._options, self._clock = protocol, options, clock
        self._chance = chance
        self._budget = RetryBudget(options.retry_share)

    def deadline(self, timeout_s: float) -> Deadline:
        """Start the time of an operation."""
        return Deadline(timeout_s, self._clock, self._protocol.url)

    def require_one_server(self, what: str) -> None:
        """Refuse, for a fleet, what is meant for one server.

        Raises:
            UsageError: there are several.
        """

    def call(self, call: Call[T], deadline: Deadline) -> Flow[T]:
        """Return the answer of a call.

        Raises:
            RequestError: the last attempt failed, or time is up.
        """
        self._budget.earn()
        number = 0
        while True:
            left_s = deadline.left_s()
            if left_s <= 0:
                raise self._late(call.about, deadline)
            outcome: Outcome = yield self._send(call, left_s)
            if outcome.ok:
                return call.read(outcome.body)  # type: ignore[union-attr]
            error = self._protocol.error(outcome, call.about, deadline.timeout_s)
            pause_s = self._pause_s(number)
            if not self._is_worth_another(call, error, outcome, number, deadline, pause_s):
                raise error from outcome.cause
            yield Sleep(pause_s)
            number += 1

    def _send(self, call: Call[T], left_s: float) -> Send:
        hedge_after_s = None if call.is_probe else self._options.hedge_after_s
        if hedge_after_s is None:
            return Send(call.request, left_s)
        return Send(call.request, left_s, hedge_after_s, self._budget.spend)

    def _pause_s(self, number: int) -> float:
        return self._chance() * min(_FIRST_PAUSE_S * 2.0**number, _LONGEST_PAUSE_S)

    def _is_worth_another(
        self,
        call: Call[T],
        error: RequestError,
        outcome: Outcome,
        number: int,
        deadline: Deadline,
        pause_s: float,
    ) -> bool:
        return (
            not call.is_probe
            and number < self._options.retries
            and pause_s < deadline.left_s()
            and self._is_safe(error, outcome)
            and self._budget.spend()
        )

    def _is_safe(self, error: RequestError, outcome: Outcome) -> bool:
        """Say whether sending again does no harm and may help."""
        if isinstance(error, ServerOverloaded):
            return True  # refused before any work
        if not isinstance(error, ServerUnreachable):
            return False
        unsent = isinstance(outcome, Lost) and outcome.how is Loss.UNSENT
        return unsent or self._options.idempotent

    def _late(self, about: Target, deadline: Deadline) -> DeadlineExceeded:
        text = f"{about} at {self._protocol.url}: no answer within {deadline.timeout_s:g} s"
        return DeadlineExceeded(text, remedy="raise --timeout")
