"""Which of the folders in a tree is the SavedModel that was meant."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from tfserve_kit.errors import PushRefused
from tfserve_kit.progress import Progress
from tfserve_kit.repository.versions import parse_version
from tfserve_kit.savedmodel import GRAPH_FILE, GRAPH_FILES, graph_file

_DEPTH = 3  # model/1/saved_model.pb, and one wrapping folder more


def models_in(directory: Path, depth: int = _DEPTH) -> Iterator[str]:
    """Yield the paths of the SavedModels in a directory, none within another; hidden ones not."""
    if graph_file(directory):
        yield ""
    elif depth and directory.is_dir():
        with os.scandir(directory) as entries:
            inner = sorted(entry.name for entry in entries if entry.is_dir())
        for name in inner:
            if not name.startswith("."):
                yield from (
                    f"{name}/{rest}".rstrip("/") for rest in models_in(directory / name, depth - 1)
                )


def models_among(names: Iterable[str]) -> list[str]:
    """Return the paths of the SavedModels in a list of files, none within another."""
    found: list[str] = []
    paths = [PurePosixPath(name) for name in names]
    for path in sorted(path.parent for path in paths if path.name in GRAPH_FILES):
        hidden = any(part.startswith(".") for part in path.parts)
        if not hidden and not any(path.is_relative_to(outer) for outer in found):
            found.append("" if path == PurePosixPath() else str(path))
    return found


def choose(models: Iterable[str], version: int | None, place: str, progress: Progress) -> str:
    """Return the SavedModel to push: the only one, or of several versions the highest.

    Args:
        models: paths of SavedModels.
        version: the one to take; None for the highest.
        place: named in errors.
        progress: told which version was taken where there are others.

    Raises:
        PushRefused: there is none, or several that are no versions of one model.
    """
    found = sorted(models)
    if not found:
        raise PushRefused(
            f"{place} is no complete SavedModel:\n  - {GRAPH_FILE}: is missing",
            remedy="give the directory that holds it, as tf.saved_model.save writes it",
        )
    versions = {parse_version(PurePosixPath(path).name): path for path in found}
    if version is not None:
        if version not in versions:
            numbers = sorted(number for number in versions if number is not None)
            listed = ", ".join(map(str, numbers)) or "no version folders"
            raise PushRefused(f"{place} holds no version {version}", remedy=f"it holds {listed}")
        return versions[version]
    if len(found) == 1:
        return found[0]
    if None in versions or len({PurePosixPath(path).parent for path in found}) > 1:
        listed = ", ".join(found[:10])
        raise PushRefused(
            f"{place} holds several models: {listed}", remedy="give the folder of one"
        )
    highest = max(number for number in versions if number is not None)
    progress.note(f"Taking version {highest}, the highest of {len(found)} in {place}")
    return versions[highest]
