"""Processes that are remembered: by pid and start time, because pids are given anew."""

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_LOW_PRIORITY = 10  # a tenth of the weight of others, as long as there are others


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


def give_way(pid: int) -> None:
    """Let others go first where a process and they want the same processor; cannot be undone.

    Args:
        pid: a process of one's own, in a session of its own; its children and all its threads
            follow. One that has ended is passed over.
    """
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            for thread in process.threads():
                with suppress(OSError):  # it has ended; or threads have no priority of their own
                    os.setpriority(os.PRIO_PROCESS, thread.id, _LOW_PRIORITY)
            # Linux may weigh whole sessions against each other, and threads only within one.
            with suppress(OSError):
                if os.getsid(process.pid) == os.getsid(0):
                    continue
                Path(f"/proc/{process.pid}/autogroup").write_text(str(_LOW_PRIORITY), "ascii")
