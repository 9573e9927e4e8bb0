"""The connection to the Docker Engine: made late, and its errors in our words.

Importing the SDK and asking the daemon takes a fifth of a second, so nothing here happens before a
container is really wanted.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tfserve_kit.engines.base import Availability
from tfserve_kit.errors import EngineUnavailable

if TYPE_CHECKING:
    from docker import DockerClient

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
