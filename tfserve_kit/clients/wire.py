"""What the two protocols have in common: requests out of plain values, and errors out of outcomes.

Nothing here does input or output: a protocol is tested on bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from tfserve_kit.clients.effects import Call, Outcome
from tfserve_kit.clients.results import Classification, Metadata, Regression, Target, VersionStatus
from tfserve_kit.errors import RequestError
from tfserve_kit.savedmodel import Signature

Arrays = Mapping[str, NDArray[Any]]
Answer = tuple[Arrays, int | None]
"""Output arrays and the version that answered, None where the protocol does not say."""
Inferred = Classification | Regression


class Wire(Protocol):
    """A protocol that model servers speak. `url` names the server in errors.

    Attributes:
        needs_signature: whether answers can be read only by who knows the signature.
        takes_defaults: whether inputs for which the model has defaults may be left out.
    """

    url: str
    needs_signature: bool
    takes_defaults: bool

    def predict(
        self,
        target: Target,
        inputs: Mapping[str, Any],
        output_filter: Sequence[str],
        signature: Signature | None,
    ) -> Call[Answer]:
        """Ask for outputs; `signature` is None where it is not known."""

    def classify(self, target: Target, examples: Sequence[Any]) -> Call[Classification]:
        """Ask for the classes of tf.Example messages."""

    def regress(self, target: Target, examples: Sequence[Any]) -> Call[Regression]:
        """Ask for a value of each of some tf.Example messages."""

    def multi_inference(
        self, target: Target, tasks: Mapping[str, str], examples: Sequence[Any]
    ) -> Call[dict[str, Inferred]]:
        """Ask several signatures (name to `classify` or `regress`) about the same examples."""

    def metadata(self, target: Target) -> Call[Metadata]:
        """Ask for the signatures."""

    def status(self, target: Target) -> Call[list[VersionStatus]]:
        """Ask for the state of the versions."""

    def reload(self, config: Any) -> Call[None]:
        """Replace the configuration by a ModelServerConfig message."""

    def error(self, outcome: Outcome, target: Target, timeout_s: float) -> RequestError:
        """Return the error that an outcome without answer means; `timeout_s` is the whole time."""
