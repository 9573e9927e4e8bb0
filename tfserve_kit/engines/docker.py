"""Servers as containers, on the Docker SDK.

The truth is in the daemon: a server's name, addresses and models are labels of its container, so
`find` and `list` see it whatever became of the process that started it. What it was last deployed
with is in the state folder, as for processes, and which container the folder belongs to::

    <state>/servers/<name>/container   deployment.json   config/*.txt

Importing the SDK and asking the daemon takes a fifth of a second, so nothing of that happens before
a container is really wanted.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tfserve_kit.clock import Clock
from tfserve_kit.deployment.spec import Docker, Spec
from tfserve_kit.engines import container, draining
from tfserve_kit.engines.base import (
    Availability,
    Endpoints,
    Phase,
    Plan,
    Replica,
    State,
    alone,
    taken,
)
from tfserve_kit.engines.container import ContainerPlan, default_user, hand_over, unreadable
from tfserve_kit.engines.records import (
    CONFIG,
    CONTAINER,
    Home,
    claimed,
    container_id,
    home_of,
    owner,
    private_folder,
    state_folder,
    write_files,
    write_private,
)
from tfserve_kit.errors import EngineUnavailable, ServerExists, ServerFailed, TfkitError
from tfserve_kit.progress import SILENT, Progress

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_DEFAULT_URL = "unix:///var/run/docker.sock"
TIMEOUT_S = 60
_PING_TIMEOUT_S = 5


def available() -> Availability:
    """Say whether a Docker Engine answers this user."""
    try:
        with connected(timeout_s=_PING_TIMEOUT_S) as client:
            version = client.version()["Version"]
    except EngineUnavailable as error:
        return Availability(usable=False, reason=error.message, remedy=error.remedy)
    return Availability(usable=True, reason=f"Docker {version} answers")


@contextlib.contextmanager
def connected(*, timeout_s: int | None = TIMEOUT_S) -> Iterator["DockerClient"]:
    """Yield a client of the daemon that $DOCKER_HOST or the default socket leads to.

    Raises:
        EngineUnavailable: nothing answers there, or this user may not ask.
    """
    import docker
    import requests

    url = os.environ.get("DOCKER_HOST") or _DEFAULT_URL
    if (socket := _socket(url)) is not None and not socket.exists():
        raise _unreachable(url, "there is no such file")
    try:
        client = docker.from_env(timeout=timeout_s)  # type: ignore[arg-type]
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise _unreachable(url, str(error)) from error
    with contextlib.closing(client):
        yield client


def _socket(url: str) -> Path | None:
    return Path(urlsplit(url).path) if url.startswith("unix:") else None


def _unreachable(url: str, reason: str) -> EngineUnavailable:
    """Return why the daemon cannot be asked."""
    if "Permission denied" in reason:
        return EngineUnavailable(
            f"this user may not use the Docker daemon at {url}",
            remedy="`sudo usermod -aG docker $USER` and log in again, or use another --engine",
        )
    start = "start it (`sudo systemctl start docker`)" if _socket(url) else "check DOCKER_HOST"
    return EngineUnavailable(
        f"no Docker daemon answers at {url}: {reason}",
        remedy=f"{start}, or use another --engine",
    )


# A daemon that hangs must not hang `tfkit` for ever; stopping may take the grace time longer.
_STOP_SPARE_S = 30
_CONFLICT = 409  # a name that is taken, or a container that somebody is removing
_PHASES = {
    "created": Phase.STARTING,
    "running": Phase.RUNNING,
    "paused": Phase.RUNNING,
    "restarting": Phase.STARTING,
}


class DockerEngine:
    """Runs servers as containers; implements `Engine`.

    Args:
        options: the deployment's Docker section, which names the image.
        folder: where servers are kept; `state_folder()` if left out.
    """

    name = "docker"
    binds_here = True
    answers_here = True

    def __init__(self, options: Docker | None = None, *, folder: Path | None = None) -> None:
        self._image = container.image_of(options or Docker())
        self._folder = folder or state_folder()

    def available(self) -> Availability:
        """Say whether a daemon answers, and whether the image is there already."""
        try:
            with connected() as client:
                is_here = has_image(client, self._image)
        except EngineUnavailable as error:
            return Availability(usable=False, reason=error.message, remedy=error.remedy)
        if is_here:
            return Availability(usable=True, reason=f"Docker has the image {self._image}")
        return Availability(
            usable=True,
            reason=f"Docker would have to pull {self._image}",
            remedy=f"docker pull {self._image}, or use --engine docker",
            is_costly=True,
        )

    def plan(self, spec: Spec, files: Mapping[str, str]) -> ContainerPlan:
        """Return the container's arguments, files and endpoints; see `Engine.plan`."""
        return container.plan(
            spec,
            files,
            config=home_of(spec.server.name, self._folder) / CONFIG,
            folder=self._folder,
            user=_user(spec),
        )

    def prepare(self, spec: Spec, *, progress: Progress = SILENT) -> None:
        """Pull the image, if the deployment wants that; see `Engine.prepare`.

        Raises:
            EngineUnavailable: also where the container's user could not read a model.
        """
        require_readable(spec)
        image, pull = container.image_of(spec.docker), spec.docker.pull
        with connected() as client:
            is_here = has_image(client, image)
            if pull == "always" or (pull == "missing" and not is_here):
                progress.step(f"pulling {image}")
                remedy = "check its name and try `docker pull`, or use another --engine"
                with translated(f"cannot pull {image}", remedy=remedy):
                    _pull(client, image, progress)
            elif not is_here:
                raise EngineUnavailable(
                    f"the image {image} is not here, and pull is never",
                    remedy=f"`docker pull {image}`, or --pull missing",
                )

    def start(
        self, plan: Plan, *, progress: Progress = SILENT, clock: Clock | None = None
    ) -> "_ContainerHandle":
        """Create and start the container; see `Engine.start`.

        Raises:
            EngineUnavailable: no daemon, no image, or no GPU where one is asked for.
        """
        del progress, clock  # it takes no time
        assert isinstance(plan, ContainerPlan)  # noqa: S101 (an engine starts its own plans)
        name, home = plan.server_name, home_of(plan.server_name, self._folder)
        with (
            claimed(self._folder, name),
            translated(f"cannot start server {name!r}"),
            connected() as client,
            contextlib.ExitStack() as undo,
        ):
            self._make_room(client, name)
            shutil.rmtree(home, ignore_errors=True)
            private_folder(home)
            undo.callback(shutil.rmtree, home, ignore_errors=True)
            write_files(plan, home)
            hand_over(home / CONFIG, plan.container["user"])
            found = _created(client, plan)
            undo.callback(found.remove, force=True)
            _started(found)
            write_private(home / CONTAINER, str(found.id))
            undo.pop_all()
            return _ContainerHandle(str(found.id), found.labels, home)

    def find(self, server_name: str) -> "_ContainerHandle | None":
        """Return the server of that name; see `Engine.find`.

        Raises:
            EngineUnavailable: it was started, but no daemon answers.
        """
        try:
            found = self._list(f"{container.SERVER}={server_name}")
        except EngineUnavailable:
            if owner(home_of(server_name, self._folder)) == self.name:
                raise
            return None
        return found[0] if found else None

    def list(self) -> list["_ContainerHandle"]:
        """Return the servers of this user, none where no daemon answers; see `Engine.list`."""
        try:
            found = self._list(container.SERVER)
        except EngineUnavailable:
            return []
        return sorted(found, key=lambda handle: handle.server_name)

    def _list(self, label: str) -> Sequence["_ContainerHandle"]:
        with translated("cannot list the containers"), connected() as client:
            found = self._containers(client, label)
        homes = [home_of(each.labels[container.SERVER], self._folder) for each in found]
        return [
            _ContainerHandle(str(each.id), each.labels, home)
            for each, home in zip(found, homes, strict=True)
        ]

    def _containers(self, client: Any, label: str) -> Sequence["Container"]:
        labels = [label, f"{container.FOLDER}={self._folder}"]
        found: list[Container] = client.containers.list(
            all=True, filters={"label": labels}, ignore_removed=True
        )
        return found

    def _make_room(self, client: Any, server_name: str) -> None:
        """Remove what is left of a server of that name; refuse one that runs."""
        for each in self._containers(client, f"{container.SERVER}={server_name}"):
            # One that was created and never started is nobody's: the name is ours now.
            if each.status != "created" and each.status in _PHASES:
                raise taken(server_name, f"container {each.name}")
            each.remove(force=True)


