"""Problems of a deployment that are known before anything starts.

::

    spec ──▶ facts (flags, disk, machine) ──▶ every rule of RULES ──▶ [Problem]

A rule says what tensorflow_model_server really does; where that is written upstream, its docstring
names the file. `docs/lint.md` is generated from what the rules say of themselves.

Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc for base paths,
tensorflow_serving/batching/batching_session.cc for models with `[batching]`: the inputs of several
requests are joined along their first axis, and the outputs cut along theirs, whatever these mean.
"""

import math
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from tfserve_kit import safe_text, savedmodel
from tfserve_kit.deployment import flags, tls
from tfserve_kit.deployment.facts import TFLITE_FILE, Base, Facts, Machine
from tfserve_kit.deployment.spec import Batching, Spec
from tfserve_kit.errors import Problem, Severity, SpecError, worst_first
from tfserve_kit.repository import Version, parse_version
from tfserve_kit.repository.locate import like_a_version, look_around, renamed
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, GRAPH_FILE, Signature
from tfserve_kit.savedmodel.scan import Scan
from tfserve_kit.savedmodel.signatures import batch_axes, obstacles


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing to look for: a stable name, its severity, what it means, and who looks."""

    name: str
    severity: Severity
    meaning: str
    look: Callable[[Facts], Iterable[Problem]]


RULES: list[Rule] = []
_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

_Look = Callable[[Facts], Iterable[Problem]]


def _rule(name: str, severity: Severity, meaning: str) -> Callable[[_Look], _Look]:
    """Make a function a rule."""

    def add(look: _Look) -> _Look:
        RULES.append(Rule(name, severity, meaning, look))
        return look

    return add


def _push_to(base_path: str) -> str:
    return f"tfkit push-model SAVED_MODEL --to {shlex.quote(base_path)}"


@_rule(
    "base-path-unreadable",
    _E,
    "a base path cannot be read: the server opens no port and waits forever",
)
def _base_path_unreadable(facts: Facts) -> Iterator[Problem]:
    """No port opens before every model has a version; until then the look is only repeated.

    Later on, one base path that is missing keeps the server from seeing new versions of any model.
    """
    for name, error in facts.unreadable.items():
        path = facts.spec.models[name].base_path
        remedy = f"store a version there: {_push_to(path)}"
        if isinstance(error, NotADirectoryError):
            remedy = "give the folder that holds one folder per version"
        elif isinstance(error, PermissionError):
            remedy = "let the server's user read and enter it"
        text = f"{path} cannot be read ({error.strerror})"
        found = look_around(Path(path))
        if found and isinstance(error, NotADirectoryError):
            text, remedy = f"{text}: it {found.message}", found.remedy
        elif found:
            remedy = f"{found.remedy} Or {remedy}"
        yield Problem(f"models.{name}.base_path", text, remedy)


@_rule(
    "no-version",
    _E,
    "a base path holds no version: the server opens no port and waits forever",
)
def _no_version(facts: Facts) -> Iterator[Problem]:
    """Like a missing base path, an empty one is waited for."""
    for base in facts.bases:
        path = base.model.base_path
        if base.versions:
            continue
        text, remedy = (
            f"{path} holds no version",
            f"store a version there: {_push_to(path)}",
        )
        if found := look_around(Path(path)):
            text, remedy = f"{text}: it {found.message}", found.remedy
        yield base.problem(text, remedy)


@_rule(
    "version-not-on-disk",
    _E,
    "a version of `specific` is not there: the server does without it, or waits forever",
)
def _version_not_on_disk(facts: Facts) -> Iterator[Problem]:
    """Only a warning in the log, as long as one of them is there; else it is waited for."""
    for base in facts.bases:
        for number in sorted(set(base.model.versions.specific) - set(base.numbers)):
            if base.versions:  # else there is a finding already
                text = f"version {number} is not in {base.model.base_path}"
                yield Problem(f"{base.place}.versions", text, f"it holds {base.numbers}")


@_rule(
    "name-is-no-version",
    _W,
    "a folder looks like a version, but its name is not an integer: it is silently ignored",
)
def _name_is_no_version(facts: Facts) -> Iterator[Problem]:
    """Whatever absl::SimpleAtoi does not take for an int64 is ignored without a word."""
    for base in facts.bases:
        meant = [child for child in base.children if like_a_version(child)]
        if meant:
            names = ", ".join(repr(child.name) for child in meant)
            text = f"{names} in {base.model.base_path} will never be loaded"
            command = renamed(meant[0], frozenset(child.name for child in base.children))
            remedy = f"name versions with whole numbers below 2^63, such as 1: {command}"
            yield base.problem(text, remedy)


@_rule(
    "odd-version-name",
    _W,
    "a name such as `0001` or `+1` counts as a version, though it does not look like it",
)
def _odd_version_name(facts: Facts) -> Iterator[Problem]:
    """Signs, blanks and leading zeros count; REST cannot name a version below zero."""
    for base in facts.bases:
        for version in base.versions:
            name, number = version.path.name, version.number
            if name != str(number) or number < 0:
                remedy = f"name it {number}" if number >= 0 else "use 1 or more: REST takes no sign"
                text = f"{name!r} in {base.model.base_path} counts as version {number}"
                yield base.problem(text, remedy)


@_rule("two-spellings", _W, "two names stand for the same version number: only one is served")
def _two_spellings(facts: Facts) -> Iterator[Problem]:
    """Of two names for one number the lexicographically last is used."""
    for base in facts.bases:
        spellings = defaultdict(list)
        for child in base.children:
            if (number := parse_version(child.name)) is not None:
                spellings[number].append(child.name)
        for number, (*others, used) in spellings.items():
            if others:
                unused = ", ".join(map(repr, others))
                text = f"version {number} is {used!r}; {unused} is ignored"
                yield base.problem(text, "remove or renumber all but one")


@_rule(
    "version-is-no-folder",
    _W,
    "a file with an integer name counts as a version: loading it fails",
)
def _version_is_no_folder(facts: Facts) -> Iterator[Problem]:
    """Whatever has an integer name counts, folder or not; its load fails, the old one stays."""
    for base in facts.bases:
        for version in base.versions:
            if version.path.is_dir() or version in base.fatal:
                continue
            text = f"{version.path} counts as version {version.number}, but is not a folder"
            yield base.problem(text, "remove or rename it")


@_rule("s3-base-path", _E, "the server cannot read s3:// since 2.7")
def _s3_base_path(facts: Facts) -> Iterator[Problem]:
    """S3 left TensorFlow for the tensorflow-io package with 2.7; a C++ server cannot load it."""
    for name, path in facts.remote.items():
        if path.lower().startswith("s3:"):
            text = f"{safe_text.redacted_url(path)}: the server cannot read s3:// (since 2.7)"
            remedy = "copy the versions to a local folder, and serve that"
            yield Problem(f"models.{name}.base_path", text, remedy)


@_rule("remote-base-path", _I, "a base path such as gs:// can only be looked at by the server")
def _remote_base_path(facts: Facts) -> Iterator[Problem]:
    """Only the server itself can look there."""
    for name, path in facts.remote.items():
        if not path.lower().startswith("s3:"):
            text = f"{safe_text.redacted_url(path)} was not looked at: only the server can"
            remedy = f"see that it holds numbered versions; upload {GRAPH_FILE} last"
            yield Problem(f"models.{name}.base_path", text, remedy)


# Source: tensorflow_serving/servables/tensorflow/bundle_factory_util.cc.
_PER_MODEL_FILE = Path("batching_params.pbtxt")
_REMEDY = (
    "leave [batching] out, or serve this model from a deployment without it; with "
    "enable_per_model_batching_parameters = true under [server.flags] only versions that hold a "
    f"{_PER_MODEL_FILE} are batched"
)


def hindrances(spec: Spec, model: str = "", signature: str = "") -> list[Problem]:
    """Return why a deployment should not have `[batching]`, whether it has it or not.

    Args:
        spec: whose models are looked at, as far as they can be.
        model: one of which more than the main signature counts,
        signature: namely this one.
    """
    facts = Facts(spec.model_copy(update={"batching": spec.batching or Batching()}), Machine(1, 0))
    named = [
        _problem(base, signature, f"cannot be batched: {why}")
        for base, found in _batched(facts)
        if base.name == model and signature in found and (why := _why(found[signature], facts))
    ]
    return list(_cannot_batch(facts)) or named


@_rule(
    "cannot-batch",
    _E,
    "`[batching]`, but a model has no batch axis in an input or output, or fixes its rows",
)
def _cannot_batch(facts: Facts) -> Iterator[Problem]:
    """Every request would fail, or with luck those that come alone would not."""
    for base, found in _batched(facts):
        hindered = {name: why for name, each in found.items() if (why := _why(each, facts))}
        for name in _main(found, hindered):
            if name in hindered:
                yield _problem(base, name, f"cannot be batched: {hindered[name]}")


@_rule(
    "signature-cannot-batch",
    _W,
    "`[batching]`, and another signature than the main one cannot be batched, or may not be",
)
def _signature_cannot_batch(facts: Facts) -> Iterator[Problem]:
    """As for `cannot-batch`; requests for the model's main signature are not concerned.

    An output of which only the answer tells the shape may be row by row for many rows, and without
    a batch axis for one.
    """
    for base, found in _batched(facts):
        hindered = {name: why for name, each in found.items() if (why := _why(each, facts))}
        for name in hindered.keys() - set(_main(found, hindered)):
            yield _problem(base, name, f"cannot be batched: {hindered[name]}")
        for name in found.keys() - hindered.keys():
            for alias in sorted(batch_axes(found[name]).open_rank):
                text = f"can be batched only if its output {alias!r}, of unknown shape, has a row"
                yield _problem(base, name, f"{text} for each row of the input, also for one alone")


def _main(found: Mapping[str, Signature], hindered: Mapping[str, str]) -> list[str]:
    """Return the signature that requests mean by no name; all, if none can be batched."""
    if DEFAULT_SIGNATURE in found:
        return [DEFAULT_SIGNATURE]
    return list(found) if len(hindered) == len(found) else []


def _why(signature: Signature, facts: Facts) -> str:
    return "; ".join(obstacles(signature, batch_rows=facts.max_batch_size))


def _problem(base: Base, signature: str, what: str) -> Problem:
    return base.problem(f"signature {signature!r} of {base.described()} {what}", _REMEDY)


def _batched(facts: Facts) -> Iterator[tuple[Base, Mapping[str, Signature]]]:
    """Yield base paths whose newest version is batched, with its signatures."""
    if not facts.flags["enable_batching"]:
        return
    by_file = facts.flags["enable_per_model_batching_parameters"]
    for base in facts.bases:
        if base.newest and (not by_file or (base.newest.path / _PER_MODEL_FILE).is_file()):
            yield base, base.signatures


@_rule(
    "model-damaged",
    _E,
    "no version that would be loaded is whole, or the newest lacks its variables: the "
    "server tries for minutes and ends, or answers every request with an error",
)
def _model_damaged(facts: Facts) -> Iterator[Problem]:
    """Five times, a minute apart, a failed load is repeated by default; then the server ends.

    It ends even if an older version is whole that the policy does not choose.
    Source: tensorflow_serving/core/loader_harness.cc, model_servers/server_core.cc.
    """
    for base in facts.bases:
        for version in base.fatal:
            if not base.is_untagged(version):
                yield _damage(base, version)


@_rule("version-damaged", _W, "a version is not whole; others of the model are")
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
    text = f"{base.described(version)}: {parts}"
    return base.problem(text, f"push a whole copy: {_push_to(base.model.base_path)}")


@_rule(
    "tag-not-found",
    _E,
    "no version that would be loaded has a graph with the tags of `saved_model_tags`",
)
def _tag_not_found(facts: Facts) -> Iterator[Problem]:
    """Fails to load like a damaged model. Source: tensorflow/cc/saved_model/reader.cc."""
    for base in facts.bases:
        for version in base.fatal:
            if base.is_untagged(version):
                (fault,) = base.faults[version]
                text = f"{base.described(version)}: {fault.message}"
                have = next(filter(None, savedmodel.tags(version.path)), "TAG")
                remedy = f'set saved_model_tags = "{have}" under [server.flags], or export again'
                yield base.problem(text, remedy)


@_rule(
    "no-default-signature",
    _W,
    "a model has no signature `serving_default`, which requests use that name none",
)
def _no_default_signature(facts: Facts) -> Iterator[Problem]:
    """Without a name of a signature a request means `serving_default`.

    Source: tensorflow_serving/servables/tensorflow/predict_util.cc.
    """
    for base in facts.bases:
        if base.signatures and DEFAULT_SIGNATURE not in base.signatures:
            has = f"only {', '.join(base.signatures)}"
            text = f"{base.described()} has no signature {DEFAULT_SIGNATURE!r}, {has}"
            yield base.problem(text, "name a signature in every request")


@_rule("no-signature", _E, "a model has no signature at all: no request can call it")
def _no_signature(facts: Facts) -> Iterator[Problem]:
    """Such a model loads, and is AVAILABLE; a push refuses it."""
    for base in facts.bases:
        if base.newest and not base.signatures:
            text = f"{base.described()} has no signature, so no request can call it"
            remedy = "export it with signatures=, or by model.export()"
            yield base.problem(text, remedy)


@_rule(
    "cannot-answer",
    _E,
    "a signature reads what loading never sets, or names no tensor: every request fails",
)
def _cannot_answer(facts: Facts) -> Iterator[Problem]:
    """Nothing is wrong until a request comes: the version loads, and is AVAILABLE.

    Source: tensorflow/cc/saved_model/loader.cc: a load looks at no signature.
    """
    for base, scan in _scans(facts):
        for name, reasons in sorted(scan.unanswerable.items()):
            text = f"{base.described()}: signature {name!r} can never answer: {'; '.join(reasons)}"
            remedy = "; ".join(dict.fromkeys(reasons.values()))
            yield base.problem(text, remedy)


@_rule(
    "refused-operation",
    _W,
    "a model runs operations that a push refuses: no server has them, or none should run them",
)
def _refused_operation(facts: Facts) -> Iterator[Problem]:
    """Name what a push would have refused: a version that was copied by hand met none."""
    for base, scan in _scans(facts):
        refused = {
            each.rule: each.message
            for each in reversed(scan.findings)
            if each.severity is Severity.ERROR and each.rule
        }
        for op, message in sorted(refused.items()):
            text = f"{base.described()}: {op}: {message}"
            yield base.problem(text, "export the model without it")


def _scans(facts: Facts) -> Iterator[tuple[Base, Scan]]:
    for base in facts.bases:
        if (scan := base.scan) is not None:
            yield base, scan


@_rule(
    "label-not-loaded",
    _E,
    "a label names a version that will not be loaded: requests by it fail",
)
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


@_rule("labels-refused", _E, "labels at a start need `allow_version_labels_for_unavailable_models`")
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


@_rule("awkward-name", _W, "the name of a model or label must be percent-encoded in REST paths")
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


@_rule(
    "memory-short",
    _W,
    "what will be loaded needs more memory than is free: 1.2 times its size on disk",
)
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


# From here on a batch is hardly filled by those who happen to wait.
_LARGE_BATCH = 32
# More threads than this for each CPU only wait for each other.
_THREADS_PER_CPU = 4
# A failing load that is given up within this time disturbs nobody much.
_SHORT_STALL_S = 10


@_rule(
    "batch-never-full",
    _W,
    "`max_batch_size` is above the number of requests that are handled at once",
)
def _batch_never_full(facts: Facts) -> Iterator[Problem]:
    """Each handler thread waits for its answer, so no more requests than threads are there.

    Without a timeout nobody waits for a batch to fill, and nobody chose the default size.
    Source: tensorflow_serving/batching/README.md, model_servers/server.h (threads).
    """
    batching, size = facts.batching, facts.max_batch_size
    if batching is None or not (batching.max_batch_size or batching.batch_timeout_micros):
        return
    most = max(facts.handlers.values())
    if size > most:
        threads = " and ".join(f"{name} is {count}" for name, count in facts.handlers.items())
        text = f"is {size}, but {threads}: requests of one row never fill a batch beyond {most}"
        remedy = f"set these flags to {2 * size} under [server.flags], or this to at most {most}"
        yield Problem("batching.max_batch_size", text, remedy)


@_rule("batch-timeout-zero", _I, "large batches, but no time to fill them")
def _batch_timeout_zero(facts: Facts) -> Iterator[Problem]:
    """Then a batch is closed as soon as a batch thread is free, whatever it holds.

    Source: tensorflow/core/kernels/batching_util/shared_batch_scheduler.h.
    """
    if facts.batching is None or facts.batching.batch_timeout_micros:
        return
    if facts.max_batch_size >= _LARGE_BATCH:
        text = f"is 0: batches of up to {facts.max_batch_size} only form while all threads are busy"
        remedy = "set it to what a request may wait, such as 1000"
        yield Problem("batching.batch_timeout_micros", text, remedy)


@_rule("queue-too-short", _I, "less room for waiting rows than requests that are handled at once")
def _queue_too_short(facts: Facts) -> Iterator[Problem]:
    """Without room in the queue a request gets 503. Source: as for `batch-timeout-zero`."""
    batching = facts.batching
    if batching is None or batching.max_enqueued_batches is None:
        return
    running = batching.num_batch_threads or facts.machine.cpus
    room = (batching.max_enqueued_batches + running) * facts.max_batch_size
    requests = sum(facts.handlers.values())
    if room < requests:
        text = (
            f"is {batching.max_enqueued_batches}: with {running} running there is room for {room} "
            f"rows, but {requests} requests are handled at once; the rest is refused"
        )
        yield Problem("batching.max_enqueued_batches", text, "raise it, or expect 503 at peaks")


@_rule("many-batch-threads", _I, "more than four batch threads for each CPU")
def _many_batch_threads(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/batching/README.md, which wants one for each CPU."""
    threads = facts.batching and facts.batching.num_batch_threads
    if threads and threads > _THREADS_PER_CPU * facts.machine.cpus:
        text = f"is {threads}, on {facts.machine.cpus} CPUs"
        yield Problem("batching.num_batch_threads", text, f"start from {facts.machine.cpus}")


