"""Loads SavedModels with tensorflow: with `tflite` the only module that imports it.

The v1 session is what the official server runs models in
(tensorflow_serving/servables/tensorflow/saved_model_bundle_factory.cc), and its compiled callables
are an order of magnitude faster for small models than calling a restored function.
"""

import contextlib
import ctypes
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.settings import SessionOptions
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.savedmodel import GRAPH_FILE, VARIABLES_INDEX

_log = logging.getLogger(__name__)

Compiled = Callable[..., Sequence[NDArray[Any]]]

# Runs the operations in the calling thread: a request has a thread of its own already.
_CALLERS_THREAD = -1


# The releases whose inner modules are known to work without the package's own import.
_KNOWN_RELEASES = ("2.21.",)


def skip_package_import() -> None:
    """Let tensorflow's inner modules be imported without the package, in a third of the time.

    `import tensorflow` loads keras and thousands of modules that serving never uses. Only for a
    process that does nothing else with tensorflow: the package stays an empty shell there.
    """
    spec = find_spec("tensorflow")
    known = spec is not None and version("tensorflow").startswith(_KNOWN_RELEASES)
    if spec is not None and known and "tensorflow" not in sys.modules:
        sys.modules["tensorflow"] = module_from_spec(spec)  # not executed


@dataclass(frozen=True, slots=True)
class _Runtime:
    """The few parts of tensorflow that serving needs."""

    config_pb2: Any
    errors: Any
    graph: Any
    session: Any
    reader: Any
    placeholder: Any
    multiply: Any


