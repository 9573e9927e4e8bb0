"""Back to an earlier version, on the disk and on the servers that read from it."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit.clients.readiness import ask
from tfserve_kit.engines.records import sharing
from tfserve_kit.errors import PushRefused, RequestError
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import retention
from tfserve_kit.serving.access import NOTHING, Access, of_server
from tfserve_kit.serving.swap.claims import claims
from tfserve_kit.serving.swap.waiting import wait, wait_gone


@dataclass(frozen=True, slots=True)
class Place:
    """A model on a server: the server's address, the model's name there, how it is reached."""

    url: str
    model: str
    access: Access = NOTHING


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a roll-back did.

    Attributes:
        version: the highest version in service now.
        retired: the numbers taken out of service.
        restored: the numbers brought back.
        places: where it was waited until `version` was served.
    """

    version: int
    retired: tuple[int, ...] = ()
    restored: tuple[int, ...] = ()
    places: tuple[Place, ...] = ()


def roll_back(  # noqa: PLR0913 (where to, where it is waited for, and how)
    base_path: Path,
    to: int | None = None,
    *,
    places: Sequence[Place] | None = (),
    access: Access = NOTHING,
    timeout_s: float = 120.0,
    is_forced: bool = False,
    progress: Progress = SILENT,
) -> RolledBack:
    """Retire every version above one, and wait until it is served.

    Args:
        base_path: the folder of the model's versions.
        to: the version to go back to; None for the second highest.
        places: where to wait for it; None for every server of ours that serves what is retired.
        access: wins over what is known of how to reach servers of ours.
        timeout_s: longest wait at each place, in seconds.
        is_forced: retire also what a label or a pinned version of a server of ours names.
        progress: told the steps.

    Raises:
        PushRefused: as for `retention.rollback`, or a server names a version that would go. Nothing
            has changed.
        ServerFailed: a server does not serve the version; the others stay retired.
    """
    version, going = retention.above(base_path, to)
    if not is_forced:
        _require_unnamed(base_path, going, progress)
    found = tuple(_serving(base_path, going, access) if places is None else places)
    progress.step(f"retiring {', '.join(map(str, going))}")
    gone = retention.rollback(base_path, version)
    for place in found:
        _await(place, version, gone, timeout_s, progress)
    return RolledBack(version, retired=tuple(gone), places=found)


def bring_back(
    base_path: Path,
    number: int,
    *,
    places: Sequence[Place] | None = (),
    access: Access = NOTHING,
    timeout_s: float = 120.0,
    progress: Progress = SILENT,
) -> RolledBack:
    """Restore a retired version, and wait until it is served.

    Args:
        base_path: the folder of the model's versions.
        number: the version.
        places: where to wait for it; None for every server of ours that serves this base path.
        access: wins over what is known of how to reach servers of ours.
        timeout_s: longest wait at each place, in seconds.
        progress: told the steps.

    Raises:
        PushRefused: as for `retention.restore`; nothing has changed.
        ServerFailed: a server does not serve the version, for instance because a higher one is
            there; it stays restored.
    """
    retention.restore(base_path, number)
    found = tuple(_serving(base_path, (), access) if places is None else places)
    for place in found:
        _await(place, number, (), timeout_s, progress)
    return RolledBack(number, restored=(number,), places=found)


def _require_unnamed(base_path: Path, going: Collection[int], progress: Progress) -> None:
    named = [
        claim
        for claim in claims(base_path, progress=progress)
        if claim.version in going and claim.reason.by_name
    ]
    if named:
        raise PushRefused(
            f"{named[0]}, so it cannot be retired",
            remedy="`tfkit promote MODEL VERSION` moves its labels first; --force retires it",
        )


def _serving(base_path: Path, going: Collection[int], given: Access) -> list[Place]:
    """Return where one of these versions is served, or any if none is given."""
    found = []
    for record, model in sharing(base_path):
        reached = given.over(of_server(record.home))
        with suppress(RequestError), reached.connect(record.endpoints.grpc) as client:
            statuses = ask(client, model) or []
            served = {each.version for each in statuses if each.state == "AVAILABLE"}
            if served & set(going) or (served and not going):
                found.append(Place(record.endpoints.grpc, model, reached))
    return found


def _await(
    place: Place, version: int, gone: Collection[int], timeout_s: float, progress: Progress
) -> None:
    with place.access.connect(place.url) as client:
        wait(client, place.model, version, timeout_s=timeout_s, progress=progress)
        for each in gone:
            wait_gone(client, place.model, each, timeout_s=timeout_s, progress=progress)
