"""What clients may ask of the embedded server: every limit in one place.

docs/embedded.md shows them as a table, `rows`.
"""

import contextlib
import os
from pathlib import Path

from tfserve_kit.tensors.proto import MAX_FILLED_BYTES

GIB = 1 << 30

# All that clients make the server hold: what they send, what it stands for once it is read, and
# answers until they are taken. Never more than this share of the memory there is.
MOST_HELD_BYTES = 8 * GIB
MOST_HELD_SHARE = 2  # a half
# The same for one request: the largest message (2 GiB), what becomes of it, and its answer.
MOST_REQUEST_BYTES = 6 * GIB

# Predictions of one protocol that wait for their turn.
MOST_WAITING = 1280
# gRPC calls that have begun and whose message has not arrived; the oldest give way to new ones.
MOST_UNHEARD = 4096
# A gRPC message, and the headers of a call.
MOST_MESSAGE_BYTES = (1 << 31) - 1
MOST_METADATA_BYTES = 16_384
# Loading models takes descriptors too, and must not fail because clients have them all.
RESERVED_DESCRIPTORS = 512
# gRPC calls on one connection.
MOST_STREAMS = 1024
# Request line and headers of a REST request, and its body.
MOST_HEAD_BYTES = 65_536
MOST_BODY_BYTES = (1 << 31) - 1
# REST requests that are read from a connection before they are answered.
MOST_PIPELINED = 16
# How long a request may take to arrive, or an answer to be taken, without getting on; a request
# gets on that brings so much of its body in that time.
PATIENCE_S = 60.0
STEADY_BYTES = 1 << 20
# How long a client that was refused may go on sending: closing at once might lose the answer.
LINGER_S = 2.0
# What a compressed message may become: so much, or so many times what was sent.
MOST_INFLATED_BYTES = 100_000_000
MOST_INFLATED_TIMES = 50

# What is filled in for what was left out: values of tensors, padding of batches.
MOST_FILLED_BYTES = MAX_FILLED_BYTES
# What a request needs besides is not counted up to this; longer texts of errors are cut.
UNCOUNTED_BYTES = 65_536
MOST_ERROR_BYTES = 65_536
# tensorflow's conversion of strings crashes beyond these dimensions; numpy ends at 64.
MOST_STRING_DIMENSIONS = 32
MOST_DIMENSIONS = 64
# Choices of outputs of one version that are kept compiled.
MOST_CALLABLES = 64

_CGROUPS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

_PROCESSORS = Path("/sys/fs/cgroup/cpu.max")


def most_held_bytes() -> int:
    """Return how many bytes clients may hold on this machine or in this container."""
    memory_bytes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            memory_bytes.append(int(file.read_text()))
    return min(MOST_HELD_BYTES, min(memory_bytes) // MOST_HELD_SHARE)


def usable_processors() -> int:
    """Return how many processors this process may use at once on this machine or in its container.

    A container's quota counts as so many whole ones.
    """
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    else:
        found = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # not there, or "max"
        quota, period = map(int, _PROCESSORS.read_text().split())
        found = min(found, -(-quota // period))
    return max(1, found)


def rows() -> list[tuple[str, str, str]]:
    """Return the table of the documentation: what is limited, to what, and what happens beyond."""
    full = "503 or, for a request that is too large by itself, 413; RESOURCE_EXHAUSTED"
    deep = "400; INVALID_ARGUMENT"
    slow = f"{PATIENCE_S:.0f} s"
    inflated = f"{MOST_INFLATED_BYTES // 10**6} MB, or {MOST_INFLATED_TIMES} times what was sent"
    return [
        ("request line and headers", _size(MOST_HEAD_BYTES), "431"),
        ("body of a REST request; gRPC message", "2 GiB - 1 byte", "413; RESOURCE_EXHAUSTED"),
        ("a compressed body or message, inflated", inflated, "400; RESOURCE_EXHAUSTED"),
        (
            "all that clients make the server hold: requests, what they become, answers",
            f"{_size(MOST_HELD_BYTES)}, or half of the memory if that is less",
            full,
        ),
        ("the same for one client", "four times what is still free", full),
        ("the same for one request", f"{_size(MOST_REQUEST_BYTES)}, or what one client may", full),
        (
            f"time for a request to arrive, unless {_size(STEADY_BYTES)} of it does in that time",
            slow,
            "408; DEADLINE_EXCEEDED",
        ),
        ("time for an answer to be taken", f"{slow} without progress", "closed"),
        ("predictions that wait for their turn, by protocol", f"{MOST_WAITING}", full[:3]),
        (
            "connections, of gRPC and REST together",
            f"descriptors of the process, less {RESERVED_DESCRIPTORS}, or half of them",
            "further ones wait",
        ),
        ("headers of a gRPC call", _size(MOST_METADATA_BYTES), "closed"),
        ("gRPC calls on one connection", f"{MOST_STREAMS}", "further ones wait"),
        ("gRPC calls that have begun and sent no message", f"{MOST_UNHEARD}", "the oldest end"),
        ("values left out of tensors, and filled in", _size(MOST_FILLED_BYTES), deep),
        (
            "padding of a batch",
            _size(MOST_FILLED_BYTES),
            "its requests run alone, or RESOURCE_EXHAUSTED",
        ),
        ("dimensions of a tensor", f"{MOST_DIMENSIONS}", deep),
        ("dimensions of a string tensor that is fed", f"{MOST_STRING_DIMENSIONS}", deep),
        ("text of an error", _size(MOST_ERROR_BYTES), "cut"),
    ]


def _size(size_bytes: int) -> str:
    """Return a size that is a whole number of a unit."""
    for unit, each in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes % each == 0:
            return f"{size_bytes // each} {unit}"
    return f"{size_bytes} bytes"
