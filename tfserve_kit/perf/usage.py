"""What a process uses of its machine."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process and its children.

    Attributes:
        processor_s: processor time used since it began, in seconds.
        memory_bytes: resident memory now.
    """

    processor_s: float
    memory_bytes: int


def of_process(pid: int) -> Callable[[], Usage | None]:
    """Return what looks at a process of this machine; it returns None once that has ended."""

    def look() -> Usage | None:
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            times = [each.cpu_times() for each in family]
            memory = sum(each.memory_info().rss for each in family)
        except (psutil.Error, ValueError):
            return None
        return Usage(sum(each.user + each.system for each in times), memory)

    return look


def of_container(container_id: str) -> Callable[[], Usage | None]:
    """Return what looks at a container's processes, where they are processes of this machine."""

    @cache
    def process() -> Callable[[], Usage | None]:
        return of_process(_first_process(container_id))

    return lambda: process()()  # noqa: PLW0108 (looks for the process when first asked)


def _first_process(container_id: str) -> int:
    """Return the oldest process in a container's control group; -1 without one."""
    for pid in sorted(psutil.pids()):
        try:
            if container_id in Path(f"/proc/{pid}/cgroup").read_text("utf-8"):
                return pid
        except OSError:  # it ended meanwhile, or this is no Linux
            continue
    return -1  # is no process
