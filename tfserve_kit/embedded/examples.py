"""tf.Example inputs of classify and regress, from messages and from JSON, as serialized strings.

Source: tensorflow_serving/servables/tensorflow/util.cc (context features) and
tensorflow_serving/util/json_tensor.cc (JSON).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded import json_request
from tfserve_kit.embedded.json_text import echo
from tfserve_kit.embedded.ledger import Account
from tfserve_kit.embedded.status import ServingError, invalid
from tfserve_kit.tensors.proto import MAX_FILLED_BYTES

_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def from_input(message: Any, account: Account) -> NDArray[Any]:
    """Return the examples of an Input message, the context merged into each.

    Args:
        message: the Input.
        account: charged with what merging makes of them.

    Returns:
        object [examples] of serialized tf.Example.

    Raises:
        ServingError: there is none.
    """
    if message.WhichOneof("kind") == "example_list_with_context":
        return _merged(
            message.example_list_with_context.examples,
            message.example_list_with_context.context,
            account,
        )
    return _merged(message.example_list.examples, None, account)


def from_json(document: Mapping[str, Any], account: Account) -> NDArray[Any]:
    """Return the examples of a REST body: `examples`, and `context` for features of all.

    Args:
        document: the parsed body.
        account: charged with what merging makes of them.

    Returns:
        object [examples] of serialized tf.Example.

    Raises:
        ServingError: the body is formed in another way.
    """
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
    context = _example(document["context"]) if "context" in document else None
    return _merged([_example(row) for row in rows], context, account)


def _merged(examples: Sequence[Any], context: Any, account: Account) -> NDArray[Any]:
    if not len(examples):
        raise invalid("Input is empty.")
    if context is not None and len(examples) * context.ByteSize() > MAX_FILLED_BYTES:
        raise invalid(f"The context is too large to be merged into {len(examples)} examples")
    # One message behind another is both merged; of two features of a name the later one counts.
    if context is not None:
        account.take(len(examples) * context.ByteSize(), "the context of each example")
    start = b"" if context is None else context.SerializeToString()
    array = np.empty(len(examples), object)
    for index, example in enumerate(examples):
        array[index] = start + example.SerializeToString()
    return array


def _example(value: Any) -> Any:
    if not isinstance(value, dict):
        kind = json_request.type_name(value)
        raise invalid(f"Example must be JSON object but got JSON {kind}")
    example = protos.Example()
    for name, content in value.items():
        try:
            feature = example.features.feature[name]
            for element in content if isinstance(content, list) else [content]:
                _add(feature, name, element)
        except ValueError as error:  # text that is no Unicode, or a number beyond 64 bits
            raise invalid(f"Feature: {echo(name)} cannot be stored") from error
    return example


def _add(feature: Any, name: str, element: Any) -> None:
    kind, value = _feature_value(name, element)
    have = feature.WhichOneof("kind")
    if have not in {None, kind}:
        text = f"Unexpected element type in feature: {name} expecting type: {_KINDS[have]}"
        raise invalid(text)
    getattr(feature, kind).value.append(value)


def _feature_value(name: str, element: Any) -> tuple[str, Any]:
    match element:
        case bool():
            return "int64_list", int(element)
        case int() if element >= 1 << 63:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        case int():
            return "int64_list", element
        case float():
            return "float_list", _as_float(element)
        case str():
            return "bytes_list", element.encode("utf-8", "surrogateescape")
        case dict() if json_request.is_bytes(element):
            return "bytes_list", json_request.from_base64(element["b64"])
    raise _unexpected(name, element)


def _unexpected(name: str, element: Any) -> ServingError:
    return invalid(
        f"Feature: {name} has element with unexpected JSON type: {json_request.type_name(element)}"
    )


def _as_float(value: float) -> float:
    """Round to float32 as C++ does: what is too large becomes infinity."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))
