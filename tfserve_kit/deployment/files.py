"""Deployment files: TOML to `Spec` and its problems, all at once."""

import contextlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tfserve_kit import bounded, redaction
from tfserve_kit.deployment import flags
from tfserve_kit.deployment.schema import Client, Spec
from tfserve_kit.errors import Problem, SpecError, did_you_mean

DEFAULT_FILE = "tfkit.toml"

_ADVICE = {
    "missing": "add it",
    "string_type": "write it in quotes",
    "int_type": "write a whole number",
}
_FLAGS = ("server", "flags")
# What a shell would put a value in the place of.
_VARIABLE = re.compile(r"(?:^|(?<=/))\$(?:\w+|\{\w+\})(?=/|$)|^%\w+%")
# Sections whose values may be secret.
_SECRET = (("docker", "env"), ("client", "headers"))
FILE = "file:"  # before the path of a file that holds a header's value
_MOST_BYTES = 16 << 20
_TOO_DEEP = "is nested too deeply"


def load(file: Path, *, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Spec:
    """Read a deployment file; relative base paths become absolute, seen from its folder.

    Args:
        file: the TOML file.
        overrides: keys by section, such as `server`, that win over the file's.

    Raises:
        SpecError: with every problem found.
        OSError: the file cannot be read.
    """
    document = _document(file)
    for section, values in (overrides or {}).items():
        if isinstance(found := document.setdefault(section, {}), dict):
            found.update(values)
    return build(document, source=str(file), folder=file.parent)


def build(document: dict[str, Any], *, source: str, folder: Path) -> Spec:
    """Turn decoded TOML (or the same shape of data) into a checked deployment.

    Args:
        document: sections as nested dicts.
        source: what the error message calls it.
        folder: what relative base paths start from.

    Raises:
        SpecError: with every problem found.
    """
    found = _flag_problems(document)
    try:
        spec = _validated(document, source, found)
    except RecursionError as error:
        raise SpecError(source, [Problem("", _TOO_DEEP)]) from error
    models = {}
    for name, model in spec.models.items():
        try:
            base_path = _absolute(model.base_path, folder)
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            text = f"is {model.base_path!r:.200}, which is no path: {reason!s:.200}"
            found.append(Problem(f"models.{name}.base_path", text))
            continue
        models[name] = model.model_copy(update={"base_path": base_path})
    if found:
        raise SpecError(source, found)
    server = spec.server.model_copy(update={"flags": _with_files(spec.server.flags, folder)})
    client = _client_with_files(spec.client, folder)
    return spec.model_copy(update={"models": models, "server": server, "client": client})


def client(file: Path) -> Client:
    """Read the section `[client]` of a deployment file alone; what else is in it does not count.

    Raises:
        SpecError: it is wrong, or the file is no TOML.
        OSError: the file cannot be read.
    """
    section = _document(file).get("client", {})
    try:
        return _client_with_files(Client.model_validate(section), file.parent)
    except ValidationError as error:
        details = [{**detail, "loc": ("client", *detail["loc"])} for detail in error.errors()]
        raise SpecError(str(file), [_problem(detail) for detail in details]) from None  # type: ignore[arg-type]


def _document(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(bounded.read_text(file, _MOST_BYTES))
    except ValueError as error:  # also of UTF-8, of numbers with thousands of digits, of size
        raise SpecError(str(file), [Problem("", f"is not TOML: {error}")]) from error
    except RecursionError as error:
        raise SpecError(str(file), [Problem("", _TOO_DEEP)]) from error


def _with_files(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return flags whose files are named so that they are found from anywhere.

    A file that is neither beside the deployment file nor in the current folder may be there where
    the server runs.
    """
    return {
        name: _place(value, folder) if name.endswith("_file") and value else value
        for name, value in given.items()
    }


def _place(name: str, folder: Path) -> str:
    for path in (folder / name, Path(name)):
        with contextlib.suppress(OSError, ValueError):
            if path.is_file():
                return str(path.absolute())
    return name


def _client_with_files(client: Client, folder: Path) -> Client:
    files = {
        key: str((folder / Path(value).expanduser()).absolute())
        for key in ("ca_file", "cert", "key")
        if (value := getattr(client, key)) is not None
    }
    headers = {
        name: f"{FILE}{(folder / value.removeprefix(FILE)).absolute()}"
        if value.startswith(FILE)
        else value
        for name, value in client.headers.items()
    }
    return client.model_copy(update={**files, "headers": headers})


def _validated(document: dict[str, Any], source: str, found: list[Problem]) -> Spec:
    try:
        return Spec.model_validate(document)
    except ValidationError as error:
        # The flags' own check says more about a single flag.
        details = [detail for detail in error.errors() if _about_section(detail["loc"])]
        raise SpecError(source, [_problem(detail) for detail in details] + found) from error


def _about_section(location: tuple[int | str, ...]) -> bool:
    return location[:2] != _FLAGS or location == _FLAGS


def _flag_problems(document: dict[str, Any]) -> list[Problem]:
    """Look at the extra flags of a document that may be wrong in any way."""
    server = document.get("server")
    extra = server.get("flags") if isinstance(server, dict) else None
    return flags.problems(extra) if isinstance(extra, dict) else []


def _absolute(base_path: str, folder: Path) -> str:
    if "://" in base_path:
        return base_path
    if (name := _VARIABLE.search(base_path)) and not (folder / base_path).exists():
        raise ValueError(f"{name[0]} stands for nothing here; write it out, or ~ for your home")
    path = (folder / Path(base_path).expanduser()).absolute().resolve()
    # From Python 3.13 on, a loop of links is only noticed by who follows it.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        path.stat()
    return str(path)


def _problem(detail: ErrorDetails) -> Problem:
    *parents, key = detail["loc"] or ("",)
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return Problem(path, "is not a known key", did_you_mean(str(key), _keys(parents)))
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] not in {"missing", "value_error"}:
        given = redaction.HIDDEN if detail["loc"][:2] in _SECRET else f"{detail['input']!r:.80}"
        message = f"{message[:1].lower()}{message[1:]}, but is {given}"
    return Problem(path, message, _ADVICE.get(detail["type"], ""))


def _keys(location: list[int | str]) -> list[str]:
    """Return the keys that the schema knows at a place."""
    kind: Any = Spec
    for part in location:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = _section(kind.model_fields[str(part)].annotation)
    return list(kind.model_fields) if _is_section(kind) else []


def _section(annotation: Any) -> Any:
    """Return the section class in `Batching | None`, or the annotation itself."""
    sections = [arg for arg in get_args(annotation) if _is_section(arg)]
    return sections[0] if sections and get_origin(annotation) is not dict else annotation


def _is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
