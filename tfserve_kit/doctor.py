"""What this machine can run, and what stands in the way: one small function for each thing.

Each returns a `Problem` of its name: an error where what it looked at cannot be used here, a
warning where it works but deserves a look, else a piece of information. The functions look at what
they are given; only `examine` knows where to look.
"""

import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tfserve_kit.deployment.spec import Server, Spec
from tfserve_kit.engines import Phase, ServerHandle, docker, kubernetes, process, registry
from tfserve_kit.engines.base import Availability
from tfserve_kit.engines.records import state_folder
from tfserve_kit.engines.swarm import SwarmEngine
from tfserve_kit.errors import EngineUnavailable, Problem, Severity, TfkitError

_CPUINFO = Path("/proc/cpuinfo")
_IPVS = Path("/proc/net/ip_vs")
_MODULES = Path("/lib/modules") / platform.release()
_VERSION_TIMEOUT_S = 30
_LITTLE_MEMORY_BYTES = 1e9
_LITTLE_DISK_BYTES = 1e9
# An image of tensorflow/serving with room to unpack it; those for GPUs are several times as large.
_IMAGE_BYTES = 2e9


def examine(*, binary: str | None = None, spec: Spec | None = None) -> list[Problem]:
    """Look at this machine and return every check; changes nothing.

    Args:
        binary: path of tensorflow_model_server; the one on PATH if left out.
        spec: a deployment that will be served here; None for none.
    """
    import psutil

    daemon, servers = _docker_info(), registry.servers()
    root = daemon.get("DockerRootDir")
    return [
        engine("docker", docker.available()),
        gpu(daemon.get("Runtimes", {}), shutil.which("nvidia-smi")),
        native(shutil.which(binary or process.NATIVE_BINARY)),
        embedded(installed(_embedded_packages())),
        *_swarm(spec),
        *_kubernetes(spec),
        cpu(platform.machine(), cpu_flags()),
        memory(psutil.virtual_memory().available),
        disk("state folder", state_folder(), _LITTLE_DISK_BYTES),
        *([disk("docker root", Path(root), _IMAGE_BYTES)] if root else []),
        *(port(number, servers) for number in (Server().grpc_port, Server().rest_port)),
        *ended(servers),
    ]


def can_serve(checks: Iterable[Problem], engines: Iterable[str] | None = None) -> bool:
    """Say whether at least one engine can run.

    Args:
        checks: what `examine` returned.
        engines: names of the engines there are; those of the registry if left out.
    """
    known = {each.name for each in registry.engines()} if engines is None else set(engines)
    return any(each.path in known and each.severity is not Severity.ERROR for each in checks)


def _check(name: str, severity: Severity, found: str, remedy: str = "") -> Problem:
    return Problem(name, found, remedy, severity)


def engine(name: str, availability: Availability) -> Problem:
    """Return whether an engine says it can run here."""
    severity = Severity.INFO if availability.usable else Severity.ERROR
    return _check(name, severity, availability.reason, availability.remedy)


def gpu(runtimes: Mapping[str, Any], nvidia_smi: str | None) -> Problem:
    """Return whether containers can use an NVIDIA card.

    Args:
        runtimes: the runtimes of the Docker daemon, by name; empty without a daemon.
        nvidia_smi: path of the driver's tool, None where it is not installed.
    """
    if nvidia_smi is None:
        return _check("gpu", Severity.INFO, "no NVIDIA driver: models run on the CPU")
    if "nvidia" in runtimes:
        return _check("gpu", Severity.INFO, "NVIDIA driver, and Docker has its runtime")
    return _check(
        "gpu",
        Severity.WARNING,
        "NVIDIA driver, but Docker has no runtime for it",
        "install nvidia-container-toolkit, then `sudo nvidia-ctk runtime configure`",
    )


def native(binary: str | None, *, timeout_s: float = _VERSION_TIMEOUT_S) -> Problem:
    """Return which tensorflow_model_server there is, having asked for its version.

    Args:
        binary: its path, None if it is not on PATH.
        timeout_s: how long it may take to answer, in seconds.
    """
    if binary is None:
        text = f"there is no {process.NATIVE_BINARY} on PATH"
        return _check("native", Severity.ERROR, text, "install it, or use another engine")
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        text = f"{binary} does not tell its version: {error}"
        return _check("native", Severity.ERROR, text, "install it again")
    if done.returncode:
        text = f"{binary} --version ends with {process.exit_text(done.returncode)}"
        known = process.exit_meaning(done.returncode)
        return _check("native", Severity.ERROR, text, known[1] if known else "install it again")
    said = done.stdout.decode(errors="replace").strip().replace("\n", ", ")
    return _check("native", Severity.INFO, f"{binary}: {said or 'tells no version'}")


def embedded(versions: Mapping[str, str | None]) -> Problem:
    """Return whether the embedded engine has what it needs.

    Args:
        versions: installed version of each package it needs, None for those that are missing.
    """
    missing = [name for name, version in versions.items() if version is None]
    have = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        text = f"not installed: {', '.join(missing)}"
        return _check("embedded", Severity.ERROR, text, "pip install 'tfserve-kit[embedded]'")
    return _check("embedded", Severity.INFO, have)


