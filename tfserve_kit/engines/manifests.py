"""What a deployment becomes on Kubernetes: objects of its API, as plain data.

::

    tfkit-NAME         Deployment, PodDisruptionBudget, NetworkPolicy, HorizontalPodAutoscaler
    tfkit-NAME-grpc    Service without an address of its own: its name stands for all ready pods
    tfkit-NAME-rest    Service with one address
    tfkit-NAME-HASH    ConfigMap with the rendered files; another content is another name

How a pod ends, so that no request is lost: it leaves the Services, `preStop` lets the server go on
until all callers know and its gRPC connections have grown too old, and `drain.sh` holds the signal
back until what is left is answered.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfserve_kit import input_files
from tfserve_kit.deployment import render, tls
from tfserve_kit.deployment.flags import (
    CONFIG_FILES,
    CONNECTION_AGE,
    HANDLERS,
    connection_age_ms,
    handler_threads,
)
from tfserve_kit.deployment.spec import MOST_NAME, Kubernetes, Model, Spec
from tfserve_kit.engines import container, draining
from tfserve_kit.engines.container import PLACE
from tfserve_kit.errors import Problem, SpecError

KUSTOMIZATION = "kustomization.yaml"
SERVER_CONTAINER = "server"
_SECRETS = Path("/tfkit-secrets")
_TLS_KEY, _GOOGLE_KEY = "ssl.txt", "key.json"
_SETTLE_S = 10  # until every node and name server knows that a pod is out of service
# gRPC clients look a name up once a connection has ended, but not again within this time.
_LOOKUP_S = 30
_SPARE_S = 10  # from the end of draining to SIGKILL
_PULL_S = 180  # for finding a node and pulling the image
_AGE_MS = 10_000
_AGE_SPREAD = 1.1  # gRPC varies the age of connections by a tenth
_MOST_BYTES = 1_000_000  # of a ConfigMap: 1 MiB with its metadata
_UNITS = {"b": "", "k": "Ki", "m": "Mi", "g": "Gi"}
_STARTUP_S, _READY_S, _ALIVE_S = 2, 5, 10

# No pod leaves before its successor is ready.
_STRATEGY = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
_KSERVE_MODELS = "/mnt/models"
_FORMAT = {"name": "tensorflow", "version": "2"}
_OF_RUNTIME = ("volumes", "nodeSelector", "tolerations", "imagePullSecrets")

Manifest = dict[str, Any]


def manifests(spec: Spec, rendered: Mapping[str, str] | None = None) -> list[Manifest]:
    """Return the objects of a deployment, in the order in which they are to be made.

    Args:
        spec: a checked deployment, whatever its engine.
        rendered: what the server reads, file name to text; rendered here if left out.

    Raises:
        SpecError: the deployment does not fit Kubernetes, or a template is broken.
    """
    if found := spec.misfits():
        raise SpecError("deployment", found)
    seen = _as_seen(spec)
    config = _config(spec, render.render(spec) if rendered is None else rendered)
    return [
        config,
        _deployment(spec, seen, config),
        *_services(seen),
        _disruption_budget(spec),
        _network_policy(seen),
        *_autoscaler(spec),
    ]


def object_name(server_name: str) -> str:
    """Return the name of a server's Deployment."""
    return container.container_name(server_name)


def grpc_service(server_name: str) -> str:
    """Return the name of the Service whose DNS name stands for all ready pods."""
    return f"{object_name(server_name)}-grpc"


def tls_secret(spec: Spec) -> str | None:
    """Return the name of the Secret with the `ssl_config_file`; None without TLS."""
    if not spec.server.flags.get(tls.FLAG):
        return None
    return spec.kubernetes.tls_secret or f"{object_name(spec.server.name)}-tls"


def selector(server_name: str) -> dict[str, str]:
    """Return the labels that a server's pods have, and no others."""
    return {
        "app.kubernetes.io/name": "tensorflow-serving",
        "app.kubernetes.io/instance": server_name,
    }


