"""All that can be told of a model on disk without running it, and the gate that it must pass.

The gate is what a version must satisfy before it gets its number.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfserve_kit import savedmodel
from tfserve_kit.errors import Problem, Severity, SpecError, UsageError, did_you_mean, worst_first
from tfserve_kit.pictures.labels import Labels
from tfserve_kit.pictures.outputs import choose_head, class_count, is_one_column
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import (
    DEFAULT_SIGNATURE,
    GRAPH_FILE,
    GRAPH_FILES,
    NOTE_PATH,
    WARMUP_FILE,
    Signature,
    TensorSpec,
)
from tfserve_kit.savedmodel.scan import Contents, Scan, read_contents, scan_graph
from tfserve_kit.savedmodel.signatures import changes
from tfserve_kit.tensors import dtypes

_ANY_OP = "*"
_IMAGE_RANK = 4  # [batch, height, width, channels]
_FLAT_RANK = 2  # [batch, height * width * channels]


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
class Inspection:
    """What is known of a version.

    Attributes:
        path: its directory.
        contents: what it holds; None if the graph cannot be read, and so are the next two.
        scan: its operations; what the scan says of them is among the problems.
        changes: how its signatures differ from those of the version it was compared with.
        problems: what the gate of a push would say, without a version to compare with.
    """

    path: Path
    contents: Contents | None
    scan: Scan | None
    changes: tuple[Problem, ...]
    problems: tuple[Problem, ...]

    @property
    def refusals(self) -> list[Problem]:
        """Why a push would refuse the version, breaking changes among it."""
        told = (*self.problems, *self.changes)
        return [each for each in told if each.severity is Severity.ERROR]


def inspect(version_dir: Path, gate: Gate, *, against: Path | None = None) -> Inspection:
    """Look at a version as a push would.

    Args:
        version_dir: a SavedModel directory.
        gate: what it should satisfy.
        against: another version to compare the signatures with.

    Raises:
        UsageError: the other version cannot be read.
    """
    problems = tuple(check_gate(version_dir, gate))
    try:
        graph = savedmodel.meta_graph(version_dir, tag=gate.tag)
        contents, scan = read_contents(version_dir, graph), scan_graph(graph)
    except (OSError, ValueError):  # the problems say why
        return Inspection(version_dir, None, None, (), problems)
    differences = () if against is None else _changes(graph, against, gate.tag)
    return Inspection(version_dir, contents, scan, differences, problems)


def check_gate(candidate: Path, gate: Gate, *, serving: Path | None = None) -> list[Problem]:
    """Look at a version before it is published; nothing is run and nothing is changed.

    Args:
        candidate: the version's directory, under whatever name.
        gate: what it must satisfy.
        serving: the directory of the version in service, whose callers must not notice.

    Returns:
        Everything about it that is worth telling, the worst first: with any error it must not be
        published. A candidate that cannot be read is refused.
    """
    try:
        return sorted(_check(candidate, gate, serving), key=worst_first)
    except OSError as error:
        place = str(error.filename or candidate)
        text = f"cannot be read ({error.strerror or error})"
        return [Problem(place, text, "make it readable, or copy the model again")]


def _check(candidate: Path, gate: Gate, serving: Path | None) -> list[Problem]:
    broken = savedmodel.problems(candidate, tag=gate.tag)
    if any(problem.path in GRAPH_FILES for problem in broken):
        return broken
    try:
        graph = savedmodel.meta_graph(candidate, tag=gate.tag)
        signatures = savedmodel.parse_signatures(graph.signature_def)
        scan = scan_graph(graph)
    except ValueError as error:  # a damaged asset, an impossible shape, or it changed in between
        return [Problem(GRAPH_FILE, str(error), "export the model again")]
    found = [
        *broken,
        *_missing_signatures(signatures, gate),
        *_silent_signatures(signatures, scan.unanswerable, gate),
        *_note_problems(candidate, signatures),
        *_warmup_problems(candidate, gate.tag),
    ]
    if signatures and DEFAULT_SIGNATURE not in signatures:
        text = "is missing; callers must name a signature"
        remedy = did_you_mean("", signatures)
        found.append(Problem(DEFAULT_SIGNATURE, text, remedy, Severity.WARNING))
    found += (_allowed(each, gate) for each in scan.findings)
    return found + ([] if serving is None else _compatibility(graph, serving, gate))


def _missing_signatures(signatures: Mapping[str, Signature], gate: Gate) -> list[Problem]:
    return [
        Problem(name, "is not a signature of the model", did_you_mean(name, signatures))
        for name in gate.signatures
        if name not in signatures
    ]


def _silent_signatures(
    signatures: Mapping[str, Signature], unanswerable: Mapping[str, Mapping[str, str]], gate: Gate
) -> Iterator[Problem]:
    """Yield the signatures that nobody would get an answer from.

    A server would load such a model, and say that it is available. It is refused where one of them
    is needed, or no other is left.
    """
    if not signatures:
        text = "the model has no signature, so no request can call it"
        yield Problem(GRAPH_FILE, text, "export it with signatures=, or by model.export()")
    needed = {DEFAULT_SIGNATURE, *gate.signatures}
    none_left = signatures.keys() <= unanswerable.keys()
    for name, reasons in sorted(unanswerable.items()) if signatures else ():
        text = f"can never answer: {'; '.join(reasons)}"
        severity = Severity.ERROR if none_left or name in needed else Severity.WARNING
        yield Problem(name, text, "; ".join(dict.fromkeys(reasons.values())), severity)


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
    if not (candidate / WARMUP_FILE).exists():
        return []
    from tfserve_kit.savedmodel import warmup

    return warmup.problems(candidate, tag=tag)


def _allowed(finding: Problem, gate: Gate) -> Problem:
    """Return a finding of the static scan as a warning if the gate allows its operation."""
    op = finding.rule
    if op and finding.severity is Severity.ERROR and {op, _ANY_OP} & {*gate.allow_ops}:
        return replace(finding, severity=Severity.WARNING, remedy="allowed by --allow-op")
    return finding


def _compatibility(graph: Any, serving: Path, gate: Gate) -> list[Problem]:
    """Return what breaks callers of the version in service, and what else is different."""
    try:
        old = savedmodel.meta_graph(serving, tag=gate.tag)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        text = f"the version in service cannot be compared with: {reason}"
        return [
            Problem(
                str(serving), text, "`tfkit verify` says what is wrong with it", Severity.WARNING
            )
        ]
    return [
        replace(each, severity=Severity.WARNING, remedy="")
        if gate.allow_breaking or each.severity is not Severity.ERROR
        else each
        for each in changes(old.signature_def, graph.signature_def)
    ]


def _changes(graph: Any, against: Path, tag: str) -> tuple[Problem, ...]:
    try:
        other = savedmodel.meta_graph(against, tag=tag)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"cannot compare with {against}: {reason}",
            remedy="give the folder of a version, or a SavedModel, to compare with",
        ) from error
    return tuple(changes(other.signature_def, graph.signature_def))


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
