"""Which engines there are, which one `auto` means, and which servers they run.

Engines are imported when they are asked, so that `tfkit predict` finds its server quickly.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tfserve_kit.engines.base import ALIVE, Engine, RunningServer, ServerHandle
from tfserve_kit.engines.records import home_of, homes, owner, records
from tfserve_kit.errors import EngineUnavailable, ServerNotFound, UsageError

if TYPE_CHECKING:
    from tfserve_kit.deployment.spec import Docker


def engines(*, binary: str | None = None, docker: "Docker | None" = None) -> list[Engine]:
    """Return all engines, in the order in which `auto` prefers them.

    Args:
        binary: path of tensorflow_model_server, for the native engine.
        docker: the deployment's Docker section, for the Docker engine.
    """
    from tfserve_kit.engines import process
    from tfserve_kit.engines.docker import DockerEngine
    from tfserve_kit.engines.kubernetes import KubernetesEngine
    from tfserve_kit.engines.swarm import SwarmEngine

    return [
        process.native(binary),
        DockerEngine(docker),
        process.embedded(),
        SwarmEngine(),
        KubernetesEngine(),
    ]


def choose(
    name: str,
    *,
    binary: str | None = None,
    docker: "Docker | None" = None,
    is_to_run: bool = True,
) -> tuple[Engine, str]:
    """Return an engine and why it was chosen.

    Args:
        name: an engine's name, or `auto` for the first that can run here without a download.
        binary: path of tensorflow_model_server, for the native engine.
        docker: the deployment's Docker section, for the Docker engine.
        is_to_run: whether a server is to be started; a plan needs no daemon and no binary.

    Raises:
        EngineUnavailable: the engine (or, with `auto`, every one of them) cannot run here.
        UsageError: there is no such engine.
    """
    found = engines(binary=binary, docker=docker)
    if name == "auto":
        return _first_usable(found)
    for engine in found:
        if engine.name == name:
            if not is_to_run:
                return engine, "as requested"
            availability = engine.available()
            if not availability.usable:
                text = f"engine {name} cannot run here: {availability.reason}"
                raise EngineUnavailable(text, remedy=availability.remedy)
            return engine, "as requested"
    known = ", ".join(engine.name for engine in found)
    raise UsageError(f"there is no engine {name!r}", remedy=f"choose auto, {known}")


def _first_usable(found: list[Engine]) -> tuple[Engine, str]:
    passed_over: list[str] = []
    for engine in found:
        availability = engine.available()
        if availability.usable and not availability.is_costly:
            return engine, "; ".join([*passed_over, availability.reason])
        passed_over.append(availability.reason)
    raise EngineUnavailable(
        f"no engine can run here: {'; '.join(passed_over)}",
        remedy=" or ".join(engine.available().remedy for engine in found),
    )


def servers() -> list[ServerHandle]:
    """Return every known server of every engine, by name."""
    handles = [handle for engine in engines() for handle in engine.list()]
    return sorted(handles, key=lambda handle: handle.server_name)


def running() -> list[RunningServer]:
    """Return the servers that run, by name; asks those alone that were told to run one."""
    found: list[RunningServer] = [record for record in records() if record.is_running()]
    owners = set(map(owner, homes()))
    asked: list[Engine] = []
    if "docker" in owners:
        from tfserve_kit.engines.docker import DockerEngine

        asked.append(DockerEngine())
    if "swarm" in owners:
        from tfserve_kit.engines.swarm import SwarmEngine

        asked.append(SwarmEngine())
    if "kubernetes" in owners:
        from tfserve_kit.engines.kubernetes import KubernetesEngine

        asked.append(KubernetesEngine())
    handles = (handle for each in asked for handle in each.list())
    found += [handle for handle in handles if handle.state().phase in ALIVE]
    return sorted(found, key=lambda server: server.server_name)


def sharing(base_path: Path | str) -> Iterator[tuple[RunningServer, str]]:
    """Yield every running server with a model of this base path, and the model's name there."""
    here = resolved(base_path)
    for server in running():
        for name, path in server.models.items():
            if resolved(path) == here:
                yield server, name


def resolved(base_path: Path | str) -> str:
    """Return a base path as it can be compared: absolute without links, or a URL."""
    text = str(base_path)
    return text.rstrip("/") if "://" in text else str(Path(text).resolve())


def elsewhere(server_name: str, engine: str) -> ServerHandle | None:
    """Return the server of that name if another engine than this one has it."""
    found = owner(home_of(server_name))
    others = (other for other in engines() if other.name == found != engine)
    return next((other.find(server_name) for other in others), None)


def find(server_name: str) -> ServerHandle:
    """Return the server of that name.

    Raises:
        ServerNotFound: no engine has it.
    """
    for engine in engines():
        if (handle := engine.find(server_name)) is not None:
            return handle
    names = ", ".join(handle.server_name for handle in servers())
    raise ServerNotFound(
        f"there is no server named {server_name!r}",
        remedy=f"`tfkit ps` lists them: {names}" if names else "start one with `tfkit serve`",
    )
