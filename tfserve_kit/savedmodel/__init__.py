"""What a model says without being run: its files, signatures, graph, variables and warm-up.

Here what its folder says. Source: tensorflow/cc/saved_model/constants.h (file names) and loader.cc
(what a load needs).
"""

from pathlib import Path
from typing import Any

from tfserve_kit import input_files, protos
from tfserve_kit.errors import Problem
from tfserve_kit.savedmodel.checkpoint import CheckpointError, shard_sizes
from tfserve_kit.savedmodel.signatures import (
    DEFAULT_SIGNATURE,
    BatchAxes,
    Composite,
    Signature,
    TensorSpec,
    batch_axes,
    choose_signature,
    graph_signatures,
    parse_signatures,
)

__all__ = [
    "CHUNKED_GRAPH_FILE",
    "DEFAULT_SIGNATURE",
    "GRAPH_FILE",
    "GRAPH_FILES",
    "NOTE_PATH",
    "VARIABLES_INDEX",
    "WARMUP_FILE",
    "BatchAxes",
    "Composite",
    "Signature",
    "TensorSpec",
    "batch_axes",
    "choose_signature",
    "graph_file",
    "graph_signatures",
    "meta_graph",
    "parse",
    "parse_signatures",
    "problems",
    "read_signatures",
    "tags",
]

GRAPH_FILE = "saved_model.pb"
# In the order in which a server looks (tensorflow/cc/saved_model/reader.cc).
GRAPH_FILES = (GRAPH_FILE, "saved_model.pbtxt")
# Split into chunks, for graphs beyond what one message holds; no server of this kind reads it.
CHUNKED_GRAPH_FILE = "saved_model.cpb"
VARIABLES_INDEX = Path("variables") / "variables.index"
# Requests that a server replays before it serves a version.
WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
# How pictures become the model's input, as the push wrote it down.
NOTE_PATH = Path("assets.extra") / "tfkit.json"
_MOST_GRAPH_BYTES = (1 << 31) - 1  # of protobuf


def graph_file(folder: Path) -> Path | None:
    """Return the file that makes a folder a SavedModel, as a server would find it; None for none.

    Raises:
        OSError: the folder cannot be looked into.
    """
    return next((folder / name for name in GRAPH_FILES if (folder / name).is_file()), None)


def read_signatures(version_dir: Path, *, tag: str = "serve") -> dict[str, Signature]:
    """Return the callable signatures of a version, by name.

    Args:
        version_dir: the directory that holds its `saved_model.pb` or `saved_model.pbtxt`.
        tag: which of its meta graphs they are taken from; the graph must bear exactly this tag, or
            these where several are given, separated by commas.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or no SavedModel, or no meta graph bears the tag.
    """
    return graph_signatures(meta_graph(version_dir, tag=tag))


def meta_graph(version_dir: Path, *, tag: str = "serve") -> Any:
    """Return the MetaGraphDef that bears a tag; arguments and errors as for `read_signatures`."""
    return _tagged(parse(version_dir), tag)


def tags(version_dir: Path) -> list[str]:
    """Return the tags of each graph in a folder, separated by commas where a graph has several.

    Raises:
        FileNotFoundError, ValueError: as for `parse`.
    """
    return _tags(parse(version_dir))


def _tags(message: Any) -> list[str]:
    return [",".join(sorted(graph.meta_info_def.tags)) for graph in message.meta_graphs]


def _tagged(message: Any, tag: str) -> Any:
    for graph in message.meta_graphs:
        if set(graph.meta_info_def.tags) == set(tag.split(",")):
            return graph
    have = ", ".join(each.replace(",", "+") for each in _tags(message))
    raise ValueError(f"no graph is tagged {tag!r}; it has {have}")


def parse(version_dir: Path) -> Any:
    """Return the whole SavedModel message of a folder.

    Raises:
        FileNotFoundError: neither `saved_model.pb` nor `saved_model.pbtxt` is there.
        ValueError: it is truncated, no SavedModel, or holds no graph.
    """
    file = graph_file(version_dir) or version_dir / GRAPH_FILE
    data = input_files.read_bytes(file, _MOST_GRAPH_BYTES)
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
        raise ValueError(f"holds no graph ({len(data)} bytes): empty, or not a SavedModel")
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
    except ValueError as error:
        return [Problem(file.name, str(error), "export the model again")]
    try:
        _tagged(message, tag)
    except ValueError as error:
        remedy = f"give --tag {_tags(message)[0]}" if any(_tags(message)) else "export it again"
        return [Problem(file.name, str(error), remedy)]
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
