"""From a push to a version that serves: pushed, awaited, proven under traffic, taken back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit.clients import Client
from tfserve_kit.clock import Clock
from tfserve_kit.errors import PushRefused, RequestError, ServerFailed
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import Pushed, retention, scan
from tfserve_kit.serving.swap.proof import verify
from tfserve_kit.serving.swap.report import SwapReport
from tfserve_kit.serving.swap.traffic import Traffic
from tfserve_kit.serving.swap.waiting import DEFAULT_WAIT_S, SwapTime, wait


@dataclass(frozen=True, slots=True)
class Destination:
    """The server that takes a version up.

    Attributes:
        client: it, over gRPC where traffic is sent.
        model: what it calls the model.
        base_path: where it reads the model's versions; None where that is on no disk of ours.
    """

    client: Client
    model: str
    base_path: Path | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came of a push.

    Attributes:
        pushed: the version.
        time: how long the server took; None where it was not awaited, or under traffic.
        report: what the traffic noticed; None without traffic.
    """

    pushed: Pushed
    time: SwapTime | None = None
    report: SwapReport | None = None


def push_and_wait(
    push: Callable[[], Pushed],
    to: Destination,
    *,
    roll_back: bool = False,
    timeout_s: float = DEFAULT_WAIT_S,
    clock: Clock | None = None,
    progress: Progress = SILENT,
) -> Delivery:
    """Push a version and wait until it is AVAILABLE.

    Args:
        push: pushes.
        to: the server.
        roll_back: whether a version that does not load is retired again.
        timeout_s: longest wait, in seconds.
        clock: what the waiting measures with.
        progress: told the steps.

    Raises:
        ServerFailed: it did not become available; says whether it was rolled back.
        TfkitError: whatever `push` raises, and what the server answers.
    """
    pushed = push()
    try:
        time = wait(
            to.client, to.model, pushed.version, timeout_s=timeout_s, clock=clock, progress=progress
        )
    except (ServerFailed, RequestError) as error:
        if not roll_back:
            raise
        outcome = _take_back(pushed, to, timeout_s, clock, progress)
        raise ServerFailed(f"{error.message}; {outcome}", remedy=error.remedy) from error
    return Delivery(pushed, time)


def push_under_traffic(
    push: Callable[[], Pushed],
    to: Destination,
    traffic: Traffic,
    *,
    roll_back: bool = False,
    progress: Progress = SILENT,
) -> Delivery:
    """Push a version while requests come in, and report whether any of them noticed.

    Args:
        push: pushes.
        to: the server, which must serve a version already.
        traffic: what is sent.
        roll_back: whether the version is retired again where there is any problem.
        progress: told the steps.

    Raises:
        UsageError: no version is served, or the traffic cannot be made.
        TfkitError: whatever `push` raises, and what the server answers before it.
    """
    pushed: list[Pushed] = []

    def once() -> int:
        pushed.append(push())
        return pushed[0].version

    report = verify(
        to.client,
        to.model,
        once,
        traffic=traffic,
        roll_back_in=to.base_path if roll_back else None,
        progress=progress,
    )
    return Delivery(pushed[0], report=report)


def _take_back(
    pushed: Pushed, to: Destination, timeout_s: float, clock: Clock | None, progress: Progress
) -> str:
    """Retire a version, wait for the one before it, and say what came of it."""
    if to.base_path is None:
        return f"version {pushed.version} stays in its object store; pin the one before"
    try:
        retention.retire(to.base_path, pushed.version)
        older = [version.number for version in scan(to.base_path)]
        if not older:
            return f"version {pushed.version} was retired, and no older one is there"
        wait(to.client, to.model, older[-1], timeout_s=timeout_s, clock=clock, progress=progress)
    except (PushRefused, ServerFailed, RequestError) as error:
        return f"rolling back failed: {error.message}"
    return f"it was retired again, and version {older[-1]} serves"
