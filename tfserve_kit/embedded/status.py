"""The status codes that every answer of a model server bears.

Source: absl/status/status.h; the numbers are also gRPC's.
"""

import logging
from enum import IntEnum

from tfserve_kit.embedded.limits import MOST_ERROR_BYTES

_log = logging.getLogger(__name__)


class Code(IntEnum):
    """The canonical codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServingError(Exception):
    """A request, a load or a start-up that failed, in the terms of the official server.

    Attributes:
        code: canonical code.
        message: the text a client sees.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class CheckFailed(ServingError):
    """A start-up that the official server ends by aborting: its process dies of SIGABRT."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.INVALID_ARGUMENT, message)


def told(error: Exception, what: str) -> ServingError:
    """Return an exception as what a client is told; a fault of ours is a line in the log.

    Never raises, whatever the exception's own text does.

    Args:
        error: what was caught.
        what: what failed, for the log.
    """
    if isinstance(error, ServingError):
        return error
    if isinstance(error, MemoryError):
        return ServingError(Code.RESOURCE_EXHAUSTED, "Out of memory")
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 (its text is a fault by itself)
        text = type(error).__name__
    # One line: whoever finds such a fault could have a traceback written with each request.
    _log.error("%s failed: %s%s", what, text, _place(error))
    return ServingError(Code.INTERNAL, text)


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""


def encoded(text: str, *, errors: str = "replace") -> bytes:
    """Return an error's text as UTF-8 of bounded length; halves of characters do not matter.

    Args:
        text: any text.
        errors: what becomes of what is no Unicode, if it can be: see `str.encode`.
    """
    text = text[:MOST_ERROR_BYTES]
    try:
        content = text.encode("utf-8", errors)
    except UnicodeEncodeError:
        content = text.encode("utf-8", "replace")
    return content[:MOST_ERROR_BYTES]


def invalid(message: str) -> ServingError:
    """Return an INVALID_ARGUMENT error, the most frequent kind."""
    return ServingError(Code.INVALID_ARGUMENT, message)