def _runtime() -> _Runtime:
    """Import tensorflow.

    Raises:
        ModuleNotFoundError: the wheel is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.client import session
    from tensorflow.python.framework import errors, ops
    from tensorflow.python.ops import array_ops, math_ops
    from tensorflow.python.platform import tf_logging
    from tensorflow.python.saved_model import loader_impl

    tf_logging.set_verbosity(tf_logging.ERROR)
    return _Runtime(
        config_pb2,
        errors,
        ops.Graph,
        session.Session,
        loader_impl.SavedModelLoader,
        array_ops.placeholder,
        math_ops.multiply,
    )


class SavedModelLoader:
    """Loads SavedModel directories into sessions. Thread-safe."""

    def __init__(self, options: SessionOptions) -> None:
        self._tf = _runtime()
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
        _check_graph(version_dir, self._options.tags)
        session = tf.session(graph=tf.graph(), config=_session_config(tf, self._options))
        try:
            with session.graph.as_default():
                graph = _restore(tf, session, version_dir, self._options.tags)
        except BaseException as error:
            session.close()
            raise _translated(tf, error) from error
        signatures = {
            name: protos.SignatureDef.FromString(signature.SerializeToString())
            for name, signature in graph.signature_def.items()
        }
        return SessionServable(tf, session, signatures, compiled=self._compiled)


def _restore(tf: _Runtime, session: Any, version_dir: Path, tags: Sequence[str]) -> Any:
    """Load graph and variables and run the initializers; return the MetaGraphDef.

    A version without variables loads all the same, as in tensorflow/cc/saved_model/loader.cc.
    """
    reader = tf.reader(str(version_dir))
    saver, _ = reader.load_graph(session.graph, list(tags))
    if (version_dir / VARIABLES_INDEX).is_file():
        reader.restore_variables(session, saver)
    else:
        _log.warning("%s has no variables; none were restored", version_dir)
    reader.run_init_ops(session, list(tags))
    return reader.get_meta_graph_def_from_tags(list(tags))


def _session_config(tf: _Runtime, options: SessionOptions) -> Any:
    config = tf.config_pb2.ConfigProto.FromString(options.config.SerializeToString())
    if options.mixed_precision == "bfloat16":
        rewrites = config.graph_options.rewrite_options
        rewrites.auto_mixed_precision_onednn_bfloat16 = rewrites.ON
    return config


def _check_graph(version_dir: Path, tags: Sequence[str]) -> None:
    """Raise what the C++ loader would: the Python one fails in other words and with other codes.

    Source: tensorflow/cc/saved_model/reader.cc.
    """
    file = version_dir / GRAPH_FILE
    if not file.is_file():
        if file.with_suffix(".pbtxt").is_file():
            return
        raise ServingError(
            Code.NOT_FOUND,
            "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
            f"{version_dir}. Check that the directory exists and that you have the right "
            "permissions for accessing it.",
        )
    try:
        graphs = protos.SavedModel.FromString(file.read_bytes()).meta_graphs
    except protos.DecodeError as error:
        raise ServingError(Code.OUT_OF_RANGE, "Read less bytes than requested") from error
    if not any(set(tags) == set(graph.meta_info_def.tags) for graph in graphs):
        raise ServingError(
            Code.NOT_FOUND,
            f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}. To "
            "inspect available tag-sets in the SavedModel, please use the SavedModel CLI: "
            "`saved_model_cli`",
        )


class SessionServable:
    """A SavedModel in a session; implements `Servable`."""

    def __init__(
        self, tf: _Runtime, session: Any, signatures: Mapping[str, Any], *, compiled: bool
    ) -> None:
        self._tf = tf
        self._session = session
        self._signatures = signatures
        self._compiled = compiled
        self._calls: dict[tuple[tuple[str, ...], tuple[str, ...]], Compiled] = {}
        self._lock = threading.Lock()

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
        compiled = self._call(tuple(feeds), tuple(fetches))
        try:
            return [_array(value) for value in compiled(*feeds.values())]
        except Exception as error:
            raise _translated(self._tf, error) from error

    def close(self) -> None:
        """Free the session's variables and graph."""
        self._calls.clear()
        self._session.close()
        _return_memory()

    def _call(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Compiled:
        call = self._calls.get((feeds, fetches))
        if call is None:
            with self._lock:
                make = _compiled_call if self._compiled else _plain_call
                call = make(self._tf, self._session, feeds, fetches)
                self._calls[feeds, fetches] = call
        return call


def _return_memory() -> None:
    """Give an unloaded model's memory back to the system.

    A graph is a ring of references, which only the collector finds; and glibc by itself keeps what
    was freed for later.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _array(value: Any) -> NDArray[Any]:
    """Return an output as an array; a scalar string comes as bytes."""
    if not isinstance(value, bytes):
        return value  # type: ignore[no-any-return]
    array = np.empty((), object)  # numpy by itself would cut trailing zeros
    array[()] = value
    return array


def _compiled_call(
    tf: _Runtime, session: Any, feeds: Sequence[str], fetches: Sequence[str]
) -> Compiled:
    options = tf.config_pb2.RunOptions(inter_op_thread_pool=_CALLERS_THREAD)
    callable_options = tf.config_pb2.CallableOptions(feed=feeds, fetch=fetches, run_options=options)
    made: Compiled = session._make_callable_from_options(callable_options)  # noqa: SLF001
    return made


def _plain_call(
    tf: _Runtime, session: Any, feeds: Sequence[str], fetches: Sequence[str]
) -> Compiled:
    del tf
    return lambda *values: session.run(list(fetches), dict(zip(feeds, values, strict=True)))


def _compiled_calls_work(tf: _Runtime) -> bool:
    """Try the private interface on a small graph, against the public one."""
    with tf.graph().as_default() as graph:
        x = tf.placeholder("float32", [None])
        y = tf.multiply(x, 2.0)
        with tf.session(graph=graph) as session:
            value = np.array([1.0, 3.0], np.float32)
            try:
                (fast,) = _compiled_call(tf, session, [x.name], [y.name])(value)
            except Exception:  # noqa: BLE001 (private: it may change in any way)
                return False
            return bool(np.array_equal(fast, session.run(y, {x: value})))


def _translated(tf: _Runtime, error: BaseException) -> BaseException:
    """Return what tensorflow raised in the server's terms; what is not tensorflow's passes."""
    if isinstance(error, tf.errors.OpError):
        return ServingError(Code(error.error_code), error.message)
    if isinstance(error, OSError | RuntimeError | ValueError | TypeError):
        return ServingError(Code.INVALID_ARGUMENT, str(error))
    return error
