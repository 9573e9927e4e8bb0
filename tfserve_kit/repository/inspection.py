"""All that can be told of a model on disk without running it, and the gate that it must pass.

The gate is what a version must satisfy before it gets its number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfserve_kit import savedmodel
from tfserve_kit.errors import Problem, SpecError, UsageError, did_you_mean
from tfserve_kit.pictures.labels import Labels
from tfserve_kit.pictures.outputs import choose_head, class_count, is_one_column
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.repository.locate import look_around
from tfserve_kit.repository.versions import list_versions
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, GRAPH_FILE, GRAPH_FILES, Signature, TensorSpec
from tfserve_kit.savedmodel import scan as graphscan
from tfserve_kit.savedmodel.compatibility import Change, changes
from tfserve_kit.savedmodel.scan import NOTE_PATH, Facts, Scan
from tfserve_kit.tensors import dtypes

_IMAGE_RANK = 4  # [batch, height, width, channels]
_FLAT_RANK = 2  # [batch, height * width * channels]


def note_problems(note: Preprocessing, signatures: Mapping[str, Signature]) -> list[Problem]:
    """Return where a note contradicts `serving_default`, or the only signature there is.

    A note that leaves something open contradicts nothing, and neither does an open shape.
    """
    signature = signatures.get(DEFAULT_SIGNATURE)
    if signature is None and len(signatures) == 1:
        (signature,) = signatures.values()
    if signature is None:
        return []
    note = note.resolved()
    found = list(_channel_problems(note))
    if len(signature.inputs) == 1:
        ((alias, spec),) = signature.inputs.items()
        found += _size_problems(note, alias, spec)
    return found + list(_label_problems(note, signature))


def _channel_problems(note: Preprocessing) -> Iterator[Problem]:
    for name, values in (("mean", note.mean), ("std", note.std)):
        if values and note.channels and len(values) not in {1, note.channels}:
            yield Problem(name, f"has {len(values)} values for {note.channels} channels")


def _size_problems(note: Preprocessing, alias: str, spec: TensorSpec) -> Iterator[Problem]:
    if spec.dtype is dtypes.STRING or spec.shape is None:
        return
    size = (note.height, note.width, note.channels)
    if len(spec.shape) == _IMAGE_RANK:
        names = ("height", "width", "channels")
        for name, wanted, have in zip(names, size, spec.shape[1:], strict=True):
            if wanted is not None and have not in {None, wanted}:
                yield Problem(name, f"is {wanted}, but input {alias!r} is {spec}")
    elif len(spec.shape) == _FLAT_RANK and None not in size:
        height, width, channels = (each or 0 for each in size)
        if spec.shape[1] not in {None, height * width * channels}:
            text = f"and width and channels are {height}, {width}, {channels}, "
            yield Problem("height", f"{text}but input {alias!r} is {spec}")


def _label_problems(note: Preprocessing, signature: Signature) -> Iterator[Problem]:
    if note.labels is None:
        return
    try:
        head = choose_head(signature)
    except UsageError:  # it is not clear which scores they are for; callers say it
        return
    classes = class_count(head, signature)
    spec = signature.outputs.get(head.scores)
    if classes is None or spec is None:
        return
    try:
        Labels.of(note.labels).fit(classes, is_one_column=is_one_column(head, spec))
    except UsageError:
        yield Problem("labels", f"are {len(note.labels)}, but output {head.scores!r} is {spec}")


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


def check_gate(candidate: Path, gate: Gate, *, serving: Path | None = None) -> Verdict:
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
        signatures = savedmodel.parse_signatures(graph.signature_def)
    except ValueError as error:  # a damaged asset, an impossible shape, or it changed in between
        return Verdict((Problem(GRAPH_FILE, str(error), "export the model again"),))
    scan = graphscan.scan_graph(graph)
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
    return [_in_note(each) for each in note_problems(found, signatures)]


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
    verdict = check_gate(version_dir, gate)
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
        versions = [version for version in list_versions(place) if version.path.is_dir()]
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
        graphscan.scan_graph(graph),
    )
