"""Deployment files: TOML to `Spec` and its problems, all at once."""

import contextlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tfserve_kit import flags, redaction
from tfserve_kit.errors import Problem, SpecError, did_you_mean
from tfserve_kit.spec.schema import Spec

DEFAULT_FILE = "tfkit.toml"

_ADVICE = {
    "missing": "add it",
    "string_type": "write it in quotes",
    "int_type": "write a whole number",
}
_FLAGS = ("server", "flags")
# What a shell would put a value in the place of.
_VARIABLE = re.compile(r"(?:^|(?<=/))\$(?:\w+|\{\w+\})(?=/|$)|^%\w+%")
_ENV = ("docker", "env")  # whose values may be secret


def load(file: Path, *, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Spec:
    """Read a deployment file; relative base paths become absolute, seen from its folder.

    Args:
        file: the TOML file.
        overrides: keys by section, such as `server`, that win over the file's.

    Raises:
        SpecError: with every problem found.
        OSError: the file cannot be read.
    """
    try:
        document = tomllib.loads(file.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(str(file), [Problem("", f"is not TOML: {error}")]) from error
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
        spec = Spec.model_validate(document)
    except ValidationError as error:
        # The flags' own check says more about a single flag.
        details = [detail for detail in error.errors() if _about_section(detail["loc"])]
        raise SpecError(source, [_problem(detail) for detail in details] + found) from error
    models = {}
    for name, model in spec.models.items():
        try:
            base_path = _absolute(model.base_path, folder)
        except (OSError, RuntimeError, ValueError) as error:
            text = f"is {model.base_path!r}, which is no path: {error}"
            found.append(Problem(f"models.{name}.base_path", text))
            continue
        models[name] = model.model_copy(update={"base_path": base_path})
    if found:
        raise SpecError(source, found)
    return spec.model_copy(update={"models": models})


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
        given = redaction.HIDDEN if detail["loc"][:2] == _ENV else f"{detail['input']!r:.80}"
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
