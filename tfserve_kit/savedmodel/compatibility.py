"""What a new version changes for those who call the one in service.

A change breaks callers if a request that was answered is refused by the new version, or if an
answer no longer has what they read from it.

Source: tensorflow_serving/servables/tensorflow/predict_util.cc (all inputs without a default must
be given, and no others).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tfserve_kit import savedmodel
from tfserve_kit.errors import Problem
from tfserve_kit.savedmodel import Signature, TensorSpec

Shape = tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between the signatures of two versions.

    Attributes:
        breaking: whether callers of the old version notice.
        place: which signature, or which input or output of it: `serving_default.inputs.x`.
        text: what is different, with both types and shapes.
    """

    breaking: bool
    place: str
    text: str

    @property
    def problem(self) -> Problem:
        """The change as a problem of the new version."""
        remedy = "push it as another model, or accept it: --allow-breaking" if self.breaking else ""
        return Problem(self.place, self.text, remedy)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Compare two `map<string, SignatureDef>`, the one in service with its successor.

    Returns:
        Every difference that callers may care about, those that break them first.
    """
    before, after = savedmodel.parse_signatures(old), savedmodel.parse_signatures(new)
    found = [Change(True, name, "signature is gone") for name in before.keys() - after.keys()]
    found += [Change(False, name, "signature is new") for name in after.keys() - before.keys()]
    for name in before.keys() & after.keys():
        found += _in_signature(before[name], after[name])
        found += _inputs(before[name], after[name], old[name].defaults, new[name].defaults)
        found += _outputs(before[name], after[name])
    return sorted(found, key=lambda change: (not change.breaking, change.place, change.text))


def _in_signature(old: Signature, new: Signature) -> Iterator[Change]:
    if old.method_name != new.method_name:
        text = f"method is {new.method_name or 'none'}, was {old.method_name or 'none'}"
        yield Change(True, old.name, text)


def _inputs(
    old: Signature, new: Signature, was_default: Mapping[str, Any], default: Mapping[str, Any]
) -> Iterator[Change]:
    for alias, spec in old.inputs.items():
        place = f"{old.name}.inputs.{alias}"
        if alias not in new.inputs:
            yield Change(True, place, f"input {alias!r} ({spec}) is gone")
            continue
        yield from _retyped(place, spec, new.inputs[alias], _accepts_less)
        if alias in was_default and alias not in default:
            yield Change(True, place, f"input {alias!r} ({spec}) has no default any more")
        elif alias in default and alias not in was_default:
            yield Change(False, place, f"input {alias!r} ({spec}) has a default now")
        elif alias in default and default[alias] != was_default[alias]:
            yield Change(False, place, f"input {alias!r} ({spec}) has another default")
    for alias in new.inputs.keys() - old.inputs.keys():
        optional = alias in default
        text = f"input {alias!r} ({new.inputs[alias]}) is new and "
        text += "has a default" if optional else "must be given"
        yield Change(not optional, f"{old.name}.inputs.{alias}", text)


def _outputs(old: Signature, new: Signature) -> Iterator[Change]:
    for alias, spec in old.outputs.items():
        place = f"{old.name}.outputs.{alias}"
        if alias in new.outputs:
            yield from _retyped(place, spec, new.outputs[alias], _answers_otherwise)
        else:
            yield Change(True, place, f"output {alias!r} ({spec}) is gone")
    for alias in new.outputs.keys() - old.outputs.keys():
        text = f"output {alias!r} ({new.outputs[alias]}) is new"
        yield Change(False, f"{old.name}.outputs.{alias}", text)


def _retyped(
    place: str, old: TensorSpec, new: TensorSpec, breaks: Callable[[Shape, Shape], bool]
) -> Iterator[Change]:
    if old.dtype == new.dtype and old.shape == new.shape:
        return
    breaking = old.dtype != new.dtype or breaks(old.shape, new.shape)
    yield Change(breaking, place, f"is {new}, was {old}")


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
