"""A deployment as typed data, and how a deployment file becomes one, with all its problems at once.

The descriptions of the fields are the reference: `docs/spec.md` is generated from them.
"""

import contextlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from itertools import starmap
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeGuard, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from tfserve_kit import input_files, safe_text
from tfserve_kit.deployment import flags
from tfserve_kit.errors import Problem, SpecError, did_you_mean

Version = Annotated[int, Field(ge=0, le=2**63 - 1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Micros = Annotated[int, Field(ge=0, le=2**63 - 1)]
EngineName = Literal["auto", "docker", "native", "embedded", "swarm", "kubernetes"]
# Names of Kubernetes: of an object, of a namespace or server, and the key and value of a label.
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
ObjectName = Annotated[str, Field(pattern=rf"^{_LABEL}(\.{_LABEL})*$", max_length=253)]
Namespace = Annotated[str, Field(pattern=f"^{_LABEL}$")]
_NAME = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(pattern=rf"^({_LABEL}(\.{_LABEL})*/)?{_NAME}$")]
LabelValue = Annotated[str, Field(pattern=f"^({_NAME})?$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^:]*$")]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_T = TypeVar("_T")
_Several = Annotated[tuple[_T, ...], BeforeValidator(_as_tuple)]  # TOML has lists


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class VersionPolicy(_Section):
    """Which versions of a model are loaded; exactly one of the three."""

    latest: Positive | None = Field(default=None, description="the N highest version numbers")
    all: bool = Field(default=False, description="every version in the base path")
    specific: _Several[Version] = Field(
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
    allowed_batch_sizes: _Several[Positive] = Field(
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

    @property
    def most_rows(self) -> int:
        """Most rows in a batch, with the server's own default."""
        return self.max_batch_size or 1000

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        sizes, largest = self.allowed_batch_sizes, self.most_rows
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
    """The Prometheus page on the REST port, and objectives that alerts hold the server to."""

    prometheus: bool = Field(default=True, description="whether to offer it")
    path: str = Field(
        default="/monitoring/prometheus/metrics", pattern="^/", description="URL path of the page"
    )
    slo_answered: Share = Field(
        default=0.999, description="share of requests that the server must not fail"
    )
    slo_fast: Share = Field(
        default=0.99, description="share of answers that must come within slo_latency_ms"
    )
    slo_latency_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=500, description="latency in milliseconds that slo_fast counts from"
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
    replicas: Positive = Field(
        default=1, description="how many servers answer; more than one on a swarm or on Kubernetes"
    )
    ready_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=120.0, description="maximum wait until all models are available, in seconds"
    )
    drain_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = Field(
        default=10.0,
        description="how long a server that is stopped may go on with requests in flight, in "
        "seconds; it ends as soon as there are none",
    )
    flags: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="further flags of tensorflow_model_server; left out, `grpc_max_threads` and "
        "`rest_api_num_threads` are 64, or 4 for each CPU where that is more",
    )

    @property
    def is_everywhere(self) -> bool:
        """Whether it listens on all addresses of its machine."""
        return self.host in {"0.0.0.0", "::"}  # noqa: S104 (compared, not bound)

    @property
    def pod_ports(self) -> tuple[int, int]:
        """The ports of gRPC and REST in a pod, which has all to itself: 0 is the usual one."""
        return self.grpc_port or 8500, self.rest_port or 8501

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.grpc_port == self.rest_port != 0:
            raise ValueError(f"grpc_port and rest_port are both {self.grpc_port}")
        return self


class ClientSection(_Section):
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


class Swarm(_Section):
    """Where replicas run and where they find the models; for the swarm engine alone."""

    constraints: _Several[str] = Field(
        default=(), description='nodes that may run replicas, such as `["node.labels.gpu == yes"]`'
    )
    max_per_node: Positive | None = Field(
        default=None, description="maximum number of replicas on one node"
    )
    volumes: dict[Annotated[str, Field(pattern="^/")], str] = Field(
        default_factory=dict,
        description="volumes by the folder where they are mounted, such as "
        '`{"/models" = "models"}`; base paths in them are not folders of the nodes',
    )
    in_image: bool = Field(
        default=False, description="whether the image holds the models, at their base paths"
    )


class Gateway(_Section):
    """HAProxy before the replicas, at the server's ports; for the swarm engine alone."""

    image: str = Field(
        default="haproxy:3.0",
        min_length=1,
        description="image of HAProxy, 2.6 or newer, by tag or digest",
    )
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None, description="port of its own metrics, at /metrics; left out: none"
    )
    constraints: _Several[str] = Field(
        default=("node.role == manager",), description="nodes that may run it"
    )


