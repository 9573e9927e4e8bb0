"""What a right answer to a request looks like: outputs, their types, ranks and rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from numpy.typing import NDArray

from tfserve_kit.perf.samples import (
    MISSING_OUTPUT,
    OK,
    WRONG_DTYPE,
    WRONG_RANK,
    WRONG_ROWS,
    WRONG_SHAPE,
)
from tfserve_kit.savedmodel import Signature
from tfserve_kit.savedmodel.signatures import batch_axes
from tfserve_kit.tensors import dtypes

Axes = tuple[int | None, ...]
Arrays = Mapping[str, NDArray[Any]]
# Name of the type and shape of each output of an answer, by alias.
Found = Mapping[str, tuple[str, tuple[int, ...]]]


class Output(NamedTuple):
    """One output: `dtype` is empty, and `axes` or one of them None, where nothing is known."""

    alias: str
    dtype: str
    axes: Axes | None

    def fault(self, dtype: str, shape: tuple[int, ...]) -> tuple[int, str]:
        """Return what is wrong with an output, as status and sentence; OK if nothing is."""
        status = OK
        if self.dtype and dtype != self.dtype:
            status = WRONG_DTYPE
        elif self.axes is not None and len(shape) != len(self.axes):
            status = WRONG_RANK
        elif wrong := list(self._wrong(shape)):
            status = WRONG_ROWS if wrong[0] == 0 else WRONG_SHAPE
        if status == OK:
            return OK, ""
        return status, f"output {self.alias!r:.80} is {_shown(dtype, shape)}, not {self}"

    def doubts(self, shape: tuple[int, ...]) -> frozenset[int]:
        """Return the axes that a shape contradicts; all of them where the rank is another."""
        if self.axes is not None and len(shape) != len(self.axes):
            return frozenset(range(len(self.axes) + 1))
        return frozenset(self._wrong(shape))

    def without(self, axes: frozenset[int] | None) -> Self:
        """Return this without some axes, or without any where the rank is in doubt."""
        if not axes or self.axes is None:
            return self
        if len(axes) > len(self.axes):
            return self._replace(axes=None)
        sizes = enumerate(self.axes)
        return self._replace(axes=tuple(None if at in axes else size for at, size in sizes))

    def _wrong(self, shape: tuple[int, ...]) -> Iterator[int]:
        for axis, wanted in enumerate(self.axes or ()):
            if wanted not in {None, shape[axis]}:
                yield axis

    def __str__(self) -> str:
        return _shown(self.dtype, self.axes)


class Expected(NamedTuple):
    """What the answer to one request must hold; two that are equal expect the same."""

    outputs: tuple[Output, ...]

    @classmethod
    def of(cls, signature: Signature, inputs: Arrays) -> Self:
        """Return what a request implies.

        Args:
            signature: the one that is called.
            inputs: array per input alias; rows are counted where the signature's batch axes are.
        """
        axes = batch_axes(signature)
        counts = set(axes.row_counts(inputs).values())
        rows = counts.pop() if len(counts) == 1 and not axes.composites else None
        found = []
        for alias, spec in signature.outputs.items():
            shape = spec.shape
            if shape and shape[0] is None and alias not in axes.whole:
                shape = (rows, *shape[1:])
            found.append(Output(alias, spec.dtype.name if spec.dtype else "", shape))
        return cls(tuple(found))

    def doubted(self, doubts: Mapping[str, frozenset[int]]) -> Self:
        """Return this without the axes, by output, that an answer has contradicted."""
        return self._replace(
            outputs=tuple(each.without(doubts.get(each.alias)) for each in self.outputs)
        )

    def doubts(self, trial: Arrays) -> dict[str, frozenset[int]]:
        """Return the axes, by output, that an answer contradicts; see `doubted`."""
        return {
            each.alias: each.doubts(trial[each.alias].shape)
            for each in self.outputs
            if each.alias in trial
        }

    def fault(self, found: Found) -> tuple[int, str]:
        """Return what is wrong with an answer, as status and sentence; OK if nothing is."""
        for output in self.outputs:
            if output.alias not in found:
                return MISSING_OUTPUT, f"the answer lacks output {output.alias!r:.80}"
            status, why = output.fault(*found[output.alias])
            if status != OK:
                return status, why
        return OK, ""

    def fault_of(self, outputs: Arrays) -> tuple[int, str]:
        """Return what is wrong with the outputs of an answer that a client has decoded."""
        known = {each.alias: each.dtype for each in self.outputs}
        return self.fault(
            {
                alias: (_name(array, known.get(alias)), array.shape)
                for alias, array in outputs.items()
            }
        )

    @property
    def without_rows(self) -> tuple[str, ...]:
        """The outputs whose rows are not known beforehand."""
        return tuple(each.alias for each in self.outputs if not each.axes or each.axes[0] is None)


def of_calls(calls: Sequence[tuple[Signature, Arrays]], trial: Arrays) -> list[Expected]:
    """Return what each of several requests implies.

    Args:
        calls: signature and inputs of each request.
        trial: outputs of an answer to the first; sizes that it contradicts are not expected of any
            of that signature, for signatures are written by people.
    """
    expected = [Expected.of(*call) for call in calls]
    doubts = expected[0].doubts(trial)
    called = calls[0][0].name
    return [
        each.doubted(doubts) if signature.name == called else each
        for (signature, _), each in zip(calls, expected, strict=True)
    ]


def _name(array: NDArray[Any], wanted: str | None) -> str:
    """Return the name of an array's type; numpy may have had none for bfloat16."""
    name = dtypes.by_numpy(array.dtype).name
    return "bfloat16" if (name, wanted) == ("float", "bfloat16") else name


def _shown(dtype: str, axes: Axes | None) -> str:
    if axes is None:
        return f"{dtype or 'anything'} of any shape"
    sizes = ["?" if size is None else str(size) for size in axes[:8]]
    return f"{dtype or 'anything'} [{', '.join(sizes)}{', ...' * (len(axes) > 8)}]"  # noqa: PLR2004 (enough)
