"""Waiting until a server has taken a version up, or let it go.

Source: tensorflow_serving/core/aspired_versions_manager.cc and loader_harness.cc. A version whose
load fails stays LOADING while it is tried again, by default five times with a minute between; then
it is END with the error, and its number is not loaded again before the server is restarted.
"""

from dataclasses import dataclass

from tfserve_kit.clients import Client, VersionStatus
from tfserve_kit.clock import Clock, SystemClock, wait_until
from tfserve_kit.errors import ServerFailed
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.serving.readiness import ask

DEFAULT_WAIT_S = 120.0
_POLL_S = 0.05


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
        timeout_s: longest wait, in seconds; the server itself looks once a second for new versions
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
    watch = _Watch(client, model, version, progress)
    start_s = clock.now_s()
    known_s: float | None = None

    def probe() -> float | None:
        nonlocal known_s
        status = watch.look()
        if status is None:
            return None
        now_s = clock.now_s() - start_s
        known_s = now_s if known_s is None else known_s
        if status.state == "END" and status.error:
            raise watch.failed(status.error)
        return now_s if status.state == "AVAILABLE" else None

    available_s = wait_until(probe, timeout_s=timeout_s, interval_s=_POLL_S, clock=clock)
    if available_s is None or known_s is None:
        raise watch.late(timeout_s)
    return SwapTime(version, known_s, available_s)


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
    watch = _Watch(client, model, version, progress)

    def probe() -> bool | None:
        status = watch.look()
        still = watch.said is None or (status is not None and status.state == "AVAILABLE")
        return None if still else True

    clock = clock or SystemClock()
    if wait_until(probe, timeout_s=timeout_s, interval_s=_POLL_S, clock=clock) is None:
        raise ServerFailed(
            f"version {version} of {model!r} at {client.url} was not let go within "
            f"{timeout_s:g} s: {watch.described()}",
            remedy="a server lets a version go once a lower one that it wants is AVAILABLE",
        )


class _Watch:
    """Asks for one version again and again, and remembers what was said last."""

    def __init__(self, client: Client, model: str, version: int, progress: Progress) -> None:
        self._client, self._model, self._version = client, model, version
        self._progress = progress
        self._told = ""
        self.said: list[VersionStatus] | None = None

    def look(self) -> VersionStatus | None:
        """Return the version's state, None while the server does not speak of it."""
        self.said = ask(self._client, self._model)
        status = next((each for each in self.said or () if each.version == self._version), None)
        if status is not None and (text := _text(status)) != self._told:
            self._told = text
            self._progress.note(f"version {text}")
        return status

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
            remedy="push a good model under a new number; this number is not tried again",
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
