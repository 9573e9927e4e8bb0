"""The command line of tensorflow_model_server: the only place where its flag names stand.

`argv` turns a deployment into flags for a real server, `parse` reads a command line as the real
server does, for the embedded engine.

Source: tensorflow_serving/model_servers/main.cc (names, defaults) and
tensorflow/core/util/command_line_flags.cc (how they are parsed).
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tfserve_kit.errors import Problem, did_you_mean

FlagValue = bool | int | float | str

# The files that flags refer to, as `render.py` names them.
MODEL_CONFIG = "model_config.txt"
BATCHING_CONFIG = "batching_config.txt"
MONITORING_CONFIG = "monitoring_config.txt"
FILE_FLAGS = {
    MODEL_CONFIG: "model_config_file",
    BATCHING_CONFIG: "batching_parameters_file",
    MONITORING_CONFIG: "monitoring_config_file",
}
CONFIG_FILES = tuple(FILE_FLAGS)

# What C's sscanf could take for a number; Python alone would take `1_000` and `5 ` as well.
_NUMBER = re.compile(r"\s*[-+.0-9A-Za-z]+", re.ASCII)

_CPUS = os.cpu_count() or 1

# The official server takes four threads for each CPU, and refuses every call beyond them
# (RESOURCE_EXHAUSTED): on two CPUs the ninth caller. Threads that wait cost next to nothing.
_LEAST_HANDLERS = 64
HANDLERS = ("grpc_max_threads", "rest_api_num_threads")


CONNECTION_AGE = "grpc.max_connection_age_ms"
_ENDLESS_MS = 2**31 - 1  # gRPC's own word for it


def connection_age_ms(channel_arguments: str) -> float:
    """Return how old gRPC connections may grow, in milliseconds; infinite if nothing says."""
    pairs = (each.partition("=") for each in channel_arguments.split(","))
    ages = [value for key, _, value in pairs if key == CONNECTION_AGE and value.isdecimal()]
    return float(ages[-1]) if ages and int(ages[-1]) < _ENDLESS_MS else math.inf


def handler_threads(cpus: int = _CPUS) -> int:
    """Return how many requests of each protocol are handled at once, unless a deployment says."""
    return max(_LEAST_HANDLERS, 4 * cpus)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its name, default (whose type is the flag's type) and what it does."""

    name: str
    default: FlagValue
    help: str


FLAGS = {
    flag.name: flag
    for flag in (
        Flag("port", 8500, "TCP port of gRPC; 0 turns it off"),
        Flag("grpc_socket_path", "", "UNIX socket on which gRPC listens as well"),
        Flag("rest_api_port", 0, "TCP port of HTTP/REST; 0 turns it off"),
        Flag("rest_api_num_threads", 4 * _CPUS, "threads that answer REST requests"),
        Flag("rest_api_timeout_in_ms", 30000, "longest time a REST request may take"),
        Flag("rest_api_enable_cors_support", False, "send CORS headers"),
        Flag("enable_batching", False, "group requests into batches"),
        Flag("batching_parameters_file", "", "text file with BatchingParameters"),
        Flag("enable_per_model_batching_parameters", False, "read them from each version"),
        Flag("allow_version_labels_for_unavailable_models", False, "label before loading"),
        Flag("model_config_file", "", "text file with a ModelServerConfig"),
        Flag("model_config_file_poll_wait_seconds", 0, "reread that file; 0 reads it once"),
        Flag("model_name", "default", "name of the single model"),
        Flag("model_base_path", "", "folder of its versions"),
        Flag("num_load_threads", 0, "threads that load models; 0 loads inline"),
        Flag("num_unload_threads", 0, "threads that unload models; 0 unloads inline"),
        Flag("max_num_load_retries", 5, "how often a failed load is repeated"),
        Flag("load_retry_interval_micros", 60_000_000, "pause between two tries"),
        Flag("file_system_poll_wait_seconds", 1, "pause between looks for new versions"),
        Flag("flush_filesystem_caches", True, "drop cached model files after loading"),
        Flag("tensorflow_session_parallelism", 0, "threads per session; 0 decides itself"),
        Flag("tensorflow_intra_op_parallelism", 0, "threads within one operation"),
        Flag("tensorflow_inter_op_parallelism", 0, "operations that run at once"),
        Flag("tensorflow_session_config_file", "", "text file with a ConfigProto"),
        Flag("platform_config_file", "", "text file with a PlatformConfigMap"),
        Flag("per_process_gpu_memory_fraction", 0.0, "share of GPU memory to take"),
        Flag("saved_model_tags", "serve", "which graph of a SavedModel to load"),
        Flag("ssl_config_file", "", "text file with an SSLConfig for gRPC"),
        Flag("use_alts_credentials", False, "use Google ALTS for gRPC"),
        Flag("grpc_channel_arguments", "", "comma-separated key=value for the gRPC server"),
        Flag("grpc_max_threads", 4 * _CPUS, "threads that answer gRPC requests"),
        Flag("enable_model_warmup", True, "replay stored requests after loading"),
        Flag("num_request_iterations_for_warmup", 0, "how often they are replayed"),
        Flag("monitoring_config_file", "", "text file with a MonitoringConfig"),
        Flag("remove_unused_fields_from_bundle_metagraph", True, "save memory after loading"),
        Flag("prefer_tflite_model", False, "load model.tflite where there is one"),
        Flag("num_tflite_pools", _CPUS, "interpreter pools of a TFLite model"),
        Flag("num_tflite_interpreters_per_pool", 1, "interpreters in each"),
        Flag("enable_signature_method_name_check", False, "insist on method names"),
        Flag("enable_profiler", True, "offer the profiler service"),
        Flag("xla_cpu_compilation_enabled", False, "compile for CPU with XLA"),
        Flag("xla_gpu_compilation_enabled", False, "compile for GPU with XLA"),
        Flag("mixed_precision", "", "`bfloat16` computes in it where possible"),
        Flag("thread_pool_factory_config_file", "", "text file with a thread pool factory"),
        Flag("skip_initialize_tpu", False, "do not initialize TPUs"),
        Flag("enable_grpc_healthcheck_service", False, "offer grpc.health.v1.Health"),
        Flag("enable_serialization_as_tensor_content", False, "answer with tensor_content"),
        Flag("version", False, "print the version and exit"),
    )
}

