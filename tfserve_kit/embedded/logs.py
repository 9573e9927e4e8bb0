"""What the server writes about itself: little enough to be kept, and nothing that acts.

Texts of clients, models and files are part of it. So each message stays on its line, which has an
end; what repeats is counted instead; and in a minute there is only so much.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TextIO

from tfserve_kit.safe_text import one_line, printable

LONGEST_LINE = 8192
WINDOW_S = 60.0
# In each window: how often the same is said, how much comes from one place, and from all of them.
MOST_REPEATS = 3
MOST_LINES_OF_A_PLACE = 300
MOST_CHARACTERS = 1 << 18
_MOST_LINES_OF_A_TRACEBACK = 100
_LONGEST_KEY = 200
_MOST_SUMMARIES = 10


def _cut(line: str) -> str:
    left_out = len(line) - LONGEST_LINE
    return line if left_out <= 0 else f"{line[:LONGEST_LINE]}... ({left_out:,} more characters)"


class _Formatter(logging.Formatter):
    """One line a message; the lines of a traceback follow, each as printable."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        # Cut first: what is escaped may have been huge.
        record.message = _cut(one_line(_cut(record.message)))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        lines = super().formatException(ei).splitlines()
        if len(lines) > _MOST_LINES_OF_A_TRACEBACK:
            half = _MOST_LINES_OF_A_TRACEBACK // 2
            lines = [*lines[:half], "...", *lines[-half:]]
        return "\n".join(_cut(printable(_cut(line))) for line in lines)


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes records to a stream; those beyond the limits are counted.

    Args:
        stream: where to.
        now_s: a monotonic clock, in seconds.
    """

    def __init__(self, stream: TextIO, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self.setFormatter(_Formatter("%(asctime)s: %(levelname).1s %(name)s] %(message)s"))
        self._now_s = now_s
        self._end_s = -1.0
        self._texts: Counter[str] = Counter()
        self._places: Counter[tuple[str, int]] = Counter()
        self._written = self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it; called with the handler's lock."""
        try:
            if self._now_s() >= self._end_s:
                self._begin_window()
            line = self.format(record)
            if self._is_allowed(record, line):
                self._write(line)
        except Exception:  # noqa: BLE001 (as logging has it: a line that fails fails nobody)
            self.handleError(record)

    def close(self) -> None:
        """Say what was left out, too."""
        self.acquire()
        try:
            self._summarize()
        finally:
            self.release()
        super().close()

    def _begin_window(self) -> None:
        self._summarize()
        self._end_s = self._now_s() + WINDOW_S
        self._texts.clear()
        self._places.clear()
        self._written = self._left_out = 0

    def _is_allowed(self, record: logging.LogRecord, line: str) -> bool:
        text, place = f"{record.name}] {record.message}"[:_LONGEST_KEY], _place(record)
        self._texts[text] += 1
        self._places[place] += 1
        if self._texts[text] > MOST_REPEATS:
            return False
        allowed = self._places[place] <= MOST_LINES_OF_A_PLACE
        allowed = allowed and self._written + len(line) <= MOST_CHARACTERS
        if not allowed:
            self._left_out += 1
            del self._texts[text]  # made up texts must not become many
        return allowed

    def _summarize(self) -> None:
        for text, count in self._texts.most_common(_MOST_SUMMARIES):
            if count > MOST_REPEATS:
                self._write(f"{text} (repeated {count - MOST_REPEATS:,} times)")
        if self._left_out:
            self._write(f"({self._left_out:,} further lines were left out)")
        self._texts.clear()
        self._left_out = 0

    def _write(self, line: str) -> None:
        self._written += len(line)
        self.stream.write(line + self.terminator)
        self.flush()


def _place(record: logging.LogRecord) -> tuple[str, int]:
    """Return which statement of the program wrote a record."""
    return record.pathname, record.lineno
