"""Labelled sets on disk: told apart and opened."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tfserve_kit.errors import UsageError
from tfserve_kit.evaluation import arrays, tables
from tfserve_kit.evaluation.examples import Dataset, Files

_FORMS = (
    "give a folder with one folder of pictures per class, MNIST's files, a .csv or an .npz file"
)


def open_dataset(paths: Sequence[Path]) -> Dataset:
    """Open a labelled set; nothing but labels and sizes is read yet.

    Args:
        paths: a folder with a folder per class; MNIST's two files, or the folder that holds them;
            a CSV file of `path,label` or `label,pixel,pixel,...`; or an .npz file with x and y.

    Raises:
        UsageError: there is no set, or it is damaged.
    """
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist", remedy=_FORMS)
    if len(paths) == 1:
        (path,) = paths
        if path.is_dir():
            pair = arrays.idx_files_in(path)
            return arrays.open_idx(*pair) if pair else open_folder(path)
        if path.suffix.lower() == ".csv":
            return tables.open_csv(path)
        if path.suffix.lower() == ".npz":
            return arrays.open_npz(path)
    if len(paths) <= 2 and all(path.is_file() for path in paths):  # noqa: PLR2004 (images, labels)
        return arrays.open_idx(*paths)
    raise UsageError(f"{len(paths)} paths are no labelled set", remedy=_FORMS)


def open_folder(folder: Path) -> Files:
    """Open a folder with one folder per class; the names of those are the labels.

    Every file in them counts as a picture, but for hidden ones.

    Raises:
        UsageError: there are no such folders, or no files in them.
    """
    entries = [
        (file, str(file), kind.name)
        for kind in _shown(folder.iterdir())
        if kind.is_dir()
        for file in _shown(kind.rglob("*"))
        if file.is_file()
    ]
    if not entries:
        raise UsageError(f"{folder} holds no folders with pictures", remedy=_FORMS)
    return Files(str(folder), entries)


def _shown(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith("."))
