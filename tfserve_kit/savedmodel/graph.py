"""The graph of a SavedModel: what a server runs of it, where texts come from, what can be answered.

A server runs a node because a signature's output needs it, because the init operation does, or
because restoring the variables does. Nothing else in a SavedModel is run: neither what saves it nor
the functions that only Python code would call.

A server loads a model whatever its signatures need, says AVAILABLE, and only then fails every
request. Whether it would is decided here from the graph alone.

Source: tensorflow/cc/saved_model/loader.cc and loader_util.cc (what a load runs: the restore
operation, then the init operation), tensorflow/core/graph/subgraph.cc (a tensor that is fed is not
computed) and tensorflow_serving/servables/tensorflow/predict_util.cc (tensors are fed and fetched
by the names in the signature).
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tfserve_kit import protos
from tfserve_kit.savedmodel.signatures import INIT_SIGNATURE, INTERNAL_SIGNATURES

MAIN = ""  # stands for the main graph where a function's name stands otherwise

OLD_ASSETS = "saved_model_assets"  # collections, as the next ones
INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")

_STRING = 7  # DT_STRING
_MOST_VISITS = 5_000_000  # of nodes and inputs, while every signature is walked by itself
_MOST_STEPS = 1_000_000  # of following texts to where they come from, all of them together


@dataclass(frozen=True, slots=True)
class _Root:
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
            _tensor_name(each.tensor_info.name): each.filename for each in asset_files(meta_graph)
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
                f"signature {name!r}": _Root(
                    tuple(tensor_names(definition.outputs.values())),
                    frozenset(map(_tensor_name, tensor_names(definition.inputs.values()))),
                )
                for name, definition in sorted(self.meta_graph.signature_def.items())
                if name not in INTERNAL_SIGNATURES
            }
        )

    def initialized(self) -> Reach:
        """Return what runs once after the variables are restored."""
        root = _Root(self._initializers(), frozenset(self.assets))
        return self._reach({"the init operation": root})

    def restored(self) -> Reach:
        """Return what runs when the variables are restored."""
        saver = self.meta_graph.saver_def
        fed = {_tensor_name(saver.filename_tensor_name), *self.assets}
        return self._reach({"restoring variables": _Root((saver.restore_op_name,), frozenset(fed))})

    def for_serving(self) -> Reach:
        """Return what has to be there for the signatures, of what they are fed as well."""
        return self._reach({"serving": _Root(tuple(self.served_tensors()))})

    def for_loading(self) -> Reach:
        """Return what has to be there to restore the variables and to initialize, fed or not."""
        saver = self.meta_graph.saver_def
        names = (saver.restore_op_name, saver.filename_tensor_name, *self._initializers())
        return self._reach({"loading": _Root((*names, *self.assets))})

    def served_tensors(self) -> list[str]:
        """Return the tensors that signatures are given, and those that they return."""
        names: list[str] = []
        for name, definition in self.meta_graph.signature_def.items():
            if name not in INTERNAL_SIGNATURES:
                names += tensor_names([*definition.inputs.values(), *definition.outputs.values()])
        return names

    def _initializers(self) -> tuple[str, ...]:
        names: list[str] = []
        for key in INIT_COLLECTIONS:
            if key in self.meta_graph.collection_def:
                names += self.meta_graph.collection_def[key].node_list.value
        if INIT_SIGNATURE in self.meta_graph.signature_def:
            outputs = self.meta_graph.signature_def[INIT_SIGNATURE].outputs
            names += tensor_names(outputs.values())
        return tuple(names)

    def operations(self, definition: Any) -> set[str]:
        """Return the operations that a signature runs, given its SignatureDef."""
        outputs, inputs = definition.outputs.values(), definition.inputs.values()
        root = _Root(
            tuple(tensor_names(outputs)), frozenset(map(_tensor_name, tensor_names(inputs)))
        )
        reach = self._reach({"": root})
        found = {self.nodes[name].op for name in reach.nodes}
        return found.union(
            *({node.op for node in self.functions[name].node_def} for name in reach.functions)
        )

    def called_by(self, node: Any) -> list[str]:
        """Return the library's functions that a node calls."""
        return [name for name in callees(node, self.functions) if name in self.functions]

    def first_argument(self, node: Any) -> int | None:
        """Return where among a node's inputs a function's arguments begin, if it is known."""
        return 0 if node.op in self.functions else FIRST_ARGUMENT.get(node.op)

    def _index(self) -> dict[str, list[str]]:
        """Return which functions each node of the main graph, and each function, calls."""
        called: dict[str, list[str]] = {}
        for function, node in self.every_node():
            if node.op == "AssignVariableOp" and node.attr["dtype"].type == _STRING:
                self.texts |= dict.fromkeys((function, tensor) for tensor in node.input[1:2])
            for name in callees(node, self.functions):
                self.callers.setdefault(name, []).append((function, node.name))
                called.setdefault(function or f"node {node.name}", []).append(name)
        return called

    def _reach(self, roots: Mapping[str, _Root]) -> Reach:
        nodes: dict[str, str] = {}
        functions: dict[str, str] = {}
        if len(roots) * self._edges > _MOST_VISITS:
            everything = tuple(name for root in roots.values() for name in root.tensors)
            roots = {"a signature": _Root(everything)}
        for label, root in roots.items():
            for name in self._needed(root):
                if name not in nodes:
                    nodes[name] = label
                    self._enter(self.called.get(f"node {name}", ()), label, functions)
        return Reach(nodes, functions)

    def _needed(self, root: _Root) -> set[str]:
        """Return the nodes of the main graph that run for a root."""
        needed: set[str] = set()
        pending = [(node_name(tensor), _tensor_name(tensor)) for tensor in root.tensors]
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
            self._inputs[node] = [(node_name(each), _tensor_name(each)) for each in names]
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
    if meta_graph.asset_file_def or OLD_ASSETS not in meta_graph.collection_def:
        return list(meta_graph.asset_file_def)
    packed = meta_graph.collection_def[OLD_ASSETS].any_list.value
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


