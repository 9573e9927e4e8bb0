"""The scan itself: each node against the rules, and the graph as a whole."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tfserve_kit import savedmodel
from tfserve_kit.errors import Problem
from tfserve_kit.savedmodel import GRAPH_FILE
from tfserve_kit.savedmodel.graph import rules
from tfserve_kit.savedmodel.graph.answers import unanswerable
from tfserve_kit.savedmodel.graph.graph import (
    MAIN,
    Graph,
    Reach,
    asset_files,
    node_name,
    tensor_names,
)
from tfserve_kit.savedmodel.graph.origins import Origin, origins
from tfserve_kit.savedmodel.graph.rules import Rule, Severity

_ORDER: Mapping[Severity, int] = {"error": 0, "warning": 1, "info": 2}
_NEVER_RUN = "; no server ever runs it here"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a graph that whoever serves it should know.

    Attributes:
        severity: error for what should not be served, warning for what is suspicious.
        op: the operation it is about; empty if it is about the graph.
        message: what is found, with the first place of it.
        remedy: what to do about it; may be empty.
        count: how often it is found.
    """

    severity: Severity
    op: str
    message: str
    remedy: str = ""
    count: int = 1

    @property
    def problem(self) -> Problem:
        """The finding as a problem of a model."""
        times = f" [{self.count} times]" if self.count > 1 else ""
        return Problem(self.op or GRAPH_FILE, self.message + times, self.remedy)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan found.

    Attributes:
        findings: the worst first.
        operations: how many nodes each operation has, the most frequent first.
        functions: number of functions in the library.
        unanswerable: why a signature can never answer, by its name.
    """

    findings: tuple[Finding, ...]
    operations: Mapping[str, int]
    functions: int
    unanswerable: Mapping[str, list[str]]


def meta_graph(version_dir: Path, *, tag: str = "serve") -> Any:
    """Read the MetaGraphDef that bears exactly a tag, or several separated by commas.

    Raises:
        FileNotFoundError: there is no `saved_model.pb`.
        ValueError: it is truncated or no SavedModel, or no graph in it bears the tag.
    """
    graph = savedmodel.meta_graph(version_dir, tag=tag)
    asset_files(graph)  # raises here rather than wherever they are needed
    return graph


def scan(graph: Any) -> Scan:
    """Scan a MetaGraphDef; the time it takes grows with the number of nodes."""
    return _Scanner(Graph(graph)).run()


def foreign_operations(graph: Any) -> list[str]:
    """Return the operations of a MetaGraphDef that tensorflow has not; others' servers may."""
    known = rules.registered()
    names = {node.op for _, node in Graph(graph).every_node()}
    functions = {each.signature.name for each in graph.graph_def.library.function}
    return sorted(names - known - functions)


