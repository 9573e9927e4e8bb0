"""A gRPC call from its beginning to its answer: the message, the turn, what it makes us hold."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from threading import TIMEOUT_MAX
from typing import Any

import grpc

from tfserve_kit import protos
from tfserve_kit.embedded.grpc_surface import Answer
from tfserve_kit.embedded.inflate import GZIP_OR_ZLIB, inflated
from tfserve_kit.embedded.lanes import BlockingTurn, Lane, Lanes
from tfserve_kit.embedded.ledger import Account, Call, Ledger
from tfserve_kit.embedded.limits import MOST_INFLATED_BYTES, MOST_INFLATED_TIMES, MOST_UNHEARD
from tfserve_kit.embedded.status import Code, ServingError, encoded
from tfserve_kit.tensors import varint

# (method path, request bytes, call) -> Answer
Surface = Callable[[str, bytes, Call], Answer]

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_MOST_DETAILS_BYTES = 1024
_CUT = b"...TRUNCATED"
# Smaller messages and answers are not worth an entry in the ledger: their number is bounded.
_SMALL_BYTES = 1 << 16
# No request begins so: 3 and 15 are no fields of any, and the first would be of no wire type.
_GZIP, _ZLIB = b"\x1f\x8b", b"\x78"
# Field 1, of any length: the ModelSpec of every prediction but MultiInference.
_FIRST_FIELD = b"\x0a"
_LONGEST_SPEC_BYTES = 4096

_RELOAD = "HandleReloadConfigRequest"
_QUICK = frozenset({"GetModelStatus", "GetModelMetadata", "Check"})


class Unheard:
    """Calls whose message has not arrived yet: a thread waits for each, so there are not too many.

    When there are, the client with the most of them loses the one that has been silent longest.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int = MOST_UNHEARD) -> None:
        self._most = most
        self._count = 0
        self._lock = threading.Lock()
        self._by_client: dict[str, OrderedDict[int, Any]] = {}

    def hear(self, client: str, context: Any, messages: Iterator[bytes]) -> bytes | None:
        """Wait for a call's message; None if it ends without one.

        Raises:
            grpc.RpcError: the call was cancelled, by its client or for the sake of others.
        """
        self._begin(client, context)
        try:
            return next(messages, None)
        finally:
            self._end(client, context)

    def _begin(self, client: str, context: Any) -> None:
        evicted = None
        with self._lock:
            if self._count >= self._most:
                most = max(self._by_client, key=lambda each: len(self._by_client[each]))
                evicted = next(iter(self._by_client[most].values()))
                self._forget(most, evicted)
            self._by_client.setdefault(client, OrderedDict())[id(context)] = context
            self._count += 1
        if evicted is not None:
            evicted.cancel()

    def _end(self, client: str, context: Any) -> None:
        with self._lock:
            self._forget(client, context)

    def _forget(self, client: str, context: Any) -> None:
        calls = self._by_client.get(client)
        if calls and calls.pop(id(context), None):
            self._count -= 1
            if not calls:
                del self._by_client[client]


