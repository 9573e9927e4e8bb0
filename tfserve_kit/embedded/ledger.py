"""What a request may make the server hold, and how long it is wanted.

One ledger for all clients and both protocols: whatever a client's words make the server keep is
taken from an account before it is made, so that a request that claims too much gets an error, where
the machine would run out of memory.

Shares: one client may hold at most four times what is still free. A client that is alone (a gateway
with everybody's traffic) gets nearly all; as others come less is free, so whoever holds most is
refused first and the others are served. Nothing need be known about the clients beforehand, and
hardly anything is set aside: a sixteenth, which only clients that hold next to nothing may use, so
that several who hold all they may do not shut out the next one. This is how switches share the
memory for packets among their ports (dynamic thresholds; Choudhury and Hahne, 1998).

Costs (`cost_of_...`) are told from a request's bytes before anything is made of them: two bytes of
a message can become a hundred as an object, and a JSON object takes thirty times its text. All
figures are upper bounds that were measured. What is small is not counted: as many requests as run
at once cannot make it matter.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.embedded.limits import UNCOUNTED_BYTES
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.tensors.proto import decode_varint

# A message as it was sent; what came in pieces is not copied once more to be bytes.
Sent = bytes | memoryview

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
        client = account.client
        with self._lock:
            accounts_bytes = account.held_bytes + size_bytes
            clients_bytes = self._held_by.get(client, 0) + size_bytes
            held_bytes = self._held_bytes + size_bytes
            is_little = clients_bytes <= self._small_bytes and held_bytes <= self._total_bytes
            if not is_little or accounts_bytes > self._request_bytes or account.is_closed:
                self._check(account, size_bytes, what)
            account.held_bytes, self._held_bytes = accounts_bytes, held_bytes
            self._held_by[client] = clients_bytes
            if account.is_closed:  # meanwhile, see `Account.close`
                self._give(account, accounts_bytes)
                raise ServingError(Code.CANCELLED, "The request has ended")

    def give(self, account: "Account", size_bytes: int) -> None:
        """See `Account.give`."""
        with self._lock:
            self._give(account, min(size_bytes, account.held_bytes))

    def _give(self, account: "Account", size_bytes: int) -> None:
        """Take bytes off an account; the lock is held."""
        account.held_bytes -= size_bytes
        self._held_bytes -= size_bytes
        clients_bytes = self._held_by.get(account.client, 0) - size_bytes
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
        # In this order: what is taken meanwhile is seen here, or sees that the account is closed.
        self.is_closed = True
        if self.held_bytes:
            self._ledger.give(self, self.held_bytes)


# A field of so many bytes or more that holds plain bytes costs them twice: in the message, and as
# an array or string of its own.
_BULK_BYTES = 1024
_BULK_TIMES = 2
# So many fields are looked at; the rest counts as if it were all made of the smallest.
_MOST_FIELDS = 500

_JSON_TIMES = 4
_JSON_WIDE_TIMES = 16  # text beyond ASCII may take four bytes a character, whole and in parts
_JSON_VALUE_BYTES = 130  # per bracket, comma or colon
_BULK_JSON_TIMES = 6  # where the tokens are, and copies
_BULK_NUMBER_BYTES = 40  # as a token, as a double, and as what it is to be
_STRING_BYTES = 64  # a string as an object, and once more within tensorflow

_ANSWERED_NUMBER_BYTES = 64  # as a Python number, as text, and as a piece of the answer
_ANSWERED_STRING_BYTES = 200
_RESULT_BYTES = 300  # a class or a value, and a row of them: a pair, a message, a piece of text
_ESCAPED_TIMES = 8  # a control character in JSON takes six bytes


@dataclass(frozen=True, slots=True)
class _Message:
    """What a message costs: `times` its bytes, but for fields of plain bytes and within others."""

    times: int
    bulk: frozenset[int] = frozenset()
    inner: "dict[int, _Message]" = field(default_factory=dict)


# Field numbers: tensorflow/core/framework/tensor.proto, tensorflow/core/example/*.proto,
# tensorflow_serving/apis/{predict,classification,regression,inference,input}.proto.
_TENSOR = _Message(28, bulk=frozenset({4, 5, 6, 8, 9, 12}))
_VALUES = _Message(28, bulk=frozenset({1}))
_FEATURE = _Message(28, inner={1: _VALUES, 2: _VALUES})
_EXAMPLE = _Message(28, inner={1: _Message(28, inner={1: _Message(28, inner={2: _FEATURE})})})
_INPUT = _Message(
    28, inner={1: _Message(28, inner={1: _EXAMPLE}), 2: _Message(28, inner={1: _EXAMPLE})}
)
_EXAMPLES = _Message(28, inner={2: _INPUT})
_PREDICT = _Message(90, inner={2: _Message(90, inner={2: _TENSOR})})
_OTHER = _Message(150)
# tensorflow_serving/apis/prediction_log.proto, of which the requests are read.
_LOG = _Message(
    150,
    inner={
        **{number: _Message(150, inner={1: _EXAMPLES}) for number in (2, 3, 4)},
        6: _Message(150, inner={1: _PREDICT}),
    },
)
_MESSAGES = {
    "Predict": _PREDICT,
    "Classify": _EXAMPLES,
    "Regress": _EXAMPLES,
    "MultiInference": _EXAMPLES,
    "PredictionLog": _LOG,
}


def cost_of_message(method: str, body: Sent) -> int:
    """Return what a serialized request becomes when it is parsed and its tensors are read.

    Args:
        method: such as `Predict`; or `PredictionLog`, a request as it is stored.
        body: the request; need not be valid.
    """
    if len(body) <= UNCOUNTED_BYTES:
        return 0
    left, cost = _MOST_FIELDS, 0
    stack = [(_MESSAGES.get(method, _OTHER), 0, len(body))]
    while stack:
        message, at, end = stack.pop()
        while at < end:
            start, left = at, left - 1
            if left < 0:
                cost += message.times * (end - at)
                break
            number, begin, at = field_at(body, at, end)
            if at - begin >= _BULK_BYTES and number in message.inner:
                stack += [(message, at, end), (message.inner[number], begin, at)]
                break
            bulk = at - begin >= _BULK_BYTES and number in message.bulk
            cost += (_BULK_TIMES if bulk else message.times) * (at - start)
    return cost


def field_at(body: Sent, at: int, end: int) -> tuple[int, int, int]:
    """Return a field's number, and where its content begins and ends; all of the rest if bad."""
    try:
        tag, begin = decode_varint(body, at, bits=32)
        match tag & 7:
            case 0:
                _, stop = decode_varint(body, begin, bits=64)
            case 1:
                stop = begin + 8
            case 2:
                size, begin = decode_varint(body, begin, bits=32)
                stop = begin + size
            case 5:
                stop = begin + 4
            case _:
                return 0, at, end
    except ValueError:
        return 0, at, end
    return tag >> 3, begin, min(stop, end)


