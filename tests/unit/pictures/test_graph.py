"""What a graph tells about pictures: the range it expects, what it decodes, what makes scores."""

import numpy as np
import pytest

from tests.unit.saved_models import add, function, meta_graph, write
from tfserve_kit import savedmodel
from tfserve_kit.pictures.graph import PictureGraph, picture_facts, score_kind
from tfserve_kit.savedmodel.graph import Graph
from tfserve_kit.tensors import to_proto

WHOLE, UNIT, SIGNED = (0, 255), (0, 1), (-1, 1)


def constant(nodes, name, value):
    node = nodes.add(name=name, op="Const")
    node.attr["value"].tensor.MergeFromString(
        to_proto(np.float32(value)).SerializeToString()
    )  # fmt: skip
    return name


def chain(*steps):
    """Return a graph whose input goes through (operation, constant) steps and then into Conv2D."""
    graph = meta_graph(output="conv")
    last = "x"
    for number, (op, value) in enumerate(steps):
        inputs = [last]
        if value is not None:
            inputs.append(constant(graph.graph_def.node, f"c{number}", value))
        add(graph.graph_def.node, f"n{number}", op, *inputs)
        last = f"n{number}"
    add(graph.graph_def.node, "conv", "Conv2D", last, "kernel")
    return graph


def facts(graph):
    return picture_facts(Graph(graph), graph.signature_def["serving_default"], "x")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("Mul", 1 / 255)], WHOLE),
        ([("RealDiv", 255)], WHOLE),
        ([("Mul", 1 / 127.5), ("Sub", 1)], WHOLE),
        ([("RealDiv", 127.5), ("AddV2", -1)], WHOLE),
        ([("Sub", [123.68, 116.78, 103.94])], WHOLE),
        ([("Sub", [123.68, 116.78, 103.94]), ("RealDiv", [58.4, 57.1, 57.4])], WHOLE),
        ([("ReverseV2", 2), ("BiasAdd", [-103.9, -116.8, -123.7])], WHOLE),
        ([("Sub", 128), ("Mul", 1 / 30)], WHOLE),
        ([("Sub", 128), ("Mul", 1 / 22)], WHOLE),
        ([("RealDiv", 1000)], None),
        ([("RealDiv", 4095)], (0, 4095)),
        ([("Cast", None), ("Mul", 1 / 65535)], (0, 65535)),
        ([("RealDiv", 32767.5), ("Sub", 1)], (0, 65535)),
        ([("RealDiv", 1e9)], None),
        ([("Cast", None), ("ResizeBilinear", [8, 8]), ("Mul", 0.00392157)], WHOLE),
        ([("Sub", [0.485, 0.456, 0.406]), ("RealDiv", [0.229, 0.224, 0.225])], UNIT),
        ([("Mul", 2), ("Sub", 1)], UNIT),
        ([("Mul", 255)], UNIT),
        ([("Mul", 127.5), ("AddV2", 127.5)], SIGNED),
        ([("Mul", 0.5), ("AddV2", 0.5)], SIGNED),
        ([], None),
        ([("Identity", None), ("Reshape", [1, 2])], None),
        ([("Relu", None), ("Mul", 1 / 255)], None),
        ([("Mul", 0)], None),
        ([("Mul", 1)], None),
        ([("AddV2", 0)], None),
    ],
)
def test_range_is_read_from_what_scales_the_input(steps, expected):
    assert facts(chain(*steps)).value_range == expected


def test_node_that_shows_it_is_named():
    assert facts(chain(("Cast", None), ("Mul", 1 / 255), ("AddV2", 0))).because == "n1"


def test_constants_are_computed_as_far_as_they_are_constant():
    graph = chain(("Sub", 120))
    nodes = graph.graph_def.node
    constant(nodes, "variance", 3600)
    add(nodes, "deviation", "Sqrt", "variance")
    add(nodes, "divided", "RealDiv", "n0", "deviation")
    next(node for node in nodes if node.name == "conv").input[0] = "divided"
    assert facts(graph).value_range == WHOLE


def test_scale_that_is_no_constant_tells_nothing():
    graph = chain()
    nodes = graph.graph_def.node
    add(nodes, "w", "VarHandleOp")
    add(nodes, "scale", "ReadVariableOp", "w")
    add(nodes, "scaled", "Mul", "x", "scale")
    next(node for node in nodes if node.name == "conv").input[0] = "scaled"
    assert facts(graph).value_range is None


def test_branches_that_disagree_tell_nothing():
    graph = chain(("Mul", 1 / 255))
    add(graph.graph_def.node, "other", "Conv2D", "x", "kernel")
    assert facts(graph).value_range is None


def test_looking_at_the_shape_is_no_branch():
    graph = chain(("Mul", 1 / 255))
    add(graph.graph_def.node, "shape", "Shape", "x")
    assert facts(graph).value_range == WHOLE


