"""Small variables as constants: what depends on nothing else is then worked out beforehand.

Of a batch normalization nothing is left so but other weights of the convolution before it, and
what adds, scales or activates becomes a part of it: networks for pictures take a quarter less
time. Large variables stay what they are, as tensorflow keeps several copies of a constant.

So a graph is loaded in two parts: first what restores and initializes, and then, when the values
are known, what serves. All nodes keep their names, which texts of errors tell. A graph in which
anything is unusual is loaded as it is.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.savedmodel.graph import (
    INIT_COLLECTIONS,
    MAIN,
    OLD_ASSETS,
    VARIABLES,
    Arguments,
    Graph,
    Reach,
    callees,
    identity,
    node_name,
)
from tfserve_kit.tensors import dtypes

if TYPE_CHECKING:
    from tfserve_kit.embedded.servable import Runtime

# What scales or adds has fewer bytes, and so have small kernels.
_MOST_BYTES = 64 << 10
_MOST_BYTES_OF_ALL = 16 << 20
_HANDLE, _READ = "VarHandleOp", "ReadVariableOp"
# Nothing has to wait for these: they are there once they are loaded.
_AT_REST = VARIABLES | {"Const", "HashTableV2"}
# Stands for a name of its own wherever it is given, so that it names nothing.
_NAMELESS = "cd2c89b7-88b7-44c8-ad83-06c2a9158347"


@dataclass(frozen=True, slots=True)
class Serving:
    """The part of a graph that serves, without its small variables.

    Attributes:
        definition: it, as a GraphDef that refers to what is loaded before.
        variables: a tensor that is loaded by each tensor of a small variable that it refers to.
        loaded: all other tensors that it refers to.
        producers: the operations that the graph was made of, as an OpList; None if not known.
    """

    definition: Any
    variables: Mapping[str, str]
    loaded: frozenset[str]
    producers: Any

    def add_to(self, tf: "Runtime", session: Any) -> None:
        """Add it to the graph of a session in which the variables have their values."""
        tensor = session.graph.get_tensor_by_name
        with session.graph.as_default():
            reads = [_value(tf, tensor(name)) for name in self.variables.values()]
            given = {
                name: tf.constant(value) if _is_safe(value) else read
                for name, read, value in zip(self.variables, reads, session.run(reads), strict=True)
            }
            given |= {name: tensor(name if ":" in name else f"{name}:0") for name in self.loaded}
            tf.import_graph_def(self.definition, given, name="", producer_op_list=self.producers)


def _value(tf: "Runtime", variable: Any) -> Any:
    if variable.op.type == _HANDLE:
        return tf.read_variable(variable, variable.op.get_attr("dtype"))
    return tf.identity(variable)


def _is_safe(value: NDArray[Any]) -> bool:
    """Say whether products may be worked out: those with a matrix of zeros would hide a NaN."""
    return value.ndim == 1 or bool(np.any(value))


class UnusualGraph(Exception):
    """A graph is to be loaded as it is."""


def split_off(tf: "Runtime", meta_graph: Any) -> Serving | None:
    """Take from a MetaGraphDef what only serves, for small variables to be constants there.

    Args:
        tf: what is used of tensorflow.
        meta_graph: the MetaGraphDef; what is taken is no longer in it.

    Returns:
        What was taken; None, and nothing, if there are no such variables.

    Raises:
        UnusualGraph: this cannot be done with it, though there are; nothing was taken.
    """
    graph = Graph(meta_graph)
    loading, serving = graph.for_loading(), graph.for_serving()
    small = _small_variables(tf, graph, loading, serving)
    if not small:
        return None
    if not meta_graph.saver_def.restore_op_name:
        raise UnusualGraph
    definition = _definition(tf, graph, loading, serving, small)
    names = {node.name for node in definition.node}
    outside = {
        each for node in definition.node for each in node.input if node_name(each) not in names
    }
    if any(each.startswith("^") for each in outside):
        raise UnusualGraph
    variables = {
        each: f"{small[node_name(each)]}:0" for each in outside if node_name(each) in small
    }
    info = meta_graph.meta_info_def
    producers = info.stripped_op_list if info.HasField("stripped_op_list") else None
    _keep(tf, meta_graph, loading)
    return Serving(definition, variables, frozenset(outside - variables.keys()), producers)


def _small_variables(tf: "Runtime", graph: Graph, loading: Reach, serving: Reach) -> dict[str, str]:
    """Return the small variables that are only read: nodes that serve to nodes that are loaded."""
    loaded = {
        identity(graph.nodes[name]): name
        for name in loading.nodes
        if graph.nodes[name].op in VARIABLES
    }
    held: dict[Any, list[Any]] = {}
    for function, node in graph.every_node():
        if node.op in VARIABLES and serving.root(function, node.name) is not None:
            held.setdefault(identity(node), []).append(node if function == MAIN else None)
    reading = _Reading(tf, graph, serving)
    found: dict[str, str] = {}
    left_bytes = _MOST_BYTES_OF_ALL
    for key, nodes in held.items():
        if key in loaded and _NAMELESS not in str(key) and all(map(reading.is_all_of, nodes)):
            left_bytes -= _bytes(nodes[0])
            if left_bytes >= 0:
                found |= {node.name: loaded[key] for node in nodes}
    return found


class _Reading:
    """Tells of which variables nothing but reading is done where it is served."""

    def __init__(self, tf: "Runtime", graph: Graph, serving: Reach) -> None:
        self._tf = tf
        self._arguments = Arguments(graph)
        self._uses: dict[str, list[tuple[Any, int]]] = {}
        for name in serving.nodes:
            node = graph.nodes[name]
            for at, each in enumerate(node.input):
                self._uses.setdefault(each.removesuffix(":0"), []).append((node, at))
        self._asked_for = set(map(node_name, graph.served_tensors()))

    def is_all_of(self, variable: Any) -> bool:
        """Say so of a node that stands for a variable; None stands for one in a function."""
        if variable is None or variable.name in self._asked_for or not _bytes(variable):
            return False
        return all(
            self._is_it(variable, node, at) for node, at in self._uses.get(variable.name, ())
        )

    def _is_it(self, variable: Any, node: Any, at: int) -> bool:
        if variable.op != _HANDLE:  # a reference, which most operations take for the value
            definition = self._tf.op_def(node.op)
            return definition and not any(each.is_ref for each in definition.input_arg)
        users = self._arguments.users(node, at)
        return all(user is not None and user.op == _READ for user in users)


def _bytes(variable: Any) -> int:
    """Return the size of a small variable of numbers, 0 for others."""
    shape, number = variable.attr["shape"].shape, variable.attr["dtype"].type
    dtype = dtypes.numpy_of(number)
    if number == dtypes.STRING.number or dtype is None or shape.unknown_rank:
        return 0
    if any(dimension.size < 0 for dimension in shape.dim):
        return 0
    size_bytes = math.prod(dimension.size for dimension in shape.dim) * dtype.itemsize
    return size_bytes if size_bytes <= _MOST_BYTES else 0


def _definition(
    tf: "Runtime", graph: Graph, loading: Reach, serving: Reach, small: Mapping[str, str]
) -> Any:
    """Return what serves as a GraphDef in which small variables are values."""
    if any("api_implements" in graph.functions[name].attr for name in serving.functions):
        raise UnusualGraph  # tensorflow may run another function instead of one of them
    definition = tf.graph_def(versions=graph.meta_graph.graph_def.versions)
    values = {
        name: graph.nodes[name].attr["dtype"].type
        for name in small
        if graph.nodes[name].op == _HANDLE
    }
    change = _Change(graph, loading)
    for name in serving.nodes:
        if name in loading.nodes or name in small:
            continue
        node = definition.node.add()
        node.CopyFrom(graph.nodes[name])
        node.attr.pop("_class", None)  # which says whose device it has
        change.node(
            node,
            {
                at: values[each.removesuffix(":0")]
                for at, each in enumerate(node.input)
                if each.removesuffix(":0") in values
            },
        )
        node.input[:] = [
            each
            for each in node.input
            if not (each.startswith("^") and _is_at_rest(graph, loading, small, each[1:]))
        ]
    definition.library.function.extend(change.library(definition))
    return definition


def _is_at_rest(graph: Graph, loading: Reach, small: Mapping[str, str], name: str) -> bool:
    return name in small or (name in loading.nodes and graph.nodes[name].op in _AT_REST)


class _Change:
    """Has nodes and functions take values where they took handles of variables."""

    def __init__(self, graph: Graph, loading: Reach) -> None:
        self._graph = graph
        self._functions = dict(graph.functions)
        self._names = set(loading.functions)
        self._made: dict[tuple[str, frozenset[tuple[int, int]]], str] = {}

    def node(self, node: Any, values: Mapping[int, int]) -> None:
        """Change a node, given the type of each input that is a value now."""
        if not values:
            return
        if node.op == _READ:
            node.op = "Identity"
            node.attr.clear()
            node.attr["T"].type = values[0]
            return
        first = self._graph.first_argument(node) or 0
        arguments = {at - first: number for at, number in values.items()}
        for at, number in arguments.items():
            node.attr["Tin"].list.type[at] = number
        node.attr.pop("_read_only_resource_inputs", None)
        for attribute in node.attr.values():
            for function in (attribute.func, *attribute.list.func):
                if function.name in self._graph.functions:
                    function.name = self._function(function.name, arguments)

    def library(self, definition: Any) -> Iterator[Any]:
        """Yield the functions that a graph needs."""
        found: set[str] = set()
        pending = list(definition.node)
        while pending:
            for name in callees(pending.pop(), self._functions):
                if name in self._functions and name not in found:
                    found.add(name)
                    pending += self._functions[name].node_def
                    yield self._functions[name]

    def _function(self, name: str, values: Mapping[int, int]) -> str:
        """Return what a function is called that takes some arguments by value."""
        key = name, frozenset(values.items())
        if key not in self._made:
            self._made[key] = self._free_name(name)
            self._functions[self._made[key]] = self._changed(name, self._made[key], values)
        return self._made[key]

    def _free_name(self, name: str) -> str:
        found, count = name, 0
        while found in self._names:
            count += 1
            found = f"{name}_{count}"
        self._names.add(found)
        return found

    def _changed(self, name: str, new_name: str, values: Mapping[int, int]) -> Any:
        original = self._graph.functions[name]
        changed = type(original).FromString(original.SerializeToString())
        changed.signature.name = new_name
        types = {}
        for at, number in values.items():
            argument = changed.signature.input_arg[at]
            argument.type = types[argument.name] = number
            argument.ClearField("handle_data")
            changed.arg_attr.pop(at, None)
            changed.resource_arg_unique_id.pop(at, None)
        renamed = {}
        for node in changed.node_def:
            given = {at: types[each] for at, each in enumerate(node.input) if each in types}
            self.node(node, given)
            if given and node.op == "Identity":  # its output has another name than that of a read
                renamed[f"{node.name}:value:0"] = f"{node.name}:output:0"
        for node in changed.node_def:
            node.input[:] = [renamed.get(each, each) for each in node.input]
        for output, tensor in changed.ret.items():
            changed.ret[output] = renamed.get(tensor, tensor)
        return changed


def _keep(tf: "Runtime", meta_graph: Any, loading: Reach) -> None:
    """Take everything from a MetaGraphDef that is not needed for loading."""
    whole = meta_graph.graph_def
    kept = tf.graph_def(versions=whole.versions)
    kept.node.extend(node for node in whole.node if node.name in loading.nodes)
    kept.library.function.extend(
        each for each in whole.library.function if each.signature.name in loading.functions
    )
    meta_graph.graph_def.CopyFrom(kept)
    for key in set(meta_graph.collection_def) - {*INIT_COLLECTIONS, OLD_ASSETS}:
        del meta_graph.collection_def[key]
