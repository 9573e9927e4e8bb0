"""Files that hold inputs, and files for outputs: pictures, JSON bodies and numpy's own files."""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.clients.inputs import require_float32
from tfserve_kit.errors import InvalidRequest, UsageError, did_you_mean, file_error
from tfserve_kit.pictures.files import (
    JSON,
    SUFFIXES,
    begins_as_picture,
    kind_of,
    read_file,
)
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.inputs import ImageInput, Keys, image_input, told
from tfserve_kit.pictures.prepare import prepare, require_picture
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import NOTE_PATH, Signature, TensorSpec
from tfserve_kit.savedmodel.signatures import BatchAxes, batch_axes, counted, of_any_rows
from tfserve_kit.tensors import dtypes, numpy_files
from tfserve_kit.tensors.dtypes import DType
from tfserve_kit.tensors.json import from_value, to_value
from tfserve_kit.tensors.proto import TensorError

Arrays = dict[str, NDArray[Any]]


def read_inputs_for(
    version_dir: Path | None, files: Iterable[Path], signature: Signature, **options: Any
) -> Arrays:
    """Return the inputs that files hold, pictures as a version wants them; see `read_inputs`.

    Args:
        version_dir: the version's folder, which holds its note and its graph; None if it is not
            here.
        files: what to read.
        signature: the one that will be called.
        options: further ones of `read_inputs`.
    """
    note = Preprocessing.read(version_dir) if version_dir else Preprocessing()
    graph = PictureGraph(version_dir, signature.name)
    return read_inputs(files, signature, note, graph=graph, **options)


