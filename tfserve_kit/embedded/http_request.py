"""HTTP/1.1 requests as they arrive: what a client can make the server keep of them is bounded."""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple, Protocol

import httptools

from tfserve_kit.embedded.inflate import inflated
from tfserve_kit.embedded.lanes import Turn
from tfserve_kit.embedded.ledger import Account, BudgetExceeded, Ledger
from tfserve_kit.embedded.limits import MOST_BODY_BYTES, MOST_HEAD_BYTES
from tfserve_kit.embedded.status import Code, ServingError

_VERSIONS = frozenset({"1.1", "1.0"})
# Each header counts for its text and what it costs to keep, as HTTP/2 has it (RFC 9113, 6.5.2).
_HEADER_BYTES = 32
# What a request costs besides its body; a longer head is counted in steps.
_REQUEST_BYTES = 1024
_HEAD_STEP_BYTES = 8192
# Pipelined requests are parsed a piece at a time.
_PIECE_BYTES = 32_768
# Where the body says which signature is wanted, if it does so early.
_SIGNATURE = re.compile(rb'"signature_name"\s*:\s*"([^"]{1,256})"')
_BEGINNING_BYTES = 1024
_END_OF_HEAD = b"\r\n\r\n"
_MOST_HEADS = 256


class RequestHead(NamedTuple):
    """What a request's head says.

    Attributes:
        method: HTTP method.
        target: request target as sent.
        is_zipped: whether the body is compressed.
        keep_alive: the connection stays after the answer.
        says_keep_alive: the answer has to say that the connection is kept, as in HTTP/1.0.
        origin: what page asks whether it may ask; for OPTIONS only.
    """

    method: str
    target: str
    is_zipped: bool = False
    keep_alive: bool = True
    says_keep_alive: bool = False
    origin: str = ""


@dataclass(slots=True, eq=False)
class RestRequest:
    """A request that has arrived; lives in the event loop, but for `take_body`.

    Attributes:
        head: what its head says.
        account: what it makes the server hold, answer included.
        turn: its place among the others, once it has been asked for.
        is_wanted: whether somebody still waits for the answer.
        is_working: whether the answer is being made.
    """

    head: RequestHead
    body: bytes
    account: Account
    turn: Turn | None = None
    is_wanted: bool = True
    is_working: bool = False

    @property
    def asks_for(self) -> tuple[Hashable, ...]:
        """What it asks for, as far as that is seen."""
        found = _SIGNATURE.search(self.body, 0, _BEGINNING_BYTES)
        return self.head.target, found and found[1]

    @property
    def kind(self) -> Hashable:
        """What kind of request it is, for how long others like it have taken."""
        body = self.body
        found = _SIGNATURE.search(body, 0, _BEGINNING_BYTES)  # as in `asks_for`, in half the time
        return self.head.target, found and found[1], len(body).bit_length()

    @property
    def group(self) -> tuple[Hashable, ...]:
        """Whose turns it counts for: the client, and what it asks for."""
        return self.account.client, *self.asks_for

    def take_body(self) -> bytes:
        """Return the body as it was meant, and let go of it as it was sent.

        What is damaged, cut or inflates to too much is none.

        Raises:
            BudgetExceeded: there is no room for it.
        """
        body, self.body = self.body, b""
        if not self.head.is_zipped:
            return body
        try:
            return inflated(body, self.account) or b""
        except BudgetExceeded:
            raise
        except ServingError:
            return b""

    def drop(self) -> None:
        """Want no answer any more; what it holds is given back once nobody works for it."""
        self.is_wanted = False
        if self.turn and not self.turn.has_come:
            self.turn.end()
            self.is_working = False
        if not self.is_working:
            self.account.close()


