"""Whether a signature can answer is decided from the graph, with neither false alarm nor miss."""

import pytest

from tests.unit.saved_models import RESOURCE, add, function, init, meta_graph, tensor
from tfserve_kit.savedmodel.graph import Graph, unanswerable

RESTORE = "save/restore_all"


def variable(graph, name, op="VarHandleOp", shared=b""):
    add(graph.graph_def.node, name, op, **({"shared_name": shared} if shared else {}))


def restore(graph, *names):
    """Let the restore operation set variables."""
    for name in names:
        add(graph.graph_def.node, f"set_{name}", "AssignVariableOp", name)
    add(graph.graph_def.node, RESTORE, "NoOp", *(f"^set_{name}" for name in names))
    graph.saver_def.restore_op_name = RESTORE


def reasons(graph, signature="serving_default"):
    return list(unanswerable(Graph(graph)).get(signature, {}))


@pytest.fixture
def reader():
    """A graph whose output reads the variable `w`."""
    graph = meta_graph(("y", "Add", "x", "read"), ("read", "ReadVariableOp", "w"))
    variable(graph, "w", shared=b"dense/kernel")
    return graph


class TestVariables:
    def test_variable_that_nothing_sets_is_named(self, reader):
        (reason,) = reasons(reader)
        assert "variable 'dense/kernel'" in reason
        assert "not restored when the model loads" in reason

    def test_restored_variable_is_fine(self, reader):
        restore(reader, "w")
        assert not reasons(reader)

    def test_variable_set_by_the_init_operation_is_fine(self, reader):
        add(reader.graph_def.node, "first", "AssignVariableOp", "w")
        init(reader, "first")
        assert not reasons(reader)

    def test_second_handle_of_a_restored_variable_is_fine(self, reader):
        variable(reader, "again", shared=b"dense/kernel")
        restore(reader, "again")
        assert not reasons(reader)

    def test_handle_of_another_name_does_not_help(self, reader):
        variable(reader, "other", shared=b"dense/bias")
        restore(reader, "other")
        assert reasons(reader)

    @pytest.mark.parametrize("op", ["VariableV2", "Variable"])
    def test_variables_of_old_graphs_are_followed(self, op):
        graph = meta_graph(("y", "Identity", "w"))
        variable(graph, "w", op)
        assert reasons(graph)
        restore(graph, "w")
        assert not reasons(graph)

    def test_control_inputs_are_followed(self):
        graph = meta_graph(("y", "Identity", "x", "^count"), ("count", "ReadVariableOp", "w"))
        variable(graph, "w")
        assert reasons(graph)

    def test_what_the_signature_does_not_need_is_no_fault(self, reader):
        add(reader.graph_def.node, "z", "Identity", "x")
        tensor(reader.signature_def["other"].outputs["z"], "z:0")
        assert not reasons(reader, "other")
        assert reasons(reader)

    def test_signature_that_sets_the_variable_itself_is_not_judged(self):
        graph = meta_graph(
            ("y", "Identity", "read"),
            ("read", "ReadVariableOp", "w", "^set"),
            ("set", "AssignVariableOp", "w", "x"),
        )
        variable(graph, "w")
        assert not reasons(graph)

    def test_many_are_named_by_the_first_few(self):
        names = [f"w{i}" for i in range(9)]
        graph = meta_graph(("y", "AddN", *names))
        for name in names:
            variable(graph, name)
        (reason,) = reasons(graph)
        assert reason.count("variable 'w") == 3
        assert "and more" in reason

    def test_thousands_of_variables_and_signatures_take_no_time(self):
        names = [f"w{i}" for i in range(3000)]
        graph = meta_graph(("y", "AddN", *names))
        for name in names:
            variable(graph, name)
        for i in range(2000):
            tensor(graph.signature_def[f"s{i}"].outputs["y"], "y:0")
        assert len(unanswerable(Graph(graph))) == 2001


