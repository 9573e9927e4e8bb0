"""Models as TensorFlow 1 wrote them: a session, a builder, and what is run at the load."""

import tensorflow as tf

from tests.field.zoo.heads import colours
from tests.field.zoo.registry import model

v1 = tf.compat.v1


def written(folder, session, signatures, **more):
    builder = v1.saved_model.Builder(str(folder))
    builder.add_meta_graph_and_variables(session, ["serve"], signatures, **more)
    builder.save()


@model("session_variables")
def session_variables(folder):
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 2], "x")
        weights = v1.get_variable(
            "weights", initializer=tf.constant([[1.0], [10.0]]), use_resource=False
        )
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": x @ weights})
        written(folder, session, {"serving_default": signature})


@model("session_with_init_op")
def session_with_init_op(folder):
    """Slim's kind: a table of names filled by the legacy init operation, 0 is the background."""
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, 8, 8, 3], "image")
        table = v1.lookup.StaticHashTable(
            v1.lookup.KeyValueTensorInitializer(
                tf.constant([0, 1, 2], tf.int64), ["blue", "green", "red"]
            ),
            "?",
        )
        scores, order = tf.nn.top_k(colours(image), 3)
        names = table.lookup(tf.cast(order, tf.int64))
        signature = v1.saved_model.build_signature_def(
            {"images": v1.saved_model.build_tensor_info(image)},
            {
                "classes": v1.saved_model.build_tensor_info(names),
                "scores": v1.saved_model.build_tensor_info(scores),
            },
            "tensorflow/serving/predict",
        )
        written(folder, session, {"predict_images": signature, "serving_default": signature},
                legacy_init_op=v1.tables_initializer())  # fmt: skip


@model("frozen_graph")
def frozen_graph(folder):
    """Constants instead of variables, and a name scope around all of it."""
    with tf.Graph().as_default(), v1.Session() as session, tf.name_scope("import"):
        x = v1.placeholder(tf.float32, [None, 2], "input")
        y = tf.add(x @ tf.constant([[1.0], [10.0]]), 0.5, name="output")
        signature = v1.saved_model.predict_signature_def({"input": x}, {"output": y})
        written(folder, session, {"serving_default": signature})
