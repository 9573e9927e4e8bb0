"""Configuration files in protobuf text format, and what a list of models must fulfil.

Source: tensorflow_serving/model_servers/server_core.cc (checks and error texts).
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.embedded.status import CheckFailed, Code, ServingError, invalid

_log = logging.getLogger(__name__)

# Values of the deprecated ModelType.
_NO_TYPE, _TENSORFLOW_TYPE = 0, 1
_TENSORFLOW = "tensorflow"
# A path from the root, or a scheme as tsl/platform/path.cc (ParseURI) knows them.
_ABSOLUTE = re.compile(r"/|[A-Za-z][0-9A-Za-z.]*://")


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
    """Refuse a list of ModelConfig messages for what can be seen before all else.

    Raises:
        ServingError: a name twice, or a relative base path.
    """
    seen = set()
    for config in configs:
        if config.name in seen:
            raise invalid(f"Illegal to list model {config.name} multiple times in config list")
        seen.add(config.name)
    for config in configs:
        if not _ABSOLUTE.match(config.base_path):
            raise invalid(
                f"Expected model {config.name} to have an absolute path or URI; "
                f"got base_path()={config.base_path}"
            )


def platform(config: Any) -> str:
    """Return a model's platform, also where only the deprecated type is set.

    Raises:
        ServingError: it has none, two, or one that does not exist.
    """
    if config.model_type != _NO_TYPE:
        if config.model_platform:
            raise invalid(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                f"ModelServerConfig::model_platform, model name is {config.name}"
            )
        if config.model_type != _TENSORFLOW_TYPE:
            text = f"ModelServerConfig::model_type choice {config.model_type} not supported."
            raise invalid(text)
        return _TENSORFLOW
    if not config.model_platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {config.name}"
        )
    return str(config.model_platform)


def check_changes(current: Mapping[str, Any], configs: Iterable[Any]) -> None:
    """Refuse another platform for a model that is there already; raises ServingError."""
    for config in configs:
        if config.name not in current:
            continue
        before, after = platform(current[config.name]), platform(config)
        if before != after:
            raise invalid(
                f"Illegal to change a model's platform. For model {config.name} platform was "
                f"{before} and new platform requested is {after}"
            )


def check_platforms(configs: Iterable[Any]) -> None:
    """Refuse a platform that this server does not have; raises ServingError."""
    for config in configs:
        wanted = platform(config)
        if wanted != _TENSORFLOW:
            raise invalid(f"Model {config.name} requests unsupported platform {wanted}")


def check_logging(configs: Iterable[Any]) -> None:
    """Refuse the logging of requests; raises ServingError.

    The official server finds out when the models have been loaded, and leaves them so.
    """
    if any(config.HasField("logging_config") for config in configs):
        raise invalid("No request-logger-creator provided.")
