"""What a deployment becomes on a swarm: services, and the configs and secrets they read.

::

    tfkit-NAME           the replicas; their names in Swarm's DNS are those in service
    tfkit-NAME-gateway   HAProxy before them, with `[gateway]`
    tfkit-NAME-FILE-HASH configs and secrets; another content is another name

Services are told apart by what they say: `HASH` is a label with the hash of a service's own
description, so that applying the same deployment again changes nothing. Containers bear one of what
they are started with, limits and placement included: so a replica is never taken for its successor.
"""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tfserve_kit import protos, safe_text
from tfserve_kit.deployment import flags, render, tls
from tfserve_kit.deployment.spec import Gateway, Spec
from tfserve_kit.engines import container, draining
from tfserve_kit.engines.base import Endpoints, Plan, endpoints
from tfserve_kit.engines.container import GRPC_PORT, PLACE, PORTS, REST_PORT, SERVER

HASH, DEPLOYMENT, ROLE = "tfkit.hash", "tfkit.deployment", "tfkit.role"
REPLICAS, GATEWAY = "replicas", "gateway"
_HAPROXY = "haproxy.cfg"
# After the signal a replica still may get requests: so long Swarm's DNS and the gateway take.
_SETTLE_S = 2
# A replica whose node fell silent is given up after 13 s, not 15 minutes.
_GATEWAY_SYSCTLS = {"net.ipv4.tcp_retries2": "5"}
_SPARE_S = 10.0  # from the end of draining to SIGKILL
_NANO = _SECOND_NS = 1_000_000_000  # of a CPU, of a second
_LEAST_SLOTS = 32
_PREFIX = 30  # characters of a service's name in names of at most 64
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True)
class ServicePlan(Plan):
    """A plan for a swarm.

    Attributes:
        services: descriptions of services as the daemon's API has them, by name; the gateway last.
        configs: content by name.
        secrets: content by name.
        network: the network of gateway and replicas; empty where ports are those of the nodes.
    """

    services: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    network: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    """A config or secret: its name in the swarm, where containers see it, and its content."""

    name: str
    place: str
    content: str
    is_secret: bool = False

    def reference(self) -> dict[str, Any]:
        kind = "Secret" if self.is_secret else "Config"
        file = {"Name": self.place, "UID": "0", "GID": "0", "Mode": 0o444}
        return {f"{kind}Name": self.name, "File": file}


def plan(spec: Spec, files: Mapping[str, str], *, home: Path) -> ServicePlan:
    """Return the services of a deployment.

    Args:
        spec: the deployment; its ports are those of the nodes, or of the gateway.
        files: rendered files, name to text.
        home: folder on this machine where they will be.

    Raises:
        SpecError: the TLS files cannot be used.
    """
    name = service_name(spec.server.name)
    gateway = _gateway_files(spec, name) if spec.gateway else []
    replicas = [*_files(spec, files, name), *([] if gateway else _tls_file(spec, name))]
    services = {name: _replicas(spec, replicas, name)}
    if spec.gateway:
        services[f"{name}-{GATEWAY}"] = _gateway(spec, spec.gateway, gateway, name)
    everything = [*replicas, *gateway]
    network = name if spec.gateway else ""
    before = list(_before(everything, home, network, spec.server.name))
    argv, *gateways = (tuple(_create_line(each, of)) for each, of in services.items())
    return ServicePlan(
        server_name=spec.server.name,
        engine="swarm",
        argv=argv,
        files={str(home / each.name): each.content for each in everything if not each.is_secret},
        endpoints=endpoints_of(spec),
        models={model: each.base_path for model, each in spec.models.items()},
        deployment=spec.model_dump_json(),
        notes=_notes(everything),
        private=dict(_private(spec)),
        replicas=spec.server.replicas,
        before=(*before, *gateways),
        services=services,
        configs={each.name: each.content for each in everything if not each.is_secret},
        secrets={each.name: each.content for each in everything if each.is_secret},
        network=network,
    )


