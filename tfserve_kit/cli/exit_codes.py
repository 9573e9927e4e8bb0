"""The exit codes of every command: the one place where errors become numbers.

`docs/exit-codes.md` is generated from this table.
"""

from tfserve_kit import errors

OK = 0
BUG = 1
REQUEST_FAILED = 6
INTERRUPTED = 130

# The first class that an error is an instance of decides.
TABLE: tuple[tuple[int, type[errors.TfkitError], str], ...] = (
    (2, errors.UsageError, "the command line is wrong"),
    (3, errors.SpecError, "the deployment file or a template is invalid"),
    (4, errors.EngineUnavailable, "this machine cannot run the engine"),
    (5, errors.ServerError, "a server failed, never became ready, or does not exist"),
    (REQUEST_FAILED, errors.RequestError, "a request to a server failed"),
    (8, errors.PushRefused, "a model version was not pushed or rolled back, or is damaged"),
)
# Used by commands themselves, not by an error.
GATE_FAILED = 7


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
        (GATE_FAILED, "a gate failed: speed, quality, or a swap that requests noticed"),
        (INTERRUPTED, "ended by Ctrl-C, SIGTERM or a closed terminal or pipe, after cleaning up"),
    ]
    return sorted([*fixed, *((code, meaning) for code, _, meaning in TABLE)])
