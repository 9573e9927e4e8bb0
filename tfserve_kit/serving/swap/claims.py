"""Who needs which versions of a base path: running servers, and deployments that name versions."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tfserve_kit.clients import VersionStatus
from tfserve_kit.clients.readiness import ask
from tfserve_kit.deployment.schema import Model, Spec
from tfserve_kit.engines.records import DEPLOYMENT, Record, resolved, sharing
from tfserve_kit.errors import RequestError, UsageError
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import scan
from tfserve_kit.serving import access

_ASK_S = 2.0
_IN_USE = {"START", "LOADING", "AVAILABLE"}


class Reason(Enum):
    """Why a version is needed."""

    SERVED = "served"
    LABELLED = "labelled"
    PINNED = "pinned"
    LATEST = "among the latest"

    @property
    def by_name(self) -> bool:
        """Whether somebody wrote the number down, and would miss this very version."""
        return self in {Reason.LABELLED, Reason.PINNED}


@dataclass(frozen=True, slots=True)
class Claim:
    """A version that somebody needs: its number, who it is, why, and the label if it has one."""

    version: int
    who: str
    reason: Reason
    label: str = ""

    def __str__(self) -> str:
        name = f" {self.label!r}" if self.label else ""
        return f"version {self.version} is {self.reason.value}{name} by {self.who}"


def claims(
    base_path: Path, deployment: Spec | None = None, *, progress: Progress = SILENT
) -> list[Claim]:
    """Return who needs which versions of a base path, lowest version first.

    A server that runs says itself what it serves; what its deployment labels or pins counts too.
    Of one that does not answer all counts that its deployment would load.

    Args:
        base_path: the folder of the model's versions.
        deployment: one that is not served, such as that of tfkit.toml.
        progress: told which servers could not be asked.

    Raises:
        UsageError: the base path cannot be read.
    """
    try:
        numbers = [version.number for version in scan(base_path)]
    except OSError as error:
        raise UsageError(f"cannot read {base_path}: {error.strerror or error}") from error
    found: set[Claim] = set()
    for record, name in sharing(base_path):
        who = f"server {record.server_name!r}"
        statuses, spec = _statuses(record, name), _deployment(record)
        if statuses is None:
            known = "what its deployment names stays" if spec else "nor is its deployment known"
            progress.note(f"Warning: {who} does not answer; {known}")
        for status in statuses or []:
            if status.state in _IN_USE:
                found.add(Claim(status.version, who, Reason.SERVED))
        if spec and name in spec.models:
            found.update(_named(spec.models[name], who, [] if statuses is not None else numbers))
    for model in deployment.models.values() if deployment else ():
        if resolved(model.base_path) == resolved(base_path):
            found.update(_named(model, "the deployment file", numbers))
    return sorted(found, key=lambda claim: (claim.version, claim.who, claim.reason.value))


def _named(model: Model, who: str, numbers: list[int]) -> Iterator[Claim]:
    """Yield what a model of a deployment needs, where the base path holds these numbers."""
    for label, version in model.labels.items():
        yield Claim(version, who, Reason.LABELLED, label)
    for version in model.versions.specific:
        yield Claim(version, who, Reason.PINNED)
    if model.versions.latest:
        for version in model.versions.loads(numbers):
            yield Claim(version, who, Reason.LATEST)


def _statuses(record: Record, model: str) -> list[VersionStatus] | None:
    """Return what a server says of a model, None where it does not answer."""
    try:
        with access.connect(record) as client:
            return ask(client, model, timeout_s=_ASK_S)
    except (RequestError, UsageError):  # such as a certificate that was deleted meanwhile
        return None


def _deployment(record: Record) -> Spec | None:
    try:
        return Spec.model_validate_json((record.home / DEPLOYMENT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