def stopping_s(spec: Spec) -> int:
    """Return the maximum time that a pod takes to end, in seconds."""
    return _pre_stop_s(_as_seen(spec)) + math.ceil(spec.server.drain_s) + _SPARE_S


# What the server sees in a pod


def _as_seen(spec: Spec) -> Spec:
    """Return the deployment as the server in a pod sees it: ports, files, connections, threads."""
    server = spec.server
    own = dict(server.flags)
    for name, file in _flag_files(spec).items():
        own[name] = str(PLACE / file)
    if own.get(tls.FLAG):
        own[tls.FLAG] = str(_SECRETS / "tls" / _TLS_KEY)
    arguments = str(own.get("grpc_channel_arguments", ""))
    if CONNECTION_AGE not in arguments and (age_ms := _default_age_ms(spec)):
        aging = f"{CONNECTION_AGE}={age_ms}"
        own["grpc_channel_arguments"] = f"{arguments},{aging}" if arguments else aging
    # Nodes are not this machine: its CPUs do not count.
    threads = handler_threads(math.ceil(spec.docker.cpus or 1))
    ports = dict(zip(("grpc_port", "rest_port"), server.pod_ports, strict=True))
    own = dict.fromkeys(HANDLERS, threads) | own
    return spec.model_copy(update={"server": server.model_copy(update={**ports, "flags": own})})


def _flag_files(spec: Spec) -> dict[str, str]:
    """Return the names in the ConfigMap of files that flags name and that are here, by flag."""
    return {
        name: f"{name}.txt"
        for name, value in spec.server.flags.items()
        if name.endswith("_file") and name != tls.FLAG and Path(str(value)).is_file()
    }


def _default_age_ms(spec: Spec) -> int:
    """Return the age of connections where nothing is said: well within `pre_stop_s`."""
    given_s = spec.kubernetes.pre_stop_s
    if given_s is None:
        return _AGE_MS if spec.server.drain_s else 0
    return min(_AGE_MS, round(given_s * 1000 / 2))


def _pre_stop_s(seen: Spec) -> int:
    if (given_s := seen.kubernetes.pre_stop_s) is not None:
        return math.ceil(given_s)
    if not seen.server.drain_s:
        return 0
    age_ms = connection_age_ms(str(seen.server.flags.get("grpc_channel_arguments", "")))
    aging_s = 0.0 if math.isinf(age_ms) else age_ms / 1000 * _AGE_SPREAD
    return math.ceil(_SETTLE_S + max(aging_s, _LOOKUP_S))


# The objects


def _object(of: Spec, kind: str, api: str, suffix: str = "", **parts: Any) -> Manifest:
    name = object_name(of.server.name)
    metadata: Manifest = {"name": f"{name}{suffix}", "labels": _labels(of)}
    if of.kubernetes.namespace:
        metadata["namespace"] = of.kubernetes.namespace
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **parts}


def _labels(spec: Spec) -> dict[str, str]:
    return {**selector(spec.server.name), "app.kubernetes.io/managed-by": "tfkit"}


def _config(spec: Spec, rendered: Mapping[str, str]) -> Manifest:
    files = {**rendered, draining.SCRIPT: draining.script()}
    for flag, name in _flag_files(spec).items():
        files[name] = _read(flag, Path(str(spec.server.flags[flag])))
    text = json.dumps(files, sort_keys=True)
    if len(text.encode()) > _MOST_BYTES:
        sizes = ", ".join(f"{name} {len(content)}" for name, content in files.items())
        message = f"are more than a ConfigMap holds, {_MOST_BYTES} bytes: {sizes}"
        raise SpecError("rendered files", [Problem("", message, "put them into the image")])
    suffix = f"-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    return _object(spec, "ConfigMap", "v1", suffix, immutable=True, data=files)


def _read(flag: str, file: Path) -> str:
    try:
        return input_files.read_text(file, _MOST_BYTES)
    except (OSError, ValueError) as error:
        text = f"names {file}, which cannot be read: {error}"
        remedy = "give a readable UTF-8 file, or a path in the image"
        problem = Problem(f"server.flags.{flag}", text, remedy)
        raise SpecError("deployment", [problem]) from error


