"""What the embedded engine needs of a loaded model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.limits import MOST_STRING_DIMENSIONS
from tfserve_kit.embedded.status import ServingError, invalid


class Servable(Protocol):
    """A loaded model version. Thread-safe."""

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef messages by name."""

    def run(
        self,
        feeds: Mapping[str, NDArray[Any]],
        fetches: Sequence[str],
        *,
        call: Call | None = None,
    ) -> Sequence[NDArray[Any]]:
        """Compute tensors of the graph.

        Args:
            feeds: value per tensor name, such as `x:0`.
            fetches: names of the tensors to compute.
            call: how long somebody waits for them, and whose account is charged; without limits if
                left out. What has not begun by then need not begin.

        Returns:
            Their values, in the order of `fetches`.

        Raises:
            ServingError: the graph refused, with tensorflow's code and text; or it never ran.
        """

    def close(self) -> None:
        """Free its memory; no call may run or follow."""


class Loader(Protocol):
    """Loads one model version from disk."""

    def __call__(self, version_dir: Path) -> Servable:
        """Load it, or raise ServingError."""


def too_deep(tensor: str, dimensions: int) -> ServingError:
    """Return the error of a string tensor with more dimensions than tensorflow's code bears."""
    return invalid(
        f"Tensor {tensor} has {dimensions} dimensions; strings can have at most "
        f"{MOST_STRING_DIMENSIONS} here"
    )