class Kubernetes(_Section):
    """Where pods run and where they find the models; for Kubernetes alone."""

    context: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="context of the kubeconfig; left out: the current one"
    )
    namespace: Namespace | None = Field(
        default=None, description="namespace, which must exist; left out: that of the context"
    )
    claim: ObjectName | None = Field(
        default=None, description="PersistentVolumeClaim that holds the models"
    )
    host_path: AbsolutePath | None = Field(
        default=None, description="folder of the nodes that holds the models"
    )
    in_image: bool = Field(
        default=False, description="whether the image holds the models, at their base paths"
    )
    mount_path: AbsolutePath | None = Field(
        default=None,
        description="where pods see the claim or the folder, with the base paths below it; left "
        "out: `/models` for a claim, the same path for a folder",
    )
    service_account: ObjectName | None = Field(
        default=None,
        description="ServiceAccount of the pods, such as one that may read gs://; left out: the "
        "namespace's own, without its token",
    )
    credentials_secret: ObjectName | None = Field(
        default=None,
        description="Secret whose `key.json` is the key of a Google service account, for gs://",
    )
    env_secret: ObjectName | None = Field(
        default=None,
        description="Secret whose keys become environment variables, such as AWS_ACCESS_KEY_ID",
    )
    tls_secret: ObjectName | None = Field(
        default=None,
        description="Secret whose `ssl.txt` is the `ssl_config_file` of `[server.flags]`; left "
        "out: tfkit-NAME-tls",
    )
    pull_secret: ObjectName | None = Field(
        default=None, description="Secret with which the image is pulled"
    )
    pre_stop_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = Field(
        default=None,
        description="how long a pod that ends goes on serving before it drains, in seconds; left "
        "out: until gRPC clients have looked its name up again, 40, or 0 with `drain_s = 0`",
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, description='labels of nodes that may run pods, `{gpu = "yes"}`'
    )
    tolerations: _Several[dict[str, str]] = Field(
        default=(),
        description='taints that pods bear, `[{key = "nvidia.com/gpu", operator = "Exists"}]`',
    )
    gpu_resource: LabelKey = Field(
        default="nvidia.com/gpu", description="what nodes call the GPUs that `gpu` counts"
    )
    max_replicas: Positive | None = Field(
        default=None, description="present: replicas are added under load, from `replicas` to this"
    )
    cpu_percent: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=70, description="share of `cpus` above which replicas are added, of all on average"
    )
    metric: Annotated[str, Field(pattern=r"^[A-Za-z_][\w./-]*$")] | None = Field(
        default=None,
        description="rate or ratio of the pods that counts instead of the CPU, as the custom "
        "metrics API names it, such as `requests_per_second`",
    )
    metric_target: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="value of that metric above which replicas are added"
    )
    clients: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        description="labels of the pods of this namespace that may call; left out: all may",
    )

    @model_validator(mode="after")
    def _tolerations_are_known(self) -> Self:
        known = {"operator": ("Exists", "Equal"),
                 "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute")}  # fmt: skip
        for each in self.tolerations:
            if unknown := each.keys() - {"key", "value", *known}:
                raise ValueError(f"{unknown.pop()!r} is no key; give key, operator, value, effect")
            for key, words in known.items():
                if each.get(key, words[0]) not in words:
                    raise ValueError(f"{key} is {each[key]!r}; give {', '.join(words)}")
            if "value" in each and each.get("operator") == "Exists":
                raise ValueError('a toleration with operator = "Exists" has no value')
            if "key" not in each and each.get("operator") != "Exists":
                raise ValueError('a toleration without a key has operator = "Exists"')
        return self

    @model_validator(mode="after")
    def _models_are_in_one_place(self) -> Self:
        given = [key for key in ("claim", "host_path", "in_image") if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one")
        if self.mount_path and not (self.claim or self.host_path):
            raise ValueError("mount_path is that of a claim or host_path: give one")
        return self

    @model_validator(mode="after")
    def _metric_is_no_counter(self) -> Self:
        if (self.metric is None) != (self.metric_target is None):
            raise ValueError("metric and metric_target belong together: give both")
        if self.metric and _COUNTER.search(self.metric):
            raise ValueError(
                f"metric {self.metric!r} is a counter, which only grows: give a rate or a ratio"
            )
        if self.max_replicas is None and self.metric:
            raise ValueError("metric is for max_replicas: give it too")
        return self

    @property
    def models_at(self) -> str | None:
        """Where pods see the claim or the folder of the nodes; None where there is neither."""
        return self.mount_path or self.host_path or ("/models" if self.claim else None)


# How Prometheus and OpenMetrics call what only grows; TensorFlow Serving's counters have colons.
_COUNTER = re.compile(r"[._-](total|count|sum|bucket|created)$")
_TAKEN = {Path(place) for place in ("/", "/tmp", "/tfkit")}  # noqa: S108 (in a pod)
MOST_NAME = 52  # a server's name, so that with tfkit's prefix and suffixes it is a DNS label


class Spec(_Section):
    """A whole deployment."""

    server: Server = Field(default_factory=Server, description="the process or container")
    models: dict[Annotated[str, Field(min_length=1)], Model] = Field(
        min_length=1, description="the served models, by name"
    )
    docker: Docker = Field(default_factory=Docker, description="how a container is run")
    client: ClientSection = Field(
        default_factory=ClientSection, description="how tfkit talks to the server"
    )
    batching: Batching | None = Field(default=None, description="present: requests are batched")
    monitoring: Monitoring | None = Field(default=None, description="present: Prometheus page")
    swarm: Swarm = Field(default_factory=Swarm, description="where replicas run")
    gateway: Gateway | None = Field(
        default=None, description="present: one address before all replicas"
    )

    kubernetes: Kubernetes = Field(
        default_factory=Kubernetes, description="where pods run and find the models"
    )

    @model_validator(mode="after")
    def _engine_has_the_replicas(self) -> Self:
        engine = self.server.engine
        if self.gateway and engine != "swarm":
            raise ValueError('[gateway] is for engine = "swarm" in [server]')
        if self.server.replicas > 1 and engine not in {"swarm", "kubernetes"}:
            replicas = f"{self.server.replicas} replicas are"
            raise ValueError(f'{replicas} for engine = "swarm" or "kubernetes" in [server]')
        return self

    def misfits(self) -> list[Problem]:
        """Return what Kubernetes could not take, once base paths are absolute."""
        return [*self._lost(), *self._unknown(), *self._not_scaled()]

    def _unknown(self) -> Iterator[Problem]:
        """Yield names and numbers that mean nothing on Kubernetes."""
        server, options = self.server, self.docker
        if not re.fullmatch(_LABEL, server.name) or len(server.name) > MOST_NAME:
            text = f"is {server.name!r}, which is no name on Kubernetes"
            remedy = f"give at most {MOST_NAME} lower-case letters, digits and hyphens"
            yield Problem("server.name", text, remedy)
        if server.pod_ports[0] == server.pod_ports[1]:
            text = f"is {server.grpc_port}, which is the port of REST where none is given"
            yield Problem("server.grpc_port", text, "give rest_port too")
        if not re.fullmatch(r"(\d+(:\d+)?)?", options.user or ""):
            text = f"is {options.user!r}, which Kubernetes does not know by name"
            yield Problem("docker.user", text, 'give numbers, "UID:GID"')
        if options.gpu and not re.fullmatch(r"[1-9]\d*", options.gpu):
            text = f"is {options.gpu!r}, but Kubernetes chooses the GPUs"
            yield Problem("docker.gpu", text, 'give how many, such as "1"')
        for key in options.env:
            if not re.fullmatch(r"[A-Za-z_.-][\w.-]*", key, re.ASCII):
                text = f"has {key!r}, which is no name of a variable"
                yield Problem("docker.env", text, "take letters, digits and _")
        if self.kubernetes.tls_secret and not server.flags.get("ssl_config_file"):
            text = f"is {self.kubernetes.tls_secret!r}, but the server has no TLS"
            remedy = "set ssl_config_file in [server.flags]"
            yield Problem("kubernetes.tls_secret", text, remedy)

    def _not_scaled(self) -> Iterator[Problem]:
        """Yield what keeps an autoscaler from working."""
        most, replicas = self.kubernetes.max_replicas, self.server.replicas
        if most is None:
            return
        if most < replicas:
            text = f"is {most}, below replicas, {replicas}"
            yield Problem("kubernetes.max_replicas", text, "raise it, or lower replicas")
        if not (self.docker.cpus or self.kubernetes.metric):
            text = "goes by a share of the CPUs that are reserved, and none are"
            remedy = "set cpus in [docker], or metric and metric_target"
            yield Problem("kubernetes.max_replicas", text, remedy)

    def _lost(self) -> Iterator[Problem]:
        """Yield the models that pods would not find."""
        place = self.kubernetes.models_at
        if place and (Path(place) in _TAKEN or ".." in Path(place).parts):
            text = f"is {place}, where pods cannot have the models"
            yield Problem("kubernetes.mount_path", text, "give a folder such as /models")
        for name, model in self.models.items():
            if "://" in model.base_path or self.kubernetes.in_image:
                continue
            if place is None:
                text = f"is {model.base_path}, where pods find nothing"
                remedy = "give claim, host_path or in_image in [kubernetes], or gs://BUCKET/PATH"
            elif not Path(model.base_path).is_relative_to(place):
                text = f"is {model.base_path}, but pods see the models in {place}"
                remedy = f"give a base path below {place}, or mount_path in [kubernetes]"
            else:
                continue
            yield Problem(f"models.{name}.base_path", text, remedy)

    def is_here(self, base_path: str) -> bool:
        """Say whether a base path is a folder of this machine: no URL, no volume, no image."""
        if "://" in base_path or self.server.engine == "kubernetes":
            return False
        if self.server.engine != "swarm":
            return True
        inside = (Path(base_path).is_relative_to(place) for place in self.swarm.volumes)
        return not (self.swarm.in_image or any(inside))

    def argv(self, files: Iterable[str], folder: str | Path) -> list[str]:
        """Return the flags that make a real server run this deployment.

        Args:
            files: names of its rendered files.
            folder: where the server will see these files.
        """
        values: dict[str, flags.FlagValue] = {
            "port": self.server.grpc_port,
            "rest_api_port": self.server.rest_port,
            **dict.fromkeys(flags.HANDLERS, flags.handler_threads()),
        }
        if any(model.labels for model in self.models.values()):  # at first no version is loaded
            values["allow_version_labels_for_unavailable_models"] = True
        if self.batching:
            values["enable_batching"] = True
        values |= {flags.FILE_FLAGS[name]: str(Path(folder) / name) for name in files}
        return list(starmap(flags.spelled, (values | self.server.flags).items()))


DEFAULT_FILE = "tfkit.toml"

_SECTION = "write [NAME] above its keys, or {KEY = VALUE, ...}"
_ADVICE = {
    "missing": "add it",
    "string_type": "write it in quotes",
    "int_type": "write a whole number",
    "model_type": _SECTION,
    "dict_type": _SECTION,
}
_MESSAGES = {"model_type": "input should be a section", "dict_type": "input should be a section"}
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
        raise SpecError(source, [Problem("", _TOO_DEEP, _TOML)]) from error
    models = {}
    for name, model in spec.models.items():
        try:
            base_path = _absolute(model.base_path, folder)
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            text = f"is {model.base_path!r:.200}, which is not a path: {reason!s:.200}"
            remedy = "write the path of the folder that holds one folder per version"
            found.append(Problem(f"models.{name}.base_path", text, remedy))
            continue
        models[name] = model.model_copy(update={"base_path": base_path})
    if found:
        raise SpecError(source, found)
    server = spec.server.model_copy(update={"flags": _with_files(spec.server.flags, folder)})
    client = _client_with_files(spec.client, folder)
    spec = spec.model_copy(update={"models": models, "server": server, "client": client})
    if spec.server.engine == "kubernetes" and (found := spec.misfits()):
        raise SpecError(source, found)
    return spec


def load_client(file: Path) -> ClientSection:
    """Read the section `[client]` of a deployment file alone; what else is in it does not count.

    Raises:
        SpecError: it is wrong, or the file is not TOML.
        OSError: the file cannot be read.
    """
    section = _document(file).get("client", {})
    try:
        return _client_with_files(ClientSection.model_validate(section), file.parent)
    except ValidationError as error:
        details = [{**detail, "loc": ("client", *detail["loc"])} for detail in error.errors()]
        raise SpecError(str(file), [_problem(detail) for detail in details]) from None  # type: ignore[arg-type]


def _document(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(input_files.read_text(file, _MOST_BYTES))
    except UnicodeDecodeError as error:
        byte = f"{error.object[error.start]:#x} at byte {error.start}"
        found = Problem("", f"is not TOML: it is not UTF-8, with {byte}", "save it as UTF-8")
        raise SpecError(str(file), [found]) from error
    except ValueError as error:  # also of numbers with thousands of digits, of size
        raise SpecError(str(file), [_no_toml(file, str(error))]) from error
    except RecursionError as error:
        raise SpecError(str(file), [Problem("", _TOO_DEEP, _TOML)]) from error


_AT = re.compile(r"(.*) \(at line (\d+), column (\d+)\)", re.DOTALL)
_TOML = (
    'write KEY = VALUE: texts in quotes ("models/x"), numbers, true or false, lists [1, 2]; '
    "sections as [NAME]; `tfkit init` writes an example"
)


def _no_toml(file: Path, said: str) -> Problem:
    """Return what is wrong with a file, and the line; a secret that stands in it is not shown."""
    found = _AT.fullmatch(said)
    if found is None:
        return Problem("", f"is not TOML: {said}", _TOML)
    line = file.read_text("utf-8").splitlines()[int(found[2]) - 1][:_MOST_SHOWN]
    key, equals, _ = line.partition("=")
    shown = f"{key}{equals} {safe_text.HIDDEN}" if _SECRET_KEY.search(key) else line
    said = f"{found[1][:1].lower()}{found[1][1:]}"
    text = f"line {found[2]}, column {found[3]}: {shown.strip()!r} is not TOML: {said}"
    return Problem("", text, _TOML)


_MOST_SHOWN = 120
_SECRET_KEY = re.compile(r"(?i)header|auth|cookie|token|secret|password|key")


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


def _client_with_files(client: ClientSection, folder: Path) -> ClientSection:
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
    message = _MESSAGES.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    if detail["type"] == "missing":
        message = "is missing"
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