def _deployment(spec: Spec, seen: Spec, config: Manifest) -> Manifest:
    patience_s = math.ceil(spec.server.ready_timeout_s) + _PULL_S
    described: dict[str, Any] = {
        "selector": {"matchLabels": selector(spec.server.name)},
        "strategy": _STRATEGY,
        "progressDeadlineSeconds": patience_s,
        "template": {
            "metadata": {"labels": _labels(spec), **_annotations(seen)},
            "spec": _pod(spec, seen, config),
        },
    }
    if not spec.kubernetes.max_replicas:  # else their number is the autoscaler's
        described = {"replicas": spec.server.replicas, **described}
    return _object(spec, "Deployment", "apps/v1", spec=described)


def _annotations(seen: Spec) -> dict[str, Any]:
    """Return what Prometheus' usual discovery looks for."""
    page = seen.monitoring
    if not (page and page.prometheus):
        return {}
    found = {"scrape": "true", "port": str(seen.server.rest_port), "path": page.path}
    return {"annotations": {f"prometheus.io/{key}": value for key, value in found.items()}}


def _pod(spec: Spec, seen: Spec, config: Manifest) -> Manifest:
    options = spec.kubernetes
    user, _, group = (spec.docker.user or container.NOBODY).partition(":")
    volumes = _volumes(spec, config["metadata"]["name"])
    pod = {
        "serviceAccountName": options.service_account,
        "automountServiceAccountToken": options.service_account is not None,
        "enableServiceLinks": False,
        "imagePullSecrets": [{"name": options.pull_secret}] if options.pull_secret else None,
        "nodeSelector": dict(options.node_selector),
        "tolerations": [dict(each) for each in options.tolerations],
        "topologySpreadConstraints": [_spread(spec)],
        "securityContext": {
            "runAsNonRoot": int(user) != 0,
            "runAsUser": int(user),
            "runAsGroup": int(group or 0),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": stopping_s(spec),
        "containers": [_container(spec, seen, config)],
        "volumes": [{"name": name, **volume} for name, volume, _ in volumes],
    }
    return {key: value for key, value in pod.items() if value or value is False}


def _spread(spec: Spec) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(spec.server.name)},
    }


def _container(spec: Spec, seen: Spec, config: Manifest) -> Manifest:
    options, server = spec.docker, seen.server
    ports = {"grpc": server.grpc_port, "rest": server.rest_port}
    described = {
        "name": SERVER_CONTAINER,
        "image": container.image_of(options),
        "imagePullPolicy": {"missing": "IfNotPresent", "always": "Always", "never": "Never"}[
            options.pull
        ],
        **_command(seen, config),
        "env": [{"name": key, "value": value} for key, value in _environment(spec).items()],
        "envFrom": _env_from(spec),
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": _resources(spec),
        **_probes(seen),
        "lifecycle": _lifecycle(seen),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": options.read_only,
        },
        "volumeMounts": [{"name": name, **mount} for name, _, mount in _volumes(spec, "") if mount],
    }
    return {key: value for key, value in described.items() if value}


def _command(seen: Spec, config: Manifest) -> Manifest:
    """Return the command; the script passes signals on, which process 1 itself never sees."""
    files = [name for name in CONFIG_FILES if name in config["data"]]
    server = [container.BINARY, *seen.argv(files, PLACE)]
    ports = (seen.server.grpc_port, seen.server.rest_port)
    words = draining.around(server, PLACE / draining.SCRIPT, ports, drain_s=seen.server.drain_s)
    # Kubernetes would take $(NAME) for a variable.
    words = [word.replace("$(", "$$(") for word in words]
    return {"command": words[:2], "args": words[2:]}


def _environment(spec: Spec) -> dict[str, str]:
    values = container.environment(spec.docker)
    if spec.kubernetes.credentials_secret:
        place = str(_SECRETS / "google" / _GOOGLE_KEY)
        values = {"GOOGLE_APPLICATION_CREDENTIALS": place, **values}
    return {key: value.replace("$(", "$$(") for key, value in values.items()}


