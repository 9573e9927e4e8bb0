"""What to send: arrays that are drawn, read, recorded or cut, and requests as bytes.

All of it is made before the clock starts. Source of recorded requests:
tensorflow_serving/apis/prediction_log.proto (what a server's own request log holds, and a model's
warm-up requests).

Requests for a server that runs, made before anything is measured; one goes ahead as a trial.
"""

import json
import math
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos, tfrecord
from tfserve_kit.clients import Target, connect
from tfserve_kit.clients.files import Arrays, inputs_of_body, read_inputs
from tfserve_kit.clients.grpc import GrpcProtocol
from tfserve_kit.clients.options import Headers, OptionNames, for_grpc, for_http
from tfserve_kit.clients.protocol import GrpcRequest
from tfserve_kit.clients.rest import RestProtocol
from tfserve_kit.errors import InvalidRequest, UsageError, file_error
from tfserve_kit.perf.load import Payload, Protocol, protocol_of
from tfserve_kit.perf.sending import judging
from tfserve_kit.perf.sending.judging import Expected
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature, TensorSpec, choose_signature, warmup
from tfserve_kit.savedmodel.signatures import BatchAxes, Composite, batch_axes, counted
from tfserve_kit.tensors import dtypes, from_proto


def random_inputs(signature: Signature, batch: int, seed: int) -> Arrays:
    """Return random inputs that fit a signature.

    A parameter, an input without a batch axis, is the same in all of them: ones, or true. The parts
    of a ragged tensor go together: each of its rows has one value.

    Args:
        signature: floats are drawn from 0 to 1, integers from 0 to 9, open axes have size 1.
        batch: how many rows; where the signature fixes their number, that or 1.
        seed: the same seed gives the same inputs.

    Raises:
        UsageError: an input is a string, of a type that cannot be sent, or part of a sparse tensor;
            or the signature does not take so many rows.
    """
    axes = batch_axes(signature)
    rows = _possible_rows(signature, axes, batch)
    source = np.random.default_rng(seed)
    drawn = {
        alias: _ones(alias, spec) if alias in axes.parameters else _draw(alias, spec, rows, source)
        for alias, spec in signature.inputs.items()
    }
    for composite in axes.composites:
        drawn |= _levels(composite, signature, drawn)
    return drawn


def _possible_rows(signature: Signature, axes: BatchAxes, batch: int) -> int:
    """Return how many rows to draw: one stands for as few as the signature takes.

    Raises:
        UsageError: it does not take so many.
    """
    if axes.fixed_rows is not None and batch in {1, axes.fixed_rows}:
        return axes.fixed_rows
    if batch == 1 or axes.rows or axes.composites:
        if axes.fixed_rows is None:
            return batch
        why = f"takes {counted(axes.fixed_rows)} in each request"
    else:
        why = "has no input with a batch axis"
    raise UsageError(
        f"signature {signature.name!r} {why}, so {batch} rows cannot be sent at once",
        remedy="leave the number of rows out",
    )


def _levels(composite: Composite, signature: Signature, drawn: Arrays) -> Arrays:
    """Return the parts of a ragged tensor in whose rows there is one value each.

    Raises:
        UsageError: it is a sparse tensor, whose shape the signature does not tell.
    """
    if composite.kind == "sparse":
        raise UsageError(
            f"{composite}, which cannot be filled with random values", remedy=f"give {_GIVE}"
        )
    values, *levels = composite.aliases
    ends = [size for each in levels for size in signature.inputs[each].shape or () if size]
    rows = ends[0] - 1 if ends else len(drawn[values])
    splits = {each: np.arange(rows + 1, dtype=drawn[each].dtype) for each in levels}
    return {values: drawn[values][np.arange(rows) % len(drawn[values])], **splits}


def assumptions(signature: Signature, *, drawn: bool = True) -> list[str]:
    """Return what requests hold that nobody asked for, as sentences for whoever reads the result.

    Args:
        signature: the one that is called.
        drawn: whether `random_inputs` makes up the inputs.
    """
    axes = batch_axes(signature)
    found = []
    if axes.fixed_rows is not None:
        found.append(
            f"each request has {counted(axes.fixed_rows)}: the model accepts only "
            f"{axes.fixed_rows} (change: export it with an open first axis)"
        )
    if drawn and axes.parameters:
        ones = {alias: _ones(alias, signature.inputs[alias]) for alias in sorted(axes.parameters)}
        shown = (f"{alias!r} = {str(each.flat[0]).lower()}" for alias, each in ones.items())
        found.append(
            "inputs without a batch axis have the same value in every request: "
            f"{', '.join(shown)} (change: {_GIVE})"
        )
    found += [
        f"{each}: each row gets one value (change: {_GIVE})" for each in axes.composites if drawn
    ]
    unknown = [alias for alias, spec in signature.inputs.items() if drawn and spec.shape is None]
    return found + [
        f"input {alias!r} is of unknown rank: one number for each row is drawn, which the model "
        f"may refuse (change: {_GIVE})"
        for alias in unknown
    ]


