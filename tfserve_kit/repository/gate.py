"""The gate: what a version must satisfy before it gets its number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit import savedmodel
from tfserve_kit.errors import Problem, SpecError, did_you_mean
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.repository import note
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, GRAPH_FILE, GRAPH_FILES, Signature
from tfserve_kit.savedmodel import graph as graphscan
from tfserve_kit.savedmodel.compatibility import changes
from tfserve_kit.savedmodel.graph import Scan
from tfserve_kit.savedmodel.graph.facts import NOTE_PATH

ANY_OP = "*"


@dataclass(frozen=True, slots=True)
class Gate:
    """What a version must satisfy.

    Attributes:
        tag: the graph that a server will load; several tags are separated by commas.
        signatures: names of signatures that must exist.
        allow_breaking: whether it may break those who call the version in service.
        allow_ops: operations that are accepted although the scan refuses them; `*` for all.
    """

    tag: str = "serve"
    signatures: tuple[str, ...] = ()
    allow_breaking: bool = False
    allow_ops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says: with any refusal, the version must not be published."""

    refusals: tuple[Problem, ...] = ()
    remarks: tuple[Problem, ...] = ()


def check(candidate: Path, gate: Gate, *, serving: Path | None = None) -> Verdict:
    """Look at a version before it is published; nothing is run and nothing is changed.

    Args:
        candidate: the version's directory, under whatever name.
        gate: what it must satisfy.
        serving: the directory of the version in service, whose callers must not notice.

    Returns:
        Every reason against it and every remark. A candidate that cannot be read is refused.
    """
    try:
        return _check(candidate, gate, serving)
    except OSError as error:
        place = str(error.filename or candidate)
        text = f"cannot be read ({error.strerror or error})"
        return Verdict((Problem(place, text, "make it readable, or copy the model again"),))


def _check(candidate: Path, gate: Gate, serving: Path | None) -> Verdict:
    broken = savedmodel.problems(candidate, tag=gate.tag)
    if any(problem.path in GRAPH_FILES for problem in broken):
        return Verdict(tuple(broken))
    try:
        graph = graphscan.meta_graph(candidate, tag=gate.tag)
        signatures = savedmodel.signatures(graph.signature_def)
    except ValueError as error:  # a damaged asset, an impossible shape, or it changed in between
        return Verdict((Problem(GRAPH_FILE, str(error), "export the model again"),))
    scan = graphscan.scan(graph)
    refusals, remarks = _operations(scan, gate)
    silent, partly = _silent_signatures(signatures, scan.unanswerable, gate)
    remarks[:0] = partly
    refusals[:0] = [
        *broken,
        *_missing_signatures(signatures, gate),
        *silent,
        *_note_problems(candidate, signatures),
        *_warmup_problems(candidate, gate.tag),
    ]
    if signatures and DEFAULT_SIGNATURE not in signatures:
        text = "is missing; callers must name a signature"
        remarks.insert(0, Problem(DEFAULT_SIGNATURE, text, did_you_mean("", signatures)))
    if serving is not None:
        against, beside = _compatibility(graph, serving, gate)
        refusals, remarks = refusals + against, remarks + beside
    return Verdict(tuple(refusals), tuple(remarks))


def _missing_signatures(signatures: Mapping[str, Signature], gate: Gate) -> list[Problem]:
    return [
        Problem(name, "is no signature of the model", did_you_mean(name, signatures))
        for name in gate.signatures
        if name not in signatures
    ]


def _silent_signatures(
    signatures: Mapping[str, Signature], unanswerable: Mapping[str, list[str]], gate: Gate
) -> tuple[list[Problem], list[Problem]]:
    """Return what refuses a model because nobody would get an answer, and what is to be told.

    A server would load it, and say that it is available.
    """
    if not signatures:
        text = "the model has no signature, so that no request can call it"
        return [Problem(GRAPH_FILE, text, "export it with signatures=, or by model.export()")], []
    needed = {DEFAULT_SIGNATURE, *gate.signatures}
    none_left = signatures.keys() <= unanswerable.keys()
    refusals: list[Problem] = []
    remarks: list[Problem] = []
    for name, reasons in sorted(unanswerable.items()):
        text = f"can never answer: {'; '.join(reasons)}"
        refused = none_left or name in needed
        (refusals if refused else remarks).append(Problem(name, text, _silent_remedy(reasons)))
    return refusals, remarks


def _silent_remedy(reasons: Sequence[str]) -> str:
    if any("composite" in reason or "sparse" in reason for reason in reasons):
        return "return plain tensors, such as the values and row_splits of a ragged one"
    if any(reason.startswith("it reads table") for reason in reasons):
        return (
            "save what fills the table as the model's init operation, or hold the table in an "
            "attribute of the tf.Module"
        )
    if any(reason.startswith("it reads") for reason in reasons):
        return (
            "export a Keras model with model.export(), and let a tf.Module hold what its "
            "functions use as attributes, so that it is saved"
        )
    return "export the model again"


def _note_problems(candidate: Path, signatures: Mapping[str, Signature]) -> list[Problem]:
    try:
        found = Preprocessing.read(candidate)
    except SpecError as error:
        return [_in_note(each) for each in error.problems]
    except RecursionError:
        return [_in_note(Problem("", "is nested too deeply"))]
    return [_in_note(each) for each in note.problems(found, signatures)]


def _in_note(problem: Problem) -> Problem:
    place = f"{NOTE_PATH} {problem.path}".rstrip()
    return Problem(place, problem.message, problem.remedy or "correct the preprocessing note")


def _warmup_problems(candidate: Path, tag: str) -> list[Problem]:
    if not (candidate / graphscan.WARMUP_PATH).exists():
        return []
    from tfserve_kit.savedmodel import warmup

    return warmup.problems(candidate, tag=tag)


def _operations(scan: Scan, gate: Gate) -> tuple[list[Problem], list[Problem]]:
    """Return the findings of the static scan: those that refuse, and those to tell."""
    refusals, remarks = [], []
    for finding in scan.findings:
        allowed = bool(finding.op) and not {finding.op, ANY_OP}.isdisjoint(gate.allow_ops)
        if finding.severity == "error" and not allowed:
            refusals.append(finding.problem)
        elif finding.severity != "info":
            told = finding.problem
            remarks.append(Problem(told.path, told.message, "allowed" if allowed else told.remedy))
    return refusals, remarks


def _compatibility(graph: Any, serving: Path, gate: Gate) -> tuple[list[Problem], list[Problem]]:
    """Return what breaks callers of the version in service, and what else is different."""
    try:
        old = graphscan.meta_graph(serving, tag=gate.tag)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        text = f"the version in service cannot be compared with: {reason}"
        return [], [Problem(str(serving), text)]
    found = changes(old.signature_def, graph.signature_def)
    refusals = [each.problem for each in found if each.breaking and not gate.allow_breaking]
    accepted = (each for each in found if gate.allow_breaking or not each.breaking)
    return refusals, [Problem(each.place, each.text) for each in accepted]