def _env_from(spec: Spec) -> list[Manifest]:
    name = spec.kubernetes.env_secret
    return [{"secretRef": {"name": name}}] if name else []


def _resources(spec: Spec) -> Manifest:
    """Return the limits, which are reserved too: a node without room gets no pod."""
    options, found = spec.docker, {}
    if options.cpus is not None:
        found["cpu"] = _quantity(options.cpus)
    if options.memory is not None:
        number = options.memory.rstrip("bkmg")
        found["memory"] = number + _UNITS[options.memory.removeprefix(number) or "b"]
    if options.gpu:
        found[spec.kubernetes.gpu_resource] = options.gpu
    return {"requests": dict(found), "limits": found} if found else {}


def _probes(seen: Spec) -> Manifest:
    """Return the probes: ready while each model has an available version, alive while it listens.

    Liveness must not depend on models or load: a restart of a server that is busy makes it worse.
    """
    test = container.health_test(seen.models, seen.server.rest_port)[1:]
    status = {"exec": {"command": test}, "timeoutSeconds": 5}
    starts = math.ceil(seen.server.ready_timeout_s / _STARTUP_S)
    return {
        "startupProbe": {**status, "periodSeconds": _STARTUP_S, "failureThreshold": starts},
        "readinessProbe": {**status, "periodSeconds": _READY_S, "failureThreshold": 3},
        "livenessProbe": {
            "tcpSocket": {"port": "rest"},
            "timeoutSeconds": 5,
            "periodSeconds": _ALIVE_S,
            "failureThreshold": 3,
        },
    }


def _lifecycle(seen: Spec) -> Manifest:
    sleep_s = _pre_stop_s(seen)
    return {"preStop": {"exec": {"command": ["sleep", str(sleep_s)]}}} if sleep_s else {}


