"""Inputs checked against a signature before they are sent: names, types and shapes.

The server refuses a wrong type in words of its own, and does not look at shapes at all: there the
model fails somewhere inside. What can be converted without loss is converted here. Examples for
classify and regress are made of plain Python values.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfserve_kit import protos
from tfserve_kit.clients.results import Target
from tfserve_kit.errors import InvalidRequest, did_you_mean
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

Inputs = Mapping[str, ArrayLike] | ArrayLike
"""Array per input alias; or an array alone, for a signature with one input."""


def fit(
    inputs: Inputs, signature: Signature, target: Target, *, takes_defaults: bool = True
) -> dict[str, NDArray[Any]]:
    """Return the inputs as arrays of exactly the types that the signature names.

    Integers and bools are converted where every value stays the same; real numbers may be rounded,
    as numpy's own float64 is to float32, but not cut to integers. Text goes as UTF-8.

    Args:
        inputs: array per alias, or one alone where the signature has one input.
        signature: what they are for.
        target: the model, for the messages.
        takes_defaults: whether inputs for which the model has a default may be left out.

    Raises:
        InvalidRequest: an input is missing, unknown, of another type or shape.
    """
    named = _named(inputs, signature, target)
    fitted = {}
    for alias, value in named.items():
        spec = signature.inputs.get(alias)
        if spec is None:
            raise InvalidRequest(
                f"{target} has no input {alias!r} in signature {signature.name!r}",
                remedy=did_you_mean(str(alias), signature.inputs),
            )
        fitted[alias] = _fitted(value, alias, spec, target)
    if len(fitted) != len(signature.inputs):
        _check_missing(fitted, signature, target, takes_defaults=takes_defaults)
    return fitted


def check_filter(output_filter: Iterable[str], signature: Signature, target: Target) -> None:
    """Refuse output aliases that the signature does not have.

    Raises:
        InvalidRequest: it names another.
    """
    for alias in output_filter:
        if alias not in signature.outputs:
            raise InvalidRequest(
                f"{target} has no output {alias!r} in signature {signature.name!r}",
                remedy=did_you_mean(alias, signature.outputs),
            )


def unchecked(inputs: Inputs) -> Mapping[str, ArrayLike]:
    """Return inputs by alias where the signature is not known.

    Raises:
        InvalidRequest: they have no names, or values are masked.
    """
    if isinstance(inputs, Mapping):
        for alias, value in inputs.items():
            if isinstance(value, np.ma.MaskedArray) and _holds_masked(value):
                raise InvalidRequest(
                    f"cannot send the input {alias!r}: some of its values are masked",
                    remedy="fill them as you mean it: .filled(0)",
                )
        return inputs
    raise InvalidRequest(
        "cannot send the input: it has no name, and check=False leaves the signature unread",
        remedy="give {alias: array}, or leave out check=False",
    )


def _named(inputs: Inputs, signature: Signature, target: Target) -> Mapping[str, ArrayLike]:
    if isinstance(inputs, Mapping):
        return inputs
    needed = [alias for alias in signature.inputs if alias not in signature.optional]
    names = needed or list(signature.inputs)
    if len(names) != 1:
        raise InvalidRequest(
            f"{target} has {len(names)} inputs, but the value given has no name",
            remedy=f"give {{alias: array}} with the inputs {', '.join(names)}",
        )
    return {names[0]: inputs}


def _check_missing(
    fitted: Mapping[str, object], signature: Signature, target: Target, *, takes_defaults: bool
) -> None:
    missing = [alias for alias in signature.inputs if alias not in fitted]
    if needed := [alias for alias in missing if alias not in signature.optional]:
        raise InvalidRequest(
            f"{target} also needs the inputs {', '.join(needed)} for {signature.name!r}",
            remedy="give them as well; `tfkit metadata` lists what the model takes",
        )
    if missing and not takes_defaults:
        raise InvalidRequest(
            f"{target} has defaults for the inputs {', '.join(missing)}, but not over REST",
            remedy=f"add {', '.join(map(repr, missing))} to the request, or use gRPC: --protocol "
            "grpc, or --url grpc://HOST:PORT",
        )


def _fitted(value: ArrayLike, alias: str, spec: TensorSpec, target: Target) -> NDArray[Any]:
    """Return one input in the type of the signature; the first lines are the usual case."""
    try:
        array = value if type(value) is np.ndarray else _array(value)
        if array.dtype.kind in "OU":
            array = _by_content(array)
        given = dtypes.by_numpy(array.dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"cannot send the input {alias!r} of {target}: {error}",
            remedy=f"give it as {spec}, in lists of equal length on each level",
        ) from error
    wanted = spec.dtype
    if given is not wanted and wanted is not None:
        try:
            array = dtypes.convert(array, wanted)
        except dtypes.CannotConvert as error:
            raise InvalidRequest(
                f"cannot send the input {alias!r} of {target}: it is {given.name}, "
                f"the model takes {wanted.name}{error}",
                remedy=error.remedy,
            ) from error
    if not spec.takes(array.shape):
        raise InvalidRequest(
            f"cannot send the input {alias!r} of {target}: its shape is {list(array.shape)}, "
            f"the model takes {spec}",
            remedy=_remedy_for_shape(array.shape, spec),
        )
    return array


def _array(value: ArrayLike) -> NDArray[Any]:
    """Return an array of Python values; numpy alone would cut trailing zeros off bytes.

    Raises:
        ValueError: some of the values are masked, of which numpy would send what lies beneath.
    """
    array = np.asarray(value)
    _refuse_masked(value, array)
    return np.array(value, object) if array.dtype.kind in "SU" else array


def _refuse_masked(value: Any, array: NDArray[Any]) -> None:
    """Refuse masked values; those within lists are looked for where numpy left a trace of them.

    Args:
        value: as it was given.
        array: what numpy made of it.

    Raises:
        ValueError: some are masked.
    """
    if isinstance(value, list | tuple):
        nested = any(isinstance(each, np.ma.MaskedArray) for each in value)
        has_trace = nested or (array.dtype.kind == "f" and bool(np.isnan(array).any()))
        masked = has_trace and _holds_masked(value)
    else:
        masked = _holds_masked(value)
    if masked:
        raise ValueError("some of its values are masked; fill them as you mean it: .filled(0)")


def _holds_masked(value: Any) -> bool:
    if isinstance(value, np.ma.MaskedArray):
        return bool(np.ma.getmaskarray(value).any())
    return isinstance(value, list | tuple) and any(map(_holds_masked, value))


def _by_content(array: NDArray[Any]) -> NDArray[Any]:
    """Return an object array as what it holds: text and bytes as it is, else numbers.

    Raises:
        TypeError: it holds something else, or both.
        ValueError: it holds text that UTF-8 has no form for.
    """
    items = array.ravel().tolist()
    if set(map(type, items)) == {bytes}:
        return array  # the usual case
    odd = [item for item in items if not isinstance(item, str | bytes)]
    if not odd:
        _require_unicode(items)
        return array
    plain = np.array(array.tolist()) if len(odd) == len(items) else array
    if plain.dtype.kind in "biufc" and plain.shape == array.shape:
        return plain
    strange = [item for item in odd if not isinstance(item, bool | int | float | complex)] or odd
    raise TypeError(
        f"it holds {strange[0]!r:.40}, of type {type(strange[0]).__name__}: "
        "neither all text and bytes nor all numbers"
    )


def _require_unicode(items: Iterable[str | bytes]) -> None:
    for item in items:
        if isinstance(item, str) and not item.isascii():
            item.encode()  # UnicodeEncodeError is a ValueError


def _remedy_for_shape(shape: tuple[int, ...], spec: TensorSpec) -> str:
    if spec.takes((1, *shape)):
        return "the batch axis is missing: send array[numpy.newaxis]"
    return "reshape the input; ? stands for any size"


Features = Mapping[str, ArrayLike] | bytes
"""A value or a list of values per feature, or a serialized tf.Example."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# numpy's kind of the values -> the list of a tf.Example's feature
_LISTS = {
    "f": "float_list",
    "b": "int64_list",
    "i": "int64_list",
    "u": "int64_list",
    "O": "bytes_list",
    "S": "bytes_list",
    "U": "bytes_list",
}


