"""Who makes the server hold how many bytes: one ledger for all clients and both protocols.

Whatever a client's words make the server keep is taken from an account before it is made, so that
a request that claims too much gets an error, where the machine would run out of memory.

Shares: one client may hold at most four times what is still free. A client that is alone (a gateway
with everybody's traffic) gets nearly all; as others come less is free, so whoever holds most is
refused first and the others are served. Nothing need be known about the clients beforehand, and
hardly anything is set aside: a sixteenth, which only clients that hold next to nothing may use, so
that several who hold all they may do not shut out the next one. This is how switches share the
memory for packets among their ports (dynamic thresholds; Choudhury and Hahne, 1998).
"""

import threading
from types import TracebackType
from typing import Self

from tfserve_kit.embedded.status import Code, ServingError

TIMES_WHAT_IS_FREE = 4
_SET_ASIDE = 16  # a sixteenth
_NEXT_TO_NOTHING = 1024  # a thousandth


class BudgetExceeded(ServingError):
    """A request would make the server hold more than it may.

    Attributes:
        is_passing: others hold the memory now, and the request can be repeated; otherwise it is too
            large by itself.
    """

    def __init__(self, message: str, *, is_passing: bool) -> None:
        super().__init__(Code.RESOURCE_EXHAUSTED, message)
        self.is_passing = is_passing


class Ledger:
    """What all clients hold together. Thread-safe.

    Args:
        total_bytes: as much as they may hold.
        request_bytes: as much as one request may hold, if less than a client alone may: three
            quarters of `total_bytes`.
    """

    def __init__(self, total_bytes: int, request_bytes: int | None = None) -> None:
        self._total_bytes = total_bytes
        self._small_bytes = total_bytes // _NEXT_TO_NOTHING
        self._shared_bytes = total_bytes - total_bytes // _SET_ASIDE
        # Alone a client gets no more than this: waiting would not help.
        alone_bytes = self._shared_bytes * TIMES_WHAT_IS_FREE // (TIMES_WHAT_IS_FREE + 1)
        self._request_bytes = min(alone_bytes, request_bytes or alone_bytes)
        self._lock = threading.Lock()
        self._held_bytes = 0
        self._held_by: dict[str, int] = {}  # only clients that hold something

    @property
    def held_bytes(self) -> int:
        """What all accounts hold now."""
        return self._held_bytes

    @property
    def clients(self) -> int:
        """How many clients hold something now."""
        return len(self._held_by)

    def account(self, client: str) -> "Account":
        """Open the account of one request; costs nothing until something is taken.

        Args:
            client: whose share it counts for, such as the address of a peer.
        """
        return Account(self, client)

    def take(self, account: "Account", size_bytes: int, what: str) -> None:
        """See `Account.take`."""
        with self._lock:
            self._check(account, size_bytes, what)
            self._move(account, size_bytes)

    def give(self, account: "Account", size_bytes: int) -> None:
        """See `Account.give`."""
        with self._lock:
            self._move(account, -min(size_bytes, account.held_bytes))

    def close(self, account: "Account") -> None:
        """See `Account.close`."""
        with self._lock:
            account.is_closed = True
            if account.held_bytes:
                self._move(account, -account.held_bytes)

    def _move(self, account: "Account", size_bytes: int) -> None:
        """Put bytes down to an account; the lock is held."""
        account.held_bytes += size_bytes
        self._held_bytes += size_bytes
        clients_bytes = self._held_by.get(account.client, 0) + size_bytes
        if clients_bytes:
            self._held_by[account.client] = clients_bytes
        else:
            self._held_by.pop(account.client, None)

    def _check(self, account: "Account", size_bytes: int, what: str) -> None:
        if account.is_closed:
            raise ServingError(Code.CANCELLED, "The request has ended")
        wanted = account.held_bytes + size_bytes
        if wanted > self._request_bytes:
            raise BudgetExceeded(
                f"The request is too large: with {size_bytes} bytes for {what} it would take "
                f"{wanted}; one request may take {self._request_bytes}",
                is_passing=False,
            )
        held_bytes = self._held_bytes + size_bytes
        clients_bytes = self._held_by.get(account.client, 0) + size_bytes
        if clients_bytes <= self._small_bytes:
            fits = held_bytes <= self._total_bytes
        else:
            fits = clients_bytes <= TIMES_WHAT_IS_FREE * (self._shared_bytes - held_bytes)
        if not fits:
            raise BudgetExceeded(
                f"The server is full: no room for {size_bytes} bytes of {what}; repeat the "
                "request later",
                is_passing=True,
            )


class Account:
    """What one request makes the server hold; as a context manager it gives everything back.

    Close it when the work for the request has ended, not when its client has gone: until then the
    memory is in use. After that it lends nothing more.

    Attributes:
        client: whose share it counts for.
        held_bytes: what it holds now.
        is_closed: whether the request has ended.
    """

    __slots__ = ("_ledger", "client", "held_bytes", "is_closed")

    def __init__(self, ledger: Ledger, client: str) -> None:
        self._ledger = ledger
        self.client = client
        self.held_bytes = 0
        self.is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def take(self, size_bytes: int, what: str) -> None:
        """Take bytes before something of that size is made.

        Args:
            size_bytes: how many.
            what: what they are for, such as `the answer`; for the error's text.

        Raises:
            BudgetExceeded: the request holds too much, or too little is free; nothing was taken.
            ServingError: CANCELLED, the account is closed.
        """
        if size_bytes > 0:
            self._ledger.take(self, size_bytes, what)

    def give(self, size_bytes: int) -> None:
        """Give bytes back; never more than are held."""
        if size_bytes > 0:
            self._ledger.give(self, size_bytes)

    def keep(self, size_bytes: int) -> None:
        """Give back all but `size_bytes`; nothing where less is held."""
        if self.held_bytes > size_bytes:
            self.give(self.held_bytes - size_bytes)

    def close(self) -> None:
        """Give everything back, and lend nothing from now on; idempotent, never raises."""
        self._ledger.close(self)
