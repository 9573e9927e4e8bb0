"""How a graph scales and shifts pixels, and the range of pixels that it expects for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Affine:
    """`value * scale + offset`; the last node that changed either."""

    scale: float = 1.0
    offset: float = 0.0
    node: str = ""


def _shifted(affine: Affine, by: NDArray[Any], name: str, sign: int = 1) -> Affine:
    offset = affine.offset + sign * _typical(by)
    return Affine(affine.scale, offset, name if _typical(by) else affine.node)


def _scaled(affine: Affine, by: float, name: str) -> Affine | None:
    if not np.isfinite(by) or by == 0:
        return None
    return Affine(affine.scale * by, affine.offset * by, name if by != 1 else affine.node)


def _subtracted(affine: Affine, other: NDArray[Any], at: int, name: str) -> Affine | None:
    if at == 0:
        return _shifted(affine, other, name, -1)
    negative = _scaled(affine, -1.0, name)
    return negative and _shifted(negative, other, name)


def _divided(affine: Affine, other: NDArray[Any], at: int, name: str) -> Affine | None:
    typical = _typical(other)
    return _scaled(affine, 1 / typical, name) if at == 0 and typical else None


def _typical(values: NDArray[Any]) -> float:
    """Return one number for a constant, such as a mean per channel."""
    return float(np.mean(values.astype(np.float64)))


ARITHMETIC: Mapping[str, Callable[[Affine, NDArray[Any], int, str], Affine | None]] = {
    "Add": lambda affine, other, _, name: _shifted(affine, other, name),
    "AddV2": lambda affine, other, _, name: _shifted(affine, other, name),
    "BiasAdd": lambda affine, other, _, name: _shifted(affine, other, name),
    "Sub": _subtracted,
    "Mul": lambda affine, other, _, name: _scaled(affine, _typical(other), name),
    "Div": _divided,
    "RealDiv": _divided,
    "DivNoNan": _divided,
}

_WHOLE_RANGE, _UNIT, _SIGNED = (0.0, 255.0), (0.0, 1.0), (-1.0, 1.0)
_SMALL_SCALE = 0.05  # 1/255, 1/127.5, 1/58: only bytes need it
_LARGE_SHIFT = 2.0  # a mean of pixels in 0-255; one of pixels in 0-1 is below 1
_MOST_SCALE = 8.0  # 1/0.229 and the like, of a deviation of pixels in 0-1


def expected_range(affine: Affine) -> tuple[float, float] | None:
    """Return the range of pixels that a model wants which scales and shifts them so first.

    The network behind takes numbers around zero, up to a few units large, or what an older one was
    trained on, 0 to 255. One that does nothing to them does not tell what it was trained on.
    """
    scale, offset = abs(affine.scale), affine.offset
    if scale < _SMALL_SCALE or (scale == 1 and abs(offset) >= _LARGE_SHIFT):
        return _WHOLE_RANGE
    for wanted_scale, wanted_offset, found in (
        (255.0, 0.0, _UNIT),  # to 0-255, from 0-1
        (127.5, 127.5, _SIGNED),  # to 0-255, from -1 to 1
        (0.5, 0.5, _SIGNED),  # to 0-1, from -1 to 1
    ):
        if np.isclose(scale, wanted_scale, 0.01) and np.isclose(offset, wanted_offset, 0.01, 0.01):
            return found
    if 1 <= scale <= _MOST_SCALE and offset <= 0 and (scale, offset) != (1, 0):
        return _UNIT
    return None
