"""Pictures go in as numbers, in all the shapes there are."""

import tensorflow as tf

from tests.field.zoo.heads import brightness, colours
from tests.field.zoo.registry import model
from tests.field.zoo.saving import save, spec


def colour_model(folder, shape, *, axes=(1, 2), dtype=tf.float32, first=tf.identity):
    def serve(image):
        pixels = tf.cast(first(image), tf.float32)
        return {"scores": colours(pixels / 255 if dtype.is_integer else pixels, axes)}

    save(folder, serve, spec(shape, dtype, "image"))


@model("picture_unit")
def unit(folder):
    """Nothing in it tells that pixels run from 0 to 1; pixels to 255 would all be bright."""
    save(
        folder,
        lambda image: {"scores": brightness(image)},
        spec([None, 8, 8, 3], tf.float32, "image"),
    )


@model("picture_uint8")
def uint8(folder):
    colour_model(folder, [None, 8, 8, 3], dtype=tf.uint8)


@model("picture_channels_first")
def channels_first(folder):
    colour_model(folder, [None, 3, 8, 8], axes=(2, 3))


@model("picture_any_size")
def any_size(folder):
    colour_model(folder, [None, None, None, 3])


@model("picture_flat")
def flat(folder):
    colour_model(folder, [None, 192], first=lambda image: tf.reshape(image, [-1, 8, 8, 3]))


@model("picture_batch_of_4")
def batch_of_4(folder):
    colour_model(folder, [4, 8, 8, 3])


@model("picture_without_batch")
def without_batch(folder):
    """One picture goes in, and one list of scores comes out."""

    def serve(image):
        return {"scores": colours(image[tf.newaxis])[0]}

    save(folder, serve, spec([8, 8, 3], tf.float32, "image"))


@model("picture_four_channels")
def four_channels(folder):
    colour_model(folder, [None, 8, 8, 4], first=lambda image: image[..., :3])


@model("picture_unknown_rank")
def unknown_rank(folder):
    colour_model(folder, None, first=lambda image: tf.ensure_shape(image, [None, 8, 8, 3]))


@model("picture_grey")
def grey(folder):
    """28 rows of 28 numbers, without an axis for the channel: is the left or the right brighter?"""

    def serve(image):
        left, right = (tf.reduce_mean(each, [1, 2]) for each in tf.split(image, 2, axis=2))
        return {"scores": tf.nn.softmax(tf.stack([left, right], 1) * 10)}

    save(folder, serve, spec([None, 28, 28], tf.float32, "image"))


@model("picture_half")
def half(folder):
    colour_model(folder, [None, 8, 8, 3], dtype=tf.float16)


@model("picture_of_fixed_weights")
def large_constant(folder):
    """Five megabytes of weights stand in the graph itself."""
    weights = tf.linspace(0.0, 1.0, 192 * 6600)
    table = tf.constant(tf.reshape(weights, [192, 6600]).numpy())

    def serve(image):
        extra = tf.reduce_mean(tf.reshape(image, [-1, 192]) @ table, 1, keepdims=True)
        return {"scores": colours(image) + 0 * extra}

    save(folder, serve, spec([None, 8, 8, 3], tf.float32, "image"))


@model("video")
def video(folder):
    colour_model(folder, [None, 4, 8, 8, 3], axes=(1, 2, 3))


@model("picture_and_keep_prob")
def keep_prob(folder):
    def serve(image, keep_prob):
        return {"scores": colours(image * keep_prob)}

    image = spec([None, 8, 8, 3], tf.float32, "image")
    save(folder, serve, image, spec([], tf.float32, "keep_prob"))


@model("picture_and_training")
def training(folder):
    """In training, it answers noise: here, the opposite."""

    def serve(image, is_training):
        return {"scores": colours(tf.where(is_training, 1 - image, image))}

    image = spec([None, 8, 8, 3], tf.float32, "image")
    save(folder, serve, image, spec([], tf.bool, "is_training"))
