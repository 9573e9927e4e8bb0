"""Rules about models that a server with `[batching]` cannot answer for.

Source: tensorflow_serving/batching/batching_session.cc: the inputs of several requests are joined
along their first axis, and the outputs cut along theirs, whatever these axes mean.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tfserve_kit import savedmodel
from tfserve_kit.deployment.lint.facts import Base, Facts, Machine
from tfserve_kit.deployment.lint.findings import Rule, Severity
from tfserve_kit.deployment.schema import Batching, Spec
from tfserve_kit.errors import Problem
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature
from tfserve_kit.savedmodel.batch_axes import batch_axes, obstacles

# Source: tensorflow_serving/servables/tensorflow/bundle_factory_util.cc.
PER_MODEL_FILE = Path("batching_params.pbtxt")
_REMEDY = (
    "leave [batching] out, or serve this model from a deployment without it; with "
    "enable_per_model_batching_parameters = true under [server.flags] only versions that hold a "
    f"{PER_MODEL_FILE} are batched"
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


def _cannot_batch(facts: Facts) -> Iterator[Problem]:
    """Every request would fail, or with luck those that come alone would not."""
    for base, found in _batched(facts):
        hindered = {name: why for name, each in found.items() if (why := _why(each, facts))}
        for name in _main(found, hindered):
            if name in hindered:
                yield _problem(base, name, f"cannot be batched: {hindered[name]}")


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
    where = f"version {base.loaded[-1].number} in {base.model.base_path}"
    return Problem(f"{base.place}.base_path", f"signature {signature!r} of {where} {what}", _REMEDY)


def _batched(facts: Facts) -> Iterator[tuple[Base, Mapping[str, Signature]]]:
    """Yield base paths whose newest version is batched, with its signatures."""
    if not facts.flags["enable_batching"]:
        return
    by_file = facts.flags["enable_per_model_batching_parameters"]
    for base in facts.bases:
        newest = base.loaded[-1] if base.loaded else None
        if newest is None or newest in base.faults or base.serves_tflite(newest):
            continue
        if not by_file or (newest.path / PER_MODEL_FILE).is_file():
            yield base, savedmodel.read(newest.path, tag=base.tag).signatures


RULES = (
    Rule("cannot-batch", Severity.ERROR,
         "`[batching]`, but a model has no batch axis in an input or output, or fixes its rows",
         _cannot_batch),
    Rule("signature-cannot-batch", Severity.WARNING,
         "`[batching]`, and another signature than the main one cannot be batched, or may not be",
         _signature_cannot_batch),
)  # fmt: skip
