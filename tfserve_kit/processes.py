"""Processes that are remembered: by pid and start time, because pids are given anew."""

import os
import platform
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


def host() -> str:
    """Return where pids mean what they mean here: this machine, and its namespace of pids."""
    namespace = ""
    with suppress(OSError):  # not on Linux
        namespace = f"-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 (a link to nowhere)
    return platform.node() + namespace


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
