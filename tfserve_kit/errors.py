"""The errors of tfkit, sorted by what a caller can do about them.

::

    TfkitError                    every error raised on purpose; `remedy` says what to try
    ├── UsageError                the call itself is wrong: fix the arguments
    ├── SpecError                 tfkit.toml or a template is invalid: fix the listed `problems`
    ├── EngineUnavailable         this machine cannot run the engine: install or choose another
    ├── ServerError               a server we manage misbehaves
    │   ├── ServerFailed          it ended or never became ready: read `log_tail`
    │   ├── ServerNotFound        no running server has that name: `tfkit ps`
    │   └── ServerExists          that name is taken: stop it or choose another
    ├── PushRefused               the model repository is unchanged: fix the model or the version
    └── RequestError              a request to a server failed
        ├── ServerUnreachable     nothing answers there: start it, check the address
        ├── ModelNotFound         the server has no such model, version or label
        ├── InvalidRequest        the request can never work: fix the input
        ├── DeadlineExceeded      it took too long: repeat, or raise the timeout
        ├── ServerOverloaded      the server is full: repeat later
        └── ServerFault           the server broke while answering: look at its log

This module knows no exit code, no HTTP status and no gRPC code: `cli/exits.py` and the
tables in `clients/` translate at their edge.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar


class TfkitError(Exception):
    """An expected failure: what went wrong, with which value, and what to try.

    Args:
        message: one sentence that names the failing value.
        remedy: what the caller can do, as an instruction; may be empty.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  Try: {self.remedy}" if self.remedy else self.message


class UsageError(TfkitError):
    """The call itself is wrong."""


class Severity(StrEnum):
    """How bad a problem is, the worst first."""

    ERROR = "error"
    """It cannot work: the deployment is not started, the model is not published."""
    WARNING = "warning"
    """It works, but something is not as it was probably meant."""
    INFO = "info"
    """Good to know."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, or worth telling, about a document, a model or a deployment.

    Attributes:
        path: where, such as `models.resnet.base_path` in a deployment, or a file of a model.
        message: what is so, with its values.
        remedy: what to do about it; may be empty.
        severity: how bad it is.
        rule: what found it: a rule of the linter, or an operation in a graph; may be empty.
    """

    path: str
    message: str
    remedy: str = ""
    severity: Severity = Severity.ERROR
    rule: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return where + self.message + (f" ({self.remedy})" if self.remedy else "")


def worst_first(problem: Problem) -> int:
    """Return the key that sorts problems by how bad they are."""
    return list(Severity).index(problem.severity)


_LONG = 80  # a longer remedy is read more easily in a line of its own


