"""Train a softmax regression on 28x28 digits and export it as a SavedModel.

Reads `data/digits`, or any folder of MNIST's files. Needs the tensorflow package.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from idx import Digits, load
from numpy.typing import NDArray

from tfserve_kit.pictures.preprocessing import Preprocessing


@contextmanager
def _silent_stderr() -> Iterator[None]:
    stderr = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


# Tensorflow reads these once, as it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
with _silent_stderr():
    import tensorflow as tf

    tf.config.list_logical_devices()  # the search for a GPU is logged whatever the level

_BATCH = 128


def main() -> None:
    """Train, export, and print the error rate on the held-out digits."""
    parser = _parser()
    options = parser.parse_args()
    out: Path = options.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        parser.error(f"{out} exists and is not an empty directory; choose another --out")
    try:
        digits = load(options.data)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    model = train(digits, options.steps, options.learning_rate, options.seed)
    export(model, out)
    print(
        f"trained on {len(digits.train_labels)} digits, "
        f"error rate on {len(digits.test_labels)} held-out digits: {error_rate(model, digits):.1%}"
    )
    print(f"SavedModel: {out}")


def train(digits: Digits, steps: int, learning_rate: float, seed: int) -> Any:
    """Fit the weights by gradient descent on batches drawn at random.

    Returns:
        A `tf.Module` whose `serve` maps images, float32 [batch, 784], 0-1, to `scores`, float32
        [batch, 10], probabilities, and `classes`, int64 [batch].
    """
    tf.config.experimental.enable_op_determinism()
    model = _untrained()
    images, labels = flatten(digits.train_images), digits.train_labels.astype(np.int64)
    descend = tf.function(_descend)
    draw = np.random.default_rng(seed)
    for _ in range(steps):
        batch = draw.integers(len(labels), size=_BATCH)
        descend(model, tf.constant(images[batch]), tf.constant(labels[batch]), learning_rate)
    return model


def error_rate(model: Any, digits: Digits) -> float:
    """Return the share of held-out digits that the model takes for another, 0-1."""
    classes = model.serve(flatten(digits.test_images))["classes"]
    return float(np.mean(classes.numpy() != digits.test_labels))


def export(model: Any, out: Path) -> None:
    """Write the SavedModel and the note that says how pictures become its input."""
    tf.saved_model.save(model, str(out), signatures={"serving_default": model.serve})
    Preprocessing(
        height=28, width=28, channels=1, value_range=(0.0, 1.0), labels=tuple("0123456789")
    ).write(out)


def flatten(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn images, uint8 [batch, 28, 28], 0-255, into rows, float32 [batch, 784], 0-1."""
    return images.reshape(len(images), 784).astype(np.float32) / np.float32(255)


def _untrained() -> Any:
    model = tf.Module()
    model.weights = tf.Variable(tf.zeros([784, 10]), name="weights")
    model.bias = tf.Variable(tf.zeros([10]), name="bias")

    def serve(images: Any) -> dict[str, Any]:
        scores = tf.nn.softmax(images @ model.weights + model.bias)
        return {"scores": scores, "classes": tf.argmax(scores, axis=1)}

    model.serve = tf.function(serve, [tf.TensorSpec([None, 784], tf.float32, name="images")])
    return model


def _descend(model: Any, images: Any, labels: Any, learning_rate: float) -> None:
    with tf.GradientTape() as tape:
        logits = images @ model.weights + model.bias
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        loss = tf.reduce_mean(losses)
    variables = [model.weights, model.bias]
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        variable.assign_sub(learning_rate * gradient)


def _parser() -> argparse.ArgumentParser:
    data = Path(__file__).resolve().parents[2] / "data" / "digits"
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option("--out", type=Path, required=True, metavar="DIR", help="where to write the SavedModel")
    option("--data", type=Path, default=data, metavar="DIR", help="the IDX files (%(default)s)")
    option("--steps", type=int, default=1000, help="number of batches (%(default)s)")
    option("--learning-rate", type=float, default=0.5, help="size of a step (%(default)s)")
    option("--seed", type=int, default=0, help="seed of the choice of batches (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
