"""The exit codes of every command: the one place where errors become numbers.

`docs/exit-codes.md` is generated from this table.
"""

from tfserve_kit import errors

OK = 0
BUG = 1
USAGE = 2
SPEC_INVALID = 3
ENGINE_UNAVAILABLE = 4
SERVER_FAILED = 5
REQUEST_FAILED = 6
GATE_FAILED = 7  # of commands themselves, not of an error
PUSH_REFUSED = 8
INTERRUPTED = 130

# The first class that an error is an instance of decides.
TABLE: tuple[tuple[int, type[errors.TfkitError], str], ...] = (
    (USAGE, errors.UsageError, "the command line is wrong"),
    (SPEC_INVALID, errors.SpecError, "the deployment file or a template is invalid"),
    (ENGINE_UNAVAILABLE, errors.EngineUnavailable, "this machine cannot run the engine"),
    (SERVER_FAILED, errors.ServerError, "a server failed, never became ready, or does not exist"),
    (REQUEST_FAILED, errors.RequestError, "a request to a server failed"),
    (PUSH_REFUSED, errors.PushRefused,
     "a model version was not pushed or rolled back, or is damaged"),
)  # fmt: skip


def exit_code(error: errors.TfkitError) -> int:
    """Return the exit code of an error."""
    for code, kind, _ in TABLE:
        if isinstance(error, kind):
            return code
    return BUG


def rows() -> list[tuple[int, str]]:
    """Return every exit code and its meaning, in order."""
    fixed = [
        (OK, "done"),
        (BUG, "a bug in tfkit; please report it"),
        (GATE_FAILED, "a gate failed: speed, quality, capacity, or a swap that requests noticed"),
        (INTERRUPTED, "ended by Ctrl-C, SIGTERM or a closed terminal or pipe, after cleaning up"),
    ]
    return sorted([*fixed, *((code, meaning) for code, _, meaning in TABLE)])