class TestFunctions:
    @pytest.fixture
    def caller(self):
        graph = meta_graph(("y", "StatefulPartitionedCall", "x", "w"))
        graph.graph_def.node[-1].attr["f"].func.name = "body"
        variable(graph, "w")
        return graph

    def test_handle_that_a_function_reads(self, caller):
        body = function(caller, "body", ("a", "handle"))
        add(body, "read", "ReadVariableOp", "handle")
        assert reasons(caller)

    def test_handle_that_a_function_leaves_alone_is_fine(self, caller):
        body = function(caller, "body", ("a", "handle"))
        add(body, "same", "Identity", "a")
        assert not reasons(caller)

    def test_handle_handed_on_to_a_function_that_reads_it(self, caller):
        body = function(caller, "body", ("a", "handle"))
        add(body, "inner", "PartitionedCall", "a", "handle", f="deep")
        deep = function(caller, "deep", ("b", "passed"))
        assert not reasons(caller)
        add(deep, "read", "ReadVariableOp", "passed")
        assert reasons(caller)

    def test_functions_that_hand_a_handle_to_each_other_end(self, caller):
        add(function(caller, "body", ("a", "h")), "n", "PartitionedCall", "a", "h", f="again")
        add(function(caller, "again", ("a", "h")), "n", "PartitionedCall", "a", "h", f="body")
        assert not reasons(caller)

    def test_variable_inside_a_function(self):
        graph = meta_graph(("y", "PartitionedCall", "x"))
        graph.graph_def.node[-1].attr["f"].func.name = "body"
        add(function(graph, "body", ("a",)), "w", "VarHandleOp")
        assert reasons(graph)

    def test_handle_given_to_an_unknown_caller_counts_as_read(self):
        graph = meta_graph(("y", "RemoteCall", "device", "w"))
        graph.graph_def.node[-1].attr["f"].func.name = "body"
        function(graph, "body", ("handle",))
        variable(graph, "w")
        assert reasons(graph)


class TestTables:
    @pytest.fixture
    def lookup(self):
        graph = meta_graph(("y", "LookupTableFindV2", "table", "x"))
        add(graph.graph_def.node, "table", "HashTableV2")
        return graph

    def test_table_that_nothing_fills(self, lookup):
        ((reason, remedy),) = unanswerable(Graph(lookup))["serving_default"].items()
        assert "table 'table'" in reason
        assert "attribute of self" in remedy

    @pytest.mark.parametrize("op", ["InitializeTableFromTextFileV2", "LookupTableImportV2"])
    def test_table_that_the_init_operation_fills(self, lookup, op):
        add(lookup.graph_def.node, "fill", op, "table")
        init(lookup, "fill")
        assert not reasons(lookup)

    def test_table_that_starts_empty_needs_no_filling(self):
        graph = meta_graph(("y", "LookupTableFindV2", "table", "x"))
        add(graph.graph_def.node, "table", "MutableHashTableV2")
        assert not reasons(graph)


class TestTensors:
    @pytest.mark.parametrize("direction", ["inputs", "outputs"])
    @pytest.mark.parametrize("kind", ["composite_tensor", "coo_sparse"])
    def test_composite_has_no_tensor_to_name(self, direction, kind):
        graph = meta_graph(("y", "Identity", "x"))
        info = getattr(graph.signature_def["serving_default"], direction)["r"]
        getattr(info, kind).SetInParent()
        (reason,) = reasons(graph)
        assert f"{direction[:-1]} 'r'" in reason
        assert "which no request can hold" in reason
        (remedy,) = unanswerable(Graph(graph))["serving_default"].values()
        assert "r.row_splits" in remedy

    @pytest.mark.parametrize("direction", ["inputs", "outputs"])
    def test_alias_without_a_tensor(self, direction):
        graph = meta_graph(("y", "Identity", "x"))
        getattr(graph.signature_def["serving_default"], direction)["z"].dtype = 1
        (reason,) = reasons(graph)
        assert "bound to no tensor" in reason

    def test_signature_without_outputs(self):
        graph = meta_graph(("y", "Identity", "x"))
        graph.signature_def["serving_default"].ClearField("outputs")
        assert reasons(graph) == ["it has no output"]

    def test_signature_without_inputs_is_fine(self):
        graph = meta_graph(("y", "Const"))
        graph.signature_def["serving_default"].ClearField("inputs")
        assert not reasons(graph)

    def test_resource_inputs_are_not_this_check_s_business(self):
        graph = meta_graph(("y", "Identity", "x"))
        tensor(graph.signature_def["serving_default"].inputs["h"], "x:0", dtype=RESOURCE)
        assert not reasons(graph)

    def test_operations_of_the_loader_are_no_signatures(self):
        graph = meta_graph(("y", "Identity", "x"))
        graph.signature_def["__saved_model_init_op"].SetInParent()
        assert not unanswerable(Graph(graph))
