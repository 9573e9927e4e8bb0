"""The outputs of a request: stored in numpy's own format, or described for a reader."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError
from tfserve_kit.tensors import dtypes

_MOST_VALUES, _MOST_CHARACTERS = 8, 60  # of a description


def write_npz(file: Path, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Write outputs so that `numpy.load` reads them without pickle.

    Strings become numpy's bytes of one length (dtype S), and bfloat16 becomes float32.

    Args:
        file: replaced if it exists.
        outputs: array per alias.

    Raises:
        UsageError: the file cannot be written, or a string ends in a zero byte, which is lost.
    """
    arrays = {alias: _storable(alias, array) for alias, array in outputs.items()}
    try:
        # Not numpy.savez: there an alias such as "file" would be an argument.
        with zipfile.ZipFile(file, "w") as archive:
            for alias, array in arrays.items():
                with archive.open(f"{alias}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error


def _storable(alias: str, array: NDArray[Any]) -> NDArray[Any]:
    dtype = dtypes.by_numpy(array.dtype)
    if dtype is dtypes.BFLOAT16:
        return array.astype(np.float32)
    if dtype is not dtypes.STRING:
        return array
    stored = array.astype(np.bytes_)
    if any(item.endswith(b"\0") for item in array.ravel()):
        raise UsageError(
            f"output {alias!r} has strings that end in zero bytes, which .npz cannot hold",
            remedy="use --json",
        )
    return stored


def describe(outputs: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield alias, type with shape, and the first values of each output."""
    for alias, array in outputs.items():
        shape = ", ".join(map(str, array.shape))
        values = ", ".join(_value(item) for item in array.ravel()[:_MOST_VALUES].tolist())
        more = ", ..." if array.size > _MOST_VALUES else ""
        text = values + more
        if len(text) > _MOST_CHARACTERS:
            text = text[: _MOST_CHARACTERS - 4].rstrip(", ") + " ..."
        yield alias, f"{dtypes.by_numpy(array.dtype).name} [{shape}]", text


def _value(item: Any) -> str:
    if isinstance(item, float):
        return f"{item:.6g}"
    if isinstance(item, bytes):
        return repr(item[:_MOST_CHARACTERS].decode("utf-8", "backslashreplace"))
    return str(item)
