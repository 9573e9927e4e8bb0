"""What failures say only in words: the one place where texts of errors are matched.

TensorFlow Serving gives different refusals the same code, and they need different treatment. A
failed connection tells of its address: another protocol, no TLS, another certificate. Where a text
is not recognized, the plain meaning of its code counts.

Source: tensorflow/core/kernels/batching_util/batch_resource_base.cc and
tensorflow_serving/batching/batching_session.cc (task size), batch_scheduler_utils.cc and
basic_batch_scheduler.h (full queue); of grpc, message_size_filter.cc (message larger than max),
src/cpp/server/server_cc.cc (threads), chttp2's server (connections, memory) and tsi; OpenSSL as
Python words it; `http/messages.py`.
"""

import re
from dataclasses import dataclass

from tfserve_kit.clients.addresses import GRPC_PORT, REST_PORT
from tfserve_kit.errors import ServerUnreachable

_TASK_SIZE = re.compile(
    r"Task size \d{1,9} is larger than maximum (?:input )?batch size (\d{1,9})\b"
)

_QUEUE = (
    "send fewer requests at once, or raise max_enqueued_batches, num_batch_threads or "
    "max_batch_size in [batching]"
)
# Words of a refusal, and what helps against it.
_LIMITS = {
    "Server Threadpool Exhausted": "the server has no free threads: send fewer requests at once, "
    "or raise grpc_max_threads in [server.flags]",
    "batching queue": _QUEUE,
    "batch scheduling queue": _QUEUE,
    "RESOURCE_EXHAUSTED: memory": "the server's gRPC is short of memory: send smaller requests, "
    "or fewer at once",
    "too_many_pings": "the client sends keepalive pings too often: raise its keepalive "
    "time, or set grpc.http2.min_ping_interval_without_data_ms in grpc_channel_arguments",
}


def batch_limit(text: str) -> int | None:
    """Return the largest number of rows, where a request was refused because it has more."""
    found = _TASK_SIZE.search(text)
    return int(found[1]) if found and int(found[1]) > 0 else None


def is_full_queue(text: str) -> bool:
    """Say whether a request was refused, before any work, because the batching queue is full."""
    return "batching queue" in text or "batch scheduling queue" in text


def is_message_too_large(text: str) -> bool:
    """Say whether either side refused a gRPC message for its size."""
    return "message larger than max" in text


def is_cut_off(text: str) -> bool:
    """Say whether an answer over gRPC began and has no end: its server is gone, not the proxy."""
    return "Data frame with END_STREAM" in text


USE_GRPC = "send it over gRPC: --protocol grpc, or --url grpc://HOST:PORT"
_UNWRITTEN = re.compile(r"Conversion of JSON Value: .* to type: (\w+)", re.DOTALL)


def remedy(text: str) -> str | None:
    """Return what to do where a text says which limit of the server was reached, else None."""
    if (found := _UNWRITTEN.search(text)) is not None:
        return f"the server's REST API takes no inputs of type {found[1]}: {USE_GRPC}"
    if (limit := batch_limit(text)) is not None:
        rows = "one row" if limit == 1 else f"at most {limit} rows"
        return f"send {rows} at once, as predict_batch does, or raise max_batch_size in [batching]"
    return next((advice for words, advice in _LIMITS.items() if words in text), None)


_MOST_CHARACTERS = 2000


