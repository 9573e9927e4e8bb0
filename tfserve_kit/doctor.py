"""What this machine can run, and what stands in the way: one small function for each thing.

The functions look at what they are given; only `examine` knows where to look.
"""

import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

from tfserve_kit.deployment.spec import Server
from tfserve_kit.engines import Phase, ServerHandle, docker, process, registry
from tfserve_kit.engines.base import Availability
from tfserve_kit.engines.records import state_folder
from tfserve_kit.errors import EngineUnavailable

_CPUINFO = Path("/proc/cpuinfo")
_VERSION_TIMEOUT_S = 30
_LITTLE_MEMORY_BYTES = 1e9
_LITTLE_DISK_BYTES = 1e9
# An image of tensorflow/serving with room to unpack it; those for GPUs are several times as large.
_IMAGE_BYTES = 2e9


class Outcome(Enum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    """It works, but something deserves a look."""
    FAILED = "failed"
    """What was checked cannot be used here."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what was found, and what to do about it."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""


def examine(*, binary: str | None = None) -> list[Check]:
    """Look at this machine and return every check; changes nothing.

    Args:
        binary: path of tensorflow_model_server; the one on PATH if left out.
    """
    import psutil

    daemon, servers = _docker_info(), registry.servers()
    root = daemon.get("DockerRootDir")
    return [
        engine("docker", docker.available()),
        gpu(daemon.get("Runtimes", {}), shutil.which("nvidia-smi")),
        native(shutil.which(binary or process.NATIVE_BINARY)),
        embedded(installed(_embedded_packages())),
        cpu(platform.machine(), cpu_flags()),
        memory(psutil.virtual_memory().available),
        disk("state folder", state_folder(), _LITTLE_DISK_BYTES),
        *([disk("docker root", Path(root), _IMAGE_BYTES)] if root else []),
        *(port(number, servers) for number in (Server().grpc_port, Server().rest_port)),
        *ended(servers),
    ]


def can_serve(checks: Iterable[Check], engines: Iterable[str] | None = None) -> bool:
    """Say whether at least one engine can run.

    Args:
        checks: what `examine` returned.
        engines: names of the engines there are; those of the registry if left out.
    """
    known = {each.name for each in registry.engines()} if engines is None else set(engines)
    return any(each.name in known and each.outcome is not Outcome.FAILED for each in checks)


def engine(name: str, availability: Availability) -> Check:
    """Return whether an engine says it can run here."""
    outcome = Outcome.OK if availability.usable else Outcome.FAILED
    return Check(name, outcome, availability.reason, availability.remedy)


def gpu(runtimes: Mapping[str, Any], nvidia_smi: str | None) -> Check:
    """Return whether containers can use an NVIDIA card.

    Args:
        runtimes: the runtimes of the Docker daemon, by name; empty without a daemon.
        nvidia_smi: path of the driver's tool, None where it is not installed.
    """
    if nvidia_smi is None:
        return Check("gpu", Outcome.OK, "no NVIDIA driver: models run on the CPU")
    if "nvidia" in runtimes:
        return Check("gpu", Outcome.OK, "NVIDIA driver, and Docker has its runtime")
    return Check(
        "gpu",
        Outcome.WARNING,
        "NVIDIA driver, but Docker has no runtime for it",
        "install nvidia-container-toolkit, then `sudo nvidia-ctk runtime configure`",
    )


def native(binary: str | None, *, timeout_s: float = _VERSION_TIMEOUT_S) -> Check:
    """Return which tensorflow_model_server there is, having asked for its version.

    Args:
        binary: its path, None if it is not on PATH.
        timeout_s: how long it may take to answer, in seconds.
    """
    if binary is None:
        text = f"there is no {process.NATIVE_BINARY} on PATH"
        return Check("native", Outcome.FAILED, text, "install it, or use another engine")
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        text = f"{binary} does not tell its version: {error}"
        return Check("native", Outcome.FAILED, text, "install it again")
    if done.returncode:
        text = f"{binary} --version ends with {process.exit_text(done.returncode)}"
        known = process.exit_meaning(done.returncode)
        return Check("native", Outcome.FAILED, text, known.remedy if known else "install it again")
    said = done.stdout.decode(errors="replace").strip().replace("\n", ", ")
    return Check("native", Outcome.OK, f"{binary}: {said or 'tells no version'}")


def embedded(versions: Mapping[str, str | None]) -> Check:
    """Return whether the embedded engine has what it needs.

    Args:
        versions: installed version of each package it needs, None for those that are missing.
    """
    missing = [name for name, version in versions.items() if version is None]
    have = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        text = f"not installed: {', '.join(missing)}"
        return Check("embedded", Outcome.FAILED, text, "pip install 'tfserve-kit[embedded]'")
    return Check("embedded", Outcome.OK, have)


def installed(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each package, None for those that are missing."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def cpu(machine: str, flags: frozenset[str] | None) -> Check:
    """Return whether official builds run on this CPU.

    Source: tensorflow_serving/tools/docker/Dockerfile: there are images for amd64 only, built with
    AVX.

    Args:
        machine: the architecture, as `uname -m` says it.
        flags: what the CPU can do, None where the system does not tell.
    """
    if machine not in {"x86_64", "AMD64"}:
        text = f"{machine}: the official image and binary are for x86_64 only"
        return Check("cpu", Outcome.WARNING, text, "use --engine embedded")
    if flags is not None and "avx" not in flags:
        meaning, remedy = process.EXITS[132]
        text = f"{machine} without AVX: servers end with exit status 132 ({meaning})"
        return Check("cpu", Outcome.FAILED, text, remedy)
    told = "with AVX" if flags is not None else "AVX unknown"
    return Check("cpu", Outcome.OK, f"{machine} {told}")


def cpu_flags(file: Path = _CPUINFO) -> frozenset[str] | None:
    """Return the flags of the first CPU in Linux's list, None where there is none."""
    try:
        line = re.search(r"^flags\s*:(.*)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return frozenset(line[1].split()) if line else None


def memory(available_bytes: int) -> Check:
    """Return whether there is memory for more than a tiny model."""
    text = f"{available_bytes / 1e9:.1f} GB available"
    if available_bytes < _LITTLE_MEMORY_BYTES:
        remedy = "a server that runs out of memory is killed: end something else first"
        return Check("memory", Outcome.WARNING, text, remedy)
    return Check("memory", Outcome.OK, text)


def disk(
    name: str,
    folder: Path,
    needed_bytes: float,
    *,
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> Check:
    """Return whether the disk of a folder, which need not exist yet, has room.

    Args:
        name: name of the check.
        folder: where something will be written.
        needed_bytes: how much is enough.
        free: tells the free bytes at a folder that exists.
    """
    there = next((each for each in (folder, *folder.parents) if each.is_dir()), Path("/"))
    try:
        free_bytes = free(there)
    except OSError as error:
        return Check(name, Outcome.WARNING, f"{folder} cannot be looked at: {error.strerror}")
    text = f"{folder}: {free_bytes / 1e9:.1f} GB free"
    if free_bytes < needed_bytes:
        remedy = f"free some space: {needed_bytes / 1e9:.0f} GB are needed"
        return Check(name, Outcome.WARNING, text, remedy)
    return Check(name, Outcome.OK, text)


def port(number: int, servers: Sequence[ServerHandle] = ()) -> Check:
    """Return whether a TCP port is free, or who has it where that can be seen.

    Args:
        number: the port.
        servers: those that tfkit runs, which are told by their names.
    """
    name = f"port {number}"
    try:
        socket.create_server(("127.0.0.1", number)).close()
    except OSError as error:
        text = f"{error.strerror}: {_holder(number, servers)}"
        remedy = "give other ports to `tfkit serve`; 0 finds a free one"
        return Check(name, Outcome.WARNING, text, remedy)
    return Check(name, Outcome.OK, "free")


def ended(servers: Iterable[ServerHandle]) -> list[Check]:
    """Return a check for each server that tfkit started and that ended by itself."""
    found = []
    for server in servers:
        state = server.state()
        if state.phase is Phase.EXITED:
            text = f"ended with {process.exit_text(state.exit_code)}"
            known = process.exit_meaning(state.exit_code) if state.exit_code is not None else None
            name = server.server_name
            steps = f"`tfkit logs {name}` says why; `tfkit stop {name}` forgets it"
            remedy = f"{known.remedy}; {steps}" if known else steps
            found.append(Check(f"server {name}", Outcome.WARNING, text, remedy))
    return found


def _holder(number: int, servers: Sequence[ServerHandle]) -> str:
    import psutil

    for server in servers:
        urls = (server.endpoints.grpc, server.endpoints.rest)
        mine = any(url.endswith(f":{number}") for url in urls)
        if mine and server.state().phase is Phase.RUNNING:
            return f"tfkit's server {server.server_name!r} has it"
    try:
        for each in psutil.net_connections("tcp"):
            if each.laddr and each.laddr.port == number and each.pid and not each.raddr:
                return f"{psutil.Process(each.pid).name()} (pid {each.pid}) has it"
    except psutil.Error:
        pass  # only root may see everything on some systems
    return "another user's process has it"


def _docker_info() -> dict[str, Any]:
    """Return what the Docker daemon tells of itself; empty without one."""
    try:
        with docker.connected(timeout_s=5) as client:
            info: dict[str, Any] = client.info()
            return info
    except EngineUnavailable:
        return {}


def _embedded_packages() -> list[str]:
    """Return what the extra `embedded` asks for, tensorflow first."""
    try:
        wanted = metadata.requires("tfserve-kit") or []
    except metadata.PackageNotFoundError:
        wanted = []
    marked = [each for each in wanted if re.search(r"extra == ['\"]embedded['\"]", each)]
    names = [re.split(r"[^\w.-]", each)[0] for each in marked]
    return ["tensorflow", *(name for name in names if name != "tensorflow")]
