"""What a SavedModel holds: its sizes, its files and who wrote it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit.savedmodel import VARIABLES_INDEX
from tfserve_kit.savedmodel.checkpoint import CheckpointError, StoredTensor, tensors
from tfserve_kit.savedmodel.graph.graph import asset_files
from tfserve_kit.tensors import dtypes

WARMUP_PATH = Path("assets.extra") / "tf_serving_warmup_requests"
# How pictures become its input, as the push wrote it down.
NOTE_PATH = Path("assets.extra") / "tfkit.json"
# Bookkeeping of tf.train.Checkpoint, stored like a variable.
_SAVE_COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a version directory holds.

    Attributes:
        tensorflow_version: the release that wrote the graph; empty if it does not say.
        variables: what the checkpoint holds, by name, without its own bookkeeping.
        assets: file names within `assets/`.
        warmup: whether there are recorded requests to warm up with.
        note: whether there is a preprocessing note.
        fingerprint: whether there is a `fingerprint.pb`.
    """

    tensorflow_version: str
    variables: Mapping[str, StoredTensor]
    assets: tuple[str, ...]
    warmup: bool
    note: bool
    fingerprint: bool

    @property
    def parameters(self) -> int:
        """The number of values in all variables."""
        return sum(math.prod(variable.shape) for variable in self.variables.values())

    @property
    def parameter_bytes(self) -> int:
        """The size of all variables in bytes."""
        return sum(variable.size_bytes for variable in self.variables.values())


def facts(version_dir: Path, graph: Any) -> Facts:
    """Collect what a version directory holds; `graph` is its MetaGraphDef.

    An index of variables that cannot be read counts as none: `savedmodel.problems` names it.
    """
    try:
        stored = tensors(version_dir / VARIABLES_INDEX)
    except (FileNotFoundError, CheckpointError):
        stored = {}
    return Facts(
        graph.meta_info_def.tensorflow_version,
        {name: each for name, each in stored.items() if _is_variable(name, each)},
        tuple(sorted({asset.filename for asset in asset_files(graph)})),
        (version_dir / WARMUP_PATH).is_file(),
        (version_dir / NOTE_PATH).is_file(),
        (version_dir / "fingerprint.pb").is_file(),
    )


def _is_variable(name: str, stored: StoredTensor) -> bool:
    return stored.dtype is not dtypes.STRING and name != _SAVE_COUNTER
