"""Requests that were recorded, read to be sent again.

Source: tensorflow_serving/apis/prediction_log.proto (what a server's own request log holds, and a
model's warm-up requests).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.clients.classifier import choose_signature
from tfserve_kit.clients.files import inputs_of_body
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.perf.payloads import Inputs
from tfserve_kit.savedmodel import Signature, tfrecord, warmup
from tfserve_kit.tensors import from_proto

_MOST_LINE_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request as it was recorded.

    Attributes:
        inputs: array per input alias.
        signature: the name of the one it called; empty for `serving_default`.
        at_s: when it came, in seconds by any clock; None where the log does not say.
    """

    inputs: Inputs
    signature: str
    at_s: float | None


def read(file: Path, signatures: Mapping[str, Signature], signature: str = "") -> list[Recorded]:
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
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    if not found:
        raise UsageError(f"{file} holds no requests", remedy="give a log with at least one")
    return sorted(found, key=lambda each: each.at_s or 0.0)  # logs are often written at the end


def _lines(file: Path, signatures: Mapping[str, Signature], signature: str) -> Iterator[Recorded]:
    with file.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(_MOST_LINE_BYTES + 1), b""), 1):
            if len(line) > _MOST_LINE_BYTES:
                text = f"{file}, line {number} has more than {_MOST_LINE_BYTES:,} bytes"
                raise InvalidRequest(text, remedy="write a request on each line")
            if line.strip():
                yield _line(line, f"{file}, line {number}", signatures, signature)


def _line(line: bytes, place: str, signatures: Mapping[str, Signature], signature: str) -> Recorded:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{place} is no JSON: {error}") from error
    at_s: Any = document.pop("at", None) if isinstance(document, dict) else None
    if type(at_s) not in {int, float} or not math.isfinite(at_s):
        raise InvalidRequest(
            f"{place} has no time", remedy='write {"at": SECONDS, "instances": ...} on each line'
        )
    name = document.get("signature_name", signature)
    if not isinstance(name, str):
        raise InvalidRequest(f"{place}: signature_name is {name!r:.80}, which is no text")
    called = choose_signature(signatures, name)
    return Recorded(inputs_of_body(document, called, place), called.name, float(at_s))


def _records(file: Path, signatures: Mapping[str, Signature]) -> Iterator[Recorded]:
    try:
        for number, record in enumerate(tfrecord.read(file), start=1):
            yield _record(record, f"{file}, record {number}", signatures)
    except tfrecord.TFRecordError as error:
        raise InvalidRequest(
            f"{file} is neither JSON Lines nor TFRecords: {error}",
            remedy="see `tfkit perf --replay` in docs/perf.md",
        ) from error


def _record(record: bytes, place: str, signatures: Mapping[str, Signature]) -> Recorded:
    for fault in warmup.faults(record, signatures):
        raise InvalidRequest(f"{place} {fault}", remedy="give a log of requests to this model")
    log: Any = protos.PredictionLog.FromString(record)
    kind = log.WhichOneof("log_type")
    if kind != "predict_log":
        raise InvalidRequest(f"{place} is a {kind}; only Predict requests can be sent again")
    request = log.predict_log.request
    inputs = {alias: from_proto(tensor) for alias, tensor in request.inputs.items()}
    return Recorded(inputs, request.model_spec.signature_name, None)
