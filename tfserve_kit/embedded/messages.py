"""What both surfaces and the warm-up read from messages and write into them.

Inputs of Predict, tf.Example inputs of Classify and Regress from messages and from JSON, and the
status of versions. Source: tensorflow_serving/servables/tensorflow/util.cc (context features) and
tensorflow_serving/util/json_tensor.cc (JSON).
"""

from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded import handlers, json_reader, signatures
from tfserve_kit.embedded.json_writer import echo, members
from tfserve_kit.embedded.ledger import Account, Sent, field_at
from tfserve_kit.embedded.limits import UNCOUNTED_BYTES
from tfserve_kit.embedded.manager import ServableStatus, VersionState
from tfserve_kit.embedded.status import encoded, invalid
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import from_proto
from tfserve_kit.tensors.proto import MAX_FILLED_BYTES, ForeignTensorError, encode_varint


class PredictInputs(Mapping[str, Any]):
    """The inputs of a PredictRequest, each read when it is asked for.

    Args:
        request: the message.
        account: charged with what they claim beyond what was sent.

    Raises:
        ServingError: when asked for a tensor that contradicts itself, or with which all claim far
            more than was sent, or more than there is room for.
    """

    def __init__(self, request: Any, account: Account) -> None:
        self._tensors = request.inputs
        self._account = account
        # Values that are left out cost nothing to send; of those sent a byte makes eight at most.
        self._spare_bytes = MAX_FILLED_BYTES
        self._request = request

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, alias: object) -> bool:
        return alias in self._tensors

    def __getitem__(self, alias: str) -> Any:
        if alias not in self._tensors:  # a map of messages would make one
            raise KeyError(alias)
        tensor = self._tensors[alias]
        try:
            array = from_proto(tensor, fill=self._fill)
        except ForeignTensorError as error:
            return signatures.Foreign(error.number)
        except ValueError as error:  # a TensorError, or more dimensions than numpy knows
            raise signatures.unreadable(alias) from error
        self._spare_bytes -= array.nbytes
        if self._spare_bytes < 0 and self._spare_bytes + 8 * self._request.ByteSize() < 0:
            raise signatures.unreadable(alias)
        return array

    def _fill(self, size_bytes: int) -> None:
        if size_bytes > UNCOUNTED_BYTES:
            self._account.take(size_bytes, "values that were left out")


def status_message(status: ServableStatus) -> Any:
    """Return a ModelVersionStatus message."""
    message = protos.ModelVersionStatus(version=status.number, state=int(status.state))
    message.status.SetInParent()
    if status.error is not None and status.state is VersionState.END:
        message.status.error_code = int(status.error.code)
        message.status.error_message = encoded(status.error.message).decode()
    return message


# Requests of so many lengths are known, so many of one length, and so much besides numbers of each.
_MOST_LENGTHS = 256
_MOST_OF_A_LENGTH = 4
_MOST_AROUND_BYTES = 4096
# What is learnt from has few fields at each level; a text tensor has one for each text.
_MOST_FIELDS = 64
# tensorflow_serving/apis/predict.proto and tensorflow/core/framework/tensor.proto: what holds
# numbers as they lie in memory (tensor_content, float_val, double_val).
_INPUTS, _KEY, _VALUE = 2, 1, 2
_PLAIN_FIELDS = (4, 5, 6)
_PLAIN_KINDS = "fiu"
_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


class KnownRequests:
    """Requests seen before. Clients mostly send one again with other numbers: it is not parsed.

    What is not numbers must be the same to the byte, so nothing is read in another way than by
    protobuf. Thread-safe.
    """

    def __init__(self) -> None:
        self._by_length: dict[int, tuple[handlers.KnownRequest, ...]] = {}

    def find(self, request: Sent) -> handlers.KnownRequest | None:
        """Return what is known of a request."""
        for known in self._by_length.get(len(request), ()):
            if known.is_like(request):
                return known
        return None

    def learn(self, request: Sent, message: Any, model: handlers.ModelRef) -> None:
        """Remember a request that was answered, if it is one that can be told by its bytes.

        Args:
            request: its bytes.
            message: the same as a PredictRequest.
            model: which model it is for.
        """
        numbers = _numbers_within(request, message)
        if numbers is None:
            return
        around, at = [], 0
        for begin, array in sorted(numbers.values(), key=itemgetter(0)):
            around.append((at, begin))
            at = begin + array.nbytes
        around.append((at, len(request)))
        if sum(end - begin for begin, end in around) > _MOST_AROUND_BYTES:
            return
        if len(self._by_length) >= _MOST_LENGTHS:
            self._by_length = {}
        known = handlers.KnownRequest(
            model,
            message.model_spec.signature_name or DEFAULT_SIGNATURE,
            tuple(message.output_filter),
            tuple(
                (alias, array.dtype, array.shape, begin)
                for alias, (begin, array) in numbers.items()
            ),
            tuple((begin, end, bytes(request[begin:end])) for begin, end in around if begin < end),
        )
        others = self._by_length.get(len(request), ())
        self._by_length[len(request)] = (known, *others[: _MOST_OF_A_LENGTH - 1])


