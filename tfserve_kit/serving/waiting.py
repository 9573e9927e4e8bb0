"""Waiting until a server can answer: for its models, or for one version to come or to go.

Source: tensorflow_serving/core/aspired_versions_manager.cc and loader_harness.cc. A version whose
load fails stays LOADING while it is tried again, by default five times with a minute between; then
it is END with the error, and its number is not loaded again before the server is restarted.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tfserve_kit.clients import Client, Target, VersionStatus
from tfserve_kit.clock import Clock, SystemClock, wait_until
from tfserve_kit.errors import DeadlineExceeded, ModelNotFound, ServerFailed, ServerUnreachable
from tfserve_kit.progress import SILENT, Progress

DEFAULT_WAIT_S = 120.0
_POLL_S = 0.05


def _readiness(statuses: Sequence[VersionStatus], versions: Collection[int] = ()) -> bool | None:
    """Say whether a model can answer: True or, once it failed for good, False; None: not yet.

    Old versions stay in the list as END after a swap, so what counts is whether the versions asked
    for are AVAILABLE, or any where none is asked for.

    Args:
        statuses: from `Client.status`.
        versions: those that matter, each of which must be ready; none for any.
    """
    if versions:
        mine = [[each for each in statuses if each.version == version] for version in versions]
        verdicts = [_readiness(each) for each in mine]
        return False if False in verdicts else None if None in verdicts else True
    if available(statuses):
        return True
    failed = statuses and all(map(_has_failed, statuses))
    return False if failed else None


def available(statuses: Sequence[VersionStatus]) -> set[int]:
    """Return the versions that answer."""
    return {each.version for each in statuses if each.state == "AVAILABLE"}


def _has_failed(status: VersionStatus) -> bool:
    return status.state == "END" and bool(status.error)


def ask(client: Client, model: str, *, timeout_s: float = 2.0) -> list[VersionStatus] | None:
    """Return a model's status list, None while the server does not answer."""
    try:
        return client.status(Target(model), timeout_s=timeout_s)
    except (ServerUnreachable, DeadlineExceeded):
        return None
    except ModelNotFound:
        return []


@dataclass(frozen=True, slots=True)
class Waited:
    """How a wait for models ended.

    Attributes:
        duration_s: how long it took until all were available, in seconds; None if they are not.
        model: the model of which a version failed to load for good; empty if none did.
        failed: that version.
    """

    duration_s: float | None = None
    model: str = ""
    failed: VersionStatus | None = None


def wait_for_models(
    client: Client,
    wanted: Mapping[str, Collection[int]],
    *,
    timeout_s: float,
    clock: Clock | None = None,
    progress: Progress = SILENT,
    is_listening: Callable[[], bool] = lambda: True,
) -> Waited:
    """Wait until models are available.

    Args:
        client: the server.
        wanted: which versions by model; without any, one will do, whichever it is.
        timeout_s: maximum wait, in seconds.
        clock: what the waiting measures with.
        progress: told how many models are available.
        is_listening: whether the server can be asked yet; may raise what ends the wait.

    Raises:
        RequestError: the server refuses to tell.
    """
    clock = clock or SystemClock()
    start_s = clock.now_s()

    def probe() -> Waited | None:
        if not is_listening():
            return None
        ready = 0
        for model, versions in wanted.items():
            statuses = ask(client, model)
            verdict = _readiness(statuses or (), versions)
            if verdict is False:
                mine = (each for each in statuses or () if not versions or each.version in versions)
                return Waited(None, model, next(filter(_has_failed, mine)))
            ready += verdict is True
        progress.advance(ready, len(wanted))
        return Waited(clock.now_s() - start_s) if ready == len(wanted) else None

    found = wait_until(probe, timeout_s=timeout_s, interval_s=_POLL_S, clock=clock)
    return found or Waited()


@dataclass(frozen=True, slots=True)
class SwapTime:
    """How long a server took to take a version up; seconds since the waiting began.

    Attributes:
        version: its number.
        known_s: until the server spoke of it first.
        available_s: until it was AVAILABLE.
    """

    version: int
    known_s: float
    available_s: float


def wait(
    client: Client,
    model: str,
    version: int,
    *,
    timeout_s: float = DEFAULT_WAIT_S,
    clock: Clock | None = None,
    progress: Progress = SILENT,
) -> SwapTime:
    """Wait until a version is AVAILABLE.

    Args:
        client: the server.
        model: name of the model.
        version: its version.
        timeout_s: as for `wait_each`, as all that follows.
        clock: what the waiting measures with.
        progress: told that it waits, and each state that the server reports.

    Raises:
        ServerFailed: the version could not be loaded, or was not AVAILABLE in time.
        RequestError: the server refuses to tell.
    """
    clients = {client.url: client}
    found = wait_each(clients, model, version, timeout_s=timeout_s, clock=clock, progress=progress)
    return found[client.url]


