"""Warm-up requests: what a server replays when it loads a version, before it serves it.

A model's first requests are slow, since much is made ready on first use. TensorFlow Serving
therefore replays the requests it finds in the version, a TFRecord file of PredictionLog messages; a
record that fails fails the load. Here the file is written, and checked without running the model.

Source: tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc and saved_model_warmup.cc
(which logs can be replayed), predict_util.cc, classifier.cc and regressor.cc (what their requests
must look like).
"""

import contextlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos, savedmodel, tfrecord
from tfserve_kit.errors import Problem, PushRefused, UsageError, did_you_mean, file_error, listed
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, GRAPH_FILE, WARMUP_FILE, Signature, TensorSpec
from tfserve_kit.savedmodel.signatures import batch_axes
from tfserve_kit.tensors import dtypes, from_proto, to_proto
from tfserve_kit.tensors.proto import header

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
# The log of a request that carries examples, by method name; all others are predict logs.
_LOGS = {CLASSIFY: "classify_log", REGRESS: "regress_log"}
_METHODS = {log: method for method, log in _LOGS.items()}


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
        yield "is not a PredictionLog"
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
        return f"is not a valid tensor: {error}"
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
        if task.method_name in _LOGS:
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


MAX_RECORDS = 1000

_MAX_MESSAGE_BYTES = (1 << 31) - 1  # of protobuf
_MAX_FAULTS = 10  # told of one record, which may hold any number


def build(
    inputs: Mapping[str, NDArray[Any]],
    signature: Signature,
    *,
    model: str,
    sizes: Sequence[int],
) -> Iterator[bytes]:
    """Yield a PredictionLog for each batch size, serialized.

    A signature whose method is classify or regress gets a log of that kind, any other a predict
    log.

    Args:
        inputs: array per alias; string [examples] of serialized tf.Example for classify and
            regress. Rows are repeated or cut where the first axis is open.
        signature: the one to call.
        model: name of the model that the requests carry; no server looks at it.
        sizes: rows of the requests. Where their number is fixed, there is one record with that;
            and one with the inputs as they are where none has rows, or they are parts of ragged or
            sparse tensors.

    Raises:
        UsageError: an input that the signature does not have, no rows to repeat, a size below 1, a
            request too large for protobuf, or rows for classify and regress other than tf.Examples.
    """
    if unknown := sorted(inputs.keys() - signature.inputs.keys()):
        remedy = did_you_mean(unknown[0], signature.inputs)
        raise UsageError(f"signature {signature.name!r} has no input {unknown[0]!r}", remedy=remedy)
    axes = batch_axes(signature)
    rows = {
        alias
        for alias, array in inputs.items()
        if axes.counts(alias, array) or (alias in axes.rows and signature.inputs[alias].shape)
    }
    if axes.fixed_rows is not None:
        sizes = (axes.fixed_rows,)
    if axes.composites or not rows:
        yield _log(inputs, signature, model)
        return
    for size in dict.fromkeys(sizes):
        if size < 1:
            raise UsageError(f"a batch cannot have {size} rows", remedy="give sizes from 1 on")
        batch = {
            alias: _resized(alias, array, size) if alias in rows else array
            for alias, array in inputs.items()
        }
        yield _log(batch, signature, model)


def _resized(alias: str, array: NDArray[Any], size: int) -> NDArray[Any]:
    if array.ndim == 0 or not len(array):
        raise UsageError(
            f"input {alias!r} has no rows, so no batch can be made of them",
            remedy="give at least one row of it",
        )
    if array.nbytes // len(array) * size > _MAX_MESSAGE_BYTES:
        text = f"{size} rows of input {alias!r} are more than the 2 GiB that a request may have"
        raise UsageError(text, remedy="give a smaller batch size")
    resized: NDArray[Any] = array[np.arange(size) % len(array)]
    return resized


def _log(inputs: Mapping[str, NDArray[Any]], signature: Signature, model: str) -> bytes:
    log = protos.PredictionLog()
    request = getattr(log, _LOGS.get(signature.method_name, "predict_log")).request
    request.model_spec.name = model
    request.model_spec.signature_name = signature.name
    if signature.method_name in _LOGS:
        _add_examples(request.input.example_list, inputs, signature)
    else:
        for alias, array in inputs.items():
            request.inputs[alias].CopyFrom(to_proto(array))
    data: bytes = log.SerializeToString(deterministic=True)
    return data


