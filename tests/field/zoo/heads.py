"""What the picture models share: pictures of one colour, and brightness or colour as a class.

Classes are in the order of their sorted names, as a folder of examples has them: `blue`, `green`,
`red`, and `bright`, `dark`, `mid`. A brightness is right only where the range of the pixels is.
"""

import numpy as np
import tensorflow as tf

# Logits of bright, dark, mid for a brightness of 0 to 1: highest at 1, at 0 and at a half.
_CENTRES = np.float32([1, 0, 0.5])
_SHARPNESS = np.float32(40)
BRIGHTNESS_KERNEL = np.tile(2 * _SHARPNESS * _CENTRES / 3, (3, 1)).astype(np.float32)
BRIGHTNESS_BIAS = -_SHARPNESS * _CENTRES**2


def brightness(unit, axes=(1, 2)):
    """Return probabilities of bright, dark and mid; `unit` is RGB from 0 to 1."""
    mean = tf.reduce_mean(unit, axes)
    return tf.nn.softmax(tf.linalg.matmul(mean, BRIGHTNESS_KERNEL) + BRIGHTNESS_BIAS)


def colour_logits(pixels, axes=(1, 2)):
    """Return logits of blue, green and red, from the brightness of each channel."""
    return tf.reverse(tf.reduce_mean(pixels, axes), [-1]) * 10


def colours(pixels, axes=(1, 2)):
    """Return probabilities of blue, green and red; `pixels` is RGB."""
    return tf.nn.softmax(colour_logits(pixels, axes))


def decoded(data, size=4):
    """Decode one picture and resize it: float [size, size, 3], 0 to 1."""
    pixels = tf.io.decode_image(data, channels=3, expand_animations=False)
    return tf.image.resize(pixels, [size, size]) / 255


def decoded_all(data, size=4):
    """Decode [rows] pictures: float [rows, size, size, 3], 0 to 1."""
    each = tf.TensorSpec([size, size, 3], tf.float32)
    return tf.map_fn(lambda one: decoded(one, size), data, fn_output_signature=each)
