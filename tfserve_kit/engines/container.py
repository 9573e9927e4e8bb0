"""What a deployment becomes as a container: the arguments of `docker run`, and its user.

Base paths and rendered files are mounted read-only under the paths they have on this machine, so
that the rendered configuration is the same for a container and for a process.
"""

import itertools
import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tfserve_kit import safe_text
from tfserve_kit.deployment.spec import Docker, Spec
from tfserve_kit.engines import draining
from tfserve_kit.engines.base import Endpoints, Plan, endpoints

# The release that the embedded engine is held to, see docs/embedded.md.
SERVING_IMAGE = "tensorflow/serving:2.20.0"
# Where its server listens (tensorflow_serving/tools/docker/Dockerfile).
GRPC_PORT, REST_PORT = PORTS = 8500, 8501
PLACE = Path("/tfkit")  # of what swarms and clusters give containers to read
SERVER, FOLDER, ENDPOINTS, MODELS = (
    f"tfkit.{key}" for key in ("server", "folder", "endpoints", "models")
)
BINARY = "tensorflow_model_server"
_SECOND_NS = 1_000_000_000
# Libraries as Debian and Ubuntu install them; the image must have them.
_ALLOCATORS = {
    "jemalloc": "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "tcmalloc": "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
}
# The official image has no curl. An answer names the state of each version.
# One line, as the command that shows it is one.
_HEALTH = (
    "for model in {models}; do exec 3<>/dev/tcp/127.0.0.1/{port} || exit 1; "
    "printf 'GET /v1/models/%s HTTP/1.0\\r\\n\\r\\n' \"$model\" >&3; "
    "grep -q '\"AVAILABLE\"' <&3 || exit 1; done"
)


@dataclass(frozen=True, slots=True)
class ContainerPlan(Plan):
    """A plan for a container.

    Attributes:
        container: arguments of the SDK's `containers.create`.
    """

    container: Mapping[str, Any] = field(default_factory=dict)


def image_of(options: Docker) -> str:
    """Return the image a deployment runs: the one it names, or the official one."""
    return options.image or official_image(gpu=bool(options.gpu))


def plan(
    spec: Spec, files: Mapping[str, str], *, config: Path, folder: Path, user: str
) -> ContainerPlan:
    """Return the container of a deployment.

    Args:
        spec: the deployment; its ports are those of this machine.
        files: rendered files, name to text.
        config: folder on this machine where they will be.
        folder: the state folder, which tells one user's servers from another's.
        user: `uid:gid` that the server runs as unless the deployment says.
    """
    server, options = spec.server, spec.docker
    where = endpoints(server)
    models = {name: model.base_path for name, model in spec.models.items()}
    command = [BINARY, *with_image_ports(spec).argv(files, config)]
    if server.drain_s:
        script = config / draining.SCRIPT
        command = draining.around(command, script, PORTS, drain_s=server.drain_s)
        files = {**files, draining.SCRIPT: draining.script()}
    container = {
        "name": container_name(server.name),
        "image": image_of(options),
        "entrypoint": command[:1],
        "command": command[1:],
        "labels": _labels(server.name, folder, where, models),
        "ports": {
            f"{GRPC_PORT}/tcp": (server.host, server.grpc_port),
            f"{REST_PORT}/tcp": (server.host, server.rest_port),
        },
        "mounts": [_mount(path) for path in dict.fromkeys(_paths(spec, files, config))],
        "environment": environment(options),
        "user": options.user or user,
        "healthcheck": _healthcheck(models),
        # Process 1 of the image ignores SIGTERM (tensorflow_serving has no handler): stopping
        # would take the daemon's ten seconds.
        "init": True,
        "read_only": options.read_only,
        "tmpfs": {"/tmp": ""},  # noqa: S108 (inside the container)
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "restart_policy": {"Name": options.restart},
        # Docker's own choice grows without end; this one keeps the last 100 MB.
        "log_config": {"Type": "local", "Config": {}},
        "pids_limit": options.pids_limit,
        **_limits(options),
    }
    return ContainerPlan(
        server_name=server.name,
        engine="docker",
        argv=tuple(_run_line(container)),
        files={str(config / name): text for name, text in files.items()},
        endpoints=where,
        models=models,
        deployment=spec.model_dump_json(),
        container=container,
        private={
            f"--env={key}={value}": f"--env={key}={safe_text.HIDDEN}"
            for key, value in options.env.items()
        },
    )


