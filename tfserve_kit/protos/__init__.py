"""TensorFlow Serving's protobuf messages, without tensorflow.

The schema is data (`schema.binpb`, made by `generate.py` from the official packages) and is loaded
into a descriptor pool of its own, so that one process may hold this and the real tensorflow.
Messages are asked for by their short name: `protos.PredictRequest()`.

Attributes:
    METHODS: every RPC of the model server by short name; see `Method`.
"""

import os
import pkgutil
import threading
from functools import cache
from typing import Any, NamedTuple

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

__all__ = [
    "METHODS",
    "DecodeError",
    "Method",
    "TextFormatError",
    "from_json",
    "from_text",
    "message_class",
    "to_json",
    "to_text",
]

# Packages searched for a short name, in this order.
_PACKAGES = ("tensorflow.serving", "tensorflow", "google.protobuf")


class TextFormatError(ValueError):
    """A text is not the text format of the message it should be.

    Attributes:
        line: 1-based line of the fault, None where it is not known.
        column: 1-based column of the fault.
        reason: what is wrong there.
    """

    def __init__(self, reason: str, line: int | None, column: int | None) -> None:
        super().__init__(f"{line}:{column}: {reason}" if line else reason)
        self.reason, self.line, self.column = reason, line, column


# `cache` alone would let two threads make a pool each, and messages of two pools do not mix.
_making = threading.RLock()
_pools: list[DescriptorPool] = []
_classes: dict[str, Any] = {}


def _forget_the_lock() -> None:
    """Make the lock anew in a forked child: the thread that held it lives on in the parent only."""
    global _making  # noqa: PLW0603 (it stands for itself)
    _making = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_lock)


def _pool() -> DescriptorPool:
    """Return the one pool of this process, loaded with the schema when it is first wanted."""
    if not _pools:
        with _making:
            if not _pools:
                _pools.append(_loaded())
    return _pools[0]


def _loaded() -> DescriptorPool:
    pool = DescriptorPool()
    # importlib.resources, dataclasses and json_format take longer to import than this takes.
    schema = pkgutil.get_data(__name__, "schema.binpb") or b""
    for file in FileDescriptorSet.FromString(schema).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def message_class(name: str) -> Any:
    """Return the class of a message, the same one to every thread.

    Args:
        name: full (`tensorflow.serving.ModelSpec`) or short (`ModelSpec`) name.

    Raises:
        KeyError: the schema has no such message.
    """
    found = _classes.get(name)
    if found is None:
        with _making:
            found = _classes.setdefault(name, _find_class(name))
    return found


def _find_class(name: str) -> Any:
    for full_name in (f"{package}.{name}" for package in _PACKAGES):
        try:
            return GetMessageClass(_pool().FindMessageTypeByName(full_name))
        except KeyError:
            continue
    return GetMessageClass(_pool().FindMessageTypeByName(name))


def __getattr__(name: str) -> Any:
    """Find `protos.PredictRequest` and its like in the schema."""
    if not name[:1].isupper():
        raise AttributeError(name)
    try:
        return message_class(name)
    except KeyError:
        raise AttributeError(f"the schema has no message {name}") from None


@cache
def enum(name: str) -> Any:
    """Return the descriptor of an enum, by short or full name, such as `DataType`."""
    for full_name in (f"{package}.{name}" for package in _PACKAGES):
        try:
            return _pool().FindEnumTypeByName(full_name)
        except KeyError:
            continue
    return _pool().FindEnumTypeByName(name)


class Method(NamedTuple):
    """One RPC: `path` as sent on the wire, and the short names of its two messages."""

    path: str
    request: str
    response: str


def _method(service: str, name: str, request: str) -> Method:
    path = f"/tensorflow.serving.{service}/{name}"
    return Method(path, request, request.replace("Request", "Response"))


# A test holds this table against the service descriptors of the official package.
METHODS = {
    method.path.rsplit("/", 1)[1]: method
    for method in (
        _method("PredictionService", "Predict", "PredictRequest"),
        _method("PredictionService", "Classify", "ClassificationRequest"),
        _method("PredictionService", "Regress", "RegressionRequest"),
        _method("PredictionService", "MultiInference", "MultiInferenceRequest"),
        _method("PredictionService", "GetModelMetadata", "GetModelMetadataRequest"),
        _method("ModelService", "GetModelStatus", "GetModelStatusRequest"),
        _method("ModelService", "HandleReloadConfigRequest", "ReloadConfigRequest"),
    )
}


def from_text(name: str, text: str) -> Any:
    """Parse protobuf text format.

    Args:
        name: short or full name of the message the text should hold.
        text: for example `max_batch_size { value: 8 }`.

    Raises:
        TextFormatError: with line and column where the parser knows them.
    """
    try:
        return text_format.Parse(text, message_class(name)(), descriptor_pool=_pool())
    except text_format.ParseError as error:
        reason = str(error).partition(" : ")[2] or str(error)
        raise TextFormatError(reason, error.GetLine(), error.GetColumn()) from error
    except RecursionError as error:
        raise TextFormatError("it is nested too deeply", None, None) from error


def to_text(message: Any) -> str:
    """Return a message in protobuf text format, a field on each line."""
    return text_format.MessageToString(message, descriptor_pool=_pool())


def to_json(message: Any) -> str:
    """Return a message as protobuf JSON with the schema's own field names, `Any` opened."""
    from google.protobuf import json_format

    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=_pool(),
    )


def from_json(name: str, value: dict[str, Any]) -> Any:
    """Build a message from decoded protobuf JSON; unknown keys are ignored.

    Raises:
        ValueError: the value does not fit the message.
    """
    from google.protobuf import json_format

    try:
        return json_format.ParseDict(
            value, message_class(name)(), ignore_unknown_fields=True, descriptor_pool=_pool()
        )
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error
