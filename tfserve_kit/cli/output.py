"""How results, progress and errors are shown: results on stdout, all else on stderr.

Everything that a command shows goes through here, and whatever does not (a traceback, a warning,
click's own errors) meets the guarded streams: no character from outside acts on a terminal.
"""

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TextIO

import click

from tfserve_kit import safe_text, strict_json
from tfserve_kit.cli import exit_codes
from tfserve_kit.errors import TfkitError
from tfserve_kit.safe_text import one_line, printable, printable_json

# Raised when a key of the JSON output changes its meaning or goes away.
SCHEMA = 1

_LINE_START = re.compile(r"\n(?=\S)")
_NEW_LINE = "\r\x1b[2K"  # back to the beginning, and everything off it


class GuardedStream:
    """A text stream to which no control character gets; all else is that of the stream itself.

    Attributes:
        stream: what is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text as it may be seen."""
        with _quietly(self.stream):
            self.stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        with _quietly(self.stream):
            self.stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts as they may be seen."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard_streams() -> None:
    """Guard stdout and stderr of this process, for what is printed past this module."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # a terminal of few characters shows the numbers
            stream.reconfigure(errors="backslashreplace")
        if stream is not None and not isinstance(stream, GuardedStream):
            setattr(sys, name, GuardedStream(stream))


def result(kind: str, data: Any, *, as_json: bool, text: str) -> None:
    """Show the result of a command.

    Args:
        kind: name of the result, for `--json`: `{"schema": 1, "kind": kind, "data": data}`.
        data: what the JSON holds; NaN and the infinities become texts, see `strict_json`.
        as_json: whether `--json` was given.
        text: what a person reads instead.
    """
    if as_json:
        document = {"schema": SCHEMA, "kind": kind, "data": data}
        text = strict_json.dumps(document, ensure_ascii=_is_narrow(sys.stdout))
        _emit(printable_json(text) + "\n")
    elif text:
        line(text)


def line(text: str) -> None:
    """Show a line, or several, on stdout."""
    _emit(printable(text) + "\n")


def note(text: str) -> None:
    """Tell something beside the result, without what may be secret in it."""
    _emit(_seen(text) + "\n", err=True)


def failure(error: TfkitError, *, as_json: bool) -> None:
    """Show an error: as text on stderr, and with `--json` as an envelope on stdout too."""
    if as_json:
        message = safe_text.redacted(error.message)
        data = {"error": type(error).__name__, "message": message, "remedy": error.remedy}
        result("error", data, as_json=True, text="")
    fault(str(error))


def fault(text: str) -> None:
    """Show what went wrong, on stderr."""
    _emit(click.style("Error: ", fg="red") + _seen(text) + "\n", err=True)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows in aligned columns under a header; each cell stays on its line."""
    cells = [list(header), *([one_line(str(value)) for value in row] for row in rows)]
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
        self._text = one_line(safe_text.redacted(text))
        self._show("" if self._live else "\n")

    def note(self, text: str) -> None:
        """Show a remark that stays."""
        self._between(lambda: note(text))

    def fault(self, text: str) -> None:
        """Show an error that does not end the command."""
        self._between(lambda: fault(text))

    def advance(self, done: int, total: int) -> None:
        """Show how far the step is; only a terminal sees it."""
        if self._live and total:
            self._show("", f" {done / total:4.0%}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._clear()

    def changing(self, text: str) -> None:
        """Show a line in place of the one that stands there; for terminals."""
        _emit(_NEW_LINE + one_line(text), err=True)

    def _between(self, show: Callable[[], None]) -> None:
        self._clear()
        show()
        if self._live and self._text:
            self._show("")

    def _clear(self) -> None:
        if self._live and self._text:
            _emit(_NEW_LINE, err=True)

    def _show(self, end: str, suffix: str = "") -> None:
        start = _NEW_LINE if self._live else ""
        _emit(f"{start}{self._text} ...{suffix}{end}", err=True)


def _seen(text: str) -> str:
    """Return a remark as it may be seen; what a foreign text says on further lines is indented."""
    return _LINE_START.sub("\n  ", printable(safe_text.redacted(text)))


def _is_narrow(stream: TextIO) -> bool:
    """Say whether a stream cannot take every character."""
    return (stream.encoding or "").lower().replace("-", "") != "utf8"


def _emit(text: str, *, err: bool = False) -> None:
    """Write what may be seen; here alone our own control characters pass."""
    stream: Any = sys.stderr if err else sys.stdout
    stream = getattr(stream, "stream", stream)
    with _quietly(stream):
        click.echo(text, file=stream, nl=False)


@contextmanager
def _quietly(stream: TextIO) -> Iterator[None]:
    """End the command when whoever reads has gone, as `head` does."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # what is buffered is written at exit, too
        os.close(nowhere)
        raise SystemExit(exit_codes.INTERRUPTED) from None