def official_image(*, gpu: bool) -> str:
    """Return the official image: for CPUs, or with CUDA."""
    return f"{SERVING_IMAGE}-gpu" if gpu else SERVING_IMAGE


def with_image_ports(spec: Spec) -> Spec:
    """Return a deployment as the server in a container sees it: with the image's ports."""
    ports = {"grpc_port": GRPC_PORT, "rest_port": REST_PORT}
    return spec.model_copy(update={"server": spec.server.model_copy(update=ports)})


def container_name(server_name: str) -> str:
    """Return the name of a server's container."""
    return f"tfkit-{server_name}"


def without_secrets(spec: Spec) -> Spec:
    """Return a deployment that may be shown."""
    env = dict.fromkeys(spec.docker.env, safe_text.HIDDEN)
    headers = dict.fromkeys(spec.client.headers, safe_text.HIDDEN)
    return spec.model_copy(
        update={
            "docker": spec.docker.model_copy(update={"env": env}),
            "client": spec.client.model_copy(update={"headers": headers}),
        }
    )


def _labels(name: str, folder: Path, where: Endpoints, models: Mapping[str, str]) -> dict[str, str]:
    return {
        SERVER: name,
        FOLDER: str(folder),
        ENDPOINTS: json.dumps({"grpc": where.grpc, "rest": where.rest}),
        MODELS: json.dumps(dict(models)),
    }


def _paths(spec: Spec, files: Mapping[str, str], config: Path) -> Iterator[str]:
    if files:
        yield str(config)
    for model in spec.models.values():
        if "://" not in model.base_path:
            yield model.base_path
    for name, value in spec.server.flags.items():  # a file that is not here may be in the image
        if name.endswith("_file") and Path(str(value)).is_file():
            yield str(value)


def _mount(path: str) -> dict[str, Any]:
    """Return a mount; unlike a "volume", its path may hold colons and must exist."""
    return {"Type": "bind", "Source": path, "Target": path, "ReadOnly": True}


