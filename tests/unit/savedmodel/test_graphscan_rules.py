"""The static scan's rules: which operations are refused, and which files may be read."""

import subprocess
import sys
import textwrap

import pytest

from tests.unit.saved_models import (
    STRING,
    add,
    asset,
    found,
    function,
    init,
    messages,
    meta_graph,
    text,
)
from tfserve_kit import protos
from tfserve_kit.savedmodel import scan
from tfserve_kit.savedmodel import scan as graphscan


class TestFiles:
    def table(self, graph, source="path"):
        add(graph.graph_def.node, "fill", "InitializeTableFromTextFileV2", "table", source)
        add(graph.graph_def.node, "table", "HashTableV2")
        init(graph, "fill")

    def test_table_from_an_asset_is_normal(self):
        graph = meta_graph(("y", "Identity", "x"), ("path", "Const"))
        asset(graph)
        self.table(graph)
        assert found(graph) == {}

    def test_asset_in_an_old_collection_is_known(self):
        graph = meta_graph(("y", "Identity", "x"), ("path", "Const"))
        self.table(graph)
        each = protos.AssetFileDef(filename="words.txt")
        each.tensor_info.name = "path:0"
        graph.collection_def["saved_model_assets"].any_list.value.add().Pack(each)
        assert found(graph) == {}

    def test_table_from_another_file_is_refused_with_its_path(self):
        graph = meta_graph(("y", "Identity", "x"))
        text(graph.graph_def.node, "path", "/etc/passwd")
        self.table(graph)
        assert found(graph) == {"InitializeTableFromTextFileV2": "error"}
        assert "'/etc/passwd'" in messages(graph)

    def test_name_that_is_computed_is_refused(self):
        graph = meta_graph(("y", "ReadFile", "x"))
        assert found(graph) == {"ReadFile": "error"}
        assert "one named by Placeholder" in messages(graph)

    def through_functions(self, graph, *callers):
        """Let `read` of function `inner` read what each caller gives to `outer`."""
        nodes = function(graph, "inner", ["name"])
        add(nodes, "same", "Identity", "name")
        add(nodes, "read", "ReadFile", "same:output:0")
        add(function(graph, "outer", ["a", "name"]), "call", "PartitionedCall", "name", f="inner")
        for at, source in enumerate(callers):
            add(graph.graph_def.node, f"call{at}", "If", "x", "x", source, then_branch="outer")
            graph.graph_def.node[1].input.append(f"call{at}")

    def test_name_is_followed_through_functions_to_an_asset(self):
        graph = meta_graph(("y", "Identity"), ("path", "Placeholder"))
        asset(graph)
        self.through_functions(graph, "path")
        assert found(graph) == {"ReadFile": "info"}
        assert "its own asset words.txt" in messages(graph)

    def test_one_caller_with_another_name_is_enough_to_refuse(self):
        graph = meta_graph(("y", "Identity"), ("path", "Placeholder"))
        asset(graph)
        text(graph.graph_def.node, "secret", "/etc/shadow")
        self.through_functions(graph, *["path"] * 400, "secret")
        assert found(graph) == {"ReadFile": "error"}
        assert "'/etc/shadow'" in messages(graph)

    def test_name_is_followed_through_a_variable(self):
        graph = meta_graph(
            ("path", "Placeholder"),
            ("variable", "VarHandleOp"),
            ("name", "ReadVariableOp", "variable"),
            ("y", "ReadFile", "name"),
        )
        asset(graph)
        add(graph.graph_def.node, "set", "AssignVariableOp", "variable", "path", dtype=STRING)
        assert found(graph) == {"ReadFile": "info"}
        text(graph.graph_def.node, "secret", "/etc/shadow")
        add(graph.graph_def.node, "set2", "AssignVariableOp", "variable", "secret", dtype=STRING)
        assert found(graph) == {"ReadFile": "error"}

    def test_constant_is_an_asset_only_while_loading(self):
        graph = meta_graph(("y", "ReadFile", "path"))
        text(graph.graph_def.node, "path", "/etc/passwd")
        asset(graph)
        assert found(graph) == {"ReadFile": "error"}

    def test_names_that_go_round_in_circles_are_computed(self):
        graph = meta_graph(("a", "Identity", "b"), ("b", "Identity", "a"), ("y", "ReadFile", "a"))
        assert found(graph) == {"ReadFile": "error"}

    def test_empty_name_is_no_file(self):
        graph = meta_graph(("y", "CacheDataset", "x", "name"))
        text(graph.graph_def.node, "name", "")
        assert found(graph) == {}

    def test_every_name_in_a_constant_counts(self):
        graph = meta_graph(("y", "TFRecordDataset", "names"))
        constant = text(graph.graph_def.node, "names", "")
        constant.attr["value"].tensor.string_val.append(b"/etc/passwd")
        assert found(graph) == {"TFRecordDataset": "error"}

    @pytest.mark.parametrize("filename", ["/etc/passwd", "../../secret", "a/../../b"])
    def test_asset_outside_the_assets_is_refused(self, filename):
        graph = meta_graph(("y", "Identity", "x"))
        asset(graph, filename=filename)
        assert found(graph) == {"": "error"}
        assert repr(filename) in messages(graph)


