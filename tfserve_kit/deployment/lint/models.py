"""Rules about the versions that will be loaded: whether they are whole, and how they are called."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from tfserve_kit import savedmodel
from tfserve_kit.deployment.lint.facts import Base, Facts
from tfserve_kit.deployment.lint.findings import Rule, Severity
from tfserve_kit.errors import Problem
from tfserve_kit.repository import Version
from tfserve_kit.savedmodel import graph

_PUSH = "push a whole copy: tfkit push-model SAVED_MODEL --to"


def _model_damaged(facts: Facts) -> Iterator[Problem]:
    """Five times, a minute apart, a failed load is repeated by default; then the server ends.

    It ends even if an older version is whole that the policy does not choose.
    Source: tensorflow_serving/core/loader_harness.cc, model_servers/server_core.cc.
    """
    for base in facts.bases:
        for version in base.fatal:
            if not base.is_untagged(version):
                yield _damage(base, version)


def _version_damaged(facts: Facts) -> Iterator[Problem]:
    """Another version answers while the load is repeated; a failed one is never tried again.

    Source: tensorflow_serving/core/availability_preserving_policy.cc.
    """
    for base in facts.bases:
        for version in base.faults:
            if version not in base.fatal and version.path.is_dir():
                yield _damage(base, version)


def _damage(base: Base, version: Version) -> Problem:
    parts = "; ".join(f"{fault.path} {fault.message}" for fault in base.faults[version])
    text = f"version {version.number} in {base.model.base_path}: {parts}"
    return Problem(f"{base.place}.base_path", text, f"{_PUSH} {base.model.base_path}")


def _tag_not_found(facts: Facts) -> Iterator[Problem]:
    """Fails to load like a damaged model. Source: tensorflow/cc/saved_model/reader.cc."""
    for base in facts.bases:
        for version in base.fatal:
            if base.is_untagged(version):
                (fault,) = base.faults[version]
                text = f"version {version.number} in {base.model.base_path}: {fault.message}"
                remedy = "name its tags as saved_model_tags under [server.flags], or export again"
                yield Problem(f"{base.place}.base_path", text, remedy)


def _no_default_signature(facts: Facts) -> Iterator[Problem]:
    """Without a name of a signature a request means `serving_default`.

    Source: tensorflow_serving/servables/tensorflow/predict_util.cc.
    """
    for base in facts.bases:
        newest = base.loaded[-1] if base.loaded else None
        if newest is None or newest in base.faults or base.serves_tflite(newest):
            continue
        names = savedmodel.read(newest.path, tag=base.tag).signatures
        if savedmodel.DEFAULT_SIGNATURE not in names:
            has = f"only {', '.join(names)}" if names else "none at all"
            where = f"version {newest.number} in {base.model.base_path}"
            text = f"{where} has no signature {savedmodel.DEFAULT_SIGNATURE!r}, {has}"
            remedy = "name a signature in every request" if names else "export it with signatures"
            yield Problem(f"{base.place}.base_path", text, remedy)


def _cannot_answer(facts: Facts) -> Iterator[Problem]:
    """Nothing is wrong until a request comes: the version loads, and is AVAILABLE.

    Source: tensorflow/cc/saved_model/loader.cc: a load looks at no signature.
    """
    for base, scan in _scans(facts):
        for name, reasons in sorted(scan.unanswerable.items()):
            text = f"{_newest(base)}: signature {name!r} can never answer: {'; '.join(reasons)}"
            remedy = "export the model again, and see what `tfkit inspect` says of it"
            yield Problem(f"{base.place}.base_path", text, remedy)


def _refused_operation(facts: Facts) -> Iterator[Problem]:
    """Name what a push would have refused: a version that was copied by hand met none."""
    for base, scan in _scans(facts):
        refused = {
            each.op: each.message
            for each in reversed(scan.findings)
            if each.severity == "error" and each.op
        }
        for op, message in sorted(refused.items()):
            text = f"{_newest(base)}: {op}: {message}"
            yield Problem(f"{base.place}.base_path", text, "export the model without it")


def _scans(facts: Facts) -> Iterator[tuple[Base, graph.Scan]]:
    for base in facts.bases:
        if (scan := base.scan) is not None:
            yield base, scan


def _newest(base: Base) -> str:
    return f"version {base.loaded[-1].number} in {base.model.base_path}"


def _label_not_loaded(facts: Facts) -> Iterator[Problem]:
    """Nothing keeps the server from starting, but requests by that label are answered with 404.

    Source: tensorflow_serving/model_servers/server_core.cc.
    """
    for base in facts.bases:
        loaded = [version.number for version in base.loaded]
        for label, number in base.model.labels.items():
            if loaded and number not in loaded:
                on_disk = number in base.numbers
                why = "the policy does not load it" if on_disk else "it is not there"
                text = f"names version {number} of {base.model.base_path}, but {why}"
                remedy = f'loaded are {loaded}; versions = "all" loads {base.numbers}'
                yield Problem(f"{base.place}.labels.{label}", text, remedy)


def _labels_refused(facts: Facts) -> Iterator[Problem]:
    """At a start no version is available yet, and the server ends with FAILED_PRECONDITION.

    tfkit sets the flag where there are labels; only a deployment that says false undoes it.
    Source: tensorflow_serving/model_servers/server_core.cc.
    """
    name = "allow_version_labels_for_unavailable_models"
    labelled = [name for name, model in facts.spec.models.items() if model.labels]
    if labelled and not facts.flags[name]:
        text = f"is false, so the server will not start with the labels of {', '.join(labelled)}"
        yield Problem(f"server.flags.{name}", text, "remove it; tfkit sets it where it is needed")


def _awkward_name(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/model_servers/http_rest_api_handler.cc (path patterns)."""
    for name, model in facts.spec.models.items():
        for path, text in [
            (f"models.{name}", name),
            *((f"models.{name}.labels.{label}", label) for label in model.labels),
        ]:
            if (encoded := quote(text, safe="")) != text:
                message = f"{text!r} must be written {encoded} in REST paths"
                yield Problem(path, message, "use letters, digits, and any of _ - . only")