_GIVE = "--input FILE with your own values, .npz or JSON"


def recorded_inputs(
    arrays: Mapping[str, NDArray[Any]], batch: int, axes: BatchAxes | None = None
) -> list[Arrays]:
    """Return arrays cut into inputs of `batch` rows each; what is left over at the end is not sent.

    Args:
        arrays: array [rows, ...] per input alias, all with as many rows.
        batch: rows of each input.
        axes: which of the inputs have rows, the others go with each; all of them if left out.

    Raises:
        UsageError: the arrays differ in rows, or have fewer than one batch.
    """
    axes = axes or BatchAxes.of_rows(arrays)
    rows = {alias: len(array) if array.ndim else 0 for alias, array in arrays.items()
            if alias in axes.rows}  # fmt: skip
    if len(set(rows.values())) != 1 or min(rows.values()) < batch:
        raise UsageError(
            f"inputs with so many rows cannot be sent in batches of {batch}: {rows}",
            remedy="give as many rows for each input, and at least one batch",
        )
    count = min(rows.values()) // batch
    return [
        axes.taken(arrays, slice(number * batch, (number + 1) * batch)) for number in range(count)
    ]


def encoded(
    protocol: Protocol,
    url: str,
    target: Target,
    inputs: Sequence[Arrays],
    expected: Sequence[Expected | None] | None = None,
    headers: Headers = MappingProxyType({}),
) -> list[Payload]:
    """Return a Predict request for each of several inputs, as bytes; see `predict_payload`.

    They are sent in turn: a server that remembers answers, or whose cost depends on the input,
    shows it. `expected` is what the answer to each must hold; left out, none is looked into.
    """
    pairs = zip(inputs, expected or [None] * len(inputs), strict=True)
    return [predict_payload(protocol, url, target, *each, headers) for each in pairs]


def _draw(alias: str, spec: TensorSpec, rows: int, source: np.random.Generator) -> NDArray[Any]:
    dtype = _numpy(alias, spec)
    first, *others = (None,) if spec.shape is None else spec.shape
    shape = [rows if first is None else first, *(size or 1 for size in others)]
    if dtype.kind in "fcV":  # V: bfloat16
        return source.random(shape).astype(dtype)
    return source.integers(0, 2 if dtype.kind == "b" else 10, shape).astype(dtype)


def _ones(alias: str, spec: TensorSpec) -> NDArray[Any]:
    """Return what a parameter is, of which only the type is known."""
    return np.ones([size or 1 for size in spec.shape or ()], _numpy(alias, spec))


def _numpy(alias: str, spec: TensorSpec) -> np.dtype[Any]:
    if spec.dtype is None or spec.dtype.numpy is None or spec.dtype is dtypes.STRING:
        raise UsageError(
            f"input {alias!r} is {spec}, which cannot be filled with random values",
            remedy=f"give {_GIVE}; or a picture",
        )
    return spec.dtype.numpy


RANDOM = "random"
_DISTINCT = 8  # enough that no cache of the machine holds just one


def inputs_of(
    source: str,
    signature: Signature,
    batch: int,
    note: Preprocessing,
    graph: PictureGraph | None = None,
) -> list[Arrays]:
    """Return the inputs of each distinct request.

    Args:
        source: `random`; a file as `tfkit request` takes it; or a folder of such files, in the
            order of their names.
        signature: the one that will be called.
        batch: rows in each request; 1 takes a file as it is. A file with one row is repeated, one
            with more is cut into several requests.
        note: how pictures are prepared.
        graph: the version's graph, which tells what the note leaves open.

    Raises:
        UsageError: there is nothing to send, a file has too few rows, or the signature does not
            take so many.
        InvalidRequest: a file cannot be read or does not fit the signature.
    """
    if source == RANDOM:
        return [random_inputs(signature, batch, seed) for seed in range(_DISTINCT)]
    path = Path(source)
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{source} holds no files", remedy="give a file, a folder or random")
    axes = batch_axes(signature)
    read = (read_inputs([file], signature, note, graph=graph, any_rows=True) for file in files)
    return [inputs for arrays in read for inputs in _batches(arrays, batch, axes)]


