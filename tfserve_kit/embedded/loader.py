"""Loads versions from disk and makes them ready; the only module that imports tensorflow.

SavedModels are loaded into v1 sessions, which is what the official server runs models in
(tensorflow_serving/servables/tensorflow/saved_model_bundle_factory.cc); their compiled callables
are an order of magnitude faster for small models than calling a restored function. Then batching is
put around a version, and the requests stored with it are replayed (saved_model_warmup_util.cc: at
most 1,000 PredictionLog records, and any that fails fails the load).
"""

import logging
import os
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.embedded import messages
from tfserve_kit.embedded.batching import BatchingServable, BatchScheduler, batch_options
from tfserve_kit.embedded.constants import split_off
from tfserve_kit.embedded.lanes import give_way
from tfserve_kit.embedded.ledger import (
    BudgetExceeded,
    Call,
    Ledger,
    cost_of_arrays,
    cost_of_message,
)
from tfserve_kit.embedded.limits import MOST_BODY_BYTES, MOST_REQUEST_BYTES, most_held_bytes
from tfserve_kit.embedded.messages import PredictInputs
from tfserve_kit.embedded.metrics import (
    LOAD_ATTEMPTS,
    LOAD_LATENCY,
    WARMUP_LATENCY,
    WARMUP_RECORDS,
    Metrics,
    micros_since,
)
from tfserve_kit.embedded.servable import (
    Loader,
    Runtime,
    Servable,
    SessionServable,
    TfLiteServable,
    borrowing,
    compiled_call,
    translated,
)
from tfserve_kit.embedded.settings import BatchSettings, SessionOptions, read_text_proto
from tfserve_kit.embedded.signatures import (
    CLASSIFY,
    REGRESS,
    Arrays,
    checked_task,
    checked_tasks,
    run_inference,
    run_signature,
)
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.savedmodel import GRAPH_FILE, VARIABLES_INDEX, WARMUP_FILE
from tfserve_kit.savedmodel.warmup import MAX_RECORDS
from tfserve_kit.tfrecord import masked_crc

_log = logging.getLogger(__name__)

TFLITE_FILE = "model.tflite"
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
    from tensorflow.core.framework import graph_pb2
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.client import session
    from tensorflow.python.framework import (
        constant_op,
        errors,
        importer,
        op_def_registry,
        ops,
    )
    from tensorflow.python.ops import (
        array_ops,
        gen_array_ops,
        gen_resource_variable_ops,
        math_ops,
    )
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
        gen_array_ops.empty,
        graph_pb2.GraphDef,
        importer.import_graph_def,
        op_def_registry.get,
        constant_op.constant,
        gen_resource_variable_ops.read_variable_op,
    )


class SavedModelLoader:
    """Loads SavedModel directories into sessions. Thread-safe.

    Args:
        options: what sessions are like.
        metrics: told of every run of a graph.
    """

    def __init__(self, options: SessionOptions, metrics: Metrics | None = None) -> None:
        self._tf = _runtime()
        self._metrics = metrics
        self._options = options
        with ThreadPoolExecutor(1, "first_session", initializer=give_way) as low:
            self._compiled = low.submit(_compiled_calls_work, self._tf, options).result()
        self._borrow = borrowing(self._tf)
        self._may_fold = _may_fold(options)
        if not self._compiled:
            _log.warning("this tensorflow has no compiled callables; calls go through Session.run")

    def __call__(self, version_dir: Path) -> "SessionServable":
        """Load a version.

        Raises:
            ServingError: tensorflow cannot load it, with tensorflow's code and text.
        """
        _check_graph(version_dir, self._options.tags)
        if self._may_fold:
            with suppress(Exception):  # whatever it was: as it is it can be loaded, or says why not
                return self._loaded(version_dir, fold=True)
        return self._loaded(version_dir, fold=False)

    def _loaded(self, version_dir: Path, *, fold: bool) -> "SessionServable":
        tf = self._tf
        session = tf.session(graph=tf.graph(), config=_session_config(tf, self._options))
        try:
            with session.graph.as_default():
                graph = _restore(tf, session, version_dir, self._options.tags, fold=fold)
        except BaseException as error:
            session.close()
            raise translated(tf, error) from error
        signatures = {
            name: protos.SignatureDef.FromString(signature.SerializeToString())
            for name, signature in graph.signature_def.items()
        }
        return SessionServable(
            tf,
            session,
            signatures,
            compiled=self._compiled,
            borrow=self._borrow,
            metrics=self._metrics,
        )


def _restore(
    tf: Runtime, session: Any, version_dir: Path, tags: Sequence[str], *, fold: bool
) -> Any:
    """Load graph and variables and run the initializers; return the MetaGraphDef.

    A version without variables loads all the same, as in tensorflow/cc/saved_model/loader.cc.
    """
    reader = tf.reader(str(version_dir))
    graph = reader.get_meta_graph_def_from_tags(list(tags))
    has_variables = (version_dir / VARIABLES_INDEX).is_file()
    serving = split_off(tf, graph) if fold and has_variables else None
    saver, _ = reader.load_graph(session.graph, list(tags))
    if has_variables:
        reader.restore_variables(session, saver)
    else:
        _log.warning("%s has no variables; none were restored", version_dir)
    reader.run_init_ops(session, list(tags))
    if serving:
        serving.add_to(tf, session)
    return graph


