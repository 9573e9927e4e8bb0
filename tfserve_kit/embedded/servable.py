"""Loaded model versions: what the engine needs of one, and the two kinds there are.

A SavedModel runs in a session. Nothing reaches tensorflow's native code that would end the process:
its conversion to and from numpy does not look at how many dimensions an array of strings has (it
walks them with an iterator that knows 32, and reads through a null pointer for more). Numbers are
copied whole, and what else does not fit (types, names, sizes) is refused with a text.

A TensorFlow Lite model runs in the wheel's interpreter
(tensorflow_serving/servables/tensorflow/tflite_session.cc).
"""

import contextlib
import ctypes
import gc
import math
import mmap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded.elementwise import elementwise
from tfserve_kit.embedded.lanes import give_way
from tfserve_kit.embedded.ledger import Call
from tfserve_kit.embedded.limits import MOST_CALLABLES, MOST_DIMENSIONS, MOST_STRING_DIMENSIONS
from tfserve_kit.embedded.metrics import (
    GRAPH_BUILD_TIME,
    GRAPH_BUILDS,
    GRAPH_RUN_TIME,
    Metrics,
    micros_since,
)
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.embedded.unrolled import Unrolled, unrolled
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE
from tfserve_kit.tensors import dtypes


class Servable(Protocol):
    """A loaded model version. Thread-safe."""

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef messages by name."""

    def run(
        self,
        feeds: Mapping[str, NDArray[Any]],
        fetches: Sequence[str],
        *,
        call: Call | None = None,
    ) -> Sequence[NDArray[Any]]:
        """Compute tensors of the graph.

        Args:
            feeds: value per tensor name, such as `x:0`.
            fetches: names of the tensors to compute.
            call: how long somebody waits for them, and whose account is charged; without limits if
                left out. What has not begun by then need not begin.

        Returns:
            Their values, in the order of `fetches`.

        Raises:
            ServingError: the graph refused, with tensorflow's code and text; or it never ran.
        """

    def close(self) -> None:
        """Free its memory; no call may run or follow."""


# (version's folder) -> it, loaded; raises ServingError
Loader = Callable[[Path], Servable]


def too_deep(tensor: str, dimensions: int) -> ServingError:
    """Return the error of a string tensor with more dimensions than tensorflow's code bears."""
    return invalid(
        f"Tensor {tensor} has {dimensions} dimensions; strings can have at most "
        f"{MOST_STRING_DIMENSIONS} here"
    )


Compiled = Callable[..., Sequence[NDArray[Any]]]
# Names of the tensors that are fed, and of those that are computed.
_Choice = tuple[tuple[str, ...], tuple[str, ...]]
# So many choices of outputs, which clients make, are computed for several requests together: for
# each the graph grows by its copies.
_MOST_TOGETHER = 8

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
    empty: Any
    graph_def: Any
    import_graph_def: Any
    op_def: Any
    constant: Any
    read_variable: Any


