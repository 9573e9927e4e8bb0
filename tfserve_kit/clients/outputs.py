"""The outputs of a request: stored in numpy's own format, or described for a reader."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError
from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.json import to_value

_MOST_DIGITS = 9  # tell any two float32 apart
_EXACT_POWER = 22  # of ten, as a float64
_NARROW = {"half", "bfloat16", "float"}
_MOST_BYTES = 4 << 30  # of an output that is written
_MOST_SHOWN = 4_000_000  # values in one JSON document; more would take gigabytes
NPZ_MARK = b"outputs of a request, written by tfkit"
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
            archive.comment = NPZ_MARK
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
    longest = max(map(len, array.ravel().tolist()), default=0)
    if longest * array.size > _MOST_BYTES:
        raise UsageError(
            f"output {alias!r:.80} has strings of up to {longest:,} bytes, and .npz would give "
            f"each of {array.size:,} as much",
            remedy="use --json",
        )
    stored = array.astype(np.bytes_)
    if any(item.endswith(b"\0") for item in array.ravel()):
        raise UsageError(
            f"output {alias!r} has strings that end in zero bytes, which .npz cannot hold",
            remedy="use --json",
        )
    return stored


def values(array: NDArray[Any]) -> Any:
    """Return an array as nested lists, as results in JSON have it.

    Numbers are the shortest decimals that mean just this value of the array's type: 0.1 where a
    float32 widened to float64 is 0.10000000149. Bytes are `{"b64": ...}`, complex numbers
    `{"real": ..., "imag": ...}`.
    """
    if array.dtype.kind == "c":
        return _pairs(values(array.real), values(array.imag))
    return to_value(shortest(array))


def _pairs(real: Any, imaginary: Any) -> Any:
    if isinstance(real, list):
        return [_pairs(*each) for each in zip(real, imaginary, strict=True)]
    return {"real": real, "imag": imaginary}


def shortest(array: NDArray[Any]) -> NDArray[Any]:
    """Return floats of fewer than 64 bits as float64 with the shortest decimals that mean them."""
    if dtypes.by_numpy(array.dtype).name not in _NARROW:
        return array
    with np.errstate(all="ignore"):
        flat = array.ravel()  # a number without any axis cannot be assigned to
        found = flat.astype(np.float64)
        open_ = np.isfinite(found) & (found != 0)
        for digits in range(1, _MOST_DIGITS + 1):
            rounded = _rounded(found[open_], digits)
            fits = rounded.astype(array.dtype) == flat[open_]
            found[open_] = np.where(fits, rounded, found[open_])
            open_[open_] = ~fits
            if not open_.any():
                break
    return found.reshape(array.shape)


def _rounded(values: NDArray[np.float64], digits: int) -> NDArray[np.float64]:
    """Return values with so many significant digits, each the float64 next to these."""
    places = digits - 1 - np.floor(np.log10(np.abs(values))).astype(np.int64)
    scale = np.float64(10.0) ** np.abs(places)  # exact up to 10**22, so one operation rounds right
    near = np.where(places > 0, np.rint(values * scale) / scale, np.rint(values / scale) * scale)
    for index in np.flatnonzero(np.abs(places) > _EXACT_POWER):
        near[index] = float(f"{values[index]:.{digits - 1}e}")
    return near


def require_few(outputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse outputs that are too many to be shown whole.

    Raises:
        UsageError: they hold more values; a string counts for one for each 16 bytes, besides.
    """
    weight = sum(map(_weight, outputs.values()))
    if weight > _MOST_SHOWN:
        raise UsageError(
            f"the outputs hold {weight:,} values, more than the {_MOST_SHOWN:,} that --json shows",
            remedy="store them with --output FILE.npz, or ask for fewer with --output-filter",
        )


def _weight(array: NDArray[Any]) -> int:
    if array.dtype.kind != "O":
        return array.size
    return array.size + sum(map(len, array.ravel().tolist())) // 16


def describe(outputs: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield alias, type with shape, and the first values of each output."""
    for alias, array in outputs.items():
        shape = ", ".join(map(str, array.shape))
        first = shortest(array.ravel()[:_MOST_VALUES]).tolist()
        more = ", ..." if array.size > _MOST_VALUES else ""
        text = ", ".join(map(_value, first)) + more
        if len(text) > _MOST_CHARACTERS:
            text = text[: _MOST_CHARACTERS - 4].rstrip(", ") + " ..."
        yield alias, f"{dtypes.by_numpy(array.dtype).name} [{shape}]", text


def _value(item: Any) -> str:
    if isinstance(item, float):
        return repr(item).removesuffix(".0")
    if isinstance(item, bytes):
        return repr(item[:_MOST_CHARACTERS].decode("utf-8", "backslashreplace"))
    return str(item)