def _may_fold(options: SessionOptions) -> bool:
    """Say whether tensorflow works out beforehand what depends on constants alone."""
    rewrites = options.config.graph_options.rewrite_options
    return not rewrites.disable_meta_optimizer and rewrites.constant_folding != rewrites.OFF


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


def _compiled_calls_work(tf: Runtime, options: SessionOptions) -> bool:
    """Try the private interface on a small graph, against the public one.

    The process's first session starts the threads that all of them compute in: as many as its
    options say, and with the priority of the thread that makes it.
    """
    with tf.graph().as_default() as graph:
        x = tf.placeholder("float32", [None])
        y = tf.multiply(x, 2.0)
        with tf.session(graph=graph, config=_session_config(tf, options)) as session:
            value = np.array([1.0, 3.0], np.float32)
            try:
                (fast,) = compiled_call(tf, session, [x.name], [y.name])(value)
            except Exception:  # noqa: BLE001 (private: it may change in any way)
                return False
            return bool(np.array_equal(fast, session.run(y, {x: value})))


class TfLiteLoader:
    """Loads `model.tflite` where a version has one, else what `otherwise` loads.

    Args:
        otherwise: the loader of SavedModels.
        interpreters: how many requests a model can compute at once.
    """

    def __init__(self, otherwise: Loader, interpreters: int) -> None:
        self._otherwise = otherwise
        self._interpreters = interpreters

    def __call__(self, version_dir: Path) -> Servable:
        """Load a version.

        Raises:
            ServingError: it cannot be loaded.
        """
        file = version_dir / TFLITE_FILE
        if not file.is_file():
            return self._otherwise(version_dir)
        model = file.read_bytes()
        try:
            interpreters = [_interpreter(model) for _ in range(self._interpreters)]
        except (ValueError, RuntimeError) as error:
            raise invalid(f"cannot load {file}: {error}") from error
        return TfLiteServable(interpreters)


def _interpreter(model: bytes) -> Any:
    from tensorflow.lite.python.interpreter import Interpreter

    with warnings.catch_warnings():
        # It announces its successor; the one in the wheel is what fits the wheel.
        warnings.simplefilter("ignore")
        return Interpreter(model_content=model, num_threads=1)


_HEAD_BYTES, _FOOT_BYTES = 12, 4  # length and its checksum; checksum of the data


def warmup_records(file: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file (tensorflow/core/lib/io/record_reader.cc).

    A file that ends within the head of a record counts as complete.

    Raises:
        ServingError: the file is damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        while len(head := stream.read(_HEAD_BYTES)) == _HEAD_BYTES:
            start = stream.tell() - _HEAD_BYTES
            if masked_crc(head[:8]) != head[8:]:
                hint = "" if start else " (Is this even a TFRecord file?)"
                raise _lost(f"corrupted record at {start}{hint}")
            (length,) = struct.unpack("<Q", head[:8])
            if stream.tell() + length + _FOOT_BYTES > size:
                reason = "Read less bytes than requested"
                raise _lost(f"truncated record at {start}' failed with {reason}")
            if length > MOST_BODY_BYTES:
                text = f"Warmup record at {start} of {file} has {length} bytes"
                raise invalid(f"{text}; {MOST_BODY_BYTES} at most can be sent")
            data = stream.read(length)
            if stream.read(_FOOT_BYTES) != masked_crc(data):
                raise _lost(f"corrupted record at {start + _HEAD_BYTES}")
            yield data


def replay_warmup(
    file: Path, send: Callable[[str, Any, Call], None], *, passes: int, ledger: Ledger
) -> int:
    """Send every stored request `passes` times.

    Args:
        file: the stored requests.
        send: takes the name of the method (`Predict`, `Classify`, `Regress`, `MultiInference`),
            the request message and the call; raises ServingError.
        passes: how often each request is sent.
        ledger: what each request may make the server hold.

    Returns:
        How many records there were.

    Raises:
        ServingError: the file cannot be read, or a request failed or claims too much.
    """
    count = 0
    for count, data in enumerate(warmup_records(file), 1):
        try:
            _replay(data, file, send, passes, ledger)
        except BudgetExceeded as error:
            raise ServingError(
                error.code, f"Warmup record {count} of {file}: {error.message}"
            ) from error
        if count > MAX_RECORDS:
            raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}")
    return count


def _replay(
    data: bytes, file: Path, send: Callable[[str, Any, Call], None], passes: int, ledger: Ledger
) -> None:
    with ledger.account("warm-up") as account:
        account.take(len(data) + cost_of_message("PredictionLog", data), "the message")
        method, message = _request(data, file)
        held_bytes = account.held_bytes
        for _ in range(passes):
            send(method, message, Call(account))
            account.keep(held_bytes)


