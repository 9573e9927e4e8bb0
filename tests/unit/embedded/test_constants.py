"""Small variables as constants where a model serves: it answers as it does as it is."""

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
    answers = tf.function(lambda x: named(model(tf, v, x)))
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
        outputs = named(model(tf, v, x))
        session.run(v1.global_variables_initializer())
        initializer = v1.tables_initializer()
        v1.saved_model.simple_save(session, str(path), {"x": x}, outputs, initializer)
    return path


def named(outputs):
    return outputs if isinstance(outputs, dict) else {"y": outputs}


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
    sums = [tf.reduce_sum(each) for each in (v.most, v.more, v.empty, v.scalar)]
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


def waiting(tf, v, x):
    loaded = tf.no_op(name="loaded")
    tf.compat.v1.add_to_collection(tf.compat.v1.GraphKeys.TABLE_INITIALIZERS, loaded)
    with tf.control_dependencies([loaded]):
        return x @ v.matrix


MODELS = [
    (usual, KINDS, "matrix vector other", "large"),
    (counting, KINDS, "vector other", "count"),
    (scattering, KINDS, "vector other", "count"),
    (drawing, KINDS[:1], "vector", "StateVar"),
    (calling, KINDS[:2], "vector other", "count"),
    (calling_with_what_is_written, KINDS[:2], "vector", "count"),
    (branching, KINDS, "matrix vector other", ""),
    (looping, KINDS[:2], "matrix", "vector"),
    (looping, KINDS[2:], "matrix vector", ""),
    (looking_up, KINDS, "vector", ""),
    (of_many_sizes, KINDS, "most nothing scalar", "more empty zeros text"),
    (giving_away, KINDS, "other", "vector"),
    (returning, KINDS, "vector", ""),
    (with_usual_names, KINDS[1:], "matrix vector", ""),
    (without_variables, KINDS, "", ""),
    (waiting, KINDS[1:], "", "matrix"),
    (with_two_implementations, KINDS[:1], "", "vector other"),
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

    check(both(model), "", " ".join(each.path for each in layer.weights))


@pytest.mark.parametrize("model", [counting, scattering, drawing])
def test_what_a_signature_writes_is_there_in_its_next_call(both, model):
    servable, _ = both(model)
    first, second = answer(servable)["y"], answer(servable)["y"]
    assert np.all(first[:, 1] != second[:, 1])


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float16", "bfloat16", "complex64", "uint8", "int32", "int64", "uint64", "bool"],
)
def test_variable_of_any_type_of_numbers_keeps_its_value(tf, both, dtype):
    value = tf.cast([1 / 3, 0, 100, 2**40 / 7], dtype)
    variable = tf.Variable(value, name="typed")

    def model(tf, v, x):
        v.typed = variable
        return tf.reshape(variable, [2, 2])

    folded, plain = both(model)
    assert (read(folded), read(plain)) == (set(), {"typed"})
    found = answer(folded)["y"]
    assert found.dtype == value.dtype.as_numpy_dtype
    assert found.tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_product_with_a_matrix_of_zeros_hides_nothing(tf, tmp_path, value):
    def model(tf, v, x):
        return tf.ensure_shape(x, [3, 4]) @ v.zeros + v.vector

    path = saved(tf, tmp_path / "1", model)
    servable = loading(options("constant_folding: AGGRESSIVE"))(path)
    assert read(servable) == {"zeros"}
    assert np.isnan(answer(servable, np.full((3, 4), value))["y"]).all()


def test_constants_of_a_model_take_no_more_than_so_much(both, monkeypatch):
    monkeypatch.setattr("tfserve_kit.embedded.constants._MOST_BYTES_OF_ALL", 80)
    folded, plain = both(usual)
    assert 0 < sum(VALUES[name].nbytes for name in read(plain) - read(folded)) <= 80


def asserting(tf, v, x):
    tf.debugging.assert_less(x, tf.reduce_max(v.vector), name="wrong")
    return x * tf.reduce_sum(v.other)


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
    assert not read(folded)
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
    assert read(servable) == ({"count"} if may_fold else {"count", "vector", "other"})


def fail(*given):
    raise RuntimeError("in between")


@pytest.fixture(params=["loader.split_off", "constants.Serving.add_to"])
def fault(request, monkeypatch):
    """What makes constants of variables fails."""
    monkeypatch.setattr(f"tfserve_kit.embedded.{request.param}", fail)


@pytest.mark.usefixtures("fault")
def test_what_fails_in_between_is_loaded_as_it_is(both):
    check(both(usual), "", "matrix vector other large")


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
