"""Where a measurement was made."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe() -> dict[str, str | int]:
    """Return processor, cores and versions, for a report to show beside its numbers."""
    found: dict[str, str | int] = {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "memory_gb": _memory_gb(),
        "load_before": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "governor": _read(_GOVERNOR) or "unknown",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "tfkit": version("tfserve-kit"),
        "grpcio": version("grpcio"),
        "numpy": version("numpy"),
    }
    return found


def _memory_gb() -> int:
    import psutil

    return round(psutil.virtual_memory().total / 1e9)


def _cpu() -> str:
    lines = (_read(Path("/proc/cpuinfo")) or "").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError:
        return ""