def endpoints_of(spec: Spec) -> Endpoints:
    """Return where a deployment answers; a gateway has TLS for REST too."""
    found = endpoints(spec.server)
    if spec.gateway and found.grpc.startswith("grpcs:"):
        found = replace(found, rest=found.rest.replace("http:", "https:", 1))
    return found


def service_name(server_name: str) -> str:
    """Return the name of a server's service: that of its containers elsewhere."""
    return container.container_name(server_name)


# Files


def _files(spec: Spec, files: Mapping[str, str], name: str) -> list[_File]:
    texts = dict(files)
    if spec.server.drain_s:
        texts[draining.SCRIPT] = draining.script()
    return [_file(name, file, text) for file, text in texts.items()]


def _content_name(service: str, file: str, content: str) -> str:
    """Return the name of a config or secret; another content has another name."""
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{service[:_PREFIX]}-{file}-{digest}"


def _file(service: str, file: str, content: str, *, is_secret: bool = False) -> _File:
    name = _content_name(service, file, content)
    return _File(name, str(PLACE / file), content, is_secret)


def _tls_file(spec: Spec, name: str) -> list[_File]:
    path = str(spec.server.flags.get(tls.FLAG, ""))
    if not Path(path).is_file():
        return []
    secret = _file(name, "ssl.txt", Path(path).read_text("utf-8"), is_secret=True)
    return [secret]


def _gateway_files(spec: Spec, name: str) -> list[_File]:
    """Return what the gateway reads: its configuration, and what TLS takes."""
    found, places = [], {}
    if path := str(spec.server.flags.get(tls.FLAG, "")):
        config = protos.from_text("SSLConfig", Path(path).read_text("utf-8"))
        found = [
            _file(name, "gateway.pem", config.server_cert),
            _file(name, "gateway.pem.key", config.server_key, is_secret=True),
        ]
        places = {"cert": str(PLACE / "gateway.pem"), "ca": ""}
        if config.client_verify:
            found.append(_file(name, "clients.pem", config.custom_ca))
            places["ca"] = str(PLACE / "clients.pem")
    return [_file(name, _HAPROXY, _haproxy(spec, name, places)), *found]


def slots(replicas: int) -> int:
    """Return for how many replicas the gateway has room, `replica1` and so on."""
    return max(_LEAST_SLOTS, 1 << (2 * replicas - 1).bit_length())


def _haproxy(spec: Spec, name: str, places: Mapping[str, str]) -> str:
    values = {
        "service": name,
        "health": [f"/v1/models/{quote(model, safe='')}" for model in spec.models],
        "grpc_port": GRPC_PORT,
        "rest_port": REST_PORT,
        "slots": slots(spec.server.replicas),
        "settle_s": _SETTLE_S,
        "drain_s": max(1, round(spec.server.drain_s)),
        "metrics_port": spec.gateway.metrics_port if spec.gateway else None,
        "tls": places,
    }
    return render.text(_HAPROXY, values)


# Services


def _replicas(spec: Spec, files: list[_File], name: str) -> dict[str, Any]:
    server, options = spec.server, spec.docker
    is_behind = spec.gateway is not None
    made = {
        "Image": container.image_of(options),
        **_command(spec, files),
        "Env": [f"{key}={value}" for key, value in container.environment(options).items()],
        "User": options.user or container.default_user(_here(spec)),
        "Mounts": [*_mounts(spec), {"Type": "tmpfs", "Target": "/tmp"}],  # noqa: S108
        "ReadOnly": options.read_only,
        "Init": True,
        "StopGracePeriod": round((_settle_s(spec) + server.drain_s + _SPARE_S) * _SECOND_NS),
        "Healthcheck": _healthcheck(spec),
        **_references(files),
        "CapabilityDrop": ["ALL"],
    }
    placement: dict[str, Any] = {"Constraints": list(spec.swarm.constraints)}
    if spec.swarm.max_per_node:
        placement["MaxReplicas"] = spec.swarm.max_per_node
    order = "start-first" if is_behind else "stop-first"  # a port of a node is had by one alone
    return _service(
        name,
        made,
        labels={SERVER: server.name, ROLE: REPLICAS, DEPLOYMENT: spec.model_dump_json()},
        resources=_resources(spec),
        placement=placement,
        replicas=server.replicas,
        order=order,
        network=name if is_behind else "",
        ports={} if is_behind else {GRPC_PORT: server.grpc_port, REST_PORT: server.rest_port},
    )


