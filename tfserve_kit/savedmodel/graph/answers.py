"""Which signatures can answer at all: what they read is set by then, what they name can be fetched.

A server loads a model whatever its signatures need, says AVAILABLE, and only then fails every
request. Whether it would is decided here from the graph alone.

Source: tensorflow/cc/saved_model/loader.cc (what a load runs: the restore operation, then the init
operation) and tensorflow_serving/servables/tensorflow/predict_util.cc (tensors are fed and fetched
by the names in the signature).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tfserve_kit.savedmodel.graph.graph import Graph, node_name, tensor_names
from tfserve_kit.savedmodel.graph.origins import FIRST_ARGUMENT

# Resources that hold nothing until an operation sets them; reading one before that is an error.
_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_TABLES = frozenset({"HashTable", "HashTableV2"})
_SETS_VARIABLE = "AssignVariableOp"
_MOST_NAMED = 3
_INTERNAL = frozenset({"__saved_model_init_op", "__saved_model_train_op"})


def unanswerable(graph: Graph) -> dict[str, list[str]]:
    """Return why a signature can never answer, by its name; signatures that can are left out.

    A signature that sets variables itself is given the benefit of the doubt.
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
    found: dict[str, list[str]] = {}
    for name, definition in graph.meta_graph.signature_def.items():
        if name not in _INTERNAL:
            reasons = [*_without_tensor(definition), *_unset_reads(definition, tainted, setters)]
            if reasons:
                found[name] = reasons
    return found


def _without_tensor(definition: Any) -> Iterator[str]:
    """Yield what has no single tensor: such as a RaggedTensor, which no request can name."""
    for what, infos in (("input", definition.inputs), ("output", definition.outputs)):
        for alias, info in sorted(infos.items()):
            kind = info.WhichOneof("encoding")
            if kind == "name" and info.name:
                continue
            type_name = _COMPOSITES.get(kind or "", "is bound to no tensor")
            yield f"{what} {alias!r} {type_name}"
    if not definition.outputs:
        yield "it has no output"


_COMPOSITES = {
    "composite_tensor": "is a composite tensor (ragged, sparse or the like), not a plain one",
    "coo_sparse": "is a sparse tensor, not a plain one",
}


def _unset(graph: Graph) -> dict[str, str]:
    """Return the nodes that stand for something no load sets: node name to what it is called."""
    loads = (graph.restored(), graph.initialized())
    resources = [
        (function, node)
        for function, node in graph.every_node()
        if node.op in _VARIABLES or node.op in _TABLES
    ]
    set_by_load = {
        _identity(node)
        for function, node in resources
        if any(reach.root(function, node.name) is not None for reach in loads)
    }
    return {
        function or f"node {node.name}": _called(node)
        for function, node in resources
        if _identity(node) not in set_by_load
    }


def _identity(node: Any) -> tuple[str, bytes, str]:
    """Return what two nodes have in common that stand for one resource."""
    shared = node.attr["shared_name"].s if "shared_name" in node.attr else b""
    container = node.attr["container"].s.decode("utf-8", "replace") if shared else ""
    kind = "table" if node.op in _TABLES else "variable"
    return kind, shared or node.name.encode(), container


def _called(node: Any) -> str:
    kind, name, _ = _identity(node)
    return f"{kind} {name.decode('utf-8', 'replace')!r}"


def _uses(graph: Graph, unset: Mapping[str, str]) -> dict[str, list[str]]:
    """Return what depends on each place, a function or a `node NAME` of the main graph."""
    uses: dict[str, list[str]] = {}
    arguments = _Arguments(graph)
    for name, node in graph.nodes.items():
        for at, each in enumerate(node.input):
            source = f"node {node_name(each)}"
            if source not in unset or arguments.are_read(node, at):
                uses.setdefault(source, []).append(f"node {name}")
    for caller, functions in graph.called.items():
        for function in functions:
            uses.setdefault(function, []).append(caller)
    return uses


class _Arguments:
    """Tells whether a call does anything with what it is given: handles are often passed unused."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._consumers: dict[str, dict[str, list[tuple[Any, int]]]] = {}

    def are_read(self, caller: Any, position: int) -> bool:
        """Say whether an input of a node is used, here or in the functions it is handed on to."""
        seen: set[tuple[str, int]] = set()
        pending = [(caller, position)]
        while pending:
            node, at = pending.pop()
            callees = self._graph.called_by(node)
            first = 0 if node.op in self._graph.functions else FIRST_ARGUMENT.get(node.op)
            if not callees or first is None or at < first:
                return True
            for function in callees:
                if (function, at - first) not in seen:
                    seen.add((function, at - first))
                    pending += self._uses(function, at - first)
        return False

    def _uses(self, function: str, position: int) -> list[tuple[Any, int]]:
        """Return the nodes of a function that take one of its arguments, and where."""
        if function not in self._consumers:
            found: dict[str, list[tuple[Any, int]]] = {}
            for node in self._graph.bodies[function].values():
                for at, each in enumerate(node.input):
                    found.setdefault(each, []).append((node, at))
            self._consumers[function] = found
        declared = self._graph.functions[function].signature.input_arg
        if position >= len(declared):
            return []
        return self._consumers[function].get(declared[position].name, [])


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
) -> Iterator[str]:
    """Yield the sentence about what a signature reads although no load sets it."""
    fed = {node_name(name) for name in tensor_names(definition.inputs.values())}
    places = {node_name(name) for name in tensor_names(definition.outputs.values())} - fed
    names = sorted({each for place in places for each in tainted.get(f"node {place}", ())})
    if names and not any(f"node {place}" in setters for place in places):
        more = " and more" if len(names) > _MOST_NAMED else ""
        listed = ", ".join(names[:_MOST_NAMED])
        yield f"it reads {listed}{more}, which loading the model does not set"