def cost_of_json(body: bytes) -> int:
    """Return what a JSON text becomes when it is parsed into Python objects."""
    if len(body) <= UNCOUNTED_BYTES:
        return 0
    values = len(body) - len(body.translate(None, b"[{,:"))
    times = _JSON_TIMES if body.isascii() else _JSON_WIDE_TIMES
    return times * len(body) + _JSON_VALUE_BYTES * values


def cost_of_json_numbers(body: bytes) -> int:
    """Return what a JSON text takes while it is read as one array of numbers."""
    if len(body) <= UNCOUNTED_BYTES:
        return 0
    numbers = np.count_nonzero(np.frombuffer(body, np.uint8) == ord(","))
    return _BULK_JSON_TIMES * len(body) + _BULK_NUMBER_BYTES * int(numbers)


def cost_of_arrays(arrays: Iterable[NDArray[Any]]) -> int:
    """Return what arrays take, here and as tensors, the strings in string arrays included."""
    size_bytes = 0
    for array in arrays:
        size_bytes += array.nbytes
        if array.dtype.char == "O":
            size_bytes += _STRING_BYTES * array.size + text_bytes(array)
    return size_bytes if size_bytes > UNCOUNTED_BYTES else 0


def cost_of_answer(arrays: Iterable[NDArray[Any]], *, as_text: bool) -> int:
    """Return what encoding outputs takes, the answer included.

    Args:
        arrays: the outputs.
        as_text: whether each number becomes an object: in JSON, and in typed fields that are no
            plain bytes.
    """
    size_bytes = 0
    for array in arrays:
        size, kind = array.size, array.dtype.char
        if not size and as_text:  # lists of nothing are something
            size_bytes += _ANSWERED_NUMBER_BYTES * math.prod(filter(None, array.shape))
        elif kind == "O":
            size_bytes += _ANSWERED_STRING_BYTES * size + _ESCAPED_TIMES * text_bytes(array)
        elif as_text or kind not in "fd?":
            size_bytes += _ANSWERED_NUMBER_BYTES * size
        else:
            size_bytes += 2 * array.nbytes
    return size_bytes if size_bytes > UNCOUNTED_BYTES else 0


def cost_of_results(arrays: Iterable[NDArray[Any]]) -> int:
    """Return what classes, scores and values take, and become as objects and in the answer."""
    size_bytes = 0
    for array in arrays:
        size_bytes += _RESULT_BYTES * (array.size + len(array) if array.ndim else 1)
        if array.dtype.char == "O":
            size_bytes += _ESCAPED_TIMES * text_bytes(array)
    return size_bytes if size_bytes > UNCOUNTED_BYTES else 0


def text_bytes(array: NDArray[Any]) -> int:
    """Return the length of all strings; one that stands for all (a stride of 0) is asked once."""
    if array.size and not any(array.strides):
        return len(array.flat[0]) * array.size
    return sum(map(len, np.ravel(array).tolist()))


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
