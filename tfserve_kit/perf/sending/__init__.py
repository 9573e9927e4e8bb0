"""Sending: drives a server with a load, and notes what becomes of each request.

`run` is all there is to it. gRPC without TLS and REST go through clients of our own that one
thread drives (`http2`, `http1`): a client library made for calls takes several times as much
of the CPU, and would measure itself. gRPC with TLS goes through grpcio.
"""

import threading
from collections.abc import Callable, Sequence

from tfserve_kit.perf.load import Load, Payload, check, shares
from tfserve_kit.perf.samples import Samples
from tfserve_kit.progress import SILENT, Progress


def run(
    load: Load,
    payloads: Sequence[Payload],
    *,
    stop: threading.Event | None = None,
    progress: Progress = SILENT,
    started: Callable[[int], object] = int,
) -> Samples:
    """Send a load and return a sample of every request, by their sequence.

    Payloads are sent in turn. Every request that was due is in the samples: answered, failed,
    lost, timed out (DEADLINE_EXCEEDED) or cancelled at the end. `sent_ns` is when a request was
    handed to its connection; one that waits there, because the server takes no more at once or
    has to be connected to anew, waits as a part of its service time. Bytes are those of messages
    and bodies, without what the protocols add. An answer to a payload that expects something is a
    success if it holds that; see `judging`, and `load.tally`.

    Args:
        load: where to send, when, and over what.
        payloads: what to send.
        stop: once set, nothing more is sent; answers are waited for `load.grace_s`, and what is
            still in flight then is cancelled. Ctrl-C does the same, in the main thread; a second
            one raises KeyboardInterrupt.
        progress: is told how many requests have ended, and the first message of each failure; a
            `driving.SnapshotListener` is told more.
        started: called once all connections stand, with the moment that the samples count from,
            on `time.monotonic_ns`'s clock.

    Raises:
        UsageError: the load makes no sense; see `Load`.
        ServerUnreachable: there is no connection to begin with.
    """
    from tfserve_kit.perf.sending import workers

    check(load, payloads)
    stop = stop or threading.Event()
    parts = shares(load)
    with workers.stopped_by_ctrl_c(stop):
        if len(parts) == 1:
            return workers.alone(parts[0], payloads, stop, progress, started)
        return workers.together(parts, payloads, stop, progress, started)
