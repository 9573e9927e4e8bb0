"""A recorded request, held against the signatures of a model without running it.

Source: tensorflow_serving/servables/tensorflow/saved_model_warmup.cc (which logs can be replayed),
predict_util.cc, classifier.cc and regressor.cc (what their requests must look like).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfserve_kit import protos
from tfserve_kit.errors import did_you_mean
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature, TensorSpec
from tfserve_kit.tensors import dtypes, from_proto
from tfserve_kit.tensors.proto import header

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
# The log of a request that carries examples, by method name; all others are predict logs.
LOGS = {CLASSIFY: "classify_log", REGRESS: "regress_log"}
_METHODS = {log: method for method, log in LOGS.items()}


Signatures = Mapping[str, Signature]
"""What can be called, by name."""


def faults(record: bytes, signatures: Signatures) -> Iterator[str]:
    """Yield what would make a server refuse a request, as predicates to "record 7".

    Args:
        record: a serialized PredictionLog.
        signatures: those of the model to call, whatever name the request gives.
    """
    try:
        log = protos.PredictionLog.FromString(record)
    except protos.DecodeError:
        yield "is no PredictionLog"
        return
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        yield from _predict_faults(log.predict_log.request, signatures)
    elif kind in _METHODS:
        request = getattr(log, kind).request
        yield from _task_faults(request.model_spec, _METHODS[kind], signatures)
        yield from _input_faults(request.input)
    elif kind == "multi_inference_log":
        yield from _multi_inference_faults(log.multi_inference_log.request, signatures)
    else:
        yield f"is a {kind or 'log without a type'}, which no server replays"


def _predict_faults(request: Any, signatures: Signatures) -> Iterator[str]:
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in signatures:
        yield _unknown_signature(name, signatures)
        return
    signature = signatures[name]
    for alias, tensor in request.inputs.items():
        if alias not in signature.inputs:
            yield f"signature {name!r} has no input {alias!r:.80}"
        elif fault := _tensor_fault(tensor, signature.inputs[alias]):
            yield f"input {alias!r} {fault}"
    yield from _composite_faults(request, signature)
    missing = signature.inputs.keys() - set(request.inputs)
    for alias in sorted(missing - signature.optional):
        yield f"input {alias!r} of signature {name!r} is missing"
    yield from _filter_faults(request.output_filter, signature)


def _composite_faults(request: Any, signature: Signature) -> Iterator[str]:
    """Yield where parts of ragged and sparse tensors, each good by itself, do not go together."""
    for composite in signature.composites:
        parts = [request.inputs[each] for each in composite.aliases if each in request.inputs]
        if len(parts) < len(composite.aliases) or any(map(_is_abridged, parts)):
            continue
        try:
            arrays = map(from_proto, parts)
            fault = composite.fault(dict(zip(composite.aliases, arrays, strict=True)))
        except ValueError:  # the fault of one of them, which is told by itself
            continue
        if fault:
            yield f"{composite}, but {fault}"


def _is_abridged(tensor: Any) -> bool:
    """Say whether a message claims more values than it can hold: the last one is repeated."""
    claimed: int = math.prod(dim.size for dim in tensor.tensor_shape.dim)
    return claimed > int(tensor.ByteSize())


def _unknown_signature(name: str, signatures: Signatures) -> str:
    return f"the model has no signature {name!r:.80}: {did_you_mean(name[:80], signatures)}"


def _tensor_fault(tensor: Any, wanted: TensorSpec) -> str:
    """Say what is wrong with a value; values that the message leaves out are not filled in."""
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    try:
        from_proto(tensor if tensor.tensor_content else header(tensor.dtype, shape))
    except ValueError as error:  # a TensorError, or more dimensions than numpy knows
        return f"is no tensor: {error}"
    have = TensorSpec("", dtypes.by_number(tensor.dtype), shape)
    fits = have.dtype == wanted.dtype and wanted.takes(shape)
    return "" if fits else f"is {have!s:.80}, not {wanted}"


def _filter_faults(output_filter: Sequence[str], signature: Signature) -> Iterator[str]:
    seen = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            yield f"signature {signature.name!r} has no output {alias!r:.80}"
        elif alias in seen:
            yield f"output {alias!r} is asked for twice"
        seen.add(alias)


def _multi_inference_faults(request: Any, signatures: Signatures) -> Iterator[str]:
    for task in request.tasks:
        if task.method_name in LOGS:
            yield from _task_faults(task.model_spec, task.method_name, signatures)
        else:
            yield f"has a task of the unknown method {task.method_name!r:.80}"
    yield from _input_faults(request.input)


def _task_faults(spec: Any, method: str, signatures: Signatures) -> Iterator[str]:
    """Yield what keeps a signature from being called in one of the two ways that take examples.

    Like the server, which is content if inputs and outputs fit, this does not look at the
    signature's own method name.
    """
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in signatures:
        yield _unknown_signature(name, signatures)
        return
    signature = signatures[name]
    if [(alias, each.dtype) for alias, each in signature.inputs.items()] != [
        ("inputs", dtypes.STRING)
    ]:
        yield f"signature {name!r} does not take examples: its one input must be a string 'inputs'"
    outputs = set(signature.outputs)
    if method == REGRESS and outputs != {"outputs"}:
        yield f"signature {name!r} cannot regress: its one output must be called 'outputs'"
    if method == CLASSIFY and not (len(outputs) <= 2 and outputs & {"classes", "scores"}):  # noqa: PLR2004
        yield f"signature {name!r} cannot classify: its outputs must be 'classes', 'scores' or both"


def _input_faults(message: Any) -> Iterator[str]:
    kind = message.WhichOneof("kind")
    if not (kind and getattr(message, kind).examples):
        yield "has no examples"
