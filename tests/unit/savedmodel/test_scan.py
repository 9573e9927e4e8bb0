"""The static scan: what runs in a server, which operations are refused, what a model holds."""

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
    tensor,
    text,
    write,
)
from tfserve_kit import protos, savedmodel
from tfserve_kit.savedmodel import scan
from tfserve_kit.savedmodel.signatures import obstacles


class TestWhatRuns:
    def test_operation_that_an_output_needs_is_refused_with_its_place(self):
        graph = meta_graph(("other", "Sqrt", "x"), ("y", "WriteFile", "x", "other"))
        (finding,) = scan.scan_graph(graph).findings
        assert (finding.severity, finding.rule, finding.path) == ("error", "WriteFile", "WriteFile")
        assert "node 'y'" in finding.message
        assert "signature 'serving_default'" in finding.message
        assert finding.remedy.endswith("--allow-op WriteFile")

    def test_operation_that_fails_all_the_same_is_allowed_with_a_warning(self):
        (finding,) = scan.scan_graph(meta_graph(("y", "EagerPyFunc", "x"))).findings
        assert finding.remedy.endswith("--allow-op EagerPyFunc; requests will then fail")

    @pytest.mark.parametrize("edge", ["read", "read:1", "^read"])
    def test_data_and_control_inputs_are_followed(self, edge):
        graph = meta_graph(("read", "PyFunc"), ("y", "Identity", "x", edge))
        assert found(graph) == {"PyFunc": "error"}

    def test_operation_that_nothing_needs_is_only_told(self):
        graph = meta_graph(("read", "PyFunc"), ("y", "Identity", "x"))
        assert found(graph) == {"PyFunc": "info"}

    def test_what_is_fed_is_not_computed(self):
        graph = meta_graph(("read", "PyFunc"), ("x2", "Identity", "read"), ("y", "Identity", "x2"))
        assert found(graph) == {"PyFunc": "error"}
        tensor(graph.signature_def["serving_default"].inputs["x"], "x2:0")
        assert found(graph) == {"PyFunc": "info"}

    def test_what_one_signature_feeds_another_still_computes(self):
        graph = meta_graph(("read", "PyFunc"), ("x2", "Identity", "read"), ("y", "Identity", "x2"))
        tensor(graph.signature_def["serving_default"].inputs["x"], "x2:0")
        tensor(graph.signature_def["raw"].outputs["y"], "y:0")
        assert found(graph) == {"PyFunc": "error"}
        assert "signature 'raw'" in messages(graph)

    def test_too_many_signatures_are_walked_together_as_if_nothing_were_fed(self, monkeypatch):
        graph = meta_graph(("read", "PyFunc"), ("x2", "Identity", "read"), ("y", "Identity", "x2"))
        tensor(graph.signature_def["serving_default"].inputs["x"], "x2:0")
        monkeypatch.setattr("tfserve_kit.savedmodel.graph._MOST_VISITS", 0)
        assert found(graph) == {"PyFunc": "error"}

    def test_control_input_from_a_fed_node_is_followed(self):
        graph = meta_graph(("read", "PyFunc"), ("y", "Identity", "x", "^read"))
        tensor(graph.signature_def["serving_default"].inputs["x"], "read:0")
        assert found(graph) == {"PyFunc": "error"}

    def test_sparse_and_composite_outputs_are_followed(self):
        graph = meta_graph(("read", "PyFunc"), ("y", "Identity", "x"))
        outputs = graph.signature_def["serving_default"].outputs
        outputs["s"].coo_sparse.values_tensor_name = "read:0"
        outputs["s"].coo_sparse.indices_tensor_name = "y:0"
        outputs["s"].coo_sparse.dense_shape_tensor_name = "y:0"
        assert found(graph) == {"PyFunc": "error"}
        outputs["s"].composite_tensor.components.add(name="read:0")
        assert found(graph) == {"PyFunc": "error"}

    @pytest.mark.parametrize("how", ["signature", "saved_model_main_op", "legacy_init_op"])
    def test_init_operation_runs(self, how):
        graph = meta_graph(("y", "Identity", "x"), ("read", "PyFunc"), ("init", "NoOp", "^read"))
        if how == "signature":
            init(graph, "init")
        else:
            graph.collection_def[how].node_list.value.append("init")
        assert found(graph) == {"PyFunc": "error"}
        assert "the init operation" in messages(graph)

    def test_restoring_variables_runs_but_may_read_a_checkpoint(self):
        nodes = [("y", "Identity", "x"), ("load", "RestoreV2"), ("all", "NoOp", "^load")]
        graph = meta_graph(*nodes)
        graph.saver_def.restore_op_name = "all"
        assert found(graph) == {}
        add(graph.graph_def.node, "more", "WriteFile")
        graph.graph_def.node[-2].input.append("^more")
        assert found(graph) == {"WriteFile": "error"}
        assert "restoring variables" in messages(graph)

    def test_saving_is_never_run(self):
        graph = meta_graph(("y", "Identity", "x"), ("save", "SaveV2"))
        graph.saver_def.save_tensor_name = "save:0"
        assert found(graph) == {"SaveV2": "info"}

    @pytest.mark.parametrize("op", ["SaveV2", "RestoreV2"])
    def test_signature_must_not_touch_checkpoints(self, op):
        graph = meta_graph(("y", op, "x"))
        graph.saver_def.restore_op_name = "y"
        assert found(graph) == {op: "error"}


