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


# Each flag's default, whose type is the flag's type, and what it does.
FLAGS: Mapping[str, tuple[FlagValue, str]] = {
    "port": (8500, "TCP port of gRPC; 0 turns it off"),
    "grpc_socket_path": ("", "UNIX socket on which gRPC listens as well"),
    "rest_api_port": (0, "TCP port of HTTP/REST; 0 turns it off"),
    "rest_api_num_threads": (4 * _CPUS, "threads that answer REST requests"),
    "rest_api_timeout_in_ms": (30000, "longest time a REST request may take"),
    "rest_api_enable_cors_support": (False, "send CORS headers"),
    "enable_batching": (False, "group requests into batches"),
    "batching_parameters_file": ("", "text file with BatchingParameters"),
    "enable_per_model_batching_parameters": (False, "read them from each version"),
    "allow_version_labels_for_unavailable_models": (False, "label before loading"),
    "model_config_file": ("", "text file with a ModelServerConfig"),
    "model_config_file_poll_wait_seconds": (0, "reread that file; 0 reads it once"),
    "model_name": ("default", "name of the single model"),
    "model_base_path": ("", "folder of its versions"),
    "num_load_threads": (0, "threads that load models; 0 loads inline"),
    "num_unload_threads": (0, "threads that unload models; 0 unloads inline"),
    "max_num_load_retries": (5, "how often a failed load is repeated"),
    "load_retry_interval_micros": (60_000_000, "pause between two tries"),
    "file_system_poll_wait_seconds": (1, "pause between looks for new versions"),
    "flush_filesystem_caches": (True, "drop cached model files after loading"),
    "tensorflow_session_parallelism": (0, "threads per session; 0 decides itself"),
    "tensorflow_intra_op_parallelism": (0, "threads within one operation"),
    "tensorflow_inter_op_parallelism": (0, "operations that run at once"),
    "tensorflow_session_config_file": ("", "text file with a ConfigProto"),
    "platform_config_file": ("", "text file with a PlatformConfigMap"),
    "per_process_gpu_memory_fraction": (0.0, "share of GPU memory to take"),
    "saved_model_tags": ("serve", "which graph of a SavedModel to load"),
    "ssl_config_file": ("", "text file with an SSLConfig for gRPC"),
    "use_alts_credentials": (False, "use Google ALTS for gRPC"),
    "grpc_channel_arguments": ("", "comma-separated key=value for the gRPC server"),
    "grpc_max_threads": (4 * _CPUS, "threads that answer gRPC requests"),
    "enable_model_warmup": (True, "replay stored requests after loading"),
    "num_request_iterations_for_warmup": (0, "how often they are replayed"),
    "monitoring_config_file": ("", "text file with a MonitoringConfig"),
    "remove_unused_fields_from_bundle_metagraph": (True, "save memory after loading"),
    "prefer_tflite_model": (False, "load model.tflite where there is one"),
    "num_tflite_pools": (_CPUS, "interpreter pools of a TFLite model"),
    "num_tflite_interpreters_per_pool": (1, "interpreters in each"),
    "enable_signature_method_name_check": (False, "insist on method names"),
    "enable_profiler": (True, "offer the profiler service"),
    "xla_cpu_compilation_enabled": (False, "compile for CPU with XLA"),
    "xla_gpu_compilation_enabled": (False, "compile for GPU with XLA"),
    "mixed_precision": ("", "`bfloat16` computes in it where possible"),
    "thread_pool_factory_config_file": ("", "text file with a thread pool factory"),
    "skip_initialize_tpu": (False, "do not initialize TPUs"),
    "enable_grpc_healthcheck_service": (False, "offer grpc.health.v1.Health"),
    "enable_serialization_as_tensor_content": (False, "answer with tensor_content"),
    "version": (False, "print the version and exit"),
}
DEFAULTS = {name: default for name, (default, _) in FLAGS.items()}

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
        elif not _fits(value, DEFAULTS[name]):
            kind = type(DEFAULTS[name]).__name__
            remedy = f"write a value of that type, such as {_example(DEFAULTS[name])}"
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
    values = dict(DEFAULTS)
    unknown: list[str] = []
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        default = DEFAULTS.get(name) if argument.startswith("--") else None
        if default is None or (not equals and not isinstance(default, bool)):
            unknown.append(argument)
            continue
        value = _value(default, text if equals else "true")
        if value is None:
            error = f"Couldn't interpret value {text} for flag {name}."
            return CommandLine(values, tuple(unknown), error)
        values[name] = value
    return CommandLine(values, tuple(unknown))


def _value(default: FlagValue, text: str) -> FlagValue | None:
    """Return the value that a text gives a flag with this default, None if it gives none."""
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if isinstance(default, str):
        return text
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return type(default)(text)
    except ValueError:
        return None


def usage() -> str:
    """Return the list of flags, as printed for `--help` and for unknown arguments."""
    lines = ["usage: tensorflow_model_server", "Flags:"]
    for name, (default, what) in FLAGS.items():
        kind = {bool: "bool", int: "int32", float: "float", str: "string"}[type(default)]
        shown = str(default).lower() if isinstance(default, bool) else default
        shown = f'"{shown}"' if kind == "string" else shown
        lines.append(f"\t--{f'{name}={shown}':<60}\t{kind}\t{what}")
    return "\n".join(lines) + "\n"
