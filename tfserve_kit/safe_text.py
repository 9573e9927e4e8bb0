"""Texts that are safe to show: secrets are hidden, and nothing in them acts on a terminal.

Hidden are the user and password of a URL, its query and its fragment (where signatures and tokens
stand), what is assigned to a name such as `access_token`, what follows `Authorization:`, and
private keys. Names, hosts and paths stay, so that a message still says what it is about.

A terminal obeys control characters, whoever wrote them, and some of Unicode changes the order of
the text beside it. Those are shown by their numbers, as Python would write them.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlsplit

HIDDEN = "***"

# Lengths are bounded, so that no text, however long, takes more than its length to look through.
_SCHEME = r"[a-z][a-z0-9+.-]{0,40}"
# One slash is what pathlib leaves of two; `::` chains URLs, as fsspec does.
_URL = re.compile(
    rf"(?<![a-z0-9+.-])({_SCHEME}):(//?)(?=[^/\s])((?:(?!::{_SCHEME}:/)[^\s\"'<>`\\])*)",
    re.IGNORECASE | re.ASCII,
)
_CHAINED = re.compile(rf"::(?={_SCHEME}://)", re.IGNORECASE | re.ASCII)
_AUTHORITY_END = re.compile(r"[/?#]")
_PORT = re.compile(r":\d*")
_TRAILING = ")].,;:!"
_ASSIGNED = re.compile(
    r"(?<![\w.-])([\w.-]{0,64}?(?:passw(?:or)?d|secret|token|credential|(?:api|access|private)[_-]?key"
    r"|x-(?:amz|goog)-)[\w.-]{0,64}|sig|auth)(=|%3D)([^\s&,;\"']+)",
    re.IGNORECASE | re.ASCII,
)
_HEADER = re.compile(
    r"(?<![\w-])((?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]{0,64}?(?:key|token))"
    r"(['\"]?[ \t]{0,8}[:=][ \t]{0,8}['\"]?)([^'\"\r\n]+)",
    re.IGNORECASE | re.ASCII,
)
_CREDENTIALS = re.compile(r"\b(bearer|basic) {1,8}[\w.~+/=-]{8,}", re.IGNORECASE | re.ASCII)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_SHORTEST_SECRET = 4  # shorter ones would be found in every other word


def redacted_url(place: str) -> str:
    """Return a URL without what may be secret in it; a path is returned as it is.

    Args:
        place: `scheme://...`, or a path.
    """
    return "::".join(map(_one_url, _CHAINED.split(place)))


def _one_url(place: str) -> str:
    scheme, separator, rest = place.partition("://")
    if not separator or scheme.lower() in {"file", "local"}:
        return place
    return f"{scheme.lower()}://{_without_secrets(rest)}"


def redacted(message: str, *places: str) -> str:
    """Return a text without what may be secret in it.

    Args:
        message: any text, such as what a foreign library says.
        places: URLs whose secrets are known, to be hidden wherever and however they stand in it.
    """
    for place in places:
        message = message.replace(place, redacted_url(place))
        for secret in sorted(_secrets(place), key=len, reverse=True):
            message = message.replace(secret, HIDDEN)
    message = _URL.sub(_shown_url, message)
    message = _HEADER.sub(rf"\1\2{HIDDEN}", message)
    message = _CREDENTIALS.sub(rf"\1 {HIDDEN}", message)
    message = _ASSIGNED.sub(rf"\1\2{HIDDEN}", message)
    return _PRIVATE_KEY.sub(rf"\1{HIDDEN}\2", message)


def _shown_url(match: re.Match[str]) -> str:
    scheme, slashes, rest = match[1], match[2], match[3]
    if scheme.lower() in {"file", "local"} or (len(slashes) == 1 and "@" not in rest):
        return match[0]
    bare = rest.rstrip(_TRAILING)
    return f"{scheme}:{slashes}{_without_secrets(bare)}{rest[len(bare) :]}"


def _without_secrets(rest: str) -> str:
    """Hide what may be secret after `scheme://`."""
    user, at, rest = _split_user(rest)
    del user
    shown, mark = rest, ""
    if found := re.search(r"[?#]", rest):
        shown, mark = rest[: found.start()], f"?{HIDDEN}" if found[0] == "?" else ""
    try:
        urlsplit(f"x://{shown}")
    except ValueError:
        return "..."
    return f"{HIDDEN}@{shown}{mark}" if at else shown + mark


def _split_user(rest: str) -> tuple[str, str, str]:
    """Split off user and password, whatever characters that should be escaped are in them."""
    end = _AUTHORITY_END.search(rest)
    authority = rest[: end.start()] if end else rest
    if "@" in authority:
        user, at, host = authority.rpartition("@")
        return user, at, host + rest[len(authority) :]
    host, colon, port = authority.rpartition(":")
    is_address = authority.startswith("[") or not colon or _PORT.fullmatch(colon + port)
    if is_address or "@" not in rest:
        return "", "", rest
    del host
    return rest.rpartition("@")  # a password with a slash


def _secrets(place: str) -> Iterator[str]:
    """Yield what may be secret in a URL, as it stands there and decoded."""
    for each in _CHAINED.split(place):
        yield from _secrets_of_one(each)


def _secrets_of_one(place: str) -> Iterator[str]:
    _, separator, rest = place.partition("://")
    if not separator:
        return
    user, _, rest = _split_user(rest)
    query = re.split(r"[?#]", rest, maxsplit=1)[1:]
    found = {user, *user.split(":", 1), *query}
    for part in query:
        found |= {value for _, value in parse_qsl(part.replace("#", "&"))}
        found |= {pair.partition("=")[2] for pair in re.split(r"[&#]", part)}
    found |= {unquote_plus(each) for each in found}
    yield from (each for each in found if len(each) >= _SHORTEST_SECRET)


_ACTING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions
    "\u2028\u2029"  # ends of lines to some, not to others
    "\ud800-\udfff"  # halves of characters, which no stream takes
)
_ACTS = re.compile(f"[{_ACTING}]")
_ACTS_OR_ENDS = re.compile(f"[\t\n{_ACTING}]")
# What a spreadsheet takes for a formula when a cell begins so; numbers begin so, too.
_FORMULA = re.compile(r"[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf)")


def printable(text: str) -> str:
    """Return a text of any number of lines in which no character acts; tabs stay."""
    return _ACTS.sub(_number, text)


def one_line(text: str) -> str:
    r"""Return a text that stays on its line: newlines and tabs are shown too, as `\n` and `\t`."""
    return _ACTS_OR_ENDS.sub(_number, text)


def printable_json(document: str) -> str:
    r"""Return a JSON document in which no character acts: there they all have a form, `\u001b`."""
    return _ACTS.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def printable_html(value: Any) -> Any:
    """Return a value as a page may hold it; for `finalize` of jinja2, which escapes it besides."""
    text = printable(str(value))
    return type(value)(text) if hasattr(value, "__html__") else text


def csv_cell(text: str) -> str:
    """Return a cell of CSV as may be seen, and no formula: an apostrophe stands before those."""
    text = printable(text)
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        return "'" + text
    return text


def _number(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