def listed(problems: Sequence[Problem], most: int = 20) -> str:
    """Return problems as the lines that follow an error's first one; of very many the first."""
    lines = [f"\n  - {_of_lines(problem)}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"\n  - and {len(problems) - most:,} more")
    return "".join(lines)


def _of_lines(problem: Problem) -> str:
    if len(problem.remedy) <= _LONG:
        return str(problem)
    return f"{replace(problem, remedy='')}\n    Try: {problem.remedy}"


_MOST_COMPARED, _MOST_NAMED = 1000, 100  # names: a model may have a million signatures


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" with the nearest known name, or all of them where none is near."""
    from difflib import get_close_matches

    names = sorted(known)
    near = get_close_matches(name, names[:_MOST_COMPARED], n=1)
    if near:
        return f"did you mean {near[0]}?"
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return f"choose one of: {', '.join(names[:_MOST_NAMED])}{more}" if names else "there is none"


_Kind = TypeVar("_Kind", bound=TfkitError)

_FILE_REMEDIES = {
    errno.EACCES: "let the user who runs this {verb} it: `ls -ld` shows its permissions",
    errno.EISDIR: "it is a folder: give a file",
    errno.ENOSPC: "free some space, or use another disk",
    errno.EDQUOT: "free some of your quota, or use another disk",
    errno.EROFS: "use a folder on a writable file system",
    errno.ENAMETOOLONG: "give a shorter path",
}
_FILE_REMEDIES[errno.EPERM] = _FILE_REMEDIES[errno.EACCES]


def file_error(
    kind: type[_Kind], verb: str, path: str | os.PathLike[str], error: OSError, remedy: str = ""
) -> _Kind:
    """Return the error for what the file system refuses.

    Args:
        kind: its type.
        verb: what was tried: `read`, `write`.
        path: of the file or folder, as the caller gave it.
        error: what the system says.
        remedy: what to do beside what the error tells.
    """
    known = _FILE_REMEDIES.get(error.errno or 0, "check the path and its permissions")
    known = known.format(verb=verb)
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        known = f"check the path: {lacking(path)}"
    said = error.strerror or str(error)
    advice = "; ".join(filter(None, (known, remedy)))
    if remedy and known.endswith("?"):
        advice = f"{known} Else: {remedy}"
    return kind(f"cannot {verb} {_shown(path)}: {said}", remedy=advice)


def missing(kind: type[_Kind], path: str | os.PathLike[str], remedy: str = "") -> _Kind:
    """Return the error for a file or folder that is not there; see `file_error`."""
    return file_error(kind, "read", path, OSError(errno.ENOENT, os.strerror(errno.ENOENT)), remedy)


def lacking(path: str | os.PathLike[str]) -> str:
    """Return which part of a path is not there, from the root on, and what is called nearly so."""
    full = Path(path).absolute()
    there = next((each for each in full.parents if os.path.isdir(each)), full)  # noqa: PTH112
    name = full.relative_to(there).parts[0] if there != full else ""
    if not name or os.path.lexists(there / name):
        return f"{_shown(there / name)} is there, but is no folder, or a link that leads nowhere"
    try:
        near = _spelled_alike(name, os.listdir(there))  # noqa: PTH208 (of names alone)
    except OSError:
        near = []
    text = f"the folder {_shown(there)} contains no {name!r}"
    return f"{text}; did you mean {_shown(near[0])}?" if near else text


def _spelled_alike(name: str, files: Sequence[str]) -> list[str]:
    """Return the files with nearly that name, the nearest first; a common ending is not enough."""
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(files)[:_MOST_COMPARED])
    return [each for each in near if get_close_matches(Path(name).stem, [Path(each).stem])]


def _shown(path: str | os.PathLike[str]) -> str:
    """Return a path as text, whatever bytes it was made of."""
    return os.fsencode(path).decode("utf-8", "replace")


class SpecError(TfkitError):
    """A deployment file or a template is invalid; `problems` lists every fault found."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{source}: {len(problems)} {noun}{listed(problems)}")
        self.source = source
        self.problems = problems


class EngineUnavailable(TfkitError):
    """The chosen engine cannot run on this machine."""


class ServerError(TfkitError):
    """A server that tfkit manages misbehaves."""


class ServerFailed(ServerError):
    """The server ended, or did not become ready in time.

    Attributes:
        exit_code: exit status of the process, None while it runs or where it is unknown.
        log_tail: the last lines the server wrote, kept as evidence.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None = None,
        log_tail: list[str] | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.exit_code = exit_code
        self.log_tail = log_tail or []

    def __str__(self) -> str:
        if not self.log_tail:
            return super().__str__()
        tail = "".join(f"\n  | {line}" for line in self.log_tail)
        return f"{super().__str__()}\n  Last lines of its log:{tail}"


class ServerNotFound(ServerError):
    """No server of that name runs."""


class ServerExists(ServerError):
    """A server of that name runs already."""


class PushRefused(TfkitError):
    """A model version was not staged; the repository is as it was before."""


class RequestError(TfkitError):
    """A request to a model server failed."""


class ServerUnreachable(RequestError):
    """Nothing answers at the address.

    Attributes:
        url: the address, where it is not known why; something else may answer there.
    """

    def __init__(self, message: str, *, remedy: str = "", url: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.url = url


class ModelNotFound(RequestError):
    """The server does not have the model, version or label."""


class InvalidRequest(RequestError):
    """The request can never succeed as it is."""


class DeadlineExceeded(RequestError):
    """No answer came within the deadline."""


class ServerOverloaded(RequestError):
    """The server refused the request because it is full; it can be repeated."""


class ServerFault(RequestError):
    """The server failed while answering."""