def _add_examples(examples: Any, inputs: Mapping[str, NDArray[Any]], signature: Signature) -> None:
    for array in inputs.values():
        for row in array.ravel().tolist():
            try:
                examples.examples.add().ParseFromString(row)
            except (TypeError, protos.DecodeError) as error:
                raise UsageError(
                    f"signature {signature.name!r} takes tf.Example, which {row!r:.40} is none of",
                    remedy='give JSON: {"examples": [{"feature": value}]}',
                ) from error


def read_sizes(batching_config: Path) -> tuple[int, ...]:
    """Return the batch sizes that a server's batching parameters lead to.

    Args:
        batching_config: a file for `--batching_parameters_file`.

    Returns:
        Its allowed_batch_sizes, or its max_batch_size alone; empty if it sets neither.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        found = protos.from_text("BatchingParameters", batching_config.read_text("utf-8-sig"))
    except OSError as error:
        raise file_error(UsageError, "read", batching_config, error) from error
    except ValueError as error:  # of the text format or of UTF-8
        raise UsageError(
            f"{batching_config} holds no batching parameters: {error}",
            remedy="write such as max_batch_size { value: 32 }; `tfkit render` writes one",
        ) from error
    largest = (found.max_batch_size.value,) if found.HasField("max_batch_size") else ()
    return tuple(found.allowed_batch_sizes) or largest


def write(
    version_dir: Path, records: Iterable[bytes], *, replace: bool = False, tag: str = "serve"
) -> Path:
    """Store warm-up requests with a model; a file that a server would stumble over is not left.

    Args:
        version_dir: a SavedModel directory. Versions in service should not change.
        records: serialized PredictionLog messages.
        replace: whether a file that is there already may be replaced.
        tag: of the graph that will be served.

    Returns:
        The path of the written file.

    Raises:
        UsageError: there is a file already, more than 1,000 records, or a folder that cannot be
            written to.
        PushRefused: a record does not fit the model.
    """
    file = version_dir / WARMUP_FILE
    if file.exists() and not replace:
        raise UsageError(f"{file} exists already", remedy="replace it with --replace")
    with _replaced(file) as unfinished:
        if tfrecord.write(unfinished, itertools.islice(records, MAX_RECORDS + 1)) > MAX_RECORDS:
            raise UsageError(
                f"these are more than the {MAX_RECORDS:,} records that a server replays",
                remedy="give fewer batch sizes or signatures",
            )
        if found := _problems(unfinished, version_dir, tag):
            raise refusal(found)
    return file


def refusal(found: Sequence[Problem]) -> PushRefused:
    """Return the error for warm-up requests with problems."""
    lines = listed(found)
    return PushRefused(f"a server would refuse the model for its warm-up requests:{lines}")


@contextlib.contextmanager
def _replaced(file: Path) -> Iterator[Path]:
    """Give a file to write; it gets the name only if all went well, else it is gone."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(exist_ok=True)
        yield unfinished
        unfinished.replace(file)
    except OSError as error:
        raise file_error(UsageError, "write", file, error) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
            file.parent.rmdir()  # fails unless it is empty


def problems(version_dir: Path, *, tag: str = "serve") -> list[Problem]:
    """Return what would make a server refuse a version for its warm-up requests.

    The model is not run, so a request that its graph refuses is not noticed. One record at a time
    is in memory.

    Args:
        version_dir: a SavedModel directory; without warm-up requests it has no problem.
        tag: of the graph that will be served.
    """
    file = version_dir / WARMUP_FILE
    return _problems(file, version_dir, tag) if file.exists() else []


def _problems(file: Path, version_dir: Path, tag: str) -> list[Problem]:
    try:
        signatures = savedmodel.read_signatures(version_dir, tag=tag)
    except (OSError, ValueError) as error:
        return [
            Problem(
                GRAPH_FILE, f"cannot be read to check the warm-up requests: {error}", "export again"
            )
        ]
    found: list[Problem] = []
    try:
        for number, record in enumerate(tfrecord.read(file), 1):
            if number > MAX_RECORDS:
                found.append(_problem(f"holds more than {MAX_RECORDS:,} records"))
                break
            first = itertools.islice(faults(record, signatures), _MAX_FAULTS)
            found += [_problem(f"record {number}: {fault}") for fault in first]
    except tfrecord.TFRecordError as error:
        found.append(_problem(str(error)))
    except OSError as error:
        found.append(_problem(f"cannot be read: {error.strerror}"))
    return found


def _problem(message: str) -> Problem:
    return Problem(WARMUP_FILE.as_posix(), message, "write it with `tfkit warmup --replace`")
