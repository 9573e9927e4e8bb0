"""Models as Keras saves them, exported to a SavedModel by Keras itself, in a process of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tfserve_kit import processes
from tfserve_kit.errors import PushRefused
from tfserve_kit.repository import archives
from tfserve_kit.repository.intake import Limits

_HDF5 = b"\x89HDF\r\n\x1a\n"
_TIMEOUT_S = 1800
_MEMBERS = {"config.json", "model.weights.h5"}

# Before 3.11.3 safe_mode could be got around, and did nothing for HDF5 files.
_EXPORT = """
import sys, keras
numbers = tuple(int(part) for part in keras.__version__.split(".")[:3] if part.isdigit())
if numbers < (3, 11, 3):
    sys.exit(f"keras {keras.__version__} is installed; files are loaded safely from 3.11.3 on")
model = keras.saving.load_model(sys.argv[1], compile=False, safe_mode=True)
model.export(sys.argv[2], format="tf_saved_model", verbose=False)
"""


def suffix(file: Path, limits: Limits, name: str) -> str | None:
    """Return `.keras` or `.h5` for a file of this kind, None for others; the content says it.

    Raises:
        PushRefused: it is a damaged zip archive, which errors call `name`.
    """
    with file.open("rb") as stream:
        if stream.read(len(_HDF5)) == _HDF5:
            return ".h5"
    if archives.kind(file) == "zip" and archives.zip_names(file, limits, name) >= _MEMBERS:
        return ".keras"
    return None


def export(file: Path, directory: Path, name: str, most_bytes: int) -> None:
    """Export a Keras file to a SavedModel directory that is made.

    Code in the file is not run: models with Lambda layers are refused.

    Args:
        file: it; its name ends as `suffix` says.
        directory: the SavedModel.
        name: what errors call the file.
        most_bytes: how long each file of the SavedModel may be.

    Raises:
        PushRefused: Keras is not installed here, or refuses.
    """
    if find_spec("keras") is None or find_spec("tensorflow") is None:
        raise PushRefused(
            f"{name} is a Keras file, and Keras is not installed to export it",
            remedy="pip install 'tfserve-kit[embedded]', or give what model.export() writes",
        )
    quiet = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", _EXPORT, str(file), str(directory)]
    try:
        done = subprocess.run(
            processes.confined(command, processes.free_memory_bytes(), most_bytes),
            env=os.environ | quiet,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refusal(name, f"it took longer than {_TIMEOUT_S} s") from None
    if done.returncode:
        raise _refusal(name, done.stderr)


def _refusal(name: str, log: str) -> PushRefused:
    lines = [line for line in log.splitlines() if line.strip()] or ["it ended without a word"]
    if "safe_mode" in log or "unsafe" in log:
        return PushRefused(
            f"{name} holds code (such as a Lambda layer), which is not run",
            remedy="export the model where you trust it, with model.export(), and push that",
        )
    return PushRefused(
        f"Keras cannot export {name}: {lines[-1]}",
        remedy="export the model yourself, with model.export(), and push that",
    )
