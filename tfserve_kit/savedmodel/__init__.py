"""What a model says without being run: its files, signatures, graph, variables and warm-up."""

from tfserve_kit.savedmodel.files import (
    CHUNKED_GRAPH_FILE,
    GRAPH_FILE,
    GRAPH_FILES,
    NOTE_PATH,
    VARIABLES_INDEX,
    WARMUP_FILE,
    graph_file,
    meta_graph,
    parse,
    problems,
    read_signatures,
    tags,
)
from tfserve_kit.savedmodel.signatures import (
    DEFAULT_SIGNATURE,
    BatchAxes,
    Composite,
    Signature,
    TensorSpec,
    batch_axes,
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
    "graph_file",
    "graph_signatures",
    "meta_graph",
    "parse",
    "parse_signatures",
    "problems",
    "read_signatures",
    "tags",
]
