"""Whether the models of a server can answer, and waiting for it."""

from collections.abc import Iterable
from enum import Enum

from tfserve_kit.clients.results import Target, VersionStatus
from tfserve_kit.clients.sync import Client
from tfserve_kit.errors import DeadlineExceeded, ModelNotFound, ServerUnreachable


class Readiness(Enum):
    """What is known about a model or a version of it."""

    READY = "ready"
    NOT_YET = "not yet"
    FAILED = "failed"


def readiness(statuses: Iterable[VersionStatus], version: int | None = None) -> Readiness:
    """Judge a status list.

    Old versions stay in the list as END after a swap, so what counts is whether the version asked
    for is AVAILABLE, or any where none is asked for.

    Args:
        statuses: from `Client.status`.
        version: the version that matters; None for any.
    """
    mine = [status for status in statuses if version in {None, status.version}]
    if any(status.state == "AVAILABLE" for status in mine):
        return Readiness.READY
    failed = mine and all(status.state == "END" and status.error for status in mine)
    return Readiness.FAILED if failed else Readiness.NOT_YET


def ask(client: Client, model: str, *, timeout_s: float = 2.0) -> list[VersionStatus] | None:
    """Return a model's status list, None while the server does not answer."""
    try:
        return client.status(Target(model), timeout_s=timeout_s)
    except (ServerUnreachable, DeadlineExceeded):
        return None
    except ModelNotFound:
        return []
