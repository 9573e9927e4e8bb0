"""Several requests in one run: each gets what it gets alone, or is left to be asked for alone."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tfserve_kit.embedded.metrics import Metrics
from tfserve_kit.embedded.servable import SessionServable, compiled_call

pytestmark = pytest.mark.tensorflow

PATIENCE_S = 20


@pytest.fixture(scope="module")
def session():
    """A session with graphs that can be copied, and with others."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, None, name="x")
        k = tf.compat.v1.placeholder(tf.int32, None, name="k")
        s = tf.compat.v1.placeholder(tf.string, None, name="s")
        weights = tf.Variable([2.0, 3.0, 5.0])
        count = tf.Variable(0.0)

        @tf.function
        def inner(value):
            return tf.tanh(value) * weights

        @tf.function
        def drawing(value):
            return value + tf.random.uniform([])

        tf.identity(inner(x), name="in_functions")
        tf.identity(drawing(x), name="random_in_a_function")
        more = tf.add(x, 1.0)
        with tf.control_dependencies([tf.constant(1.0), tf.sin(x)]):
            tf.reshape(more, k, name="reshaped")
        with tf.control_dependencies([tf.ensure_shape(x, [3])]):
            guarded = tf.constant(1.0)
        tf.add(x, guarded, name="guarded")
        tf.raw_ops.FractionalMaxPool(
            value=x, pooling_ratio=[1.0, 1.5, 1.5, 1.0], seed=0, deterministic=True, name="pooled"
        )
        tf.identity(x, name="same")
        tf.constant(1.0, name="constant")
        tf.strings.length(s, name="length")
        tf.strings.as_string(x, name="text")
        tf.identity(count.assign_add(tf.reduce_sum(x)), name="counted")
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x > 0), [x])]):
            tf.identity(x, name="asserted")
        tf.while_loop(lambda v: tf.reduce_sum(v) < 9, lambda v: v + 1, [x], name="loop")
        many = x
        for _ in range(100):
            many = tf.sin(many)
        tf.identity(many, name="many")
        with tf.compat.v1.Session(graph=graph) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            yield session


def serving(session, metrics=None, *, compiled=True):
    from tfserve_kit.embedded.loader import _runtime

    return SessionServable(_runtime(), session, {}, compiled=compiled, metrics=metrics)


def together(servable, feeds, fetches):
    """Return what is computed together, once it is known whether it can be."""
    key = tuple(feeds[0]), tuple(fetches)
    thread = threading.Thread(target=servable._make_together, args=key)
    thread.start()  # as it lowers the priority of its own
    thread.join()
    return servable.run_together(feeds, fetches)


def numbers(count, *shape):
    random = np.random.default_rng(count)
    return [{"x:0": random.random(shape, np.float32)} for _ in range(count)]


def same(found, expected):
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for ones, others in zip(found, expected, strict=True)
        for a, b in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
@pytest.mark.parametrize("count", [2, 3, 8, 9, 31])
def test_each_gets_what_it_gets_alone(session, count, compiled):
    servable, fetches = serving(session, compiled=compiled), ["in_functions:0", "same:0"]
    feeds = numbers(count, 2, 3)
    found = together(servable, feeds, fetches)
    assert len(found) == count // 2 * 2
    assert same(found, [servable.run(each, fetches) for each in feeds[: len(found)]])


def test_shapes_may_differ_and_inputs_be_several(session):
    servable = serving(session)
    feeds = [{"x:0": np.arange(n, dtype=np.float32), "k:0": np.int32([n, 1])} for n in (1, 5, 0, 7)]
    found = together(servable, feeds, ["reshaped:0"])
    assert [each.shape for (each,) in found] == [(1, 1), (5, 1), (0, 1), (7, 1)]
    assert same(found, [servable.run(each, ["reshaped:0"]) for each in feeds])


def test_input_that_is_not_needed_does_no_harm(session):
    feeds = [{"x:0": np.float32([1]), "k:0": np.int32([1])}] * 2
    assert len(together(serving(session), feeds, ["same:0"])) == 2


