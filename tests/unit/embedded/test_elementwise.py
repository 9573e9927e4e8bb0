"""Requests that are run as one: each gets to the last bit what it gets alone."""

import re
import threading

import numpy as np
import pytest

from tfserve_kit.embedded.elementwise import elementwise
from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.servable import SessionServable

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def session():
    """A session with graphs that treat every number by itself, and with others."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, None, name="x")
        fixed = tf.compat.v1.placeholder(tf.float32, [3], name="fixed")
        scale = tf.Variable(0.3)
        row = tf.Variable([0.1, 0.2, 0.7])
        odd = tf.Variable([1.0], shape=tf.TensorShape(None))

        @tf.function
        def inner(value, factor):
            return tf.square(value) * factor - row

        @tf.function
        def two(value):
            return value * 3.0, inner(value, scale)

        tf.add(x * scale, 0.7, name="scaled")
        tf.identity(two(x)[1], name="in_functions")
        tf.negative(x - tf.constant([[1.0, 2.0, 3.0]]), name="one_row")
        tf.subtract(x, tf.constant([[1.0], [2.0]]), name="two_rows")
        tf.multiply(tf.constant(2.0) + tf.constant([1.0, 2.0, 3.0]), x, name="of_constants")
        tf.identity(x, name="same")
        tf.multiply(x, fixed, name="other_input")
        tf.add(fixed, 1.0, name="of_a_fixed_length")
        tf.add(x, odd, name="of_an_unknown_shape")
        tf.add(tf.constant(1.0), 2.0, name="constant")
        tf.reduce_sum(x, name="sum")
        tf.nn.softmax(x, name="softmax")
        tf.tanh(x, name="curved")
        tf.add(x, tf.random.uniform([]), name="random")
        with tf.control_dependencies([scale.assign_add(0.0)]):
            tf.add(x, 1.0, name="writes")
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x > 0), [x])]):
            tf.identity(x, name="asserted")
        many = x
        for _ in range(100):
            many = many + 1.0
        tf.identity(many, name="many")
        with tf.compat.v1.Session(graph=graph) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            yield session


@pytest.fixture
def servable(session):
    from tfserve_kit.embedded.loader import _runtime

    return SessionServable(_runtime(), session, {}, compiled=True, metrics=Metrics())


def joined(servable, inputs, *fetches, feed="x:0"):
    thread = threading.Thread(target=servable._make_together, args=((feed,), fetches))
    thread.start()  # as it lowers the priority of its own
    thread.join()
    return servable.run_joined(feed, inputs, fetches)


def dimensions(servable, fetch, feed="x:0"):
    return elementwise(servable._session.graph, feed, fetch, servable._shape_of)


@pytest.mark.parametrize(
    ("fetch", "least"),
    [
        ("scaled:0", 1),
        ("same:0", 1),
        ("in_functions:0", 2),
        ("of_constants:0", 2),
        ("one_row:0", 2),
        ("two_rows:0", 3),
    ],
)
def test_input_needs_more_dimensions_than_what_it_is_combined_with(servable, fetch, least):
    assert dimensions(servable, fetch) == least


@pytest.mark.parametrize(
    "fetch",
    ["other_input", "of_an_unknown_shape", "constant", "sum", "softmax", "curved", "random",
     "writes", "asserted", "many"],
)  # fmt: skip
def test_other_graphs_are_not_known(servable, fetch):
    assert dimensions(servable, f"{fetch}:0") is None
    assert joined(servable, np.ones((2, 3, 3), np.float32), f"{fetch}:0") is None


def test_length_of_the_input_must_not_be_fixed(servable):
    assert dimensions(servable, "of_a_fixed_length:0", "fixed:0") is None


def test_variable_must_hold_what_was_declared(servable):
    assert elementwise(servable._session.graph, "x:0", "scaled:0", lambda _: (3,)) is None


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 3), (5, 2, 3), (0, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("count", [2, 3, 8, 31])
@pytest.mark.parametrize("fetch", ["scaled:0", "in_functions:0", "one_row:0", "two_rows:0"])
def test_each_gets_what_it_gets_alone(servable, count, shape, fetch):
    inputs = np.random.default_rng(count).normal(size=(count, *shape)).astype(np.float32)
    inputs.ravel()[:5] = [np.nan, np.inf, -np.inf, -0.0, 1e-42][: inputs.size]
    found = joined(servable, inputs, fetch)
    if len(shape) < dimensions(servable, fetch):
        assert found is None
        return
    for each, values in zip(inputs, found[0], strict=True):
        (alone,) = servable.run({"x:0": each}, [fetch])
        assert (values.shape, values.dtype) == (alone.shape, alone.dtype)
        assert values.tobytes() == alone.tobytes()


def test_several_outputs_and_their_runs_are_counted(servable):
    inputs = np.float32([[1], [2], [3]])
    same, scaled = joined(servable, inputs, "same:0", "scaled:0")
    assert same.tolist() == inputs.tolist()
    assert scaled.shape == (3, 1)
    assert re.search(r"graph_runs\S* 3\n", servable._metrics.page())


def test_what_fails_is_left_to_be_run_alone(servable):
    assert joined(servable, np.ones((2, 4, 4), np.float32), "in_functions:0") is None


def test_nothing_is_known_before_it_was_looked_for(servable):
    assert servable.run_joined("x:0", np.ones((2, 1), np.float32), ("scaled:0",)) is None
