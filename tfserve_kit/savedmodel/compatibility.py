"""What a new version changes for those who call the one in service.

A change breaks callers if a request that was answered is refused by the new version, or if an
answer no longer has what they read from it.

Source: tensorflow_serving/servables/tensorflow/predict_util.cc (all inputs without a default must
be given, and no others).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tfserve_kit.errors import Problem, Severity, worst_first
from tfserve_kit.savedmodel.signatures import Signature, TensorSpec, parse_signatures

Shape = tuple[int | None, ...] | None


_ACCEPT = "push it as another model, or accept it: --allow-breaking"


def _breaks(place: str, text: str) -> Problem:
    """Return a change that callers of the old version notice."""
    return Problem(place, text, _ACCEPT)


def _fits(place: str, text: str) -> Problem:
    """Return a change that they do not notice."""
    return Problem(place, text, severity=Severity.INFO)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Problem]:
    """Compare two `map<string, SignatureDef>`, the one in service with its successor.

    Returns:
        Every difference that callers may care about, those that break them first, as errors.
    """
    before, after = parse_signatures(old), parse_signatures(new)
    found = [_breaks(name, "signature is gone") for name in before.keys() - after.keys()]
    found += [_fits(name, "signature is new") for name in after.keys() - before.keys()]
    for name in before.keys() & after.keys():
        found += _in_signature(before[name], after[name])
        found += _inputs(before[name], after[name], old[name].defaults, new[name].defaults)
        found += _outputs(before[name], after[name])
    return sorted(found, key=lambda each: (worst_first(each), each.path, each.message))


def _in_signature(old: Signature, new: Signature) -> Iterator[Problem]:
    if old.method_name != new.method_name:
        text = f"method is {new.method_name or 'none'}, was {old.method_name or 'none'}"
        yield _breaks(old.name, text)


def _inputs(
    old: Signature, new: Signature, was_default: Mapping[str, Any], default: Mapping[str, Any]
) -> Iterator[Problem]:
    for alias, spec in old.inputs.items():
        place = f"{old.name}.inputs.{alias}"
        if alias not in new.inputs:
            yield _breaks(place, f"input {alias!r} ({spec}) is gone")
            continue
        yield from _retyped(place, spec, new.inputs[alias], _accepts_less)
        if alias in was_default and alias not in default:
            yield _breaks(place, f"input {alias!r} ({spec}) no longer has a default")
        elif alias in default and alias not in was_default:
            yield _fits(place, f"input {alias!r} ({spec}) has a default now")
        elif alias in default and default[alias] != was_default[alias]:
            yield _fits(place, f"input {alias!r} ({spec}) has another default")
    for alias in new.inputs.keys() - old.inputs.keys():
        optional = alias in default
        text = f"input {alias!r} ({new.inputs[alias]}) is new and "
        text += "has a default" if optional else "must be given"
        yield (_fits if optional else _breaks)(f"{old.name}.inputs.{alias}", text)


def _outputs(old: Signature, new: Signature) -> Iterator[Problem]:
    for alias, spec in old.outputs.items():
        place = f"{old.name}.outputs.{alias}"
        if alias in new.outputs:
            yield from _retyped(place, spec, new.outputs[alias], _answers_otherwise)
        else:
            yield _breaks(place, f"output {alias!r} ({spec}) is gone")
    for alias in new.outputs.keys() - old.outputs.keys():
        text = f"output {alias!r} ({new.outputs[alias]}) is new"
        yield _fits(f"{old.name}.outputs.{alias}", text)


def _retyped(
    place: str, old: TensorSpec, new: TensorSpec, breaks: Callable[[Shape, Shape], bool]
) -> Iterator[Problem]:
    if old.dtype == new.dtype and old.shape == new.shape:
        return
    breaking = old.dtype != new.dtype or breaks(old.shape, new.shape)
    yield (_breaks if breaking else _fits)(place, f"is {new}, was {old}")


def _accepts_less(old: Shape, new: Shape) -> bool:
    """Say whether an input refuses shapes that it took."""
    if new is None:
        return False
    if old is None or len(old) != len(new):
        return True
    return any(after not in {None, before} for before, after in zip(old, new, strict=True))


def _answers_otherwise(old: Shape, new: Shape) -> bool:
    """Say whether an output has another size than it had, or a batch of its own.

    A size that was open and is known now, or the other way round, is no other size.
    """
    if old is None or new is None:
        return False
    if len(old) != len(new):
        return True
    sizes = list(zip(old, new, strict=True))
    if sizes and sizes[0][0] is None and sizes[0][1] is not None:
        return True
    return any(None not in {before, after} and before != after for before, after in sizes)