class Calls(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Sends every method to the surface, as bytes.

    Args:
        answer: the surface.
        lanes: how many calls are worked on at once.
        ledger: what clients make the server hold.
    """

    def __init__(self, answer: Surface, lanes: Lanes, ledger: Ledger) -> None:
        self._answer = answer
        self._lanes = lanes
        self._ledger = ledger
        self._unheard = Unheard()
        self._last_s = 0.0
        self._held: threading.Event | None = None

    @property
    def most(self) -> int:
        """How many calls there can be at a time; twice as many silent ones, as some are leaving."""
        return self._lanes.most + 2 * MOST_UNHEARD

    def service(self, handler_call_details: Any) -> Any:
        """Say how a call is handled; called by grpcio when it begins."""
        path = handler_call_details.method
        self._last_s = time.monotonic()

        def call(messages: Iterator[bytes], context: Any) -> bytes:
            return self._call(path, messages, context)

        # As a stream, because for others grpcio waits for the message before anybody is asked.
        return grpc.stream_unary_rpc_method_handler(call)

    def hold(self, quiet_s: float, longest_s: float) -> None:
        """Keep back all answers until `release`; return when no call has come for `quiet_s`.

        Whoever waits for answers before asking again asks no more, so nothing is on its way.
        """
        self._held = threading.Event()
        end_s = time.monotonic() + longest_s
        while (now_s := time.monotonic()) < min(end_s, self._last_s + quiet_s):
            time.sleep(min(end_s, self._last_s + quiet_s) - now_s)

    def release(self) -> None:
        """Let the answers go that were kept back."""
        if self._held:
            self._held.set()

    def _call(self, path: str, messages: Iterator[bytes], context: Any) -> bytes:
        client = _host(context.peer())
        account = self._ledger.account(client)
        try:
            message = self._unheard.hear(client, context, messages)
            answer = self._answered(path, message, context, account)
            del message
            if self._held:
                self._held.wait()
            if answer.code:
                context.set_code(_CODES[answer.code])
                context.set_details(_told(answer.details))
            account.keep(len(answer.body))
            return answer.body
        finally:  # until the client has taken it, where that is worth the trouble
            if account.held_bytes < _SMALL_BYTES or not context.add_callback(account.close):
                account.close()

    def _answered(self, path: str, message: bytes | None, context: Any, account: Account) -> Answer:
        if message is None:
            text = f'"{path}" requires exactly one request message.'
            return Answer(Code.UNIMPLEMENTED, text)
        call = Call.within(
            _timeout_s(context),
            account,
            lambda: not context.is_active(),
            context.add_callback,
        )
        try:
            if len(message) > _SMALL_BYTES:
                account.take(len(message), "the message")
            group = (account.client, _asked_for(message))
            with BlockingTurn(self._lane(path), group, call):
                return self._answer(path, _inflated(message, account), call)
        except ServingError as error:
            return Answer(error.code, error.message)

    def _lane(self, path: str) -> Lane:
        method = path.rpartition("/")[2]
        if method in _QUICK:
            return self._lanes.others
        return self._lanes.reloads if method == _RELOAD else self._lanes.predictions


def _host(peer: str) -> str:
    """Return an address without its port: `ipv4:10.0.0.1:50000`, `ipv6:%5B::1%5D:1`, `unix:`."""
    return peer.rpartition(":")[0]


def _asked_for(message: bytes) -> tuple[str, str] | None:
    """Return the model and signature, if they are told as usual; all others are one."""
    if message[:1] != _FIRST_FIELD:
        return None
    try:
        size, begin = varint.decode(message[:11], 1)
    except ValueError:
        return None
    return None if size > _LONGEST_SPEC_BYTES else _named(message[begin : begin + size])


@lru_cache(maxsize=128)
def _named(spec: bytes) -> tuple[str, str] | None:
    """Return the names in a ModelSpec; most calls repeat it."""
    try:
        found = protos.ModelSpec.FromString(spec)
    except protos.DecodeError:
        return None
    return found.name, found.signature_name


def _inflated(message: bytes, account: Account) -> bytes:
    """Return a compressed message as it was meant; what is none passes, for the parser to judge."""
    if message[:2] != _GZIP and message[:1] != _ZLIB:
        return message
    most_bytes = max(MOST_INFLATED_BYTES, MOST_INFLATED_TIMES * len(message))
    whole = inflated(message, account, wbits=GZIP_OR_ZLIB, most_bytes=most_bytes)
    return message if whole is None else whole


def _told(details: str) -> bytes:
    """Return details as they are sent, which need not be UTF-8.

    Source: tensorflow_serving/model_servers/grpc_status_util.cc, which cuts them.
    """
    text = encoded(details, errors="surrogateescape")
    return text if len(text) <= _MOST_DETAILS_BYTES else text[:_MOST_DETAILS_BYTES] + _CUT


def _timeout_s(context: Any) -> float | None:
    """Return how long the client will wait; without a deadline grpcio says 292 billion years."""
    remaining_s: float | None = context.time_remaining()
    return remaining_s if remaining_s is not None and remaining_s < TIMEOUT_MAX else None