def to_examples(rows: Iterable[Features]) -> list[Any]:
    """Return a tf.Example message for each row.

    Args:
        rows: numbers, text or bytes by name of the feature, alone or as a list; whole numbers and
            bools become int64, other numbers float32, text UTF-8. Or serialized messages.

    Raises:
        InvalidRequest: there is none, or a feature is nothing of that kind.
    """
    examples = [_example(number, row) for number, row in enumerate(rows)]
    if not examples:
        raise InvalidRequest("there are no examples to send", remedy="give at least one")
    return examples


def _example(number: int, row: Features) -> Any:
    try:
        if isinstance(row, bytes):
            return protos.Example.FromString(row)
        example = protos.Example()
        for name, value in row.items():
            _fill(example.features.feature[name], value)
    except (protos.DecodeError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(
            f"cannot send example {number}: {error}",
            remedy="give numbers, text or bytes by name of the feature",
        ) from error
    return example


def _fill(feature: Any, value: ArrayLike) -> None:
    alone = isinstance(value, str | bytes)  # numpy alone would cut trailing zeros of bytes
    array = np.array([value], object) if alone else np.atleast_1d(np.asarray(value))
    if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
        array = np.array(value, object)
    _refuse_masked(value, array)
    require_float32(array)
    if array.ndim != 1 or array.dtype.kind not in _LISTS:
        raise ValueError(f"{value!r:.80} is neither a value nor a flat list of values")
    values = (array.astype(np.int64) if array.dtype.kind == "b" else array).tolist()
    if array.dtype.kind in "OSU":
        values = [item.encode() if isinstance(item, str) else item for item in values]
    if values:  # an empty list has no kind, and fits every one
        getattr(feature, _LISTS[array.dtype.kind]).value.extend(values)


def require_float32(array: NDArray[Any]) -> None:
    """Refuse numbers that would be infinite in a feature, whose real numbers are float32.

    Raises:
        ValueError: there is one.
    """
    if array.dtype.kind == "f" and (np.abs(array[np.isfinite(array)]) > _FLOAT32_MAX).any():
        raise ValueError(f"{array.tolist()!r:.80} holds a number beyond float32")


def to_json(example: Any) -> dict[str, Any]:
    """Return a tf.Example message as the REST API writes it: a list of values per feature."""
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        if kind == "bytes_list":
            values = [{"b64": base64.b64encode(value).decode("ascii")} for value in values]
        found[name] = values
    return found
