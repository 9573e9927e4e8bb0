"""What an image with models inside is built from: which versions, and the texts beside them.

`choose` reads the base paths; `files` is pure.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tfserve_kit.deployment import flags, render
from tfserve_kit.deployment.schema import Spec, VersionPolicy
from tfserve_kit.errors import Problem, SpecError, UsageError
from tfserve_kit.repository import Version, scan

# The release that the embedded engine is held to, see docs/embedded.md.
SERVING_IMAGE = "tensorflow/serving:2.20.0"
PYTHON_IMAGE = "python:3.12-slim"
# Where its server listens (tensorflow_serving/tools/docker/Dockerfile).
GRPC_PORT, REST_PORT = 8500, 8501
_CONFIG = "/tfkit/config"
_IMAGE = re.compile(r"[\w][\w./:@-]*", re.ASCII)

Versions = Mapping[str, Sequence[Version]]


def official_image(*, gpu: bool) -> str:
    """Return the official image: for CPUs, or with CUDA."""
    return f"{SERVING_IMAGE}-gpu" if gpu else SERVING_IMAGE


def with_image_ports(spec: Spec) -> Spec:
    """Return a deployment as the server in a container sees it: with the image's ports."""
    ports = {"grpc_port": GRPC_PORT, "rest_port": REST_PORT}
    return spec.model_copy(update={"server": spec.server.model_copy(update=ports)})


@dataclass(frozen=True, slots=True)
class Variant:
    """What an image is made from.

    Attributes:
        base: image to build on; if empty, the official one, or Python's for the embedded engine.
        gpu: the official image with CUDA.
        embedded: install the embedded engine, which runs where there is no official image (ARM64).
        wheels: folder with tfkit's wheel and those of all its dependencies, instead of PyPI.

    Raises:
        UsageError: these exclude each other, or `base` is not the name of an image.
    """

    base: str = ""
    gpu: bool = False
    embedded: bool = False
    wheels: Path | None = None

    def __post_init__(self) -> None:
        if self.gpu and self.embedded:
            raise UsageError("the embedded engine computes on CPUs only", remedy="leave out one")
        if self.wheels and not self.embedded:
            raise UsageError("only the embedded engine is installed from wheels")
        if self.base and not _IMAGE.fullmatch(self.base):
            raise UsageError(f"{self.base!r} is not the name of an image")

    @property
    def image(self) -> str:
        """The image to build on."""
        return self.base or (PYTHON_IMAGE if self.embedded else official_image(gpu=self.gpu))

    @property
    def template(self) -> str:
        """Name of the template, without its suffix."""
        return "Dockerfile" + (".gpu" if self.gpu else ".embedded" if self.embedded else "")


def choose(spec: Spec) -> dict[str, list[Version]]:
    """Return what the deployment's policies would load now, by model.

    Raises:
        SpecError: a base path is remote, or lacks what its policy asks for.
    """
    chosen, found = {}, []
    for name, model in spec.models.items():
        try:
            chosen[name] = _choose(model.base_path, model.versions)
        except (OSError, ValueError) as error:
            text = f"cannot be put into an image: {error}"
            found.append(Problem(f"models.{name}.base_path", text))
    if found:
        raise SpecError("deployment", found)
    return chosen


def _choose(base_path: str, policy: VersionPolicy) -> list[Version]:
    if "://" in base_path:
        raise ValueError(f"{base_path} is not on this machine")
    there = scan(Path(base_path))
    if missing := set(policy.specific) - {each.number for each in there}:
        raise ValueError(f"{base_path} does not hold {sorted(missing)}")
    if not there:
        raise ValueError(f"{base_path} holds no version")
    numbers = policy.loads(each.number for each in there)
    wanted = [each for each in there if each.number in numbers]
    if files := [str(each.path) for each in wanted if not each.path.is_dir()]:
        raise ValueError(f"{', '.join(files)} is no folder")
    return wanted


