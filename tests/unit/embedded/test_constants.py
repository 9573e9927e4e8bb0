"""Small variables of networks as constants: a model answers as it does as it is."""

import numpy as np
import pytest

from tfserve_kit import protos
from tfserve_kit.embedded.settings import SessionOptions
from tfserve_kit.embedded.status import ServingError
from tfserve_kit.savedmodel.graph import VARIABLES

pytestmark = pytest.mark.tensorflow

RANDOM_SHAPES = {"matrix": (4, 4), "vector": (4,), "other": (4,), "large": (4, 5000)}
ZERO_SHAPES = {"count": (4,), "nothing": (4,), "zeros": (4, 4), "empty": (0, 4)}
RANDOM = np.random.default_rng(0)
X = RANDOM.random((3, 4), np.float32)
# What all models have for variables, whether they use them or not.
VALUES = {
    **{name: RANDOM.random(shape, np.float32) for name, shape in RANDOM_SHAPES.items()},
    **{name: np.zeros(shape, np.float32) for name, shape in ZERO_SHAPES.items()},
    "most": np.ones(16384, np.float32),
    "more": np.ones(16385, np.float32),
    "scalar": np.array(3.0, np.float32),
    "kernel": np.full((2, 2, 1, 1), 0.5, np.float32),
    "text": np.array("abc"),
}
# Models of TensorFlow 2, and of TensorFlow 1 with one kind of variables or the other.
KINDS = ("functions", "resources", "references")


@pytest.fixture(scope="module")
def tf():
    import tensorflow as tf

    return tf


def options(rewrites=""):
    text = f"graph_options {{ rewrite_options {{ {rewrites} }} }}"
    return SessionOptions(config=protos.from_text("ConfigProto", text))


def loading(options):
    from tfserve_kit.embedded.loader import SavedModelLoader

    return SavedModelLoader(options)


@pytest.fixture(scope="module")
def loader():
    return loading(options())


def saved(tf, path, model, kind="functions"):
    """Write a SavedModel that answers what a function returns, given variables and `x`."""
    v = tf.Module()
    v.words = path.with_name("words")
    v.words.write_text("0\n1\n2\n3\n")
    if kind != "functions":
        return saved_1(tf, path, model, v, is_resource=kind == "resources")
    for name, value in VALUES.items():
        setattr(v, name, tf.Variable(value, name=name))
    v.random = tf.random.Generator.from_seed(7)
    answers = tf.function(lambda x: named(tf, v, x, model))
    spec = tf.TensorSpec(None, tf.float32, name="x")
    tf.saved_model.save(v, str(path), signatures=answers.get_concrete_function(spec))
    return path


def saved_1(tf, path, model, v, *, is_resource):
    from tensorflow.python.ops import control_flow_util

    v1 = tf.compat.v1
    # References come with the loops of their time.
    with pytest.MonkeyPatch.context() as patch, tf.Graph().as_default(), v1.Session() as session:
        patch.setattr(control_flow_util, "ENABLE_CONTROL_FLOW_V2", is_resource)
        for name, value in VALUES.items():
            setattr(v, name, v1.get_variable(name, initializer=value, use_resource=is_resource))
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        outputs = named(tf, v, x, model)
        session.run(v1.global_variables_initializer())
        initializer = v1.tables_initializer()
        v1.saved_model.simple_save(session, str(path), {"x": x}, outputs, initializer)
    return path


def named(tf, v, x, model):
    """Return a model's answers, and a convolution, as only networks with some have constants."""
    outputs = model(tf, v, x)
    if model is without_convolution:
        return {"y": outputs}
    picture = tf.nn.conv2d(tf.reshape(x, [1, -1, 1, 1]), v.kernel, 1, "SAME")
    return {**(outputs if isinstance(outputs, dict) else {"y": outputs}), "picture": picture}


@pytest.fixture
def both(tf, loader, tmp_path):
    """Save a model, and load it with constants and as it is."""

    def load(*model):
        path = saved(tf, tmp_path / "1", *model)
        return loader(path), loader._loaded(path, fold=False)

    return load


def read(servable):
    """Return the names of the variables that a model computes its answers from."""
    graph = servable._session.graph
    outputs = servable.signatures["serving_default"].outputs.values()
    pending, seen = [graph.get_tensor_by_name(each.name).op for each in outputs], set()
    while pending:
        operation = pending.pop()
        if operation not in seen:
            seen.add(operation)
            pending += [each.op for each in operation.inputs]
            pending += operation.control_inputs
    return {each.name for each in seen if each.type in VARIABLES}


def answer(servable, x=X):
    signature = servable.signatures["serving_default"]
    fetches = [each.name for each in signature.outputs.values()]
    found = servable.run({signature.inputs["x"].name: np.float32(x)}, fetches)
    return dict(zip(signature.outputs, found, strict=True))


