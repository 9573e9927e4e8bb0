"""A command line of tensorflow_model_server and its configuration files, as typed settings.

Source: tensorflow_serving/model_servers/main.cc, server.cc and server_core.cc (checks and texts).
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfserve_kit import protos
from tfserve_kit.deployment.flags import DEFAULTS, FlagValue
from tfserve_kit.embedded.batching import BatchOptions, batch_options
from tfserve_kit.embedded.metrics import PROMETHEUS_PATH
from tfserve_kit.embedded.status import CheckFailed, Code, ServingError, invalid
from tfserve_kit.errors import did_you_mean

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


def platform_of(config: Any) -> str:
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
        before, after = platform_of(current[config.name]), platform_of(config)
        if before != after:
            raise invalid(
                f"Illegal to change a model's platform. For model {config.name} platform was "
                f"{before} and new platform requested is {after}"
            )


def check_platforms(configs: Iterable[Any]) -> None:
    """Refuse a platform that this server does not have; raises ServingError."""
    for config in configs:
        wanted = platform_of(config)
        if wanted != _TENSORFLOW:
            raise invalid(f"Model {config.name} requests unsupported platform {wanted}")


def check_logging(configs: Iterable[Any]) -> None:
    """Refuse the logging of requests; raises ServingError.

    The official server finds out when the models have been loaded, and leaves them so.
    """
    if any(config.HasField("logging_config") for config in configs):
        raise invalid("No request-logger-creator provided.")


# Flags that nothing here could honour; each is refused when it is given. Value: why.
REFUSED = {
    "use_alts_credentials": "ALTS needs Google's own network",
    "thread_pool_factory_config_file": "its factories are C++ classes linked into the server",
}
# Flags that change nothing here, because either value describes how this engine works. Value: why.
MOOT = {
    "enable_profiler": "there is no profiler service",
    "flush_filesystem_caches": "files are read once and stay in the system's cache",
    "num_unload_threads": "unloads always run in the background, one after the other",
    "remove_unused_fields_from_bundle_metagraph": "only the signatures are kept anyway",
    "skip_initialize_tpu": "the wheel has no TPU support",
    "xla_cpu_compilation_enabled": "only the official server's TFRT runtime asks for it",
    "xla_gpu_compilation_enabled": "only the official server's TFRT runtime asks for it",
}
# Flags that do here what they do there, but for this.
OTHERWISE = {
    "num_load_threads": "0 loads one model at a time, in the background",
    "grpc_max_threads": "predictions at the same time; half as many again for whoever is behind",
    "rest_api_num_threads": "the same; at most 10,000: with more the official server crashes",
    "tensorflow_inter_op_parallelism": "calls of 20 ms and more that compute at once, by kind",
    "prefer_tflite_model": "signatures come from the file; without any, one over all tensors",
}
# With more the official server runs out of threads and crashes.
_MOST_THREADS = 10_000


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How models are loaded.

    Attributes:
        tags: which graph of a SavedModel is loaded.
        config: a ConfigProto message for its session.
        mixed_precision: `bfloat16` or nothing.
    """

    tags: tuple[str, ...] = ("serve",)
    config: Any = field(default_factory=protos.message_class("ConfigProto"))
    mixed_precision: str = ""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How requests are batched; `per_model` reads options from each version's own folder."""

    options: BatchOptions = field(default_factory=BatchOptions)
    threads: int = os.cpu_count() or 1
    thread_pool_name: str = "model_server_batch_threads"
    per_model: bool = False


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts of a server that speaks TLS; `client_verify` asks clients for a certificate."""

    server_key: bytes
    server_cert: bytes
    custom_ca: bytes
    client_verify: bool


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything the embedded engine can be told.

    Attributes:
        models: the ModelConfig messages to serve.
        model_config_file: where they were read from; polled every `config_poll_s` seconds if > 0.
        grpc_port: TCP port of gRPC, None for none; 0 asks the system for a free one.
        grpc_socket_path: UNIX socket on which gRPC listens as well.
        rest_port: the same for REST.
        rest_timeout_s: longest time a REST request may take, in seconds.
        bind_address: where to listen; the official server always listens on all addresses.
        poll_wait_s: pause between looks for new versions, in seconds; 0 looks once, negative never.
        max_load_retries: how often a failed load is repeated.
        load_retry_interval_s: pause before a repetition, in seconds.
        load_threads: models that load at the same time.
        warmup_passes: how often the requests stored with a version are replayed; 0 for never.
        tflite_interpreters: how many each TensorFlow Lite model gets; 0 loads SavedModels only.
        monitoring_config_file: read once gRPC runs; without a usable one REST stays off.
    """

    models: tuple[Any, ...]
    model_config_file: str = ""
    config_poll_s: float = 0.0
    grpc_port: int | None = 8500
    grpc_socket_path: str = ""
    grpc_threads: int = 8
    grpc_channel_arguments: tuple[tuple[str, int | str], ...] = ()
    tls: Tls | None = None
    rest_port: int | None = None
    rest_threads: int = 8
    rest_timeout_s: float = 30.0
    cors: bool = False
    bind_address: str = "0.0.0.0"  # noqa: S104 (the official server's only choice)
    poll_wait_s: float = 1.0
    max_load_retries: int = 5
    load_retry_interval_s: float = 60.0
    load_threads: int = 1
    allow_labels_for_unavailable: bool = False
    batching: BatchSettings | None = None
    warmup_passes: int = 1
    monitoring_config_file: str = ""
    health: bool = False
    check_method_name: bool = False
    answer_with_content: bool = False
    tflite_interpreters: int = 0
    session: SessionOptions = field(default_factory=SessionOptions)


