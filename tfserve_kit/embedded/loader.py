"""Loads SavedModels with tensorflow: with `tflite` the only module that imports it.

The v1 session is what the official server runs models in
(tensorflow_serving/servables/tensorflow/saved_model_bundle_factory.cc), and its compiled callables
are an order of magnitude faster for small models than calling a restored function.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import numpy as np

from tfserve_kit import protos
from tfserve_kit.embedded.session import Runtime, SessionServable, compiled_call, translated
from tfserve_kit.embedded.settings import SessionOptions
from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.savedmodel import GRAPH_FILE, VARIABLES_INDEX

_log = logging.getLogger(__name__)

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


def _runtime() -> Runtime:
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
    return Runtime(
        config_pb2,
        errors,
        ops.Graph,
        session.Session,
        loader_impl.SavedModelLoader,
        array_ops.placeholder,
        math_ops.multiply,
        array_ops.reshape,
        array_ops.shape,
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
            raise translated(tf, error) from error
        signatures = {
            name: protos.SignatureDef.FromString(signature.SerializeToString())
            for name, signature in graph.signature_def.items()
        }
        return SessionServable(tf, session, signatures, compiled=self._compiled)


def _restore(tf: Runtime, session: Any, version_dir: Path, tags: Sequence[str]) -> Any:
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


def _session_config(tf: Runtime, options: SessionOptions) -> Any:
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


def _compiled_calls_work(tf: Runtime) -> bool:
    """Try the private interface on a small graph, against the public one."""
    with tf.graph().as_default() as graph:
        x = tf.placeholder("float32", [None])
        y = tf.multiply(x, 2.0)
        with tf.session(graph=graph) as session:
            value = np.array([1.0, 3.0], np.float32)
            try:
                (fast,) = compiled_call(tf, session, [x.name], [y.name])(value)
            except Exception:  # noqa: BLE001 (private: it may change in any way)
                return False
            return bool(np.array_equal(fast, session.run(y, {x: value})))