class _Scanner:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._served, self._initialized = graph.served(), graph.initialized()
        self._restored = graph.restored()
        self._found: dict[tuple[str, str, str], Finding] = {}
        self._origins: dict[tuple[str, str, bool], set[Origin]] = {}

    def run(self) -> Scan:
        """Look at every node, then at the whole."""
        operations: Counter[str] = Counter()
        table = rules.table()
        for function, node in self._graph.every_node():
            operations[node.op] += 1
            self._check_origin(function, node)
            self._check_device(function, node)
            for rule in table.get(node.op, ()):
                self._check_rule(function, node, rule)
        for finding in self._whole():
            self._found["", finding.severity, finding.message] = finding
        findings = sorted(self._found.values(), key=lambda each: (_ORDER[each.severity], each.op))
        return Scan(
            tuple(findings),
            dict(operations.most_common()),
            len(self._graph.functions),
            unanswerable(self._graph),
        )

    def _check_rule(self, function: str, node: Any, rule: Rule) -> None:
        reach = self._reach(function, node, rule)
        root = reach and reach.root(function, node.name)
        if not rule.applies(node):
            return
        if root is None:
            loads = node.op in rules.RESTORE_OPS and self._restored.root(function, node.name)
            if rule.severity == "error" and not loads:
                self._add("info", function, node, rule.reason, _NEVER_RUN)
            return
        severity, detail = self._judged(function, node, rule, at_load=reach is not self._served)
        if severity is not None:
            self._add(severity, function, node, rule.reason, f"{detail}, run by {root}")

    def _reach(self, function: str, node: Any, rule: Rule) -> Reach | None:
        """Return the first purpose that runs a node and for which the rule holds."""
        purposes = [self._served, self._initialized, self._restored]
        if rule.signatures_only:
            purposes = purposes[:1]
        elif node.op in rules.RESTORE_OPS:
            purposes = purposes[:2]
        found = (each for each in purposes if each.root(function, node.name) is not None)
        return next(found, None)

    def _judged(
        self, function: str, node: Any, rule: Rule, *, at_load: bool
    ) -> tuple[Severity | None, str]:
        """Return how bad it is, None if it is not, and which file it is about."""
        if not rule.file_inputs:
            return rule.severity, ""
        sources = {
            origin
            for at in rule.file_inputs
            for tensor in node.input[at : at + 1]
            for origin in self._origins_of(function, tensor, at_load=at_load)
        }
        outside = [each for each in sources if each.kind != "asset"]
        if not outside:
            usual = node.op.startswith("InitializeTable")
            names = ", ".join(sorted({each.value for each in sources}))[:200]
            return None if usual else "info", f": its own asset {names}"
        if all(each.kind == "constant" and not each.value for each in outside):
            return None, ""  # no name: nothing is read or written
        first = max(outside, key=lambda each: (each.kind, each.value))
        named = (
            f"{first.value!r:.200}" if first.kind == "constant" else f"one named by {first.value}"
        )
        return rule.severity, f": {named}"

    def _origins_of(self, function: str, tensor: str, *, at_load: bool) -> set[Origin]:
        key = (function, tensor, at_load)
        if key not in self._origins:
            found = origins(self._graph, (function, tensor), assets_are_fed=at_load)
            self._origins[key] = found
        return self._origins[key]

    def _check_origin(self, function: str, node: Any) -> None:
        """Look whether a server has the operation at all."""
        if node.op in rules.registered() or node.op in self._graph.functions:
            return
        runs = function == MAIN or any(
            each.root(function, node.name) is not None
            for each in (self._served, self._initialized, self._restored)
        )
        packages = (("tensorflow_text", rules.TEXT_OPS), ("decision forests", rules.FOREST_OPS))
        for package, names in packages:
            if node.op in names:
                reason = f"is from {package}, which the official server has and tensorflow has not"
                self._add("warning" if runs else "info", function, node, reason, "")
                return
        reason = "is no operation of tensorflow, so that only a server built with it has it"
        self._add("error" if runs else "info", function, node, reason, "")

    def _check_device(self, function: str, node: Any) -> None:
        if "GPU:" not in node.device.upper() or self._served.root(function, node.name) is None:
            return
        key = ("", "warning", "device")
        message = f"nodes are pinned to a GPU, such as {_place(function, node)}"
        finding = Finding("warning", "", message, "a server without one cannot run the model", 0)
        self._count(key, finding)

    def _add(self, severity: Severity, function: str, node: Any, reason: str, detail: str) -> None:
        message = f"{reason}{detail} ({_place(function, node)})"
        remedy = f"export the model without it, or accept it with --allow-op {node.op}"
        remedy = remedy if severity == "error" else ""
        self._count((severity, node.op, reason), Finding(severity, node.op, message, remedy, 0))

    def _count(self, key: tuple[str, str, str], finding: Finding) -> None:
        known = self._found.get(key, finding)
        self._found[key] = replace(known, count=known.count + 1)

    def _whole(self) -> Iterator[Finding]:
        """Yield what is wrong with the graph as a whole."""
        meta = self._graph.meta_graph
        again = "export the model again"
        for name, definition in sorted(meta.signature_def.items()):
            for tensor in tensor_names([*definition.inputs.values(), *definition.outputs.values()]):
                if node_name(tensor) not in self._graph.nodes:
                    text = f"signature {name!r} names {tensor!r}, which the graph has not"
                    yield Finding("error", "", text, again)
        yield from self._dangling()
        for asset in asset_files(meta):
            path = PurePosixPath(asset.filename)
            if path.is_absolute() or ".." in path.parts:
                text = f"asset {asset.filename!r} lies outside the model's assets"
                yield Finding("error", "", text, "export the model with the file inside it")
        compiled = [
            name
            for name, function in self._graph.functions.items()
            if "_XlaMustCompile" in function.attr and function.attr["_XlaMustCompile"].b
        ]
        if compiled:
            text = f"functions must be compiled by XLA, such as {compiled[0]!r}"
            yield Finding("info", "", text, "", len(compiled))

    def _dangling(self) -> Iterator[Finding]:
        """Yield the first node whose input is missing: no server loads such a graph."""
        for node in self._graph.nodes.values():
            for tensor in node.input:
                if node_name(tensor) not in self._graph.nodes:
                    text = f"node {node.name!r} needs {tensor!r}, which the graph has not"
                    yield Finding("error", "", text, "export the model again")
                    return


def _place(function: str, node: Any) -> str:
    return f"node {node.name!r:.200}" + (
        f" of function {function!r:.200}" if function != MAIN else ""
    )