# What a deployment file says in its own words: a second spelling under [server.flags] would
# contradict it.
_OWNED = frozenset(
    {
        "port",
        "rest_api_port",
        "model_name",
        "model_base_path",
        "enable_batching",
        "version",
        *FILE_FLAGS.values(),
    }
)


def spelled(name: str, value: FlagValue) -> str:
    """Return a flag as the command line has it."""
    return f"--{name}={str(value).lower() if isinstance(value, bool) else value}"


def problems(values: Mapping[str, FlagValue]) -> list[Problem]:
    """Return what is wrong with the extra flags of a deployment.

    A real server prints its usage for a flag it does not know, and starts without it; here such a
    flag is a fault.
    """
    found = []
    for name, value in values.items():
        path = f"server.flags.{name}"
        if name not in FLAGS:
            text = "is not a flag of tensorflow_model_server"
            found.append(Problem(path, text, did_you_mean(name, FLAGS)))
        elif name in _OWNED:
            found.append(Problem(path, "is set from the other sections of this file", "remove it"))
        elif not _fits(value, FLAGS[name].default):
            kind = type(FLAGS[name].default).__name__
            remedy = f"write a value of that type, such as {_example(FLAGS[name].default)}"
            found.append(Problem(path, f"is {value!r}, but must be {_KINDS[kind]}", remedy))
    return found


_KINDS = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "a text"}


def _example(default: FlagValue) -> str:
    """Return a value as TOML writes it."""
    if isinstance(default, bool):
        return "true"
    return f'"{default or "text"}"' if isinstance(default, str) else str(default)


def _fits(value: FlagValue, default: FlagValue) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A parsed command line.

    Attributes:
        values: every flag's value, given or default.
        unknown: arguments that are not flags; the official server names them, and starts.
        error: why parsing stopped; empty if it did not.
    """

    values: Mapping[str, FlagValue]
    unknown: tuple[str, ...]
    error: str = ""


def parse(arguments: Iterable[str]) -> CommandLine:
    """Read a command line as tensorflow_model_server does.

    Only `--name=value` counts, and `--name` for booleans; the last of several wins. A value that
    does not fit its flag ends parsing with an error.
    """
    values: dict[str, FlagValue] = {name: flag.default for name, flag in FLAGS.items()}
    unknown: list[str] = []
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        flag = FLAGS.get(name) if argument.startswith("--") else None
        if flag is None or (not equals and not isinstance(flag.default, bool)):
            unknown.append(argument)
            continue
        value = _value(flag, text if equals else "true")
        if value is None:
            error = f"Couldn't interpret value {text} for flag {name}."
            return CommandLine(values, tuple(unknown), error)
        values[name] = value
    return CommandLine(values, tuple(unknown))


def _value(flag: Flag, text: str) -> FlagValue | None:
    """Return the value a text stands for, None if it stands for none."""
    if isinstance(flag.default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if isinstance(flag.default, str):
        return text
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return type(flag.default)(text)
    except ValueError:
        return None


def usage() -> str:
    """Return the list of flags, as printed for `--help` and for unknown arguments."""
    lines = ["usage: tensorflow_model_server", "Flags:"]
    for flag in FLAGS.values():
        kind = {bool: "bool", int: "int32", float: "float", str: "string"}[type(flag.default)]
        default = str(flag.default).lower() if isinstance(flag.default, bool) else flag.default
        shown = f'"{default}"' if isinstance(default, str) and kind == "string" else default
        lines.append(f"\t--{f'{flag.name}={shown}':<60}\t{kind}\t{flag.help}")
    return "\n".join(lines) + "\n"
