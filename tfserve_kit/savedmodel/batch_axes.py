"""Which axes of a signature count rows: the one answer for whoever draws, cuts, joins or batches.

Neither TensorFlow nor its server knows batch axes; both go by the first axis of whatever they are
given. Here it is told from the signature what that does:

- an input whose first axis is open has a row in it for each example;
- an input without axes, or with a fixed first axis beside open ones, is a parameter: it belongs to
  the request as a whole, and is sent as it is;
- where first axes are fixed in all inputs and outputs, to the same number, every request must have
  just so many rows;
- the parts of ragged and sparse tensors count something else, and cannot be cut or joined;
- an output whose first axis is fixed beside open inputs, or that has none, is not row by row.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.savedmodel.composites import Composite

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class BatchAxes:
    """The batch axes of a signature.

    Attributes:
        rows: inputs whose first axis counts rows; one of unknown rank does so if it has any axis.
        parameters: inputs that are the same for all rows.
        composites: inputs that are parts of ragged and sparse tensors.
        fixed_rows: how many rows every request must have; None if any number goes.
        whole: outputs that are not row by row.
        open_rank: outputs of which only the answer tells whether they are row by row.
    """

    rows: frozenset[str]
    parameters: frozenset[str]
    composites: tuple[Composite, ...]
    fixed_rows: int | None
    whole: frozenset[str]
    open_rank: frozenset[str]

    @classmethod
    def of_rows(cls, aliases: Iterable[str]) -> Self:
        """Return those of inputs and outputs all of which are row by row."""
        nothing: frozenset[str] = frozenset()
        return cls(frozenset(aliases), nothing, (), None, nothing, nothing)

    @property
    def are_cuttable(self) -> bool:
        """Whether a request can be made of some of the rows of another."""
        return bool(self.rows) and not self.composites

    def counts(self, alias: str, array: NDArray[Any]) -> bool:
        """Say whether the first axis of a value counts rows."""
        return alias in self.rows and array.ndim > 0

    def row_counts(self, arrays: Arrays) -> dict[str, int]:
        """Return how many rows each value has, by alias; parameters have none."""
        return {alias: len(array) for alias, array in arrays.items() if self.counts(alias, array)}

    def taken(self, arrays: Arrays, rows: slice | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return some of the rows; parameters stay as they are."""
        return {
            alias: array[rows] if self.counts(alias, array) else array
            for alias, array in arrays.items()
        }


def batch_axes(signature: Signature) -> BatchAxes:
    """Return the batch axes of a signature."""
    composites = signature.composites
    parts = {alias for each in composites for alias in each.aliases}
    inputs = {alias: each for alias, each in signature.inputs.items() if alias not in parts}
    rows = frozenset(alias for alias, spec in inputs.items() if _is_open(spec))
    fixed = None if rows or composites else _common_rows(inputs, signature.outputs)
    if fixed is not None:
        rows = frozenset(alias for alias, spec in inputs.items() if spec.shape)
    outputs = signature.outputs.items()
    whole = frozenset(
        alias for alias, spec in outputs if not _is_open(spec) and (fixed is None or not spec.shape)
    )
    open_rank = frozenset(alias for alias, spec in outputs if spec.shape is None)
    return BatchAxes(rows, frozenset(inputs) - rows, composites, fixed, whole, open_rank)


def _is_open(spec: TensorSpec) -> bool:
    return spec.shape is None or spec.shape[:1] == (None,)


def _common_rows(inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> int | None:
    """Return the number that the first axes of all inputs and outputs are fixed to, if any."""
    sizes = {spec.shape[0] for spec in inputs.values() if spec.shape}
    if len(sizes) != 1:
        return None
    (size,) = sizes
    fits = all(_is_open(spec) or (spec.shape or (None,))[0] == size for spec in outputs.values())
    return size if fits else None


def of_any_rows(signature: Signature) -> Signature:
    """Return a signature with open first axes in the place of those that fix the number of rows."""
    axes = batch_axes(signature)
    if axes.fixed_rows is None:
        return signature
    inputs = {
        alias: replace(spec, shape=(None, *spec.shape[1:])) if alias in axes.rows else spec
        for alias, spec in signature.inputs.items()
        if spec.shape is not None
    }
    return replace(signature, inputs=inputs)


def obstacles(signature: Signature, *, batch_rows: int | None = None) -> Iterator[str]:
    """Yield why the server cannot put the rows of several requests into one batch.

    Args:
        signature: whose requests.
        batch_rows: how many rows all batches have; None if they vary.
    """
    axes = batch_axes(signature)
    if not signature.inputs:
        yield "it has no input"
    for alias in sorted(axes.parameters):
        shape = signature.inputs[alias].shape
        what = f"its first axis is fixed to {shape[0]}" if shape else "it has no batch axis"
        yield f"input {alias!r} is {signature.inputs[alias]}: {what}"
    if axes.fixed_rows not in {None, batch_rows}:
        yield f"every request must have {counted(axes.fixed_rows)}, and a batch of several has more"
    yield from map(str, axes.composites)
    for alias in sorted(axes.whole):
        yield f"output {alias!r} is {signature.outputs[alias]}, not row by row"


def counted(rows: int) -> str:
    """Return a number of rows in words."""
    return "1 row" if rows == 1 else f"{rows} rows"


def parameters_differ(arrays: Iterable[NDArray[Any]]) -> bool:
    """Say whether values of one parameter are not all the same."""
    first, *others = arrays
    return not all(each.shape == first.shape and np.array_equal(each, first) for each in others)