def _batches(arrays: Arrays, batch: int, axes: BatchAxes) -> list[Arrays]:
    rows = axes.row_counts(arrays)
    if batch == 1 and axes.fixed_rows is None:
        return [arrays]
    batch = axes.fixed_rows or 1 if batch == 1 else batch
    if axes.fixed_rows not in {None, batch} or not (rows and axes.are_cuttable):
        why = ", ".join(map(str, axes.composites)) or (
            f"each request must have {counted(axes.fixed_rows)}"
            if axes.fixed_rows
            else "no input has a batch axis"
        )
        raise UsageError(
            f"no requests of {batch} rows can be made: {why}", remedy="leave out --batch"
        )
    if set(rows.values()) == {1}:
        return [axes.taken(arrays, np.zeros(batch, np.intp))]
    return recorded_inputs(arrays, batch, axes)


_JSON = ((b"content-type", b"application/json"),)


def predict_payload(
    protocol: Protocol,
    url: str,
    target: Target,
    inputs: Mapping[str, NDArray[Any]],
    expects: Expected | None = None,
    headers: Headers = MappingProxyType({}),
) -> Payload:
    """Return a Predict request.

    Args:
        protocol: `grpc` or `rest`.
        url: the server, as errors name it.
        target: model, version or label, and signature.
        inputs: array per input alias, of the dtype and shape the signature names.
        expects: what an answer must hold; None if it is not to be looked into.
        headers: sent along.

    Raises:
        UsageError: a header cannot be sent.
        InvalidRequest: an input cannot be sent.
    """
    wire = GrpcProtocol(url) if protocol == "grpc" else RestProtocol(url)
    sent = wire.predict(target, inputs, (), None).request
    if isinstance(sent, GrpcRequest):
        return Payload(protos.METHODS[sent.method].path, _metadata(headers), sent.body, expects)
    more = ((name.encode(), value.encode("latin-1")) for name, value in for_http(headers).items())
    return Payload(sent.path, (*_JSON, *more), sent.body or b"", expects)


def _metadata(headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """Return metadata as it stands in HTTP/2: bytes as base64."""
    return tuple(
        (name.encode(), b64encode(value) if isinstance(value, bytes) else value.encode())
        for name, value in for_grpc(headers)
    )


_MOST_LINE_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A request as it was recorded.

    Attributes:
        inputs: array per input alias.
        signature: the name of the one it called; empty for `serving_default`.
        at_s: when it came, in seconds by any clock; None where the log does not say.
    """

    inputs: Arrays
    signature: str
    at_s: float | None


def read_log(
    file: Path, signatures: Mapping[str, Signature], signature: str = ""
) -> list[_Recorded]:
    """Return the requests of a log, in the order they came.

    Args:
        file: JSON Lines, each the body of a REST Predict request and its time in seconds as `at`;
            or TFRecords of PredictionLog, which have no times.
        signatures: those of the model to call, whatever name a request gives it.
        signature: what a line calls that names none.

    Raises:
        UsageError: the file cannot be read, holds no request, or calls an unknown signature.
        InvalidRequest: a request is damaged, no Predict request, or does not fit its signature.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(16)
        is_json = head.lstrip()[:1] == b"{" and b"\0" not in head  # else it is the record's length
        lines = _lines(file, signatures, signature) if is_json else _records(file, signatures)
        found = list(lines)
    except OSError as error:
        raise file_error(UsageError, "read", file, error) from error
    if not found:
        raise UsageError(f"{file} holds no requests", remedy="give a log with at least one")
    return sorted(found, key=lambda each: each.at_s or 0.0)  # logs are often written at the end


def _lines(file: Path, signatures: Mapping[str, Signature], signature: str) -> Iterator[_Recorded]:
    with file.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_MOST_LINE_BYTES + 1), b""), 1):
            if len(line) > _MOST_LINE_BYTES:
                text = f"{file}, line {number} has more than {_MOST_LINE_BYTES:,} bytes"
                raise InvalidRequest(text, remedy="write a request on each line")
            if line.strip():
                yield _line(line, f"{file}, line {number}", signatures, signature)


def _line(
    line: bytes, place: str, signatures: Mapping[str, Signature], signature: str
) -> _Recorded:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{place} is not valid JSON: {error}", remedy="write a request as JSON on each line"
        ) from error
    at_s: Any = document.pop("at", None) if isinstance(document, dict) else None
    if type(at_s) not in {int, float} or not math.isfinite(at_s):
        raise InvalidRequest(
            f"{place} has no time", remedy='write {"at": SECONDS, "instances": ...} on each line'
        )
    name = document.get("signature_name", signature)
    if not isinstance(name, str):
        raise InvalidRequest(
            f"{place}: signature_name is {name!r:.80}, not text",
            remedy="write a text, or leave it out",
        )
    called = choose_signature(signatures, name)
    return _Recorded(inputs_of_body(document, called, place), called.name, float(at_s))


