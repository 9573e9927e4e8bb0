"""Replays the requests stored with a version before it is served.

Source: tensorflow_serving/servables/tensorflow/saved_model_warmup_util.cc: a file of at most 1,000
PredictionLog records, and any that fails fails the load.
"""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.embedded.status import Code, ServingError, invalid

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORDS = 1000

_HEAD_BYTES, _FOOT_BYTES = 12, 4  # length and its checksum; checksum of the data


def records(file: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file (tensorflow/core/lib/io/record_reader.cc).

    Raises:
        ServingError: the file is truncated.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        while head := stream.read(_HEAD_BYTES):
            if len(head) < _HEAD_BYTES:
                raise _truncated(stream.tell())
            (length,) = struct.unpack("<Q", head[:8])
            if stream.tell() + length + _FOOT_BYTES > size:
                raise _truncated(stream.tell())
            yield stream.read(length)
            stream.seek(_FOOT_BYTES, os.SEEK_CUR)


def replay(version_dir: Path, send: Callable[[str, Any], None], *, passes: int) -> int:
    """Send every stored request `passes` times.

    Args:
        version_dir: the version's directory; without a warm-up file nothing happens.
        send: takes the name of the method (`Predict`, `Classify`, `Regress`, `MultiInference`) and
            the request message; raises ServingError.
        passes: how often the whole file is replayed.

    Returns:
        How many requests were sent.

    Raises:
        ServingError: the file cannot be read, or a request failed.
    """
    file = version_dir / WARMUP_FILE
    if not passes or not file.is_file():
        return 0
    requests = [_request(data) for data in records(file)]
    if len(requests) > MAX_RECORDS:
        raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}")
    for _ in range(passes):
        for method, message in requests:
            send(method, message)
    return passes * len(requests)


_METHODS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}


def _request(data: bytes) -> tuple[str, Any]:
    try:
        log = protos.PredictionLog.FromString(data)
    except protos.DecodeError as error:
        raise invalid("Failed to parse warmup record") from error
    kind = log.WhichOneof("log_type")
    if kind not in _METHODS:
        raise ServingError(
            Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind or 'LOG_TYPE_NOT_SET'}"
        )
    return _METHODS[kind], getattr(log, kind).request


def _truncated(offset: int) -> ServingError:
    return ServingError(Code.DATA_LOSS, f"truncated record at {offset}")