def environment(options: Docker) -> dict[str, str]:
    """Return the variables of a server in a container."""
    values = {"TF_CPP_MIN_LOG_LEVEL": "1", "HOME": "/tmp"}  # noqa: S108 (inside the container)
    if options.gpu and options.gpu_memory == "growth":
        values["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    if options.allocator != "default":
        values["LD_PRELOAD"] = _ALLOCATORS[options.allocator]
    return values | options.env


def health_test(models: Iterable[str], rest_port: int = REST_PORT) -> list[str]:
    """Return the command that says whether each model has an available version."""
    names = shlex.join(quote(name, safe="") for name in models)
    return ["CMD", "bash", "-c", _HEALTH.format(models=names, port=rest_port)]


def _healthcheck(models: Mapping[str, str]) -> dict[str, Any]:
    return {
        "test": health_test(models),
        "interval": 5 * _SECOND_NS,
        "timeout": 3 * _SECOND_NS,
        "start_period": 60 * _SECOND_NS,
        "retries": 3,
    }


def _limits(options: Docker) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if options.cpus is not None:
        limits["nano_cpus"] = round(options.cpus * 1e9)
    if options.memory is not None:
        limits["mem_limit"] = options.memory
    if options.gpu:
        limits["device_requests"] = [_gpus(options.gpu)]
    return limits


def _gpus(which: str) -> dict[str, Any]:
    """Return a device request: `all`, a number of GPUs, or ids such as `0,2` or `GPU-3faa`."""
    request: dict[str, Any] = {"Driver": "nvidia", "Capabilities": [["gpu"]]}
    if which == "all":
        return request | {"Count": -1}
    if which.isdecimal():
        return request | {"Count": int(which)}
    return request | {"DeviceIDs": which.removeprefix("device=").split(",")}


def _run_line(container: Mapping[str, Any]) -> Iterator[str]:
    """Yield the `docker run` command that makes the same container."""
    yield from ("docker", "run", "--detach", "--init", f"--name={container['name']}")
    for port, (host, published) in container["ports"].items():
        yield f"--publish={host}:{published}:{port.removesuffix('/tcp')}"
    yield from (f"--mount={mount_option(mount)}" for mount in container["mounts"])
    yield from ("--read-only",) * container["read_only"]
    yield from (f"--tmpfs={path}" for path in container["tmpfs"])
    yield f"--user={container['user']}"
    yield from (f"--cap-drop={name}" for name in container["cap_drop"])
    yield from (f"--security-opt={name}" for name in container["security_opt"])
    yield f"--restart={container['restart_policy']['Name']}"
    yield f"--log-driver={container['log_config']['Type']}"
    yield f"--pids-limit={container['pids_limit']}"
    yield from _limit_options(container)
    for key, value in container["environment"].items():
        yield f"--env={key}={value}"
    for key, value in container["labels"].items():
        yield f"--label={key}={value}"
    yield from _health_options(container["healthcheck"])
    yield f"--entrypoint={container['entrypoint'][0]}"
    yield container["image"]
    yield from container["command"]


def mount_option(mount: Mapping[str, Any]) -> str:
    """Return a mount as the command line has it."""
    fields = [f"type={mount['Type']}", f"source={mount['Source']}", f"target={mount['Target']}"]
    return ",".join([*map(_csv, fields), "readonly"])


def _csv(field: str) -> str:
    """Return a field of comma-separated values, which is how the option is read."""
    return '"{}"'.format(field.replace('"', '""')) if set(field) & set(',"\n') else field


def _limit_options(container: Mapping[str, Any]) -> Iterator[str]:
    if "nano_cpus" in container:
        yield f"--cpus={container['nano_cpus'] / 1e9:g}"
    if "mem_limit" in container:
        yield f"--memory={container['mem_limit']}"
    for request in container.get("device_requests", ()):
        ids = ",".join(request.get("DeviceIDs", ()))
        count = "all" if request.get("Count") == -1 else request.get("Count")
        yield f'--gpus="device={ids}"' if ids else f"--gpus={count}"


def _health_options(check: Mapping[str, Any]) -> Iterator[str]:
    _, *words = check["test"]
    yield f"--health-cmd={shlex.join(words)}"  # the command line hands it to /bin/sh
    for key in ("interval", "timeout", "start_period"):
        yield f"--health-{key.replace('_', '-')}={check[key] // _SECOND_NS}s"
    yield f"--health-retries={check['retries']}"


NOBODY = "65534:65534"  # as in the images that tfkit builds
_NUMBERS = re.compile(r"(\d+)(?::(\d+))?")
_MOST_FILES = 10_000  # looked at for each model


def default_user(base_paths: Iterable[str]) -> str:
    """Return the `uid:gid` of a server of which the deployment says nothing.

    That is the invoking user; where this is root, the owner of the base paths, or nobody where
    they belong to root or to several.
    """
    if os.geteuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    owners = {owner for path in base_paths if (owner := _owner(path))}
    return owners.pop() if len(owners) == 1 else NOBODY


def _owner(path: str) -> str:
    """Return who owns a folder; nothing for root's, and for what is not a folder here."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return ""
    return f"{found.st_uid}:{found.st_gid}" if found.st_uid else ""


def unreadable(user: str, base_path: str) -> Path | None:
    """Return the first file or folder below a base path that a user of the container cannot read.

    Args:
        user: `uid:gid`; of a user known by name in the image alone nothing can be said.
        base_path: a folder of this machine.
    """
    numbers = _NUMBERS.fullmatch(user)
    if numbers is None:
        return None
    uid, gid = int(numbers[1]), int(numbers[2] or 0)
    for path in itertools.islice(_below(Path(base_path)), _MOST_FILES):
        try:
            if not _may_read(path.stat(), uid, gid):
                return path
        except FileNotFoundError:  # a link to nowhere, or a version that was just retired
            continue
        except OSError:
            return path
    return None


def _below(base_path: Path) -> Iterator[Path]:
    """Yield a base path and what servers read below it, folders before what they hold."""
    yield base_path
    for place, folders, files in os.walk(base_path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*folders, *sorted(files)):
            yield Path(place, name)


def _may_read(found: os.stat_result, uid: int, gid: int) -> bool:
    """Say what the permission bits say; root has no capabilities in the container either."""
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(found.st_mode) else 0)
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    return found.st_mode & needed << shift == needed << shift


def hand_over(folder: Path, user: str) -> None:
    """Let the container's user read a folder of rendered files, and as few others as possible.

    The folder lies in one that no other user of this machine can enter.
    """
    numbers = _NUMBERS.fullmatch(user)
    uid = int(numbers[1]) if numbers else -1
    if uid == os.geteuid():
        return
    for path in (*folder.iterdir(), folder):
        if os.geteuid() == 0 and numbers:
            os.chown(path, uid, int(numbers[2] or 0))
        else:
            path.chmod(0o755 if path is folder else 0o644)
