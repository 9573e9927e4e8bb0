"""Configuration files in protobuf text format, and what a list of models must fulfil.

Source: tensorflow_serving/model_servers/server_core.cc (checks and error texts).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.embedded.status import CheckFailed, Code, ServingError, invalid

_log = logging.getLogger(__name__)

# Values of the deprecated ModelType.
_NO_TYPE, _TENSORFLOW_TYPE = 0, 1


def read_text_proto(message: str, file: str) -> Any:
    """Read a text-format file.

    Raises:
        ServingError: in the official server's words; the parser's own reason goes to the log.
    """
    try:
        text = Path(file).read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise ServingError(Code.NOT_FOUND, f"{file}; {error.strerror}") from error
    if not text:
        raise invalid(f"{file}; Invalid argument")
    try:
        return protos.from_text(message, text)
    except protos.TextFormatError as error:
        full_name = protos.message_class(message).DESCRIPTOR.full_name
        _log.error("Error parsing text-format %s: %s", full_name, error)
        raise invalid(f"Invalid protobuf file: '{file}'") from error


def read_models(file: str) -> tuple[Any, ...]:
    """Read the models of a ModelServerConfig file; checks them as `check_models`.

    Raises:
        ServingError: the file cannot be used.
    """
    message = read_text_proto("ModelServerConfig", file)
    if message.WhichOneof("config") == "custom_model_config":
        raise CheckFailed("ModelServer does not yet support custom model config.")
    configs = tuple(message.model_config_list.config)
    check_models(configs)
    return configs


def check_models(configs: Sequence[Any]) -> None:
    """Refuse a list of ModelConfig messages that the official server would refuse.

    Raises:
        ServingError: a name twice, a relative base path, another platform, or request logging.
    """
    seen = set()
    for config in configs:
        if config.name in seen:
            raise invalid(f"Illegal to list model {config.name} multiple times in config list")
        seen.add(config.name)
        if not (config.base_path.startswith("/") or "://" in config.base_path):
            raise invalid(
                f"Expected model {config.name} to have an absolute path or URI; "
                f"got base_path()={config.base_path}"
            )
        if config.HasField("logging_config"):
            raise invalid("No request-logger-creator provided.")
        _check_type(config)


def _check_type(config: Any) -> None:
    if config.model_type and config.model_platform:
        raise invalid(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {config.name}"
        )
    if config.model_type not in {_NO_TYPE, _TENSORFLOW_TYPE}:
        text = f"ModelServerConfig::model_type choice {config.model_type} not supported."
        raise invalid(text)
    if not (config.model_type or config.model_platform):
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {config.name}"
        )


def platform(config: Any) -> str:
    """Return a model's platform, also where only the deprecated type is set."""
    return "tensorflow" if config.model_type == _TENSORFLOW_TYPE else str(config.model_platform)


def refuse_other_platforms(current: Mapping[str, Any], configs: Iterable[Any]) -> None:
    """Refuse a list of ModelConfig messages that changes a platform, or names an unknown one.

    Raises:
        ServingError: it does.
    """
    for config in configs:
        after = platform(config)
        before = platform(current[config.name]) if config.name in current else after
        if before != after:
            raise invalid(
                f"Illegal to change a model's platform. For model {config.name} platform was "
                f"{before} and new platform requested is {after}"
            )
        if after not in {"", "tensorflow"}:
            text = f"PlatformConfigMap has no entry for platform {after}"
            raise ServingError(Code.FAILED_PRECONDITION, text)
