"""What a SavedModel says about itself, read without tensorflow.

Source: tensorflow/cc/saved_model/constants.h (file names) and loader.cc (what a load needs).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit import bounded, protos
from tfserve_kit.errors import Problem
from tfserve_kit.savedmodel import composites
from tfserve_kit.savedmodel.checkpoint import CheckpointError, shard_sizes
from tfserve_kit.savedmodel.composites import Composite
from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.dtypes import DType
from tfserve_kit.tensors.proto import MAX_RANK

GRAPH_FILE = "saved_model.pb"
_MOST_GRAPH_BYTES = (1 << 31) - 1  # of protobuf
# In the order in which a server looks (tensorflow/cc/saved_model/reader.cc).
GRAPH_FILES = (GRAPH_FILE, "saved_model.pbtxt")
# Split into chunks, for graphs beyond what one message holds; no server of this kind reads it.
CHUNKED_GRAPH_FILE = "saved_model.cpb"
VARIABLES_INDEX = Path("variables") / "variables.index"
DEFAULT_SIGNATURE = "serving_default"
# The signature through which TensorFlow runs initializers; not one to call.
_INTERNAL_SIGNATURES = frozenset({"__saved_model_init_op", "__saved_model_train_op"})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a signature.

    Attributes:
        name: name of the tensor in the graph, such as `serving_default_x:0`.
        dtype: its type; None for types that cannot travel (resource, variant).
        shape: sizes by axis with None where any size goes; None if even the rank is open.
    """

    name: str
    dtype: DType | None
    shape: tuple[int | None, ...] | None

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Say whether a value of a shape fits."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            wanted in {None, size} for size, wanted in zip(shape, self.shape, strict=True)
        )

    def __str__(self) -> str:
        axes = ["?" if size is None else str(size) for size in self.shape or ()]
        shape = "[" + ", ".join(axes) + "]" if self.shape is not None else "[...]"
        return f"{self.dtype.name if self.dtype else 'opaque'} {shape}"


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call a model: inputs and outputs by alias.

    `optional` names the inputs that have a default in the model and may be left out, over gRPC;
    `composites` those that are parts of ragged and sparse tensors.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    method_name: str
    optional: frozenset[str] = frozenset()
    composites: tuple[Composite, ...] = ()


@dataclass(frozen=True, slots=True)
class SavedModel:
    """The contents of `saved_model.pb` that matter to whoever serves or calls the model."""

    tags: tuple[frozenset[str], ...]
    signatures: Mapping[str, Signature]


def signatures(
    signature_defs: Mapping[str, Any], kinds: frozenset[composites.Kind] | None = None
) -> dict[str, Signature]:
    """Return the callable signatures of a `map<string, SignatureDef>`, by name.

    Args:
        signature_defs: as a graph holds them, and a server answers with.
        kinds: which composite tensors the model takes; None where that is not known, and the
            names, types and shapes of inputs decide alone.

    Raises:
        ValueError: one of their tensors has more dimensions than TensorFlow knows.
    """
    return {
        name: _signature(name, definition, kinds)
        for name, definition in sorted(signature_defs.items())
        if name not in _INTERNAL_SIGNATURES
    }


def graph_signatures(graph: Any) -> dict[str, Signature]:
    """Return the callable signatures of a MetaGraphDef, by name."""
    return signatures(graph.signature_def, composites.kinds(graph.object_graph_def))


def _signature(name: str, definition: Any, kinds: frozenset[composites.Kind] | None) -> Signature:
    inputs = {alias: _tensor(info) for alias, info in sorted(definition.inputs.items())}
    outputs = {alias: _tensor(info) for alias, info in sorted(definition.outputs.items())}
    return Signature(
        name, inputs, outputs, definition.method_name, frozenset(definition.defaults),
        composites.find(inputs, kinds),
    )  # fmt: skip


def _tensor(info: Any) -> TensorSpec:
    try:
        dtype = dtypes.by_number(info.dtype)
    except KeyError:
        dtype = None
    shape = info.tensor_shape
    if len(shape.dim) > MAX_RANK:
        raise ValueError(f"tensor {info.name!r:.80} has {len(shape.dim):,} dimensions")
    axes = tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
    return TensorSpec(info.name, dtype, None if shape.unknown_rank else axes)


def graph_file(folder: Path) -> Path | None:
    """Return the file that makes a folder a SavedModel, as a server would find it; None for none.

    Raises:
        OSError: the folder cannot be looked into.
    """
    return next((folder / name for name in GRAPH_FILES if (folder / name).is_file()), None)


def read(version_dir: Path, *, tag: str = "serve") -> SavedModel:
    """Read `saved_model.pb`, or `saved_model.pbtxt` where there is none.

    Args:
        version_dir: the directory that holds it.
        tag: which of its meta graphs the signatures are taken from; the graph must bear exactly
            this tag, or these where several are given, separated by commas.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or no SavedModel, or no meta graph bears the tag.
    """
    message = parse(version_dir)
    tags = tuple(frozenset(graph.meta_info_def.tags) for graph in message.meta_graphs)
    return SavedModel(tags, graph_signatures(_tagged(message, tag)))


