"""Labels as a label map of the TensorFlow Object Detection API: `item { id: 1 name: 'cat' }`.

Source: research/object_detection/protos/string_int_label_map.proto of tensorflow/models.
"""

import re

from tfserve_kit.pictures.labels.entries import Entry, Found, Unreadable

_STRING = r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'"
# An item, with messages of one level within it, such as keypoints.
_ITEM = re.compile(rf"item\s*:?\s*\{{((?:[^{{}}\"'#]|{_STRING}|\{{[^{{}}]*\}})*)\}}[\s,;]*")
_FIELD = re.compile(rf"(\w+)\s*:\s*({_STRING}|-?\w+)|\{{[^{{}}]*\}}")
_COMMENT = re.compile(rf"({_STRING})|#[^\n\r]*")
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_SIMPLE = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


def read(text: str) -> Found | None:
    """Return the labels of a label map; None if the text is none.

    Raises:
        Unreadable: it is damaged, or an item has no name or no id.
    """
    bare = _COMMENT.sub(lambda match: match[1] or "", text).strip()
    if not re.match(r"item\s*:?\s*\{", bare):
        return None
    entries, end = [], 0
    while end < len(bare):
        item = _ITEM.match(bare, end)
        if item is None:
            raise Unreadable(f"it is a label map that breaks off at {bare[end : end + 40]!r}")
        entries.append(_entry(item[1]))
        end = item.end()
    return Found(entries)


def _entry(body: str) -> Entry:
    fields = {match[1]: match[2] for match in _FIELD.finditer(body) if match[1]}
    names = [_text(fields[key]) for key in ("display_name", "name") if key in fields]
    if not names or not fields.get("id", "").lstrip("-").isdigit():
        raise Unreadable(f"an item of its label map has no name or no id: {' '.join(body.split())}")
    return Entry(tuple(dict.fromkeys(names)), int(fields["id"]))


def _text(quoted: str) -> str:
    """Return a text without its quotes and escapes, which stand for the bytes of UTF-8."""

    def byte(match: re.Match[bytes]) -> bytes:
        octal, hexadecimal, other = match.groups()
        if octal is not None:
            return bytes([int(octal, 8) & 0xFF])
        return bytes([int(hexadecimal, 16)]) if hexadecimal else _SIMPLE.get(other, other)

    return _ESCAPE.sub(byte, quoted[1:-1].encode("utf-8")).decode("utf-8", "replace")
