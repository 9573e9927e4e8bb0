"""Waiting until a server can answer: for its models, or for one version to come or to go.

Source: tensorflow_serving/core/aspired_versions_manager.cc and loader_harness.cc. A version whose
load fails stays LOADING while it is tried again, by default five times with a minute between; then
it is END with the error, and its number is not loaded again before the server is restarted.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from tfserve_kit.clients import Client, Target, VersionStatus
from tfserve_kit.clock import Clock, SystemClock, wait_until
from tfserve_kit.errors import DeadlineExceeded, ModelNotFound, ServerFailed, ServerUnreachable
from tfserve_kit.progress import SILENT, Progress

DEFAULT_WAIT_S = 120.0
_POLL_S = 0.05


class Readiness(Enum):
    """What is known about a model or a version of it."""

    READY = "ready"
    NOT_YET = "not yet"
    FAILED = "failed"


def readiness(statuses: Sequence[VersionStatus], versions: Collection[int] = ()) -> Readiness:
    """Judge a status list.

    Old versions stay in the list as END after a swap, so what counts is whether the versions asked
    for are AVAILABLE, or any where none is asked for.

    Args:
        statuses: from `Client.status`.
        versions: those that matter, each of which must be ready; none for any.
    """
    if versions:
        mine = [[each for each in statuses if each.version == version] for version in versions]
        verdicts = {readiness(each) for each in mine}
        worst = Readiness.FAILED, Readiness.NOT_YET, Readiness.READY
        return next(each for each in worst if each in verdicts)
    if any(status.state == "AVAILABLE" for status in statuses):
        return Readiness.READY
    failed = statuses and all(map(_has_failed, statuses))
    return Readiness.FAILED if failed else Readiness.NOT_YET


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


def wait_for_models(  # noqa: PLR0913 (what is awaited, how long, and who is told)
    client: Client,
    wanted: Mapping[str, Collection[int]],
    *,
    timeout_s: float,
    clock: Clock | None = None,
    progress: Progress = SILENT,
    is_listening: Callable[[], bool] = lambda: True,
    heard: Callable[[Sequence[VersionStatus] | None], None] | None = None,
) -> Waited:
    """Wait until models are available.

    Args:
        client: the server.
        wanted: which versions by model; without any, one will do, whichever it is.
        timeout_s: maximum wait, in seconds.
        clock: what the waiting measures with.
        progress: told how many models are available.
        is_listening: whether the server can be asked yet; may raise what ends the wait.
        heard: given what the server says of each model, None where it does not answer.

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
            if heard is not None:
                heard(statuses)
            verdict = readiness(statuses or (), versions)
            if verdict is Readiness.FAILED:
                mine = (each for each in statuses or () if not versions or each.version in versions)
                return Waited(None, model, next(filter(_has_failed, mine)))
            ready += verdict is Readiness.READY
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
        timeout_s: maximum wait, in seconds; the server itself looks once a second for new versions
            (`file_system_poll_wait_seconds`).
        clock: what the waiting measures with.
        progress: told that it waits, and each state that the server reports.

    Raises:
        ServerFailed: the version could not be loaded, or was not AVAILABLE in time; the message
            says what the server reported last.
        RequestError: the server refuses to tell.
    """
    clock = clock or SystemClock()
    progress.step(f"waiting for version {version} of {model!r}")
    watch = _Watch(client, model, version, progress, clock)
    waited = wait_for_models(
        client,
        {model: (version,)},
        timeout_s=timeout_s,
        clock=clock,
        progress=progress,
        heard=watch.hear,
    )
    if waited.failed:
        raise watch.failed(waited.failed.error)
    if waited.duration_s is None or watch.known_s is None:
        raise watch.late(timeout_s)
    return SwapTime(version, watch.known_s, waited.duration_s)


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
    watch = _Watch(client, model, version, progress, clock)

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
        self, client: Client, model: str, version: int, progress: Progress, clock: Clock
    ) -> None:
        self._client, self._model, self._version = client, model, version
        self._progress, self._clock, self._start_s = progress, clock, clock.now_s()
        self._told = ""
        self.said: Sequence[VersionStatus] | None = None
        self.known_s: float | None = None

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
            self._progress.note(f"version {text}")

    def described(self) -> str:
        """Return what the server said last."""
        if self.said is None:
            return "the server does not answer"
        return ", ".join(map(_text, self.said)) or "the server does not know the model"

    def failed(self, error: str) -> ServerFailed:
        """Return the error of a load that failed for good."""
        return ServerFailed(
            f"version {self._version} of {self._model!r} failed to load at {self._client.url}: "
            f"{error}",
            remedy="push a working model under a new number; this number is not loaded again",
        )

    def late(self, timeout_s: float) -> ServerFailed:
        """Return the error of a version that did not become available in time."""
        mine = next((each for each in self.said or () if each.version == self._version), None)
        return ServerFailed(
            f"version {self._version} of {self._model!r} at {self._client.url} was not AVAILABLE "
            f"after {timeout_s:g} s; the server says: {self.described()}",
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