def _volumes(spec: Spec, config: str) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yield the name of each volume, what it is, and where it is mounted."""
    options = spec.kubernetes
    yield "config", {"configMap": {"name": config}}, _read_only(PLACE)
    yield "tmp", {"emptyDir": {}}, {"mountPath": "/tmp"}  # noqa: S108 (in the container)
    if name := tls_secret(spec):
        yield "tls", {"secret": {"secretName": name}}, _read_only(_SECRETS / "tls")
    if name := options.credentials_secret:
        yield "google", {"secret": {"secretName": name}}, _read_only(_SECRETS / "google")
    if options.models_at:
        source: Manifest = (
            {"persistentVolumeClaim": {"claimName": options.claim}}
            if options.claim
            else {"hostPath": {"path": options.host_path, "type": "Directory"}}
        )
        yield "models", source, _read_only(Path(options.models_at))


def _read_only(place: Path) -> Manifest:
    return {"mountPath": str(place), "readOnly": True}


def _services(seen: Spec) -> Iterator[Manifest]:
    pods = {"selector": selector(seen.server.name)}
    for name, port in (("grpc", seen.server.grpc_port), ("rest", seen.server.rest_port)):
        # One name for all ready pods: a gRPC connection through one address would stay at one pod.
        headless = {"clusterIP": "None"} if name == "grpc" else {}
        ports = [{"name": name, "port": port, "targetPort": name}]
        yield _object(seen, "Service", "v1", f"-{name}", spec={**headless, **pods, "ports": ports})


def _disruption_budget(spec: Spec) -> Manifest:
    # Not minAvailable: a single replica would then keep its node from ever being emptied.
    described = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector(spec.server.name)},
    }
    return _object(spec, "PodDisruptionBudget", "policy/v1", spec=described)


def _network_policy(seen: Spec) -> Manifest:
    """Return who may talk to the pods, and to whom they may: models are code that others wrote."""
    clients = seen.kubernetes.clients
    ports = [{"protocol": "TCP", "port": port} for port in ("grpc", "rest")]
    allowed: Manifest = {"ports": ports}
    if clients:
        allowed = {"from": [{"podSelector": {"matchLabels": dict(clients)}}], **allowed}
    is_remote = any("://" in model.base_path for model in seen.models.values())
    described = {
        "podSelector": {"matchLabels": selector(seen.server.name)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [allowed],
        "egress": [{}] if is_remote else [],
    }
    return _object(seen, "NetworkPolicy", "networking.k8s.io/v1", spec=described)


def _autoscaler(spec: Spec) -> Iterator[Manifest]:
    options, name = spec.kubernetes, object_name(spec.server.name)
    if not options.max_replicas:
        return
    described = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": spec.server.replicas,
        "maxReplicas": options.max_replicas,
        "metrics": [_metric(spec)],
    }
    yield _object(spec, "HorizontalPodAutoscaler", "autoscaling/v2", spec=described)


def _metric(spec: Spec) -> Manifest:
    options = spec.kubernetes
    if options.metric and options.metric_target:
        target = {"type": "AverageValue", "averageValue": _quantity(options.metric_target)}
        return {"type": "Pods", "pods": {"metric": {"name": options.metric}, "target": target}}
    usage = {"type": "Utilization", "averageUtilization": options.cpu_percent}
    return {"type": "Resource", "resource": {"name": "cpu", "target": usage}}


def _quantity(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{math.ceil(value * 1000)}m"


# KServe


def kserve(spec: Spec, *, templates: Path | None = None) -> dict[str, Manifest]:
    """Return a ServingRuntime and an InferenceService for each model, and the files they read.

    KServe makes Deployment, Service and autoscaler of them, and puts the models into its own place.

    Returns:
        Objects by the name of the file for each.

    Raises:
        SpecError: the deployment does not fit KServe, or a template is broken.
    """
    if found := [*spec.misfits(), *_kserve_misfits(spec)]:
        raise SpecError("deployment", found)
    made = {}
    for name, model in spec.models.items():
        alone = _alone(spec, name, model)
        seen = _as_seen(alone)
        config = _config(alone, render.render(alone, templates=templates))
        service = _inference_service(spec, alone, name, model)
        for each in (config, _serving_runtime(alone, seen, config), service):
            made[f"{each['kind'].lower()}-{name}.yaml"] = each
    return made


def _kserve_misfits(spec: Spec) -> Iterator[Problem]:
    options = spec.kubernetes
    own = {"host_path": "claim", "credentials_secret": "service_account",
           "env_secret": "service_account", "metric": "cpu_percent", "clients": ""}  # fmt: skip
    for key, instead in own.items():
        if getattr(options, key):
            remedy = f"use {instead}, or --target kubernetes" if instead else "leave it out"
            yield Problem(f"kubernetes.{key}", "cannot be said to KServe", remedy)
    for name in spec.models:
        runtime = f"{spec.server.name}-{name}"
        if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or len(runtime) > MOST_NAME:
            text = f"{name!r} is no name of an InferenceService"
            remedy = (
                "begin with a letter, and take lower-case letters, digits and hyphens, at most "
                f"{MOST_NAME} with the server's name"
            )
            yield Problem(f"models.{name}", text, remedy)


def _alone(spec: Spec, name: str, model: Model) -> Spec:
    """Return the deployment of one model, which KServe puts into its own place."""
    options = spec.kubernetes
    if not options.in_image:
        model = model.model_copy(update={"base_path": _KSERVE_MODELS})
        options = options.model_copy(update={"claim": None, "mount_path": None})
    server = spec.server.model_copy(update={"name": f"{spec.server.name}-{name}"})
    parts = {"server": server, "models": {name: model}, "kubernetes": options}
    return spec.model_copy(update=parts)


def _serving_runtime(alone: Spec, seen: Spec, config: Manifest) -> Manifest:
    pod = _pod(alone, seen, config)
    (server,) = pod["containers"]
    # KServe calls the first port 80.
    ports = sorted(server["ports"], key=lambda port: port["name"] != "rest")
    described = {
        "supportedModelFormats": [_FORMAT],
        "protocolVersions": ["v1", "grpc-v1"],
        "containers": [_literal({**server, "name": "kserve-container", "ports": ports})],
        **{key: pod[key] for key in _OF_RUNTIME if key in pod},
    }
    page = seen.monitoring
    if page and page.prometheus:
        values = {"port": str(seen.server.rest_port), "path": page.path}
        notes = {f"prometheus.kserve.io/{key}": value for key, value in values.items()}
        described = {"annotations": notes, **described}
    return _object(alone, "ServingRuntime", "serving.kserve.io/v1alpha1", spec=described)


def _literal(value: Any) -> Any:
    """Return plain data that KServe's templates leave as it is."""
    if isinstance(value, dict):
        return {key: _literal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_literal(each) for each in value]
    return value.replace("{{", "{{`{{`}}") if isinstance(value, str) else value


