"""Prints JSON values as error texts quote them.

Source: tensorflow_serving/util/json_tensor.cc (JsonWriterWithLimit: what has been printed is looked
at before each value, so the last one may go beyond the limit) and rapidjson/prettywriter.h of
release 1.1.0: lists on one line, a member of an object on each.
"""

import math
from typing import Any

from tfserve_kit.embedded.json_number import double_text
from tfserve_kit.embedded.json_reader import members

_MOST_BYTES = 256
_INDENT = "    "

_ESCAPES = {byte: f"\\u{byte:04X}" for byte in range(0x20)} | {
    0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\",
}  # fmt: skip


def quoted(text: str) -> str:
    """Print a string; what is beyond ASCII, Unicode or not, goes out as it is."""
    return '"' + text.translate(_ESCAPES) + '"'


def echo(value: Any) -> str:
    """Print a value: a string whole, else until 256 bytes or a NaN have been reached."""
    printer = _Printer()
    printer.add("", value, 0)
    return "".join(printer.pieces)


class _Printer:
    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._size_bytes = 0

    def add(self, before: str, value: Any, level: int) -> bool:
        """Print a value behind its comma or key; say whether there may be more."""
        if isinstance(value, list):
            return self._list(before, value, level)
        if isinstance(value, dict):
            return self._object(before, value, level)
        if isinstance(value, float) and not math.isfinite(value):
            self._put(before)
            return False
        return self._put(before + _scalar(value))

    def _list(self, before: str, items: list[Any], level: int) -> bool:
        return (
            self._put(before + "[")
            and all(
                self.add(", " if index else "", item, level + 1) for index, item in enumerate(items)
            )
            and self._put("]")
        )

    def _object(self, before: str, value: dict[str, Any], level: int) -> bool:
        inner, pairs = "\n" + _INDENT * (level + 1), members(value)
        end = "\n" + _INDENT * level + "}" if pairs else "}"
        return (
            self._put(before + "{")
            and all(
                self._put(("," if index else "") + inner + quoted(key))
                and self.add(": ", member, level + 1)
                for index, (key, member) in enumerate(pairs)
            )
            and self._put(end)
        )

    def _put(self, text: str) -> bool:
        """Print what belongs together, unless the limit was reached before."""
        if self._size_bytes >= _MOST_BYTES:
            return False
        self.pieces.append(text)
        self._size_bytes += len(text.encode("utf-8", "surrogateescape"))
        return True


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return double_text(value)
    return _LITERALS[value] if value is None or isinstance(value, bool) else str(value)


_LITERALS = {None: "null", True: "true", False: "false"}