def _gateway(spec: Spec, options: Gateway, files: list[_File], name: str) -> dict[str, Any]:
    server = spec.server
    ports = {GRPC_PORT: server.grpc_port, REST_PORT: server.rest_port}
    if options.metrics_port:
        ports[options.metrics_port] = options.metrics_port
    made = {
        "Image": options.image,
        "Command": ["haproxy"],
        "Args": ["-W", "-db", "-f", str(PLACE / _HAPROXY)],
        "User": container.NOBODY,
        "ReadOnly": True,
        "Init": True,
        "StopSignal": "SIGUSR1",  # finishes what it has, and takes nothing new
        "StopGracePeriod": round((server.drain_s + _SPARE_S) * _SECOND_NS),
        **_references(files),
        "CapabilityDrop": ["ALL"],
        "Sysctls": _GATEWAY_SYSCTLS,
    }
    return _service(
        f"{name}-{GATEWAY}",
        made,
        labels={SERVER: server.name, ROLE: GATEWAY},
        resources={},
        placement={"Constraints": list(options.constraints)},
        replicas=1,
        order="stop-first",
        network=name,
        ports=ports,
    )


def _service(  # noqa: PLR0913 (a service has so many parts)
    name: str,
    made: Mapping[str, Any],
    *,
    labels: Mapping[str, str],
    resources: Mapping[str, Any],
    placement: Mapping[str, Any],
    replicas: int,
    order: str,
    network: str,
    ports: Mapping[int, int],
) -> dict[str, Any]:
    change = {
        "Parallelism": 1,
        "Order": order,
        "Monitor": 3 * _SECOND_NS,
        "MaxFailureRatio": 0,
    }
    task: dict[str, Any] = {
        "ContainerSpec": {**made, "Labels": {SERVER: labels[SERVER]}},
        "Resources": resources,
        "RestartPolicy": {"Condition": "any", "Delay": 2 * _SECOND_NS},
        "Placement": placement,
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "20m", "max-file": "5"}},
        "Networks": [{"Target": network}] if network else [],
    }
    published = [
        {"Protocol": "tcp", "TargetPort": inside, "PublishedPort": port, "PublishMode": "host"}
        for inside, port in ports.items()
    ]
    task["ContainerSpec"]["Labels"][HASH] = _hash([task, published])
    service = {
        "Name": name,
        "Labels": dict(labels),
        "TaskTemplate": task,
        "Mode": {"Replicated": {"Replicas": replicas}},
        "UpdateConfig": {**change, "FailureAction": "rollback"},
        "RollbackConfig": {**change, "FailureAction": "pause"},
        "EndpointSpec": {"Mode": "dnsrr", "Ports": published},
    }
    return {**service, "Labels": {**labels, HASH: _hash(service)}}


def _hash(description: object) -> str:
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _references(files: list[_File]) -> dict[str, Any]:
    found = {
        "Configs": [each.reference() for each in files if not each.is_secret],
        "Secrets": [each.reference() for each in files if each.is_secret],
    }
    return {key: value for key, value in found.items() if value}


