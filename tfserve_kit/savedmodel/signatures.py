"""How a model is called: its signatures, which inputs belong together, which axes count rows.

Ragged and sparse inputs are one tensor to the model and several to its callers. A signature names
the parts of an input `r` as `r`, `r_1`, `r_2` ...: a ragged tensor has its values and then, from
the outermost level on, where the rows of each level begin and end; a sparse tensor has indices,
values and the shape of the whole.

Neither TensorFlow nor its server knows batch axes; both go by the first axis of whatever they are
given. Here it is told from the signature what that does, the one answer for whoever draws, cuts,
joins or batches:

- an input whose first axis is open has a row in it for each example;
- an input without axes, or with a fixed first axis beside open ones, is a parameter: it belongs to
  the request as a whole, and is sent as it is;
- where first axes are fixed in all inputs and outputs, to the same number, every request must have
  just so many rows;
- the parts of ragged and sparse tensors count something else, and cannot be cut or joined;
- an output whose first axis is fixed beside open inputs, or that has none, is not row by row.

Source: tensorflow/python/ops/ragged/ragged_tensor.py (RaggedTensorSpec),
tensorflow/python/framework/sparse_tensor.py (SparseTensorSpec), and
tensorflow/core/protobuf/struct.proto for what a SavedModel says of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import Problem, Severity, TfkitError, UsageError, did_you_mean, worst_first
from tfserve_kit.tensors import dtypes
from tfserve_kit.tensors.dtypes import DType
from tfserve_kit.tensors.proto import MAX_RANK

Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int | None, ...] | None
Kind = Literal["ragged", "sparse"]

DEFAULT_SIGNATURE = "serving_default"
# Signatures through which TensorFlow runs initializers; not ones to call.
INIT_SIGNATURE = "__saved_model_init_op"
INTERNAL_SIGNATURES = frozenset({INIT_SIGNATURE, "__saved_model_train_op"})

_KINDS: Mapping[str, Kind] = {"RAGGED_TENSOR_SPEC": "ragged", "SPARSE_TENSOR_SPEC": "sparse"}
_INDEX_TYPES = {"int32", "int64"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a signature.

    Attributes:
        name: name of the tensor in the graph, such as `serving_default_x:0`.
        dtype: its type; None for types that cannot travel (resource, variant).
        shape: sizes by axis with None where any size goes; None if even the rank is open.
    """

    name: str
    dtype: DType | None
    shape: tuple[int | None, ...] | None

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Say whether a value of a shape fits."""
        if self.shape is None:
            return True
        if len(shape) != len(self.shape):
            return False
        for size, wanted in zip(shape, self.shape, strict=True):
            if wanted is not None and wanted != size:
                return False
        return True

    def __str__(self) -> str:
        axes = ["?" if size is None else str(size) for size in self.shape or ()]
        shape = "[" + ", ".join(axes) + "]" if self.shape is not None else "[...]"
        return f"{self.dtype.name if self.dtype else 'opaque'} {shape}"


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
        names = ["indices", "values", "dense_shape"]
        if self.kind == "ragged":
            levels = len(self.aliases) - 1
            splits = [f"row_splits of level {at + 1}" for at in range(levels)]
            names = ["values", *(splits if levels > 1 else ["row_splits"])]
        parts = [f"{alias!r} ({name})" for alias, name in zip(self.aliases, names, strict=True)]
        listed = f"{', '.join(parts[:-1])} and {parts[-1]}"
        return f"inputs {listed} are the parts of one {self.kind} tensor"


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call a model: inputs and outputs by alias.

    `optional` names the inputs that have a default in the model and may be left out, over gRPC;
    `composites` those that are parts of ragged and sparse tensors.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    method_name: str
    optional: frozenset[str] = frozenset()
    composites: tuple[Composite, ...] = ()


def choose_signature(
    signatures: Mapping[str, Signature],
    name: str = "",
    *,
    of: str = "the model",
    error: type[TfkitError] = UsageError,
) -> Signature:
    """Return the signature of a name.

    Args:
        signatures: those of the model, by name.
        name: what is looked up; empty for `serving_default`.
        of: the model, for the message.
        error: what a missing one is for the caller.

    Raises:
        TfkitError: as `error` says, there is none of that name.
    """
    wanted = name or DEFAULT_SIGNATURE
    if wanted not in signatures:
        text = f"{of} has no signature {wanted!r}"
        raise error(text, remedy=f"{did_you_mean(wanted, signatures)} (--signature)")
    return signatures[wanted]


def parse_signatures(
    signature_defs: Mapping[str, Any], kinds: frozenset[Kind] | None = None
) -> dict[str, Signature]:
    """Return the callable signatures of a `map<string, SignatureDef>`, by name.

    Args:
        signature_defs: as a graph holds them, and a server answers with.
        kinds: which composite tensors the model takes; None where that is not known, and the
            names, types and shapes of inputs decide alone.

    Raises:
        ValueError: one of their tensors has more dimensions than TensorFlow knows.
    """
    return {
        name: _signature(name, definition, kinds)
        for name, definition in sorted(signature_defs.items())
        if name not in INTERNAL_SIGNATURES
    }


def graph_signatures(graph: Any) -> dict[str, Signature]:
    """Return the callable signatures of a MetaGraphDef, by name."""
    return parse_signatures(graph.signature_def, _composite_kinds(graph.object_graph_def))


def _signature(name: str, definition: Any, kinds: frozenset[Kind] | None) -> Signature:
    inputs = {alias: _tensor(info) for alias, info in sorted(definition.inputs.items())}
    outputs = {alias: _tensor(info) for alias, info in sorted(definition.outputs.items())}
    return Signature(
        name, inputs, outputs, definition.method_name, frozenset(definition.defaults),
        find_composites(inputs, kinds),
    )  # fmt: skip


def _tensor(info: Any) -> TensorSpec:
    try:
        dtype = dtypes.by_number(info.dtype)
    except KeyError:
        dtype = None
    shape = info.tensor_shape
    if len(shape.dim) > MAX_RANK:
        raise ValueError(f"tensor {info.name!r:.80} has {len(shape.dim):,} dimensions")
    axes = tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
    return TensorSpec(info.name, dtype, None if shape.unknown_rank else axes)


def _composite_kinds(object_graph: Any) -> frozenset[Kind]:
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


def find_composites(
    inputs: Mapping[str, TensorSpec], known: frozenset[Kind] | None
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


def _composite(alias: str, inputs: Mapping[str, TensorSpec]) -> Composite | None:
    names = list(takewhile(inputs.__contains__, (f"{alias}_{number}" for number in count(1))))
    if _is_sparse([inputs[name] for name in (alias, *names[:2])]):
        return Composite("sparse", (alias, *names[:2]))
    splits = list(takewhile(lambda name: _are_splits(inputs[name]), names))
    shape = inputs[alias].shape
    if splits and (shape is None or shape[:1] == (None,)):
        return Composite("ragged", (alias, *splits))
    return None


def _are_splits(spec: TensorSpec) -> bool:
    is_index = spec.dtype is not None and spec.dtype.name in _INDEX_TYPES
    return is_index and spec.shape is not None and len(spec.shape) == 1


def _is_sparse(specs: list[TensorSpec]) -> bool:
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


_ACCEPT = "push it as another model, or accept it: --allow-breaking"


def _breaks(place: str, text: str) -> Problem:
    """Return a change that callers of the old version notice."""
    return Problem(place, text, _ACCEPT)


def _fits(place: str, text: str) -> Problem:
    """Return a change that they do not notice."""
    return Problem(place, text, severity=Severity.INFO)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Problem]:
    """Compare two `map<string, SignatureDef>`, the one in service with its successor.

    A change breaks callers if a request that was answered is refused by the new version, or if an
    answer no longer has what they read from it.

    Source: tensorflow_serving/servables/tensorflow/predict_util.cc (all inputs without a default
    must be given, and no others).

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

    A size that was open and is known now, or the other way round, counts as the same.
    """
    if old is None or new is None:
        return False
    if len(old) != len(new):
        return True
    sizes = list(zip(old, new, strict=True))
    if sizes and sizes[0][0] is None and sizes[0][1] is not None:
        return True
    return any(None not in {before, after} and before != after for before, after in sizes)
