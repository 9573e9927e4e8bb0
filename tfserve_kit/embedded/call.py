"""What a request brings with it besides its content: how long it is wanted, and its account."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tfserve_kit.embedded.ledger import Account, Ledger
from tfserve_kit.embedded.status import Code, ServingError


def _never() -> bool:
    return False


def _nobody(told: Callable[[], object]) -> None:
    del told


@dataclass(slots=True)  # one for each request: frozen ones take four times as long to make
class Call:
    """One request on its way through the server, handed down from the transport.

    Attributes:
        account: what it makes the server hold; the transport opens and closes it.
        deadline_s: until when somebody waits for the answer, by `time.monotonic()`; None for ever.
        is_cancelled: says whether the client has gone.
        on_cancel: has something called when the client has gone, perhaps also when the call ends.
    """

    account: Account
    deadline_s: float | None = None
    is_cancelled: Callable[[], bool] = _never
    on_cancel: Callable[[Callable[[], object]], object] = _nobody

    @classmethod
    def unbounded(cls) -> "Call":
        """Return a call without any limit, for use within the process."""
        return cls(Ledger(1 << 62).account(""))

    @classmethod
    def within(
        cls,
        timeout_s: float | None,
        account: Account,
        is_cancelled: Callable[[], bool] = _never,
        on_cancel: Callable[[Callable[[], object]], object] = _nobody,
    ) -> "Call":
        """Return a call whose client waits `timeout_s` seconds from now; None for ever."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        return cls(account, deadline_s, is_cancelled, on_cancel)

    @property
    def timeout_s(self) -> float | None:
        """How long somebody still waits, in seconds, 0 at least; None for ever."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - time.monotonic())

    def check(self) -> None:
        """Raise where nobody waits any more; to be asked before anything costly.

        Raises:
            ServingError: CANCELLED or DEADLINE_EXCEEDED.
        """
        if self.is_cancelled():
            raise ServingError(Code.CANCELLED, "The client has cancelled the request")
        if self.deadline_s is not None and self.deadline_s <= time.monotonic():
            raise ServingError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