def _inference_service(spec: Spec, alone: Spec, name: str, model: Model) -> Manifest:
    options, replicas = spec.kubernetes, spec.server.replicas
    pod = _pod(alone, alone, {"metadata": {"name": ""}, "data": {}})
    served: Manifest = {"modelFormat": _FORMAT, "runtime": object_name(alone.server.name)}
    if not options.in_image:
        served["storageUri"] = _storage_uri(options, model.base_path)
    if resources := _resources(spec):  # else KServe has defaults of its own here
        served["resources"] = resources
    predictor = {
        "minReplicas": replicas,
        "maxReplicas": options.max_replicas or replicas,
        **({"scaleMetric": "cpu", "scaleTarget": options.cpu_percent} if options.max_replicas
           else {}),
        "deploymentStrategy": _STRATEGY,
        **{key: value for key, value in pod.items() if key not in (*_OF_RUNTIME, "containers")},
        "model": served,
    }  # fmt: skip
    (spread,) = predictor["topologySpreadConstraints"]
    spread["labelSelector"] = {"matchLabels": {"serving.kserve.io/inferenceservice": name}}
    api = "serving.kserve.io/v1beta1"
    made = _object(alone, "InferenceService", api, spec={"predictor": predictor})
    # Its older name is known to every version of KServe.
    mode = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    return {**made, "metadata": {**made["metadata"], "name": name, "annotations": mode}}


def _storage_uri(options: Kubernetes, base_path: str) -> str:
    if "://" in base_path:
        return base_path
    inside = Path(base_path).relative_to(options.models_at or "/").as_posix()
    return f"pvc://{options.claim}" + (f"/{inside}" if inside != "." else "")


# The files


def files(
    spec: Spec, target: str = "kubernetes", *, templates: Path | None = None
) -> dict[str, str]:
    """Return a Kustomize base of a deployment: file name to text.

    Args:
        spec: a checked deployment.
        target: `kubernetes` for its own objects, `kserve` for those of KServe.
        templates: a folder whose templates replace ours.

    Raises:
        SpecError: see `manifests` and `kserve`.
    """
    if target == "kserve":
        made = kserve(spec, templates=templates)
    else:
        found = manifests(spec, render.render(spec, templates=templates))
        made = {_file_name(each): each for each in found}
    base = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(made),
    }
    return {name: _to_yaml(each) for name, each in {KUSTOMIZATION: base, **made}.items()}


def _file_name(manifest: Manifest) -> str:
    kind = manifest["kind"].lower()
    protocol = manifest["metadata"]["name"].rpartition("-")[2] if kind == "service" else ""
    return f"{kind}{'-' if protocol else ''}{protocol}.yaml"


def _to_yaml(manifest: Mapping[str, Any]) -> str:
    """Return plain data as YAML, texts of several lines as they are."""
    import yaml

    class _Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
            return True

        def represent_text(self, text: str) -> yaml.Node:
            style = "|" if "\n" in text else None
            return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    _Dumper.add_representer(str, _Dumper.represent_text)
    return yaml.dump(dict(manifest), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
