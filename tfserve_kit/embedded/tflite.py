"""Serves TensorFlow Lite models where they are preferred, with the wheel's interpreter.

Source: tensorflow_serving/servables/tensorflow/tflite_session.cc and
saved_model_bundle_factory.cc: a version with a `model.tflite` file is served from that file.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.limits import MOST_DIMENSIONS, MOST_STRING_DIMENSIONS
from tfserve_kit.embedded.servable import Loader, Servable, too_deep
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes

TFLITE_FILE = "model.tflite"
_METHOD_NAME = "tensorflow/serving/predict"
_MOST_SIZE = (1 << 31) - 1  # of a dimension


class TfLiteLoader:
    """Loads `model.tflite` where a version has one, else what `otherwise` loads.

    Args:
        otherwise: the loader of SavedModels.
        interpreters: how many requests a model can compute at once.
    """

    def __init__(self, otherwise: Loader, interpreters: int) -> None:
        self._otherwise = otherwise
        self._interpreters = interpreters

    def __call__(self, version_dir: Path) -> Servable:
        """Load a version.

        Raises:
            ServingError: it cannot be loaded.
        """
        file = version_dir / TFLITE_FILE
        if not file.is_file():
            return self._otherwise(version_dir)
        model = file.read_bytes()
        try:
            interpreters = [_interpreter(model) for _ in range(self._interpreters)]
        except (ValueError, RuntimeError) as error:
            raise invalid(f"cannot load {file}: {error}") from error
        return TfLiteServable(interpreters)


def _interpreter(model: bytes) -> Any:
    from tensorflow.lite.python.interpreter import Interpreter

    with warnings.catch_warnings():
        # It announces its successor; the one in the wheel is what fits the wheel.
        warnings.simplefilter("ignore")
        return Interpreter(model_content=model, num_threads=1)


@dataclass(frozen=True, slots=True)
class _Signature:
    """What can be called: index per tensor name, and the subgraph that they are in."""

    subgraph: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


class TfLiteServable:
    """A TensorFlow Lite model; implements `Servable`. Each call borrows one of the interpreters."""

    def __init__(self, interpreters: Sequence[Any]) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        for interpreter in interpreters:
            self._free.put(interpreter)
        self._definitions: dict[str, Any] = {}
        self._calls: dict[frozenset[str], _Signature] = {}
        for name in interpreters[0].get_signature_list() or [None]:
            self._add(interpreters[0], name)

    def _add(self, interpreter: Any, name: str | None) -> None:
        inputs, outputs = _tensors(interpreter, name)
        definition = protos.SignatureDef(method_name=_METHOD_NAME)
        for aliases, found in ((definition.inputs, inputs), (definition.outputs, outputs)):
            for alias, tensor in found.items():
                _describe(aliases[alias], tensor)
        self._definitions[name or DEFAULT_SIGNATURE] = definition
        subgraph = 0 if name is None else _native(interpreter).GetSubgraphIndexFromSignature(name)
        indices = [
            {each["name"]: each["index"] for each in found.values()} for found in (inputs, outputs)
        ]
        self._calls[frozenset(indices[0])] = _Signature(subgraph, *indices)

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef messages by name."""
        return self._definitions

    def run(
        self,
        feeds: Mapping[str, NDArray[Any]],
        fetches: Sequence[str],
        *,
        call: Call | None = None,
    ) -> Sequence[NDArray[Any]]:
        """Compute `fetches` from `feeds`; see `Servable.run`. All inputs must be given."""
        del call
        signature = self._calls.get(frozenset(feeds))
        if signature is None:
            raise invalid(f"no signature takes the inputs {', '.join(sorted(feeds))}")
        interpreter = self._free.get()
        try:
            return _called(interpreter, signature, feeds, fetches)
        except (ValueError, RuntimeError) as error:
            raise ServingError(Code.INTERNAL, f"Failed to invoke TfLite model: {error}") from error
        finally:
            self._free.put(interpreter)

    def close(self) -> None:
        """Free the interpreters."""
        while not self._free.empty():
            self._free.get()


def _tensors(interpreter: Any, name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the details of a signature's inputs and outputs, by alias."""
    if name is not None:
        runner = interpreter.get_signature_runner(name)
        return runner.get_input_details(), runner.get_output_details()
    details = (interpreter.get_input_details(), interpreter.get_output_details())
    inputs, outputs = ({each["name"]: each for each in found} for found in details)
    return inputs, outputs


def _native(interpreter: Any) -> Any:
    """Return what alone reaches other subgraphs than the first: the interpreter's inside."""
    return interpreter._interpreter  # noqa: SLF001


def _called(
    interpreter: Any,
    signature: _Signature,
    feeds: Mapping[str, NDArray[Any]],
    fetches: Sequence[str],
) -> list[NDArray[Any]]:
    """Do what the interpreter's own runner does, with a look at the outputs before they are read.

    It crashes on numbers of more dimensions than numpy has.
    """
    native, subgraph = _native(interpreter), signature.subgraph
    values = {signature.inputs[name]: _fed(name, array) for name, array in feeds.items()}
    for index, array in values.items():
        native.ResizeInputTensor(index, np.array(array.shape, np.int32), False, subgraph)
    native.AllocateTensors(subgraph)
    for index, array in values.items():
        native.SetTensor(index, array, subgraph)
    native.Invoke(subgraph)
    outputs = []
    for name in fetches:
        index = signature.outputs[name]
        if (dimensions := len(native.TensorSize(index, subgraph))) > MOST_DIMENSIONS:
            raise invalid(f"Output {name} has {dimensions} dimensions, more than numpy has")
        outputs.append(np.asarray(native.GetTensor(index, subgraph)))
    return outputs


def _fed(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as the interpreter can take it.

    It crashes on strings of more than 32 dimensions, and reads none at all from a scalar object.

    Raises:
        ServingError: it cannot take it.
    """
    if max(array.shape, default=0) > _MOST_SIZE:
        raise invalid(f"Input tensor {name} has a dimension of more than {_MOST_SIZE}")
    if array.dtype.kind not in dtypes.NUMBERS:
        if array.ndim > MOST_STRING_DIMENSIONS:
            raise too_deep(name, array.ndim)
        return array if array.ndim else array.astype(np.bytes_)
    return array


def _describe(info: Any, tensor: Mapping[str, Any]) -> None:
    info.name = tensor["name"]
    info.dtype = dtypes.by_numpy(tensor["dtype"]).number
    for size in tensor["shape_signature"]:
        info.tensor_shape.dim.add(size=int(size))
