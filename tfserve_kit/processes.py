"""Processes that are remembered: by pid and start time, because pids are given anew."""

import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

# Runs a command with less: memory, long files, no core file, after others, not beyond its parent.
_CONFINE = """
import ctypes, os, resource, sys
memory_bytes, file_bytes, parent, *command = sys.argv[1:]
for kind, wanted in (("DATA", memory_bytes), ("FSIZE", file_bytes), ("CORE", 0)):
    kind = getattr(resource, f"RLIMIT_{kind}")
    most = [each for each in resource.getrlimit(kind) if each >= 0]
    resource.setrlimit(kind, (min([int(wanted), *most]),) * 2)
os.nice(10)
if hasattr(libc := ctypes.CDLL(None), "prctl"):
    libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(parent):
    os.execvp(command[0], command)
"""
_CGROUP_FILES = (  # limit and use, of version 2 and of version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
MEMORY_SHARE = 0.9  # of what is free: the rest of the machine lives on
_LOW_PRIORITY = 10  # a tenth of the weight of others, as long as there are others


def host() -> str:
    """Return where pids mean what they mean here: this machine, and its namespace of pids."""
    namespace = ""
    with suppress(OSError):  # not on Linux
        namespace = f"-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 (a link to nowhere)
    return platform.node() + namespace


def confined(command: Sequence[str], memory_bytes: int, file_bytes: int) -> list[str]:
    """Return a command that runs another one with bounds: for code that need not be trusted.

    It gets so much memory and no more, gives way to other processes, leaves no core file, and is
    killed where the thread that started it ends without having waited for it (on Linux).

    Args:
        command: a program and its arguments.
        memory_bytes: the most that it may allocate.
        file_bytes: how long a file may become that it writes, such as its log.
    """
    head = [sys.executable, "-I", "-S", "-c", _CONFINE]
    return [*head, str(memory_bytes), str(file_bytes), str(os.getpid()), *command]


def free_memory_bytes() -> int:
    """Return how much memory is free for new processes here, in bytes; a cgroup may bound it."""
    import psutil

    free: int = psutil.virtual_memory().available
    for names in _CGROUP_FILES:
        with suppress(OSError, ValueError):  # not on Linux, of the other version, or without limit
            most, used = (int(Path("/sys/fs/cgroup", name).read_text("ascii")) for name in names)
            free = min(free, max(most - used, 0))
    return free


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process allocate most of what is free, and no more, for a `with` block.

    What it reads then ends in a MemoryError of its own rather than with whatever the system kills.
    """
    import resource

    import psutil

    before = resource.getrlimit(resource.RLIMIT_DATA)
    in_use = getattr(psutil.Process().memory_info(), "data", None)
    if in_use is None:  # not on Linux, where the limit counts something else
        yield
        return
    most = in_use + round(free_memory_bytes() * MEMORY_SHARE)
    known = [each for each in before if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *known]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


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


def is_alive(pid: int, started_s: float) -> bool:
    """Say whether `alive` would find a process; on Linux without psutil, which imports slowly."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        boot = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text("ascii"), re.MULTILINE)
    except OSError:
        is_linux = Path("/proc/self/stat").exists()
        return not is_linux and alive(pid, started_s) is not None
    begun_s = int(status[19]) / os.sysconf("SC_CLK_TCK") + (int(boot[1]) if boot else 0)
    return status[0] != "Z" and abs(begun_s - started_s) < 1e-3  # noqa: PLR2004 (as above)


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
