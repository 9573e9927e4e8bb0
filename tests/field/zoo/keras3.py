"""Models that Keras 3 exports, and ones it was made to save in ways that do not work."""

import keras
import numpy as np
import tensorflow as tf
from keras.applications import imagenet_utils
from keras.export import ExportArchive

from tests.field.zoo.heads import BRIGHTNESS_BIAS, BRIGHTNESS_KERNEL
from tests.field.zoo.registry import model
from tests.field.zoo.saving import save, spec

L = keras.layers


def export(keras_model, folder):
    keras_model.export(str(folder), verbose=False)


def bright_head(shift=0.0, scale=1.0):
    """Return a layer that finds bright, dark and mid in the mean of `(unit - shift) / scale`."""
    kernel = BRIGHTNESS_KERNEL * np.float32(scale)
    bias = BRIGHTNESS_BIAS + (BRIGHTNESS_KERNEL.T @ np.float32(np.broadcast_to(shift, 3)))
    head = L.Dense(3, activation="softmax", name="brightness")
    head.build((None, 3))
    head.set_weights([kernel, bias.astype(np.float32)])
    return head


def bright_model(first, *, shift=0.0, scale=1.0, size=(8, 8), dtype="float32"):
    photo = keras.Input((*size, 3), name="photo", dtype=dtype)
    pooled = L.GlobalAveragePooling2D()(first(photo))
    return keras.Model(photo, bright_head(shift, scale)(pooled))


@model("keras_functional")
def functional(folder):
    export(bright_model(L.Rescaling(1 / 255)), folder)


@model("keras_sequential")
def sequential(folder):
    layers = [L.Rescaling(1 / 127.5, offset=-1), L.GlobalAveragePooling2D(), bright_head(0.5, 0.5)]
    export(keras.Sequential([keras.Input((8, 8, 3), name="photo"), *layers]), folder)


@model("keras_subclassed")
def subclassed(folder):
    class Bright(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale, self.pool = L.Rescaling(1 / 255), L.GlobalAveragePooling2D()
            self.head = bright_head()

        def call(self, photo, training=False):
            return self.head(self.pool(self.scale(photo)))

    made = Bright()
    made(np.zeros((1, 8, 8, 3), np.float32))
    export(made, folder)


@model("keras_normalization_255")
def normalization(folder):
    layer = L.Normalization()
    layer.adapt(np.linspace(0, 255, 3 * 64, dtype=np.float32).reshape(64, 1, 1, 3))
    export(bright_model(layer, **_adapted(layer, 255)), folder)


@model("keras_normalization_unit")
def normalization_unit(folder):
    layer = L.Normalization()
    layer.adapt(np.linspace(0, 1, 3 * 64, dtype=np.float32).reshape(64, 1, 1, 3))
    export(bright_model(layer, **_adapted(layer, 1)), folder)


def _adapted(layer, white):
    """Return what a Normalization subtracts and divides by, as parts of white."""
    mean, variance = np.ravel(layer.mean), np.ravel(layer.variance)
    return {"shift": mean / white, "scale": np.sqrt(variance)[:, None] / white}


@model("keras_caffe")
def caffe(folder):
    bgr = np.float32([103.939, 116.779, 123.68]) / 255
    first = lambda photo: imagenet_utils.preprocess_input(photo, mode="caffe") / 255.0  # noqa: E731
    export(bright_model(first, shift=bgr), folder)


@model("keras_torch")
def torch(folder):
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    first = lambda photo: imagenet_utils.preprocess_input(photo, mode="torch")  # noqa: E731
    export(bright_model(first, shift=mean, scale=std[:, None]), folder)


@model("keras_resizing")
def resizing(folder):
    first = keras.Sequential([L.Resizing(8, 8), L.Rescaling(1 / 255)])
    export(bright_model(first, size=(None, None)), folder)


@model("keras_uint8")
def unsigned(folder):
    first = lambda photo: L.Rescaling(1 / 255)(keras.ops.cast(photo, "float32"))  # noqa: E731
    export(bright_model(first, dtype="uint8"), folder)


@model("keras_efficientnet")
def efficientnet(folder):
    """What EfficientNet begins with, small; its weights are drawn, so Keras tells the answer."""
    keras.utils.set_random_seed(3)
    photo = keras.Input((16, 16, 3), name="photo")
    x = L.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.0524, 0.0502, 0.0506])(
        L.Rescaling(1 / 255)(photo)
    )
    x = L.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(x)
    x = L.Activation("swish")(L.BatchNormalization()(x))
    x = L.Activation("swish")(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same")(x)))
    gate = L.Dense(4, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))
    x = L.Dropout(0.2)(L.GlobalAveragePooling2D()(L.Multiply()([x, gate])))
    made = keras.Model(photo, L.Dense(5, activation="softmax", name="predictions")(x))
    export(made, folder)
    pixels = np.tile(np.float32([230, 20, 20]), (1, 16, 16, 1))
    return {"inputs": {"photo": pixels}, "outputs": {"output_0": made.predict(pixels, verbose=0)}}


