"""A deployment as typed data, and how a deployment file becomes one, with all its problems at once.

The descriptions of the fields are the reference: `docs/spec.md` is generated from them.
"""

import contextlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from tfserve_kit import bounded, safe_text
from tfserve_kit.deployment import flags
from tfserve_kit.errors import Problem, SpecError, did_you_mean

Version = Annotated[int, Field(ge=0, le=2**63 - 1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Micros = Annotated[int, Field(ge=0, le=2**63 - 1)]
EngineName = Literal["auto", "docker", "native", "embedded"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class VersionPolicy(_Section):
    """Which versions of a model are loaded; exactly one of the three."""

    latest: Positive | None = Field(default=None, description="the N highest version numbers")
    all: bool = Field(default=False, description="every version in the base path")
    specific: tuple[Version, ...] = Field(
        default=(), description="these version numbers, and no others"
    )

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        if (self.latest is not None) + self.all + bool(self.specific) != 1:
            raise ValueError("give exactly one of latest, all and specific")
        return self

    def loads(self, there: Iterable[int]) -> list[int]:
        """Return which of the version numbers in a base path are loaded, lowest first."""
        numbers = sorted(set(there))
        if self.specific:
            return [number for number in numbers if number in self.specific]
        return numbers[-(self.latest or len(numbers)) :] if numbers else []


class Model(_Section):
    """One served model."""

    base_path: str = Field(
        min_length=1,
        description="folder that holds one subfolder per version; relative to the deployment file",
    )
    platform: Literal["tensorflow"] = Field(default="tensorflow", description="kind of model")
    versions: VersionPolicy = Field(
        default_factory=lambda: VersionPolicy(latest=1),
        description='`"latest"`, `"all"`, `{latest = 2}` or `{specific = [1, 3]}`',
    )
    labels: dict[str, Version] = Field(
        default_factory=dict, description="names for version numbers, such as `{stable = 3}`"
    )

    @field_validator("versions", mode="before")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        named = {"latest": VersionPolicy(latest=1), "all": VersionPolicy(all=True)}
        if isinstance(value, str):
            if value not in named:
                known = "latest, all, {latest = N} or {specific = [N]}"
                raise ValueError(f"is {value!r}; give {known}")
            return named[value]
        if isinstance(value, dict) and isinstance(value.get("specific"), list):
            return value | {"specific": tuple(value["specific"])}
        return value

    @model_validator(mode="after")
    def _labels_are_loaded(self) -> Self:
        loaded = self.versions.specific
        wrong = [
            f"label {label!r} names version {version}, which is not loaded"
            for label, version in self.labels.items()
            if loaded and version not in loaded
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class Batching(_Section):
    """How requests are grouped into batches; left out values take the server's defaults.

    Source: tensorflow_serving/servables/tensorflow/session_bundle_config.proto and
    bundle_factory_util.cc, which checks the last allowed size when a model is loaded.
    """

    max_batch_size: Positive | None = Field(default=None, description="most rows in a batch (1000)")
    batch_timeout_micros: Micros | None = Field(
        default=None, description="longest wait for a batch to fill, in microseconds (0)"
    )
    max_enqueued_batches: Positive | None = Field(
        default=None, description="batches that may wait before requests are refused (10)"
    )
    num_batch_threads: Positive | None = Field(
        default=None, description="batches that run at once (one for each CPU)"
    )
    thread_pool_name: str | None = Field(default=None, description="name of these threads")
    allowed_batch_sizes: tuple[Positive, ...] = Field(
        default=(),
        description="sizes that batches are padded to, rising; the last is max_batch_size",
    )
    pad_variable_length_inputs: bool = Field(
        default=False, description="pad rows of unequal length"
    )
    enable_large_batch_splitting: bool | None = Field(
        default=None, description="split requests over the execution size (false)"
    )
    max_execution_batch_size: Positive | None = Field(
        default=None, description="maximum rows run at once when splitting (max_batch_size)"
    )

    @field_validator("allowed_batch_sizes", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        sizes, largest = self.allowed_batch_sizes, self.max_batch_size or 1000
        if list(sizes) != sorted(set(sizes)):
            raise ValueError(f"allowed_batch_sizes must rise, but is {list(sizes)}")
        if sizes and sizes[-1] != largest:
            raise ValueError(
                f"the last of allowed_batch_sizes must be max_batch_size: {sizes[-1]} != {largest}"
            )
        if (self.max_execution_batch_size or 0) > largest:
            raise ValueError(
                f"max_execution_batch_size is {self.max_execution_batch_size}, "
                f"above max_batch_size {largest}"
            )
        return self


class Monitoring(_Section):
    """The Prometheus page on the REST port."""

    prometheus: bool = Field(default=True, description="whether to offer it")
    path: str = Field(
        default="/monitoring/prometheus/metrics", pattern="^/", description="URL path of the page"
    )


class Server(_Section):
    """The server process or container."""

    name: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        description="what `tfkit ps`, `logs` and `stop` call it",
    )
    engine: EngineName = Field(default="auto", description="what runs it")
    binary: str | None = Field(
        default=None, description="tensorflow_model_server for the native engine; else from PATH"
    )
    host: str = Field(
        default="127.0.0.1", description="address to listen on; 0.0.0.0 for all interfaces"
    )
    grpc_port: Port = Field(default=8500, description="TCP port of gRPC; 0 finds a free one")
    rest_port: Port = Field(default=8501, description="TCP port of REST; 0 finds a free one")
    ready_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=120.0, description="maximum wait until all models are available, in seconds"
    )
    flags: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="further flags of tensorflow_model_server; left out, `grpc_max_threads` and "
        "`rest_api_num_threads` are 64, or 4 for each CPU where that is more",
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.grpc_port == self.rest_port != 0:
            raise ValueError(f"grpc_port and rest_port are both {self.grpc_port}")
        return self


class Client(_Section):
    """How tfkit itself talks to the server: TLS, and headers with every request."""

    ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file of the CA to trust; left out: the certificate in `ssl_config_file`",
    )
    cert: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with tfkit's own certificate, for a server with `client_verify`",
    )
    key: str | None = Field(default=None, min_length=1, description="PEM file with its key")
    server_name: str | None = Field(
        default=None,
        min_length=1,
        description="name that the server's certificate must have; left out: the one it has",
    )
    headers: dict[str, str] = Field(
        default_factory=dict,
        description="sent with every request; `env:NAME` and `file:PATH` stand for what is there",
        repr=False,
    )

    @model_validator(mode="after")
    def _cert_has_a_key(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: give both")
        return self


class Docker(_Section):
    """How the container is run; for the Docker engine alone."""

    image: str | None = Field(
        default=None,
        min_length=1,
        description="image, by tag or digest; left out: tensorflow/serving, `-gpu` with `gpu`",
    )
    pull: Literal["missing", "always", "never"] = Field(
        default="missing", description="when the image is pulled"
    )
    gpu: Annotated[str, Field(pattern=r"^(all|\d+|[\w=,-]+)$")] | None = Field(
        default=None, description='GPUs: "all", how many ("2"), or which ("device=0,1")'
    )
    gpu_memory: Literal["growth", "all"] = Field(
        default="growth",
        description="take GPU memory as needed, or all of it; for a share set "
        "`per_process_gpu_memory_fraction` in `[server.flags]`",
    )
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="maximum number of CPUs"
    )
    memory: Annotated[str, Field(pattern=r"^\d+[bkmg]?$")] | None = Field(
        default=None, description='maximum memory, such as "4g"'
    )
    user: Annotated[str, Field(pattern=r"^[\w.-]+(:[\w.-]+)?$")] | None = Field(
        default=None,
        description="user and group in the container; left out: yours, and where you are root the "
        'owner of the base paths, or nobody (65534:65534); "0:0" for root',
    )
    pids_limit: Positive = Field(
        default=8192, description="maximum number of processes and threads in the container"
    )
    read_only: bool = Field(
        default=True, description="whether the container's root file system is read-only"
    )
    restart: Literal["no", "on-failure", "unless-stopped", "always"] = Field(
        default="no", description="when Docker starts the container again by itself"
    )
    allocator: Literal["default", "jemalloc", "tcmalloc"] = Field(
        default="default",
        description="memory allocator; the image must hold the library of another one",
    )
    env: dict[str, str] = Field(default_factory=dict, description="environment variables")


class Spec(_Section):
    """A whole deployment."""

    server: Server = Field(default_factory=Server, description="the process or container")
    models: dict[Annotated[str, Field(min_length=1)], Model] = Field(
        min_length=1, description="the served models, by name"
    )
    docker: Docker = Field(default_factory=Docker, description="how a container is run")
    client: Client = Field(default_factory=Client, description="how tfkit talks to the server")
    batching: Batching | None = Field(default=None, description="present: requests are batched")
    monitoring: Monitoring | None = Field(default=None, description="present: Prometheus page")


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
            text = f"is {model.base_path!r:.200}, which is not a path: {reason!s:.200}"
            found.append(Problem(f"models.{name}.base_path", text))
            continue
        models[name] = model.model_copy(update={"base_path": base_path})
    if found:
        raise SpecError(source, found)
    server = spec.server.model_copy(update={"flags": _with_files(spec.server.flags, folder)})
    client = _client_with_files(spec.client, folder)
    return spec.model_copy(update={"models": models, "server": server, "client": client})


def load_client(file: Path) -> Client:
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
        raise ValueError(f"{name[0]} is not expanded here; write it out, or use ~ for your home")
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
        given = safe_text.HIDDEN if detail["loc"][:2] in _SECRET else f"{detail['input']!r:.80}"
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
