"""Inputs to send, built before the clock starts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

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