def _user(spec: Spec) -> str:
    return spec.docker.user or default_user(model.base_path for model in spec.models.values())


def require_readable(spec: Spec) -> None:
    """Refuse base paths of this machine that the container's user cannot read.

    Raises:
        EngineUnavailable: with the first file that it cannot.
    """
    user = _user(spec)
    for name, model in spec.models.items():
        path = unreadable(user, model.base_path) if spec.is_here(model.base_path) else None
        if path is not None:
            raise EngineUnavailable(
                f"the server of {name!r} would run as user {user}, who cannot read {path}",
                remedy=f"`chmod -R o+rX {model.base_path}`, or set `user` in [docker]: "
                '"0:0" is root, and reads what is root\'s',
            )


def has_image(client: Any, image: str) -> bool:
    """Say whether the daemon has an image.

    Raises:
        EngineUnavailable: it does not say.
    """
    import docker

    remedy = "an image is `name:tag` or `name@sha256:...`"
    with translated(f"cannot look for the image {image!r}", remedy=remedy):
        try:
            client.images.get(image)
        except docker.errors.ImageNotFound:
            return False
        return True


def _pull(client: Any, image: str, progress: Progress) -> None:
    """Pull an image, telling how many bytes of its layers have come; layers known are not told."""
    import docker

    repository, tag = docker.utils.parse_repository_tag(image)  # type: ignore[attr-defined]
    layers: dict[str, tuple[int, int]] = {}
    for event in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
        if "error" in event:
            raise docker.errors.APIError(event["error"])
        detail = event.get("progressDetail") or {}
        if event.get("status") == "Downloading" and "total" in detail:
            layers[event["id"]] = (detail["current"], detail["total"])
            progress.advance(*map(sum, zip(*layers.values(), strict=True)))


