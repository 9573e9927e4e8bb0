"""How much may be repeated: a bucket of tokens that requests fill and repeated ones empty."""

import threading


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
