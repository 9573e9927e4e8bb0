"""What a graph itself does to the pictures it is given, and what makes its scores.

A model that holds a Rescaling layer wants pixels from 0 to 255, one that begins with a convolution
wants what it was trained on. The first can be proved from the graph, by following the input through
whatever only moves, scales or shifts its values.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos, savedmodel
from tfserve_kit.savedmodel.graph import MAIN, Graph, node_name
from tfserve_kit.tensors.proto import from_proto


class _Affine(NamedTuple):
    """`value * scale + offset`; the last node that changed either."""

    scale: float = 1.0
    offset: float = 0.0
    node: str = ""


def _shifted(affine: _Affine, by: NDArray[Any], name: str, sign: int = 1) -> _Affine:
    offset = affine.offset + sign * _typical(by)
    return _Affine(affine.scale, offset, name if _typical(by) else affine.node)


def _scaled(affine: _Affine, by: float, name: str) -> _Affine | None:
    if not np.isfinite(by) or by == 0:
        return None
    return _Affine(affine.scale * by, affine.offset * by, name if by != 1 else affine.node)


def _subtracted(affine: _Affine, other: NDArray[Any], at: int, name: str) -> _Affine | None:
    if at == 0:
        return _shifted(affine, other, name, -1)
    negative = _scaled(affine, -1.0, name)
    return negative and _shifted(negative, other, name)


def _divided(affine: _Affine, other: NDArray[Any], at: int, name: str) -> _Affine | None:
    typical = _typical(other)
    return _scaled(affine, 1 / typical, name) if at == 0 and typical else None


def _typical(values: NDArray[Any]) -> float:
    """Return one number for a constant, such as a mean per channel."""
    return float(np.mean(values.astype(np.float64)))


_ARITHMETIC: Mapping[str, Callable[[_Affine, NDArray[Any], int, str], _Affine | None]] = {
    "Add": lambda affine, other, _, name: _shifted(affine, other, name),
    "AddV2": lambda affine, other, _, name: _shifted(affine, other, name),
    "BiasAdd": lambda affine, other, _, name: _shifted(affine, other, name),
    "Sub": _subtracted,
    "Mul": lambda affine, other, _, name: _scaled(affine, _typical(other), name),
    "Div": _divided,
    "RealDiv": _divided,
    "DivNoNan": _divided,
}

_WHOLE_RANGE, _UNIT, _SIGNED = (0.0, 255.0), (0.0, 1.0), (-1.0, 1.0)
_SMALL_SCALE = 0.05  # 1/255, 1/127.5, 1/58: only whole numbers of pixels need it
_DARKEST = 0.5  # white of 8 bits, after that scale; if less comes of it, pixels have more bits
_WHITES = (4095.0, 65535.0)  # of 12 and of 16 bits
_LARGE_SHIFT = 2.0  # a mean of pixels in 0-255; one of pixels in 0-1 is below 1
_MOST_SCALE = 8.0  # 1/0.229 and the like, of a deviation of pixels in 0-1


def _expected_range(affine: _Affine) -> tuple[float, float] | None:
    """Return the range of pixels that a model wants which scales and shifts them so first.

    The network behind takes numbers around zero, up to a few units large, or what an older one was
    trained on, 0 to 255. One that does nothing to them does not tell what it was trained on.
    """
    scale, offset = abs(affine.scale), affine.offset
    if scale == 1 and abs(offset) >= _LARGE_SHIFT:
        return _WHOLE_RANGE
    if scale * _WHOLE_RANGE[1] < _DARKEST:
        made = {white: scale * white for white in _WHITES}  # 0 to 1, or to 2 before a shift
        fits = [white for white in _WHITES if np.isclose(made[white], (1, 2), 0.01).any()]
        return (0.0, fits[0]) if fits else None
    if scale < _SMALL_SCALE:
        return _WHOLE_RANGE
    for wanted_scale, wanted_offset, found in (
        (255.0, 0.0, _UNIT),  # to 0-255, from 0-1
        (127.5, 127.5, _SIGNED),  # to 0-255, from -1 to 1
        (0.5, 0.5, _SIGNED),  # to 0-1, from -1 to 1
    ):
        if np.isclose(scale, wanted_scale, 0.01) and np.isclose(offset, wanted_offset, 0.01, 0.01):
            return found
    if 1 <= scale <= _MOST_SCALE and offset <= 0 and (scale, offset) != (1, 0):
        return _UNIT
    return None


ScoreKind = Literal["softmax", "sigmoid", "log_softmax", "logits", "class_ids", "top_k"]
Encoding = Literal["raw", "websafe"]


class PictureFacts(NamedTuple):
    """What is proved of an input that takes pictures; None where the graph does not tell.

    Attributes:
        value_range: what black and white must be, as (low, high).
        encoding: what a string input holds: an encoded picture, or web-safe base64 of one.
        because: the node that shows it, for people.
    """

    value_range: tuple[float, float] | None = None
    encoding: Encoding | None = None
    because: str = ""


class PictureGraph:
    """The graph of a version as far as it tells about pictures; read only when it is asked.

    Args:
        version_dir: where the version lies; None where that is not known here.
        signature: name of the signature.
    """

    def __init__(self, version_dir: Path | None, signature: str) -> None:
        self._version_dir, self._signature = version_dir, signature

    @cached_property
    def _graph(self) -> Graph | None:
        if self._version_dir is None:
            return None
        try:
            graph = savedmodel.meta_graph(self._version_dir)
        except (OSError, ValueError):  # it is served all the same: from elsewhere, or in memory
            return None
        return Graph(graph) if self._signature in graph.signature_def else None

    def input(self, alias: str) -> PictureFacts:
        """Return what it tells of an input."""
        if self._graph is None:
            return PictureFacts()
        definition = self._graph.meta_graph.signature_def[self._signature]
        known = alias in definition.inputs
        return picture_facts(self._graph, definition, alias) if known else PictureFacts()

    @property
    def may_decode(self) -> bool:
        """Whether the signature may turn bytes into pixels; true where that is not known."""
        if self._graph is None:
            return True
        definition = self._graph.meta_graph.signature_def[self._signature]
        return any(
            ("Decode" in op and op not in _NO_PICTURE) or "PyFunc" in op
            for op in self._graph.operations(definition)
        )

    def output(self, alias: str) -> ScoreKind | None:
        """Return what makes an output."""
        if self._graph is None:
            return None
        definition = self._graph.meta_graph.signature_def[self._signature]
        known = alias in definition.outputs
        return score_kind(self._graph, definition, alias) if known else None


class _Place(NamedTuple):
    """A node of a function, and the calls that led there."""

    calls: tuple[tuple[str, str], ...]  # (function, node) of each caller, the outermost first
    function: str
    tensor: str


# What moves or picks values and changes none of them, as far as their range goes.
_MOVE_NAMES = """
    Cast CropAndResize DepthToSpace EnsureShape ExpandDims Gather GatherV2 Identity
    IdentityN MirrorPad Pack PlaceholderWithDefault PreventGradient RandomCrop Reshape
    ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ReverseV2
    ScaleAndTranslate Slice Snapshot SpaceToDepth Split SplitV Squeeze StopGradient
    StridedSlice Tile Transpose Unpack