def installed(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each package, None for those that are missing."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _swarm(spec: Spec | None) -> list[Problem]:
    """Return whether this machine deploys to a swarm, and what its services will find there."""
    manages = SwarmEngine().available()
    found = [engine("swarm", manages)]
    if not manages.usable:
        return found
    with docker.translated("cannot ask about the swarm"), docker.connected() as client:
        found += [nodes(client.api.nodes()), ipvs()]
        if spec and spec.gateway:
            image = spec.gateway.image
            found.append(gateway(image, is_here=docker.has_image(client, image)))
    return found


def _kubernetes(spec: Spec | None) -> list[Problem]:
    """Return whether kubectl is here, and whether a cluster answers it."""
    has_kubectl = kubernetes.KubernetesEngine().available()
    found = [engine("kubernetes", has_kubectl)]
    if not has_kubectl.usable:
        return found
    try:
        return [*found, _check("cluster", Severity.INFO, kubernetes.reached(spec))]
    except TfkitError as error:
        is_wanted = spec is not None and spec.server.engine == "kubernetes"
        severity = Severity.ERROR if is_wanted else Severity.INFO
        return [*found, _check("cluster", severity, error.message, error.remedy)]


def nodes(there: Sequence[Mapping[str, Any]]) -> Problem:
    """Return whether every node of a swarm takes replicas.

    Args:
        there: the nodes, as the daemon's API describes them.
    """
    idle = {
        each["Description"][
            "Hostname"
        ]: f"{each['Status']['State']}, {each['Spec']['Availability']}"
        for each in there
        if (each["Status"]["State"], each["Spec"]["Availability"]) != ("ready", "active")
    }
    text = f"{len(there) - len(idle)} of {len(there)} take replicas"
    if not idle:
        return _check("swarm nodes", Severity.INFO, text)
    told = "; ".join(f"{name} is {state}" for name, state in idle.items())
    remedy = "start Docker on those that are down; `docker node update --availability active NODE`"
    return _check("swarm nodes", Severity.WARNING, f"{text}: {told}", remedy)


def ipvs(table: Path = _IPVS, modules: Path = _MODULES) -> Problem:
    """Return whether virtual addresses and the ingress network of a swarm work on this kernel.

    Args:
        table: what the kernel shows once IPVS is loaded.
        modules: folder of the kernel's modules, from which Docker loads it when it needs it.
    """
    lists = [modules / "modules.dep", modules / "modules.builtin"]
    known = any("/ip_vs.ko" in each.read_text() for each in lists if each.is_file())
    if table.exists() or known:
        return _check("ipvs", Severity.INFO, "the kernel has it: ingress ports work too")
    return _check(
        "ipvs",
        Severity.INFO,
        "not in this kernel: ingress ports and virtual addresses of services do not answer here; "
        "tfkit's services need neither, but dnsrr and ports of the nodes",
    )


def gateway(image: str, *, is_here: bool) -> Problem:
    """Return whether the image of a deployment's gateway is on this machine."""
    if is_here:
        return _check("gateway", Severity.INFO, f"{image} is here")
    text = f"{image} is not on this machine: a node pulls it when the gateway starts there"
    return _check("gateway", Severity.WARNING, text, f"docker pull {image}")


def cpu(machine: str, flags: frozenset[str] | None) -> Problem:
    """Return whether official builds run on this CPU.

    Source: tensorflow_serving/tools/docker/Dockerfile: there are images for amd64 only, built with
    AVX.

    Args:
        machine: the architecture, as `uname -m` says it.
        flags: what the CPU can do, None where the system does not tell.
    """
    if machine not in {"x86_64", "AMD64"}:
        text = f"{machine}: the official image and binary are for x86_64 only"
        return _check("cpu", Severity.WARNING, text, "use --engine embedded")
    if flags is not None and "avx" not in flags:
        meaning, remedy = process.EXITS[132]
        text = f"{machine} without AVX: servers end with exit status 132 ({meaning})"
        return _check("cpu", Severity.ERROR, text, remedy)
    told = "with AVX" if flags is not None else "AVX unknown"
    return _check("cpu", Severity.INFO, f"{machine} {told}")


def cpu_flags(file: Path = _CPUINFO) -> frozenset[str] | None:
    """Return the flags of the first CPU in Linux's list, None where there is none."""
    try:
        line = re.search(r"^flags\s*:(.*)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return frozenset(line[1].split()) if line else None


def memory(available_bytes: int) -> Problem:
    """Return whether there is memory for more than a tiny model."""
    text = f"{available_bytes / 1e9:.1f} GB available"
    if available_bytes < _LITTLE_MEMORY_BYTES:
        remedy = "a server that runs out of memory is killed: end something else first"
        return _check("memory", Severity.WARNING, text, remedy)
    return _check("memory", Severity.INFO, text)


def disk(
    name: str,
    folder: Path,
    needed_bytes: float,
    *,
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> Problem:
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
        return _check(name, Severity.WARNING, f"{folder} cannot be looked at: {error.strerror}")
    text = f"{folder}: {free_bytes / 1e9:.1f} GB free"
    if free_bytes < needed_bytes:
        remedy = f"free some space: {needed_bytes / 1e9:.0f} GB are needed"
        return _check(name, Severity.WARNING, text, remedy)
    return _check(name, Severity.INFO, text)


def port(number: int, servers: Sequence[ServerHandle] = ()) -> Problem:
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
        return _check(name, Severity.WARNING, text, remedy)
    return _check(name, Severity.INFO, "free")


def ended(servers: Iterable[ServerHandle]) -> list[Problem]:
    """Return a check for each server that tfkit started and that ended by itself."""
    found = []
    for server in servers:
        state = server.state()
        if state.phase is Phase.EXITED:
            text = f"ended with {process.exit_text(state.exit_code)}"
            known = process.exit_meaning(state.exit_code) if state.exit_code is not None else None
            name = server.server_name
            steps = f"`tfkit logs {name}` says why; `tfkit stop {name}` forgets it"
            remedy = f"{known[1]}; {steps}" if known else steps
            found.append(_check(f"server {name}", Severity.WARNING, text, remedy))
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
