"""Processes that are remembered: by pid and start time, because pids are given anew."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


def started_s(pid: int) -> float:
    """Return when a running process started, in Unix seconds."""
    import psutil

    return psutil.Process(pid).create_time()


def alive(pid: int, started_s: float) -> "psutil.Process | None":
    """Return the process if it is the one that started then and still runs.

    Args:
        pid: its process id.
        started_s: when it started, in Unix seconds, to the millisecond.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started_s) < 1e-3  # noqa: PLR2004 (float round trip)
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
