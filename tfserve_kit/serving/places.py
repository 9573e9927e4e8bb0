"""Pushes to places behind shells, with the server of each watched while it takes the version up."""

from collections.abc import Callable, Mapping, Sequence

from tfserve_kit.errors import TfkitError, UsageError
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository.push import Pushed, Waves
from tfserve_kit.repository.shells import Place
from tfserve_kit.serving import swap
from tfserve_kit.serving.access import ServedModel
from tfserve_kit.serving.swap import Delivered, Traffic
from tfserve_kit.serving.waiting import DEFAULT_WAIT_S


class _Noticed(TfkitError):
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

    def deliver(place: Place, publish: Callable[[], Pushed]) -> None:
        to = servers[place]
        done[place] = swap.deliver(publish, to, traffic, timeout_s=timeout_s, progress=progress)
        report = done[place][2]
        if report and not report.passed:
            raise _Noticed(f"{place}: {'; '.join(report.problems())}")

    try:
        push(Waves(wave, deliver))
    except _Noticed as error:
        return done, error.message
    return done, ""


def pair(
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
