"""Images with the models inside: a folder that `docker build` takes as it is, and its build."""

import contextlib
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit.deployment.schema import Spec
from tfserve_kit.engines.daemon import connected
from tfserve_kit.engines.image_files import Variant, Versions, choose, files, folder_name, numbers
from tfserve_kit.errors import ServerFailed, UsageError
from tfserve_kit.progress import SILENT, Progress

LOG_TAIL = 15
_CHATTER = (" ---> ", "Removing intermediate container ")
_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")


@dataclass(frozen=True, slots=True)
class Context:
    """A folder that `docker build` takes: its Dockerfile's base, and the versions in it."""

    folder: Path
    base: str
    models: Mapping[str, Sequence[int]]


def render_context(
    spec: Spec | None,
    folder: Path,
    variant: Variant | None = None,
    *,
    templates: Path | None = None,
    progress: Progress = SILENT,
) -> Context:
    """Write all that `docker build` needs into a new or empty folder.

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
        raise UsageError(f"cannot write to {folder}: {error}") from error
    return Context(folder, variant.image, numbers(versions))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    file.chmod(0o755 if text.startswith("#!") else 0o644)
    file.parent.chmod(0o755)


def _link_models(versions: Versions, folder: Path, progress: Progress) -> None:
    for name, chosen in versions.items():
        for each in chosen:
            progress.step(f"copying version {each.number} of {name}")
            _link_tree(each.path, folder / folder_name(name) / str(each.number))


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
            raise ServerFailed(f"Docker did not build {tag}: {error}") from error


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
            f"image {tag} was not built: {failure} (step {step!r:.200})", log_tail=list(tail)
        )
    return image