def check(servables, constants, kept):
    folded, plain = servables
    assert read(folded) == set(kept.split())
    assert read(plain) - read(folded) == set(constants.split())
    for x in (X, -X, 9 * X, X):  # for all branches, and with what has been written before
        found, expected = answer(folded, x), answer(plain, x)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)


def usual(tf, v, x):
    @tf.function
    def normalized(y):
        return tf.nn.batch_normalization(y, v.vector, v.other, v.other, v.vector, 1e-3)

    return tf.function(lambda y: tf.nn.relu(normalized(y @ v.matrix)))(x) @ v.large


def counting(tf, v, x):
    with tf.control_dependencies([v.count.assign_add(v.other)]):
        return x * v.vector + v.count.read_value()


def scattering(tf, v, x):
    def scatter():
        slices = tf.IndexedSlices(tf.constant([2.0]), tf.constant([1]))
        with tf.control_dependencies([v.count.scatter_add(slices)]):
            return v.other + 1.0

    y = tf.cond(tf.reduce_sum(x) > 0, scatter, lambda: tf.zeros(4))
    with tf.control_dependencies([y]):
        return y + v.count.read_value() + x * v.vector


def drawing(tf, v, x):
    return x * v.vector + v.random.uniform([])


def calling(tf, v, x):
    function = tf.function(lambda w, u, x: tf.tanh(w * x) - u)
    y = function(v.vector, v.other, x) * function(v.other, v.vector, x)
    y += function(v.vector, v.count, x) * function(v.count, v.other, x)
    with tf.control_dependencies([y]):
        return y + v.count.assign_add(tf.ones(4))


def calling_with_what_is_written(tf, v, x):
    function = tf.function(lambda w, x: tf.tanh(w * x))
    with tf.control_dependencies([v.count.assign_add(tf.ones(4))]):
        return function(v.vector, x) - 2 * function(v.count, x)


def branching(tf, v, x):
    called = tf.function(lambda w, y: tf.cond(tf.reduce_sum(y) > 0, lambda: w * y, lambda: w - y))
    cases = [lambda: x @ v.matrix, lambda: called(v.vector, x), lambda: called(v.other, x)]
    return tf.switch_case(tf.cast(tf.reduce_sum(x), tf.int32), cases) + called(v.other, x)


def looping(tf, v, x):
    more = v.matrix + 0.0
    return tf.while_loop(
        lambda i, y: i < 3, lambda i, y: (i + 1, y @ more + v.vector), (tf.constant(0), x)
    )[1]


def looking_up(tf, v, x):
    line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    with tf.init_scope():
        lines = tf.lookup.TextFileInitializer(str(v.words), tf.string, line, tf.int64, number)
        v.table = tf.lookup.StaticHashTable(lines, -1)
    found = v.table.lookup(tf.strings.as_string(tf.cast(x * 4, tf.int32)))
    return tf.cast(found, tf.float32) * v.vector


def of_many_sizes(tf, v, x):
    sums = [tf.reduce_sum(each * 2.0) for each in (v.most, v.more, v.empty, v.scalar)]
    length = tf.strings.length(tf.strings.join([v.text, "d"]))
    return x @ v.zeros + v.nothing + tf.add_n(sums) + tf.cast(length, tf.float32)


def returning(tf, v, x):
    return tf.identity(v.vector, name="copy")


def without_variables(tf, v, x):
    return tf.tanh(x) + 1


def with_two_implementations(tf, v, x):
    attributes = {"api_implements": "product", "api_preferred_device": "CPU"}
    return tf.function(lambda x: x * v.vector, experimental_attributes=attributes)(x) + v.other


def with_usual_names(tf, v, x):
    return {
        "i": tf.identity(x @ v.matrix, name="Identity"),
        "c": tf.constant([5.0, 6.0], name="Const"),
        "r": tf.tanh(v.vector * 2, name="ReadVariableOp"),
    }


def giving_away(tf, v, x):
    is_resource = hasattr(v.vector, "handle")
    return {"y": tf.gather(v.vector, [0, 1]) if is_resource else v.vector, "z": x * v.other}


def when_loaded(tf, operation):
    tf.compat.v1.add_to_collection(tf.compat.v1.GraphKeys.TABLE_INITIALIZERS, operation)
    return operation


def setting_when_loaded(tf, v, x):
    when_loaded(tf, tf.compat.v1.assign(v.other, [1.0, 2.0, 3.0, 4.0]).op)
    return x * v.other


def waiting_for_what_runs_then(tf, v, x):
    with tf.control_dependencies([when_loaded(tf, tf.no_op(name="loaded"))]):
        return x * v.vector