def read_inputs(
    files: Iterable[Path],
    signature: Signature,
    note: Preprocessing,
    *,
    graph: PictureGraph | None = None,
    any_rows: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Arrays:
    """Return the inputs that files hold, joined row by row where several hold the same input.

    A parameter, an input without a batch axis, must be the same wherever it is given.

    - `.json`, and JSON under any name: the body of a REST request, `{"instances": ...}` or
      `{"inputs": ...}`; or `{"examples": ...}`, which becomes serialized tf.Example for the
      signature's one string input.
    - `.npy`: the signature's one input; `.npz`: an input under each alias.
    - anything else: a picture, prepared as the note, the graph and the signature ask. A key beside
      it that no file holds is the picture's name.

    Args:
        files: what to read, in order; `-` is standard input.
        signature: the one that will be called.
        note: how pictures are prepared.
        graph: the version's graph, which tells what the note leaves open.
        any_rows: whether another number of rows will do than the signature fixes.
        tell: called with what was decided about pictures, if there are any.

    Returns:
        Array per alias, of the dtype and a shape that the signature asks for, first axis included.
        Inputs that no file holds are left out.

    Raises:
        InvalidRequest: a file cannot be read or does not fit the signature.
        UsageError: there is a picture and the signature takes none.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    given, signature = signature, of_any_rows(signature)
    wanted: ImageInput | None = None
    pictures: list[tuple[str, int]] = []
    for file in files:
        if file.suffix.lower() in _READERS:
            arrays = _READERS[file.suffix.lower()](file, signature)
        elif kind_of(data := read_file(file)) is JSON:  # standard input, say, which has no name
            arrays = inputs_of_text(data, signature, str(file))
        else:
            require_picture(data, str(file))
            if file.suffix.lower() not in SUFFIXES and not begins_as_picture(data):
                start = f"it starts with {data[:16]!r}" if data else "it is empty"
                raise InvalidRequest(f"{file} holds no input: {start}", remedy=_FORMS)
            wanted = wanted or image_input(signature, note, graph=graph)
            picture = prepare(data, wanted, name=str(file))
            arrays = {wanted.alias: wanted.join([picture])}
            pictures.append((str(file), len(pictures)))
        for alias, array in arrays.items():
            found.setdefault(alias, []).append(_fitted(array, alias, signature, file))
    axes = batch_axes(given)
    joined = {alias: _joined(alias, arrays, axes) for alias, arrays in found.items()}
    if wanted:
        keys = Keys(signature, joined)
        joined |= keys.values(pictures)
        if tell:
            tell(f"Input {told(wanted.alias, (*wanted.choices, *keys.choices), _CHANGE)}")
    if not any_rows:
        _require_rows(joined, axes)
    return joined


_CHANGE = f"send the array as .npy, or store {NOTE_PATH} with the version"


def _require_rows(arrays: Arrays, axes: BatchAxes) -> None:
    """Refuse another number of rows than the signature fixes."""
    for alias, rows in axes.row_counts(arrays).items():
        if axes.fixed_rows not in {None, rows}:
            raise InvalidRequest(
                f"input {alias!r} has {counted(rows)}, and the model takes {axes.fixed_rows} in "
                "each request",
                remedy="give files with that many rows in total",
            )


def inputs_of_body(document: Any, signature: Signature, place: str) -> Arrays:
    """Return the inputs in the body of a REST request that was read from JSON; see `read_inputs`.

    Args:
        document: the body; keys that are none of a Predict request's are passed over.
        signature: the one that will be called.
        place: where it was read, for messages.

    Raises:
        InvalidRequest: it is not a request, or does not fit the signature.
    """
    source = Path(place)
    try:
        arrays = dict(_columns(document, signature, source))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{place} is not a request: {error}", remedy=_BODY) from error
    return {alias: _fitted(array, alias, signature, source) for alias, array in arrays.items()}


def inputs_of_text(text: str | bytes, signature: Signature, place: str) -> Arrays:
    """Return the inputs in the body of a REST request; see `inputs_of_body`.

    Raises:
        InvalidRequest: it is not JSON, not a request, or does not fit the signature.
    """
    try:
        document = json.loads(text, parse_float=_real)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{place} is not JSON: {error}", remedy=_BODY) from error
    return inputs_of_body(document, signature, place)


def _joined(alias: str, arrays: Sequence[NDArray[Any]], axes: BatchAxes) -> NDArray[Any]:
    if len(arrays) == 1:
        return arrays[0]
    if whole := [each for each in axes.composites if alias in each.aliases]:
        raise InvalidRequest(f"files cannot be joined: {whole[0]}", remedy="give one file")
    if axes.rows and not all(axes.counts(alias, array) for array in arrays):
        return _the_same(alias, arrays)
    try:
        if not axes.rows:
            raise ValueError("no axis counts rows")  # noqa: TRY301
        return np.concatenate(arrays)
    except ValueError as error:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise InvalidRequest(
            f"input {alias!r} cannot be joined from the shapes {shapes}: {error}",
            remedy="give rows of one shape, or one file",
        ) from error


def _the_same(alias: str, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the one value of a parameter."""
    for each in values[1:]:
        if not np.array_equal(each, values[0]):
            raise InvalidRequest(
                f"input {alias!r} has no batch axis, so all rows share one value, but it was given "
                f"as {values[0].tolist()!r:.40} and as {each.tolist()!r:.40}",
                remedy="send them in separate requests",
            )
    return values[0]


def _spec(alias: str, signature: Signature, file: Path) -> TensorSpec:
    if alias not in signature.inputs:
        raise InvalidRequest(
            f"{file}: signature {signature.name!r} has no input {alias!r:.80}",
            remedy=did_you_mean(alias[:80], signature.inputs),
        )
    return signature.inputs[alias]


def _only_input(signature: Signature, file: Path) -> str:
    if len(signature.inputs) != 1:
        names = ", ".join(signature.inputs) or "none"
        raise InvalidRequest(
            f"{file} does not name its input, and signature {signature.name!r} has {names}",
            remedy='name them: .npz, or JSON such as {"inputs": {"alias": ...}}',
        )
    return next(iter(signature.inputs))


def _fitted(array: NDArray[Any], alias: str, signature: Signature, file: Path) -> NDArray[Any]:
    """Return an array in the dtype of an input, if no value changes by it; see `convert`."""
    spec, why = _spec(alias, signature, file), ""
    sizes = ["?" if size is None else str(size) for size in spec.shape or ()]
    shape = ", ".join(["rows", *sizes[1:]] if sizes[:1] == ["?"] else sizes)
    remedy = f"give an array of shape [{shape}]; `tfkit metadata` shows the inputs"
    cast: NDArray[Any] | None = None
    try:
        have = dtypes.by_numpy(array.dtype)
        if spec.dtype is not None:
            cast = array if have is spec.dtype else dtypes.convert(array, spec.dtype)
    except TypeError:  # no type of TensorFlow's
        pass
    except dtypes.CannotConvert as error:
        why, remedy = str(error), error.remedy
    if cast is None or not spec.takes(array.shape):
        text = f"is {array.dtype} {list(array.shape)}, not {spec}{why}"
        if cast is not None:
            text = f"has shape {list(array.shape)}, not [{shape}]"
        raise InvalidRequest(
            f"{file}: input {alias!r} {text}",
            remedy=remedy,
        )
    return cast


def _from_numpy(file: Path, signature: Signature) -> Arrays:
    try:
        loaded = numpy_files.read(file)
    except FileNotFoundError as error:
        raise file_error(InvalidRequest, "read", file, error) from error
    except Exception as error:
        raise InvalidRequest(
            f"{file} cannot be read as a numpy file: {error}",
            remedy="write it with numpy.save or numpy.savez, text as dtype S or U",
        ) from error
    return loaded if isinstance(loaded, dict) else {_only_input(signature, file): loaded}


def _from_json(file: Path, signature: Signature) -> Arrays:
    try:
        document = json.loads(read_file(file), parse_float=_real)
        return dict(_columns(document, signature, file))
    except (ValueError, RecursionError) as error:  # of JSON, or a TensorError
        raise InvalidRequest(f"{file} is not a request: {error}", remedy=_BODY) from error


def _real(text: str) -> float:
    """Read a number; beyond the largest float64, Python would read infinity."""
    if math.isinf(value := float(text)):
        raise TensorError(f"{text:.40} is larger than any number type holds")
    return value


def _columns(document: Any, signature: Signature, file: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield alias and array of each input in the body of a request."""
    bodies = sorted(document.keys() & _BODIES) if isinstance(document, dict) else []
    if len(bodies) > 1:
        raise TensorError(f"it has {' and '.join(bodies)}, of which a request has one")
    if not bodies:
        raise TensorError(f"it needs one of the keys {', '.join(sorted(_BODIES))}")
    if document.get("signature_name", signature.name) != signature.name:
        name = document["signature_name"]
        raise TensorError(f"it is for signature {name!r:.80}, not {signature.name!r}")
    if "examples" in document:
        yield _only_input(signature, file), _examples(document)
        return
    axes, by_rows = batch_axes(signature), "instances" in document
    columns = document["inputs"] if "inputs" in document else _rows(document["instances"])
    if not isinstance(columns, dict) or columns.keys() == {"b64"}:
        columns = {_only_input(signature, file): columns}
    for alias, value in columns.items():
        spec = _spec(alias, signature, file)
        try:
            array = _exact(value, spec.dtype)
        except TensorError as error:
            raise TensorError(f"input {alias!r}: {error}") from error
        if by_rows and alias in axes.parameters and not spec.takes(array.shape) and array.ndim:
            array = _the_same(alias, [array[number] for number in np.ndindex(len(array))])
        yield alias, array


def _exact(value: Any, dtype: DType | None) -> NDArray[Any]:
    """Return a value as an array of a type, in which no number is infinite that was not so.

    Raises:
        TensorError: it is not of the type.
    """
    array = from_value(value, dtype)
    if array.dtype.kind in "fV" and (found := np.isinf(array)).any():
        lost = from_value(value, dtypes.by_name("double"))[found]
        if np.isfinite(lost).any():
            name = dtype.name if dtype else "double"
            raise TensorError(f"{name} cannot hold {lost[np.isfinite(lost)][0]}")
    return array


def _rows(rows: Any) -> Any:
    """Return rows as columns by alias, or as they are where they name no input."""
    if not isinstance(rows, list) or not rows:
        raise TensorError("'instances' must be a list of rows")
    if not isinstance(rows[0], dict) or rows[0].keys() == {"b64"}:
        return rows
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise TensorError("the rows of 'instances' name different inputs")
    return {alias: [row[alias] for row in rows] for alias in rows[0]}


def _examples(document: Mapping[str, Any]) -> NDArray[Any]:
    """Return string [examples] of serialized tf.Example, features of the context merged in."""
    rows, context = document["examples"], document.get("context", {})
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in [*rows, context]):
        raise TensorError("'examples' must be a list of objects: a value or list per feature")
    array = np.empty(len(rows), object)
    for index, row in enumerate(rows):
        example = protos.Example()
        for name, value in (context | row).items():
            feature = example.features.feature[name]
            values = from_value(value if isinstance(value, list) else [value])
            kind, cast = _FEATURES.get(values.dtype.kind, ("", float))
            if values.ndim != 1 or not (kind or not values.size):
                raise TensorError(f"feature {name!r:.80} is not a list of numbers, text or bytes")
            require_float32(values)
            if values.size:
                getattr(feature, kind).value.extend(map(cast, values.tolist()))
        array[index] = example.SerializeToString(deterministic=True)
    return array


_FORMS = "give JSON, as the body of a REST request has it, .npy, .npz or a picture"
_READERS = {".json": _from_json, ".npy": _from_numpy, ".npz": _from_numpy}
_BODY = (
    'write the body of a REST request, such as {"instances": [...]} or {"inputs": {...}}, with '
    "values of the types that `tfkit metadata` shows"
)
_BODIES = {"examples", "inputs", "instances"}  # keys of which a request has one
# numpy's kind of the values -> the list of a tf.Example's feature, and what its values are
_FEATURES = {
    "f": ("float_list", float),
    "i": ("int64_list", int),
    "b": ("int64_list", int),
    "O": ("bytes_list", bytes),
}


_MOST_DIGITS = 9  # tell any two float32 apart
_EXACT_POWER = 22  # of ten, as a float64
_NARROW = {"half", "bfloat16", "float"}
_MOST_BYTES = 4 << 30  # of an output that is written
_MOST_SHOWN = 4_000_000  # values in one JSON document; more would take gigabytes
_NPZ_MARK = b"outputs of a request, written by tfkit"
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
            archive.comment = _NPZ_MARK
            for alias, array in arrays.items():
                with archive.open(f"{alias}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
    except OSError as error:
        raise file_error(UsageError, "write", file, error) from error


def _storable(alias: str, array: NDArray[Any]) -> NDArray[Any]:
    dtype = dtypes.by_numpy(array.dtype)
    if dtype is dtypes.BFLOAT16:
        return array.astype(np.float32)
    if dtype is not dtypes.STRING:
        return array
    longest = max(map(len, array.ravel().tolist()), default=0)
    if longest * array.size > _MOST_BYTES:
        raise UsageError(
            f"output {alias!r:.80} has strings of up to {longest:,} bytes, and .npz would pad "
            f"all {array.size:,} of them to that length",
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