@_rule("rest-gives-up-early", _W, "REST requests time out before a batch that is not full is run")
def _rest_gives_up_early(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/batching/batching_session.cc: 429 to who waits too long."""
    wait_ms = ((facts.batching and facts.batching.batch_timeout_micros) or 0) / 1000
    timeout_ms = facts.flags["rest_api_timeout_in_ms"]
    if wait_ms and wait_ms >= timeout_ms:
        text = f"is {timeout_ms}, but a batch may wait {wait_ms:g} ms to fill"
        remedy = "raise it, or lower batch_timeout_micros"
        yield Problem("server.flags.rest_api_timeout_in_ms", text, remedy)


@_rule(
    "one-load-blocks-all",
    _I,
    "with several models, a version that fails to load delays all others for minutes",
)
def _one_load_blocks_all(facts: Facts) -> Iterator[Problem]:
    """Without load threads the repetitions of a failed load hold up the manager's own thread.

    Source: tensorflow_serving/core/basic_manager.cc (InlineExecutor).
    """
    retries, pause = facts.flags["max_num_load_retries"], facts.flags["load_retry_interval_micros"]
    stall_s = retries * pause / 1e6
    several = len(facts.spec.models) > 1
    if several and not facts.flags["num_load_threads"] and stall_s > _SHORT_STALL_S:
        text = (
            f"is 0: while a failing version is retried ({retries} times, {stall_s:g} s), no "
            "other model loads or unloads"
        )
        remedy = (
            "set num_load_threads = 1, max_num_load_retries = 1 and "
            "load_retry_interval_micros = 1000000 under [server.flags]"
        )
        yield Problem("server.flags.num_load_threads", text, remedy)


_POLL = "file_system_poll_wait_seconds"


@_rule("never-looks", _E, "a negative `file_system_poll_wait_seconds`: no version is ever found")
def _never_looks(facts: Facts) -> Iterator[Problem]:
    """Not even once: no version is ever found, and no port opens.

    Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
    """
    if facts.flags[_POLL] < 0:
        text = f"is {facts.flags[_POLL]}: the server never looks for versions, and never gets ready"
        yield Problem(f"server.flags.{_POLL}", text, "remove it; 0 looks once")


@_rule(
    "pushes-unnoticed",
    _W,
    "`file_system_poll_wait_seconds` 0 looks for versions only at the start",
)
def _pushes_unnoticed(facts: Facts) -> Iterator[Problem]:
    """Source: as for `never-looks`."""
    waiting = [name for name, each in facts.spec.models.items() if not each.versions.specific]
    if facts.flags[_POLL] == 0 and waiting:
        text = f"is 0: versions of {', '.join(waiting)} that are pushed later are never noticed"
        yield Problem(f"server.flags.{_POLL}", text, "set it to 1 or more, or restart after a push")


@_rule("monitoring-path-clash", _W, "the page of metrics lies among the paths of the REST API")
def _monitoring_path_clash(facts: Facts) -> Iterator[Problem]:
    """Whatever asks for this path gets the page, never what REST has there.

    Source: tensorflow_serving/model_servers/http_server.cc.
    """
    page = facts.spec.monitoring
    if page and page.prometheus and page.path.lower().startswith("/v1/"):
        text = f"is {page.path}, among the paths of models: the page hides what has this path"
        yield Problem("monitoring.path", text, "leave it out, or choose one outside /v1/")


@_rule("fatal-flag", _E, "flags that the server crashes on or does not start with")
def _fatal_flag(facts: Facts) -> Iterator[Problem]:
    """Values that the server fails or crashes on at its start.

    Source: tensorflow_serving/model_servers/server.cc, main.cc.
    """
    threads, given = "rest_api_num_threads", facts.flags["grpc_channel_arguments"]
    if facts.flags[threads] < 1:
        text = f"is {facts.flags[threads]}: the server aborts"
        yield Problem(f"server.flags.{threads}", text, "set it to 1 or more")
    if wrong := [each for each in given.split(",") if each and "=" not in each]:
        text = f"has {wrong[0]!r} without a value: the server crashes"
        yield Problem("server.flags.grpc_channel_arguments", text, "write key=value,key=value")
    kinds = ("session", "intra_op", "inter_op")
    if all(facts.flags[f"tensorflow_{kind}_parallelism"] for kind in kinds):
        text = "contradicts the intra_op and inter_op flags: the server does not start with all"
        path = "server.flags.tensorflow_session_parallelism"
        yield Problem(path, text, "remove it, or the other two")


# Flags that do something only if another is true.
_NEEDED = {
    "num_tflite_pools": "prefer_tflite_model",
    "num_tflite_interpreters_per_pool": "prefer_tflite_model",
    "num_request_iterations_for_warmup": "enable_model_warmup",
    "enable_per_model_batching_parameters": "enable_batching",
}
# What a platform_config_file replaces.
_REPLACED = (
    "tensorflow_session_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
)


@_rule(
    "without-effect",
    _W,
    "a setting does nothing, because it needs another or another replaces it",
)
def _without_effect(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/model_servers/server.cc."""
    given, batching = facts.spec.server.flags, facts.batching
    for name, needed in _NEEDED.items():
        if given.get(name) and not facts.flags[needed]:
            needs = "[batching]" if needed == "enable_batching" else f"{needed} = true"
            text = f"does nothing: it needs {needs}"
            yield Problem(f"server.flags.{name}", text, "add that, or remove it")
    if batching and batching.max_execution_batch_size and not batching.enable_large_batch_splitting:
        text = "does nothing: it needs enable_large_batch_splitting = true"
        yield Problem("batching.max_execution_batch_size", text, "add that, or remove it")
    if given.get("platform_config_file"):
        names = [f"server.flags.{name}" for name in _REPLACED if given.get(name)]
        for path in names + ["batching"] * (batching is not None):
            text = "does nothing: platform_config_file replaces it"
            yield Problem(path, text, "set it in that file, or remove one of them")


@_rule("no-tflite-model", _W, "`prefer_tflite_model`, but no version has such a model")
def _no_tflite_model(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/servables/tensorflow/saved_model_bundle_factory.cc."""
    loaded = [(base, version) for base in facts.bases for version in base.loaded]
    if not facts.flags["prefer_tflite_model"] or not loaded or facts.remote:
        return
    if not any(base.serves_tflite(version) for base, version in loaded):
        text = f"does nothing: no version that will be loaded holds a {TFLITE_FILE}"
        yield Problem("server.flags.prefer_tflite_model", text, "remove it, or push one with it")


_THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "::1"})


@_rule(
    "tls-unusable",
    _E,
    "`ssl_config_file` is not an SSLConfig, or tfkit could not connect to its server",
)
def _tls_unusable(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/model_servers/server.cc (credentials from the SSLConfig)."""
    try:
        tls.of_deployment(facts.spec)
    except SpecError as error:
        yield from error.problems


@_rule("rest-stays-plain", _W, "gRPC has TLS, REST has none and is open to other machines")
def _rest_stays_plain(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/model_servers/server.cc: the HTTP server takes no credentials."""
    server, gateway = facts.spec.server, facts.spec.gateway
    is_open = server.host not in _THIS_MACHINE or server.engine == "kubernetes"
    if server.flags.get(tls.FLAG) and is_open and not gateway:
        place = "a port of the pods" if server.engine == "kubernetes" else server.host
        text = f"is {place}, and REST has no TLS: anybody on the network can read the requests"
        remedy = "put a proxy with TLS before rest_port, or keep that port from others"
        yield Problem("server.host", text, remedy)


@_rule(
    "update-needs-room",
    _I,
    "`max_per_node` with `[gateway]`: an update needs room for one replica more than there are",
)
def _update_needs_room(facts: Facts) -> Iterator[Problem]:
    """Say how many nodes that takes; how many there are only the swarm knows."""
    server, most = facts.spec.server, facts.spec.swarm.max_per_node
    if server.engine == "swarm" and facts.spec.gateway and most:
        nodes = server.replicas // most + 1
        text = (
            f"is {most}: {server.replicas} replicas are updated only where {nodes} nodes take some,"
            " since each new one starts before an old one ends"
        )
        yield Problem("swarm.max_per_node", text, f"have {nodes} nodes, or raise it")


@_rule("connections-never-end", _W, "Kubernetes: a pod that is stopped still gets requests")
def _connections_never_end(facts: Facts) -> Iterator[Problem]:
    """Without a bound connections outlive a pod's place in its Service, and die with the server.

    Where the deployment says nothing, tfkit bounds their age.
    """
    arguments = str(facts.flags["grpc_channel_arguments"])
    if not _is_on_kubernetes(facts) or flags.CONNECTION_AGE not in arguments:
        return
    age_ms = flags.connection_age_ms(arguments)
    if math.isinf(age_ms):
        text = f"lets connections grow old without end ({arguments})"
    elif age_ms > _OLD_MS:
        text = f"makes a pod take {age_ms / 1000:g} s to end, for its connections grow so old"
    elif age_ms / 1000 > (facts.spec.kubernetes.pre_stop_s or math.inf):
        text = f"keeps connections for {age_ms / 1000:g} s, longer than pre_stop_s in [kubernetes]"
    else:
        return
    remedy = f"set {flags.CONNECTION_AGE} to some seconds, or leave it out: 10 s"
    yield Problem("server.flags.grpc_channel_arguments", text, remedy)


@_rule("nothing-reserved", _I, "Kubernetes: pods for which nothing is reserved are evicted first")
def _nothing_reserved(facts: Facts) -> Iterator[Problem]:
    """Source: the QoS classes of Kubernetes."""
    options = facts.spec.docker
    if _is_on_kubernetes(facts) and not (options.cpus and options.memory):
        text = "do not both say what a pod needs: its node may have too little, and evict it first"
        yield Problem("docker", f"cpus and memory {text}", "set both in [docker]")


@_rule("folder-of-the-nodes", _W, "Kubernetes: models in a folder that every node must have")
def _folder_of_the_nodes(facts: Facts) -> Iterator[Problem]:
    """Source: the Pod Security Standards; only `privileged` allows hostPath."""
    place = facts.spec.kubernetes.host_path
    if _is_on_kubernetes(facts) and place:
        text = f"is {place}: a pod fails on nodes without it, and many namespaces forbid it"
        remedy = "use claim, in_image or gs://, or choose the nodes with node_selector"
        yield Problem("kubernetes.host_path", text, remedy)


_OLD_MS = 120_000


def _is_on_kubernetes(facts: Facts) -> bool:
    return facts.spec.server.engine == "kubernetes"


def lint(spec: Spec, *, machine: Machine | None = None) -> list[Problem]:
    """Return everything about a deployment that will or may go wrong, the worst first.

    Args:
        spec: a checked deployment; its base paths are looked at, nothing is changed.
        machine: where it will run; this one if left out.
    """
    facts = Facts(spec, machine or Machine.here())
    found = [
        replace(problem, severity=rule.severity, rule=rule.name)
        for rule in RULES
        for problem in rule.look(facts)
    ]
    return sorted(found, key=worst_first)
