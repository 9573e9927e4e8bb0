"""The status codes that every answer of a model server bears.

Source: absl/status/status.h; the numbers are also gRPC's.
"""

from enum import IntEnum


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


def invalid(message: str) -> ServingError:
    """Return an INVALID_ARGUMENT error, the most frequent kind."""
    return ServingError(Code.INVALID_ARGUMENT, message)