_METHODS = {
    "predict_log": "Predict",
    "classify_log": "Classify",
    "regress_log": "Regress",
    "multi_inference_log": "MultiInference",
}


def _request(data: bytes, file: Path) -> tuple[str, Any]:
    try:
        log = protos.PredictionLog.FromString(data)
    except protos.DecodeError as error:
        text = data.decode("utf-8", "replace")
        raise invalid(f"Failed to parse warmup record: {text} from {file}") from error
    kind = log.WhichOneof("log_type")
    if kind not in _METHODS:
        raise ServingError(
            Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind or 'LOG_TYPE_NOT_SET'}"
        )
    return _METHODS[kind], getattr(log, kind).request


def _lost(what: str) -> ServingError:
    text = f"{what}. Please verify your warmup data is in TFRecord format."
    return ServingError(Code.DATA_LOSS, text)


_PER_MODEL_FILE = "batching_params.pbtxt"


class PreparingLoader:
    """Loads a version, puts batching around it and warms it up; implements `Loader`.

    Args:
        loader: what really loads.
        metrics: told of loads and warm-ups.
        batching: how requests are batched, None if they are not.
        scheduler: runs the batches; needed with `batching`.
        warmup_passes: how often stored requests are replayed.
    """

    def __init__(
        self,
        loader: Loader,
        metrics: Metrics,
        *,
        batching: BatchSettings | None = None,
        scheduler: BatchScheduler | None = None,
        warmup_passes: int = 0,
    ) -> None:
        self._loader = loader
        self._metrics = metrics
        self._batching = batching
        self._scheduler = scheduler
        self._warmup_passes = warmup_passes

    def __call__(self, version_dir: Path) -> Servable:
        """Load a version and make it ready.

        Raises:
            ServingError: it cannot be loaded, its batching options cannot work, or a warm-up
                request fails.
        """
        servable = self._load(version_dir)
        try:
            servable = self._batched(version_dir, servable)
            self._warm_up(version_dir, servable)
        except BaseException:
            servable.close()
            raise
        return servable

    def _load(self, version_dir: Path) -> Servable:
        path, started_ns = str(version_dir), time.perf_counter_ns()
        try:
            servable = self._loader(version_dir)
        except ServingError:
            self._metrics.add(LOAD_ATTEMPTS, (path, "fail"))
            raise
        self._metrics.add(LOAD_ATTEMPTS, (path, "success"))
        self._metrics.add(LOAD_LATENCY, (path,), int(micros_since(started_ns)))
        return servable

    def _batched(self, version_dir: Path, servable: Servable) -> Servable:
        """Put batching around a servable; with options per model, only where it brings some.

        Source: tensorflow_serving/servables/tensorflow/bundle_factory_util.cc.
        """
        if self._batching is None or self._scheduler is None:
            return servable
        options = self._batching.options
        if self._batching.per_model:
            own = version_dir / _PER_MODEL_FILE
            if not own.is_file():
                return servable
            options = batch_options(read_text_proto("BatchingParameters", str(own)))
        return BatchingServable(servable, self._scheduler, options, self._metrics)

    def _warm_up(self, version_dir: Path, servable: Servable) -> None:
        path, file = str(version_dir), version_dir / WARMUP_FILE
        if not self._warmup_passes or not file.is_file():
            return
        started_ns, status = time.perf_counter_ns(), "OK"
        try:
            # Of its own: what clients hold must not fail a load, nor a load their requests.
            ledger = Ledger(most_held_bytes(), MOST_REQUEST_BYTES)
            send = partial(_send, servable)
            count = replay_warmup(file, send, passes=self._warmup_passes, ledger=ledger)
            self._metrics.add(WARMUP_RECORDS, (path,), count)
        except ServingError as error:
            status = error.code.name
            raise
        finally:
            self._metrics.observe(WARMUP_LATENCY, micros_since(started_ns), (path, status))


def _send(servable: Servable, method: str, request: Any, call: Call) -> None:
    """Run a stored request; the model it names does not matter."""
    found, run = servable.signatures, partial(_run, servable, call)
    if method == "Predict":
        name, inputs = request.model_spec.signature_name, PredictInputs(request, call.account)
        run_signature(found, run, name, inputs, request.output_filter)
        return
    if method == "MultiInference":
        named = [(task.method_name, task.model_spec.signature_name) for task in request.tasks]
        tasks = checked_tasks(found, named, check_method=False)
    else:
        name = request.model_spec.signature_name
        tasks = [checked_task(found, _KINDS[method], name, check_method=False)]
    rows = messages.examples_from_input(request.input, call.account)
    run_inference(run, tasks, rows, call.account)


def _run(
    servable: Servable, call: Call, feeds: Arrays, fetches: Sequence[str]
) -> Sequence[NDArray[Any]]:
    values = servable.run(feeds, fetches, call=call)
    call.account.take(cost_of_arrays(values), "the outputs")
    return values


_KINDS = {"Classify": CLASSIFY, "Regress": REGRESS}
