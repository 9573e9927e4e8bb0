"""Texts from outside, as somebody may see them: nothing in them acts, it is only shown.

A terminal obeys control characters, whoever wrote them, and some of Unicode turns the order of what
stands beside it. They are shown by their numbers, as Python would write them.
"""

import re
from typing import Any

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


def in_json(document: str) -> str:
    r"""Return a JSON document in which no character acts: there they all have a form, `\u001b`."""
    return _ACTS.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def in_html(value: Any) -> Any:
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
