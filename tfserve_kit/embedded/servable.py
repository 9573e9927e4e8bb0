"""What the embedded engine needs of a loaded model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray


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
        timeout_s: float | None = None,
    ) -> Sequence[NDArray[Any]]:
        """Compute tensors of the graph.

        Args:
            feeds: value per tensor name, such as `x:0`.
            fetches: names of the tensors to compute.
            timeout_s: how long somebody waits for them, in seconds; None for ever. What has not
                begun by then need not begin.

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