class TestFunctions:
    def test_called_function_runs_and_others_do_not(self):
        graph = meta_graph(("y", "Identity", "x"))
        add(function(graph, "f"), "read", "PyFunc")
        assert found(graph) == {"PyFunc": "info"}
        add(graph.graph_def.node, "call", "StatefulPartitionedCall", "x", f="f")
        graph.graph_def.node[1].input.append("^call")
        assert found(graph) == {"PyFunc": "error"}
        assert "node 'read' of function 'f'" in messages(graph)

    def test_function_named_in_a_list_or_within_a_reference_runs(self):
        graph = meta_graph(("y", "Case", "x"))
        branches = graph.graph_def.node[1].attr["branches"].list.func
        branches.add(name="g").attr["inner"].func.name = "f"
        add(function(graph, "f"), "read", "PyFunc")
        assert found(graph) == {"PyFunc": "error"}

    def test_function_used_as_an_operation_runs_and_is_no_unknown_operation(self):
        graph = meta_graph(("y", "my_function", "x"))
        add(function(graph, "my_function"), "read", "PyFunc")
        assert found(graph) == {"PyFunc": "error"}

    def test_functions_that_call_each_other_end(self):
        graph = meta_graph()
        add(graph.graph_def.node, "y", "PartitionedCall", "x", f="f0")
        for at in range(3000):
            nodes = function(graph, f"f{at}")
            add(nodes, "call", "PartitionedCall", f=f"f{(at + 1) % 3000}")
        add(nodes, "read", "PyFunc")
        assert found(graph) == {"PyFunc": "error"}

    def test_function_that_the_optimizer_may_take_instead_runs(self):
        graph = meta_graph()
        add(graph.graph_def.node, "y", "PartitionedCall", "x", f="on_cpu")
        function(graph, "on_cpu", api_implements=b"lstm")
        add(function(graph, "on_gpu", api_implements=b"lstm"), "read", "PyFunc")
        assert found(graph) == {"PyFunc": "error"}

    def test_gradient_of_a_function_runs_with_it(self):
        graph = meta_graph()
        add(graph.graph_def.node, "y", "PartitionedCall", "x", f="f")
        function(graph, "f")
        add(function(graph, "df"), "read", "PyFunc")
        graph.graph_def.library.gradient.add(function_name="f", gradient_func="df")
        assert found(graph) == {"PyFunc": "error"}


class TestTheWhole:
    def test_signature_of_a_missing_tensor_is_refused(self):
        graph = meta_graph(output="nowhere")
        assert found(graph) == {"": "error"}
        assert "'nowhere:0'" in messages(graph)

    def test_node_whose_input_is_missing_is_refused(self):
        assert "'gone'" in messages(meta_graph(("y", "Identity", "x", "gone")))

    def test_nodes_pinned_to_a_gpu_are_one_warning(self):
        graph = meta_graph(("a", "Sqrt", "x"), ("y", "Sqrt", "a"))
        for node in graph.graph_def.node[1:]:
            node.device = "/job:localhost/device:GPU:0"
        (finding,) = scan.scan_graph(graph).findings
        assert finding.severity == "warning"
        assert finding.message.endswith(" [2 times]")

    def test_functions_for_xla_are_told(self):
        graph = meta_graph(("y", "Identity", "x"))
        function(graph, "fast", _XlaMustCompile=True)
        assert found(graph) == {"": "info"}

    def test_operations_are_counted_everywhere_most_frequent_first(self):
        graph = meta_graph(("a", "Sqrt", "x"), ("y", "Sqrt", "a"))
        add(function(graph, "f"), "b", "Sqrt")
        seen = scan.scan_graph(graph)
        assert list(seen.operations.items()) == [("Sqrt", 3), ("Placeholder", 1)]
        assert seen.functions == 1

    def test_deep_graph_and_many_signatures_are_no_problem(self):
        chain = [(f"n{i}", "Identity", f"n{i - 1}" if i else "x") for i in range(20_000)]
        graph = meta_graph(*chain, ("y", "PyFunc", "n19999"))
        for at in range(500):
            tensor(graph.signature_def[f"s{at}"].outputs["y"], "y:0")
        assert found(graph) == {"PyFunc": "error"}


