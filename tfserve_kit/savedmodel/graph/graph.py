"""Which nodes of a graph a server ever runs.

A server runs a node because a signature's output needs it, because the init operation does, or
because restoring the variables does. Nothing else in a SavedModel is run: neither what saves it nor
the functions that only Python code would call.

Source: tensorflow/cc/saved_model/loader.cc and loader_util.cc (restore and init operation),
tensorflow/core/graph/subgraph.cc (a tensor that is fed is not computed).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfserve_kit import protos

MAIN = ""  # stands for the main graph where a function's name stands otherwise

_INIT_SIGNATURE = "__saved_model_init_op"
_TRAIN_SIGNATURE = "__saved_model_train_op"
_OLD_ASSETS = "saved_model_assets"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")

_STRING = 7  # DT_STRING
_MOST_VISITS = 5_000_000  # of nodes and inputs, while every signature is walked by itself
_MOST_STEPS = 1_000_000  # of following texts to where they come from, all of them together


@dataclass(frozen=True, slots=True)
class Root:
    """Why nodes run: the tensors that are asked for and those that are given."""

    tensors: tuple[str, ...]
    fed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reach:
    """What runs for one purpose: node or function to the name of the first root that needs it."""

    nodes: Mapping[str, str]
    functions: Mapping[str, str]

    def root(self, function: str, node: str) -> str | None:
        """Return which root needs a node, None if none does."""
        return self.nodes.get(node) if function == MAIN else self.functions.get(function)


class Graph:
    """The nodes and functions of a MetaGraphDef, indexed once; every walk is iterative.

    Attributes:
        meta_graph: the MetaGraphDef.
        nodes: the nodes of the main graph by name.
        functions: the library's functions by name.
        bodies: the nodes of each function by name.
        arguments: the position of each argument of each function.
        assets: file name by the tensor that is given its path.
        callers: (function, node) of everything that calls a function.
        texts: (function, tensor) of everything that a text variable is set to.
        given: what callers give for an argument, by (function, argument); filled where needed.
        steps_left: of following texts; without any, all that is looked for is a long way off.
        called: the functions that `node NAME` of the main graph, and each function, calls.
    """

    def __init__(self, meta_graph: Any) -> None:
        library = meta_graph.graph_def.library
        self.meta_graph = meta_graph
        self.nodes = {node.name: node for node in meta_graph.graph_def.node}
        self.functions = {each.signature.name: each for each in library.function}
        self.assets = {
            tensor_name(each.tensor_info.name): each.filename for each in asset_files(meta_graph)
        }
        self.bodies = {name: _body(function) for name, function in self.functions.items()}
        self.arguments = {
            name: {arg.name: at for at, arg in enumerate(function.signature.input_arg)}
            for name, function in self.functions.items()
        }
        self.callers: dict[str, list[tuple[str, str]]] = {}
        self.texts: dict[tuple[str, str], None] = {}
        self.given: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
        self.steps_left = _MOST_STEPS
        self._edges = sum(1 + len(node.input) for node in self.nodes.values())
        self._inputs: dict[str, list[tuple[str, str]]] = {}
        self.called = self._index()
        self._linked = _links(library)

    def every_node(self) -> Iterator[tuple[str, Any]]:
        """Yield all nodes with the function they stand in, or `MAIN`."""
        for node in self.meta_graph.graph_def.node:
            yield MAIN, node
        for name, function in self.functions.items():
            for node in function.node_def:
                yield name, node

    def served(self) -> Reach:
        """Return what the signatures run."""
        return self._reach(
            {
                f"signature {name!r}": Root(
                    tuple(tensor_names(definition.outputs.values())),
                    frozenset(map(tensor_name, tensor_names(definition.inputs.values()))),
                )
                for name, definition in sorted(self.meta_graph.signature_def.items())
                if name not in {_INIT_SIGNATURE, _TRAIN_SIGNATURE}
            }
        )

    def initialized(self) -> Reach:
        """Return what runs once after the variables are restored."""
        names: list[str] = []
        for key in _INIT_COLLECTIONS:
            if key in self.meta_graph.collection_def:
                names += self.meta_graph.collection_def[key].node_list.value
        if _INIT_SIGNATURE in self.meta_graph.signature_def:
            outputs = self.meta_graph.signature_def[_INIT_SIGNATURE].outputs
            names += tensor_names(outputs.values())
        return self._reach({"the init operation": Root(tuple(names), frozenset(self.assets))})

    def restored(self) -> Reach:
        """Return what runs when the variables are restored."""
        saver = self.meta_graph.saver_def
        fed = {tensor_name(saver.filename_tensor_name), *self.assets}
        return self._reach({"restoring variables": Root((saver.restore_op_name,), frozenset(fed))})

    def operations(self, definition: Any) -> set[str]:
        """Return the operations that a signature runs, given its SignatureDef."""
        outputs, inputs = definition.outputs.values(), definition.inputs.values()
        root = Root(tuple(tensor_names(outputs)), frozenset(map(tensor_name, tensor_names(inputs))))
        reach = self._reach({"": root})
        found = {self.nodes[name].op for name in reach.nodes}
        return found.union(
            *({node.op for node in self.functions[name].node_def} for name in reach.functions)
        )

    def called_by(self, node: Any) -> list[str]:
        """Return the library's functions that a node calls."""
        return [name for name in _callees(node, self.functions) if name in self.functions]

    def _index(self) -> dict[str, list[str]]:
        """Return which functions each node of the main graph, and each function, calls."""
        called: dict[str, list[str]] = {}
        for function, node in self.every_node():
            if node.op == "AssignVariableOp" and node.attr["dtype"].type == _STRING:
                self.texts |= dict.fromkeys((function, tensor) for tensor in node.input[1:2])
            for name in _callees(node, self.functions):
                self.callers.setdefault(name, []).append((function, node.name))
                called.setdefault(function or f"node {node.name}", []).append(name)
        return called

    def _reach(self, roots: Mapping[str, Root]) -> Reach:
        nodes: dict[str, str] = {}
        functions: dict[str, str] = {}
        if len(roots) * self._edges > _MOST_VISITS:
            everything = tuple(name for root in roots.values() for name in root.tensors)
            roots = {"a signature": Root(everything)}
        for label, root in roots.items():
            for name in self._needed(root):
                if name not in nodes:
                    nodes[name] = label
                    self._enter(self.called.get(f"node {name}", ()), label, functions)
        return Reach(nodes, functions)

    def _needed(self, root: Root) -> set[str]:
        """Return the nodes of the main graph that run for a root."""
        needed: set[str] = set()
        pending = [(node_name(tensor), tensor_name(tensor)) for tensor in root.tensors]
        while pending:
            name, tensor = pending.pop()
            if name not in needed and name in self.nodes and tensor not in root.fed:
                needed.add(name)
                pending += self._inputs_of(name)
        return needed

    def _inputs_of(self, node: str) -> list[tuple[str, str]]:
        """Return (node, tensor) of each input; read once, as most signatures share nodes."""
        if node not in self._inputs:
            names = self.nodes[node].input
            self._inputs[node] = [(node_name(each), tensor_name(each)) for each in names]
        return self._inputs[node]

    def _enter(self, names: Sequence[str], label: str, functions: dict[str, str]) -> None:
        """Add functions and all that they call."""
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in functions or name not in self.functions:
                continue
            functions[name] = label
            pending += self.called.get(name, ())
            pending += self._linked.get(name, ())


