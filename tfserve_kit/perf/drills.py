"""What happens beside a run: a command, and marks of when it began and ended."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Self

from tfserve_kit import safe_text
from tfserve_kit.perf.samples import Mark

POISON, OVERLOAD = "poison", "overload"

_GRACE_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run.

    Attributes:
        name: what marks call it.
        argv: one text for the shell; or a program and its arguments, which Ctrl-C does not reach.
        news: makes a mark of what a program printed, as soon as it did; an empty text is none.
    """

    name: str
    argv: str | Sequence[str]
    news: Callable[[str], str] | None = None


def command_of(during: str) -> Command | None:
    """Return the shell command that a drill is; None for those that change what is sent."""
    return None if during in {"", POISON, OVERLOAD} else Command(safe_text.redacted(during), during)


class Drill:
    """Runs a command beside a run; a `with` block that ends when both have.

    Args:
        command: the command, if any.
        after_s: when it begins, in seconds since the run began.

    Attributes:
        start_ns: `time.monotonic_ns()` at the start of the run; 0 before that.
        marks: when the command began and ended; to be read after the block.
    """

    def __init__(self, command: Command | None, after_s: float) -> None:
        self._command, self._after_s = command, after_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.start_ns = 0
        self.marks: list[Mark] = []

    def begin(self, start_ns: int) -> None:
        """Take note that the run has begun."""
        self.start_ns = start_ns
        if self._command:
            self._thread = threading.Thread(target=self._run, args=(self._command,))
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()

    def _run(self, command: Command) -> None:
        if self._over.wait(self._after_s):
            return
        self._mark(f"begin: {command.name}")
        run = self._shell if isinstance(command.argv, str) else self._program
        self._mark(f"end: {command.name} ({run(command)})")

    def _mark(self, what: str) -> None:
        self.marks.append(Mark(time.monotonic_ns() - self.start_ns, what))

    def _shell(self, command: Command) -> str:
        """Run a command of the user's, and return how it ended."""
        with subprocess.Popen(  # noqa: S602 (the user's own command line, in the user's own shell)
            command.argv, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process:
            return self._ended(process, lambda: None)

    def _program(self, command: Command) -> str:
        """Run a program, mark its news, and return how it ended, with its last words if badly."""
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            ) as process,
        ):
            ended = self._ended(process, _Once(out, lambda text: self._tell(command, text)))
            said = _text(err).rpartition("Error: ")[2].strip() if process.returncode else ""
        return f"{ended}: {said.splitlines()[0]}" if said else ended

    def _tell(self, command: Command, printed: str) -> None:
        if command.news and (news := command.news(printed)):
            self._mark(news)

    def _ended(self, process: "subprocess.Popen[bytes]", look: Callable[[], None]) -> str:
        """Wait, and return the exit code or that the command did not end with the run."""
        late_s = 0.0
        while (is_running := process.poll() is None) and late_s < _GRACE_S:
            look()
            time.sleep(_POLL_S)
            late_s += _POLL_S * self._over.is_set()
        look()
        if is_running:
            process.kill()
            return "killed: it outlived the run"
        return f"exit code {process.returncode}"


class _Once:
    """Passes on what a program printed, once it is there as a whole line."""

    def __init__(self, out: IO[bytes], tell: Callable[[str], None]) -> None:
        self._out, self._tell, self._is_over = out, tell, False

    def __call__(self) -> None:
        if not self._is_over and (text := _text(self._out)).endswith("\n"):
            self._is_over = True
            self._tell(text)


def _text(file: IO[bytes]) -> str:
    """Return what is in a file, and leave alone the place where the program goes on writing."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")