def _tensor_name(name: str) -> str:
    """Return a tensor's name with its output number: `a:0` for `a`; control inputs as they are."""
    return name if ":" in name or name.startswith("^") else f"{name}:0"


def _body(function: Any) -> dict[str, Any]:
    return {node.name: node for node in function.node_def}


def callees(node: Any, functions: Mapping[str, Any]) -> list[str]:
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


# Where the arguments of a called function begin among the inputs of the node that calls it.
FIRST_ARGUMENT = {
    "PartitionedCall": 0,
    "StatefulPartitionedCall": 0,
    "While": 0,
    "StatelessWhile": 0,
    "If": 1,
    "StatelessIf": 1,
    "Case": 1,
    "StatelessCase": 1,
}
_MOST_STEPS_OF_ONE = 256  # of following one tensor
_MOST_TEXTS, _MOST_TEXT_BYTES = 16, 1024  # of a constant

_Place = tuple[str, str]  # the function it stands in, or `MAIN`, and the name of the tensor


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a text comes from: an asset's file name, a constant's text or an operation's name."""

    kind: Literal["asset", "constant", "computed"]
    value: str


def origins(graph: Graph, place: _Place, *, assets_are_fed: bool) -> set[Origin]:
    """Follow a text to where it comes from: through Identity, callers and text variables.

    Args:
        graph: where it is used.
        place: the function that uses it, or `MAIN`, and the name of the tensor there.
        assets_are_fed: the init operation is given the paths of the assets; a signature that uses
            such a constant sees what it holds.
    """
    found: set[Origin] = set()
    seen: set[_Place] = set()
    pending = [place]
    while pending:
        place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        graph.steps_left -= 1
        if len(seen) > _MOST_STEPS_OF_ONE or graph.steps_left < 0:
            return found | {Origin("computed", "a long way")}
        origin = _origin(graph, place, assets_are_fed=assets_are_fed)
        if origin is not None:
            found.add(origin)
            continue
        more = list(itertools.islice(_upstream(graph, place), _MOST_STEPS_OF_ONE + 1))
        graph.steps_left -= len(more)
        pending += more
    return found or {Origin("computed", "nothing")}


def _origin(graph: Graph, place: _Place, *, assets_are_fed: bool) -> Origin | None:
    """Return where a tensor comes from if that is seen at once."""
    function, tensor = place
    node = _node(graph, place)
    op = "nothing" if node is None else node.op
    asset = graph.assets.get(_tensor_name(tensor)) if function == MAIN else None
    if asset is not None and (assets_are_fed or op != "Const"):
        return Origin("asset", asset)
    is_argument = function != MAIN and tensor in graph.arguments[function]
    if is_argument or op in {"Identity", "ReadVariableOp"}:
        return None if _upstream(graph, place) else Origin("computed", op)
    return Origin("constant", _text(node)) if op == "Const" else Origin("computed", op)


def _upstream(graph: Graph, place: _Place) -> Collection[_Place]:
    """Return what a tensor is a copy of.

    That is what callers give for an argument, an Identity's input, or, for a variable, all that
    any text variable is set to: two handles may name one variable.
    """
    function, tensor = place
    if function != MAIN and tensor in graph.arguments[function]:
        if place not in graph.given:
            graph.steps_left -= len(graph.callers.get(function, ()))
            graph.given[place] = dict.fromkeys(_given(graph, place)) if graph.steps_left > 0 else {}
        return graph.given[place]
    node = _node(graph, place)
    if node is not None and node.op == "ReadVariableOp":
        return graph.texts
    return [(function, node.input[0])] if node is not None and node.input else []