# The server's own estimate. Source: tensorflow_serving/servables/tensorflow/util.cc.
_MEMORY_PER_DISK = 1.2


def _memory_short(facts: Facts) -> Iterator[Problem]:
    """No limit is set to what the server loads; the system ends it when memory is used up."""
    size_bytes = sum(_size_bytes(each.path) for base in facts.bases for each in base.loaded)
    need, have = size_bytes * _MEMORY_PER_DISK, facts.machine.memory_bytes
    if need > have:
        text = f"the loaded versions need about {need / 1e6:,.0f} MB, {have / 1e6:,.0f} MB are free"
        yield Problem("models", text, "load fewer versions or models, or use a larger machine")


def _size_bytes(folder: Path) -> int:
    files = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return sum(file.stat().st_size for file in files if file.is_file())


_E, _W = Severity.ERROR, Severity.WARNING

RULES = (
    Rule("model-damaged", _E,
         "no version that would be loaded is whole, or the newest lacks its variables: "
         "the server tries for minutes and ends, or answers every request with an error",
         _model_damaged),
    Rule("tag-not-found", _E,
         "no version that would be loaded has a graph with the tags of `saved_model_tags`",
         _tag_not_found),
    Rule("cannot-answer", _E,
         "a signature reads what loading never sets, or names no tensor: every request fails",
         _cannot_answer),
    Rule("label-not-loaded", _E,
         "a label names a version that will not be loaded: requests by it fail",
         _label_not_loaded),
    Rule("labels-refused", _E,
         "labels at a start need `allow_version_labels_for_unavailable_models`",
         _labels_refused),
    Rule("version-damaged", _W,
         "a version is not whole; others of the model are",
         _version_damaged),
    Rule("no-default-signature", _W,
         "a model has no signature `serving_default`, which requests use that name none",
         _no_default_signature),
    Rule("refused-operation", _W,
         "a model runs operations that a push refuses: no server has them, or they have no "
         "business in one",
         _refused_operation),
    Rule("awkward-name", _W,
         "the name of a model or label must be percent-encoded in REST paths",
         _awkward_name),
    Rule("memory-short", _W,
         "what will be loaded needs more memory than is free: 1.2 times its size on disk",
         _memory_short),
)  # fmt: skip