def waiting_for_what_is_there(tf, v, x):
    y = looking_up(tf, v, x)
    with tf.control_dependencies([v.table.resource_handle, v.other.op]):
        return y * 2.0


def counting_by_name(tf, v, x):
    @tf.function
    def count():
        handle = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[4], shared_name="count")
        tf.raw_ops.AssignAddVariableOp(resource=handle, value=tf.ones(4))
        return 1.0

    with tf.control_dependencies([count()]):
        return x * v.vector + v.count.read_value()


def without_convolution(tf, v, x):
    return x * v.vector


def with_a_variance(tf, v, x):
    mean, variance = tf.nn.moments(x, [1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, v.other, v.vector, 1e-3)


def dividing(tf, v, x):
    return x / v.vector + x**v.other


MODELS = [
    (usual, KINDS[:2], "vector other kernel", "matrix large"),
    (usual, KINDS[2:], "", "matrix vector other large kernel"),
    (counting, KINDS[:2], "vector kernel", "count other"),
    (scattering, KINDS[:2], "vector other kernel", "count"),
    (drawing, KINDS[:1], "vector kernel", "StateVar"),
    (calling, KINDS[:2], "vector other kernel", "count"),
    (calling_with_what_is_written, KINDS[:2], "vector kernel", "count"),
    (branching, KINDS[:2], "vector other kernel", "matrix"),
    (looping, KINDS[:2], "matrix kernel", "vector"),
    (looking_up, KINDS[:2], "vector kernel", ""),
    (of_many_sizes, KINDS[:2], "most nothing scalar kernel", "more empty zeros text"),
    (giving_away, KINDS[:2], "other kernel", "vector"),
    (returning, KINDS[:2], "kernel", "vector"),
    (with_usual_names, KINDS[1:2], "vector kernel", "matrix"),
    (without_variables, KINDS[:2], "kernel", ""),
    (dividing, KINDS[:2], "kernel", "vector other"),
    (setting_when_loaded, KINDS[1:2], "other kernel", ""),
    (waiting_for_what_runs_then, KINDS[1:2], "", "vector kernel"),
    (waiting_for_what_is_there, KINDS[1:2], "vector other kernel", ""),
    (counting_by_name, KINDS[1:2], "vector kernel", "count"),
    (with_two_implementations, KINDS[:1], "", "vector other kernel"),
    (without_convolution, KINDS[:2], "", "vector"),
    (with_a_variance, KINDS[:2], "", "vector other kernel"),
]


@pytest.mark.parametrize(
    ("kind", "model", "constants", "kept"),
    [
        pytest.param(kind, model, constants, kept, id=f"{model.__name__}-{kind}")
        for model, kinds, constants, kept in MODELS
        for kind in kinds
    ],
)
def test_small_variables_that_are_only_read_are_constants(both, kind, model, constants, kept):
    check(both(model, kind), constants, kept)


def test_lstm_of_keras_is_loaded_as_it_is(tf, both):
    layer = tf.keras.layers.LSTM(4)
    layer.build((None, 1, 4))
    weights = [each.value for each in layer.weights]

    def model(tf, v, x):
        v.weights = weights
        return layer(tf.reshape(x, [-1, 1, 4]))

    check(both(model), "kernel", " ".join(each.path for each in layer.weights))


@pytest.mark.parametrize("model", [counting, scattering, drawing])
def test_what_a_signature_writes_is_there_in_its_next_call(both, model):
    servable, _ = both(model)
    first, second = answer(servable)["y"], answer(servable)["y"]
    assert np.all(first[:, 1] != second[:, 1])


@pytest.mark.parametrize(
    ("dtype", "is_constant"),
    [("float32", True), ("float64", False), ("bfloat16", False), ("int32", False), ("bool", False)],
)
def test_variable_of_any_type_keeps_its_value(tf, both, dtype, is_constant):
    value = tf.cast([1 / 3, 0, 100, 2**40 / 7e9], dtype)
    variable = tf.Variable(value, name="typed")

    def model(tf, v, x):
        v.typed = variable
        return tf.reshape(variable, [2, 2])

    folded, _ = both(model)
    assert ("typed" in read(folded)) is not is_constant
    found = answer(folded)["y"]
    assert found.dtype == value.dtype.as_numpy_dtype
    assert found.tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize(
    ("value", "is_constant"), [(1e6, True), (-2e6, False), (np.nan, False), (np.inf, False)]
)
def test_numbers_whose_products_may_overflow_stay_variables(tf, both, value, is_constant):
    variable = tf.Variable([1.0, value, 0, 2], name="extreme")

    def model(tf, v, x):
        v.extreme = variable
        return x * variable

    folded, plain = both(model)
    assert ("extreme" in read(folded)) is not is_constant
    np.testing.assert_array_equal(answer(folded)["y"], answer(plain)["y"])


@pytest.mark.parametrize("shape", [None, [None]], ids=str)
def test_variable_of_unknown_size_stays_one(tf, both, shape):
    variable = tf.Variable([2.0], shape=tf.TensorShape(shape), name="open")

    def model(tf, v, x):
        v.open = variable
        return x * variable + v.vector

    check(both(model), "vector kernel", "open")


def test_graph_whose_names_cannot_stay_is_loaded_as_it_is(tf, loader, tmp_path):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [1, 2, 2, 1], name="x")
        with v1.variable_scope("x"):
            kernel = v1.get_variable("w", [1, 1, 1, 1], use_resource=True)
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "1"), {"x": x}, {"y": y})
    servable = loader(tmp_path / "1")
    assert answer(servable, np.ones((1, 2, 2, 1)))["y"].shape == (1, 2, 2, 1)


