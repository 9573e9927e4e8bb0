"""Models as MLflow saves them: a folder whose file `MLmodel` names what can load what is inside.

MLflow calls these ways to load a model its flavors. Those of TensorFlow and Keras hold a SavedModel
or a file of Keras; mlflow itself is not needed to find it.

Source: https://mlflow.org/docs/latest/ml/model/ (storage format), mlflow/tensorflow/__init__.py.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from tfserve_kit.errors import PushRefused, file_error
from tfserve_kit.repository import locate
from tfserve_kit.savedmodel import graph_file

_FILE = "MLmodel"
_MOST_BYTES = 1 << 20
_READABLE = frozenset({"tensorflow", "keras"})
_KERAS = (".keras", ".h5")
_GENERIC = "python_function"  # stands beside every other flavor
# The block of `flavors:`, and the keys of its first level, as every YAML writer lays them out.
_BLOCK = re.compile(r"^flavors:[ \t]*\n((?:[ \t]+\S.*(?:\n|\Z)|[ \t]*\n)+)", re.MULTILINE)
_KEY = re.compile(r"""^([ \t]+)["']?([\w.-]+)["']?:""", re.MULTILINE)


def is_among(names: Iterable[str]) -> bool:
    """Say whether files are those of an MLflow model, perhaps in a folder of its own."""
    depth = {len(path.parts) for path in map(PurePosixPath, names) if path.name == _FILE}
    return bool(depth & {1, 2})


def model_in(folder: Path, name: str) -> Path | None:
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
    found = [place for place in places if (place / _FILE).is_file()]
    if graph_file(folder) or not found or (found[0] != folder and len(found) > 1):
        return None
    flavors = _flavors(found[0] / _FILE, name)
    if not flavors & _READABLE:
        others = ", ".join(sorted(flavors - {_GENERIC}) or [_GENERIC])
        raise PushRefused(
            f"{name} is an MLflow model of flavor {others}, which TensorFlow Serving does not run",
            remedy="log the model with mlflow.tensorflow.log_model, and push that; "
            "`mlflow models serve` runs the other flavors",
        )
    models = [found[0] / inner for inner in locate.models_in(found[0])]
    keras = [each for each in found[0].rglob("*") if each.suffix in _KERAS and each.is_file()]
    if len(inside := models or keras) != 1:
        what = f"{len(inside)} models" if inside else "neither a SavedModel nor a file of Keras"
        raise PushRefused(
            f"{name} is an MLflow model, and holds {what}",
            remedy="give the SavedModel directory or the .keras file that is meant",
        )
    return inside[0]


def remedy(place: str) -> str:
    """Return what to do about a place that is not there: MLflow's own addresses are known."""
    if place.startswith(("models:/", "runs:/")):
        return f"mlflow artifacts download --artifact-uri {place} --dst-path FOLDER, then push that"
    return "give a SavedModel directory, an archive or a URL"


def _flavors(file: Path, name: str) -> frozenset[str]:
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise file_error(PushRefused, "read", file, error) from error
    block = _BLOCK.search(text.replace("\r\n", "\n"))
    keys = _KEY.findall(block[1]) if block else []
    found = frozenset(key for indent, key in keys if indent == keys[0][0])
    if not found:
        raise PushRefused(
            f"{name}: {_FILE} names no flavors", remedy="give the folder that MLflow saved"
        )
    return found
