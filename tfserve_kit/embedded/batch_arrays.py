"""Arrays of several requests to one batch and back: pure functions.

Source: tensorflow_serving/batching/batching_session.cc and batching_util.cc (checks and texts).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.embedded.limits import MOST_FILLED_BYTES
from tfserve_kit.embedded.status import Code, ServingError, invalid

Arrays = Sequence[NDArray[Any]]
Feeds = Mapping[str, NDArray[Any]]


def rows(feeds: Feeds) -> int:
    """Return the batch size that all inputs share.

    Raises:
        ServingError: an input has no first axis, or they differ, or there is no row at all (the
            official server never answers such a request, and its queue is stuck from then on).
    """
    if any(array.ndim == 0 for array in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) != 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    (size,) = sizes
    if not size:
        raise invalid("Batching Run() input tensors must have at least one row")
    return size


def pieces(feeds: Feeds, sizes: Sequence[int]) -> list[Feeds]:
    """Return the feeds cut along the first axis into pieces of these sizes."""
    if len(sizes) == 1:
        return [feeds]
    cut = {name: _cut(array, sizes) for name, array in feeds.items()}
    return [{name: parts[i] for name, parts in cut.items()} for i in range(len(sizes))]


def merge(parts: Sequence[Feeds], padding: int, *, equal_lengths: bool) -> Feeds:
    """Return the feeds of several requests as those of one.

    Args:
        parts: feeds of each request, with the same names.
        padding: how many rows to add; each is the first one of the last request.
        equal_lengths: fill up the other axes to the longest of them.

    Raises:
        ServingError: the inputs of the requests differ in shape, or far more would be filled in
            than was sent: one long row makes all others as long.
    """
    filled_bytes = sum(_filled_bytes([part[name] for part in parts], padding) for name in parts[0])
    if filled_bytes > MOST_FILLED_BYTES:
        raise ServingError(
            Code.RESOURCE_EXHAUSTED,
            f"Padding the batch would take {filled_bytes} bytes; {MOST_FILLED_BYTES} at most are "
            "filled in",
        )
    return {
        name: _merged(name, [part[name] for part in parts], padding, equal_lengths=equal_lengths)
        for name in parts[0]
    }


def split(outputs: Arrays, sizes: Sequence[int], padding: int) -> list[Arrays]:
    """Return the rows of each request, without the padding.

    Raises:
        ServingError: an output has no row for each row of the input.
    """
    for output in outputs:
        if output.ndim == 0:
            raise ServingError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(output) != sum(sizes) + padding:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                "dimension sizes of the input tensors",
            )
    cut = [_cut(output, sizes) for output in outputs]
    return [[parts[i] for parts in cut] for i in range(len(sizes))]


def _cut(array: NDArray[Any], sizes: Sequence[int]) -> list[NDArray[Any]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(array[start : start + size])
        start += size
    return parts


def _filled_bytes(arrays: list[NDArray[Any]], padding: int) -> int:
    """Return how much larger than its parts a merged input is; parts of other ranks count alone."""
    if len({array.ndim for array in arrays}) > 1:
        return 0
    longest = map(max, zip(*(array.shape[1:] for array in arrays), strict=True))
    row_bytes = math.prod(longest) * arrays[0].itemsize
    rows = sum(len(array) for array in arrays) + padding
    return int(rows * row_bytes) - sum(array.nbytes for array in arrays)


def _merged(
    name: str, arrays: list[NDArray[Any]], padding: int, *, equal_lengths: bool
) -> NDArray[Any]:
    if len({array.shape[1:] for array in arrays}) > 1:
        if not equal_lengths:
            raise ServingError(
                Code.FAILED_PRECONDITION,
                f"Tensors with name '{name}' from different tasks have different shapes and "
                "padding is turned off.Set pad_variable_length_inputs to true, or ensure that "
                "all tensors with the same namehave equal dimensions starting with the first dim.",
            )
        arrays = _equally_long(name, arrays)
    if padding:
        arrays = [*arrays, np.repeat(arrays[-1][:1], padding, axis=0)]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _equally_long(name: str, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Pad every axis but the first to the longest, with each array's own first element."""
    if len({array.ndim for array in arrays}) > 1:
        raise invalid(f"Ranks of tensors with name '{name}' from different tasks differ")
    longest = np.max([array.shape[1:] for array in arrays], axis=0)
    padded = []
    for array in arrays:
        widths = [(0, 0), *((0, int(d)) for d in longest - np.array(array.shape[1:]))]
        filler = array.flat[0] if array.size else np.zeros((), array.dtype)[()]
        padded.append(np.pad(array, widths, constant_values=filler))
    return padded