def _given(graph: Graph, place: _Place) -> Iterator[_Place]:
    """Yield what the callers of a function give for one of its arguments."""
    function, tensor = place
    at = graph.arguments[function][tensor]
    for caller, name in graph.callers.get(function, ()):
        node = _node(graph, (caller, name))
        first = graph.first_argument(node)
        known = first is not None and first + at < len(node.input)
        # What is not known is computed by the caller.
        yield caller, node.input[(first or 0) + at] if known else name


def _node(graph: Graph, place: _Place) -> Any:
    function, tensor = place
    nodes = graph.nodes if function == MAIN else graph.bodies[function]
    return nodes.get(node_name(tensor))


def _text(constant: Any) -> str:
    """Return the texts that a constant holds, in one; nothing for other constants.

    Of very many the first: they are shown, and whether there is any is what counts.
    """
    value = constant.attr.get("value")
    texts = value.tensor.string_val if value is not None else ()
    some = itertools.islice((text for text in texts if text), _MOST_TEXTS)
    return b", ".join(text[:_MOST_TEXT_BYTES] for text in some).decode("utf-8", "replace")


# Resources that hold nothing until an operation sets them; reading one before that is an error.
VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_TABLES = frozenset({"HashTable", "HashTableV2"})
_SETS_VARIABLE = "AssignVariableOp"
_MOST_NAMED = 3


def unanswerable(graph: Graph) -> dict[str, dict[str, str]]:
    """Return why a signature can never answer, by its name; signatures that can are left out.

    Each reason comes with how to export the model so that it can. A signature that sets variables
    itself is given the benefit of the doubt.
    """
    unset = _unset(graph)
    uses = _uses(graph, unset)
    tainted: dict[str, set[str]] = {}
    for place, resource in unset.items():
        _spread(place, resource, uses, tainted)
    setters: dict[str, set[str]] = {}
    for function, node in graph.every_node():
        if node.op == _SETS_VARIABLE:
            _spread(function or f"node {node.name}", _SETS_VARIABLE, uses, setters)
    found: dict[str, dict[str, str]] = {}
    for name, definition in graph.meta_graph.signature_def.items():
        if name not in INTERNAL_SIGNATURES:
            reasons = dict(_without_tensor(definition))
            reasons |= _unset_reads(definition, tainted, setters)
            if reasons:
                found[name] = reasons
    return found


# How to export a model again, by why it can never answer.
_EXPORTS = {
    "variable": "export a Keras model with model.export(FOLDER) (tf.saved_model.save misses the "
    "variables of Keras 3); inside a tf.Module use keras.export.ExportArchive; in a plain "
    "tf.Module, set each tf.Variable as an attribute of self",
    "table": "set the tf.lookup table as an attribute of self in the tf.Module, so that its "
    "initializer is saved, and export again; a TensorFlow 1 export needs "
    "legacy_init_op=tf.compat.v1.tables_initializer()",
    "ragged": "return plain tensors and export again: of a RaggedTensor r, "
    '{"values": r.values, "row_splits": r.row_splits}; of a SparseTensor s, '
    '{"indices": s.indices, "values": s.values, "shape": s.dense_shape}',
    "unbound": "export it again, from a function that uses it and returns tensors",
}


def _without_tensor(definition: Any) -> Iterator[tuple[str, str]]:
    """Yield what has no single tensor, such as a RaggedTensor, and how to export it."""
    for what, infos in (("input", definition.inputs), ("output", definition.outputs)):
        for alias, info in sorted(infos.items()):
            kind = info.WhichOneof("encoding")
            if kind == "name" and info.name:
                continue
            type_name = _COMPOSITES.get(kind or "")
            remedy = _EXPORTS["ragged" if type_name else "unbound"]
            yield f"{what} {alias!r} {type_name or 'is bound to no tensor'}", remedy
    if not definition.outputs:
        yield "it has no output", _EXPORTS["unbound"]


_COMPOSITES = {
    "composite_tensor": "is a composite tensor (such as a RaggedTensor), which no request can hold",
    "coo_sparse": "is a SparseTensor, which no request can hold",
}


