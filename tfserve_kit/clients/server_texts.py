"""What a server says only in words: the one place where texts of errors are matched.

TensorFlow Serving gives these different refusals the same code as others, and they need another
treatment. Where a text is not recognized the plain meaning of its code counts.

Source: tensorflow/core/kernels/batching_util/batch_resource_base.cc and
tensorflow_serving/batching/batching_session.cc (task size), batch_scheduler_utils.cc and
basic_batch_scheduler.h (full queue); of grpc, message_size_filter.cc (message larger than max),
src/cpp/server/server_cc.cc (threads) and chttp2's server (connections, memory).
"""

import re

_TASK_SIZE = re.compile(
    r"Task size \d{1,9} is larger than maximum (?:input )?batch size (\d{1,9})\b"
)

_QUEUE = (
    "send less at once, or raise max_enqueued_batches, num_batch_threads or max_batch_size in "
    "[batching]"
)
# Words of a refusal, and what helps against it.
_LIMITS = {
    "Server Threadpool Exhausted": "the server answers no more calls at once: send fewer at once, "
    "or raise grpc_max_threads in [server.flags]",
    "batching queue": _QUEUE,
    "batch scheduling queue": _QUEUE,
    "RESOURCE_EXHAUSTED: memory": "the server's gRPC is short of memory: send smaller requests, "
    "or fewer at once",
    "too_many_pings": "the client asks too often whether the server lives: raise its keepalive "
    "time, or set grpc.http2.min_ping_interval_without_data_ms in grpc_channel_arguments",
}


def batch_limit(text: str) -> int | None:
    """Return the largest number of rows, where a request was refused because it has more."""
    found = _TASK_SIZE.search(text)
    return int(found[1]) if found and int(found[1]) > 0 else None


def is_full_queue(text: str) -> bool:
    """Say whether a request was refused, before any work, because the batching queue is full."""
    return "batching queue" in text or "batch scheduling queue" in text


def is_message_too_large(text: str) -> bool:
    """Say whether either side refused a gRPC message for its size."""
    return "message larger than max" in text


def remedy(text: str) -> str | None:
    """Return what to do where a text says which limit of the server was reached, else None."""
    if (limit := batch_limit(text)) is not None:
        rows = "one row" if limit == 1 else f"at most {limit} rows"
        return f"send {rows} at once, as predict_batch does, or raise max_batch_size in [batching]"
    return next((advice for words, advice in _LIMITS.items() if words in text), None)


_MOST_CHARACTERS = 2000


def shortened(text: str) -> str:
    """Return what a server says, without the end of what nobody would read."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]} ... ({len(text):,} characters)"
