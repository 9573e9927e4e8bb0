"""Whether a server has room for a version more: during a swap the old one and the new are loaded.

Told only of servers of this machine. What a version needs is taken to be the size of its files: its
variables make up most of them, and are what a server keeps. What TensorFlow needs for requests
comes on top, so that a version that does not fit by this measure does not fit.
"""

from pathlib import Path

from tfserve_kit.engines import registry
from tfserve_kit.engines.base import Fleet, RunningServer
from tfserve_kit.engines.records import Record
from tfserve_kit.errors import Problem, PushRefused, Severity
from tfserve_kit.processes import free_memory_bytes
from tfserve_kit.repository.manifest import MANIFEST_PATH

_GB = 10**9
_MEMORY = "memory"
_REMEDY = (
    "free memory, or push while the server is stopped: it then loads the new version alone; "
    "the server keeps the old version until the new one serves"
)


def check(
    version_dir: Path, base_path: Path | str, *, is_required: bool = False
) -> tuple[Problem, ...]:
    """Compare what a version needs with what is free beside the servers of its base path.

    Fits `repository.push(..., approve=...)` once the base path is given.

    Args:
        version_dir: the version, before servers see it.
        base_path: the folder or URL of its versions.
        is_required: refuse a version that does not fit, or of which that cannot be told.

    Returns:
        A remark where it does not fit; none where no server of this machine has the base path.

    Raises:
        PushRefused: it is refused.
    """
    servers = {
        server.server_name: server
        for server, _ in registry.sharing(base_path)
        if not isinstance(server, Fleet)  # whose machines are others
    }
    found = _compared(version_dir, list(servers.values()))
    if not servers:
        found = Problem(_MEMORY, f"tfkit runs no server on {base_path} here, so the memory that is "
                        "free for a swap is not known", "leave --require-memory out")  # fmt: skip
    if found is not None and is_required:
        raise PushRefused(f"{_MEMORY}: {found.message}", remedy=found.remedy)
    return (found,) if servers and found else ()


def _compared(version_dir: Path, servers: list[RunningServer]) -> Problem | None:
    extra = version_dir / MANIFEST_PATH.parent
    files = [
        each for each in version_dir.rglob("*") if each.is_file() and extra not in each.parents
    ]
    needed = sum(each.stat().st_size for each in files) * len(servers)
    free = free_memory_bytes()
    if needed <= free:
        return None
    names = ", ".join(server.server_name for server in servers)
    in_service = sum(map(_resident_bytes, servers))
    beside = f"the {_size(in_service)} in service" if in_service else "what is in service"
    message = (
        f"the new version needs about {_size(needed)} beside {beside} ({names}); "
        f"the host has {_size(free)} free"
    )
    return Problem(_MEMORY, message, _REMEDY, Severity.WARNING)


def _resident_bytes(server: RunningServer) -> int:
    """Return what the processes of a server hold; 0 if it is no process of this user."""
    from tfserve_kit.perf import metrics  # other pushes do without

    usage = metrics.of_process(server.pid)() if isinstance(server, Record) else None
    return usage.memory_bytes if usage else 0


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GB:.1f} GB" if size_bytes >= _GB // 10 else f"{size_bytes:,} bytes"