class TestFacts:
    def test_variables_are_counted_without_the_bookkeeping(self, models):
        version = models / "half_plus_two" / "1"
        facts = scan.read_contents(version, savedmodel.meta_graph(version))
        assert (facts.parameters, facts.parameter_bytes) == (2, 8)
        assert {name.partition("/")[0] for name in facts.variables} == {"a", "b"}
        assert facts.tensorflow_version.startswith("2.")
        assert (facts.fingerprint, facts.warmup, facts.note, facts.assets) == (
            True,
            False,
            False,
            (),
        )

    def test_matrix_has_its_shape_and_type(self, models):
        version = models / "mlp" / "1"
        (variable,) = scan.read_contents(version, savedmodel.meta_graph(version)).variables.values()
        assert variable.dtype.name == "float"
        assert variable.shape == (784, 10)
        assert variable.size_bytes == 784 * 10 * 4

    def test_files_beside_the_graph_are_seen(self, tmp_path):
        graph = meta_graph(("y", "Identity", "x"))
        asset(graph)
        write(tmp_path, graph)
        (tmp_path / "assets.extra").mkdir()
        for name in ("tf_serving_warmup_requests", "tfkit.json"):
            (tmp_path / "assets.extra" / name).touch()
        facts = scan.read_contents(tmp_path, graph)
        assert (facts.warmup, facts.note, facts.assets) == (True, True, ("words.txt",))
        assert facts.parameters == 0

    def test_damaged_index_counts_as_no_variables(self, models, tmp_path):
        graph = savedmodel.meta_graph(models / "mlp" / "1")
        (tmp_path / "variables").mkdir()
        (tmp_path / "variables" / "variables.index").write_bytes(b"no table" * 20)
        assert scan.read_contents(tmp_path, graph).variables == {}

    @pytest.mark.parametrize(
        ("model", "signature", "answer"),
        [("mlp", "serving_default", True), ("scalars", "scalar", False), ("scalars", "echo", True),
         ("scalars", "no_input", False)],
    )  # fmt: skip
    def test_batchable_if_every_first_axis_is_open(self, models, model, signature, answer):
        found = savedmodel.read_signatures(models / model / "1")[signature]
        assert (not list(obstacles(found))) is answer


class TestReading:
    def test_damaged_file_is_a_value_error(self, tmp_path):
        (tmp_path / "saved_model.pb").write_bytes(b"\xff" * 100)
        with pytest.raises(ValueError, match="100 bytes"):
            savedmodel.meta_graph(tmp_path)

    def test_damaged_asset_is_a_value_error(self, tmp_path):
        graph = meta_graph(("y", "Identity", "x"))
        packed = graph.collection_def["saved_model_assets"].any_list.value.add()
        packed.Pack(protos.AssetFileDef(filename="words.txt"))
        packed.value = packed.value[:-1]
        with pytest.raises(ValueError, match="asset"):
            scan.scan_graph(savedmodel.meta_graph(write(tmp_path, graph)))

    def test_tag_chooses_the_graph(self, tmp_path):
        write(tmp_path, meta_graph(tags=["train"]), meta_graph(tags=["serve", "gpu"]))
        assert savedmodel.meta_graph(tmp_path, tag="gpu,serve").meta_info_def.tags == [
            "serve",
            "gpu",
        ]
        with pytest.raises(ValueError, match="'serve'"):
            savedmodel.meta_graph(tmp_path)


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
        assert "one whose name is computed (Placeholder)" in messages(graph)

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
        (finding,) = scan.scan_graph(graph).findings
        assert finding.message.endswith(" [50 times]")
        assert "[50 times]" in str(finding)

    def test_worst_comes_first(self):
        graph = meta_graph(("a", "XlaCallModule"), ("b", "Print"), ("y", "PyFunc", "a", "b"))
        severities = [each.severity for each in scan.scan_graph(graph).findings]
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
    severities = found(savedmodel.meta_graph(exported / model))
    assert (
        severities.items() <= {"SaveV2": "info", "MergeV2Checkpoints": "info", **expected}.items()
    )
    assert {op: severities.get(op) for op in expected} == expected
