"""Pictures go in as the bytes of a file, or as text that stands for them."""

import tensorflow as tf

from tests.field.zoo.heads import brightness, colours, decoded, decoded_all
from tests.field.zoo.registry import model
from tests.field.zoo.saving import save, spec


def of_bytes(name, shape, read, alias="image_bytes"):
    def build(folder):
        def serve(data):
            return {"scores": brightness(read(data))}

        save(folder, serve, spec(shape, tf.string, alias))

    return model(name)(build)


of_bytes("bytes_of_a_row", [None], decoded_all)
of_bytes("bytes_in_a_column", [None, 1], lambda data: decoded_all(data[:, 0]))
of_bytes("bytes_of_unknown_rank", None, lambda data: decoded_all(tf.reshape(data, [-1])))
of_bytes(
    "bytes_as_websafe_base64", [None], lambda text: decoded_all(tf.io.decode_base64(text)),
    "image_b64",
)  # fmt: skip


@model("bytes_alone")
def alone(folder):
    """One picture, and no axis for more."""

    def serve(data):
        return {"scores": brightness(decoded(data)[tf.newaxis])}

    save(folder, serve, spec([], tf.string, "image_bytes"))


@model("bytes_and_key")
def and_key(folder):
    """What AutoML exports: a key comes back beside the scores and the names."""

    def serve(image_bytes, key):
        scores = colours(decoded_all(image_bytes))
        names = tf.tile([["blue", "green", "red"]], [tf.shape(scores)[0], 1])
        return {"scores": scores, "labels": names, "key": key}

    save(folder, serve, spec([None], tf.string, "image_bytes"), spec([None], tf.string, "key"))


@model("bytes_preprocessed")
def preprocessed(folder):
    """Cropped, whitened and turned around inside, one by one."""

    def one(data):
        pixels = decoded(data, 12)[2:10, 2:10]
        return tf.reverse((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], [-1])

    def serve(data):
        each = tf.TensorSpec([8, 8, 3], tf.float32)
        bgr = tf.map_fn(one, data, fn_output_signature=each)
        return {"scores": tf.nn.softmax(tf.reduce_mean(bgr, [1, 2]) * 4)}

    save(folder, serve, spec([None], tf.string, "image_bytes"))
