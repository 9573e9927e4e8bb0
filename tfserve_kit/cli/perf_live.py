"""The line that changes on a terminal while `tfkit perf` sends."""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tfserve_kit.cli import output

if TYPE_CHECKING:  # numpy comes with it
    from tfserve_kit.perf.sending.glances import Glance

# What is left out where the terminal is too narrow, after the title.
_LEAST = ("late", "ended", "in flight")
_PLAIN_MS = 10
_USUAL_COLUMNS = 80  # where a terminal does not say


class LiveProgress(output.TerminalProgress):
    """Shows on a terminal how a run stands, and elsewhere only that it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self._before: Glance | None = None

    def step(self, text: str) -> None:
        """Show that a run has begun."""
        self._before = None
        super().step(text)

    def glance(self, seen: "Glance") -> None:
        """Show how the run stands; a terminal that takes nothing holds up nobody else."""
        text = line(self._text, seen, rate(self._before, seen), _columns())
        self._before = seen
        self.changing(text)


def shown() -> output.TerminalProgress:
    """Return what shows the progress of runs: line by line, unless stderr is a terminal."""
    return LiveProgress() if sys.stderr.isatty() else output.TerminalProgress()


def _columns() -> int:
    try:
        found = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        found = 0
    return found or _USUAL_COLUMNS


def rate(before: "Glance | None", seen: "Glance") -> float | None:
    """Return how many requests ended per second between two glances; None for the first."""
    if before is None or seen.at_ns <= before.at_ns:
        return None
    return (seen.ended - before.ended) / ((seen.at_ns - before.at_ns) / 1e9)


def line(title: str, seen: "Glance", per_second: float | None, width: int) -> str:
    """Return how a run stands, in less than a terminal's width.

    Args:
        title: what is run.
        seen: the run; its latencies are those since the last line.
        per_second: requests that ended since then, per second.
        width: of the terminal, in characters.
    """
    errors = "1 error" if seen.failed == 1 else f"{seen.failed:,} errors"
    parts = {
        "time": f"{seen.at_ns / 1e9:.0f}{_of(seen.end_ns and seen.end_ns / 1e9)} s",
        "ended": f"{seen.ended:,}{_of(seen.total)} ended",
        "rate": "" if per_second is None else f"{per_second:,.0f}/s",
        "errors": errors,
        "p50": f"p50 {_ms(seen.quantile_s(0.5))}",
        "p99": f"p99 {_ms(seen.quantile_s(0.99))}",
        "in flight": f"{seen.in_flight:,} in flight",
        "late": "" if seen.late_ns is None else f"{_ms(seen.late_ns / 1e9)} late",
    }
    lines = [f"{title}: {_joined(parts)}", _joined(parts)]
    for name in _LEAST:
        parts[name] = ""
        lines.append(_joined(parts))
    return next((each for each in lines if len(each) < width), lines[-1][: width - 1])


def _joined(parts: Mapping[str, str]) -> str:
    return ", ".join(part for part in parts.values() if part)


def _of(total: float | None) -> str:
    return "" if total is None else f"/{total:,.0f}"


def _ms(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    value = value_s * 1e3
    return f"{value:.2f} ms" if value < _PLAIN_MS else f"{value:,.0f} ms"