def in_function(steps_in, *, given=None):
    """Return a graph that calls a function, which scales its argument and returns it."""
    graph = meta_graph(output="conv")
    nodes = graph.graph_def.node
    call = ["x"]
    if given is not None:
        call.append(constant(nodes, "given", given))
    add(nodes, "call", "StatefulPartitionedCall", *call, f="body")
    add(nodes, "conv", "Conv2D", "call", "kernel")
    body = function(graph, "body", ("a", "b")[: len(call)])
    last = "a"
    for number, (op, value) in enumerate(steps_in):
        other = (
            value if isinstance(value, str) else constant(body, f"c{number}", value) + ":output:0"
        )
        add(body, f"n{number}", op, last, other)
        last = f"n{number}:z:0"
    added = graph.graph_def.library.function[0]
    added.signature.output_arg.add(name="result")
    added.ret["result"] = last
    return graph


def test_functions_are_entered_and_left():
    assert facts(in_function([("Mul", 1 / 255)])).value_range == WHOLE


def test_constant_given_to_a_function_counts():
    assert facts(in_function([("Mul", "b")], given=1 / 255)).value_range == WHOLE


def test_function_that_calls_itself_ends():
    graph = in_function([])
    body = graph.graph_def.library.function[0]
    add(body.node_def, "again", "StatefulPartitionedCall", "a", f="body")
    assert facts(graph).value_range is None


@pytest.mark.parametrize(
    ("op", "encoding"),
    [
        ("DecodeBase64", "websafe"),
        ("DecodeJpeg", "raw"),
        ("DecodePng", "raw"),
        ("StringLower", None),
    ],
)
def test_encoding_is_read_from_what_decodes(op, encoding):
    graph = meta_graph(("y", "Identity", "decoded"), ("decoded", op, "x"))
    assert facts(graph).encoding == encoding


@pytest.mark.parametrize(
    ("ops", "kind"),
    [
        (["Softmax"], "softmax"),
        (["Softmax", "Reshape"], "softmax"),
        (["Softmax", "StridedSlice"], "sigmoid"),
        (["Sigmoid"], "sigmoid"),
        (["Sigmoid", "Reshape", "Identity"], "sigmoid"),
        (["MatMul", "AddV2"], "logits"),
        (["BiasAdd"], "logits"),
        (["ArgMax"], "class_ids"),
        (["TopKV2"], "top_k"),
        (["TopKV2", "Reshape"], "top_k"),
        (["Relu"], None),
        (["Relu", "AddV2"], None),
    ],
)
def test_scores_are_called_by_what_makes_them(ops, kind):
    graph = meta_graph(output=f"n{len(ops) - 1}")
    for number, op in enumerate(ops):
        add(graph.graph_def.node, f"n{number}", op, f"n{number - 1}" if number else "x", "w")
    assert score_kind(Graph(graph), graph.signature_def["serving_default"], "y") == kind


def test_scores_are_followed_into_functions():
    graph = in_function([])
    body = graph.graph_def.library.function[0]
    add(body.node_def, "soft", "Softmax", "a")
    body.ret["result"] = "soft:softmax:0"
    graph.signature_def["serving_default"].outputs["y"].name = "call:0"
    assert score_kind(Graph(graph), graph.signature_def["serving_default"], "y") == "softmax"


class TestPictureGraph:
    def test_version_that_is_not_here_tells_nothing(self, tmp_path):
        for place in (None, tmp_path, tmp_path / "none"):
            graph = PictureGraph(place, "serving_default")
            assert graph.input("x").value_range is None
            assert graph.output("y") is None

    def test_version_on_disk_is_read(self, tmp_path):
        write(tmp_path, chain(("Mul", 1 / 255)))
        graph = PictureGraph(tmp_path, "serving_default")
        assert graph.input("x").value_range == WHOLE
        assert graph.input("unknown").value_range is None
        assert PictureGraph(tmp_path, "other").input("x").value_range is None

    @pytest.mark.parametrize(
        ("op", "may_decode"),
        [
            ("DecodeImage", True),
            ("DecodeJpeg", True),
            ("IO>DecodeWebP", True),
            ("EagerPyFunc", True),
            ("DecodeBase64", False),
            ("DecodeRaw", False),
            ("StringLower", False),
            ("LookupTableFindV2", False),
        ],
    )
    def test_what_the_signature_runs_tells_whether_pictures_can_go_in(
        self, tmp_path, op, may_decode
    ):
        direct = meta_graph(("y", op, "x"))
        inside = meta_graph()
        add(inside.graph_def.node, "y", "PartitionedCall", "x", f="work")
        add(function(inside, "work", ["a"]), "inner", op, "a")
        for number, graph in enumerate((direct, inside)):
            write(tmp_path / str(number), graph)
            found = PictureGraph(tmp_path / str(number), "serving_default").may_decode
            assert found == may_decode

    def test_model_that_is_not_here_may_decode(self):
        assert PictureGraph(None, "serving_default").may_decode

    def test_damaged_graph_tells_nothing(self, tmp_path):
        (tmp_path / savedmodel.GRAPH_FILE).write_bytes(b"\xff")
        assert PictureGraph(tmp_path, "serving_default").input("x").value_range is None


@pytest.mark.parametrize("depth", [1000, 200_000])
def test_long_chains_end(depth):
    graph = chain(*[("Identity", None)] * depth)
    assert facts(graph).value_range is None
