"""SavedModels written by hand, as protobufs: no tensorflow, a millisecond each."""

from tfserve_kit import protos
from tfserve_kit.savedmodel.scan import scan_graph

FLOAT, STRING, RESOURCE = 1, 7, 20


def meta_graph(*nodes, output="y", tags=("serve",)):
    """Return a graph whose `serving_default` takes `x` and asks for a node's first output."""
    graph = protos.MetaGraphDef()
    graph.meta_info_def.tags.extend(tags)
    add(graph.graph_def.node, "x", "Placeholder")
    for each in nodes:
        add(graph.graph_def.node, *each[:2], *each[2:])
    signature = graph.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    tensor(signature.inputs["x"], "x:0")
    tensor(signature.outputs["y"], f"{output}:0")
    return graph


def tensor(info, name, shape=(-1,), dtype=FLOAT):
    """Fill a TensorInfo; -1 is an open axis, a shape of None an open rank."""
    info.Clear()
    info.name, info.dtype = name, dtype
    info.tensor_shape.unknown_rank = shape is None
    for size in shape or ():
        info.tensor_shape.dim.add(size=size)


def add(nodes, name, op, *inputs, **attributes):
    """Add a node; an attribute that is a text calls the function of that name."""
    node = nodes.add(name=name, op=op, input=inputs)
    for key, value in attributes.items():
        if isinstance(value, str):
            node.attr[key].func.name = value
        elif isinstance(value, bytes):
            node.attr[key].s = value
        elif isinstance(value, bool):
            node.attr[key].b = value
        elif isinstance(value, list):
            node.attr[key].list.s.extend(value)
        else:
            node.attr[key].type = value
    return node


def text(nodes, name, value):
    """Add a constant that holds a text."""
    node = nodes.add(name=name, op="Const")
    node.attr["value"].tensor.dtype = STRING
    node.attr["value"].tensor.string_val.append(value.encode())
    return node


def function(graph, name, arguments=(), **attributes):
    """Add a function to the library; return its nodes."""
    added = graph.graph_def.library.function.add()
    added.signature.name = name
    for each in arguments:
        added.signature.input_arg.add(name=each)
    for key, value in attributes.items():
        if isinstance(value, bool):
            added.attr[key].b = value
        else:
            added.attr[key].s = value
    return added.node_def


def write(folder, *graphs):
    """Write graphs as a SavedModel."""
    folder.mkdir(parents=True, exist_ok=True)
    message = protos.SavedModel(saved_model_schema_version=1, meta_graphs=graphs)
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())
    return folder


def found(graph):
    """Return the worst severity by operation, of a graph's findings."""
    return {each.rule: each.severity for each in reversed(scan_graph(graph).findings)}


def messages(graph):
    """Return what a graph's findings say."""
    return "\n".join(each.message for each in scan_graph(graph).findings)


def asset(graph, tensor_name="path:0", filename="words.txt"):
    """Give a tensor the path of an asset."""
    each = graph.asset_file_def.add(filename=filename)
    each.tensor_info.name = tensor_name


def init(graph, node):
    """Let a node run after the variables are restored."""
    graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = node
