"""Requests on plain values: no protobuf tensors, no JSON, no gRPC, no HTTP.

Source: tensorflow_serving/servables/tensorflow/predict_util.cc, get_model_metadata_impl.cc and
tensorflow_serving/model_servers/get_model_status_impl.cc, whose checks and texts these are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tfserve_kit.embedded.manager import Manager, VersionStatus
from tfserve_kit.embedded.servable import Servable
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """The model a request is for: its name, and a version or a label or neither."""

    name: str
    version: int | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Predicted:
    """Outputs by alias, and the version and signature that made them."""

    version: int
    signature: str
    outputs: Arrays


@dataclass(frozen=True, slots=True)
class Metadata:
    """A version's SignatureDef messages by name."""

    version: int
    signatures: Mapping[str, Any]


class Handlers:
    """What the server can be asked. Thread-safe."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def predict(
        self, model: ModelRef, signature: str, inputs: Arrays, output_filter: Sequence[str] = ()
    ) -> Predicted:
        """Run a signature.

        Args:
            model: which model.
            signature: its name; empty for `serving_default`.
            inputs: value per input alias.
            output_filter: aliases of the outputs to compute; all if empty.

        Raises:
            ServingError: no such servable or signature, inputs that do not fit, or an error of
                the graph.
        """
        with self._manager.lease(model.name, self._version(model)) as lease:
            name = signature or DEFAULT_SIGNATURE
            definition = _signature(lease.servable, name)
            feeds = _feeds(definition, inputs)
            outputs = _outputs(definition, output_filter)
            values = lease.servable.run(feeds, list(outputs.values()))
            return Predicted(lease.version, name, dict(zip(outputs, values, strict=True)))

    def metadata(self, model: ModelRef) -> Metadata:
        """Return a version's signatures.

        Raises:
            ServingError: NOT_FOUND, no such servable.
        """
        with self._manager.lease(model.name, self._version(model)) as lease:
            return Metadata(lease.version, lease.servable.signatures)

    def status(self, model: ModelRef) -> list[VersionStatus]:
        """Return the state of a model's versions, or of one; a label is ignored.

        Raises:
            ServingError: NOT_FOUND, nothing is known of it.
        """
        found = self._manager.status(model.name)
        if model.version is not None:
            found = [status for status in found if status.number == model.version]
            what = f"version {model.version}"
        else:
            what = "any versions"
        if not found:
            raise ServingError(Code.NOT_FOUND, f"Could not find {what} of model {model.name}")
        return found

    def _version(self, model: ModelRef) -> int | None:
        if model.label:
            raise invalid(f"Unrecognized servable version label: {model.label}")
        return model.version


def _signature(servable: Servable, name: str) -> Any:
    try:
        return servable.signatures[name]
    except KeyError:
        text = f'Serving signature key "{name}" not found.'
        raise ServingError(Code.FAILED_PRECONDITION, text) from None


def _feeds(definition: Any, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Return the value per tensor name, in the signature's order."""
    expected = definition.inputs
    if len(inputs) != len(expected):
        raise invalid(
            f"input size does not match signature: {len(inputs)}!={len(expected)} "
            f"len({_braced(inputs)}) != len({_braced(expected)}). "
            f"Sent extra: {_braced(set(inputs) - set(expected))}. "
            f"Missing but required: {_braced(set(expected) - set(inputs))}."
        )
    for alias in sorted(expected):
        if alias not in inputs:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {expected[alias].name}) not found in "
                "request and no default value provided. Inputs expected to be in the request "
                f"{_braced(inputs)}, or default input alias set: "
            )
    return {expected[alias].name: inputs[alias] for alias in sorted(expected)}


def _outputs(definition: Any, output_filter: Sequence[str]) -> dict[str, str]:
    """Return the tensor name per output alias."""
    wanted: dict[str, str] = {}
    for alias in output_filter or sorted(definition.outputs):
        if alias not in definition.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_braced(definition.outputs)}."
            )
        if alias in wanted:
            raise invalid(f"duplicate output tensor alias: {alias}")
        wanted[alias] = definition.outputs[alias].name
    return wanted


def _braced(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