def _created(client: Any, plan: ContainerPlan) -> Any:
    import docker

    try:
        return client.containers.create(detach=True, **plan.container)
    except docker.errors.ImageNotFound as error:
        raise EngineUnavailable(
            f"the image {plan.container['image']} is not here", remedy="`docker pull` it"
        ) from error
    except docker.errors.APIError as error:
        if error.status_code == _CONFLICT:
            name = plan.container["name"]
            raise ServerExists(
                f"there is a container {name} already, and it is not of this state folder",
                remedy=f"give another --name, or `docker rm -f {name}`",
            ) from error
        raise ServerFailed(
            f"cannot create the container: {error.explanation}", remedy=_LOOK
        ) from error


_LOOK = "`tfkit serve --dry-run` shows what is asked of Docker; `docker info` whether it is well"


def _started(found: "Container") -> None:
    import docker

    try:
        found.start()
    except docker.errors.APIError as error:
        raise _not_started(str(error.explanation)) from error


def _not_started(reason: str) -> TfkitError:
    """Return what the daemon's reason means."""
    if "could not select device driver" in reason:
        return EngineUnavailable(
            "Docker has no GPU runtime here",
            remedy="install the NVIDIA container toolkit, or serve without --gpu",
        )
    if "port is already allocated" in reason or "address already in use" in reason:
        return ServerFailed(
            f"a port is taken: {reason}", remedy="--grpc-port 0 and --rest-port 0 find free ones"
        )
    return ServerFailed(f"cannot start the container: {reason}", remedy=_LOOK)


