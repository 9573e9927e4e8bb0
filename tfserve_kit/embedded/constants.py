"""Small variables of networks with convolutions as constants: much is then worked out beforehand.

Of a batch normalization nothing is left so but other weights of the convolution before it, and
what adds, scales or activates becomes a part of it: networks for pictures take a quarter less
time. Large variables stay what they are, as tensorflow keeps several copies of a constant.

So a graph is loaded in two parts: first what restores and initializes, and then, when the values
are known, what serves. All nodes keep their names, which texts of errors tell. A graph in which
anything is unusual is loaded as it is, and so is what tensorflow's rewriter gets wrong with
constants: it takes any variance that is computed for a layer normalization, whatever the shapes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
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
_MOST_BYTES_OF_ALL = 4 << 20
# Products of a few such numbers neither overflow, nor hide what they are added to.
_LARGEST = 1e6
_HANDLE, _READ = "VarHandleOp", "ReadVariableOp"
_CONVOLUTIONS = frozenset({"Conv2D", "DepthwiseConv2dNative"})
# What takes values in such networks. The rewriter knows these well: others, such as divisions and
# powers, it replaces with what comes to something else for some numbers.
_TAKERS = _CONVOLUTIONS | {
    "AddV2", "BiasAdd", "FusedBatchNormV3", "Mul", "Reshape", "Rsqrt", "Sub",
}  # fmt: skip
_MISTAKEN = "SquaredDifference"
_TRAIN_OP = "__saved_model_train_op"
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
        """Add it to the graph of a session in which the variables have their values.

        Raises:
            UnusualGraph: it cannot be added as it is; what has been added is of no use.
        """
        graph = session.graph
        tensor = graph.get_tensor_by_name
        with graph.as_default():
            reads = [
                tf.read_variable(handle, handle.op.get_attr("dtype"), name=_APART)
                for handle in map(tensor, self.variables.values())
            ]
            given = {
                name: tf.constant(value, name=_APART) if _is_moderate(value) else read
                for name, read, value in zip(self.variables, reads, session.run(reads), strict=True)
            }
            given |= {name: tensor(name if ":" in name else f"{name}:0") for name in self.loaded}
            tf.import_graph_def(self.definition, given, name="", producer_op_list=self.producers)
        for node in self.definition.node:  # a name that is taken would have been changed
            if graph.get_operation_by_name(node.name).type != node.op:
                raise UnusualGraph


# What is added goes by a name that no graph begins with.
_APART = "c5d0f3b7_apart"


def _is_moderate(value: NDArray[Any]) -> bool:
    return bool(np.all(np.abs(value) <= _LARGEST))


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
    bodies = (each.node_def for each in meta_graph.graph_def.library.function)
    nodes = chain(meta_graph.graph_def.node, *bodies)
    if not any(node.op in _CONVOLUTIONS for node in nodes):
        return None  # before anything is looked at that takes time
    graph = Graph(meta_graph)
    loading, serving = graph.for_loading(), graph.for_serving()
    small = _small_variables(graph, loading, serving)
    if not small:
        return None
    is_usual = meta_graph.saver_def.restore_op_name and not (
        meta_graph.graph_def.library.gradient or _TRAIN_OP in meta_graph.signature_def
    )
    if not is_usual:
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


def _small_variables(graph: Graph, loading: Reach, serving: Reach) -> dict[str, str]:
    """Return the small variables that are only read: nodes that serve to nodes that are loaded."""
    operations = {
        node.op
        for function, node in graph.every_node()
        if function in serving.functions or (function == MAIN and node.name in serving.nodes)
    }
    if not operations & _CONVOLUTIONS or _MISTAKEN in operations:
        return {}
    loaded = {
        identity(graph.nodes[name]): name
        for name in loading.nodes
        if graph.nodes[name].op == _HANDLE
    }
    held: dict[Any, list[Any]] = {}
    for function, node in graph.every_node():
        if node.op in VARIABLES and serving.root(function, node.name) is not None:
            held.setdefault(identity(node), []).append(node if function == MAIN else None)
    reading = _Reading(graph, serving)
    found: dict[str, str] = {}
    left_bytes = _MOST_BYTES_OF_ALL
    for key, nodes in held.items():
        if key in loaded and _NAMELESS not in str(key) and all(map(reading.is_all_of, nodes)):
            left_bytes -= _bytes(nodes[0])
            if left_bytes >= 0:
                found |= {node.name: loaded[key] for node in nodes}
    return found


class _Reading:
    """Tells of which variables nothing but the usual is done with what is read of them."""

    def __init__(self, graph: Graph, serving: Reach) -> None:
        self._arguments = Arguments(graph)
        self._uses: dict[str, list[tuple[Any, int]]] = {}
        for name in serving.nodes:
            node = graph.nodes[name]
            for at, each in enumerate(node.input):
                self._uses.setdefault(each.removesuffix(":0"), []).append((node, at))
        # Where it stands, and the node, of what is taken by others than are known.
        self._asked_for = {(MAIN, node_name(each)) for each in graph.served_tensors()}
        self._others = set(self._asked_for)
        for function, node in graph.every_node():
            if node.op not in _TAKERS:
                self._others |= {
                    (function, node_name(each)) for each in node.input if each[0] != "^"
                }
        for function, definition in graph.functions.items():
            self._others |= {(function, node_name(each)) for each in definition.ret.values()}

    def is_all_of(self, variable: Any) -> bool:
        """Say so of a node that stands for a variable; None stands for one in a function."""
        if variable is None or (MAIN, variable.name) in self._asked_for or not _bytes(variable):
            return False
        return all(
            user is not None and user[1].op == _READ and (user[0], user[1].name) not in self._others
            for node, at in self._uses.get(variable.name, ())
            for user in self._arguments.users(node, at)
        )


def _bytes(variable: Any) -> int:
    """Return the size of a small variable of floats, 0 for others."""
    shape = variable.attr["shape"].shape
    if variable.op != _HANDLE or variable.attr["dtype"].type != _FLOAT.number or shape.unknown_rank:
        return 0
    if any(dimension.size < 0 for dimension in shape.dim):
        return 0
    size_bytes = math.prod(dimension.size for dimension in shape.dim) * _FLOAT_BYTES
    return size_bytes if size_bytes <= _MOST_BYTES else 0


_FLOAT, _FLOAT_BYTES = dtypes.by_name("float"), 4


def _definition(
    tf: "Runtime", graph: Graph, loading: Reach, serving: Reach, small: Mapping[str, str]
) -> Any:
    """Return what serves as a GraphDef in which small variables are values."""
    if any("api_implements" in graph.functions[name].attr for name in serving.functions):
        raise UnusualGraph  # tensorflow may run another function instead of one of them
    definition = tf.graph_def(versions=graph.meta_graph.graph_def.versions)
    change = _Change(graph, loading)
    for name in serving.nodes:
        if name in loading.nodes or name in small:
            continue
        node = definition.node.add()
        node.CopyFrom(graph.nodes[name])
        node.attr.pop("_class", None)  # which says whose device it has
        change.node(
            node, {at for at, each in enumerate(node.input) if each.removesuffix(":0") in small}
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
    """Has nodes and functions take floats where they took handles of variables."""

    def __init__(self, graph: Graph, loading: Reach) -> None:
        self._graph = graph
        self._functions = dict(graph.functions)
        self._loading = loading
        self._made: dict[tuple[str, frozenset[int]], str] = {}

    def node(self, node: Any, values: set[int]) -> None:
        """Change a node, given which of its inputs are values now."""
        if not values:
            return
        if node.op == _READ:
            node.op = "Identity"
            node.attr.clear()
            node.attr["T"].type = _FLOAT.number
            return
        first = self._graph.first_argument(node) or 0
        arguments = frozenset(at - first for at in values)
        for at in arguments:
            node.attr["Tin"].list.type[at] = _FLOAT.number
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

    def _function(self, name: str, values: frozenset[int]) -> str:
        """Return what a function is called that takes some arguments by value."""
        key = name, values
        if key not in self._made:
            self._made[key] = self._free_name(name)
            self._functions[self._made[key]] = self._changed(name, self._made[key], values)
        return self._made[key]

    def _free_name(self, name: str) -> str:
        """Return the name of a function, or another one if that is needed as it is, too."""
        if len(self._graph.callers[name]) == 1 and name not in self._loading.functions:
            return name
        count = 1
        while f"{name}_{count}" in self._functions:
            count += 1
        return f"{name}_{count}"

    def _changed(self, name: str, new_name: str, values: frozenset[int]) -> Any:
        original = self._graph.functions[name]
        changed = type(original).FromString(original.SerializeToString())
        changed.signature.name = new_name
        shapes = changed.attr["_input_shapes"].list.shape
        for at in values:
            argument = changed.signature.input_arg[at]
            argument.type = _FLOAT.number
            argument.ClearField("handle_data")
            changed.arg_attr.pop(at, None)
            changed.resource_arg_unique_id.pop(at, None)
            if at < len(shapes):  # as it was, it is that of a handle
                shapes[at].Clear()
                shapes[at].unknown_rank = True
        if not shapes:
            del changed.attr["_input_shapes"]
        names = {changed.signature.input_arg[at].name for at in values}
        renamed = {}
        for node in changed.node_def:
            given = {at for at, each in enumerate(node.input) if each in names}
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
