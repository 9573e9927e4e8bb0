"""What happened to each request of a run: raw, complete, and saved as it is."""

import csv
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError, file_error
from tfserve_kit.tensors import numpy_files

# Times are nanoseconds since the start of the run, on one monotonic clock for all workers.
SAMPLE = np.dtype([
    ("sequence", "i8"),  # number of the request, from 0
    ("due_ns", "i8"),  # when it should have been sent; in a closed loop, when its slot was free
    ("free_ns", "i8"),  # when the sender was free to send it
    ("sent_ns", "i8"),
    ("first_byte_ns", "i8"),  # of the answer; `done_ns` where the sender cannot tell
    ("done_ns", "i8"),
    ("status", "i2"),  # 0, a gRPC status code, or one of those below
    ("sent_bytes", "i4"),
    ("received_bytes", "i4"),
    ("worker", "i2"),
    ("replica", "i2"),  # which server of a fleet, by its place in the URL; -1 if it was not sent
])  # fmt: skip

OK = 0
CANCELLED_AT_END = 100
CONNECTION_LOST = 101
UNREADABLE_ANSWER = 102
# Answers that their protocol calls good, and that are none.
EMPTY_ANSWER = 103
ERROR_AS_ANSWER = 104
PAGE_AS_ANSWER = 105
MISSING_OUTPUT = 106
WRONG_DTYPE = 107
WRONG_RANK = 108
WRONG_ROWS = 109
WRONG_SHAPE = 110

# Source of the gRPC names: https://grpc.io/docs/guides/status-codes/
_STATUS_NAMES: Mapping[int, str] = dict(enumerate((
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
))) | {
    CANCELLED_AT_END: "cancelled at the end",
    CONNECTION_LOST: "connection lost",
    UNREADABLE_ANSWER: "unreadable answer",
    EMPTY_ANSWER: "empty answer",
    ERROR_AS_ANSWER: "error as answer",
    PAGE_AS_ANSWER: "page as answer",
    MISSING_OUTPUT: "missing output",
    WRONG_DTYPE: "wrong dtype",
    WRONG_RANK: "wrong rank",
    WRONG_ROWS: "wrong rows",
    WRONG_SHAPE: "wrong shape",
}  # fmt: skip

Samples = NDArray[np.void]  # of dtype SAMPLE, shape [requests]
Nanoseconds = NDArray[np.int64]

# Raised when a file of today could no longer be read as this module reads it.
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened during a run.

    Attributes:
        at_ns: when, in nanoseconds since the start of the run.
        what: what, in a few words.
    """

    at_ns: int
    what: str


@dataclass(frozen=True, slots=True)
class Run:
    """All that is known of one run.

    Attributes:
        samples: one record of dtype SAMPLE per request, none left out.
        settings: what was asked for, as JSON can hold it.
        environment: where it was measured, see `measuring.describe_environment`.
        marks: what happened meanwhile.
        server: what the server said of itself, see `metrics.Watch`.
        answers: how the answers were checked, see `measuring.checked`; empty if they were not.
    """

    samples: Samples
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    server: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict)


def status_name(code: int) -> str:
    """Return the name of a sample's status."""
    return _STATUS_NAMES.get(code, f"status {code}")


def latency_ns(samples: Samples) -> Nanoseconds:
    """Return due to done of each sample, int64 [requests], in nanoseconds."""
    found: Nanoseconds = samples["done_ns"] - samples["due_ns"]
    return found


def service_ns(samples: Samples) -> Nanoseconds:
    """Return sent to done of each sample, int64 [requests], in nanoseconds."""
    found: Nanoseconds = samples["done_ns"] - samples["sent_ns"]
    return found


def lag_ns(samples: Samples) -> Nanoseconds:
    """Return how late the generator was although it was free, int64 [requests], in nanoseconds."""
    found: Nanoseconds = samples["sent_ns"] - np.maximum(samples["due_ns"], samples["free_ns"])
    return found


def succeeded(samples: Samples) -> Samples:
    """Return the samples whose answer was a success."""
    found: Samples = samples[samples["status"] == OK]
    return found