@contextlib.contextmanager
def translated(what: str, *, remedy: str = "") -> Iterator[None]:
    """Raise EngineUnavailable for the daemon's own errors."""
    import docker
    import requests

    try:
        yield
    except docker.errors.DockerException as error:  # an answer of the daemon
        reason = getattr(error, "explanation", None) or error
        raise EngineUnavailable(f"{what}: {reason}", remedy=remedy) from error
    except requests.RequestException as error:
        raise EngineUnavailable(
            f"{what}: the Docker daemon went away ({error})",
            remedy="`docker info` says whether it runs; start it, or use another --engine",
        ) from error


class _ContainerHandle(Home):
    """A server that is a container; implements `ServerHandle`."""

    engine = DockerEngine.name

    def __init__(self, found_id: str, labels: Mapping[str, str], home: Path) -> None:
        self.container_id = found_id
        self._labels = labels
        super().__init__(home)

    @property
    def endpoints(self) -> Endpoints:
        """Where it answers."""
        return Endpoints(**json.loads(self._labels[container.ENDPOINTS]))

    @property
    def models(self) -> Mapping[str, str]:
        """Base path by model name; a reload may have changed what it was started with."""
        is_mine = container_id(self._home) == self.container_id
        return (super().models if is_mine else None) or self._mounted()

    def _mounted(self) -> Mapping[str, str]:
        found: dict[str, str] = json.loads(self._labels[container.MODELS])
        return found

    def sees(self, base_path: str) -> bool:
        """Say whether a folder was mounted, or lies in one that was."""
        return any(Path(base_path).is_relative_to(mounted) for mounted in self._mounted().values())

    def state(self) -> State:
        """Ask the daemon; the exit status of an ended container is kept until it is removed."""
        with self._found() as found:
            if found is None:
                return State(Phase.GONE)
            phase = _PHASES.get(found.status, Phase.EXITED)
            code = found.attrs["State"]["ExitCode"] if phase is Phase.EXITED else None
            return State(phase, code)

    def replicas(self) -> list[Replica]:
        """Return the container itself; see `ServerHandle.replicas`."""
        return alone(self)

    def logs(self, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of its output; see `ServerHandle.logs`."""
        with self._found(timeout_s=None if follow else TIMEOUT_S) as found:
            if found is None:
                return
            with _unless_removed():
                chunks = found.logs(
                    stream=True, follow=follow, tail="all" if tail is None else tail
                )
                yield from lines(chunks)

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Stop and remove the container, and the server's folder."""
        patience_s = round(grace_s + draining.seconds(self._home)) if grace_s else 0
        with self._found(timeout_s=patience_s + _STOP_SPARE_S) as found:
            if found is not None:
                with _unless_removed():
                    found.stop(timeout=patience_s)
                    found.remove(v=True, force=True)
                with _unless_removed():  # by somebody else: it must be gone all the same
                    found.wait(condition="removed", timeout=_STOP_SPARE_S)
        owner = container_id(self._home)
        if owner == self.container_id if owner else found is not None:  # else it was given anew
            shutil.rmtree(self._home, ignore_errors=True)

    @contextlib.contextmanager
    def _found(self, *, timeout_s: int | None = TIMEOUT_S) -> "Iterator[Container | None]":
        """Yield the container, None once it is removed."""
        import docker

        with (
            translated(f"cannot ask for server {self.server_name!r}"),
            connected(timeout_s=timeout_s) as client,
        ):
            try:
                found = client.containers.get(self.container_id)
            except docker.errors.NotFound:
                found = None
            yield found


@contextlib.contextmanager
def _unless_removed() -> Iterator[None]:
    """Pass over the daemon's saying that a container is gone, or is being removed."""
    import docker

    try:
        yield
    except docker.errors.APIError as error:
        if not isinstance(error, docker.errors.NotFound) and error.status_code != _CONFLICT:
            raise


def lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield the lines of a log that comes in pieces."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")
