"""How a command ends: the one place where errors become exit codes, and signals an interruption.

`docs/exit-codes.md` is generated from this table. Whatever ends a command, Ctrl-C, SIGTERM or a
closed terminal, it cleans up first.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tfserve_kit import errors
from tfserve_kit.clock import Clock, SystemClock

OK = 0
BUG = 1
USAGE = 2
SPEC_INVALID = 3
ENGINE_UNAVAILABLE = 4
SERVER_FAILED = 5
REQUEST_FAILED = 6
GATE_FAILED = 7  # of commands themselves, not of an error
PUSH_REFUSED = 8
INTERRUPTED = 130

# The first class that an error is an instance of decides.
TABLE: tuple[tuple[int, type[errors.TfkitError], str], ...] = (
    (USAGE, errors.UsageError, "the command line is wrong"),
    (SPEC_INVALID, errors.SpecError, "the deployment file or a template is invalid"),
    (ENGINE_UNAVAILABLE, errors.EngineUnavailable, "this machine cannot run the engine"),
    (SERVER_FAILED, errors.ServerError, "a server failed, never became ready, or does not exist"),
    (REQUEST_FAILED, errors.RequestError, "a request to a server failed"),
    (PUSH_REFUSED, errors.PushRefused,
     "a model version was not pushed or rolled back, or is damaged"),
)  # fmt: skip


def exit_code(error: errors.TfkitError) -> int:
    """Return the exit code of an error."""
    for code, kind, _ in TABLE:
        if isinstance(error, kind):
            return code
    return BUG


def rows() -> list[tuple[int, str]]:
    """Return every exit code and its meaning, in order."""
    fixed = [
        (OK, "done"),
        (BUG, "a bug in tfkit; please report it"),
        (GATE_FAILED, "a gate failed: speed, quality, capacity, or a swap that requests noticed"),
        (INTERRUPTED, "ended by Ctrl-C, SIGTERM or a closed terminal or pipe, after cleaning up"),
    ]
    return sorted([*fixed, *((code, meaning) for code, _, meaning in TABLE)])


# A closed terminal sends SIGHUP. Who started the command with nohup wants it to go on.
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def listen() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, in the main thread."""
    for number in _heard():
        signal.signal(number, signal.default_int_handler)


def _heard() -> list[signal.Signals]:
    return [
        number
        for number in _NUMBERS
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]


class _Interrupts(SystemClock):
    """A clock whose sleep raises KeyboardInterrupt once a signal has come.

    An ordinary KeyboardInterrupt may come between starting a process and remembering it; this one
    comes only where the program waits.
    """

    def __init__(self) -> None:
        self._came = threading.Event()

    def sleep(self, duration_s: float) -> None:
        """Wait, or raise KeyboardInterrupt as soon as a signal comes or has come."""
        if self._came.wait(duration_s):
            raise KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal."""
        del number, frame
        self._came.set()


@contextmanager
def deferred() -> Iterator[Clock]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP for a `with` block, in the main thread."""
    interrupts = _Interrupts()
    before = {number: signal.signal(number, interrupts.handle) for number in _heard()}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
