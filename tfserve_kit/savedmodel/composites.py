"""Ragged and sparse inputs: one tensor to the model, several to its callers, which belong together.

A signature names the parts of an input `r` as `r`, `r_1`, `r_2` ...: a ragged tensor has its values
and then, from the outermost level on, where the rows of each level begin and end; a sparse tensor
has indices, values and the shape of the whole.

Source: tensorflow/python/ops/ragged/ragged_tensor.py (RaggedTensorSpec),
tensorflow/python/framework/sparse_tensor.py (SparseTensorSpec), and
tensorflow/core/protobuf/struct.proto for what a SavedModel says of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tfserve_kit.savedmodel import TensorSpec

Kind = Literal["ragged", "sparse"]

_KINDS: Mapping[str, Kind] = {"RAGGED_TENSOR_SPEC": "ragged", "SPARSE_TENSOR_SPEC": "sparse"}
_INDEX_TYPES = {"int32", "int64"}


@dataclass(frozen=True, slots=True)
class Composite:
    """Inputs that are the parts of one tensor.

    Attributes:
        kind: what it is.
        aliases: of the parts, in their order: ragged values [n, ...] and the row splits of each
            level [rows + 1]; or sparse indices [n, rank], values [n] and shape [rank].
    """

    kind: Kind
    aliases: tuple[str, ...]

    def fault(self, parts: Mapping[str, NDArray[Any]]) -> str:
        """Say why parts do not go together; empty if they do, or if one is missing.

        Args:
            parts: array by alias; others are passed over.
        """
        if any(alias not in parts for alias in self.aliases):
            return ""
        arrays = [np.asarray(parts[alias]) for alias in self.aliases]
        return _ragged_fault(arrays) if self.kind == "ragged" else _sparse_fault(arrays)

    def __str__(self) -> str:
        first, *others = (repr(alias) for alias in self.aliases)
        return f"inputs {first} and {', '.join(others)} are the parts of one {self.kind} tensor"


def kinds(object_graph: Any) -> frozenset[Kind]:
    """Return which composite tensors the functions of a SavedObjectGraph take."""
    functions = object_graph.concrete_functions.values()
    found = {name for each in functions for name in _specs(each.canonicalized_input_signature)}
    return frozenset(_KINDS[name] for name in found & _KINDS.keys())


def _specs(value: Any) -> Iterator[str]:
    """Yield the names of the kinds of composites in a StructuredValue."""
    kind = value.WhichOneof("kind")
    if kind == "type_spec_value":
        spec = value.type_spec_value
        yield type(spec).TypeSpecClass.Name(spec.type_spec_class)
    elif kind in {"tuple_value", "list_value"}:
        for each in getattr(value, kind).values:
            yield from _specs(each)
    elif kind == "dict_value":
        for each in value.dict_value.fields.values():
            yield from _specs(each)
    elif kind == "named_tuple_value":
        for each in value.named_tuple_value.values:
            yield from _specs(each.value)


def find(
    inputs: Mapping[str, "TensorSpec"], known: frozenset[Kind] | None
) -> tuple[Composite, ...]:
    """Return the inputs of a signature that are parts of composite tensors.

    Args:
        inputs: dtype and shape by alias.
        known: which kinds the model takes at all; None where only the signature is known, whose
            names, types and shapes then decide alone.
    """
    found: list[Composite] = []
    parts: set[str] = set()
    for alias in inputs:
        candidate = None if alias in parts else _composite(alias, inputs)
        if candidate and (known is None or candidate.kind in known):
            found.append(candidate)
            parts.update(candidate.aliases)
    return tuple(found)


def _composite(alias: str, inputs: Mapping[str, "TensorSpec"]) -> Composite | None:
    names = list(takewhile(inputs.__contains__, (f"{alias}_{number}" for number in count(1))))
    if _is_sparse([inputs[name] for name in (alias, *names[:2])]):
        return Composite("sparse", (alias, *names[:2]))
    splits = list(takewhile(lambda name: _are_splits(inputs[name]), names))
    shape = inputs[alias].shape
    if splits and (shape is None or shape[:1] == (None,)):
        return Composite("ragged", (alias, *splits))
    return None


def _are_splits(spec: "TensorSpec") -> bool:
    is_index = spec.dtype is not None and spec.dtype.name in _INDEX_TYPES
    return is_index and spec.shape is not None and len(spec.shape) == 1


def _is_sparse(specs: list["TensorSpec"]) -> bool:
    shapes = [spec.shape for spec in specs]
    if [None if shape is None else len(shape) for shape in shapes] != [2, 1, 1]:
        return False
    (_, rank), _, (size,) = (shape or () for shape in shapes)
    are_indices = all(spec.dtype and spec.dtype.name == "int64" for spec in (specs[0], specs[2]))
    return are_indices and rank == size


def _ragged_fault(arrays: list[NDArray[Any]]) -> str:
    values, *levels = arrays
    if values.ndim == 0:
        return "ragged values need an axis"
    lengths = [*(len(each) - 1 for each in levels[1:]), len(values)]
    for splits, length in zip(levels, lengths, strict=True):
        if splits.ndim != 1 or not splits.size or splits[0] != 0 or (np.diff(splits) < 0).any():
            return f"row splits {splits.tolist()!s:.60} do not rise from 0"
        if splits[-1] != length:
            return f"row splits end at {splits[-1]}, but there are {length} values or rows"
    return ""


def _sparse_fault(arrays: list[NDArray[Any]]) -> str:
    indices, values, shape = arrays
    if indices.shape != (len(values), len(shape)):
        return f"indices {list(indices.shape)} do not fit {len(values)} values of rank {len(shape)}"
    if indices.size and ((indices < 0) | (indices >= shape)).any():
        return f"an index lies outside the shape {shape.tolist()}"
    return ""
