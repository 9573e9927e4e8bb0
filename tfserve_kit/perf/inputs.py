"""What to send as arrays: random numbers, a file, or a folder of files."""

from pathlib import Path

import numpy as np

from tfserve_kit.clients.files import read_inputs
from tfserve_kit.errors import UsageError
from tfserve_kit.perf.payloads import Inputs, recorded_inputs, several_random_inputs
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature
from tfserve_kit.savedmodel.batch_axes import BatchAxes, batch_axes, counted

RANDOM = "random"
_DISTINCT = 8  # enough that no cache of the machine holds just one


def inputs_of(
    source: str,
    signature: Signature,
    batch: int,
    note: Preprocessing,
    graph: PictureGraph | None = None,
) -> list[Inputs]:
    """Return the inputs of each distinct request.

    Args:
        source: `random`; a file as `tfkit request` takes it; or a folder of such files, in the
            order of their names.
        signature: the one that will be called.
        batch: rows in each request; 1 takes a file as it is. A file with one row is repeated, one
            with more is cut into several requests.
        note: how pictures are prepared.
        graph: the version's graph, which tells what the note leaves open.

    Raises:
        UsageError: there is nothing to send, a file has too few rows, or the signature does not
            take so many.
        InvalidRequest: a file cannot be read or does not fit the signature.
    """
    if source == RANDOM:
        return several_random_inputs(signature, batch, seed=0, count=_DISTINCT)
    path = Path(source)
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{source} holds no files", remedy="give a file, a folder or random")
    axes = batch_axes(signature)
    read = (read_inputs([file], signature, note, graph=graph, any_rows=True) for file in files)
    return [inputs for arrays in read for inputs in _batches(arrays, batch, axes)]


def _batches(arrays: Inputs, batch: int, axes: BatchAxes) -> list[Inputs]:
    rows = axes.row_counts(arrays)
    if batch == 1 and axes.fixed_rows is None:
        return [arrays]
    batch = axes.fixed_rows or 1 if batch == 1 else batch
    if axes.fixed_rows not in {None, batch} or not (rows and axes.are_cuttable):
        why = ", ".join(map(str, axes.composites)) or (
            f"each request must have {counted(axes.fixed_rows)}"
            if axes.fixed_rows
            else "no input has a batch axis"
        )
        raise UsageError(
            f"no requests of {batch} rows can be made: {why}", remedy="leave out --batch"
        )
    if set(rows.values()) == {1}:
        return [axes.taken(arrays, np.zeros(batch, np.intp))]
    return recorded_inputs(arrays, batch, axes)
