"""Graphs that treat every number by itself: the requests of a row can be one to them.

What such a graph makes of a number does not depend on the others beside it. So the arrays of
several requests are put behind each other, and what is computed is cut again: each gets to the last
bit what it would get alone. Only operations are known here of which that is true.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tfserve_kit.embedded.unrolled import definition_of
from tfserve_kit.tensors import dtypes

Shape = tuple[int, ...]
# A tensor's shape if it is the same for all requests; None if it has a row for each of the input.
_Value = Shape | None

_ARITHMETIC = frozenset({"Add", "AddV2", "Mul", "Neg", "Square", "Sub"})
_READ, _HANDLE = "ReadVariableOp", "VarHandleOp"
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_OTHERS = _CALLS | {"Const", "Identity", "NoOp", _READ, _HANDLE}
# What processors compute of these is the same for one and for many at once.
_NUMBERS = frozenset(dtypes.by_numpy(name).number for name in ("f4", "f8", "i4", "i8"))
_MOST_OPERATIONS = 64


def elementwise(graph: Any, feed: str, fetch: str, shape_of: Callable[[str], Shape]) -> int | None:
    """Say whether a graph treats every number of an input by itself.

    Args:
        graph: the graph.
        feed: name of the tensor that is fed.
        fetch: name of the tensor that is computed.
        shape_of: returns the shape of what a variable holds, given the name of its handle. It
            keeps this shape, which is declared.

    Returns:
        How many dimensions the input must have at least for that; None if it does not.
    """
    fed = graph.get_tensor_by_name(feed).op
    if fed.type != "Placeholder" or not _has_any_length(fed.get_attr("shape")):
        return None
    look = _Look(graph, shape_of)
    try:
        read = look.reader(
            lambda name: graph.get_operation_by_name(name).node_def, {fed.name: [None]}
        )
        value = read(fetch)
    except (_Other, LookupError, ValueError):  # also shapes that do not fit each other
        return None
    return look.least_dimensions if value is None else None


def _has_any_length(shape: Any) -> bool:
    return shape.unknown_rank or bool(shape.dim and shape.dim[0].size < 0)


class _Other(Exception):
    """A graph does something else."""


class _Look:
    """What is found out about a graph, one operation after the other."""

    def __init__(self, graph: Any, shape_of: Callable[[str], Shape]) -> None:
        self.least_dimensions = 1
        self._graph = graph
        self._shape_of = shape_of
        self._count = 0

    def reader(
        self, nodes: Callable[[str], Any], found: dict[str, list[_Value]]
    ) -> Callable[[str], _Value]:
        """Return what tells of tensors by name, given the outputs of some nodes."""

        def read(tensor: str) -> _Value:
            name, _, output = tensor.removeprefix("^").partition(":")
            if name not in found:
                node = nodes(name)
                self._check(node)  # before all else, so that no circle is followed for ever
                inputs = [read(each) for each in node.input if not each.startswith("^")]
                found[name] = self._outputs(node, inputs)
                for each in node.input:
                    if each.startswith("^"):
                        read(each)
            outputs = found[name]
            return outputs[int(output.rpartition(":")[2] or 0)] if outputs else ()

        return read

    def _check(self, node: Any) -> None:
        self._count += 1
        is_known = node.op in _OTHERS or (
            node.op in _ARITHMETIC and node.attr["T"].type in _NUMBERS
        )
        if not is_known or self._count > _MOST_OPERATIONS:
            raise _Other

    def _outputs(self, node: Any, inputs: list[_Value]) -> list[_Value]:
        if node.op in _CALLS:
            return self._called(definition_of(self._graph, node.attr["f"].func.name), inputs)
        if node.op == "Const":
            return [tuple(each.size for each in node.attr["value"].tensor.tensor_shape.dim)]
        if node.op == _HANDLE:
            declared = tuple(each.size for each in node.attr["shape"].shape.dim)
            if node.attr["shape"].shape.unknown_rank or self._shape_of(node.name) != declared:
                raise _Other
            return [declared]
        return [self._combined(*inputs)] if len(inputs) > 1 else inputs

    def _combined(self, one: _Value, other: _Value) -> _Value:
        if one is not None and other is not None:
            return np.broadcast_shapes(one, other)
        for shape in (one, other):
            if shape is not None:  # its numbers are the same for every row
                is_one_row = shape[:1] == (1,)
                dimensions = len(shape) if is_one_row else len(shape) + 1
                self.least_dimensions = max(self.least_dimensions, dimensions)
        return None

    def _called(self, function: Any, inputs: list[_Value]) -> list[_Value]:
        if any(node.op == _HANDLE for node in function.node_def):  # names are of the main graph
            raise _Other
        arguments = (each.name for each in function.signature.input_arg)
        found = {name: [value] for name, value in zip(arguments, inputs, strict=True)}
        nodes = {node.name: node for node in function.node_def}
        read = self.reader(nodes.__getitem__, found)
        for node in function.node_def:  # all of them, as what has an effect runs in any case
            read(node.name)
        return [read(function.ret[each.name]) for each in function.signature.output_arg]
