"""What every client offers, whatever the protocol, and what its callers need for it."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from numpy.typing import ArrayLike

from tfserve_kit.clients.results import (
    BatchPrediction,
    Classification,
    LabelScore,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
    version_statuses,
)
from tfserve_kit.errors import UsageError

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "BatchPrediction",
    "Classification",
    "Client",
    "Closing",
    "LabelScore",
    "Metadata",
    "Prediction",
    "Regression",
    "Target",
    "VersionStatus",
    "closed",
    "version_statuses",
]

DEFAULT_TIMEOUT_S = 30.0


class Client(Protocol):
    """The least that tfkit itself asks of a connection to a model server. Thread-safe.

    `SyncClient` is the real one and offers more. Every method raises a `RequestError`:
    ServerUnreachable, ModelNotFound, InvalidRequest, DeadlineExceeded, ServerOverloaded or
    ServerFault.
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


def closed(url: str) -> UsageError:
    """Return what a client says that is used after it was closed."""
    return UsageError(
        f"the client of {url} was closed",
        remedy="make another with connect, and use it inside its `with` block",
    )
