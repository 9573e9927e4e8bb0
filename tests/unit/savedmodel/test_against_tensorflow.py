"""What we say without tensorflow is what tensorflow and the official package say.

Everything here needs the wheel, and importing it takes seconds: it happens once, in this file.
"""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from tfserve_kit import protos, savedmodel
from tfserve_kit.savedmodel.checkpoint import shard_sizes
from tfserve_kit.tensors import dtypes, from_proto, predict_request, to_proto

pytestmark = pytest.mark.tensorflow

NUMBERS = [row for row in dtypes.TABLE if row is not dtypes.STRING]
SHAPES = [(), (3,), (2, 3), (0,), (2, 0), (1, 1, 1)]

# Both in one process, imported in either order: neither pool may notice the other.
TOGETHER = """
import sys, warnings
warnings.simplefilter("ignore")
{imports}
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tfserve_kit import protos, tensors
theirs, ours = predict_pb2.PredictRequest(), protos.PredictRequest()
assert type(theirs) is not type(ours)
ours.inputs["x"].CopyFrom(tensors.to_proto([1.5]))
theirs.ParseFromString(ours.SerializeToString())
assert tf.make_ndarray(theirs.inputs["x"]).tolist() == [1.5]
assert type(ours).FromString(theirs.SerializeToString()) == ours
"""


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def official(tf):
    """Return the modules of the official package by short name."""
    pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    from tensorflow.core.protobuf import config_pb2, saved_model_pb2, tensor_bundle_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        model_service_pb2,
        predict_pb2,
        prediction_log_pb2,
        prediction_service_pb2,
    )
    from tensorflow_serving.config import model_server_config_pb2, platform_config_pb2

    modules = (
        config_pb2,
        get_model_metadata_pb2,
        model_server_config_pb2,
        model_service_pb2,
        platform_config_pb2,
        predict_pb2,
        prediction_log_pb2,
        prediction_service_pb2,
        saved_model_pb2,
        tensor_bundle_pb2,
    )
    return {module.__name__.rpartition(".")[2]: module for module in modules}


