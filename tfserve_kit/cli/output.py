"""How results, progress and errors are shown: results on stdout, all else on stderr."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Self

import click

from tfserve_kit import redaction
from tfserve_kit.errors import TfkitError

# Raised when a key of the JSON output changes its meaning or goes away.
SCHEMA = 1


def result(kind: str, data: Any, *, as_json: bool, text: str) -> None:
    """Show the result of a command.

    Args:
        kind: name of the result, for `--json`: `{"schema": 1, "kind": kind, "data": data}`.
        data: what the JSON holds.
        as_json: whether `--json` was given.
        text: what a person reads instead.
    """
    if as_json:
        import json

        text = json.dumps({"schema": SCHEMA, "kind": kind, "data": data}, ensure_ascii=False)
    if text:
        click.echo(text)


def note(text: str) -> None:
    """Tell something beside the result, such as an error, without what may be secret in it."""
    click.echo(redaction.text(text), err=True)


def failure(error: TfkitError, *, as_json: bool) -> None:
    """Show an error: as text on stderr, and with `--json` as an envelope on stdout too."""
    if as_json:
        message = redaction.text(error.message)
        data = {"error": type(error).__name__, "message": message, "remedy": error.remedy}
        result("error", data, as_json=True, text="")
    note(click.style("Error: ", fg="red") + str(error))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows in aligned columns under a header."""
    cells = [list(header), *([str(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in cells]
    return "\n".join(lines)


class TerminalProgress:
    """Shows progress on stderr: one changing line on a terminal, a line per step elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._text = ""

    def step(self, text: str) -> None:
        """Show that a step has begun."""
        self._text = redaction.text(text)
        self._show("" if self._live else "\n")

    def note(self, text: str) -> None:
        """Show a remark that stays."""
        self._clear()
        note(text)
        if self._live and self._text:
            self._show("")

    def advance(self, done: int, total: int) -> None:
        """Show how far the step is; only a terminal sees it."""
        if self._live and total:
            self._show("", f" {done / total:4.0%}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._live and self._text:
            click.echo("\r\x1b[2K", nl=False, err=True)

    def _show(self, end: str, suffix: str = "") -> None:
        start = "\r\x1b[2K" if self._live else ""
        click.echo(f"{start}{self._text} ...{suffix}{end}", nl=False, err=True)
