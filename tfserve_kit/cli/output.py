"""How results, progress and errors are shown: results on stdout, all else on stderr.

Everything that a command shows goes through here, and whatever does not (a traceback, a warning,
click's own errors) meets the guarded streams: no character from outside acts on a terminal. Files
that results are written to replace none that somebody else wrote.
"""

import errno
import io
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

import click

from tfserve_kit import safe_text, strict_json
from tfserve_kit.cli import exits
from tfserve_kit.errors import Problem, TfkitError, UsageError, file_error
from tfserve_kit.safe_text import one_line, printable, printable_json

# Raised when a key of the JSON output changes its meaning or goes away.
_SCHEMA = 1

_LINE_START = re.compile(r"\n(?=\S)")
_NEW_LINE = "\r\x1b[2K"  # back to the beginning, and everything off it


class _GuardedStream:
    """A text stream to which no control character gets; all else is that of the stream itself.

    Attributes:
        stream: what is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text as it may be seen."""
        shown = printable(text)
        if shown:  # click tries out a stream with an empty text, and passes over what it raises
            with _quietly(self.stream):
                self.stream.write(shown)
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
    _documents.clear()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start: what is shown goes nowhere
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (to the end)
        if isinstance(stream, io.TextIOWrapper):  # a terminal of few characters shows the numbers
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, _GuardedStream):
            setattr(sys, name, _GuardedStream(stream))


def result(kind: str, data: Any, *, as_json: bool, text: str) -> None:
    """Show the result of a command.

    Args:
        kind: name of the result, for `--json`: `{"schema": 1, "kind": kind, "data": data}`.
        data: what the JSON holds; NaN and the infinities become texts, see `strict_json`.
        as_json: whether `--json` was given.
        text: what a person reads instead.
    """
    if as_json:
        document = {"schema": _SCHEMA, "kind": kind, "data": data}
        _documents.append(kind)
        text = strict_json.dumps(document, ensure_ascii=_is_narrow(sys.stdout))
        _emit(printable_json(text) + "\n")
    elif text:
        line(text)


_documents: list[str] = []  # that this command has shown; there is to be one


@contextmanager
def in_any_case(show: Callable[[], None]) -> Iterator[None]:
    """Show a result after a `with` block that writes it to files, and if one cannot be written."""
    try:
        yield
    except TfkitError:
        show()
        raise
    show()


def line(text: str) -> None:
    """Show a line, or several, on stdout."""
    _emit(printable(text) + "\n")


def note(text: str) -> None:
    """Tell something beside the result, without what may be secret in it."""
    _emit(_seen(text) + "\n", err=True)


def failure(error: TfkitError, *, as_json: bool) -> None:
    """Show an error: as text on stderr, and with `--json` as an envelope on stdout too.

    Where a result has been shown as JSON, that is the one document, and the error is not in it.
    """
    if as_json and not _documents:
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


def refreshed(header: Sequence[str], tables: Iterable[Iterable[Sequence[object]]]) -> None:
    """Show one table after the other in the same place of a terminal, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    stream: Any = getattr(sys.stdout, "stream", sys.stdout)  # what is shown here is made harmless
    with Live(console=Console(file=stream), screen=True, auto_refresh=False) as live:
        live.update(Text("Looking; Ctrl-C ends."), refresh=True)
        try:
            for rows in tables:
                shown = Table(*header, box=None, pad_edge=False)
                for row in rows:
                    shown.add_row(*(Text(one_line(str(cell))) for cell in row))
                live.update(shown, refresh=True)
        except KeyboardInterrupt:
            return


def findings(found: Sequence[Problem]) -> str:
    """Return problems as a table, or in blocks where the terminal is too narrow for it."""
    rows = [(each.severity, each.path, each.message, each.remedy) for each in found]
    text = table(("SEVERITY", "WHERE", "WHAT", "REMEDY"), rows) if rows else ""
    width = shutil.get_terminal_size(fallback=(0, 0)).columns  # 0: no terminal, no bound
    if not width or max(map(len, text.splitlines()), default=0) <= width:
        return text
    return "\n\n".join(_block(*map(one_line, row)) for row in rows)


def _block(severity: str, path: str, message: str, remedy: str) -> str:
    return f"{severity}: {path}\n  {message}" + (f"\n  Try: {remedy}" if remedy else "")


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


def is_one_terminal() -> bool:
    """Say whether results and remarks are read on a terminal, one below the other."""
    return sys.stdout.isatty() and sys.stderr.isatty()


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
    """End the command when whoever reads has gone, as `head` does, or the results have no room."""
    try:
        yield
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # what is buffered is written at exit, too
        os.close(nowhere)
        if error.errno in _NOBODY_READS:
            raise SystemExit(exits.INTERRUPTED) from None
        if stream is getattr(sys.stdout, "stream", sys.stdout):  # remarks may be lost, not results
            raise file_error(UsageError, "write", "standard output", error) from error


_NOBODY_READS = {errno.EPIPE, errno.EIO}  # EIO: of a terminal that was closed


# What stands in the first or last bytes of files that tfkit has written, of every kind.
_MARKS = (
    b"about.npy",  # a run
    b"sequence,due_ns",  # its samples
    b'"loop":',  # its numbers
    b"** achieved of ",  # its summary
    b"| verdict |",  # a comparison
    b"tfkit perf",  # pages
    b"tfkit evaluate",
    b"true,predicted,score",  # predictions
    b"written by tfkit",  # outputs
)
_ENDS_BYTES = 4096
_FORCE = "tfkit.force"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    ctx.meta[_FORCE] = value


def force_option(command: _Command) -> _Command:
    """Add `--force`, which `require_writable` heeds."""
    add: Callable[[_Command], _Command] = click.option(
        "--force",
        is_flag=True,
        expose_value=False,
        callback=_keep,
        help="Replace files even if tfkit did not write them.",
    )
    return add(command)


def require_writable(*files: Path | None) -> None:
    """Notice before a run, not after it, that a result cannot or must not be written.

    Several runs write to numbered files beside the one that is named; these count, too.

    Raises:
        UsageError: a file's folder does not exist, or there is a file that tfkit did not write and
            --force is not given.
    """
    is_forced = click.get_current_context().meta.get(_FORCE, False)
    for file in files:
        if file is None:
            continue
        if not file.parent.is_dir():
            raise UsageError(
                f"cannot write {file}: there is no folder {file.parent}",
                remedy=f"create the folder first: mkdir -p {file.parent}",
            )
        numbered = re.compile(rf"{re.escape(file.stem)}-\d+{re.escape(file.suffix)}")
        beside = (each for each in file.parent.iterdir() if numbered.fullmatch(each.name))
        for each in () if is_forced else (file, *beside):
            if not _is_replaceable(each):
                raise UsageError(
                    f"{each} exists, and tfkit did not write it",
                    remedy="name another file, or give --force to replace it",
                )


def _is_replaceable(file: Path) -> bool:
    """Say whether nothing is lost when a file is written: it is ours, empty, or no file."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return True
        with file.open("rb") as stream:
            head = stream.read(_ENDS_BYTES)
            stream.seek(-min(_ENDS_BYTES, os.fstat(stream.fileno()).st_size), os.SEEK_END)
            ends = head + stream.read()
    except OSError:
        return True  # writing it says why that cannot be
    return not ends or any(mark in ends for mark in _MARKS)