def asset_files(meta_graph: Any) -> list[Any]:
    """Return the AssetFileDefs of a MetaGraphDef; old ones stand in a collection.

    Raises:
        ValueError: one in the collection is damaged.

    Source: tensorflow/cc/saved_model/loader_util.cc (GetAssetFileDefs).
    """
    if meta_graph.asset_file_def or _OLD_ASSETS not in meta_graph.collection_def:
        return list(meta_graph.asset_file_def)
    packed = meta_graph.collection_def[_OLD_ASSETS].any_list.value
    found = [protos.AssetFileDef() for _ in packed]
    try:
        return [each for each, value in zip(found, packed, strict=True) if value.Unpack(each)]
    except protos.DecodeError as error:
        raise ValueError("an asset cannot be parsed: damaged") from error


def node_name(tensor: str) -> str:
    """Return the node of a tensor or control input: `a` for `a:1`, `a:out:0` and `^a`."""
    return tensor.removeprefix("^").partition(":")[0]


def tensor_names(infos: Iterable[Any]) -> list[str]:
    """Return the names of the tensors that inputs or outputs of a signature are made of."""
    names: list[str] = []
    pending = list(infos)
    while pending:
        info = pending.pop()
        kind = info.WhichOneof("encoding")
        if kind == "name":
            names.append(info.name)
        elif kind == "composite_tensor":
            pending += info.composite_tensor.components
        elif kind == "coo_sparse":
            sparse = info.coo_sparse
            names += [
                sparse.values_tensor_name,
                sparse.indices_tensor_name,
                sparse.dense_shape_tensor_name,
            ]
    return names


def tensor_name(name: str) -> str:
    """Return a tensor's name with its output number: `a:0` for `a`; control inputs as they are."""
    return name if ":" in name or name.startswith("^") else f"{name}:0"


def _body(function: Any) -> dict[str, Any]:
    return {node.name: node for node in function.node_def}


def _callees(node: Any, functions: Mapping[str, Any]) -> list[str]:
    """Return the functions that a node names, in its attributes or as its operation."""
    found = [node.op] if node.op in functions else []
    pending = list(node.attr.values())
    while pending:
        value = pending.pop()
        kind = value.WhichOneof("value")
        references = [value.func] if kind == "func" else value.list.func if kind == "list" else ()
        for each in references:
            found.append(each.name)
            pending += each.attr.values()
    return found


def _links(library: Any) -> dict[str, list[str]]:
    """Return the functions that may run instead of another, or as its gradient.

    Source: tensorflow/core/grappler/optimizers/implementation_selector.cc: of the functions that
    implement one interface, the optimizer takes the one for the device.
    """
    interfaces: dict[bytes, list[str]] = {}
    for function in library.function:
        if "api_implements" in function.attr:
            group = interfaces.setdefault(function.attr["api_implements"].s, [])
            group.append(function.signature.name)
    # A ring is enough: who enters it anywhere comes through all of it.
    links = {
        name: [group[at - 1]] for group in interfaces.values() for at, name in enumerate(group)
    }
    for gradient in library.gradient:
        links.setdefault(gradient.function_name, []).append(gradient.gradient_func)
    return links