@pytest.fixture(scope="module", autouse=True)
def together():
    """Start the processes of both import orders, so that they run while the others are tested."""
    orders = {
        "ours first": "import tfserve_kit.protos; tfserve_kit.protos.PredictRequest()",
        "theirs first": "from tensorflow_serving.apis import prediction_service_pb2",
    }
    started = {
        order: subprocess.Popen(
            [sys.executable, "-c", TOGETHER.format(imports=imports)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        for order, imports in orders.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.wait()
        process.stderr.close()


def official_descriptors(modules):
    """Return the descriptors of all messages the modules' files and their imports define."""
    files, found = {}, {}

    def visit_file(file):
        if file.name not in files:
            files[file.name] = file
            for dependency in file.dependencies:
                visit_file(dependency)
            for message in file.message_types_by_name.values():
                visit_message(message)

    def visit_message(message):
        found[message.full_name] = message
        for nested in message.nested_types:
            visit_message(nested)

    for module in modules:
        visit_file(module.DESCRIPTOR)
    return found


def fields(descriptor):
    return {
        (
            field.name,
            field.number,
            field.type,
            field.is_repeated,
            field.has_presence,
            field.message_type.full_name if field.message_type else None,
            field.enum_type.full_name if field.enum_type else None,
            field.containing_oneof.name if field.containing_oneof else None,
        )
        for field in descriptor.fields
    }


def values(descriptor):
    return {(value.name, value.number) for enum in descriptor.enum_types for value in enum.values}


class TestSchema:
    def test_every_message_of_both_has_the_same_fields(self, official):
        theirs = official_descriptors(official.values())
        assert {"tensorflow.TensorProto", "tensorflow.serving.PredictRequest"} <= theirs.keys()
        assert len(theirs) > 100
        for name, descriptor in theirs.items():
            ours = protos.message_class(name).DESCRIPTOR
            assert fields(ours) == fields(descriptor), name
            assert values(ours) == values(descriptor), name

    def test_methods_are_those_of_the_official_services(self, official):
        theirs = {}
        for module in ("prediction_service_pb2", "model_service_pb2"):
            for service in official[module].DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    path = f"/{service.full_name}/{method.name}"
                    theirs[method.name] = (path, method.input_type.name, method.output_type.name)
        assert theirs == {
            name: (method.path, method.request, method.response)
            for name, method in protos.METHODS.items()
        }

    @pytest.mark.parametrize("order", ["ours first", "theirs first"])
    def test_both_live_in_one_process(self, tf, together, order):
        errors = together[order].stderr.read()
        assert together[order].wait() == 0, errors


@pytest.mark.parametrize("row", dtypes.TABLE, ids=lambda row: row.name)
def test_dtype_is_tensorflows(tf, row):
    theirs = tf.dtypes.as_dtype(row.number)
    assert (theirs.as_datatype_enum, theirs.as_numpy_dtype) == (row.number, row.numpy)
    assert theirs.name == {"float": "float32", "double": "float64", "half": "float16"}.get(
        row.name, row.name
    )


def plain(value):
    """Return what `Tensor.numpy` gave as Python values: a single string comes as bytes already."""
    return value if isinstance(value, bytes) else value.tolist()


def sample(row, shape):
    """Return an array with other values in each place, minus zero and the largest among them."""
    count = int(np.prod(shape))
    if row is dtypes.STRING:
        array = np.empty(count, object)
        array[:] = [b"\xff\0%d\0" % i for i in range(count)]
        return array.reshape(shape)
    flat = np.arange(count).astype(row.numpy)
    if row.numpy.kind in "iu" and count:
        flat[-1] = np.iinfo(row.numpy).min or np.iinfo(row.numpy).max
    if row.numpy.kind == "c":
        flat = flat * row.numpy.type(1 - 2j)
    if row.numpy.kind == "f" and count:
        flat[0] = -0.0
    return flat.astype(row.numpy).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("row", dtypes.TABLE, ids=lambda row: row.name)
class TestTensors:
    @pytest.mark.parametrize("as_content", [True, False])
    def test_tensorflow_reads_what_we_write(self, tf, row, shape, as_content):
        array = sample(row, shape)
        ours = to_proto(array, as_content=as_content)
        theirs = tf.make_tensor_proto(0).FromString(ours.SerializeToString())
        found = tf.make_ndarray(theirs)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tolist() == array.tolist()
        if row is not dtypes.STRING:
            assert found.tobytes() == array.tobytes()
        # The runtime parses by its own code, in C++.
        parsed = tf.io.parse_tensor(ours.SerializeToString(), tf.as_dtype(row.number)).numpy()
        assert plain(parsed) == array.tolist()

    def test_we_read_what_tensorflow_writes(self, tf, row, shape):
        array = sample(row, shape)
        kind = tf.as_dtype(row.number)
        python = tf.make_tensor_proto(array, dtype=kind).SerializeToString()
        runtime = tf.io.serialize_tensor(tf.constant(array, dtype=kind)).numpy()
        for content in (python, runtime):
            found = from_proto(protos.TensorProto.FromString(content))
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tolist() == array.tolist()

    def test_official_class_reads_our_request_bytes(self, tf, official, row, shape):
        array = sample(row, shape)
        spec = protos.ModelSpec(name="m", signature_name="s").SerializeToString()
        content = predict_request({"x": array, "y": array}, spec, ["out"])
        found = official["predict_pb2"].PredictRequest.FromString(content)
        assert (found.model_spec.name, found.model_spec.signature_name) == ("m", "s")
        assert list(found.output_filter) == ["out"]
        assert found.inputs.keys() == {"x", "y"}
        for tensor in found.inputs.values():
            back = tf.make_ndarray(tensor)
            assert (back.dtype, back.shape) == (array.dtype, array.shape)
            assert back.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("dtype", "field", "sent"),
    [
        ("float", "float_val", [1, 2]),
        ("int32", "int_val", [1, 2, 3, 4, 5, 6]),
        ("int64", "int64_val", []),
        ("int8", "int_val", [300]),
        ("complex64", "scomplex_val", [1, 2, 3, 4]),
        ("half", "half_val", [0x3C00]),
        ("bool", "bool_val", [True]),
        ("string", "string_val", [b"a", b"b"]),
        ("double", "float_val", [1, 2]),
        ("uint64", "uint64_val", [2**64 - 1]),
    ],
)
def test_missing_and_surplus_values_are_filled_and_cut_as_the_runtime_does(tf, dtype, field, sent):
    row = dtypes.by_name(dtype)
    message = protos.TensorProto(dtype=row.number, **{field: sent})
    message.tensor_shape.dim.add(size=4)
    theirs = tf.io.parse_tensor(message.SerializeToString(), tf.as_dtype(row.number)).numpy()
    assert from_proto(message).tolist() == theirs.tolist()


class TestCheckpoints:
    def test_sizes_are_those_of_the_tensors_and_of_the_files(self, tf, models):
        indexes = sorted(models.rglob("variables.index"))
        assert indexes
        for index in indexes:
            reader = tf.train.load_checkpoint(str(index.with_suffix("")))
            kinds = reader.get_variable_to_dtype_map()
            plain = sum(
                kinds[name].size * int(np.prod(shape))
                for name, shape in reader.get_variable_to_shape_map().items()
                if kinds[name] != tf.string
            )
            ((name, size),) = shard_sizes(index).items()
            assert size == (index.parent / name).stat().st_size
            assert plain <= size
            if tf.string not in kinds.values():
                assert plain == size

    def test_index_of_many_blocks_and_shards_is_read(self, tf, tmp_path):
        parts = []
        for shard in range(3):
            names = [f"model/layer_{shard}_{i:05d}/.ATTRIBUTES/VARIABLE_VALUE" for i in range(1500)]
            prefix = str(tmp_path / f"part{shard}")
            tensors = [tf.constant([float(i)] * (shard + 1)) for i in range(len(names))]
            tf.raw_ops.SaveV2(
                prefix=prefix, tensor_names=names, shape_and_slices=[""] * 1500, tensors=tensors
            )
            parts.append(prefix)
        whole = tmp_path / "whole"
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(whole))
        index = tmp_path / "whole.index"
        assert index.stat().st_size > 10 * 4096
        sizes = shard_sizes(index)
        assert sizes == {
            f"whole.data-0000{shard}-of-00003": 1500 * 4 * (shard + 1) for shard in range(3)
        }
        assert sizes == {path.name: path.stat().st_size for path in tmp_path.glob("whole.data-*")}


class TestSavedModels:
    def test_signatures_are_those_tensorflow_loads(self, tf, models):
        for folder in sorted(models.glob("*/1")):
            if folder.parent.name == "othertag":
                continue
            graph = tf.compat.v1.Graph()
            with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
                meta = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
            theirs = {
                name: (
                    {alias: (info.name, info.dtype) for alias, info in each.inputs.items()},
                    {alias: (info.name, info.dtype) for alias, info in each.outputs.items()},
                    each.method_name,
                )
                for name, each in meta.signature_def.items()
                if not name.startswith("__saved_model")
            }
            assert theirs == {
                name: (
                    {alias: (spec.name, spec.dtype.number) for alias, spec in each.inputs.items()},
                    {alias: (spec.name, spec.dtype.number) for alias, spec in each.outputs.items()},
                    each.method_name,
                )
                for name, each in savedmodel.read_signatures(folder).items()
            }

    def test_graph_with_one_tag_more_is_refused_by_both(self, tf, models, tmp_path):
        message = protos.SavedModel.FromString(
            (models / "nodefault" / "1" / "saved_model.pb").read_bytes()
        )
        message.meta_graphs[0].meta_info_def.tags.append("tpu")
        (tmp_path / "saved_model.pb").write_bytes(message.SerializeToString())
        for tags in (["serve"], ["tpu"]):
            with tf.compat.v1.Session(graph=tf.Graph()) as session, pytest.raises(RuntimeError):
                tf.compat.v1.saved_model.load(session, tags, str(tmp_path))
            with pytest.raises(ValueError, match=r"serve\+tpu"):
                savedmodel.read_signatures(tmp_path, tag=",".join(tags))
        with tf.compat.v1.Session(graph=tf.Graph()) as session:
            tf.compat.v1.saved_model.load(session, ["tpu", "serve"], str(tmp_path))
        assert savedmodel.read_signatures(tmp_path, tag="tpu,serve").keys() == {"other"}

    def test_asset_that_tensorflow_saved_is_missed_when_it_is_gone(self, tf, tmp_path):
        vocabulary = tmp_path / "vocab.txt"
        vocabulary.write_text("a\nb\n")
        module = tf.Module()
        module.asset = tf.saved_model.Asset(str(vocabulary))
        folder = tmp_path / "model"
        tf.saved_model.save(module, str(folder))
        assert savedmodel.problems(folder) == []
        (folder / "assets" / "vocab.txt").unlink()
        assert [problem.path for problem in savedmodel.problems(folder)] == ["assets/vocab.txt"]