def from_flags(values: Mapping[str, FlagValue], *, bind_address: str) -> ServerSettings:
    """Return the settings that parsed flags stand for.

    Raises:
        ServingError: a flag this engine does not have, values that contradict, or a configuration
            file that cannot be used.
    """
    flags: Mapping[str, Any] = values
    _refuse(flags)
    port, rest_port = flags["port"], flags["rest_api_port"]
    if not port and not flags["grpc_socket_path"]:
        raise invalid(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path "
            "must be set."
        )
    if rest_port and rest_port == port:
        _log.error("the ports of gRPC and REST are both %d; REST stays off", port)
        rest_port = 0
    return replace(
        _settings(flags, _models(flags)),
        grpc_port=port or None,
        rest_port=rest_port or None,
        bind_address=bind_address,
    )


def in_process(models: Mapping[str, str | os.PathLike[str]], **given: FlagValue) -> ServerSettings:
    """Return the settings of a server for this machine alone, on free ports unless they are given.

    Args:
        models: base path (a folder of version folders) by model name; where it is empty, the flags
            say what to serve.
        given: flags of tensorflow_model_server, such as `enable_batching=True`.

    Raises:
        TypeError: there is no such flag.
        ServingError: as `from_flags`.
    """
    for name in given:
        if name not in DEFAULTS:
            hint = did_you_mean(name, DEFAULTS)
            raise TypeError(f"tensorflow_model_server has no flag {name!r}; {hint}")
    flags: dict[str, Any] = dict(DEFAULTS)
    flags |= {"port": 0, **given}
    _refuse(flags)
    configs = tuple(_config(name, str(Path(path).resolve())) for name, path in models.items())
    return replace(
        _settings(flags, configs or _models(flags)),
        grpc_port=flags["port"],
        rest_port=flags["rest_api_port"],
        bind_address="127.0.0.1",
    )


def _settings(flags: Mapping[str, Any], models: tuple[Any, ...]) -> ServerSettings:
    platform = _platform(flags["platform_config_file"])
    return ServerSettings(
        models=models,
        model_config_file=flags["model_config_file"],
        config_poll_s=flags["model_config_file_poll_wait_seconds"],
        grpc_socket_path=flags["grpc_socket_path"],
        grpc_threads=max(1, flags["grpc_max_threads"]),
        grpc_channel_arguments=_channel_arguments(flags["grpc_channel_arguments"]),
        tls=_tls(flags["ssl_config_file"]),
        rest_threads=flags["rest_api_num_threads"],
        rest_timeout_s=flags["rest_api_timeout_in_ms"] / 1e3,
        cors=flags["rest_api_enable_cors_support"],
        poll_wait_s=flags["file_system_poll_wait_seconds"],
        max_load_retries=flags["max_num_load_retries"],
        load_retry_interval_s=flags["load_retry_interval_micros"] / 1e6,
        load_threads=max(1, flags["num_load_threads"]),
        allow_labels_for_unavailable=flags["allow_version_labels_for_unavailable_models"],
        batching=_batching(flags) if platform is None else _from_message(platform),
        warmup_passes=_warmup_passes(flags, platform),
        monitoring_config_file=flags["monitoring_config_file"],
        health=flags["enable_grpc_healthcheck_service"],
        check_method_name=flags["enable_signature_method_name_check"],
        answer_with_content=flags["enable_serialization_as_tensor_content"],
        tflite_interpreters=_interpreters(flags),
        session=_session(flags, platform),
    )


def _refuse(flags: Mapping[str, Any]) -> None:
    for name in sorted(REFUSED):
        if flags[name] != DEFAULTS[name]:
            text = f"the embedded engine does not have the flag --{name}: {REFUSED[name]}"
            raise ServingError(Code.UNIMPLEMENTED, text)
    if flags["rest_api_num_threads"] < 1:
        raise CheckFailed(
            f"num_threads >= 1 (1 vs. {flags['rest_api_num_threads']}) in rest_api_num_threads"
        )
    if flags["rest_api_num_threads"] > _MOST_THREADS:
        raise invalid(f"rest_api_num_threads must be from 1 to {_MOST_THREADS}")


