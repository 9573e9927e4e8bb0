"""All that can be told of a model on disk without running it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit import savedmodel
from tfserve_kit.errors import Problem, UsageError
from tfserve_kit.repository import gate as gates
from tfserve_kit.repository.gate import Gate, Verdict
from tfserve_kit.repository.surroundings import look_around
from tfserve_kit.repository.versions import scan
from tfserve_kit.savedmodel import GRAPH_FILE, Signature
from tfserve_kit.savedmodel import graph as graphscan
from tfserve_kit.savedmodel.compatibility import Change, changes
from tfserve_kit.savedmodel.graph import Facts, Scan

_MODELS = Path("models")


@dataclass(frozen=True, slots=True)
class Model:
    """What a graph that can be read holds.

    Attributes:
        tags: the tags of the graph, sorted.
        signatures: the callable signatures by name.
        defaults: (signature, input) of every input that may be left out.
        facts: sizes and files.
        scan: operations, and what the static scan says of them.
    """

    tags: tuple[str, ...]
    signatures: Mapping[str, Signature]
    defaults: frozenset[tuple[str, str]]
    facts: Facts
    scan: Scan


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a version.

    Attributes:
        path: its directory.
        model: what it holds; None if the graph cannot be read.
        verdict: what the gate of a push would say, without a version to compare with.
        changes: how its signatures differ from those of the version it was compared with.
    """

    path: Path
    model: Model | None
    verdict: Verdict
    changes: tuple[Change, ...]


def inspect(version_dir: Path, gate: Gate, *, against: Path | None = None) -> Inspection:
    """Look at a version as a push would.

    Args:
        version_dir: a SavedModel directory.
        gate: what it should satisfy.
        against: another version to compare the signatures with.

    Raises:
        UsageError: the other version cannot be read.
    """
    verdict = gates.check(version_dir, gate)
    try:
        graph = graphscan.meta_graph(version_dir, tag=gate.tag)
    except (OSError, ValueError):  # the verdict says why
        return Inspection(version_dir, None, verdict, ())
    differences = () if against is None else _changes(graph, against, gate.tag)
    return Inspection(version_dir, _model(version_dir, graph), verdict, differences)


def find(place: Path) -> Path:
    """Return the version directory that is meant.

    Args:
        place: a SavedModel directory, a base path (its highest version is meant), or the name of
            a model below `models/`.

    Raises:
        UsageError: it is none of these.
    """
    if not place.exists() and (_MODELS / place).is_dir():
        place = _MODELS / place
    remedy = "give a SavedModel directory, a base path or the name of a model below models/"
    try:
        if savedmodel.graph_file(place):
            return place
        versions = [version for version in scan(place) if version.path.is_dir()]
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot read {place}: {reason}", remedy=remedy) from error
    if not versions and (found := look_around(place)):
        text = f"{place} holds no {GRAPH_FILE} and no version: it {found.what}"
        raise UsageError(text, remedy=found.push or found.serve)
    if not versions:
        raise UsageError(f"{place} holds no {GRAPH_FILE} and no version", remedy=remedy)
    return versions[-1].path


def refusals(inspection: Inspection, gate: Gate) -> tuple[Problem, ...]:
    """Return why a push would refuse the version, breaking changes among it."""
    breaking = [each.problem for each in inspection.changes if each.breaking]
    return (*inspection.verdict.refusals, *(() if gate.allow_breaking else breaking))


def _changes(graph: Any, against: Path, tag: str) -> tuple[Change, ...]:
    try:
        other = graphscan.meta_graph(against, tag=tag)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot compare with {against}: {reason}") from error
    return tuple(changes(other.signature_def, graph.signature_def))


def _model(version_dir: Path, graph: Any) -> Model:
    signatures = savedmodel.graph_signatures(graph)
    return Model(
        tuple(sorted(graph.meta_info_def.tags)),
        signatures,
        frozenset(
            (name, alias) for name in signatures for alias in graph.signature_def[name].defaults
        ),
        graphscan.facts(version_dir, graph),
        graphscan.scan(graph),
    )
