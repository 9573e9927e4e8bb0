"""A command line of tensorflow_model_server as typed settings of the embedded engine.

Source: tensorflow_serving/model_servers/main.cc and server.cc (checks and error texts).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.flags import FLAGS, FlagValue

# Flags that this engine acts on.
_SUPPORTED = frozenset(
    {
        "port",
        "rest_api_port",
        "rest_api_num_threads",
        "model_config_file",
        "model_name",
        "model_base_path",
        "file_system_poll_wait_seconds",
        "max_num_load_retries",
        "load_retry_interval_micros",
        "num_load_threads",
        "saved_model_tags",
        "grpc_max_threads",
        "tensorflow_session_parallelism",
        "tensorflow_intra_op_parallelism",
        "tensorflow_inter_op_parallelism",
        "enable_serialization_as_tensor_content",
        "version",
    }
)
# Flags that change nothing here: either value is already how this engine works.
_MOOT = frozenset(
    {
        "flush_filesystem_caches",
        "remove_unused_fields_from_bundle_metagraph",
        "num_unload_threads",
        "enable_profiler",
        "skip_initialize_tpu",
        "per_process_gpu_memory_fraction",
    }
)
# Values of the deprecated ModelType.
_NO_TYPE, _TENSORFLOW_TYPE = 0, 1


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How models are loaded: graph tags and thread counts (0 lets tensorflow decide)."""

    tags: tuple[str, ...] = ("serve",)
    intra_op_parallelism: int = 0
    inter_op_parallelism: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the embedded engine can be told.

    Attributes:
        models: the ModelConfig messages to serve.
        grpc_port: TCP port of gRPC.
        rest_port: TCP port of REST, None for none.
        bind_address: where to listen; the official server always listens on all addresses.
        poll_wait_s: pause between looks for new versions, in seconds; 0 looks once, negative never.
        max_load_retries: how often a failed load is repeated.
        load_retry_interval_s: pause before a repetition, in seconds.
        load_threads: models that load at the same time.
    """

    models: tuple[Any, ...]
    grpc_port: int = 8500
    rest_port: int | None = None
    bind_address: str = "0.0.0.0"  # noqa: S104 (the official server's only choice)
    grpc_threads: int = 8
    rest_threads: int = 8
    poll_wait_s: float = 1.0
    max_load_retries: int = 5
    load_retry_interval_s: float = 60.0
    load_threads: int = 1
    answer_with_content: bool = False
    session: SessionOptions = SessionOptions()


def from_flags(values: Mapping[str, FlagValue], *, bind_address: str) -> Settings:
    """Return the settings that parsed flags stand for.

    Raises:
        ServingError: a flag this engine does not have, values that contradict, or a configuration
            file that cannot be used.
    """
    _refuse_unsupported(values)
    flags: Mapping[str, Any] = values
    if not flags["port"]:
        raise invalid(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
        )
    return Settings(
        models=_models(flags),
        grpc_port=flags["port"],
        rest_port=flags["rest_api_port"] or None,
        bind_address=bind_address,
        grpc_threads=max(1, flags["grpc_max_threads"]),
        rest_threads=max(1, flags["rest_api_num_threads"]),
        poll_wait_s=flags["file_system_poll_wait_seconds"],
        max_load_retries=flags["max_num_load_retries"],
        load_retry_interval_s=flags["load_retry_interval_micros"] / 1e6,
        load_threads=max(1, flags["num_load_threads"]),
        answer_with_content=flags["enable_serialization_as_tensor_content"],
        session=_session(flags),
    )


def _refuse_unsupported(values: Mapping[str, FlagValue]) -> None:
    for name, flag in FLAGS.items():
        if values[name] != flag.default and name not in _SUPPORTED | _MOOT | {
            "enable_model_warmup"
        }:
            raise ServingError(
                Code.UNIMPLEMENTED, f"the embedded engine does not have the flag --{name}"
            )


def _session(flags: Mapping[str, Any]) -> SessionOptions:
    both = flags["tensorflow_session_parallelism"]
    intra = flags["tensorflow_intra_op_parallelism"]
    inter = flags["tensorflow_inter_op_parallelism"]
    if both and intra and inter:
        raise invalid(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
        )
    tags = tuple(tag for tag in flags["saved_model_tags"].split(",") if tag)
    return SessionOptions(tags, intra or both, inter or both)


def _models(flags: Mapping[str, Any]) -> tuple[Any, ...]:
    if flags["model_config_file"]:
        message = read_text_proto("ModelServerConfig", flags["model_config_file"])
        if message.WhichOneof("config") == "custom_model_config":
            raise invalid("ModelServer does not yet support custom model config.")
        configs = tuple(message.model_config_list.config)
    elif flags["model_base_path"]:
        configs = (
            protos.ModelConfig(
                name=flags["model_name"],
                base_path=flags["model_base_path"],
                model_platform="tensorflow",
            ),
        )
    else:
        raise invalid(
            "Both server_options.model_base_path and server_options.model_config_file are empty!"
        )
    check_models(configs)
    return configs


def check_models(configs: tuple[Any, ...]) -> None:
    """Refuse a list of models that the official server would refuse.

    Raises:
        ServingError: a name twice, a relative base path, another platform, request logging, or
            version labels (which this engine does not have).
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
        _check_platform(config)
        if config.version_labels:
            text = f"the embedded engine has no version labels, which model {config.name} asks for"
            raise ServingError(Code.UNIMPLEMENTED, text)


def _check_platform(config: Any) -> None:
    if config.model_type and config.model_platform:
        raise invalid(
            "Illegal setting both ModelServerConfig::model_type (deprecated) "
            "and ModelServerConfig::model_platform."
        )
    if config.model_type not in {_NO_TYPE, _TENSORFLOW_TYPE}:
        text = f"ModelServerConfig::model_type choice {config.model_type} not supported."
        raise invalid(text)
    if not (config.model_type or config.model_platform):
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) "
            "nor ModelServerConfig::model_platform."
        )
    if config.model_platform not in {"", "tensorflow"}:
        text = f"PlatformConfigMap has no entry for platform {config.model_platform}"
        raise ServingError(Code.FAILED_PRECONDITION, text)


def read_text_proto(message: str, file: str) -> Any:
    """Read a text-format file.

    Raises:
        ServingError: in the official server's words; the parser's own reason is added.
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
        raise invalid(f"Invalid protobuf file: '{file}'") from error
