"""Where a text in a graph comes from, such as the name of a file that is read."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tfserve_kit.savedmodel.graph.graph import MAIN, Graph, node_name, tensor_name

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
_MOST_STEPS = 256  # of following one tensor
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
        if len(seen) > _MOST_STEPS or graph.steps_left < 0:
            return found | {Origin("computed", "a long way")}
        origin = _origin(graph, place, assets_are_fed=assets_are_fed)
        if origin is not None:
            found.add(origin)
            continue
        more = list(itertools.islice(_upstream(graph, place), _MOST_STEPS + 1))
        graph.steps_left -= len(more)
        pending += more
    return found or {Origin("computed", "nothing")}


def _origin(graph: Graph, place: _Place, *, assets_are_fed: bool) -> Origin | None:
    """Return where a tensor comes from if that is seen at once."""
    function, tensor = place
    node = _node(graph, place)
    op = "nothing" if node is None else node.op
    asset = graph.assets.get(tensor_name(tensor)) if function == MAIN else None
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
        first = 0 if node.op == function else FIRST_ARGUMENT.get(node.op)
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
