"""Inputs beside the picture: a key, a flag, a threshold."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError, did_you_mean
from tfserve_kit.pictures.image_input import Choice
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

# String inputs called so only come back in the answer, to tell rows apart.
_KEYS = frozenset(
    {"key", "keys", "id", "ids", "name", "names", "filename", "image_id", "image_key"}
)
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


class Keys:
    """The inputs that nobody gives and that only come back in the answer.

    Args:
        signature: of the model.
        given: inputs that something else fills.

    Attributes:
        choices: what is sent without having been asked for.
        texts: of each of these inputs.
    """

    def __init__(self, signature: Signature, given: Collection[str]) -> None:
        self._signature = signature
        self.texts = {
            name: "{name}"
            for name, spec in signature.inputs.items()
            if spec.dtype is dtypes.STRING and name.lower() in _KEYS and name not in given
        }
        self.choices = tuple(
            Choice(f"input {name!r}", "the picture's name", "assumed")
            for name in sorted(self.texts)
        )

    def values(self, pictures: Sequence[tuple[str, int]]) -> dict[str, NDArray[Any]]:
        """Return the value of each input, for pictures by name and index."""
        specs = self._signature.inputs
        return {name: _column(name, text, specs[name], pictures)
                for name, text in self.texts.items()}  # fmt: skip


class Companions:
    """Fills the inputs that no picture fills.

    Args:
        signature: of the model.
        picture: the input that takes the pictures.
        given: what `--set NAME=VALUE` says: a text, number, true or false, or a JSON list, in
            which {name}, {stem} and {index} stand for each picture's own.

    Attributes:
        choices: what is sent without having been asked for.

    Raises:
        UsageError: an input that does not exist, has no value, or cannot hold it.
    """

    def __init__(self, signature: Signature, picture: str, given: Mapping[str, str]) -> None:
        for name in given:
            if name not in signature.inputs:
                text = f"--set {name}: signature {signature.name!r} has no input {name!r}"
                raise UsageError(text, remedy=did_you_mean(name, signature.inputs))
            if name == picture:
                text = f"--set {name}: the pictures fill this input"
                raise UsageError(text, remedy="name another one with --picture-input")
        rest = {name: spec for name, spec in signature.inputs.items() if name != picture}
        keys = Keys(signature, {picture, *given})
        self._texts = {**keys.texts, **given}
        self._specs = rest
        self.choices = keys.choices
        missing = rest.keys() - self._texts.keys() - signature.optional
        if missing:
            listed = ", ".join(f"{name} {rest[name]}" for name in sorted(missing))
            raise UsageError(
                f"signature {signature.name!r} needs more than a picture: {listed}",
                remedy=f"give each a value, such as --set {min(missing)}=VALUE; {{name}}, {{stem}} "
                "and {index} stand for the picture's own",
            )
        self.values([("name", 0)])

    def values(self, pictures: Sequence[tuple[str, int]]) -> dict[str, NDArray[Any]]:
        """Return the value of each input, for pictures by name and index.

        Raises:
            UsageError: an input cannot hold its value.
        """
        return {
            name: _column(name, text, self._specs[name], pictures)
            for name, text in self._texts.items()
        }


def _column(
    name: str, text: str, spec: TensorSpec, pictures: Sequence[tuple[str, int]]
) -> NDArray[Any]:
    rows = [_row(name, _filled(text, *picture), spec) for picture in pictures]
    row, shape = rows[0], spec.shape
    if shape is not None and shape == row.shape:
        return row  # it has no axis for pictures
    if shape is not None and shape[1:] != row.shape:
        if row.size == 1 and all(size in {None, 1} for size in shape[1:]):
            rows = [each.reshape((1,) * (len(shape) - 1)) for each in rows]
        else:
            text = f"--set {name}: a value of shape {list(row.shape)} does not fit {spec}"
            raise UsageError(text, remedy="give a JSON list of the input's own shape")
    return np.stack(rows)


def _filled(text: str, name: str, index: int) -> str:
    path = PurePath(name)
    for mark, value in (("{name}", path.name), ("{stem}", path.stem), ("{index}", str(index))):
        text = text.replace(mark, value)
    return text


def _row(name: str, text: str, spec: TensorSpec) -> NDArray[Any]:
    if spec.dtype is dtypes.STRING:
        value = np.empty((), object)
        value[()] = text.encode("utf-8", "surrogateescape")
        return value
    target = spec.dtype.numpy if spec.dtype else None
    if target is not None and target.kind == "b" and text.lower() in _FLAGS:
        return np.array(_FLAGS[text.lower()])
    try:
        plain = np.array(json.loads(text))
        exact = plain.astype(target) if target is not None else None
    except (ValueError, OverflowError, RecursionError):
        exact = None
    if exact is None or not _is_same(plain, exact):
        raise UsageError(
            f"--set {name}={text}: {name} is {spec}, which cannot hold it",
            remedy="give a number, true or false, or a JSON list of them",
        )
    return exact


def _is_same(plain: NDArray[Any], exact: NDArray[Any]) -> bool:
    """Say whether a value became itself; floats may be rounded."""
    if plain.dtype.kind not in "iufb" or (exact.dtype.kind == "b") != (plain.dtype.kind == "b"):
        return False
    return exact.dtype.kind not in "iu" or bool((exact == plain).all())
