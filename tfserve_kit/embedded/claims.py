"""What a request makes of memory, told from its bytes before anything is made of them.

Two bytes of a message can become a hundred as an object, and a JSON object takes thirty times its
text. All figures are upper bounds that were measured, so that an account can be asked beforehand.
What is small is not counted: as many requests as run at once cannot make it matter.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.embedded.limits import UNCOUNTED_BYTES
from tfserve_kit.tensors import varint

# A field of so many bytes or more that holds plain bytes costs them twice: in the message, and as
# an array or string of its own.
_BULK_BYTES = 1024
_BULK_TIMES = 2
# So many fields are looked at; the rest counts as if it were all made of the smallest.
_MOST_FIELDS = 500

_JSON_TIMES = 4
_JSON_WIDE_TIMES = 16  # text beyond ASCII may take four bytes a character, whole and in parts
_JSON_VALUE_BYTES = 130  # per bracket, comma or colon
_BULK_JSON_TIMES = 6  # where the tokens are, and copies
_BULK_NUMBER_BYTES = 40  # as a token, as a double, and as what it is to be
_STRING_BYTES = 64  # a string as an object, and once more within tensorflow

_ANSWERED_NUMBER_BYTES = 64  # as a Python number, as text, and as a piece of the answer
_ANSWERED_STRING_BYTES = 200
_RESULT_BYTES = 300  # a class or a value, and a row of them: a pair, a message, a piece of text
_ESCAPED_TIMES = 8  # a control character in JSON takes six bytes


@dataclass(frozen=True, slots=True)
class _Message:
    """What a message costs: `times` its bytes, but for fields of plain bytes and within others."""

    times: int
    bulk: frozenset[int] = frozenset()
    inner: "dict[int, _Message]" = field(default_factory=dict)


# Field numbers: tensorflow/core/framework/tensor.proto, tensorflow/core/example/*.proto,
# tensorflow_serving/apis/{predict,classification,regression,inference,input}.proto.
_TENSOR = _Message(28, bulk=frozenset({4, 5, 6, 8, 9, 12}))
_VALUES = _Message(28, bulk=frozenset({1}))
_FEATURE = _Message(28, inner={1: _VALUES, 2: _VALUES})
_EXAMPLE = _Message(28, inner={1: _Message(28, inner={1: _Message(28, inner={2: _FEATURE})})})
_INPUT = _Message(
    28, inner={1: _Message(28, inner={1: _EXAMPLE}), 2: _Message(28, inner={1: _EXAMPLE})}
)
_EXAMPLES = _Message(28, inner={2: _INPUT})
_PREDICT = _Message(90, inner={2: _Message(90, inner={2: _TENSOR})})
_OTHER = _Message(150)
# tensorflow_serving/apis/prediction_log.proto, of which the requests are read.
_LOG = _Message(
    150,
    inner={
        **{number: _Message(150, inner={1: _EXAMPLES}) for number in (2, 3, 4)},
        6: _Message(150, inner={1: _PREDICT}),
    },
)
_MESSAGES = {
    "Predict": _PREDICT,
    "Classify": _EXAMPLES,
    "Regress": _EXAMPLES,
    "MultiInference": _EXAMPLES,
    "PredictionLog": _LOG,
}


def of_message(method: str, body: bytes) -> int:
    """Return what a serialized request becomes when it is parsed and its tensors are read.

    Args:
        method: such as `Predict`; or `PredictionLog`, a request as it is stored.
        body: the request; need not be valid.
    """
    if len(body) <= UNCOUNTED_BYTES:
        return 0
    left, cost = _MOST_FIELDS, 0
    stack = [(_MESSAGES.get(method, _OTHER), 0, len(body))]
    while stack:
        message, at, end = stack.pop()
        while at < end:
            start, left = at, left - 1
            if left < 0:
                cost += message.times * (end - at)
                break
            number, begin, at = _field(body, at, end)
            if at - begin >= _BULK_BYTES and number in message.inner:
                stack += [(message, at, end), (message.inner[number], begin, at)]
                break
            bulk = at - begin >= _BULK_BYTES and number in message.bulk
            cost += (_BULK_TIMES if bulk else message.times) * (at - start)
    return cost


def _field(body: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Return a field's number, and where its content begins and ends; all of the rest if bad."""
    try:
        tag, begin = varint.decode(body, at, bits=32)
        match tag & 7:
            case 0:
                _, stop = varint.decode(body, begin, bits=64)
            case 1:
                stop = begin + 8
            case 2:
                size, begin = varint.decode(body, begin, bits=32)
                stop = begin + size
            case 5:
                stop = begin + 4
            case _:
                return 0, at, end
    except ValueError:
        return 0, at, end
    return tag >> 3, begin, min(stop, end)


def of_json(body: bytes) -> int:
    """Return what a JSON text becomes when it is parsed into Python objects."""
    if len(body) <= UNCOUNTED_BYTES:
        return 0
    values = len(body) - len(body.translate(None, b"[{,:"))
    times = _JSON_TIMES if body.isascii() else _JSON_WIDE_TIMES
    return times * len(body) + _JSON_VALUE_BYTES * values


def of_json_numbers(body: bytes) -> int:
    """Return what a JSON text takes while it is read as one array of numbers."""
    if len(body) <= UNCOUNTED_BYTES:
        return 0
    numbers = np.count_nonzero(np.frombuffer(body, np.uint8) == ord(","))
    return _BULK_JSON_TIMES * len(body) + _BULK_NUMBER_BYTES * int(numbers)


def of_arrays(arrays: Iterable[NDArray[Any]]) -> int:
    """Return what arrays take, here and as tensors, the strings in string arrays included."""
    size_bytes = 0
    for array in arrays:
        size_bytes += array.nbytes
        if array.dtype.char == "O":
            size_bytes += _STRING_BYTES * array.size + text_bytes(array)
    return size_bytes if size_bytes > UNCOUNTED_BYTES else 0


def of_answer(arrays: Iterable[NDArray[Any]], *, as_text: bool) -> int:
    """Return what encoding outputs takes, the answer included.

    Args:
        arrays: the outputs.
        as_text: whether each number becomes an object: in JSON, and in typed fields that are no
            plain bytes.
    """
    size_bytes = 0
    for array in arrays:
        size, kind = array.size, array.dtype.char
        if not size and as_text:  # lists of nothing are something
            size_bytes += _ANSWERED_NUMBER_BYTES * math.prod(filter(None, array.shape))
        elif kind == "O":
            size_bytes += _ANSWERED_STRING_BYTES * size + _ESCAPED_TIMES * text_bytes(array)
        elif as_text or kind not in "fd?":
            size_bytes += _ANSWERED_NUMBER_BYTES * size
        else:
            size_bytes += 2 * array.nbytes
    return size_bytes if size_bytes > UNCOUNTED_BYTES else 0


def of_results(arrays: Iterable[NDArray[Any]]) -> int:
    """Return what classes, scores and values take, and become as objects and in the answer."""
    size_bytes = 0
    for array in arrays:
        size_bytes += _RESULT_BYTES * (array.size + len(array) if array.ndim else 1)
        if array.dtype.char == "O":
            size_bytes += _ESCAPED_TIMES * text_bytes(array)
    return size_bytes if size_bytes > UNCOUNTED_BYTES else 0


def text_bytes(array: NDArray[Any]) -> int:
    """Return the length of all strings; one that stands for all (a stride of 0) is asked once."""
    if array.size and not any(array.strides):
        return len(array.flat[0]) * array.size
    return sum(map(len, np.ravel(array).tolist()))