"""
_MOVES = frozenset(_MOVE_NAMES.split())
# What looks at an input's shape, not its values.
_LOOKS = frozenset({"Rank", "Shape", "ShapeN", "Size", "ZerosLike", "OnesLike", "NoOp", "Assert"})
_DECODERS = frozenset(
    {
        "DecodeBmp",
        "DecodeGif",
        "DecodeImage",
        "DecodeJpeg",
        "DecodePng",
        "DecodeAndCropJpeg",
        "DecodeWebP",
    }
)
# What decodes other things; custom operations for pictures are called Decode... as well.
_NO_PICTURE = frozenset(
    {
        "DecodeBase64",
        "DecodeCSV",
        "DecodeCompressed",
        "DecodeJSONExample",
        "DecodePaddedRaw",
        "DecodeProtoV2",
        "DecodeRaw",
        "DecodeWav",
        "UnicodeDecode",
        "UnicodeDecodeWithOffsets",
    }
)
_SCORES: Mapping[str, ScoreKind] = {
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "LogSoftmax": "log_softmax",
    "BiasAdd": "logits",
    "MatMul": "logits",
    "BatchMatMulV2": "logits",
    "_FusedMatMul": "logits",
    "ArgMax": "class_ids",
    "TopK": "top_k",
    "TopKV2": "top_k",
}
_PASSES = frozenset(
    {
        "Cast",
        "ExpandDims",
        "Identity",
        "IdentityN",
        "Reshape",
        "Squeeze",
        "StopGradient",
        "StridedSlice",
    }
)
_MOST_STEPS = 4096  # of following one tensor


def picture_facts(graph: Graph, definition: Any, alias: str) -> PictureFacts:
    """Return what a graph tells of the pictures in one input of a signature."""
    name = definition.inputs[alias].name
    if not name or node_name(name) not in graph.nodes:
        return PictureFacts()
    ends: list[_Affine] = []
    for affine, end in _ends(graph, _Place((), MAIN, node_name(name))):
        if end is not None and end.op == "DecodeBase64":
            return PictureFacts(encoding="websafe", because=end.name)
        if end is not None and end.op in _DECODERS:
            return PictureFacts(encoding="raw", because=end.name)
        ends.append(affine)
    ranges = {_expected_range(each) for each in ends}
    if len(ranges) != 1 or (found := ranges.pop()) is None:
        return PictureFacts()
    return PictureFacts(value_range=found, because=ends[0].node)


def score_kind(graph: Graph, definition: Any, alias: str) -> ScoreKind | None:
    """Return what makes an output of a signature; None where that is none of the usual ends."""
    place: _Place | None = _Place((), MAIN, definition.outputs[alias].name)
    is_part = False
    for _ in range(_MOST_STEPS):
        if place is None or (node := _node(graph, place)) is None:
            return None
        if node.op in _SCORES:
            kind = _SCORES[node.op]
            # Some columns of a softmax are probabilities that need not sum to 1, as a sigmoid's.
            return "sigmoid" if is_part and kind == "softmax" else kind
        is_part = is_part or node.op == "StridedSlice"
        if inner := _returned(graph, node, place):
            place = inner
        elif node.input and (node.op in _PASSES or _adds_bias(graph, node, place)):
            place = _outside(graph, _Place(place.calls, place.function, node.input[0]))
        else:
            return None
    return None


def _adds_bias(graph: Graph, node: Any, place: _Place) -> bool:
    """Say whether a node is the sum at the end of a dense layer."""
    if node.op not in {"Add", "AddV2"}:
        return False
    before = _node(graph, _Place(place.calls, place.function, node.input[0]))
    return before is not None and _SCORES.get(before.op) == "logits"


def _node(graph: Graph, place: _Place) -> Any:
    nodes = graph.nodes if place.function == MAIN else graph.bodies[place.function]
    return nodes.get(node_name(place.tensor))


def _outside(graph: Graph, place: _Place) -> _Place | None:
    """Return where an argument of a function comes from; another place stays what it is."""
    while place.function != MAIN and place.tensor in graph.arguments[place.function]:
        if not place.calls:
            return None
        caller, name = place.calls[-1]
        node = _node(graph, _Place((), caller, name))
        first = graph.first_argument(node) if node is not None else None
        at = graph.arguments[place.function][place.tensor]
        if node is None or first is None or first + at >= len(node.input):
            return None
        place = _Place(place.calls[:-1], caller, node.input[first + at])
    return place


def _returned(graph: Graph, node: Any, place: _Place) -> _Place | None:
    """Return what computes an output of a call, inside the function that it calls."""
    function = _callee(graph, node)
    if function is None:
        return None
    outputs = graph.functions[function].signature.output_arg
    number = place.tensor.rpartition(":")[2]
    at = int(number) if number.isdigit() else 0
    if at >= len(outputs):
        return None
    inner = graph.functions[function].ret.get(outputs[at].name, "")
    calls = (*place.calls, (place.function, node.name))
    return _outside(graph, _Place(calls, function, inner)) if inner else None


def _callee(graph: Graph, node: Any) -> str | None:
    """Return the one function that a node calls, arguments and outputs as they stand."""
    functions = graph.called_by(node)
    plain = node.op in {"PartitionedCall", "StatefulPartitionedCall"} or node.op in graph.functions
    return functions[0] if plain and len(functions) == 1 else None


def _ends(graph: Graph, start: _Place) -> Iterator[tuple[_Affine, Any]]:
    """Follow values forward; yield how they were scaled, and the node that does more than that."""
    consumers = _Consumers(graph)
    seen: set[_Place] = set()
    pending = [(start, _Affine())]
    while pending and len(seen) < _MOST_STEPS:
        place, affine = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        for where, node, at in consumers.of(place):
            if node.op in _LOOKS:
                continue
            inner = _entered(graph, where, node, at)
            changed = None if inner else _changed(graph, where, node, at, affine)
            if inner:
                pending.append((inner, affine))
            elif changed is not None:
                pending.append((_Place(where.calls, where.function, node.name), changed))
            else:
                yield affine, node


def _entered(graph: Graph, where: _Place, node: Any, at: int) -> _Place | None:
    """Return the argument that an input becomes where a node calls a function."""
    if (function := _callee(graph, node)) is None:
        return None
    declared = graph.functions[function].signature.input_arg
    if at >= len(declared) or any(function == known for known, _ in where.calls):
        return None
    calls = (*where.calls, (where.function, node.name))
    return _Place(calls, function, declared[at].name)


class _Consumers:
    """Who takes a tensor: in the same function, or behind the call that returns it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[str, dict[str, list[tuple[Any, int]]]] = {}

    def of(self, place: _Place) -> Iterator[tuple[_Place, Any, int]]:
        """Yield where each consumer stands, its node, and which of its inputs it is."""
        for node, at in self._inside(place.function).get(node_name(place.tensor), ()):
            yield place, node, at
        if place.function == MAIN or not place.calls:
            return
        returned = self._graph.functions[place.function].ret.values()
        if any(node_name(each) == node_name(place.tensor) for each in returned):
            caller, name = place.calls[-1]
            yield from self.of(_Place(place.calls[:-1], caller, name))

    def _inside(self, function: str) -> dict[str, list[tuple[Any, int]]]:
        if function not in self._known:
            nodes = self._graph.nodes if function == MAIN else self._graph.bodies[function]
            found: dict[str, list[tuple[Any, int]]] = {}
            for node in nodes.values():
                for at, each in enumerate(node.input):
                    if not each.startswith("^"):
                        found.setdefault(node_name(each), []).append((node, at))
            self._known[function] = found
        return self._known[function]


