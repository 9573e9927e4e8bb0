"""Loads SavedModels with tensorflow: the only module that imports it.

The v1 session is what the official server runs models in
(tensorflow_serving/servables/tensorflow/saved_model_bundle_factory.cc), and its compiled callables
are an order of magnitude faster for small models than calling a restored function.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded.settings import SessionOptions
from tfserve_kit.embedded.status import Code, ServingError

_log = logging.getLogger(__name__)

Call = Callable[..., Sequence[NDArray[Any]]]

# Runs the operations in the calling thread: a request has a thread of its own already.
_CALLERS_THREAD = -1


def import_tensorflow() -> Any:
    """Return the tensorflow module, without the messages it prints on import.

    Raises:
        ModuleNotFoundError: the wheel is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    import tensorflow as tf

    tf.get_logger().setLevel(logging.ERROR)
    return tf


class SavedModelLoader:
    """Loads SavedModel directories into sessions. Thread-safe."""

    def __init__(self, options: SessionOptions) -> None:
        self._tf = import_tensorflow()
        self._options = options
        self._compiled = _compiled_calls_work(self._tf)
        if not self._compiled:
            _log.warning("this tensorflow has no compiled callables; calls go through Session.run")

    def __call__(self, version_dir: Path) -> "SessionServable":
        """Load a version.

        Raises:
            ServingError: tensorflow cannot load it, with tensorflow's code and text.
        """
        tf = self._tf
        v1 = tf.compat.v1
        config = v1.ConfigProto(
            intra_op_parallelism_threads=self._options.intra_op_parallelism,
            inter_op_parallelism_threads=self._options.inter_op_parallelism,
        )
        session = v1.Session(graph=tf.Graph(), config=config)
        try:
            with session.graph.as_default():
                graph = v1.saved_model.load(session, list(self._options.tags), str(version_dir))
        except BaseException as error:
            session.close()
            raise _translated(tf, error) from error
        signatures = {
            name: protos.SignatureDef.FromString(signature.SerializeToString())
            for name, signature in graph.signature_def.items()
        }
        return SessionServable(tf, session, signatures, compiled=self._compiled)


class SessionServable:
    """A SavedModel in a session; implements `Servable`."""

    def __init__(
        self, tf: Any, session: Any, signatures: Mapping[str, Any], *, compiled: bool
    ) -> None:
        self._tf = tf
        self._session = session
        self._signatures = signatures
        self._compiled = compiled
        self._calls: dict[tuple[tuple[str, ...], tuple[str, ...]], Call] = {}
        self._lock = threading.Lock()

    @property
    def signatures(self) -> Mapping[str, Any]:
        """SignatureDef messages by name."""
        return self._signatures

    def run(
        self, feeds: Mapping[str, NDArray[Any]], fetches: Sequence[str]
    ) -> Sequence[NDArray[Any]]:
        """Compute `fetches` from `feeds`; see `Servable.run`."""
        call = self._call(tuple(feeds), tuple(fetches))
        try:
            return [_array(value) for value in call(*feeds.values())]
        except Exception as error:
            raise _translated(self._tf, error) from error

    def close(self) -> None:
        """Free the session's variables and graph."""
        self._calls.clear()
        self._session.close()

    def _call(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Call:
        call = self._calls.get((feeds, fetches))
        if call is None:
            with self._lock:
                make = _compiled_call if self._compiled else _plain_call
                call = make(self._tf, self._session, feeds, fetches)
                self._calls[feeds, fetches] = call
        return call


def _array(value: Any) -> NDArray[Any]:
    """Return an output as an array; a scalar string comes as bytes."""
    if not isinstance(value, bytes):
        return value  # type: ignore[no-any-return]
    array = np.empty((), object)  # numpy by itself would cut trailing zeros
    array[()] = value
    return array


def _compiled_call(tf: Any, session: Any, feeds: Sequence[str], fetches: Sequence[str]) -> Call:
    options = tf.compat.v1.RunOptions(inter_op_thread_pool=_CALLERS_THREAD)
    callable_options = _callable_options_class()(feed=feeds, fetch=fetches, run_options=options)
    made: Call = session._make_callable_from_options(callable_options)  # noqa: SLF001
    return made


def _plain_call(tf: Any, session: Any, feeds: Sequence[str], fetches: Sequence[str]) -> Call:
    del tf
    return lambda *values: session.run(list(fetches), dict(zip(feeds, values, strict=True)))


def _callable_options_class() -> Any:
    from tensorflow.core.protobuf import config_pb2

    return config_pb2.CallableOptions


def _compiled_calls_work(tf: Any) -> bool:
    """Try the private interface on a small graph, against the public one."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None])
        y = tf.multiply(x, 2.0)
        with tf.compat.v1.Session(graph=graph) as session:
            value = np.array([1.0, 3.0], np.float32)
            try:
                (fast,) = _compiled_call(tf, session, [x.name], [y.name])(value)
            except Exception:  # noqa: BLE001 (private: it may change in any way)
                return False
            return bool(np.array_equal(fast, session.run(y, {x: value})))


def _translated(tf: Any, error: BaseException) -> BaseException:
    """Return what tensorflow raised in the server's terms; what is not tensorflow's passes."""
    if isinstance(error, tf.errors.OpError):
        return ServingError(Code(error.error_code), error.message)
    if isinstance(error, OSError | RuntimeError | ValueError | TypeError):
        return ServingError(Code.INVALID_ARGUMENT, str(error))
    return error