class SessionServable:
    """A SavedModel in a session; implements `Servable`.

    Args:
        tf: tensorflow.
        session: the session, with a graph that may be added to.
        signatures: SignatureDef messages by name.
        compiled: whether calls are compiled; otherwise they go through Session.run.
        borrow: borrows memory of tensorflow's, see `borrowing`; None where it keeps what is freed.
        metrics: told of every run, and of every graph that is built for one.
    """

    def __init__(
        self,
        tf: Runtime,
        session: Any,
        signatures: Mapping[str, Any],
        *,
        compiled: bool,
        borrow: "Borrow | None" = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._tf = tf
        self._metrics = metrics or Metrics()
        self._session = session
        self._signatures = signatures
        self._make = compiled_call if compiled else _plain_call
        self._borrow = borrow
        self._lock = threading.Lock()
        # Clients choose outputs and their order, and each choice is compiled by itself.
        self._call = lru_cache(MOST_CALLABLES)(self._made_call)
        self._made = WeakValueDictionary[_Choice, Compiled]()
        self._flattened: dict[str, tuple[str, str]] = {}
        # None where it is being made, or cannot be.
        self._together: dict[_Choice, Unrolled | None] = {}
        # How many dimensions an input needs for its rows to be computed with those of others.
        self._elementwise: dict[_Choice, int] = {}

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
            run = self._call(tuple(feeds), tuple(fetches))
            started_ns = time.perf_counter_ns()
            values = run(*feeds.values())
        except Exception as error:
            raise translated(self._tf, error) from error
        self._metrics.observe(GRAPH_RUN_TIME, micros_since(started_ns))
        return values

    def run_together(
        self, feeds: Sequence[Mapping[str, NDArray[Any]]], fetches: Sequence[str]
    ) -> list[Sequence[NDArray[Any]]]:
        """Compute the same for several requests, in less time than one by one; never raises.

        Args:
            feeds: value per tensor name of each request, in the same order: all numbers.
            fetches: as of `run`.

        Returns:
            The values of the first ones, as many as can be computed so, which may be none.
        """
        key = tuple(feeds[0]), tuple(fetches)
        together = self._together.get(key)
        if together is None:
            self._prepare_together(key)
            return []
        started_ns = time.perf_counter_ns()
        found = together.run(feeds)
        if found:
            share_us = micros_since(started_ns) / len(found)
            self._metrics.observe(GRAPH_RUN_TIME, share_us, (), len(found))
        return found

    def is_elementwise(self, feeds: Sequence[str], fetches: Sequence[str]) -> bool:
        """Say whether some tensors are known to be computed of each number by itself."""
        return (tuple(feeds), tuple(fetches)) in self._elementwise

    def run_joined(
        self, feed: str, inputs: NDArray[Any], fetches: Sequence[str]
    ) -> list[NDArray[Any]] | None:
        """Compute the same for several requests as if they were one; never raises.

        Args:
            feed: name of the tensor that is fed.
            inputs: the value of each request [requests, ...], numbers.
            fetches: as of `run`.

        Returns:
            The values of all of them [requests, ...]; None where each has to be computed by itself.
        """
        choice = (feed,), tuple(fetches)
        dimensions = self._elementwise.get(choice)
        if dimensions is None or inputs.ndim <= dimensions:
            return None
        rows = inputs.reshape(-1, *inputs.shape[2:])
        try:
            started_ns = time.perf_counter_ns()
            values = self._call(*choice)(rows)
            share_us = micros_since(started_ns) / len(inputs)
            found = [each.reshape(*inputs.shape[:2], *each.shape[1:]) for each in values]
        except Exception:  # noqa: BLE001 (of one of them: each has to be asked alone)
            return None
        self._metrics.observe(GRAPH_RUN_TIME, share_us, (), len(inputs))
        return found

    def close(self) -> None:
        """Free the session's variables and graph."""
        self._call.cache_clear()
        with self._lock:  # what is made now has been made
            session, self._session = self._session, None
            self._together.clear()
            self._elementwise.clear()
        freed_bytes = _weights_bytes(session.graph)
        session.close()
        del session
        gc.collect()  # a graph is a ring of references, which nothing else finds
        if self._borrow:
            _return_kept_memory(self._borrow, freed_bytes)
        _trim()  # last, as arrays that were fed are freed by the next call of any session

    def _made_call(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Compiled:
        """Return what computes `fetches`, made by one of those that want it at the same time.

        All requests that meet a new version do, and it can take a second.
        """
        with self._lock:
            call = self._made.get((feeds, fetches))
            if call is None:
                call = self._made[feeds, fetches] = self._new_call(feeds, fetches)
            return call

    def _prepare_together(self, key: _Choice) -> None:
        """Begin to make what runs several requests together, which takes some dozen milliseconds.

        Until then, and if there cannot be such a thing, they are run one by one.
        """
        if key not in self._together and len(self._together) < _MOST_TOGETHER:
            self._together[key] = None
            with contextlib.suppress(RuntimeError, MemoryError):  # no thread is to be had
                # No daemon: tensorflow must not be left in the middle of it when Python ends.
                threading.Thread(target=self._make_together, args=key).start()

    def _make_together(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> None:
        give_way()
        with self._lock, contextlib.suppress(Exception):  # whatever cannot be copied is run alone
            if self._session is None:
                return
            graph = self._session.graph
            found = [
                elementwise(graph, *feeds, name, self._shape_of)
                for name in fetches
                if len(feeds) == 1
            ]
            dimensions = [each for each in found if each is not None]
            if len(dimensions) == len(fetches):
                self._elementwise[feeds, fetches] = max(dimensions)
                return
            make = partial(self._make, self._tf, self._session)
            self._together[feeds, fetches] = unrolled(self._tf, graph, feeds, fetches, make)

    def _shape_of(self, variable: str) -> tuple[int, ...]:
        """Return the shape of what a variable holds, given the name of its handle."""
        handle = self._session.graph.get_tensor_by_name(f"{variable}:0")
        with self._session.graph.as_default():
            value = self._tf.read_variable(handle, handle.op.get_attr("dtype"))
        shape: tuple[int, ...] = self._session.run(value).shape
        return shape

    def _new_call(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Compiled:
        """Return what computes `fetches`; strings are computed flat, and their shapes beside."""
        parts = [self._parts(name) for name in fetches]
        wanted = [name for each in parts for name in each]
        started_ns = time.perf_counter_ns()
        call = self._make(self._tf, self._session, feeds, wanted)
        self._metrics.add(GRAPH_BUILDS)
        self._metrics.add(GRAPH_BUILD_TIME, amount=micros_since(started_ns))
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


def _trim() -> None:
    """Give the system what was freed, which glibc by itself keeps for later."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


# Returns an array on memory of tensorflow's that nobody has filled, of so many bytes or a few more.
Borrow = Callable[[int], NDArray[Any]]

# What holds numbers for as long as a session lives; what is smaller than this is left alone.
_HOLDERS = {"VarHandleOp", "VariableV2", "Const"}
_LARGE_BYTES = 256 << 10
_UNIT = np.dtype(np.float64)


def borrowing(tf: Runtime) -> Borrow:
    """Return what borrows memory of tensorflow's allocator for processors."""
    graph = tf.graph()
    with graph.as_default(), graph.device("/cpu:0"):
        count = tf.placeholder("int32", [1])
        empty = tf.empty(count, _UNIT.name, init=False)
    session = tf.session(graph=graph)

    def borrow(size_bytes: int) -> NDArray[Any]:
        found: NDArray[Any] = session.run(empty, {count: [-(-size_bytes // _UNIT.itemsize)]})
        return found

    return borrow


def _weights_bytes(graph: Any) -> list[int]:
    """Return the sizes of the large tensors that a graph's session holds, the largest first."""
    found = []
    for each in graph.get_operations():
        if each.type in _HOLDERS:
            is_known = each.type == "Const"
            shape = each.outputs[0].shape.as_proto() if is_known else each.get_attr("shape")
            count = math.prod(dimension.size for dimension in shape.dim)
            found.append(count * each.get_attr("dtype").size)
    return sorted((size for size in found if size >= _LARGE_BYTES), reverse=True)


def _return_kept_memory(borrow: Borrow, freed_bytes: Sequence[int]) -> None:
    """Give memory back to the system that tensorflow's allocator keeps for the next model.

    With oneDNN it never returns what it has got: one version more than is served stays for ever. So
    what has just been freed is borrowed once more, and its pages are let go; they are empty when
    they are used again.

    Source: tensorflow/core/common_runtime/mkl_cpu_allocator.h, bfc_allocator.cc.
    """
    with contextlib.suppress(Exception):  # it stays; the next version will use it
        borrowed = [borrow(size_bytes) for size_bytes in freed_bytes]  # all at once, all different
        for array in borrowed:
            _let_pages_go(array)


def _let_pages_go(array: NDArray[Any]) -> None:
    """Forget what an array holds, up to the parts of pages at its ends."""
    begin = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    advise = ctypes.CDLL(None).madvise
    advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


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


_METHOD_NAME = "tensorflow/serving/predict"
_MOST_SIZE = (1 << 31) - 1  # of a dimension


@dataclass(frozen=True, slots=True)
class _Signature:
    """What can be called: index per tensor name, and the subgraph that they are in."""

    subgraph: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


class TfLiteServable:
    """A TensorFlow Lite model; implements `Servable`. Each call borrows one of the interpreters."""

    def __init__(self, interpreters: Sequence[Any]) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        for interpreter in interpreters:
            self._free.put(interpreter)
        self._definitions: dict[str, Any] = {}
        self._calls: dict[frozenset[str], _Signature] = {}
        for name in interpreters[0].get_signature_list() or [None]:
            self._add(interpreters[0], name)

    def _add(self, interpreter: Any, name: str | None) -> None:
        inputs, outputs = _tensors(interpreter, name)
        definition = protos.SignatureDef(method_name=_METHOD_NAME)
        for aliases, found in ((definition.inputs, inputs), (definition.outputs, outputs)):
            for alias, tensor in found.items():
                _describe(aliases[alias], tensor)
        self._definitions[name or DEFAULT_SIGNATURE] = definition
        subgraph = 0 if name is None else _native(interpreter).GetSubgraphIndexFromSignature(name)
        indices = [
            {each["name"]: each["index"] for each in found.values()} for found in (inputs, outputs)
        ]
        self._calls[frozenset(indices[0])] = _Signature(subgraph, *indices)

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef messages by name."""
        return self._definitions

    def run(
        self,
        feeds: Mapping[str, NDArray[Any]],
        fetches: Sequence[str],
        *,
        call: Call | None = None,
    ) -> Sequence[NDArray[Any]]:
        """Compute `fetches` from `feeds`; see `Servable.run`. All inputs must be given."""
        del call
        signature = self._calls.get(frozenset(feeds))
        if signature is None:
            raise invalid(f"no signature takes the inputs {', '.join(sorted(feeds))}")
        interpreter = self._free.get()
        try:
            return _called(interpreter, signature, feeds, fetches)
        except (ValueError, RuntimeError) as error:
            raise ServingError(Code.INTERNAL, f"Failed to invoke TfLite model: {error}") from error
        finally:
            self._free.put(interpreter)

    def close(self) -> None:
        """Free the interpreters."""
        while not self._free.empty():
            self._free.get()


def _tensors(interpreter: Any, name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the details of a signature's inputs and outputs, by alias."""
    if name is not None:
        runner = interpreter.get_signature_runner(name)
        return runner.get_input_details(), runner.get_output_details()
    details = (interpreter.get_input_details(), interpreter.get_output_details())
    inputs, outputs = ({each["name"]: each for each in found} for found in details)
    return inputs, outputs


def _native(interpreter: Any) -> Any:
    """Return what alone reaches other subgraphs than the first: the interpreter's inside."""
    return interpreter._interpreter  # noqa: SLF001


def _called(
    interpreter: Any,
    signature: _Signature,
    feeds: Mapping[str, NDArray[Any]],
    fetches: Sequence[str],
) -> list[NDArray[Any]]:
    """Do what the interpreter's own runner does, with a look at the outputs before they are read.

    It crashes on numbers of more dimensions than numpy has.
    """
    native, subgraph = _native(interpreter), signature.subgraph
    values = {signature.inputs[name]: _fed(name, array) for name, array in feeds.items()}
    for index, array in values.items():
        native.ResizeInputTensor(index, np.array(array.shape, np.int32), False, subgraph)
    native.AllocateTensors(subgraph)
    for index, array in values.items():
        native.SetTensor(index, array, subgraph)
    native.Invoke(subgraph)
    outputs = []
    for name in fetches:
        index = signature.outputs[name]
        if (dimensions := len(native.TensorSize(index, subgraph))) > MOST_DIMENSIONS:
            raise invalid(f"Output {name} has {dimensions} dimensions, more than numpy has")
        outputs.append(np.asarray(native.GetTensor(index, subgraph)))
    return outputs


def _fed(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as the interpreter can take it.

    It crashes on strings of more than 32 dimensions, and reads none at all from a scalar object.

    Raises:
        ServingError: it cannot take it.
    """
    if max(array.shape, default=0) > _MOST_SIZE:
        raise invalid(f"Input tensor {name} has a dimension of more than {_MOST_SIZE}")
    if array.dtype.kind not in dtypes.NUMBERS:
        if array.ndim > MOST_STRING_DIMENSIONS:
            raise too_deep(name, array.ndim)
        return array if array.ndim else array.astype(np.bytes_)
    return array


def _describe(info: Any, tensor: Mapping[str, Any]) -> None:
    info.name = tensor["name"]
    info.dtype = dtypes.by_numpy(tensor["dtype"]).number
    for size in tensor["shape_signature"]:
        info.tensor_shape.dim.add(size=int(size))
