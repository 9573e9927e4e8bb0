"""From a push to a version that serves: it has room, and is awaited, proven, or taken back.

During a swap a server has the old version and the new one loaded. Whether both fit is told only of
servers of this machine. What a version needs is taken to be the size of its files: its variables
make up most of them, and are what a server keeps. What TensorFlow needs for requests comes on top,
so that a version that does not fit by this measure does not fit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tfserve_kit.clients import Client, Target
from tfserve_kit.clients.files import read_inputs_for
from tfserve_kit.engines import FleetHandle, RunningServer, registry
from tfserve_kit.engines.records import Record
from tfserve_kit.errors import (
    Problem,
    PushRefused,
    RequestError,
    ServerFailed,
    Severity,
    UsageError,
)
from tfserve_kit.processes import free_memory_bytes
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import Pushed, list_versions
from tfserve_kit.repository.manifest import MANIFEST_PATH
from tfserve_kit.repository.push import Waves
from tfserve_kit.repository.shells import Place
from tfserve_kit.repository.versions import retire
from tfserve_kit.savedmodel import choose_signature
from tfserve_kit.serving.access import ServedModel, connect_each
from tfserve_kit.serving.swap import SwapReport, Traffic, verify
from tfserve_kit.serving.waiting import DEFAULT_WAIT_S, SwapTime, wait_each

_GB = 10**9
_MEMORY = "memory"
_REMEDY = (
    "free memory, or push while the server is stopped: it then loads the new version alone; "
    "the server keeps the old version until the new one serves"
)


def check_memory(
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
        if not isinstance(server, FleetHandle)  # whose machines are others
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


Delivered = tuple[Pushed, Mapping[str, SwapTime], SwapReport | None]
"""What was pushed, when each replica had it if that was awaited, and what traffic noticed."""


def deliver(
    push: Callable[[], Pushed],
    to: ServedModel | None,
    traffic: Traffic | None = None,
    *,
    roll_back: bool = False,
    timeout_s: float = DEFAULT_WAIT_S,
    progress: Progress = SILENT,
) -> Delivered:
    """Push a version, and see that it is served as far as that is wanted.

    Arguments and errors are those of `push_under_traffic`, without traffic of `push_and_wait`; with
    nothing that takes the version up those of `push`.
    """
    if to is None:
        return push(), {}, None
    if traffic is None:
        pushed, times = push_and_wait(
            push, to, roll_back=roll_back, timeout_s=timeout_s, progress=progress
        )
        return pushed, times, None
    pushed, report = push_under_traffic(push, to, traffic, roll_back=roll_back, progress=progress)
    return pushed, {}, report


def push_and_wait(
    push: Callable[[], Pushed],
    to: ServedModel,
    *,
    roll_back: bool = False,
    timeout_s: float = DEFAULT_WAIT_S,
    progress: Progress = SILENT,
) -> tuple[Pushed, dict[str, SwapTime]]:
    """Push a version and wait until it is AVAILABLE, on all replicas of its server.

    Args:
        push: pushes.
        to: what takes the version up.
        roll_back: whether a version that does not load is retired again.
        timeout_s: maximum wait, in seconds.
        progress: told the steps.

    Raises:
        ServerFailed: it did not become available; says where it did, and whether it was rolled
            back. Or a replica cannot be asked, and nothing was pushed.
        TfkitError: whatever `push` raises, and what the server answers.
    """
    with connect_each(to, retries=0) as each:
        pushed, found = push(), dict[str, SwapTime]()
        awaiting = partial(wait_each, each, to.model, timeout_s=timeout_s, progress=progress)
        try:
            return pushed, awaiting(pushed.version, found=found)
        except (ServerFailed, RequestError) as error:
            if len(each) > 1:
                error.message += f"; {len(found)} of {len(each)} replicas have it"
            if not roll_back:
                raise
            outcome = _take_back(pushed, to.base_path, awaiting)
            raise ServerFailed(f"{error.message}; {outcome}", remedy=error.remedy) from error


def push_under_traffic(
    push: Callable[[], Pushed],
    to: ServedModel,
    traffic: Traffic,
    *,
    roll_back: bool = False,
    progress: Progress = SILENT,
) -> tuple[Pushed, SwapReport]:
    """Push a version while requests come in, and report whether any of them noticed.

    Args:
        push: pushes.
        to: what takes the version up; a version must be served already, over gRPC.
        traffic: what is sent.
        roll_back: whether the version is retired again where there is any problem.
        progress: told the steps.

    Raises:
        UsageError: no version is served, or the traffic cannot be made.
        ServerFailed: a replica cannot be asked, and nothing was pushed.
        TfkitError: whatever `push` raises, and what the server answers before it.
    """
    pushed: list[Pushed] = []

    def once() -> int:
        pushed.append(push())
        return pushed[0].version

    with to.connect(retries=0) as client, connect_each(to, retries=0) as each:
        if traffic.files:
            traffic = replace(traffic, inputs=_read(client, to, traffic))
        report = verify(
            client,
            to.model,
            once,
            traffic=traffic,
            roll_back_in=to.base_path if roll_back else None,
            each=each,
            progress=progress,
        )
    return pushed[0], report


def _read(client: Client, to: ServedModel, traffic: Traffic) -> Mapping[str, NDArray[Any]]:
    """Return what the files hold, as the version in service takes it."""
    found = client.metadata(Target(to.model))
    signature = choose_signature(found.signatures, traffic.signature)
    version_dir = to.base_path / str(found.version) if to.base_path else None
    return read_inputs_for(version_dir, traffic.files, signature)


def _take_back(pushed: Pushed, base_path: Path | None, awaiting: Callable[[int], Any]) -> str:
    """Retire a version, wait for the one before it, and say what came of it."""
    if base_path is None:
        return f"version {pushed.version} stays in its object store; pin the one before"
    try:
        retire(base_path, pushed.version)
        older = [version.number for version in list_versions(base_path)]
        if not older:
            return f"version {pushed.version} was retired, and no older one is there"
        awaiting(older[-1])
    except (PushRefused, ServerFailed, RequestError) as error:
        return f"rolling back failed: {error.message}"
    return f"it was retired again, and version {older[-1]} serves"


class _Noticed(Exception):
    """Requests noticed the swap in one place."""


def push_in_waves(
    push: Callable[[Waves], object],
    servers: Mapping[Place, ServedModel | None],
    *,
    wave: int = 1,
    traffic: Traffic | None = None,
    timeout_s: float = DEFAULT_WAIT_S,
    progress: Progress = SILENT,
) -> tuple[Mapping[Place, Delivered], str]:
    """Push to several places, and see each wave served before the next begins.

    Args:
        push: pushes in given waves, see `repository.push.push_to_places`.
        servers: what takes the version up in each place; None is not waited for.
        wave: in how many places at once.
        traffic: what is sent meanwhile; None only waits.
        timeout_s: maximum wait for each server, in seconds.
        progress: told the steps.

    Returns:
        What came of it in each place where it became visible, and why it was taken back everywhere;
        empty where it was not.

    Raises:
        ServerFailed: a server did not load the version; says where it was retired again.
        TfkitError: whatever `push` raises, and what a server answers before it.
    """
    done: dict[Place, Delivered] = {}

    def watched(place: Place, publish: Callable[[], Pushed]) -> None:
        to = servers[place]
        done[place] = deliver(publish, to, traffic, timeout_s=timeout_s, progress=progress)
        report = done[place][2]
        if report and not report.passed:
            raise _Noticed(f"{place}: {'; '.join(report.problems())}")

    try:
        push(Waves(wave, watched))
    except _Noticed as error:
        return done, str(error)
    return done, ""


def pair_places(
    commands: Sequence[str],
    urls: Sequence[str],
    base_path: str,
    server_at: Callable[[str], ServedModel],
    *,
    is_watched: bool,
) -> dict[Place, ServedModel | None]:
    """Return the places of some commands, each with its server.

    Args:
        commands: how the places are reached.
        urls: address of the server of each, in their order; `-` for none; or nothing at all.
        base_path: the folder of the model's versions in each.
        server_at: what is at an address.
        is_watched: whether the servers are to be watched.

    Raises:
        UsageError: the addresses do not fit the commands, or what is wanted of them.
    """
    if urls and len(urls) != len(commands):
        raise UsageError(
            f"{len(urls)} --at for {len(commands)} --via",
            remedy="give one --at for each --via, in their order; - where no server is watched",
        )
    if is_watched and not set(urls) - {"-"}:
        raise UsageError(
            "--wait and --verify need to know the servers behind --via",
            remedy="give --at URL for each --via",
        )
    if urls and not is_watched:
        raise UsageError("--at without --wait or --verify", remedy="add --verify or --wait")
    if len(set(commands)) < len(commands):
        raise UsageError("the same --via is given twice", remedy="give each place once")
    named = [server_at(url) if url != "-" else None for url in urls] or [None] * len(commands)
    return {Place(each, base_path): at for each, at in zip(commands, named, strict=True)}