class KnownHeads:
    """Heads seen before. Clients mostly send the same one again: it is not parsed.

    All of it must be the same to the byte, so nothing is read in another way than by the parser.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[RequestHead, int]] = {}  # and how many bytes follow

    def find(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """Return a known head and its body, where these are all there is."""
        head_bytes = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        known = self._heads.get(data[:head_bytes])
        if known is None or len(data) - head_bytes != known[1]:
            return None
        return known[0], data[head_bytes:]

    def learn(self, data: bytes, request: RestRequest) -> None:
        """Remember the head of a request that was parsed, if nothing but it and its body came."""
        head_bytes = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
        if head_bytes > _REQUEST_BYTES or data[head_bytes:] != request.body:
            return
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        self._heads[data[:head_bytes]] = request.head, len(request.body)


class _Owner(Protocol):
    """What a reader tells, and asks: its connection."""

    def take(self, request: RestRequest) -> None:
        """Take up a request that is whole."""

    def has_room(self) -> bool:
        """Say whether further requests may be parsed."""

    def refuse(self, status: int) -> None:
        """Read no further, and answer so after the requests before."""

    def encourage(self) -> None:
        """Tell the client to go on and send the body."""


class RequestReader:
    """Makes requests of bytes; called by the event loop, and by httptools' parser.

    Args:
        ledger: what clients make the server hold.
        client: address of the client.
        owner: told of requests and of refusals.
        heads: what need not be parsed.

    Attributes:
        begun: a request has begun and is not complete.
        open: what arrives is read; else it is thrown away.
        unread: what has arrived and is not parsed yet.
    """

    def __init__(self, ledger: Ledger, client: str, owner: _Owner, heads: KnownHeads) -> None:
        self._ledger, self._client, self._owner = ledger, client, owner
        self._heads = heads
        self._arrived = b""  # what a request begins with that is being parsed, if that is new
        self._is_last = False  # the parser refuses whatever comes after the request before
        self._parser = httptools.HttpRequestParser(self)
        self.unread = memoryview(b"")
        self._unread_account = ledger.account(client)
        self._silent_bytes = 0  # parsed since something came of it
        self.begun = False
        self.open = True
        self._account: Account | None = None
        self._forget()

    def _forget(self) -> None:
        """Make room for the next request."""
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._counted_bytes = _REQUEST_BYTES
        self._body = BytesIO()  # one piece of memory, however small the chunks are

    @property
    def body_bytes(self) -> int:
        """How much of the body has arrived."""
        return self._body.tell()

    def feed(self, data: bytes) -> None:
        """Take up what has arrived; nothing may be unread."""
        request = self.known(data) if self._owner.has_room() else None
        if request is None:
            self._arrived = b"" if self.begun else data
            self.unread = memoryview(data)
            return
        self._count(request.account, _REQUEST_BYTES + len(request.body))
        if self.open:
            self._owner.take(request)

    def known(self, data: bytes) -> RestRequest | None:
        """Return the request that has arrived, if it is a whole one that need not be parsed.

        It is neither taken up nor counted.
        """
        if self.begun or self._is_last:
            return None
        known = self._heads.find(data)
        return RestRequest(*known, Account(self._ledger, self._client)) if known else None

    def parse(self) -> None:
        """Go on as far as there is room."""
        while self.unread and self.open and self._owner.has_room():
            piece, self.unread = self.unread[:_PIECE_BYTES], self.unread[_PIECE_BYTES:]
            self._silent_bytes += len(piece)
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as offer:
                self._decline(piece[offer.args[0] :])
            except httptools.HttpParserError:
                self._owner.refuse(400)
            # An endless header, trailer or line between chunks is known to the parser alone.
            if self._silent_bytes > MOST_HEAD_BYTES:
                self._owner.refuse(431)
        self._unread_account.keep(len(self.unread))
        self._count(self._unread_account, len(self.unread) - self._unread_account.held_bytes)

    def stop(self) -> None:
        """Read no more, and give back what the request that was arriving has taken."""
        self.open = self.begun = False
        self.unread = memoryview(b"")
        self._unread_account.close()
        if self._account:
            self._account.close()
            self._account = None
        self._forget()

    # Called by the parser

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        self.begun = True
        self._silent_bytes = 0
        if self._account is None:  # else it is read once more, without its offer to upgrade
            self._account = self._ledger.account(self._client)
            self._count(self._account, _REQUEST_BYTES)

    def on_url(self, url: bytes) -> None:
        """Add a piece of the request target."""
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header, or one behind a chunked body."""
        self._headers.append((name.lower(), value))
        self._count_head(len(name) + len(value) + _HEADER_BYTES)

    def on_headers_complete(self) -> None:
        """Refuse a body that cannot be read, or is too large, before it comes."""
        headers = dict(reversed(self._headers))  # the first of several counts
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            self._owner.refuse(400)
        elif headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            self._owner.refuse(501)
        elif int(headers.get(b"content-length", 0)) > MOST_BODY_BYTES:
            self._owner.refuse(413)
        elif headers.get(b"expect", b"").lower() == b"100-continue" and version != "1.0":
            self._owner.encourage()

    def on_body(self, body: bytes) -> None:
        """Add a piece of the body."""
        self._silent_bytes = 0
        if self._body.tell() + len(body) > MOST_BODY_BYTES:
            self._owner.refuse(413)
        self._count(self._account, len(body))
        if self.open:
            self._body.write(body)

    def on_message_complete(self) -> None:
        """Hand over the request."""
        if self._parser.should_upgrade() or not self.open or self._account is None:
            return  # an offer to upgrade is read again without the offer
        parser = self._parser
        head = RequestHead(
            parser.get_method().decode("latin-1"),
            self._target.decode("latin-1"),
            (b"content-encoding", b"gzip") in self._headers,
            parser.should_keep_alive(),
            parser.get_http_version() == "1.0",
            self._origin(),
        )
        request = RestRequest(head, self._body.getvalue(), self._account)
        if self._arrived and self._is_plain(head):
            self._heads.learn(self._arrived, request)
        self._account = None
        self._silent_bytes = 0
        self.begun = False
        self._is_last = not head.keep_alive
        self._arrived = b""
        self._forget()
        self._owner.take(request)

    def _is_plain(self, head: RequestHead) -> bool:
        """Say whether a request is one to be answered, and nothing else follows from its head."""
        if not head.keep_alive or head.says_keep_alive or head.method == "OPTIONS":
            return False
        is_small = self._counted_bytes == _REQUEST_BYTES
        return is_small and all(name != b"expect" for name, _ in self._headers)

    def _origin(self) -> str:
        if self._parser.get_method() != b"OPTIONS":
            return ""
        return dict(reversed(self._headers)).get(b"origin", b"").decode("latin-1")

    def _decline(self, rest: memoryview) -> None:
        """Read a request that offers another protocol once more, without the offer."""
        method = self._parser.get_method()
        if method == b"CONNECT" or not self.open:
            self._owner.refuse(400)
            return
        headers = [b"%b: %b" % each for each in self._headers if each[0] != b"upgrade"]
        head = b"\r\n".join([b"%b %b HTTP/1.1" % (method, self._target), *headers])
        self._parser = httptools.HttpRequestParser(self)
        self._arrived = b""
        self._forget()
        self.unread = memoryview(b"".join([head, b"\r\n\r\n", rest, self.unread]))

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MOST_HEAD_BYTES:
            self._owner.refuse(431)
        elif self._head_bytes > self._counted_bytes:
            steps = -(-(self._head_bytes - self._counted_bytes) // _HEAD_STEP_BYTES)
            self._counted_bytes += steps * _HEAD_STEP_BYTES
            self._count(self._account, steps * _HEAD_STEP_BYTES)

    def _count(self, account: Account | None, size: int) -> None:
        """Take from the ledger what has arrived, or refuse the rest."""
        if account is None or not self.open:
            return
        try:
            account.take(size, "the request")
        except ServingError as error:
            passing = not isinstance(error, BudgetExceeded) or error.is_passing
            self._owner.refuse(503 if passing or error.code is Code.UNAVAILABLE else 413)
