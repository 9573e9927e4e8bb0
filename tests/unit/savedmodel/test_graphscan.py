"""The static scan: what runs in a server, what is wrong with a graph, and what it holds."""

import pytest

from tests.unit.saved_models import (
    add,
    found,
    function,
    init,
    messages,
    meta_graph,
    tensor,
)
from tfserve_kit.savedmodel import scan as graphscan


class TestWhatRuns:
    def test_operation_that_an_output_needs_is_refused_with_its_place(self):
        graph = meta_graph(("other", "Sqrt", "x"), ("y", "WriteFile", "x", "other"))
        (finding,) = graphscan.scan_graph(graph).findings
        assert (finding.severity, finding.op, finding.count) == ("error", "WriteFile", 1)
        assert "node 'y'" in finding.message
        assert "signature 'serving_default'" in finding.message
        assert "--allow-op WriteFile" in finding.remedy

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
        (finding,) = graphscan.scan_graph(graph).findings
        assert (finding.severity, finding.count) == ("warning", 2)

    def test_functions_for_xla_are_told(self):
        graph = meta_graph(("y", "Identity", "x"))
        function(graph, "fast", _XlaMustCompile=True)
        assert found(graph) == {"": "info"}

    def test_operations_are_counted_everywhere_most_frequent_first(self):
        graph = meta_graph(("a", "Sqrt", "x"), ("y", "Sqrt", "a"))
        add(function(graph, "f"), "b", "Sqrt")
        scan = graphscan.scan_graph(graph)
        assert list(scan.operations.items()) == [("Sqrt", 3), ("Placeholder", 1)]
        assert scan.functions == 1

    def test_deep_graph_and_many_signatures_are_no_problem(self):
        chain = [(f"n{i}", "Identity", f"n{i - 1}" if i else "x") for i in range(20_000)]
        graph = meta_graph(*chain, ("y", "PyFunc", "n19999"))
        for at in range(500):
            tensor(graph.signature_def[f"s{at}"].outputs["y"], "y:0")
        assert found(graph) == {"PyFunc": "error"}