def is_error(samples: Samples) -> NDArray[np.bool_]:
    """Return which samples failed, bool [requests]; what had no answer at the end did not."""
    mask: NDArray[np.bool_] = (samples["status"] != OK) & (samples["status"] != CANCELLED_AT_END)
    return mask


def end_ns(samples: Samples) -> int:
    """Return when the last request was done, in nanoseconds; 0 without any."""
    return int(samples["done_ns"].max(initial=0))


def write(run: Run, file: Path) -> None:
    """Save a run as `.npz`: `samples` as they are, and `about`, a JSON text in UTF-8.

    Raises:
        UsageError: the file cannot be written.
    """
    about = {
        "format": _FORMAT,
        "settings": run.settings,
        "environment": run.environment,
        "marks": [asdict(mark) for mark in run.marks],
        "server": run.server,
        "answers": run.answers,
    }
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    try:
        with file.open("wb") as stream:
            np.savez_compressed(stream, samples=run.samples, about=text)
    except OSError as error:
        raise _unwritable(file, error) from error


_GIVE = "give a file that `tfkit perf --output FILE` wrote"


def read(file: Path) -> Run:
    """Return a run that `write` saved.

    Raises:
        UsageError: there is no such file, or it holds no run.
    """
    try:
        arrays: Any = numpy_files.read(file)
        samples, about = arrays["samples"], json.loads(arrays["about"].tobytes())
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']}")  # noqa: TRY301 (one translation for all)
        samples = _of_today(samples)
        if samples.dtype != SAMPLE:
            raise ValueError(f"columns {samples.dtype}")  # noqa: TRY301
        marks = tuple(Mark(**mark) for mark in about["marks"])
        rest = about["server"], about.get("answers", {})  # which older files lack
        return Run(samples, about["settings"], about["environment"], marks, *rest)
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if isinstance(error, OSError) and error.errno:
            raise file_error(UsageError, "read", file, error, _GIVE) from error
        raise UsageError(
            f"{file} is not a readable run: {error}",
            remedy=_GIVE,
        ) from error


def _of_today(samples: Samples) -> Samples:
    """Return the samples of an older file as of the one server that it knew."""
    if samples.dtype != np.dtype(SAMPLE.descr[:-1]):
        return samples
    found = np.zeros(samples.shape, SAMPLE)
    for name in samples.dtype.names or ():
        found[name] = samples[name]
    return found


def write_csv(samples: Samples, file: Path) -> None:
    """Save all samples as CSV, a column for each field of SAMPLE.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(SAMPLE.names or ())
            writer.writerows(samples.tolist())
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> UsageError:
    return file_error(UsageError, "write", file, error)


CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE = 1, 2, 4, 13, 14

# The reverse of TensorFlow Serving's table, tensorflow_serving/util/net_http/public/
# response_code_enum.h and tensorflow_serving/model_servers/http_server.cc; what several codes
# share goes to the one that a server at work sends most.
_OF_REST: Mapping[int, int] = {
    200: OK, 400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 408: CANCELLED, 409: 10, 412: 9, 413: 8,
    429: 8, 500: INTERNAL, 501: 12, 502: UNAVAILABLE, 503: UNAVAILABLE, 504: DEADLINE_EXCEEDED,
}  # fmt: skip
# Source: https://grpc.github.io/grpc/core/md_doc_http-grpc-status-mapping.html
_OF_GRPC_PROXY: Mapping[int, int] = {
    400: INTERNAL, 401: 16, 403: 7, 404: 12, 429: UNAVAILABLE, 502: UNAVAILABLE, 503: UNAVAILABLE,
    504: UNAVAILABLE,
}  # fmt: skip
# Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Errors".
_OF_RESET: Mapping[int, int] = {8: CANCELLED, 11: 8, 12: 7}


def status_of_http(http_status: int) -> int:
    """Return the gRPC code that an answer of the REST API stands for."""
    return _OF_REST.get(http_status, UNKNOWN)


def status_of_proxy(http_status: int) -> int:
    """Return the gRPC code of an HTTP answer that bears no grpc-status, such as a proxy's."""
    return _OF_GRPC_PROXY.get(http_status, UNKNOWN)


def status_of_reset(code: int) -> int:
    """Return the gRPC code of a stream that was reset with an error code of HTTP/2."""
    return _OF_RESET.get(code, INTERNAL)