class TestRules:
    @pytest.mark.parametrize(
        ("op", "attributes", "severity"),
        [
            ("PrintV2", {"output_stream": b"file:///tmp/x"}, "error"),
            ("PrintV2", {"output_stream": b"stderr"}, "warning"),
            ("PrintV2", {}, "warning"),
            ("DecodeProtoV2", {"descriptor_source": b"/tmp/x"}, "error"),
            ("DecodeProtoV2", {"descriptor_source": b"local://"}, None),
            ("DecodeProtoV2", {}, None),
            ("DebugIdentity", {"debug_urls": [b"file:///tmp"]}, "error"),
            ("DebugIdentity", {"debug_urls": []}, None),
            ("FusedBatchNormV3", {"is_training": True}, "warning"),
            ("FusedBatchNormV3", {}, "warning"),
            ("FusedBatchNormV3", {"is_training": False}, None),
            ("ResourceApplyAdam", {}, "warning"),
            ("SparseApplyFtrl", {}, "warning"),
            ("AssignAddVariableOp", {}, "warning"),
            ("XlaCallModule", {}, "info"),
            ("ImmutableConst", {}, "error"),
            ("DatasetFromGraph", {}, "error"),
            ("RpcClient", {}, "error"),
            ("CreateSummaryFileWriter", {}, "error"),
            ("Abort", {}, "error"),
            ("MatMul", {}, None),
            ("RandomUniform", {}, None),
            ("ShardedFilename", {}, None),
        ],
    )
    def test_operation_in_a_signature(self, op, attributes, severity):
        graph = meta_graph()
        add(graph.graph_def.node, "y", op, "x", **attributes)
        assert found(graph).get(op) == severity

    def test_setting_variables_while_loading_is_normal(self):
        graph = meta_graph(("y", "Identity", "x"), ("set", "AssignVariableOp"))
        init(graph, "set")
        assert found(graph) == {}

    def test_every_rule_is_about_an_operation_that_exists(self):
        known = scan.registered() | scan.TEXT_OPS | scan.FOREST_OPS
        assert scan.rules_by_op().keys() <= known

    def test_registry_holds_what_is_served_but_not_what_only_tests_use(self):
        assert {"MatMul", "StatefulPartitionedCall", "XlaCallModule"} <= scan.registered()
        assert not {"SleepOp", "Foo1", "ResourceUsingOp"} & scan.registered()

    def test_what_others_add_is_not_in_the_registry(self):
        assert not (scan.TEXT_OPS | scan.FOREST_OPS) & scan.registered()

    def test_many_of_one_kind_are_one_finding(self):
        graph = meta_graph(("y", "Identity", "x"), *((f"n{i}", "PyFunc") for i in range(50)))
        (finding,) = graphscan.scan_graph(graph).findings
        assert finding.count == 50
        assert "[50 times]" in str(finding.problem)

    def test_worst_comes_first(self):
        graph = meta_graph(("a", "XlaCallModule"), ("b", "Print"), ("y", "PyFunc", "a", "b"))
        severities = [each.severity for each in graphscan.scan_graph(graph).findings]
        assert severities == ["error", "warning", "info"]


