"""The JSON of requests, read in the ways of RapidJSON, which the official server uses."""

import sys
import threading
from typing import Any

import rapidjson

from tfserve_kit.embedded import claims, json_reader
from tfserve_kit.embedded.json_echo import echo
from tfserve_kit.embedded.ledger import Account
from tfserve_kit.embedded.status import invalid

# Of a larger body that is no JSON the fast parser says why, now and then in other words.
_MOST_READ_AGAIN_BYTES = 4_000_000
_DEEPEST = 100_000
_STACK_BYTES = 64 << 20  # reserved, not used, until a request nests that deeply


def allow_deep() -> None:
    """Let requests nest tens of thousands of lists, in threads that are still to be started.

    The official server's parser does.
    """
    sys.setrecursionlimit(_DEEPEST)
    threading.stack_size(_STACK_BYTES)


class _Decoder(rapidjson.Decoder):
    """Keeps all members of an object, also two with one key."""

    def start_object(self) -> list[tuple[str, Any]]:
        """Collect the members of an object as pairs."""
        return []

    def end_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Turn the pairs into the object."""
        return json_reader.as_object(pairs)


_decode = _Decoder(number_mode=rapidjson.NM_NAN | rapidjson.NM_NATIVE)


def parse_object(body: bytes, account: Account) -> dict[str, Any]:
    """Parse a request body.

    Args:
        body: the JSON.
        account: charged with what it becomes.

    Returns:
        The object. Bytes that are no UTF-8 are halves of characters in it, as `surrogateescape`
        has it; of members with one key the first counts.

    Raises:
        ServingError: it is no JSON, or no object, or becomes too large.
    """
    account.take(claims.of_json(body), "the JSON as objects")
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = _parse(body)
    except json_reader.Fault as fault:
        raise invalid(f"JSON Parse error: {fault}") from fault
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {echo(document)} Is not object")
    return document


def _parse(body: bytes) -> Any:
    """Parse fast what is an object, and anew what is not, or no JSON, or not for this parser."""
    try:
        document = _decode(body)
    except rapidjson.JSONDecodeError as error:
        if len(body) > _MOST_READ_AGAIN_BYTES:
            where, _, reason = str(error).removeprefix("Parse error at offset ").partition(": ")
            raise json_reader.Fault(reason, int(where)) from error
    except (UnicodeDecodeError, RecursionError):
        pass
    else:
        if isinstance(document, dict):
            return document
    return json_reader.read(body)