def _command(spec: Spec, files: list[_File]) -> dict[str, Any]:
    own = dict(spec.server.flags)
    if spec.gateway:
        own.pop(tls.FLAG, None)  # TLS ends at the gateway
    elif any(each.is_secret for each in files):
        own[tls.FLAG] = str(PLACE / "ssl.txt")
    server = spec.server.model_copy(update={"flags": own})
    seen = container.with_image_ports(spec.model_copy(update={"server": server}))
    places = {each.place for each in files}
    names = [file for file in flags.CONFIG_FILES if str(PLACE / file) in places]
    command = [container.BINARY, *seen.argv(names, PLACE)]
    if spec.server.drain_s:
        command = draining.around(
            command,
            PLACE / draining.SCRIPT,
            PORTS,
            drain_s=spec.server.drain_s + _settle_s(spec),
            settle_s=_settle_s(spec),
        )
    return {"Command": command[:1], "Args": command[1:]}


def _settle_s(spec: Spec) -> float:
    return _SETTLE_S if spec.server.drain_s and spec.gateway else 0


def _here(spec: Spec) -> list[str]:
    paths = (model.base_path for model in spec.models.values())
    return list(dict.fromkeys(path for path in paths if spec.is_here(path)))


def _mounts(spec: Spec) -> Iterator[dict[str, Any]]:
    for path in _here(spec):
        yield {"Type": "bind", "Source": path, "Target": path, "ReadOnly": True}
    for place, volume in spec.swarm.volumes.items():
        yield {"Type": "volume", "Source": volume, "Target": place, "ReadOnly": True}


def _healthcheck(spec: Spec) -> dict[str, Any]:
    return {
        "Test": container.health_test(spec.models),
        "Interval": 2 * _SECOND_NS,
        "Timeout": 3 * _SECOND_NS,
        "StartPeriod": round(spec.server.ready_timeout_s * _SECOND_NS),
        "Retries": 3,
    }


def _resources(spec: Spec) -> dict[str, Any]:
    """Return the limits, which are reserved too: a node without room gets no replica."""
    options, wanted = spec.docker, {}
    if options.cpus is not None:
        wanted["NanoCPUs"] = round(options.cpus * _NANO)
    if options.memory is not None:
        number = options.memory.rstrip("bkmg")
        wanted["MemoryBytes"] = int(number) * _UNITS[options.memory.removeprefix(number) or "b"]
    return {"Limits": {**wanted, "Pids": options.pids_limit}, "Reservations": wanted}


# The commands


