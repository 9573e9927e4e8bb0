"""Values from one process of ours to another, arrays as they lie in memory.

Each piece is one call of the system, however large: nothing else waits for Python meanwhile.
"""

import pickle
import socket
import struct
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COUNT = struct.Struct("!I")
_SIZE = struct.Struct("!Q")


class Strings:
    """An object array of bytes on its way: as objects they would be sent one by one.

    Args:
        array: object array of bytes, of any shape.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        items = array.ravel().tolist()
        self.shape = array.shape
        self.lengths = np.fromiter(map(len, items), np.int64, len(items))
        self.joined = np.frombuffer(b"".join(items), np.uint8)

    def array(self) -> NDArray[Any]:
        """Return the array again."""
        array, joined = np.empty(len(self.lengths), object), self.joined.data
        ends = accumulate(self.lengths, initial=0)
        for index, (begin, end) in enumerate(pairwise(map(int, ends))):
            array[index] = bytes(joined[begin:end])
        return array.reshape(self.shape)


def packed(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return arrays as they are best sent."""
    return {
        name: Strings(array) if array.dtype == object else np.asarray(array, order="C")
        for name, array in arrays.items()
    }


def unpacked(arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return arrays as they were before `packed`."""
    return {
        name: each.array() if isinstance(each, Strings) else each for name, each in arrays.items()
    }


def send(pipe: socket.socket, value: Any) -> None:
    """Send a value that can be pickled; raises OSError if the other process has gone."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(each.raw() for each in buffers)]
    sizes = b"".join(_SIZE.pack(part.nbytes) for part in parts)
    pipe.sendall(_COUNT.pack(len(parts)) + sizes)
    for part in parts:
        pipe.sendall(part)


def receive(pipe: socket.socket) -> Any:
    """Return what the other process has sent.

    Raises:
        EOFError: it has gone.
        OSError: it took longer than the socket allows.
    """
    (count,) = _COUNT.unpack(_exactly(pipe, _COUNT.size).data)
    sizes = _SIZE.iter_unpack(_exactly(pipe, count * _SIZE.size).data)
    head, *buffers = [_exactly(pipe, size) for (size,) in sizes]
    return pickle.loads(head.data, buffers=buffers)  # noqa: S301 (from a process of our own)


def _exactly(pipe: socket.socket, size: int) -> NDArray[np.uint8]:
    whole = np.empty(size, np.uint8)  # not a bytearray: that would be filled with zeros first
    view, at = whole.data, 0
    while at < size:
        got = pipe.recv_into(view[at:], 0, socket.MSG_WAITALL)
        if not got:
            raise EOFError
        at += got
    return whole