def test_those_with_one_that_fails_are_left_to_be_run_alone(session):
    servable = serving(session)
    good, bad = numbers(1, 1, 3)[0], {"x:0": np.zeros((7, 7), np.float32)}
    found = together(servable, [good] * 8 + [good, bad] + [good] * 6, ["in_functions:0"])
    assert same(found, [servable.run(good, ["in_functions:0"])] * 8)
    assert together(servable, [bad, good], ["in_functions:0"]) == []


@pytest.mark.parametrize(
    "fetch",
    ["random_in_a_function", "counted", "asserted", "many", "length", "text", "constant",
     "loop/Exit", "guarded", "pooled", "reshaped"],
)  # fmt: skip
def test_what_has_effects_or_is_large_or_text_is_run_alone(session, fetch):
    servable = serving(session)
    name = "s:0" if fetch == "length" else "x:0"
    value = np.array([b"a"], object) if fetch == "length" else np.float32([1])
    if fetch == "pooled":
        value = np.random.default_rng(0).random((1, 9, 9, 1), np.float32)
    before = servable.run({"x:0": np.float32([0])}, ["counted:0"])
    assert together(servable, [{name: value}] * 8, [f"{fetch}:0"]) == []
    assert same([servable.run({"x:0": np.float32([0])}, ["counted:0"])], [before])


def test_it_is_made_beside_and_once_and_the_metrics_know_of_its_runs(session, monkeypatch):
    metrics, made, may_go_on = Metrics(), [], threading.Event()

    def slowly(tf, session, feeds, fetches):
        made.append(len(feeds))
        assert may_go_on.wait(PATIENCE_S)
        return compiled_call(tf, session, feeds, fetches)

    monkeypatch.setattr("tfserve_kit.embedded.servable.compiled_call", slowly)
    servable, feeds = serving(session, metrics), numbers(8, 3)
    for _ in range(20):
        assert servable.run_together(feeds, ["in_functions:0"]) == []
    may_go_on.set()
    end_s = time.monotonic() + PATIENCE_S
    while not (found := servable.run_together(feeds, ["in_functions:0"])):
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert len(found) == 8
    assert made == [8, 4, 2]
    assert ":tensorflow:core:graph_runs{} 8\n" in metrics.page()


def test_servable_that_is_closed_meanwhile_makes_nothing_more():
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, None, name="x")
        tf.add(x, 1.0, name="more")
        servable = serving(tf.compat.v1.Session(graph=graph))
    assert servable.run_together(numbers(2, 1), ["more:0"]) == []
    servable.close()
    servable._make_together(("x:0",), ("more:0",))
    assert not servable._together


def test_graph_that_copies_would_make_large_enough_to_be_optimized_is_left_alone():
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, None, name="x")
        tf.divide(x, 3.0, name="third")
        servable = serving(tf.compat.v1.Session(graph=graph))
    feeds = numbers(8, 1000)
    before = [servable.run(each, ["third:0"]) for each in feeds]
    assert together(servable, feeds, ["third:0"]) == []
    assert same([servable.run(each, ["third:0"]) for each in feeds], before)
    servable.close()


def test_choices_of_outputs_do_not_make_the_graph_grow_for_ever(session):
    servable, feeds = serving(session), numbers(2, 3)
    for number in range(100):
        choice = ["same:0" if number >> bit & 1 else "in_functions:0" for bit in range(7)]
        servable.run_together(feeds, choice)
    assert len(servable._together) == 8


_LEFT_IN_THE_MIDDLE = """
import numpy as np, tensorflow as tf
from tfserve_kit.embedded.loader import _runtime
from tfserve_kit.embedded.servable import SessionServable
with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, None, name="x")
    for _ in range(20):
        x = tf.sin(x)
    tf.identity(x, name="y")
servable = SessionServable(_runtime(), tf.compat.v1.Session(graph=graph), {}, compiled=True)
assert servable.run_together([{"x:0": np.ones(1, np.float32)}] * 2, ["y:0"]) == []
"""


def test_process_can_end_while_copies_are_made():
    subprocess.run([sys.executable, "-c", _LEFT_IN_THE_MIDDLE], check=True)
