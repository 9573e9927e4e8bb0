"""Where a model comes from, and how it gets into a staging folder."""

from dataclasses import dataclass
from pathlib import Path

from tfserve_kit import savedmodel
from tfserve_kit.errors import PushRefused
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.repository.copying import copy_tree
from tfserve_kit.repository.manifest import Files


@dataclass(frozen=True, slots=True)
class Fetched:
    """A SavedModel in a staging folder: its directory there, and its files."""

    root: Path
    files: Files


@dataclass(frozen=True, slots=True)
class Source:
    """A model to push.

    Attributes:
        place: a SavedModel directory.
    """

    place: str

    def described(self) -> str:
        """Return the place without secrets, to be remembered."""
        return self.place

    def fetch(self, folder: Path, *, tag: str = "serve", progress: Progress = SILENT) -> Fetched:
        """Bring the model into a folder.

        Args:
            folder: an empty folder, which may be left with other things as well.
            tag: the graph a server will load.
            progress: told the steps and the bytes.

        Raises:
            PushRefused: there is no complete SavedModel.
            OSError: the file system refuses.
        """
        directory = Path(self.place)
        progress.step(f"checking {directory}")
        _require_complete(directory, tag)
        _require_apart(directory, folder)
        root = folder / "model"
        root.mkdir()
        progress.step(f"copying to {folder.parent}")
        return Fetched(root, copy_tree(directory, root, progress))


def _require_complete(directory: Path, tag: str) -> None:
    found = savedmodel.problems(directory, tag=tag)
    if found:
        lines = "".join(f"\n  - {problem}" for problem in found)
        raise PushRefused(f"{directory} is no complete SavedModel:{lines}")


def _require_apart(source: Path, folder: Path) -> None:
    if folder.resolve().is_relative_to(source.resolve()):
        raise PushRefused(
            f"{folder.parent} lies inside the model {source}, which would be copied into itself",
            remedy="give a base path outside the SavedModel",
        )
