"""Arrays of every dtype and memory layout, drawn by hypothesis."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfserve_kit.tensors import dtypes

NUMBERS = [row for row in dtypes.TABLE if row is not dtypes.STRING]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
TEXT = st.text(max_size=5)
# How the same values may lie in memory.
LAYOUTS = {
    "plain": lambda array: array,
    "big endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "transposed": np.asfortranarray,
    "every second": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    "reversed": lambda array: array[::-1] if array.ndim else array,
    "read-only": lambda array: np.broadcast_to(array, (2, *array.shape)),
}


@st.composite
def arrays(draw):
    """Draw an array of numbers of any dtype of the table, in any memory layout."""
    row = draw(st.sampled_from(NUMBERS))
    shape = draw(SHAPES)
    if row is dtypes.BFLOAT16:
        array = draw(hnp.arrays(np.uint16, shape)).view(row.numpy)
    else:
        array = draw(hnp.arrays(row.numpy, shape))
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    if row is dtypes.BFLOAT16 and layout == "big endian":
        return array
    return LAYOUTS[layout](array)


def string_array(items, shape):
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


@st.composite
def string_arrays(draw):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    count = int(np.prod(shape))
    items = draw(st.lists(st.binary(max_size=5) | TEXT, min_size=count, max_size=count))
    return string_array(items, shape)
