"""What every client offers, whatever the protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from numpy.typing import ArrayLike, NDArray

from tfserve_kit import protos
from tfserve_kit.savedmodel import Signature

DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """The model a request is for.

    Attributes:
        model: its name.
        version: a version number; None for the one the server prefers.
        label: a version label instead of a number.
        signature: which of its signatures; empty for `serving_default`.
    """

    model: str
    version: int | None = None
    label: str | None = None
    signature: str = ""

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
    """

    outputs: Mapping[str, NDArray[Any]]
    version: int | None
    duration_s: float


@dataclass(frozen=True, slots=True)
class Metadata:
    """A model's signatures by name, and the version they belong to."""

    version: int
    signatures: Mapping[str, Signature]


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """State of one version: START, LOADING, AVAILABLE, UNLOADING or END, and the error if any."""

    version: int
    state: str
    error: str = ""


class Client(Protocol):
    """A connection to one model server; a context manager. Thread-safe.

    Every method raises a `RequestError`: ServerUnreachable, ModelNotFound, InvalidRequest,
    DeadlineExceeded, ServerOverloaded or ServerFault.
    """

    url: str

    def predict(
        self,
        target: Target,
        inputs: Mapping[str, ArrayLike],
        *,
        output_filter: Sequence[str] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Prediction:
        """Run a signature.

        Args:
            target: model, version or label, and signature.
            inputs: array per input alias, of the dtype and shape the signature names.
            output_filter: aliases of the outputs wanted; all if empty.
            timeout_s: deadline, in seconds.
        """

    def metadata(self, target: Target, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Metadata:
        """Return the model's signatures."""

    def status(
        self, target: Target, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[VersionStatus]:
        """Return the state of every version the server knows of the model, highest first."""

    def close(self) -> None:
        """Close the connection."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Closing:
    """Makes whatever has `close` a context manager."""

    def close(self) -> None:
        """Release what is held."""
        raise AssertionError("a subclass closes")  # pragma: no cover

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def version_statuses(message: Any) -> list[VersionStatus]:
    """Return what a GetModelStatusResponse says, highest version first."""
    names = protos.enum("ModelVersionStatus.State").values_by_number
    found = [
        VersionStatus(each.version, names[each.state].name, each.status.error_message)
        for each in message.model_version_status
    ]
    return sorted(found, key=lambda status: -status.version)