def _private(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yield arguments that hold secrets, and what is shown instead of them."""
    for key, value in spec.docker.env.items():
        yield f"--env={key}={value}", f"--env={key}={safe_text.HIDDEN}"
    shown = container.without_secrets(spec)
    label = f"--label={DEPLOYMENT}="
    yield label + spec.model_dump_json(), label + safe_text.redacted(shown.model_dump_json())


def _notes(files: list[_File]) -> tuple[str, ...]:
    secrets = [each.name for each in files if each.is_secret]
    if not secrets:
        return ()
    return (f"the content of {', '.join(secrets)} is not shown: `docker secret create` reads it",)


def _before(
    files: list[_File], home: Path, network: str, server_name: str
) -> Iterator[tuple[str, ...]]:
    label = f"--label={SERVER}={server_name}"
    if network:
        yield ("docker", "network", "create", "--driver=overlay", label, network)
    for each in files:
        kind = "secret" if each.is_secret else "config"
        source = "-" if each.is_secret else str(home / each.name)
        yield ("docker", kind, "create", label, each.name, source)


def _create_line(name: str, service: Mapping[str, Any]) -> Iterator[str]:
    """Yield the `docker service create` command that makes the same service."""
    task = service["TaskTemplate"]
    made = task["ContainerSpec"]
    yield from ("docker", "service", "create", "--detach", f"--name={name}")
    yield f"--replicas={service['Mode']['Replicated']['Replicas']}"
    yield "--endpoint-mode=dnsrr"
    for port in service["EndpointSpec"]["Ports"]:
        yield f"--publish=mode=host,target={port['TargetPort']},published={port['PublishedPort']}"
    yield from (f"--network={each['Target']}" for each in task["Networks"])
    for each in made.get("Configs", ()):
        yield _file_option("config", each["ConfigName"], each["File"])
    for each in made.get("Secrets", ()):
        yield _file_option("secret", each["SecretName"], each["File"])
    yield from (f"--mount={_mount_option(each)}" for each in made.get("Mounts", ()))
    yield from ("--read-only",) * made["ReadOnly"]
    yield from ("--init", f"--user={made['User']}")
    yield from (f"--cap-drop={each}" for each in made["CapabilityDrop"])
    yield from (f"--env={each}" for each in made.get("Env", ()))
    yield from (f"--label={key}={value}" for key, value in service["Labels"].items())
    yield from (f"--container-label={key}={value}" for key, value in made["Labels"].items())
    yield from _rule_options(service)
    yield f"--entrypoint={shlex.join(made['Command'])}"
    yield made["Image"]
    yield from made["Args"]


def _file_option(kind: str, name: str, file: Mapping[str, Any]) -> str:
    return f"--{kind}=source={name},target={file['Name']},mode=0{file['Mode']:o}"


def _mount_option(mount: Mapping[str, Any]) -> str:
    if mount["Type"] == "tmpfs":
        return f"type=tmpfs,target={mount['Target']}"
    return container.mount_option(mount)


def _rule_options(service: Mapping[str, Any]) -> Iterator[str]:
    """Yield how a service is limited, placed, watched, changed and ended."""
    task, change = service["TaskTemplate"], service["UpdateConfig"]
    made = task["ContainerSpec"]
    limits = task["Resources"].get("Limits", {})
    for key, option in (("NanoCPUs", "cpu"), ("MemoryBytes", "memory")):
        if key in limits:
            value = f"{limits[key] / _NANO:g}" if option == "cpu" else limits[key]
            yield from (f"--{kind}-{option}={value}" for kind in ("limit", "reserve"))
    if "Pids" in limits:
        yield f"--limit-pids={limits['Pids']}"
    yield from (f"--constraint={each}" for each in task["Placement"]["Constraints"])
    if "MaxReplicas" in task["Placement"]:
        yield f"--replicas-max-per-node={task['Placement']['MaxReplicas']}"
    yield "--restart-condition=any"
    yield f"--restart-delay={_text(task['RestartPolicy']['Delay'])}"
    yield f"--log-driver={task['LogDriver']['Name']}"
    yield from (f"--log-opt={key}={value}" for key, value in task["LogDriver"]["Options"].items())
    yield from (f"--sysctl={key}={value}" for key, value in made.get("Sysctls", {}).items())
    if "StopSignal" in made:
        yield f"--stop-signal={made['StopSignal']}"
    yield f"--stop-grace-period={_text(made['StopGracePeriod'])}"
    if "Healthcheck" in made:
        yield from _health_options(made["Healthcheck"])
    for kind, rules in (("update", change), ("rollback", service["RollbackConfig"])):
        yield f"--{kind}-order={rules['Order']}"
        yield f"--{kind}-failure-action={rules['FailureAction']}"
        yield f"--{kind}-monitor={_text(rules['Monitor'])}"
        yield f"--{kind}-max-failure-ratio={rules['MaxFailureRatio']}"


def _health_options(check: Mapping[str, Any]) -> Iterator[str]:
    _, *words = check["Test"]
    yield f"--health-cmd={shlex.join(words)}"
    for key in ("Interval", "Timeout"):
        yield f"--health-{key.lower()}={_text(check[key])}"
    yield f"--health-start-period={_text(check['StartPeriod'])}"
    yield f"--health-retries={check['Retries']}"


def _text(nanoseconds: int) -> str:
    return f"{nanoseconds // 1_000_000}ms"
