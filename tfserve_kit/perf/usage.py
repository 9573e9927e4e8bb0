"""What a process uses of its machine, and how busy the machine's GPUs are."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import psutil

_QUERY = ("--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits")
_MIB = 2**20
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process and its children.

    Attributes:
        processor_s: processor time used since it began, in seconds.
        memory_bytes: resident memory now.
        process: number of the process, to tell it from one that took its place.
        gpus_busy: how many GPUs of the machine are busy, whoever uses them; None where unknown.
        gpu_memory_bytes: memory in use of all of them; None where unknown.
    """

    processor_s: float
    memory_bytes: int
    process: int = 0
    gpus_busy: float | None = None
    gpu_memory_bytes: int | None = None


Look = Callable[[], Usage | None]


def of_process(pid: int) -> Look:
    """Return what looks at a process of this machine; it returns None once that has ended."""

    def look() -> Usage | None:
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            times = [each.cpu_times() for each in family]
            memory = sum(each.memory_info().rss for each in family)
        except (psutil.Error, ValueError):
            return None
        return Usage(sum(each.user + each.system for each in times), memory, pid)

    return look


def of_container(container_id: str) -> Look:
    """Return what looks at a container's processes, where they are processes of this machine."""

    @cache
    def process() -> Look:
        return of_process(_first_process(container_id))

    return lambda: process()()  # noqa: PLW0108 (looks for the process when first asked)


def with_gpus(look: Look) -> Look:
    """Return what looks at the GPUs of this machine as well, where nvidia-smi is on PATH.

    Source: https://docs.nvidia.com/deploy/nvidia-smi/ (its query properties; memory is in MiB).
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return look

    def look_at_both() -> Usage | None:
        gpus = list(_gpus(program))
        usage = look()
        if usage is None or not gpus:
            return usage
        busy, used_mib = (sum(column) for column in zip(*gpus, strict=True))
        return replace(usage, gpus_busy=busy / 100, gpu_memory_bytes=round(used_mib * _MIB))

    return look_at_both


def _gpus(program: str) -> Iterator[tuple[float, float]]:
    """Yield how busy each GPU is, in percent, and its memory in use, in MiB."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [program, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
        for line in done.stdout.splitlines():
            with contextlib.suppress(ValueError):  # "[N/A]": this one does not say
                busy, used_mib = map(float, line.split(","))
                yield busy, used_mib


def _first_process(container_id: str) -> int:
    """Return the oldest process in a container's control group; -1 without one."""
    for pid in sorted(psutil.pids()):
        try:
            if container_id in Path(f"/proc/{pid}/cgroup").read_text("utf-8"):
                return pid
        except OSError:  # it ended meanwhile, or this is no Linux
            continue
    return -1  # is no process
