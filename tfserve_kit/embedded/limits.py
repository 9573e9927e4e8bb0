"""What clients may ask of the embedded server: every limit in one place.

docs/embedded.md shows them as a table.
"""

import contextlib
import os
from pathlib import Path

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
MOST_UNHEARD = 256
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
MOST_FILLED_BYTES = GIB
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


def most_held_bytes() -> int:
    """Return how many bytes clients may hold on this machine or in this container."""
    memory_bytes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            memory_bytes.append(int(file.read_text()))
    return min(MOST_HELD_BYTES, min(memory_bytes) // MOST_HELD_SHARE)
