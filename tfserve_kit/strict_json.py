"""JSON that every parser reads: the standard has no notation for NaN and the infinities.

Python's own json module writes them as bare words, at which most others stop. Here they are texts,
`"NaN"`, `"Infinity"` and `"-Infinity"`, as protobuf's JSON has them.
"""

import json
import math
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """Return a value as JSON by the standard.

    Args:
        value: as `json.dumps` takes it.
        options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # it holds one of the three, or is none at all, which is told below
        return json.dumps(_spelled(value), allow_nan=False, **options)


def _spelled(value: Any) -> Any:
    """Return a value in which NaN and the infinities are texts, on all levels."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {_key(key): _spelled(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(each) for each in value]
    return value


def _key(key: Any) -> Any:
    return _spelled(key) if isinstance(key, float) else key