@model("keras_archive")
def archive(folder):
    made = bright_model(L.Rescaling(1 / 255))
    pooled = keras.Model(made.input, made.layers[-2].output)
    exported = ExportArchive()
    exported.track(made)
    photo = [spec([None, 8, 8, 3], tf.float32, "photo")]
    exported.add_endpoint("serve", made.call, input_signature=photo)
    exported.add_endpoint("embed", pooled.call, input_signature=photo)
    exported.write_out(str(folder), verbose=False)


def _dense(units, value, name):
    return L.Dense(units, kernel_initializer=keras.initializers.Constant(value), name=name)


@model("keras_dicts")
def dicts(folder):
    user, context = keras.Input((2,), name="user_id"), keras.Input((3,), name="context")
    clicks = _dense(1, 1.0, "ctr")(L.Concatenate()([user, context]))
    buys = _dense(2, 0.5, "cvr")(user)
    inputs = {"user_id": user, "context": context}
    export(keras.Model(inputs, {"ctr": clicks, "cvr": buys}), folder)


@model("keras_lists")
def lists(folder):
    first, second = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    outputs = [_dense(1, 1.0, "one")(first), _dense(2, 2.0, "two")(second)]
    export(keras.Model([first, second], outputs), folder)


@model("keras_lstm")
def lstm(folder):
    """LSTM, BatchNormalization and Dropout with states, trained for one step."""
    keras.utils.set_random_seed(5)
    steps = keras.Input((4, 3), name="steps")
    x = L.Dropout(0.5)(L.BatchNormalization()(L.LSTM(4)(steps)))
    made = keras.Model(steps, L.Dense(1, activation="sigmoid", name="p")(x))
    made.compile("adam", "binary_crossentropy")
    random = np.random.default_rng(5)
    rows = random.random((8, 4, 3), np.float32)
    made.fit(rows, np.arange(8) % 2, verbose=0)
    export(made, folder)
    return {"inputs": {"steps": rows}, "outputs": {"output_0": made.predict(rows, verbose=0)}}


@model("keras_text")
def text(folder):
    """Words go in as strings; the mean of their numbers comes out."""
    words = L.TextVectorization(output_sequence_length=4, vocabulary=["good", "bad", "film"])
    table = np.float32([[0], [0], [1], [-1], [0]])  # padding, unknown, good, bad, film
    embedding = L.Embedding(5, 1, weights=[table])
    sentence = keras.Input((1,), dtype="string", name="sentence")
    export(keras.Model(sentence, L.GlobalAveragePooling1D()(embedding(words(sentence)))), folder)


@model("keras_saved_wrongly")
def saved_wrongly(folder):
    tf.saved_model.save(bright_model(L.Rescaling(1 / 255)), str(folder))


@model("keras_in_module")
def in_module(folder):
    class Wrapper(tf.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    made = bright_model(L.Rescaling(1 / 255))
    wrapper = Wrapper(made)
    photo = spec([None, 8, 8, 3], tf.float32, "photo")
    save(folder, lambda photo: {"scores": made(photo)}, photo, module=wrapper)
