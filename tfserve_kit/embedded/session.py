"""A loaded graph in a session: nothing reaches tensorflow's native code that would end the process.

Its conversion to and from numpy does not look at how many dimensions an array of strings has: it
walks them with an iterator that knows 32, and reads through a null pointer for more. Numbers are
copied whole, and what else does not fit (types, names, sizes) is refused with a text.
"""

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.limits import MOST_CALLABLES, MOST_STRING_DIMENSIONS
from tfserve_kit.embedded.servable import too_deep
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.tensors import dtypes

Compiled = Callable[..., Sequence[NDArray[Any]]]

# Runs the operations in the calling thread: a request has a thread of its own already.
_CALLERS_THREAD = -1
# What numpy can hold of an output: our table, and quantized integers as the plain ones they are.
_QUANTIZED = {11, 12, 13, 15, 16}
_ANSWERED = {row.number for row in dtypes.TABLE} | _QUANTIZED


@dataclass(frozen=True, slots=True)
class Runtime:
    """The few parts of tensorflow that serving needs."""

    config_pb2: Any
    errors: Any
    graph: Any
    session: Any
    reader: Any
    placeholder: Any
    multiply: Any
    reshape: Any
    shape: Any


class SessionServable:
    """A SavedModel in a session; implements `Servable`.

    Args:
        tf: tensorflow.
        session: the session, with a graph that may be added to.
        signatures: SignatureDef messages by name.
        compiled: whether calls are compiled; otherwise they go through Session.run.
    """

    def __init__(
        self, tf: Runtime, session: Any, signatures: Mapping[str, Any], *, compiled: bool
    ) -> None:
        self._tf = tf
        self._session = session
        self._signatures = signatures
        self._make = compiled_call if compiled else _plain_call
        self._lock = threading.Lock()
        # Clients choose outputs and their order, and each choice is compiled by itself.
        self._call = lru_cache(MOST_CALLABLES)(self._new_call)
        self._flattened: dict[str, tuple[str, str]] = {}

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef messages by name."""
        return self._signatures

    def run(
        self,
        feeds: Mapping[str, NDArray[Any]],
        fetches: Sequence[str],
        *,
        call: Call | None = None,
    ) -> Sequence[NDArray[Any]]:
        """Compute `fetches` from `feeds`; see `Servable.run`.

        The deadline changes nothing: a compiled call cannot be interrupted.
        """
        del call
        for name, value in feeds.items():
            if value.ndim > MOST_STRING_DIMENSIONS and value.dtype.kind not in dtypes.NUMBERS:
                raise too_deep(name, value.ndim)
        try:
            return self._call(tuple(feeds), tuple(fetches))(*feeds.values())
        except Exception as error:
            raise translated(self._tf, error) from error

    def close(self) -> None:
        """Free the session's variables and graph."""
        self._call.cache_clear()
        self._session.close()
        _return_memory()

    def _new_call(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Compiled:
        """Return what computes `fetches`; strings are computed flat, and their shapes beside."""
        with self._lock:
            parts = [self._parts(name) for name in fetches]
            wanted = [name for each in parts for name in each]
            call = self._make(self._tf, self._session, feeds, wanted)
        if len(wanted) == len(fetches):
            return call

        def run(*values: NDArray[Any]) -> list[NDArray[Any]]:
            found = iter(call(*values))
            return [
                next(found) if len(each) == 1 else _shaped(next(found), next(found))
                for each in parts
            ]

        return run

    def _parts(self, name: str) -> tuple[str, ...]:
        """Return the tensors that a tensor of the graph is fetched as; checks its type."""
        graph = self._session.graph
        try:
            tensor = graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
        except (KeyError, ValueError, TypeError) as error:
            raise invalid(
                f"Tensor {name}, specified in either feed_devices or fetch_devices was not found "
                "in the Graph"
            ) from error
        number = tensor.dtype.base_dtype.as_datatype_enum
        if number != dtypes.STRING.number:
            if number not in _ANSWERED:
                text = f"Output tensor {name} cannot be answered: it is {tensor.dtype.name}"
                raise ServingError(Code.UNIMPLEMENTED, text)
            return (name,)
        if name not in self._flattened:
            with graph.as_default():
                flat = self._tf.reshape(tensor, [-1])
                shape = self._tf.shape(tensor, out_type="int64")
            self._flattened[name] = flat.name, shape.name
        return self._flattened[name]


def _shaped(flat: NDArray[Any], shape: NDArray[Any]) -> NDArray[Any]:
    try:
        return flat.reshape(tuple(shape.tolist()))
    except ValueError as error:  # numpy knows fewer dimensions than tensorflow
        raise invalid(f"An output has {len(shape)} dimensions, more than numpy has") from error


def _return_memory() -> None:
    """Give an unloaded model's memory back to the system.

    A graph is a ring of references, which only the collector finds; and glibc by itself keeps what
    was freed for later.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def compiled_call(
    tf: Runtime, session: Any, feeds: Sequence[str], fetches: Sequence[str]
) -> Compiled:
    """Return a compiled call, through an interface of tensorflow that is private."""
    options = tf.config_pb2.RunOptions(inter_op_thread_pool=_CALLERS_THREAD)
    callable_options = tf.config_pb2.CallableOptions(feed=feeds, fetch=fetches, run_options=options)
    made: Compiled = session._make_callable_from_options(callable_options)  # noqa: SLF001
    return made


def _plain_call(
    tf: Runtime, session: Any, feeds: Sequence[str], fetches: Sequence[str]
) -> Compiled:
    del tf
    return lambda *values: session.run(list(fetches), dict(zip(feeds, values, strict=True)))


def translated(tf: Runtime, error: BaseException) -> BaseException:
    """Return what tensorflow raised in the server's terms; what is not tensorflow's passes."""
    if isinstance(error, tf.errors.OpError):
        return ServingError(Code(error.error_code), error.message)
    if isinstance(error, UnicodeDecodeError):  # of a text that quotes bytes; its code is lost
        return invalid(error.object.decode("utf-8", "surrogateescape"))
    if isinstance(error, OSError | RuntimeError | ValueError | TypeError):
        return ServingError(Code.INVALID_ARGUMENT, str(error))
    return error
