"""Labelled sets on disk: told apart and opened."""

from collections.abc import Sequence
from pathlib import Path

from tfserve_kit.errors import UsageError
from tfserve_kit.evaluation import arrays, tables
from tfserve_kit.evaluation.examples import Dataset
from tfserve_kit.evaluation.folders import open_folder
from tfserve_kit.evaluation.table_sample import Given

_FORMS = (
    "give a folder with one folder of pictures per class, MNIST's files, a .csv or an .npz file"
)


_TABLES = {".csv", ".tsv", ".tab", ".psv", ".txt"}
_AS_WRITTEN = Given()


def open_dataset(paths: Sequence[Path], given: Given = _AS_WRITTEN) -> Dataset:
    """Open a labelled set; nothing but labels and sizes is read yet.

    Args:
        paths: a folder with a folder per class; MNIST's two files, or the folder that holds them;
            a CSV file of `path,label` or `label,pixel,pixel,...`; or an .npz file with x and y.
        given: what is known of a CSV file.

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
        if path.suffix.lower() in _TABLES:
            return tables.open_csv(path, given)
        if path.suffix.lower() == ".npz":
            return arrays.open_npz(path)
    if len(paths) <= 2 and all(path.is_file() for path in paths):  # noqa: PLR2004 (images, labels)
        return arrays.open_idx(*paths)
    raise UsageError(f"{len(paths)} paths are no labelled set", remedy=_FORMS)