def _numbers_within(request: Sent, message: Any) -> dict[str, tuple[int, NDArray[Any]]] | None:
    """Return where each input's numbers begin in a request, and the numbers.

    None unless every input has plain numbers, once, and as many as its shape says.
    """
    found: dict[str, tuple[int, NDArray[Any]]] = {}
    for begin, end in _fields(request, 0, len(request)).get(_INPUTS, ()):
        entry = _fields(request, begin, end)
        if [len(entry.get(number, ())) for number in (_KEY, _VALUE)] != [1, 1]:
            return None
        (key,), (value,) = entry[_KEY], entry[_VALUE]
        tensor = _fields(request, *value)
        spans = [span for number in _PLAIN_FIELDS for span in tensor.get(number, ())]
        alias = bytes(request[slice(*key)]).decode()
        array = from_proto(message.inputs[alias]) if len(spans) == 1 else None
        if array is None or alias in found or array.dtype.kind not in _PLAIN_KINDS:
            return None
        ((first, last),) = spans
        if request[first:last] != array.tobytes():
            return None
        found[alias] = first, array
    return found if len(found) == len(message.inputs) else None


def _fields(body: Sent, at: int, end: int) -> dict[int, list[tuple[int, int]]]:
    """Return where the fields of a part of a message begin and end, by number; {} if many."""
    found: dict[int, list[tuple[int, int]]] = {}
    for _ in range(_MOST_FIELDS):
        if at >= end:
            return found
        number, begin, at = field_at(body, at, end)
        found.setdefault(number, []).append((begin, at))
    return found if at >= end else {}


def examples_from_input(message: Any, account: Account) -> NDArray[Any]:
    """Return the examples of an Input message, the context merged into each.

    Args:
        message: the Input.
        account: charged with what merging makes of them.

    Returns:
        object [examples] of serialized tf.Example.

    Raises:
        ServingError: there is none.
    """
    has_context = message.WhichOneof("kind") == "example_list_with_context"
    given = message.example_list_with_context if has_context else message.example_list
    if not len(given.examples):
        raise invalid("Input is empty.")
    context = given.context.SerializeToString() if has_context else b""
    return _merged((each.SerializeToString() for each in given.examples), context, account)


def examples_from_json(document: dict[str, Any], account: Account) -> NDArray[Any]:
    """Return the examples of a REST body: `examples`, and `context` for features of all.

    Args:
        document: the parsed body.
        account: charged with what merging makes of them.

    Returns:
        object [examples] of serialized tf.Example.

    Raises:
        ServingError: the body is formed in another way.
    """
    context = _example(document["context"]) if "context" in document else b""
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {echo(document)} When method is classify, key 'examples' is "
            "expected and was not found"
        )
    rows = document["examples"]
    if not isinstance(rows, list):
        raise invalid(
            f"JSON Value: {echo(document)} Expecting 'examples' value to be an list/array"
        )
    if not rows:
        raise invalid(f"JSON Value: {echo(document)} 'examples' value is an empty array")
    return _merged(map(_example, rows), context, account)


def _merged(examples: Iterable[bytes], context: bytes, account: Account) -> NDArray[Any]:
    """Return the examples, each behind the context: of two features of a name the later counts."""
    rows = list(examples)
    if len(rows) * len(context) > MAX_FILLED_BYTES:
        raise invalid(f"The context is too large to be merged into {len(rows)} examples")
    if context:
        account.take(len(rows) * len(context), "the context of each example")
    array = np.empty(len(rows), object)
    for index, example in enumerate(rows):
        array[index] = context + example
    return array


def _example(value: Any) -> bytes:
    """Return a JSON object as a serialized tf.Example; names of features may be any bytes."""
    if not isinstance(value, dict):
        kind = json_reader.type_name(value)
        raise invalid(f"Example must be JSON object but got JSON {kind}")
    features: dict[str, bytes] = {}
    for key, content in members(value):
        name, feature = json_reader.c_string(key), protos.Feature()
        for element in content if isinstance(content, list) else [content]:
            _add(feature, name, element)
        features[name] = feature.SerializeToString()
    entries = (
        _field(_field(name.encode("utf-8", "surrogateescape")) + _field(feature, number=2))
        for name, feature in features.items()
    )
    return _field(b"".join(entries)) if features else b""


def _field(content: bytes, *, number: int = 1) -> bytes:
    """Return a field of an Example: features = 1, its entries = 1, key = 1 and value = 2."""
    return encode_varint(number << 3 | 2) + encode_varint(len(content)) + content


def _add(feature: Any, name: str, element: Any) -> None:
    """Append an element; raises ServingError."""
    kind = _kind(name, element)
    have = feature.WhichOneof("kind")
    if have not in {None, kind}:
        text = f"Unexpected element type in feature: {name} expecting type: {_KINDS[have]}"
        raise invalid(text)
    getattr(feature, kind).value.append(_feature_value(name, element))


def _kind(name: str, element: Any) -> str:
    match element:
        case int():  # bool as well
            return "int64_list"
        case float():
            return "float_list"
        case str():
            return "bytes_list"
        case dict() if json_reader.is_bytes(element):
            return "bytes_list"
    raise invalid(
        f"Feature: {name} has element with unexpected JSON type: {json_reader.type_name(element)}"
    )


def _feature_value(name: str, element: Any) -> Any:
    if isinstance(element, float):
        return _as_float(element)
    if isinstance(element, str):
        return element.encode("utf-8", "surrogateescape")
    if isinstance(element, dict):
        return json_reader.from_base64(element["b64"])
    if element >= 1 << 63:
        raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    return int(element)


def _as_float(value: float) -> float:
    """Round to float32 as C++ does: what is too large becomes infinity."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))
