"""Images with the models inside: a folder that `docker build` takes as it is, and its build."""

import contextlib
import json
import re
import shlex
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tfserve_kit.deployment import render
from tfserve_kit.deployment.spec import Spec, VersionPolicy
from tfserve_kit.engines.base import LOG_TAIL
from tfserve_kit.engines.container import official_image, with_image_ports
from tfserve_kit.engines.docker import connected
from tfserve_kit.errors import Problem, ServerFailed, SpecError, UsageError
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository import Version, list_versions

PYTHON_IMAGE = "python:3.12-slim"
_CONFIG = "/tfkit/config"
_IMAGE = re.compile(r"[\w][\w./:@-]*", re.ASCII)

Versions = Mapping[str, Sequence[Version]]


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
            raise UsageError(
                "wheels are only for the embedded engine",
                remedy="add --embedded, or leave out --wheels",
            )
        if self.base and not _IMAGE.fullmatch(self.base):
            raise UsageError(
                f"{self.base!r} is not the name of an image",
                remedy="write NAME[:TAG], such as tensorflow/serving:2.19.0",
            )

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
            place = shlex.quote(model.base_path)
            remedy = f"tfkit push-model SAVED_MODEL --to {place} stores a version there"
            found.append(Problem(f"models.{name}.base_path", text, remedy))
    if found:
        raise SpecError("deployment", found)
    return chosen


def _choose(base_path: str, policy: VersionPolicy) -> list[Version]:
    if "://" in base_path:
        raise ValueError(f"{base_path} is not on this machine")
    there = list_versions(Path(base_path))
    if missing := set(policy.specific) - {each.number for each in there}:
        raise ValueError(f"{base_path} does not hold {sorted(missing)}")
    if not there:
        raise ValueError(f"{base_path} holds no version")
    numbers = policy.loads(each.number for each in there)
    wanted = [each for each in there if each.number in numbers]
    if files := [str(each.path) for each in wanted if not each.path.is_dir()]:
        raise ValueError(f"{', '.join(files)} is not a folder")
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
        "folder": _folder_name,
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
    values = values | {"flags": inside.argv(configs, _CONFIG), "path": _url_path}
    found = {f"tfkit/config/{name}": text for name, text in configs.items()}
    return found | _texts("tfkit", ["entrypoint.sh", "healthcheck.sh"], values, templates)


def _texts(
    folder: str, names: Sequence[str], values: Mapping[str, Any], templates: Path | None
) -> dict[str, str]:
    return {f"{folder}/{name}": render.text(name, values, templates=templates) for name in names}


def _inside(spec: Spec) -> Spec:
    """Return the deployment as it is in the container: its ports and its base paths."""
    models = {
        name: model.model_copy(update={"base_path": f"/models/{_folder_name(name)}"})
        for name, model in spec.models.items()
    }
    return with_image_ports(spec.model_copy(update={"models": models}))


def _folder_name(model: str) -> str:
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


_CHATTER = (" ---> ", "Removing intermediate container ")
_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")


def render_context(
    spec: Spec | None,
    folder: Path,
    variant: Variant | None = None,
    *,
    templates: Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, list[int]]:
    """Write all that `docker build` needs into a new or empty folder; return the versions by model.

    Model files become hard links where that is possible, else copies.

    Args:
        spec: the deployment; None for the embedded engine's image without a model.
        folder: where to write.
        variant: what the image is made from; the official one if None.
        templates: a folder whose templates replace ours.
        progress: told the steps.

    Raises:
        SpecError: as `choose` and `files` do.
        UsageError: the folder cannot be written or is not empty, or the variant is impossible.
    """
    variant = variant or Variant()
    versions = choose(spec) if spec else {}
    texts = files(spec, versions, variant, templates=templates)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty", remedy="name a new folder")
        for name, text in texts.items():
            _write(folder / name, text)
        _link_models(versions, folder / "models", progress)
        if variant.wheels:
            _link_wheels(variant.wheels, folder)
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error}", remedy="name a folder that this user may write to"
        ) from error
    return numbers(versions)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    file.chmod(0o755 if text.startswith("#!") else 0o644)
    file.parent.chmod(0o755)


def _link_models(versions: Versions, folder: Path, progress: Progress) -> None:
    for name, chosen in versions.items():
        for each in chosen:
            progress.step(f"copying version {each.number} of {name}")
            _link_tree(each.path, folder / _folder_name(name) / str(each.number))


def _link_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_link)
    for made in (target, *target.rglob("*")):
        if made.is_dir():
            made.chmod(0o755)  # whatever the original says: the server is another user


def _link(source: str | Path, target: str | Path) -> None:
    """Make a link to a file that everybody may read; else a copy that everybody may read."""
    file = Path(source).resolve()
    if file.stat().st_mode & 0o004:
        with contextlib.suppress(OSError):  # another file system
            Path(target).hardlink_to(file)
            return
    shutil.copyfile(file, target)
    Path(target).chmod(0o644)


def _link_wheels(wheels: Path, folder: Path) -> None:
    """Put tfkit's own wheel beside the server's script, and all others into their layer."""
    (folder / "wheels").mkdir()
    for wheel in wheels.glob("*.whl"):
        own = wheel.name.startswith("tfserve_kit-")
        _link(wheel, folder / ("server" if own else "wheels") / wheel.name)


def build(folder: Path, tag: str, *, progress: Progress = SILENT) -> str:
    """Build an image as `docker build` does, and return its id.

    Args:
        folder: what `render_context` wrote.
        tag: name of the image.
        progress: told each step of the Dockerfile.

    Raises:
        EngineUnavailable: no Docker daemon answers.
        ServerFailed: a step failed; the error holds the last lines of its output.
    """
    import docker
    import requests

    with connected() as client:
        try:
            lines = client.api.build(
                path=str(folder), tag=tag, rm=True, forcerm=True, decode=True, timeout=None
            )
            return _follow(lines, tag, progress)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise ServerFailed(
                f"Docker did not build {tag}: {error}",
                remedy="`docker info` says whether the daemon is well",
            ) from error


def _follow(lines: Iterator[dict[str, Any]], tag: str, progress: Progress) -> str:
    """Tell the steps of a build, and return the image's id, which comes near the end."""
    tail: deque[str] = deque(maxlen=LOG_TAIL)
    image = step = failure = ""
    for line in lines:  # to the end, also after an error: else the connection stays open
        for text in str(line.get("stream", "")).splitlines():
            if found := _STEP.match(text):
                step = " ".join(found[3].split())
                tail.clear()
                progress.step(f"building {tag}: {step:.60}")
                progress.advance(int(found[1]) - 1, int(found[2]))
            elif text.strip() and not text.startswith(_CHATTER):
                tail.append(text.rstrip())
        failure = str(line.get("error", failure))
        image = line.get("aux", {}).get("ID", image)
    if failure:
        raise ServerFailed(
            f"image {tag} was not built: {failure} (step {step!r:.200})",
            log_tail=list(tail),
            remedy="the lines below say why; `--out FOLDER` keeps the Dockerfile to try by hand",
        )
    return image