def shortened(text: str) -> str:
    """Return what a server says, without the end of what nobody would read."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]} ... ({len(text):,} characters)"


_REST, _GRPC, _ANY = ("http", "https"), ("grpc", "grpcs"), ("http", "https", "grpc", "grpcs")
_TRUST = "give the CA's certificate, or the server's own, with --ca-file (`ca_file` of `connect`)"
_NAME = "give a name from the certificate with --server-name (`server_name` of `connect`)"
_SHOW = "present yours with --cert and --key (`cert_file` and `key_file` of `connect`)"
NOT_THERE = "the server has no such model, version or label"
NAMES = (
    "check --model, --version and --label: `tfkit ps` lists the models of the servers that tfkit "
    "runs, `tfkit status --model NAME` the versions of one; of any other server its configuration "
    "lists the models"
)
LOG_IN = "send credentials, such as a token: --header NAME=env:VARIABLE"


@dataclass(frozen=True, slots=True)
class _Sign:
    """Words that tell something, for which schemes, what they tell, what helps, how sure it is."""

    words: str
    schemes: tuple[str, ...]
    what: str
    remedy: str
    is_sure: bool = True


_SIGNS = (
    _Sign(r"CERTIFICATE_VERIFY_FAILED.*expired", _ANY, "the server's certificate has expired",
          "ask the server's operator to renew it"),
    _Sign(r"[Hh]ostname [Vv]erification|Hostname mismatch|IP address mismatch", _ANY,
          "the server's certificate is for another name", _NAME),
    _Sign(r"CERTIFICATE_VERIFY_FAILED", _ANY, "the server's certificate is not trusted", _TRUST),
    _Sign(r"(?i)wrong.version.number|HTTP_REQUEST|record.layer.failure", _ANY,
          "the server does not use TLS", "write {plain}", False),
    _Sign(r"missing selected ALPN", _GRPC, "it speaks TLS, but not gRPC", "write https://{place}, "
          f"or give the port of gRPC, usually {GRPC_PORT}"),
    _Sign(r"speaks HTTP/2", _REST, "it speaks HTTP/2, as gRPC does",
          f"write {{grpc}}, or give the port of REST, usually {REST_PORT}"),
    _Sign(r"speaks TLS|plain HTTP request was sent to HTTPS", _REST, "it speaks TLS",
          "write https://{place}"),
    _Sign(r"Failed parsing HTTP/2|http1\.x server|unexpected content-type|frame type (?:72|79)",
          _GRPC, "it answers with HTTP/1.1, not with gRPC",
          f"write {{rest}}, or give the port of gRPC, usually {GRPC_PORT}"),
    _Sign(r"Socket closed|[Cc]onnection reset|ECONNRESET|without an answer",
          ("grpcs", "https"), "it closes the connection",
          f"if it asks for certificates, {_SHOW}; check the protocol too", False),
    _Sign(r"Socket closed|[Cc]onnection reset|ECONNRESET|without an answer", ("grpc", "http"),
          "it closes the connection", "if it speaks TLS, write {secure}; check the port too",
          False),
    _Sign(r"http2 header with status: 3", _GRPC,
          "a proxy redirects, perhaps to a log-in", f"{LOG_IN}; or the server's own URL"),
    _Sign(r"http2 header with status: 413", _GRPC, "a proxy refuses requests this large",
          "send fewer rows at once"),
    _Sign(r"http2 header with status: 404", _GRPC,
          "a proxy or a web server answers, but not with gRPC",
          "check that this is the address of gRPC"),
    _Sign(r"Data frame with END_STREAM", _GRPC,
          "an answer was cut off by a proxy that lost its server, or is not gRPC",
          "check the proxy, and that this is the address of gRPC"),
    _Sign(r"http2 header with status: 50[234]", _GRPC,
          "a proxy answers, but the server behind it does not", "check the proxy and the server"),
)  # fmt: skip
_COMPILED = tuple((re.compile(each.words, re.DOTALL), each) for each in _SIGNS)

# A few words between <html> tags are a server's own message; a page has a head, title or body.
_PAGE = re.compile(
    r"\s*(?:<!--.{0,400}?-->\s*)?"
    r"<(?:!doctype html|html\b.{0,2000}?<(?:head|title|body)|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_TITLE = re.compile(r"<title[^>]{0,200}>(.{0,400}?)</title>", re.IGNORECASE | re.DOTALL)
_MOST_TITLE = 80
_PAGES = {
    "401": LOG_IN,
    "403": f"access is refused: {LOG_IN}",
    "404": "check that this is the REST API's address; a proxy may want a path before /v1",
    "407": LOG_IN,
    "413": "send fewer rows at once: a proxy refuses requests this large",
}
_REDIRECT = f"it redirects, perhaps to a log-in: {LOG_IN}; or give the server's own address"
_ANOTHER = "a proxy or another service answers there: check the address"


def unreachable(url: str, text: str) -> ServerUnreachable:
    """Return the error of a failed connection, with what its words say of the address.

    Args:
        url: the address.
        text: the words of the failure.
    """
    if (told := _told(url, text)) is None:
        known = (cause for cause in _CAUSES if re.search(cause[0], text))
        _, what, remedy = next(known, ("", text, _START))
        return ServerUnreachable(
            f"no model server answers at {url}: {what}", remedy=remedy, url=url
        )
    sign, remedy = told
    return ServerUnreachable(
        f"no model server answers at {url}: {sign.what}",
        remedy=remedy,
        url="" if sign.is_sure else url,
    )


_START = (
    "start one with `tfkit serve`, or give its address with --url; `tfkit ps` lists the servers "
    "tfkit started"
)
_HOST = "check the name of the host in --url"
_WAY = "check the address in --url, and firewalls on the way"
# Words of the system and of grpc, what they mean, and what helps.
_CAUSES = (
    (r"(?i)refused", "nothing listens on that port", _START),
    (r"(?i)DNS resolution|Name or service|nodename|No address associated|name resolution",
     "unknown host", _HOST),
    (r"(?i)timed? ?out", "nothing answers in time", _WAY),
    (r"(?i)no route to host|network is unreachable", "no network leads there", _WAY),
    (r"(?i)no such file", "there is no such socket", _START),
)  # fmt: skip


def explained(url: str, text: str) -> tuple[str, str] | None:
    """Return what a failure says of an address, and what to do; None where it says nothing.

    Args:
        url: the address.
        text: the words of the failure.
    """
    told = _told(url, text)
    return None if told is None else (told[0].what, told[1])


def _told(url: str, text: str) -> tuple[_Sign, str] | None:
    """Return the first sign that is in a text, and its remedy for an address."""
    scheme, _, place = url.partition("://")
    scheme, at = scheme.lower(), place.partition("/")[0]
    forms = {
        "place": place,
        "plain": f"{'http' if scheme == 'https' else 'grpc'}://{place}, or http://{at}"
        if scheme == "grpcs"
        else f"http://{place}, or grpc://{at}",
        "grpc": f"{'grpcs' if scheme == 'https' else 'grpc'}://{at}",
        "rest": f"{'https' if scheme == 'grpcs' else 'http'}://{place}",
        "secure": f"{'grpcs' if scheme == 'grpc' else 'https'}://{place}",
    }
    for pattern, sign in _COMPILED:
        if scheme in sign.schemes and pattern.search(text):
            return sign, sign.remedy.format(**forms)
    return None


def page(body: bytes) -> str | None:
    """Return how to call a web page that was answered instead of JSON; None for anything else."""
    text = body[:4000].decode("utf-8", "replace")
    if not _PAGE.match(text):
        return None
    found = _TITLE.search(text)
    from html import unescape  # its table of names takes long to import

    title = " ".join(unescape(found[1]).split())[:_MOST_TITLE] if found else ""
    return f"a web page titled {title!r}" if title else "a web page"


def page_remedy(status: str) -> str:
    """Return what to do where a page was answered with an HTTP status."""
    return _REDIRECT if status.startswith("3") else _PAGES.get(status, _ANOTHER)