def _records(file: Path, signatures: Mapping[str, Signature]) -> Iterator[_Recorded]:
    try:
        for number, record in enumerate(tfrecord.read(file), start=1):
            yield _record(record, f"{file}, record {number}", signatures)
    except tfrecord.TFRecordError as error:
        raise InvalidRequest(
            f"{file} is neither JSON Lines nor TFRecords: {error}",
            remedy="see `tfkit perf --replay` in docs/perf.md",
        ) from error


def _record(record: bytes, place: str, signatures: Mapping[str, Signature]) -> _Recorded:
    for fault in warmup.faults(record, signatures):
        raise InvalidRequest(f"{place} {fault}", remedy="give a log of requests to this model")
    log: Any = protos.PredictionLog.FromString(record)
    kind = log.WhichOneof("log_type")
    if kind != "predict_log":
        raise InvalidRequest(
            f"{place} is a {kind}; only Predict requests can be sent again",
            remedy="leave it out of the log",
        )
    request = log.predict_log.request
    inputs = {alias: from_proto(tensor) for alias, tensor in request.inputs.items()}
    return _Recorded(inputs, request.model_spec.signature_name, None)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Requests, and what they are for.

    Attributes:
        payloads: the requests, to be sent in turn.
        version: the version that answered.
        signature: the one that is called.
        rows: in each request.
        assumed: what was made up beside random rows, as sentences.
        times_s: when recorded requests came, in seconds; empty where nobody knows.
    """

    payloads: Sequence[Payload]
    version: int
    signature: str
    rows: int = 1
    assumed: Sequence[str] = ()
    times_s: Sequence[float] = ()


class Preparer:
    """Makes the same requests for one server after another.

    Args:
        model: name of the model.
        signature: of the model; empty for the only one, or serving_default.
        source: what to send; see `inputs_of`.
        batch: rows in each request.
        base_path: of the model, for its note on how pictures are prepared; None if unknown.
        timeout_s: of the first request.
    """

    def __init__(
        self,
        model: str,
        signature: str = "",
        source: str = RANDOM,
        batch: int = 1,
        *,
        base_path: Path | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._target = Target(model, signature=signature)
        self._source, self._batch, self._base_path = source, batch, base_path
        self._timeout_s = timeout_s
        self._inputs: Sequence[Arrays] | None = None

    def prepare(self, url: str, options: OptionNames | None = None) -> Prepared:
        """Make requests for the server at a URL, and send one.

        Args:
            url: its address.
            options: how it is reached; see `clients.connect`.

        Raises:
            UsageError: there is nothing to send.
            InvalidRequest: it does not fit the signature.
            RequestError: the server does not answer it.
        """
        target = self._target
        with connect(url, **options or {}) as client:
            found = client.metadata(target, timeout_s=self._timeout_s)
            chosen = choose_signature(found.signatures, target.signature)
            if self._inputs is None:
                folder = self._base_path / str(found.version) if self._base_path else None
                note = Preprocessing.read(folder) if folder else Preprocessing()
                graph = PictureGraph(folder, chosen.name)
                self._inputs = inputs_of(self._source, chosen, self._batch, note, graph)
            trial = client.predict(target, self._inputs[0], timeout_s=self._timeout_s)
        expected = judging.of_calls([(chosen, each) for each in self._inputs], trial.outputs)
        headers = (options or {}).get("headers", {})
        made = encoded(protocol_of(url), url, target, self._inputs, expected, headers)
        assumed = assumptions(chosen, drawn=self._source == RANDOM)
        rows = batch_axes(chosen).fixed_rows or self._batch
        return Prepared(made, found.version, chosen.name, rows, assumed)

    def recorded(self, log: Path, url: str, options: OptionNames | None = None) -> Prepared:
        """Make the requests that a log holds, and send the first; see `prepare` and `read_log`."""
        target = self._target
        with connect(url, **options or {}) as client:
            found = client.metadata(target, timeout_s=self._timeout_s)
            requests = read_log(log, found.signatures, target.signature)
            calls = [(replace(target, signature=each.signature), each.inputs) for each in requests]
            trial = client.predict(*calls[0], timeout_s=self._timeout_s)
        called = [
            (choose_signature(found.signatures, each.signature), each.inputs) for each in requests
        ]
        expected = judging.of_calls(called, trial.outputs)
        protocol, headers = protocol_of(url), (options or {}).get("headers", {})
        made = [
            predict_payload(protocol, url, *call, expects, headers)
            for call, expects in zip(calls, expected, strict=True)
        ]
        times_s = [each.at_s for each in requests if each.at_s is not None]
        return Prepared(made, found.version, target.signature, times_s=times_s)