def test_graph_with_gradients_of_functions_is_loaded_as_it_is(tf, loader, tmp_path):
    from tfserve_kit.embedded.constants import UnusualGraph, split_off

    path = saved(tf, tmp_path / "1", usual)
    graph = protos.SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs[0]
    graph.graph_def.library.gradient.add(function_name="f", gradient_func="g")
    before = graph.SerializeToString(deterministic=True)
    with pytest.raises(UnusualGraph):
        split_off(loader._tf, graph)
    assert graph.SerializeToString(deterministic=True) == before


def test_constants_of_a_model_take_no_more_than_so_much(both, monkeypatch):
    monkeypatch.setattr("tfserve_kit.embedded.constants._MOST_BYTES_OF_ALL", 80)
    folded, plain = both(usual)
    assert 0 < sum(VALUES[name].nbytes for name in read(plain) - read(folded)) <= 80


def asserting(tf, v, x):
    tf.debugging.assert_less(x, v.scalar * 0.0, name="wrong")
    return x + v.scalar


FAILING = {
    "assert": asserting,
    "matmul": lambda tf, v, x: tf.matmul(x, v.matrix, name="wrong") + v.vector,
    "reshape": lambda tf, v, x: tf.reshape(x, tf.cast(v.vector + 5, tf.int32), name="wrong") + 1.0,
    "gather": lambda tf, v, x: tf.gather(v.vector * 2, tf.cast(x + 9, tf.int32), name="wrong"),
    "function": lambda tf, v, x: tf.function(lambda w: tf.matmul(x, w, name="wrong"))(v.matrix),
    "branch": lambda tf, v, x: tf.cond(
        tf.size(x) > 0, lambda: tf.concat([x, v.matrix], 0, name="wrong"), lambda: x
    ),
}


@pytest.mark.parametrize("model", FAILING.values(), ids=FAILING)
def test_error_has_the_text_that_it_has_in_the_model_as_it_is(both, model):
    folded, plain = both(model)
    assert read(folded) != read(plain)
    texts = []
    for servable in (folded, plain):
        with pytest.raises(ServingError, match=r"node \S*wrong") as caught:
            answer(servable, np.ones((2, 3)))
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("rewrites", "may_fold"),
    [
        ("", True),
        ("constant_folding: ON", True),
        ("constant_folding: AGGRESSIVE", True),
        ("arithmetic_optimization: OFF", True),
        ("constant_folding: OFF", False),
        ("disable_meta_optimizer: true", False),
    ],
)
def test_session_that_works_nothing_out_beforehand_has_no_constants(
    tf, tmp_path, rewrites, may_fold
):
    from tfserve_kit.embedded.loader import _may_fold

    assert _may_fold(options(rewrites)) is may_fold
    servable = loading(options(rewrites))(saved(tf, tmp_path / "1", counting))
    assert ("vector" in read(servable)) is not may_fold


def fail(*given):
    raise RuntimeError("in between")


@pytest.fixture(params=["loader.split_off", "constants.Serving.add_to"])
def fault(request, monkeypatch):
    """What makes constants of variables fails."""
    monkeypatch.setattr(f"tfserve_kit.embedded.{request.param}", fail)


@pytest.mark.usefixtures("fault")
def test_what_fails_in_between_is_loaded_as_it_is(both):
    check(both(usual), "", "matrix vector other large kernel")


@pytest.mark.usefixtures("fault")
@pytest.mark.parametrize("file", ["variables.index", "variables.data-00000-of-00001"])
def test_what_cannot_be_loaded_at_all_says_why(tf, loader, tmp_path, file):
    path = saved(tf, tmp_path / "1", usual)
    (path / "variables" / file).write_bytes(b"damaged")
    errors = []
    for load in (loader, lambda path: loader._loaded(path, fold=False)):
        with pytest.raises(ServingError) as caught:
            load(path)
        errors.append((caught.value.code, caught.value.message))
    assert errors[0] == errors[1]
