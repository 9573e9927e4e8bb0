"""JSON text to values and back, in the ways of RapidJSON, which the official server uses."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import rapidjson

from tfserve_kit.embedded import claims
from tfserve_kit.embedded.json_number import double_text
from tfserve_kit.embedded.ledger import Account
from tfserve_kit.embedded.status import invalid

_MAX_ECHO_BYTES = 256


class _Decoder(rapidjson.Decoder):
    """Keeps the first of two members with one key, as a search in RapidJSON's document does."""

    def start_object(self) -> list[tuple[str, Any]]:
        """Collect the members of an object as pairs."""
        return []

    def end_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Turn the pairs into the object."""
        return _first_wins(pairs)


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        members |= reversed(pairs)
    return members


_decode = _Decoder(number_mode=rapidjson.NM_NAN | rapidjson.NM_NATIVE)


def parse_object(body: bytes, account: Account) -> dict[str, Any]:
    """Parse a request body.

    Args:
        body: the JSON.
        account: charged with what it becomes.

    Raises:
        ServingError: it is no JSON, or no object, or becomes too large.
    """
    account.take(claims.of_json(body), "the JSON as objects")
    try:
        document = _parse(body.removeprefix(b"\xef\xbb\xbf"))
    except RecursionError as error:
        raise invalid("JSON Parse error: lists or objects are nested too deeply") from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {echo(document)} Is not object")
    return document


def _parse(body: bytes) -> Any:
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        return _decode(body)
    except UnicodeDecodeError:
        return _parse_bytes(body)
    except rapidjson.JSONDecodeError as error:
        where, _, reason = str(error).removeprefix("Parse error at offset ").partition(": ")
        if reason.startswith("The document root must not be followed"):
            return _parse(body[: int(where)])
        raise invalid(f"JSON Parse error: {reason} at offset: {where}") from error


# An escape: a pair of surrogates, a lone one, or another.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F])|.)", re.DOTALL
)


def _parse_bytes(body: bytes) -> Any:
    """Parse a body whose strings are no UTF-8, which the official server lets pass.

    Bytes that are none become halves of characters. Such halves as escapes are refused, as they are
    in any other body: nothing could tell them from those bytes.
    """
    text = body.decode("utf-8", "surrogateescape")
    for escape in _ESCAPE.finditer(text):
        if escape[1]:
            where = len(text[: escape.start()].encode("utf-8", "surrogateescape"))
            reason = "The surrogate pair in string is invalid."
            raise invalid(f"JSON Parse error: {reason} at offset: {where}")
    try:
        return json.loads(text, object_pairs_hook=_first_wins)
    except ValueError as error:  # a JSONDecodeError, or digits by the thousand
        where = getattr(error, "pos", 0)
        raise invalid(f"JSON Parse error: Invalid value. at offset: {where}") from error


def echo(value: Any) -> str:
    """Print a JSON value as error texts quote it: a string whole, else at most 256 bytes."""
    try:
        text: str = rapidjson.dumps(
            _printable(value, iter(range(_MAX_ECHO_BYTES))),
            indent=4,
            write_mode=rapidjson.WM_SINGLE_LINE_ARRAY,
            ensure_ascii=False,
            number_mode=rapidjson.NM_NATIVE,
        )
    except (ValueError, OverflowError):
        return ""  # NaN and infinity cannot be printed
    if isinstance(value, str):
        return text
    return text.encode()[:_MAX_ECHO_BYTES].decode("utf-8", "surrogateescape")


def _printable(value: Any, room: Iterator[int]) -> Any:
    """Return a JSON value with its doubles as they are to be printed; refuses NaN and infinity.

    What comes after `room` items is left out: each prints at least a byte, and the text is cut.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(value)
        return rapidjson.RawJSON(double_text(value))
    if isinstance(value, list):
        return [_printable(item, room) for item, _ in zip(value, room, strict=False)]
    if isinstance(value, dict):
        members = zip(value.items(), room, strict=False)
        return {key: _printable(item, room) for (key, item), _ in members}
    return value
