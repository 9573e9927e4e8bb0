"""Arrays of several requests to one batch and back: pure functions.

Source: tensorflow_serving/batching/batching_session.cc and batching_util.cc (checks and texts).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.embedded import claims
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


def costs(parts: Sequence[Feeds], padding: int) -> list[int]:
    """Return how many bytes each request takes of a merged batch; the last one bears the padding.

    Args:
        parts: feeds of each request, with the same names.
        padding: how many rows are added.
    """
    found = [0] * len(parts)
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if len({array.ndim for array in arrays}) > 1:
            continue  # they are not merged
        row_size = math.prod(map(max, zip(*(array.shape[1:] for array in arrays), strict=True)))
        for index, array in enumerate(arrays):
            size = len(array) * row_size
            found[index] += _filled_bytes(array, size)
        if padding:
            first = arrays[-1][:1]
            texts = claims.text_bytes(first) if first.dtype.char == "O" else 0
            found[-1] += padding * (_filled_bytes(first, row_size) + texts)
    return found


def _filled_bytes(array: NDArray[Any], size: int) -> int:
    """Return what an array takes that is filled up to `size` elements with its first one."""
    text = len(array.flat[0]) if array.size and array.dtype.char == "O" else 0
    return size * array.itemsize + (size - array.size) * text


def merge(
    parts: Sequence[Feeds],
    padding: int,
    *,
    equal_lengths: bool,
    charge: Callable[[Sequence[int]], object] = bool,
) -> Feeds:
    """Return the feeds of several requests as those of one.

    Args:
        parts: feeds of each request, with the same names.
        padding: how many rows to add; each is the first one of the last request.
        equal_lengths: fill up the other axes to the longest of them.
        charge: told the `costs` of each request before anything is made; may raise.

    Raises:
        ServingError: the inputs of the requests differ in shape, or far more would be filled in
            than was sent: one long row makes all others as long.
    """
    if len(parts) == 1 and not padding:
        return parts[0]
    each = costs(parts, padding)
    filled_bytes = sum(each) - sum(array.nbytes for part in parts for array in part.values())
    if filled_bytes > MOST_FILLED_BYTES:
        raise ServingError(
            Code.RESOURCE_EXHAUSTED,
            f"Padding the batch would take {filled_bytes} bytes; {MOST_FILLED_BYTES} at most are "
            "filled in",
        )
    charge(each)
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
        return _equally_long(name, arrays, padding)
    if padding:
        last = arrays[-1][:1]
        arrays = [*arrays, np.broadcast_to(last, (padding, *last.shape[1:]))]
    return np.concatenate(arrays)


def _equally_long(name: str, arrays: list[NDArray[Any]], padding: int) -> NDArray[Any]:
    """Merge with every axis as long as the longest, filled up with each array's first element."""
    if len({array.ndim for array in arrays}) > 1:
        raise invalid(f"Ranks of tensors with name '{name}' from different tasks differ")
    longest = map(max, zip(*(array.shape[1:] for array in arrays), strict=True))
    merged = np.empty((sum(map(len, arrays)) + padding, *longest), arrays[0].dtype)
    start = 0
    for array in arrays:
        mine = merged[start : start + len(array)]
        mine[...] = array.flat[0] if array.size else _nothing(array)
        mine[(slice(None), *map(slice, array.shape[1:]))] = array
        start += len(array)
    merged[start:] = mine[:1]
    return merged


def _nothing(array: NDArray[Any]) -> Any:
    return b"" if array.dtype.char == "O" else np.zeros((), array.dtype)[()]