def meta_graph(version_dir: Path, *, tag: str = "serve") -> Any:
    """Return the whole MetaGraphDef that bears a tag; arguments and errors as for `read`."""
    return _tagged(parse(version_dir), tag)


def _tagged(message: Any, tag: str) -> Any:
    for graph in message.meta_graphs:
        if set(graph.meta_info_def.tags) == set(tag.split(",")):
            return graph
    have = ", ".join("+".join(sorted(graph.meta_info_def.tags)) for graph in message.meta_graphs)
    raise ValueError(f"no graph is tagged {tag!r}; it has {have}")


def parse(version_dir: Path) -> Any:
    """Return the whole SavedModel message of a folder.

    Raises:
        FileNotFoundError: neither `saved_model.pb` nor `saved_model.pbtxt` is there.
        ValueError: it is truncated, no SavedModel, or holds no graph.
    """
    file = graph_file(version_dir) or version_dir / GRAPH_FILE
    data = bounded.read_bytes(file, _MOST_GRAPH_BYTES)
    try:
        if file.suffix == ".pbtxt":
            message = protos.from_text("SavedModel", data.decode("utf-8"))
        else:
            message = protos.SavedModel.FromString(data)
    except (protos.DecodeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "alloc" in str(error):
            reason = "it takes more memory than is free"
        else:
            reason = "truncated or damaged"
        raise ValueError(f"cannot be parsed ({len(data)} bytes): {reason}") from error
    except (protos.TextFormatError, UnicodeDecodeError) as error:
        raise ValueError(f"is not the text of a SavedModel: {error}") from error
    if not message.meta_graphs:
        raise ValueError(f"holds no graph ({len(data)} bytes): empty or no SavedModel")
    return message


def problems(version_dir: Path, *, tag: str = "serve") -> list[Problem]:
    """Return everything that would keep a server from loading the model correctly.

    A server loads a model whose `variables.index` is missing without complaint and answers with
    uninitialized variables, so that is looked at here: an index must be present where the graph
    has variables to restore, and each shard it names must be there in full. So must the assets.
    """
    if (file := graph_file(version_dir)) is None:
        return [_no_graph(version_dir)]
    try:
        message = parse(version_dir)
        _tagged(message, tag)
    except ValueError as error:
        return [Problem(file.name, str(error), "export the model again")]
    found = _variable_problems(version_dir, needed=_restores(message))
    return found + _asset_problems(version_dir, message)


def _no_graph(version_dir: Path) -> Problem:
    if (version_dir / CHUNKED_GRAPH_FILE).is_file():
        text = f"is missing in {version_dir}, which holds a graph in chunks ({CHUNKED_GRAPH_FILE})"
        return Problem(GRAPH_FILE, text, "export without experimental_image_format: no server "
                       "reads chunks")  # fmt: skip
    remedy = "give the directory that holds it, as tf.saved_model.save writes it"
    return Problem(GRAPH_FILE, f"is missing in {version_dir}", remedy)


def _restores(message: Any) -> bool:
    """Say whether loading restores variables: the graph has a saver and something to save."""
    for graph in message.meta_graphs:
        if any(_is_variable(node) for node in graph.graph_def.node):
            return True
        if any(node.WhichOneof("kind") == "variable" for node in graph.object_graph_def.nodes):
            return True
    return False


def _is_variable(node: Any) -> bool:
    return node.op in {"VarHandleOp", "VariableV2", "Variable"}


def _variable_problems(version_dir: Path, *, needed: bool) -> list[Problem]:
    index = version_dir / VARIABLES_INDEX
    if not index.is_file():
        again = "copy the variables folder as well, or export the model again"
        return [Problem(str(VARIABLES_INDEX), "is missing", again)] if needed else []
    try:
        sizes = shard_sizes(index)
    except CheckpointError as error:
        return [Problem(str(VARIABLES_INDEX), str(error), "copy or export the model again")]
    found = []
    for name, size in sizes.items():
        shard = index.parent / name
        have = shard.stat().st_size if shard.is_file() else None
        if have is None:
            found.append(Problem(f"variables/{name}", "is missing", "copy the model again"))
        elif have < size:
            text = f"has {have} bytes of the {size} its index names"
            found.append(Problem(f"variables/{name}", text, "copy the model again"))
    return found


def _asset_problems(version_dir: Path, message: Any) -> list[Problem]:
    files = {asset.filename for graph in message.meta_graphs for asset in graph.asset_file_def}
    return [
        Problem(f"assets/{name}", "is missing", "copy the assets folder as well")
        for name in sorted(files)
        if not (version_dir / "assets" / name).is_file()
    ]
