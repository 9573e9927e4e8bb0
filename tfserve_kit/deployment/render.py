"""A deployment becomes the text files that tensorflow_model_server reads.

Templates are Jinja2, in `templates/`. Each rendered text is parsed back into its protobuf message
and compared with what the deployment says before anything uses it, so no name can break out of its
quotes and no template can go wrong unnoticed.
"""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from tfserve_kit import protos
from tfserve_kit.deployment.flags import BATCHING_CONFIG, MODEL_CONFIG, MONITORING_CONFIG
from tfserve_kit.deployment.spec import Batching, Spec
from tfserve_kit.errors import Problem, SpecError

# The message each file must parse as.
MESSAGES = {
    MODEL_CONFIG: "ModelServerConfig",
    BATCHING_CONFIG: "BatchingParameters",
    MONITORING_CONFIG: "MonitoringConfig",
}
# Fields that BatchingParameters wraps in messages, to tell "not set" from zero.
_WRAPPED = (
    "max_batch_size",
    "batch_timeout_micros",
    "max_enqueued_batches",
    "num_batch_threads",
    "thread_pool_name",
    "enable_large_batch_splitting",
    "max_execution_batch_size",
)


def render(spec: Spec, *, templates: Path | None = None) -> dict[str, str]:
    """Return the configuration files of a deployment: name to text.

    A file that would be empty is left out, since a real server does not start with one.

    Args:
        spec: a checked deployment.
        templates: a folder whose templates replace ours, one by one.

    Raises:
        SpecError: a template cannot be rendered, or its result is not the message it should be.
    """
    names = [MODEL_CONFIG]
    names += [BATCHING_CONFIG] if spec.batching else []
    names += [MONITORING_CONFIG] if spec.monitoring else []
    values = {
        "models": spec.models,
        "batching": spec.batching,
        "monitoring": spec.monitoring,
        "wrapped": _WRAPPED,
    }
    files = {name: text(name, values, templates=templates) for name in names}
    for name, content in files.items():
        _check(name, content, spec)
    return {name: content for name, content in files.items() if content}


_TEMPLATES = "give a folder that holds templates such as model_config.txt.j2 with --templates"
_MEND = "correct the template in the folder of --templates; without it tfkit's own is taken"


def text(name: str, values: Mapping[str, Any], *, templates: Path | None = None) -> str:
    """Render one template, `<name>.j2`.

    Raises:
        SpecError: the template is missing, broken, or uses a value that is not given; or
            `templates` is not a folder.
    """
    if templates and not templates.is_dir():
        raise SpecError(str(templates), [Problem("", "is not a folder of templates", _TEMPLATES)])
    folders = [str(templates)] if templates else []
    loader = jinja2.FileSystemLoader([*folders, str(_template_folder())])
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (not HTML pages; pbtext quotes every value)
    )
    environment.filters["pbtext"] = pbtext
    environment.filters["toml"] = toml
    environment.filters["promql"] = promql
    try:
        return environment.get_template(f"{name}.j2").render(values)
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"line {line}" if line else ""
        raise SpecError(f"template {name}.j2", [Problem(where, str(error), _MEND)]) from error


def _template_folder() -> Path:
    """Return the folder of our templates: in the installed package, or at the top of a checkout."""
    installed = Path(str(resources.files("tfserve_kit"))) / "templates"
    return installed if installed.is_dir() else installed.parent.parent / "templates"


def toml(value: str) -> str:
    """Return text as a quoted TOML string, good as a key and as a value."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def promql(value: str) -> str:
    """Return text as a quoted string of PromQL, on one line of YAML."""
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda c: f"\\u{ord(c[0]):04x}", toml(value))


def pbtext(value: float | str) -> str:
    """Return a scalar in protobuf text format; text is quoted and escaped byte by byte.

    Args:
        value: a number, bool or text.

    Raises:
        TypeError: the value is not a scalar.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        # str(), not repr(): an undefined variable of a template raises here and tells its name.
        raise TypeError(f"{value!s:.80} is not a scalar of the text format")
    plain = {byte: chr(byte) for byte in range(0x20, 0x7F) if chr(byte) not in "\"'\\"}
    return '"' + "".join(plain.get(byte, f"\\{byte:03o}") for byte in value.encode()) + '"'


def _check(name: str, content: str, spec: Spec) -> None:
    try:
        message = protos.from_text(MESSAGES[name], content)
    except protos.TextFormatError as error:
        where = f"line {error.line}" if error.line else ""
        raise SpecError(f"rendered {name}", [Problem(where, error.reason, _MEND)]) from error
    if found := _differences(name, message, spec):
        raise SpecError(f"rendered {name}", found)


def _differences(name: str, message: Any, spec: Spec) -> list[Problem]:
    """Compare a parsed file with the values of the deployment that it was made from."""
    if name == MODEL_CONFIG:
        return _model_differences(message.model_config_list.config, spec)
    if name == BATCHING_CONFIG and spec.batching:
        return _batching_differences(message, spec.batching)
    if name == MONITORING_CONFIG and spec.monitoring:
        page = message.prometheus_config
        return _unequal(
            "monitoring",
            prometheus=(page.enable, spec.monitoring.prometheus),
            path=(page.path, spec.monitoring.path),
        )
    return []


def _model_differences(configs: Any, spec: Spec) -> list[Problem]:
    have, want = sorted(config.name for config in configs), sorted(spec.models)
    if have != want:
        return [Problem("models", f"the file serves {have}, not {want}", _MEND)]
    found = []
    for config in configs:
        model = spec.models[config.name]
        found += _unequal(
            f"models.{config.name}",
            base_path=(config.base_path, model.base_path),
            platform=(config.model_platform, model.platform),
            versions=(_policy(config), model.versions.model_dump(exclude_defaults=True)),
            labels=(dict(config.version_labels), model.labels),
        )
    return found


def _policy(config: Any) -> dict[str, Any]:
    """Return the version policy of a ModelConfig in the words of the deployment file."""
    policy = config.model_version_policy
    if policy.HasField("all"):
        return {"all": True}
    if policy.HasField("specific"):
        return {"specific": tuple(policy.specific.versions)}
    return {"latest": policy.latest.num_versions or 1}


def _batching_differences(message: Any, batching: Batching) -> list[Problem]:
    pairs = {
        field: (
            getattr(message, field).value if message.HasField(field) else None,
            getattr(batching, field),
        )
        for field in _WRAPPED
    }
    sizes = (tuple(message.allowed_batch_sizes), batching.allowed_batch_sizes)
    pad = (message.pad_variable_length_inputs, batching.pad_variable_length_inputs)
    return _unequal("batching", **pairs, allowed_batch_sizes=sizes, pad_variable_length_inputs=pad)


def _unequal(section: str, **pairs: tuple[Any, Any]) -> list[Problem]:
    """Return a problem for each key whose value in the file is not the one that was wanted."""
    return [
        Problem(f"{section}.{key}", f"the file says {have!r}, not {want!r}", _MEND)
        for key, (have, want) in pairs.items()
        if have != want
    ]
