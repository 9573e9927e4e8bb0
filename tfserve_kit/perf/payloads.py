"""Inputs to send, built before the clock starts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

if TYPE_CHECKING:
    from tfserve_kit.clients.results import Target
    from tfserve_kit.perf.sending.load import Payload, Protocol

Inputs = dict[str, NDArray[Any]]


def random_inputs(signature: Signature, batch: int, seed: int) -> Inputs:
    """Return random inputs that fit a signature.

    Args:
        signature: floats are drawn from 0 to 1, integers from 0 to 9, open axes have size 1.
        batch: size of the first axis, where it is open.
        seed: the same seed gives the same inputs.

    Raises:
        UsageError: an input is a string, or of a type that cannot be sent.
    """
    source = np.random.default_rng(seed)
    return {alias: _draw(alias, spec, batch, source) for alias, spec in signature.inputs.items()}


def several_random_inputs(signature: Signature, batch: int, seed: int, count: int) -> list[Inputs]:
    """Return `count` different random inputs; see `random_inputs`."""
    return [random_inputs(signature, batch, seed + number) for number in range(count)]


def recorded_inputs(arrays: Mapping[str, NDArray[Any]], batch: int) -> list[Inputs]:
    """Return arrays cut into inputs of `batch` rows each; what is left over at the end is not sent.

    Args:
        arrays: array [rows, ...] per input alias, all with as many rows.
        batch: rows of each input.

    Raises:
        UsageError: the arrays differ in rows, or have fewer than one batch.
    """
    rows = {alias: len(array) if array.ndim else 0 for alias, array in arrays.items()}
    if len(set(rows.values())) != 1 or min(rows.values()) < batch:
        raise UsageError(
            f"inputs with so many rows cannot be sent in batches of {batch}: {rows}",
            remedy="give as many rows for each input, and at least one batch",
        )
    count = min(rows.values()) // batch
    return [
        {alias: array[number * batch : (number + 1) * batch] for alias, array in arrays.items()}
        for number in range(count)
    ]


def encoded(
    protocol: "Protocol", url: str, target: "Target", inputs: Sequence[Inputs]
) -> list["Payload"]:
    """Return a Predict request for each of several inputs, as bytes; see `requests.predict`.

    They are sent in turn: a server that remembers answers, or whose cost depends on the input,
    shows it.
    """
    from tfserve_kit.perf import requests

    return [requests.predict(protocol, url, target, each) for each in inputs]


def _draw(alias: str, spec: TensorSpec, batch: int, source: np.random.Generator) -> NDArray[Any]:
    if spec.dtype is None or spec.dtype.numpy is None or spec.dtype is dtypes.STRING:
        raise UsageError(
            f"input {alias!r} is {spec}, which cannot be drawn at random",
            remedy="give pictures to send with --input",
        )
    first, *others = spec.shape or (None,)
    shape = [batch if first is None else first, *(size or 1 for size in others)]
    if spec.dtype.numpy.kind in "fc" or spec.dtype.name == "bfloat16":
        return source.random(shape).astype(spec.dtype.numpy)
    return source.integers(0, 2 if spec.dtype.numpy.kind == "b" else 10, shape).astype(
        spec.dtype.numpy
    )