def _models(flags: Mapping[str, Any]) -> tuple[Any, ...]:
    if flags["model_config_file"]:
        configs = read_models(flags["model_config_file"])
        check_platforms(configs)
        check_logging(configs)
        return configs
    if not flags["model_base_path"]:
        raise invalid(
            "Both server_options.model_base_path and server_options.model_config_file are empty!"
        )
    return (_config(flags["model_name"], flags["model_base_path"]),)


def _config(name: str, base_path: str) -> Any:
    config = protos.ModelConfig(name=name, base_path=base_path, model_platform="tensorflow")
    check_models((config,))
    return config


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    arguments: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise invalid(f"grpc_channel_arguments: {part!r} is not key=value")
        arguments.append((key, int(value) if value.lstrip("-").isdigit() else value))
    return tuple(arguments)


def _tls(file: str) -> Tls | None:
    if not file:
        return None
    try:
        config = read_text_proto("SSLConfig", file)
    except ServingError as error:
        raise CheckFailed(str(error)) from error
    return Tls(
        config.server_key.encode(),
        config.server_cert.encode(),
        config.custom_ca.encode(),
        config.client_verify,
    )


def _interpreters(flags: Mapping[str, Any]) -> int:
    if not flags["prefer_tflite_model"]:
        return 0
    return max(1, int(flags["num_tflite_pools"] * flags["num_tflite_interpreters_per_pool"]))


def _batching(flags: Mapping[str, Any]) -> BatchSettings | None:
    file = flags["batching_parameters_file"]
    if not flags["enable_batching"]:
        if file:
            raise invalid(
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true."
            )
        return None
    message = read_text_proto("BatchingParameters", file) if file else protos.BatchingParameters()
    per_model = flags["enable_per_model_batching_parameters"]
    return _batching_from(message, per_model=per_model)


def _from_message(bundle: Any) -> BatchSettings | None:
    if not bundle.HasField("batching_parameters"):
        return None
    return _batching_from(bundle.batching_parameters, per_model=False)


def _batching_from(message: Any, *, per_model: bool) -> BatchSettings:
    default = BatchSettings()
    set_threads = message.HasField("num_batch_threads")
    threads = message.num_batch_threads.value if set_threads else default.threads
    if threads <= 0:
        raise invalid(f"num_batch_threads must be positive; was {threads}")
    return BatchSettings(
        batch_options(message),
        threads,
        message.thread_pool_name.value or default.thread_pool_name,
        per_model,
    )


def _platform(file: str) -> Any:
    """Return the SessionBundleConfig of a platform file, None without a file."""
    if not file:
        return None
    configs = read_text_proto("PlatformConfigMap", file).platform_configs
    if "tensorflow" not in configs:
        raise invalid(f"{file} has no configuration for the platform tensorflow")
    adapter = protos.SavedModelBundleSourceAdapterConfig()
    configs["tensorflow"].source_adapter_config.Unpack(adapter)
    return adapter.legacy_config


def _warmup_passes(flags: Mapping[str, Any], bundle: Any) -> int:
    if bundle is not None:
        passes = bundle.model_warmup_options.num_request_iterations.value
        return max(1, passes) if bundle.enable_model_warmup else 0
    passes = flags["num_request_iterations_for_warmup"]
    return max(1, passes) if flags["enable_model_warmup"] else 0


def _session(flags: Mapping[str, Any], bundle: Any) -> SessionOptions:
    tags = tuple(tag for tag in flags["saved_model_tags"].split(",") if tag)
    if bundle is not None:
        return SessionOptions(tuple(bundle.saved_model_tags) or ("serve",), bundle.session_config)
    mixed = flags["mixed_precision"]
    if mixed not in {"", "bfloat16"}:
        _log.warning("%s auto mixed precision is not supported. Valid option: bfloat16", mixed)
        mixed = ""
    return SessionOptions(tags, _session_config(flags), mixed)


def _session_config(flags: Mapping[str, Any]) -> Any:
    if flags["tensorflow_session_config_file"]:
        return read_text_proto("ConfigProto", flags["tensorflow_session_config_file"])
    both = flags["tensorflow_session_parallelism"]
    intra = flags["tensorflow_intra_op_parallelism"]
    inter = flags["tensorflow_inter_op_parallelism"]
    if both and intra and inter:
        raise invalid(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all."
        )
    config = protos.ConfigProto(
        intra_op_parallelism_threads=intra or both, inter_op_parallelism_threads=inter or both
    )
    if fraction := flags["per_process_gpu_memory_fraction"]:
        config.gpu_options.per_process_gpu_memory_fraction = fraction
    return config


def prometheus_path(file: str) -> str | None:
    """Return where the metrics page is to be, None if it is not enabled.

    Raises:
        ServingError: the MonitoringConfig file cannot be used.
    """
    if not file:
        return None
    config = read_text_proto("MonitoringConfig", file).prometheus_config
    return config.path or PROMETHEUS_PATH if config.enable else None