def _changed(graph: Graph, where: _Place, node: Any, at: int, affine: _Affine) -> _Affine | None:
    """Return how values are scaled behind a node; None if it does more than scale and shift."""
    if node.op in _MOVES:
        return affine if at == 0 or node.op in {"Pack", "Split"} else None
    if node.op not in _ARITHMETIC or len(node.input) < 2 or at > 1:  # noqa: PLR2004 (two operands)
        return None
    other = _constant(graph, _Place(where.calls, where.function, node.input[1 - at]))
    if other is None or not other.size:
        return None
    return _ARITHMETIC[node.op](affine, other, at, node.name)


# What is computed of constants alone before a picture meets it, such as the root of a variance.
_FOLDED: Mapping[str, Callable[..., NDArray[Any]]] = {
    "Abs": np.abs,
    "Add": np.add,
    "AddV2": np.add,
    "Cast": lambda a: a,
    "Identity": lambda a: a,
    "Maximum": np.maximum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "RealDiv": np.divide,
    "Reciprocal": np.reciprocal,
    "Reshape": lambda a, _: a,
    "ExpandDims": lambda a, _: a,
    "Rsqrt": lambda a: 1 / np.sqrt(a),
    "Sqrt": np.sqrt,
    "Square": np.square,
    "Squeeze": lambda a: a,
    "Sub": np.subtract,
}
_MOST_FOLDED = 32
_MOST_VALUES = 4096  # of a constant: no mean or scale per channel has more


def _constant(graph: Graph, place: _Place, depth: int = 0) -> NDArray[Any] | None:
    """Return the value of a tensor that is computed of small constants alone; None for others."""
    found = _outside(graph, place)
    node = None if found is None else _node(graph, found)
    if found is None or node is None or depth > _MOST_FOLDED:
        return None
    if node.op == "Const":
        return _value(node)
    if node.op not in _FOLDED:
        return None
    inputs = [name for name in node.input if not name.startswith("^")]
    values = [
        _constant(graph, _Place(found.calls, found.function, name), depth + 1) for name in inputs
    ]
    known = [each for each in values if each is not None]
    if len(known) != len(values):
        return None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(_FOLDED[node.op](*known))
    except (TypeError, ValueError):
        return None


def _value(node: Any) -> NDArray[Any] | None:
    tensor = node.attr["value"].tensor
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    if any(size < 0 for size in sizes) or np.prod(sizes, dtype=np.float64) > _MOST_VALUES:
        return None
    try:
        value = from_proto(tensor)
    except (ValueError, protos.DecodeError):
        return None
    return value if value.dtype.kind in "fiub" else None
