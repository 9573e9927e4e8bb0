"""What requests are for, and what comes back: plain values, the same over both protocols."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.errors import RequestError, UsageError
from tfserve_kit.savedmodel import Signature


@dataclass(frozen=True, slots=True)
class Target:
    """The model a request is for.

    Attributes:
        model: its name.
        version: a version number; None for the one the server prefers.
        label: a version label instead of a number.
        signature: which of its signatures; empty for `serving_default`.

    Raises:
        UsageError: there is a version and a label, of which a server would take one.
    """

    model: str
    version: int | None = None
    label: str | None = None
    signature: str = ""

    def __post_init__(self) -> None:
        if self.version is not None and self.label:
            both = f"version {self.version} and label {self.label!r}"
            raise UsageError(f"{both} cannot both be asked for", remedy="leave one of them out")

    def __str__(self) -> str:
        chosen = f" version {self.version}" if self.version is not None else ""
        return f"model {self.model!r}" + (f" label {self.label!r}" if self.label else chosen)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to a predict request.

    Attributes:
        outputs: array per output alias.
        version: the version that answered; None over REST, which does not say.
        duration_s: from sending the request to holding the decoded answer, in seconds.
        replica: address of the server that answered.
    """

    outputs: Mapping[str, NDArray[Any]]
    version: int | None
    duration_s: float
    replica: str = ""


@dataclass(frozen=True, slots=True)
class BatchPrediction:
    """The answers to the parts of a batch, put together.

    Attributes:
        outputs: array [answered rows, ...] per output alias, in the order of the rows sent.
        rows: int64 [answered rows], the index of each in the batch; all of them unless failures
            are isolated.
        errors: the error of each row that failed, by its index; empty unless isolated.
        versions: the versions that answered; more than one if a swap fell between two parts, none
            over REST, which does not say.
        requests: how many requests were answered or refused, without repeated ones.
        duration_s: from sending the first request to holding the last answer, in seconds.
        replicas: addresses of the servers that answered.
    """

    outputs: Mapping[str, NDArray[Any]]
    rows: NDArray[Any]
    errors: Mapping[int, RequestError]
    versions: frozenset[int]
    requests: int
    duration_s: float
    replicas: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One class of one example: its label, empty if the model has none, and its score."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to a classify request.

    Attributes:
        classes: for each example its classes, in the order of the model.
        version: the version that answered; None over REST, which does not say.
        duration_s: as for `Prediction`.
        replica: as for `Prediction`.
    """

    classes: tuple[tuple[LabelScore, ...], ...]
    version: int | None
    duration_s: float
    replica: str = ""


@dataclass(frozen=True, slots=True)
class Regression:
    """The answer to a regress request.

    Attributes:
        values: float32 [examples].
        version: the version that answered; None over REST, which does not say.
        duration_s: as for `Prediction`.
        replica: as for `Prediction`.
    """

    values: NDArray[Any]
    version: int | None
    duration_s: float
    replica: str = ""


@dataclass(frozen=True, slots=True)
class Metadata:
    """A model's signatures by name, and the version they belong to.

    Attributes:
        version: the version.
        signatures: by name.
        replica: address of the server that said so; not compared.
    """

    version: int
    signatures: Mapping[str, Signature]
    replica: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """State of one version.

    Attributes:
        version: its number.
        state: START, LOADING, AVAILABLE, UNLOADING or END.
        error: why it failed, if it did.
        replica: address of the server that said so; not compared.
    """

    version: int
    state: str
    error: str = ""
    replica: str = field(default="", compare=False)


# A server that says more of itself than this is none.
MAX_ABOUT_BYTES = 1 << 24
MAX_VERSIONS = 100_000
MAX_SIGNATURES = 10_000


def require_about(what: str, count: int, most: int) -> None:
    """Refuse what a server says of itself where it is too much.

    Raises:
        ValueError: the count is larger than the most there may be.
    """
    if count > most:
        raise ValueError(f"{count:,} {what}, more than the {most:,} allowed")


def version_statuses(message: Any) -> list[VersionStatus]:
    """Return what a GetModelStatusResponse says, highest version first.

    Raises:
        ValueError: the versions are too many, or of no known state.
    """
    require_about("versions", len(message.model_version_status), MAX_VERSIONS)
    names = protos.enum("ModelVersionStatus.State").values_by_number
    found = [
        VersionStatus(each.version, names[each.state].name, each.status.error_message)
        for each in message.model_version_status
    ]
    return sorted(found, key=lambda status: -status.version)


def as_target(target: Target | str, signature: str) -> Target:
    """Return the target of a call.

    Args:
        target: a target, or the name of a model.
        signature: the signature to take in place of the target's; empty leaves it.
    """
    if isinstance(target, str):
        return _by_name(target, signature)
    return replace(target, signature=signature) if signature else target


@lru_cache(maxsize=256)
def _by_name(model: str, signature: str) -> Target:
    """Return a target; calls mostly repeat it, and nobody changes it."""
    return Target(model, signature=signature)