def wait_each(  # noqa: PLR0913 (what is awaited, how long, and who is told)
    clients: Mapping[str, Client],
    model: str,
    version: int,
    *,
    timeout_s: float = DEFAULT_WAIT_S,
    clock: Clock | None = None,
    progress: Progress = SILENT,
    found: dict[str, SwapTime] | None = None,
) -> dict[str, SwapTime]:
    """Wait until a version is AVAILABLE on each of some servers.

    Args:
        clients: the servers, by what they are called.
        model: name of the model.
        version: its version.
        timeout_s: maximum wait for all, in seconds; a server looks once a second for new versions
            (`file_system_poll_wait_seconds`).
        clock: what the waiting measures with.
        progress: told that it waits, and each state that a server reports.
        found: filled as servers have the version, for who wants to know of them after an error.

    Returns:
        How long each took.

    Raises:
        ServerFailed: the version could not be loaded, or was not AVAILABLE in time; the message
            says what the server reported last.
        RequestError: a server refuses to tell.
    """
    clock = clock or SystemClock()
    progress.step(f"waiting for version {version} of {model!r}")
    watches = {
        name: _Watch(client, model, version, progress, clock, name)
        for name, client in clients.items()
    }
    found, failed = {} if found is None else found, dict[str, ServerFailed]()

    def probe() -> bool | None:
        for name in [name for name in watches if name not in {*found, *failed}]:
            try:
                if (time := watches[name].look()) is not None:
                    found[name] = time
            except ServerFailed as error:  # what the others do is worth knowing
                failed[name] = error
        progress.advance(len(found), len(watches))
        return len(found) + len(failed) == len(watches) or None

    is_settled = wait_until(probe, timeout_s=timeout_s, interval_s=_POLL_S, clock=clock)
    for name, watch in watches.items():
        if name in failed or not (is_settled or name in found):
            raise failed.get(name) or watch.late(timeout_s)
    return {name: found[name] for name in watches}


def wait_gone(
    client: Client,
    model: str,
    version: int,
    *,
    timeout_s: float = DEFAULT_WAIT_S,
    clock: Clock | None = None,
    progress: Progress = SILENT,
) -> None:
    """Wait until a version answers no more.

    Raises:
        ServerFailed: it still was AVAILABLE at the end of the time.
        RequestError: the server refuses to tell.
    """
    progress.step(f"waiting for version {version} of {model!r} to go")
    clock = clock or SystemClock()
    watch = _Watch(client, model, version, progress, clock, client.url)

    def probe() -> bool | None:
        watch.hear(ask(client, model))
        mine = {each.state for each in watch.said or () if each.version == version}
        return None if watch.said is None or "AVAILABLE" in mine else True

    if wait_until(probe, timeout_s=timeout_s, interval_s=_POLL_S, clock=clock) is None:
        raise ServerFailed(
            f"version {version} of {model!r} at {client.url} was not unloaded within "
            f"{timeout_s:g} s: {watch.described()}",
            remedy="a server unloads a version once a lower one that it wants is AVAILABLE",
        )


class _Watch:
    """What a server says of one version, and the errors of it."""

    def __init__(
        self,
        client: Client,
        model: str,
        version: int,
        progress: Progress,
        clock: Clock,
        name: str,
    ) -> None:
        self._client, self._model, self._version = client, model, version
        self._where = "" if name == client.url else f" on replica {name}"
        self._progress, self._clock, self._start_s = progress, clock, clock.now_s()
        self._told = ""
        self.said: Sequence[VersionStatus] | None = None
        self.known_s: float | None = None

    def look(self) -> SwapTime | None:
        """Ask once; return how long it took if the version is AVAILABLE.

        Raises:
            ServerFailed: it failed to load for good.
        """
        self.hear(ask(self._client, self._model))
        verdict = _readiness(self.said or (), (self._version,))
        if verdict is False:
            raise self._failed()
        if verdict is None:
            return None
        now_s = self._clock.now_s() - self._start_s
        return SwapTime(self._version, now_s if self.known_s is None else self.known_s, now_s)

    def hear(self, statuses: Sequence[VersionStatus] | None) -> None:
        """Remember what the server says, and tell each state of the version once."""
        self.said = statuses
        status = next((each for each in statuses or () if each.version == self._version), None)
        if status is None:
            return
        if self.known_s is None:
            self.known_s = self._clock.now_s() - self._start_s
        if (text := _text(status)) != self._told:
            self._told = text
            self._progress.note(f"version {text}{self._where}")

    def described(self) -> str:
        """Return what the server said last."""
        if self.said is None:
            return "the server does not answer"
        return ", ".join(map(_text, self.said)) or "the server does not know the model"

    def _failed(self) -> ServerFailed:
        """Return the error of a load that failed for good."""
        mine = (each.error for each in self.said or () if each.version == self._version)
        return ServerFailed(
            f"version {self._version} of {self._model!r} failed to load at {self._client.url}"
            f"{self._where}: {', '.join(mine)}",
            remedy="push a working model under a new number; this number is not loaded again",
        )

    def late(self, timeout_s: float) -> ServerFailed:
        """Return the error of a version that did not become available in time."""
        mine = next((each for each in self.said or () if each.version == self._version), None)
        return ServerFailed(
            f"version {self._version} of {self._model!r} at {self._client.url}{self._where} was "
            f"not AVAILABLE after {timeout_s:g} s; the server says: {self.described()}",
            remedy=_ADVICE.get(mine.state if mine else "", _UNWANTED),
        )


def _text(status: VersionStatus) -> str:
    return f"{status.version} {status.state}" + (f" ({status.error})" if status.error else "")


_SLOW = (
    "wait longer; a load that failed is tried again after load_retry_interval_micros (60 s by "
    "default), and the server's log says why it failed"
)
_UNWANTED = (
    "its policy may be pinned to other versions, or a higher one is there: compare `tfkit status` "
    "with `tfkit versions`, and see that the server reads this base path"
)
_ADVICE = {"START": _SLOW, "LOADING": _SLOW}
