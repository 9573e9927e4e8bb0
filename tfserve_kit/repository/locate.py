"""Where the SavedModel is that was meant: in a folder, among names, behind a URL.

Where there is none, names tell what lies there instead, and what was probably meant. Nothing is
opened for that: names tell enough, and a folder may be large.

MLflow saves a model in a folder whose file `MLmodel` names what can load what is inside, its
flavors. Those of TensorFlow and Keras hold a SavedModel or a file of Keras; mlflow itself is not
needed to find it.

Source: https://mlflow.org/docs/latest/ml/model/ (storage format), mlflow/tensorflow/__init__.py.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from tfserve_kit.errors import Problem, PushRefused, UsageError, did_you_mean, file_error
from tfserve_kit.progress import Progress
from tfserve_kit.repository.versions import HIDDEN_PREFIX, list_versions, parse_version
from tfserve_kit.savedmodel import GRAPH_FILE, GRAPH_FILES, graph_file

_MODELS = Path("models")
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


def choose_model(models: Iterable[str], version: int | None, place: str, progress: Progress) -> str:
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
            f"{place} is not a complete SavedModel:\n  - {GRAPH_FILE}: is missing",
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
            f"{place} holds several models: {listed}",
            remedy="give the folder of one; an archive is unpacked first",
        )
    highest = max(number for number in versions if number is not None)
    progress.note(f"Taking version {highest}, the highest of {len(found)} in {place}")
    return versions[highest]


_MLFLOW_FILE = "MLmodel"
_MOST_MLFLOW_BYTES = 1 << 20
_READABLE = frozenset({"tensorflow", "keras"})
_EXPORTED = (".keras", ".h5")
_GENERIC = "python_function"  # stands beside every other flavor
# The block of `flavors:`, and the keys of its first level, as every YAML writer lays them out.
_BLOCK = re.compile(r"^flavors:[ \t]*\n((?:[ \t]+\S.*(?:\n|\Z)|[ \t]*\n)+)", re.MULTILINE)
_KEY = re.compile(r"""^([ \t]+)["']?([\w.-]+)["']?:""", re.MULTILINE)


def is_mlflow(names: Iterable[str]) -> bool:
    """Say whether files are those of an MLflow model, perhaps in a folder of its own."""
    depth = {len(path.parts) for path in map(PurePosixPath, names) if path.name == _MLFLOW_FILE}
    return bool(depth & {1, 2})


def mlflow_model(folder: Path, name: str) -> Path | None:
    """Return the SavedModel directory, or the file of Keras, in an MLflow model.

    Args:
        folder: the model, or a folder with nothing but it.
        name: what errors call it.

    Returns:
        None if it is no MLflow model.

    Raises:
        PushRefused: no flavor of it is TensorFlow's or Keras's, or there is nothing of the kind.
    """
    places = [folder, *(each for each in sorted(folder.iterdir()) if each.is_dir())]
    found = [place for place in places if (place / _MLFLOW_FILE).is_file()]
    if graph_file(folder) or not found or (found[0] != folder and len(found) > 1):
        return None
    flavors = _flavors(found[0] / _MLFLOW_FILE, name)
    if not flavors & _READABLE:
        others = ", ".join(sorted(flavors - {_GENERIC}) or [_GENERIC])
        raise PushRefused(
            f"{name} is an MLflow model of flavor {others}, which TensorFlow Serving does not run",
            remedy="log the model with mlflow.tensorflow.log_model, and push that; "
            "`mlflow models serve` runs the other flavors",
        )
    models = [found[0] / inner for inner in models_in(found[0])]
    keras = [each for each in found[0].rglob("*") if each.suffix in _EXPORTED and each.is_file()]
    if len(inside := models or keras) != 1:
        what = f"{len(inside)} models" if inside else "neither a SavedModel nor a file of Keras"
        raise PushRefused(
            f"{name} is an MLflow model, and holds {what}",
            remedy="give the SavedModel directory or the .keras file that is meant",
        )
    return inside[0]


def remedy_for(place: str) -> str:
    """Return what to do about a place that is not there: MLflow's own addresses are known."""
    if place.startswith(("models:/", "runs:/")):
        return f"mlflow artifacts download --artifact-uri {place} --dst-path FOLDER, then push that"
    return "give a SavedModel directory, an archive or a URL"


def _flavors(file: Path, name: str) -> frozenset[str]:
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_MLFLOW_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise file_error(PushRefused, "read", file, error) from error
    block = _BLOCK.search(text.replace("\r\n", "\n"))
    keys = _KEY.findall(block[1]) if block else []
    found = frozenset(key for indent, key in keys if indent == keys[0][0])
    if not found:
        raise PushRefused(
            f"{name}: {_MLFLOW_FILE} names no flavors", remedy="give the folder that MLflow saved"
        )
    return found


_MOST_ENTRIES = 1000
_SHOWN = 5
# Folders named so were probably meant as versions: v1, 1.0, 1e3, version-2, 3.tmp
_LIKE_A_VERSION = re.compile(r"(v|version)?[-_. ]?([0-9]+).*", re.IGNORECASE)
_KERAS = {".keras", ".h5", ".hdf5"}
_PACKED = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst"}
_FOREIGN = {
    ".onnx": "an ONNX model", ".pt": "a PyTorch model", ".pth": "a PyTorch model",
    ".safetensors": "weights of another framework", ".mlmodel": "a Core ML model",
    ".joblib": "a scikit-learn model", ".pkl": "a pickled object", ".gguf": "a GGUF model",
}  # fmt: skip
_EXPORT = "model.export(FOLDER), or tf.saved_model.save with signatures"


# What a place turned out to be, as a predicate to it, and what to do about it: for a server, which
# wants a base path, and for a push, which wants a SavedModel, if that is something else.
_Told = tuple[str, ...]


def look_around(place: Path, *, to_push: bool = False) -> Problem | None:
    """Return what a place is that holds no version; None if nothing can be told of it.

    Args:
        place: what was given as a base path, or as a SavedModel; there or not.
        to_push: whether a SavedModel was wanted.
    """
    try:
        if not place.exists():
            found = _missing(place)
        else:
            looks = _ABOVE if not place.is_dir() or graph_file(place) else (*_ABOVE, *_WITHIN)
            found = next(filter(None, (look(place) for look in looks)), None)
    except OSError:
        return None
    return Problem(str(place), found[0], found[-1 if to_push else 1]) if found else None


def other_format(file: Path) -> Problem | None:
    """Return what a file is that is no archive, by its name and place; None if nothing tells."""
    found = _inside_a_model(file)
    if found is None and file.suffix.lower() not in _PACKED:
        found = _formats(file, [file])
    if found is None:
        return None
    return Problem(str(file), _of_itself(file, found[0]), found[-1])


def find_version(place: Path) -> Path:
    """Return the version directory that is meant.

    Args:
        place: a SavedModel directory, a base path (its highest version is meant), or the name of
            a model below `models/`.

    Raises:
        UsageError: it is none of these.
    """
    if not place.exists() and (_MODELS / place).is_dir():
        place = _MODELS / place
    remedy = "give a SavedModel directory, a base path or the name of a model below models/"
    try:
        if graph_file(place):
            return place
        versions = [version for version in list_versions(place) if version.path.is_dir()]
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot read {place}: {reason}", remedy=remedy) from error
    if not versions and (found := look_around(place, to_push=True)):
        text = f"{place} holds no {GRAPH_FILE} and no version: it {found.message}"
        raise UsageError(text, remedy=found.remedy)
    if not versions:
        raise UsageError(f"{place} holds no {GRAPH_FILE} and no version", remedy=remedy)
    return versions[-1].path


def like_a_version(folder: Path) -> bool:
    """Say whether a folder was probably meant as a version, though no server takes it for one."""
    if parse_version(folder.name) is not None or folder.name.startswith(HIDDEN_PREFIX):
        return False
    named = _LIKE_A_VERSION.fullmatch(folder.name) is not None
    return folder.is_dir() and (named or graph_file(folder) is not None)


def renamed(folder: Path, taken: frozenset[str] = frozenset()) -> str:
    """Return the command that makes a version of a folder that is like one."""
    found = _LIKE_A_VERSION.fullmatch(folder.name)
    number = int(found[2]) if found else 1
    while str(number) in taken:
        number += 1
    return f"mv {_quoted(folder)} {_quoted(folder.parent / str(number))}"


def _missing(place: Path) -> _Told | None:
    parent = place.parent
    names = [each.name for each in _entries(parent)] if parent.is_dir() else []
    near = did_you_mean(place.name, names)
    if near.startswith("did you mean"):
        return "is not there", near
    return None


def _model(place: Path) -> _Told | None:
    """Tell a SavedModel, where a base path was expected."""
    if not place.is_dir() or graph_file(place) is None:
        return None
    if parse_version(place.name) is not None:
        what = f"is version {place.name} of a base path, not the base path"
        return what, f"give the folder above it: {place.parent}"
    remedy = f"it is a SavedModel itself: tfkit push-model {_quoted(place)} --to BASE_PATH"
    return "is a SavedModel, not the folder above its versions", remedy


def _inside_a_model(place: Path) -> _Told | None:
    """Tell a file or folder of a SavedModel."""
    for model in islice(place.parents, 3):
        if graph_file(model) is None:
            continue
        what = f"lies within the SavedModel {model}"
        if parse_version(model.name) is not None:
            return what, f"give the base path: {model.parent}", f"give {model}"
        command = f"tfkit push-model {_quoted(model)} --to BASE_PATH"
        return what, command, f"give {model}"
    return None


def _single_file(place: Path) -> _Told | None:
    """Tell a model in another format, given by itself."""
    if place.is_dir():
        return None
    if found := _formats(place, [place]):
        return _of_itself(place, found[0]), *found[1:]
    return "is a file", "give the folder that holds one folder per version"


def _of_itself(file: Path, held: str) -> str:
    """Return of a file what was said of a folder that holds it."""
    return held.replace(f"{file.name}, ", "", 1).replace("holds", "is", 1)


def _named_otherwise(place: Path) -> _Told | None:
    """Tell versions whose names are not numbers."""
    folders = [each for each in _entries(place) if each.is_dir() and like_a_version(each)]
    models = [each for each in folders if graph_file(each)]
    if not models:
        return None
    if all(_LIKE_A_VERSION.fullmatch(each.name) is None for each in models):
        listed = ", ".join(str(each) for each in models[:_SHOWN])
        what = f"holds SavedModels, but no numbered versions: {listed}"
        return what, f"tfkit push-model {_quoted(models[0])} --to {_quoted(place)}"
    names = ", ".join(repr(each.name) for each in models[:_SHOWN])
    what = f"holds {names}, and a version folder must be a whole number"
    return what, renamed(models[0])


def _base_paths(place: Path) -> _Told | None:
    """Tell the folder above several models."""
    found = [each for each in _entries(place) if each.is_dir() and _holds_versions(each)]
    if not found:
        return None
    named = " ".join(f"--model {each.name}={_quoted(each)}" for each in found[:_SHOWN])
    what = "holds base paths of models, and is none itself"
    return what, f"give one of them: {named}", f"give one of them: {found[0]}"


def _deeper(place: Path) -> _Told | None:
    """Tell folders that were unpacked into one folder too many."""
    for folder in _entries(place):
        if not folder.is_dir():
            continue
        for each in _entries(folder):
            if each.is_dir() and graph_file(each):
                command = f"tfkit push-model {_quoted(each)} --to BASE_PATH"
                return f"holds a SavedModel further down: {each}", command, f"give {each}"
    return None


def _other_formats(place: Path) -> _Told | None:
    return _formats(place, list(_entries(place)))


def _formats(place: Path, files: list[Path]) -> _Told | None:
    """Tell models that no server reads as they are, by the names of files."""
    return next(filter(None, (look(place, files) for look in _FORMATS)), None)


def _keras(place: Path, files: list[Path]) -> _Told | None:
    for file in files:
        if file.suffix.lower() in _KERAS:
            what = f"holds a Keras file, {file.name}, which no server reads"
            base_path = "BASE_PATH" if file == place else _quoted(place)
            command = f"tfkit push-model {_quoted(file)} --to {base_path}"
            return what, command, f"give the file itself: {file}"
    return None


def _checkpoint(_: Path, files: list[Path]) -> _Told | None:
    if not any(_CHECKPOINT.fullmatch(file.name) for file in files):
        return None
    what = "holds a checkpoint: values of variables, without the graph that uses them"
    return what, f"load it into the model that wrote it, and export that: {_EXPORT}"


_CHECKPOINT = re.compile(r"checkpoint|.*\.(ckpt|index|data-\d+-of-\d+|ckpt.*\.meta)")
# What lies beside the graph of a SavedModel, and stays where that was not copied.
_BESIDE_A_GRAPH = frozenset({"fingerprint.pb", "keras_metadata.pb"})


def _frozen(_: Path, files: list[Path]) -> _Told | None:
    graphs = [
        file.name
        for file in files
        if file.suffix in {".pb", ".pbtxt"} and file.name not in _BESIDE_A_GRAPH
    ]
    if not graphs:
        return None
    what = f"holds {graphs[0]}, a graph by itself, as TensorFlow 1 froze them"
    remedy = "import it (tf.import_graph_def), and export that with signatures: "
    return what, f"{remedy}tf.compat.v1.saved_model.simple_save"


def _lite(place: Path, files: list[Path]) -> _Told | None:
    for file in files:
        if file.suffix.lower() == ".tflite":
            what = f"holds {file.name}, a TensorFlow Lite model"
            wanted = (Path("BASE_PATH") if file == place else place) / "1" / "model.tflite"
            remedy = (
                f"call it {wanted}, with prefer_tflite_model = true under "
                "[server.flags]; or export the model it was made of"
            )
            return what, remedy
    return None


def _packed(_: Path, files: list[Path]) -> _Told | None:
    for file in files:
        if file.suffix.lower() in _PACKED:
            command = f"tfkit push-model {_quoted(file)} --to BASE_PATH"
            return f"holds an archive, {file.name}", command, f"give the file itself: {file}"
    return None


def _foreign(_: Path, files: list[Path]) -> _Told | None:
    for file in files:
        if kind := _FOREIGN.get(file.suffix.lower()):
            remedy = "convert it to a SavedModel first; TensorFlow Serving reads nothing else"
            if file.suffix.lower() == ".onnx":
                remedy += f": pip install onnx2tf, then onnx2tf -i {_quoted(file)} -o saved_model"
            return f"holds {file.name}, {kind}", remedy
    return None


def _holds_versions(folder: Path) -> bool:
    return any(
        parse_version(each.name) is not None and each.is_dir() and graph_file(each)
        for each in _entries(folder)
    )


def _entries(folder: Path) -> Iterator[Path]:
    """Yield what a folder holds, in order, but not without end and nothing hidden."""
    try:
        found = list(islice(folder.iterdir(), _MOST_ENTRIES))
    except OSError:
        return
    yield from (each for each in sorted(found) if not each.name.startswith("."))


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


_Look = Callable[[Path], _Told | None]
_ABOVE: tuple[_Look, ...] = (_model, _inside_a_model, _single_file)
_WITHIN: tuple[_Look, ...] = (_named_otherwise, _base_paths, _deeper, _other_formats)
_FORMATS = (_keras, _checkpoint, _frozen, _lite, _packed, _foreign)


_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE | re.ASCII)


def scheme(place: str) -> str:
    """Return the scheme of a URL in lower case; the empty text for a path, `file://` included."""
    match = _SCHEME.match(place)
    found = match[1].lower() if match else ""
    return "" if found in {"file", "local"} else found


def local(place: str) -> Path:
    """Return the path that a path or a `file://` URL stands for."""
    match = _SCHEME.match(place)
    return Path(unquote(place[match.end() :]) if match else place)