def _unset(graph: Graph) -> dict[str, str]:
    """Return the nodes that stand for something no load sets: node name to what it is called."""
    loads = (graph.restored(), graph.initialized())
    resources = [
        (function, node)
        for function, node in graph.every_node()
        if node.op in VARIABLES or node.op in _TABLES
    ]
    set_by_load = {
        identity(node)
        for function, node in resources
        if any(reach.root(function, node.name) is not None for reach in loads)
    }
    return {
        function or f"node {node.name}": _called(node)
        for function, node in resources
        if identity(node) not in set_by_load
    }


def identity(node: Any) -> tuple[str, bytes, str]:
    """Return what two nodes have in common that stand for one resource."""
    shared, container = (  # to ask for one that is not there would add it
        node.attr[name].s if name in node.attr else b"" for name in ("shared_name", "container")
    )
    kind = "table" if node.op in _TABLES else "variable"
    return (
        kind,
        shared or node.name.encode(),
        container.decode("utf-8", "replace") if shared else "",
    )


def _called(node: Any) -> str:
    kind, name, _ = identity(node)
    return f"{kind} {name.decode('utf-8', 'replace')!r}"


def _uses(graph: Graph, unset: Mapping[str, str]) -> dict[str, list[str]]:
    """Return what depends on each place, a function or a `node NAME` of the main graph."""
    uses: dict[str, list[str]] = {}
    arguments = Arguments(graph)
    for name, node in graph.nodes.items():
        for at, each in enumerate(node.input):
            source = f"node {node_name(each)}"
            if source not in unset or arguments.are_read(node, at):
                uses.setdefault(source, []).append(f"node {name}")
    for caller, functions in graph.called.items():
        for function in functions:
            uses.setdefault(function, []).append(caller)
    return uses


class Arguments:
    """Follows what nodes are given into the functions that they call, as handles often are."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._consumers: dict[str, dict[str, list[tuple[Any, int]]]] = {}

    def are_read(self, caller: Any, position: int) -> bool:
        """Say whether an input of a node is used, here or in the functions it is handed on to."""
        return any(user is not None for user in self.users(caller, position))

    def users(self, caller: Any, position: int) -> Iterator[tuple[str, Any] | None]:
        """Yield who uses an input of a node of the main graph: the function, or `MAIN`, and node.

        None stands for a function that returns it.
        """
        seen: set[tuple[str, int]] = set()
        pending = [(MAIN, caller, position)]
        while pending:
            where, node, at = pending.pop()
            callees = self._graph.called_by(node)
            first = self._graph.first_argument(node)
            if not callees or first is None or at < first:
                yield where, node
                continue
            for function in callees:
                if (function, at - first) not in seen:
                    seen.add((function, at - first))
                    name = self._name(function, at - first)
                    if name in self._graph.functions[function].ret.values():
                        yield None
                    pending += ((function, *use) for use in self._uses(function, name))

    def _name(self, function: str, position: int) -> str:
        declared = self._graph.functions[function].signature.input_arg
        return declared[position].name if position < len(declared) else ""

    def _uses(self, function: str, argument: str) -> list[tuple[Any, int]]:
        """Return the nodes of a function that take one of its arguments, and where."""
        if function not in self._consumers:
            found: dict[str, list[tuple[Any, int]]] = {}
            for node in self._graph.bodies[function].values():
                for at, each in enumerate(node.input):
                    found.setdefault(each, []).append((node, at))
            self._consumers[function] = found
        return self._consumers[function].get(argument, [])


def _spread(
    start: str, resource: str, uses: Mapping[str, list[str]], tainted: dict[str, set[str]]
) -> None:
    """Mark whatever depends on a place; a place is marked with so many resources, and no more."""
    pending = [start]
    while pending:
        place = pending.pop()
        marks = tainted.setdefault(place, set())
        if resource not in marks and len(marks) <= _MOST_NAMED:
            marks.add(resource)
            pending += uses.get(place, ())


def _unset_reads(
    definition: Any, tainted: Mapping[str, set[str]], setters: Mapping[str, set[str]]
) -> dict[str, str]:
    """Return the sentence about what a signature reads although no load sets it, and the remedy."""
    fed = {node_name(name) for name in tensor_names(definition.inputs.values())}
    places = {node_name(name) for name in tensor_names(definition.outputs.values())} - fed
    names = sorted({each for place in places for each in tainted.get(f"node {place}", ())})
    if names and not any(f"node {place}" in setters for place in places):
        more = " and more" if len(names) > _MOST_NAMED else ""
        listed = ", ".join(names[:_MOST_NAMED])
        kinds = dict.fromkeys(name.partition(" ")[0] for name in names)
        remedy = "; ".join(_EXPORTS[kind] for kind in kinds)
        verb = "is" if len(names) == 1 else "are"
        text = f"it reads {listed}{more}, which {verb} not restored when the model loads"
        return {text: remedy}
    return {}
