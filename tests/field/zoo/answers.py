"""What comes out of picture models: probabilities, logits, classes, names, boxes, masks."""

import tensorflow as tf

from tests.field.zoo.heads import colour_logits, colours
from tests.field.zoo.registry import model
from tests.field.zoo.saving import save, spec

IMAGE = spec([None, 8, 8, 3], tf.float32, "image")
NAMES = tf.constant(["blue", "green", "red"])


def answer(name, image=IMAGE):
    """Register a model by what it answers to `image`."""

    def register(serve):
        return model(name)(lambda folder: save(folder, serve, image))

    return register


@answer("sigmoid")
def sigmoid(image):
    """One column: how red rather than blue."""
    redder = tf.reduce_mean(image[..., 0] - image[..., 2], [1, 2])
    return {"output_0": tf.sigmoid(redder * 20)[:, None]}


@answer("logits")
def logits(image):
    return {"logits": colour_logits(image)}


@answer("multi_label")
def multi_label(image):
    """Each colour is there or not: white has all of them."""
    return {"labels_there": tf.sigmoid(colour_logits(image) * 2 - 10)}


@answer("two_heads")
def two_heads(image):
    bright = tf.reduce_mean(image, [1, 2, 3])
    return {"colour": colours(image), "bright": tf.stack([1 - bright, bright], 1)}


@answer("class_beside_scores")
def class_beside_scores(image):
    scores = colours(image)
    return {"classes": tf.argmax(scores, 1), "probabilities": scores}


@answer("class_alone")
def class_alone(image):
    return {"classes": tf.argmax(colours(image), 1)}


@answer("class_names")
def class_names(image):
    """Names in the order of the scores, for each row."""
    scores, order = tf.math.top_k(colours(image), 3)
    return {"scores": scores, "labels": tf.gather(NAMES, order)}


@answer("class_numbers")
def class_numbers(image):
    """The two best classes and their scores, the best first."""
    scores, order = tf.math.top_k(colours(image), 2)
    return {"scores": scores, "indices": order}


@answer("best_scores_alone")
def best_scores_alone(image):
    return {"scores": tf.math.top_k(colours(image), 2)[0]}


@answer("class_name_alone")
def class_name_alone(image):
    return {"label": tf.gather(NAMES, tf.argmax(colours(image), 1))}


@answer("embedding")
def embedding(image):
    return {"embedding": tf.math.l2_normalize(tf.reshape(image, [-1, 192]) - 0.5, axis=1)}


@answer("age")
def age(image):
    return {"age": tf.reduce_mean(image, [1, 2, 3])[:, None] * 100}


@answer("constant_answer")
def constant_answer(image):
    """The same two numbers, whatever comes."""
    return {"scores": tf.constant([0.25, 0.75])}


@answer("nan_scores")
def nan_scores(image):
    scores = colours(image)
    return {"scores": tf.where(scores > 0.5, float("nan"), scores)}


@answer("segmenter")
def segmenter(image):
    return {"mask": tf.nn.softmax(image * 10)}


def _boxes(image):
    rows = tf.shape(image)[0]
    boxes = tf.tile([[[0.0, 0, 1, 1], [0, 0, 0.5, 0.5]]], [rows, 1, 1])
    red = tf.reduce_mean(tf.cast(image, tf.float32)[..., 0], [1, 2])
    classes = tf.stack([tf.where(red > 100, 3.0, 1.0), tf.fill([rows], 17.0)], 1)
    return rows, boxes, classes


@answer("detector", spec([1, None, None, 3], tf.uint8, "input_tensor"))
def detector(input_tensor):
    """The names of the Object Detection API."""
    rows, boxes, classes = _boxes(input_tensor)
    return {
        "detection_boxes": boxes,
        "detection_scores": tf.tile([[0.9, 0.2]], [rows, 1]),
        "detection_classes": classes,
        "num_detections": tf.fill([rows], 2.0),
    }


@answer("detector_of_other_names", spec([None, 8, 8, 3], tf.uint8, "image"))
def detector_of_other_names(image):
    rows, boxes, classes = _boxes(image)
    scores = tf.tile([[0.9, 0.2]], [rows, 1])
    return {"boxes": boxes, "scores": scores, "classes": tf.cast(classes, tf.int64)}
