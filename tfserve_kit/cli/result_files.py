"""Files that commands write results to: none that somebody else wrote is lost."""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tfserve_kit.errors import UsageError

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

Command = TypeVar("Command", bound=Callable[..., Any])


def _keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    del param
    ctx.meta[_FORCE] = value


def force_option(command: Command) -> Command:
    """Add `--force`, which `require_writable` heeds."""
    add: Callable[[Command], Command] = click.option(
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
            raise UsageError(f"cannot write {file}: there is no folder {file.parent}")
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
