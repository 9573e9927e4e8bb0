"""Small graphs, computed for several requests in one run: for each by a copy of its own.

To begin and end a run takes longer than a graph of a few operations does. The copies stand beside
each other and share variables and constants, so each request gets what it would get alone: nothing
is put together or padded, as in a batch, and shapes may differ. Only graphs that have no effects
are copied, as a run that fails is repeated for each request alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tfserve_kit.tensors import dtypes

if TYPE_CHECKING:
    from tfserve_kit.embedded.servable import Compiled, Runtime

# Of more copies each takes hardly less time, but a run of all of them longer to be built.
_SIZES = (8, 4, 2)
_MOST_OPERATIONS = 64
# Smaller graphs are not optimized by tensorflow (`min_graph_nodes` of its rewriter), but with
# copies they would be: a division would become a product, with other last bits.
_LEAST_OPERATIONS = 4
# What all copies share, and what has an effect or a state by its definition, but none that counts.
_SHARED = frozenset({"Const", "HashTableV2", "VarHandleOp"})
_HARMLESS = _SHARED | {
    "LookupTableFindV2", "PartitionedCall", "ReadVariableOp", "StatefulPartitionedCall",
}  # fmt: skip
# What has a state or effects though its definition does not say so; and loops of the first kind,
# which know each other by names that copies would have in common.
_HARMFUL = frozenset({
    "FractionalAvgPool", "FractionalMaxPool", "InplaceAdd", "InplaceSub", "InplaceUpdate",
    "PyFuncStateless", "Enter", "Exit", "LoopCond", "Merge", "NextIteration", "Switch",
})  # fmt: skip


class Unrolled:
    """Computes some tensors for several requests in one run.

    Args:
        width: how many tensors are computed for each.
        calls: how many requests a call is for, and the call: it is given the values to feed of one
            after the other, and returns what is computed likewise. The largest comes first.
    """

    def __init__(self, width: int, calls: Sequence[tuple[int, "Compiled"]]) -> None:
        self._width, self._calls = width, calls

    def run(self, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[Sequence[NDArray[Any]]]:
        """Compute the tensors for the first requests, as many as can be; never raises.

        Args:
            feeds: value per tensor name of each, all in the same order.

        Returns:
            The values for those whose run did not fail.
        """
        found: list[Sequence[NDArray[Any]]] = []
        with suppress(Exception):  # of one of them: who is left has to be asked for alone
            for size, call in self._calls:
                while len(feeds) - len(found) >= size:
                    some = feeds[len(found) : len(found) + size]
                    values = call(*chain.from_iterable(map(_values, some)))
                    found += [
                        values[at : at + self._width] for at in range(0, len(values), self._width)
                    ]
        return found


_values = methodcaller("values")


def unrolled(
    tf: "Runtime",
    graph: Any,
    feeds: Sequence[str],
    fetches: Sequence[str],
    make: Callable[[Sequence[str], Sequence[str]], "Compiled"],
) -> Unrolled | None:
    """Add copies to a graph of what computes some tensors, and return what runs them.

    Args:
        tf: what is used of tensorflow.
        graph: the graph; may be one that runs.
        feeds: names of the tensors that are fed.
        fetches: names of the tensors to compute.
        make: returns what computes tensors from others, by their names.

    Returns:
        What runs them; None where the graph is too small or too large, has effects, or computes
        with strings.
    """
    if len(graph.get_operations()) < _LEAST_OPERATIONS:
        return None
    if not all(_is_number(graph.get_tensor_by_name(name)) for name in (*feeds, *fetches)):
        return None
    operations = _needed(tf, graph, feeds, fetches)
    if operations is None:
        return None
    copies = _copied(tf, graph, operations, [*feeds, *fetches])
    fed = [name for copy in copies for name in copy[: len(feeds)]]
    computed = [name for copy in copies for name in copy[len(feeds) :]]
    calls = [
        (size, make(fed[: size * len(feeds)], computed[: size * len(fetches)])) for size in _SIZES
    ]
    return Unrolled(len(fetches), calls)


def _copied(
    tf: "Runtime", graph: Any, operations: Sequence[Any], names: Sequence[str]
) -> list[list[str]]:
    """Copy operations within their graph; return what some tensors are called in each copy."""
    definition = tf.graph_def(versions=graph.graph_def_versions)
    shared = {each.name for each in operations if each.type in _SHARED}
    waited_for = {f"^{name}" for name in shared}  # in vain: it is there before anything runs
    for each in operations:
        if each.name not in shared:
            node = definition.node.add()
            node.CopyFrom(each.node_def)
            node.attr.pop("_class", None)  # which says whose device it has
            node.input[:] = [name for name in node.input if name not in waited_for]
    used = {name for node in definition.node for name in node.input}
    outputs = [out for each in operations if each.name in shared for out in each.outputs]
    replaced = {out.name: out for out in outputs if used & {out.name, out.op.name}}
    with graph.as_default():
        copies = [
            tf.import_graph_def(definition, replaced, names, name="copy")
            for _ in range(max(_SIZES))
        ]
    return [[tensor.name for tensor in copy] for copy in copies]


def _is_number(tensor: Any) -> bool:
    number = tensor.dtype.base_dtype.as_datatype_enum
    return number != dtypes.STRING.number and dtypes.numpy_of(number) is not None


def _needed(
    tf: "Runtime", graph: Any, feeds: Sequence[str], fetches: Sequence[str]
) -> list[Any] | None:
    """Return the operations that compute some tensors; None where they cannot be copied."""
    fed = {graph.get_tensor_by_name(name).op for name in feeds}
    waiting = [graph.get_tensor_by_name(name).op for name in fetches]
    if any(each.type != _FED for each in fed) or any(each.type in _SHARED for each in waiting):
        return None
    found = {each.name: each for each in fed}
    count = 0
    while waiting:
        each = waiting.pop()
        if each.name in found:
            continue
        found[each.name] = each
        if each.type == _FED or (each.control_inputs and each.type in _SHARED):
            return None  # it is not fed, or nothing that is the same for all requests
        for node in _within(tf, graph, each.node_def):
            count += 1
            if count > _MOST_OPERATIONS or not _is_harmless(tf, node.op):
                return None
        waiting += [tensor.op for tensor in each.inputs]
        waiting += each.control_inputs
    return list(found.values())


_FED = "Placeholder"


def _is_harmless(tf: "Runtime", kind: str) -> bool:
    definition = tf.op_def(kind)
    is_pure = definition is not None and not definition.is_stateful and kind not in _HARMFUL
    return is_pure or kind in _HARMLESS


def _within(tf: "Runtime", graph: Any, node: Any) -> Iterator[Any]:
    """Yield a node, and all that functions consist of which it calls."""
    yield node
    for attribute in node.attr.values():
        for function in (attribute.func, *attribute.list.func):
            if function.name:
                for inner in definition_of(graph, function.name).node_def:
                    yield from _within(tf, graph, inner)


def definition_of(graph: Any, function: str) -> Any:
    """Return a function of a graph as a FunctionDef."""
    return graph._get_function(function).cached_definition  # noqa: SLF001
