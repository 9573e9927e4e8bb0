"""Replays the requests stored with a version before it is served.

Source: tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc: a file of at most 1,000
PredictionLog records, and any that fails fails the load.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.embedded import claims
from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.ledger import BudgetExceeded, Ledger
from tfserve_kit.embedded.limits import MOST_BODY_BYTES
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel.tfrecord import masked_crc
from tfserve_kit.savedmodel.warmup import MAX_RECORDS, WARMUP_FILE

__all__ = ["MAX_RECORDS", "WARMUP_FILE", "records", "replay"]

_HEAD_BYTES, _FOOT_BYTES = 12, 4  # length and its checksum; checksum of the data


def records(file: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file (tensorflow/core/lib/io/record_reader.cc).

    A file that ends within the head of a record counts as complete.

    Raises:
        ServingError: the file is damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        while len(head := stream.read(_HEAD_BYTES)) == _HEAD_BYTES:
            start = stream.tell() - _HEAD_BYTES
            if masked_crc(head[:8]) != head[8:]:
                hint = "" if start else " (Is this even a TFRecord file?)"
                raise _lost(f"corrupted record at {start}{hint}")
            (length,) = struct.unpack("<Q", head[:8])
            if stream.tell() + length + _FOOT_BYTES > size:
                reason = "Read less bytes than requested"
                raise _lost(f"truncated record at {start}' failed with {reason}")
            if length > MOST_BODY_BYTES:
                text = f"Warmup record at {start} of {file} has {length} bytes"
                raise invalid(f"{text}; {MOST_BODY_BYTES} at most can be sent")
            data = stream.read(length)
            if stream.read(_FOOT_BYTES) != masked_crc(data):
                raise _lost(f"corrupted record at {start + _HEAD_BYTES}")
            yield data


def replay(
    file: Path, send: Callable[[str, Any, Call], None], *, passes: int, ledger: Ledger
) -> int:
    """Send every stored request `passes` times.

    Args:
        file: the stored requests.
        send: takes the name of the method (`Predict`, `Classify`, `Regress`, `MultiInference`),
            the request message and the call; raises ServingError.
        passes: how often each request is sent.
        ledger: what each request may make the server hold.

    Returns:
        How many records there were.

    Raises:
        ServingError: the file cannot be read, or a request failed or claims too much.
    """
    count = 0
    for count, data in enumerate(records(file), 1):
        try:
            _replay(data, file, send, passes, ledger)
        except BudgetExceeded as error:
            raise ServingError(
                error.code, f"Warmup record {count} of {file}: {error.message}"
            ) from error
        if count > MAX_RECORDS:
            raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}")
    return count


def _replay(
    data: bytes, file: Path, send: Callable[[str, Any, Call], None], passes: int, ledger: Ledger
) -> None:
    with ledger.account("warm-up") as account:
        account.take(len(data) + claims.of_message("PredictionLog", data), "the message")
        method, message = _request(data, file)
        held_bytes = account.held_bytes
        for _ in range(passes):
            send(method, message, Call(account))
            account.keep(held_bytes)


_METHODS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}


def _request(data: bytes, file: Path) -> tuple[str, Any]:
    try:
        log = protos.PredictionLog.FromString(data)
    except protos.DecodeError as error:
        text = data.decode("utf-8", "replace")
        raise invalid(f"Failed to parse warmup record: {text} from {file}") from error
    kind = log.WhichOneof("log_type")
    if kind not in _METHODS:
        raise ServingError(
            Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind or 'LOG_TYPE_NOT_SET'}"
        )
    return _METHODS[kind], getattr(log, kind).request


def _lost(what: str) -> ServingError:
    text = f"{what}. Please verify your warmup data is in TFRecord format."
    return ServingError(Code.DATA_LOSS, text)