class TestForeignOperations:
    def test_unknown_one_in_the_graph_is_refused_even_where_nothing_needs_it(self):
        graph = meta_graph(("y", "Identity", "x"), ("z", "IO>KafkaReadable"))
        assert found(graph) == {"IO>KafkaReadable": "error"}

    def test_unknown_one_in_a_function_counts_if_it_runs(self):
        graph = meta_graph()
        add(graph.graph_def.node, "y", "PartitionedCall", "x", f="f")
        add(function(graph, "f"), "z", "ZeroOut")
        assert found(graph) == {"ZeroOut": "error"}
        graph.graph_def.node[1].attr.clear()
        assert found(graph) == {"ZeroOut": "info"}

    @pytest.mark.parametrize(
        ("op", "package"),
        [("SentencepieceTokenizeOp", "tensorflow_text"), ("SimpleMLInferenceOp", "forests")],
    )
    def test_one_that_the_official_server_has_is_a_warning(self, op, package):
        graph = meta_graph(("y", op, "x"))
        assert found(graph) == {op: "warning"}
        assert package in messages(graph)


BUILD = textwrap.dedent("""
    import sys
    import tensorflow as tf

    open("words.txt", "w").write("a\\nb\\n")
    v1, text = tf.compat.v1, tf.TensorSpec([None], tf.string)

    def table():
        columns = tf.lookup.TextFileIndex
        words = tf.lookup.TextFileInitializer(
            "words.txt", tf.string, columns.WHOLE_LINE, tf.int64, columns.LINE_NUMBER)
        return tf.lookup.StaticHashTable(words, -1)

    class Words(tf.Module):
        def __init__(self):
            self.table, self.asset = table(), tf.saved_model.Asset("words.txt")

        @tf.function(input_signature=[text])
        def look(self, x):
            return {"y": self.table.lookup(x)}

        @tf.function(input_signature=[text])
        def own(self, x):
            return {"y": tf.io.read_file(self.asset.asset_path)}

        @tf.function(input_signature=[text])
        def any(self, x):
            return {"y": tf.map_fn(tf.io.read_file, x)}

    words = Words()
    tf.saved_model.save(words, "words", {"serving_default": words.look, "own": words.own})
    tf.saved_model.save(words, "any", {"serving_default": words.any})

    class Net(tf.Module):
        def __init__(self):
            self.w = tf.Variable([[1.0]])

        @tf.function(input_signature=[tf.TensorSpec([None, 1])])
        def train(self, x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(x @ self.w)
            slope = tape.gradient(loss, self.w)
            tf.raw_ops.ResourceApplyGradientDescent(var=self.w.handle, alpha=0.1, delta=slope)
            return {"loss": loss}

        @tf.function(input_signature=[tf.TensorSpec([None, 1])])
        def serve(self, x):
            if tf.reduce_sum(x) > 0:
                return {"y": x @ self.w}
            return {"y": x}

    net = Net()
    tf.saved_model.save(net, "net", {"serving_default": net.serve})
    tf.saved_model.save(net, "trains", {"serving_default": net.train})

    @tf.function(input_signature=[tf.TensorSpec([None])])
    def python(x):
        return {"y": tf.numpy_function(lambda v: v, [x], tf.float32)}

    module = tf.Module()
    module.f = python
    tf.saved_model.save(module, "python", {"serving_default": python})
    """)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of models that tensorflow exported."""
    pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("exported")
    (folder / "build.py").write_text(BUILD)  # a file: tensorflow reads the source of functions
    command = [sys.executable, "build.py"]
    subprocess.run(command, cwd=folder, check=True, timeout=600)
    return folder


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("words", {"ReadFile": "info"}),
        ("any", {"ReadFile": "error"}),
        ("net", {"ResourceApplyGradientDescent": None}),
        ("trains", {"ResourceApplyGradientDescent": "warning"}),
        ("python", {"PyFunc": "error"}),
    ],
)
def test_what_tensorflow_exports(exported, model, expected):
    severities = found(graphscan.meta_graph(exported / model))
    assert (
        severities.items() <= {"SaveV2": "info", "MergeV2Checkpoints": "info", **expected}.items()
    )
    assert {op: severities.get(op) for op in expected} == expected