def files(
    spec: Spec | None,
    versions: Versions,
    variant: Variant | None = None,
    *,
    templates: Path | None = None,
) -> dict[str, str]:
    """Return the texts of a build folder: path in it to text.

    Args:
        spec: the deployment; None for the embedded engine's image without a model.
        versions: what `choose` returned for it.
        variant: what the image is made from; the official one if None.
        templates: a folder whose templates replace ours.

    Raises:
        SpecError: a template is broken, or a model's name cannot stand in a Dockerfile.
        UsageError: there is neither a model nor a server to put into the image.
    """
    variant = variant or Variant()
    if spec is None and not variant.embedded:
        raise UsageError("an official image without a model", remedy=f"use {variant.image} itself")
    values: dict[str, Any] = {
        "base": variant.image,
        "wheels": variant.wheels,
        "version": version("tfserve-kit"),
        "models": list(versions),
        "folder": folder_name,
        "quoted": _quoted,
        "shell": shlex.quote,
    }
    found: dict[str, str] = {}
    if spec is not None:
        values["labels"] = _labels(spec, versions, variant)
        values["patience_s"] = round(spec.server.ready_timeout_s)
        found |= _model_files(spec, values, templates)
    if variant.embedded:
        found["server/requirements.txt"] = "\n".join(_requirements()) + "\n"
        found |= _texts("server", ["tf_serving_entrypoint.sh"], values, templates)
    return found | {"Dockerfile": render.text(variant.template, values, templates=templates)}


def numbers(versions: Versions) -> dict[str, list[int]]:
    """Return the version numbers, by model."""
    return {name: [each.number for each in chosen] for name, chosen in versions.items()}


def _labels(spec: Spec, versions: Versions, variant: Variant) -> dict[str, str]:
    """Return the labels of an image; the names before ours are those of the OCI image spec."""
    return {
        "org.opencontainers.image.title": spec.server.name,
        "org.opencontainers.image.base.name": variant.image,
        "tfkit.version": version("tfserve-kit"),
        "tfkit.models": json.dumps(numbers(versions)),
    }


def _model_files(spec: Spec, values: dict[str, Any], templates: Path | None) -> dict[str, str]:
    """Return the configuration as the container sees it, and the scripts that use it."""
    inside = _inside(spec)
    configs = render.render(inside, templates=templates)
    values = values | {"flags": flags.argv(inside, configs, _CONFIG), "path": _url_path}
    found = {f"tfkit/config/{name}": text for name, text in configs.items()}
    return found | _texts("tfkit", ["entrypoint.sh", "healthcheck.sh"], values, templates)


def _texts(
    folder: str, names: Sequence[str], values: Mapping[str, Any], templates: Path | None
) -> dict[str, str]:
    return {f"{folder}/{name}": render.text(name, values, templates=templates) for name in names}


def _inside(spec: Spec) -> Spec:
    """Return the deployment as it is in the container: its ports and its base paths."""
    models = {
        name: model.model_copy(update={"base_path": f"/models/{folder_name(name)}"})
        for name, model in spec.models.items()
    }
    return with_image_ports(spec.model_copy(update={"models": models}))


def folder_name(model: str) -> str:
    """Return the name of a model's folder: its own, what is special in it percent-encoded."""
    return model.replace(".", "%2E") if model in {".", ".."} else _url_path(model)


def _url_path(model: str) -> str:
    return quote(model, safe="")


def _quoted(text: str) -> str:
    """Return text as a quoted word of a Dockerfile."""
    if not text.isprintable():
        raise ValueError(f"{text!r} cannot stand in a Dockerfile")
    return '"' + re.sub(r'(["\\$])', r"\\\1", text) + '"'


def _requirements() -> Iterator[str]:
    """Yield what the embedded engine requires, as the installed package says."""
    for line in requires("tfserve-kit") or []:
        requirement, _, marker = line.partition(";")
        if not marker or "embedded" in marker:
            yield requirement.strip()
