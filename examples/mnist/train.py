"""Train a classifier of MNIST's digits and export it as a version that classifies and predicts.

    train.py exported --version 1 --model softmax     # writes exported/1

Two signatures: `serving_default` takes images, `classify` takes tf.Examples. Needs tensorflow.
"""

import argparse
import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with _silent_stderr():
    import tensorflow as tf

    tf.config.list_logical_devices()  # the search for a GPU is logged whatever the level

DIGITS = Path(__file__).resolve().parents[2] / "data" / "digits"
LABELS = tuple("0123456789")
_BATCH = 128


def main() -> None:
    """Train, print the error rate on the test set, export."""
    parser = _parser()
    options = parser.parse_args()
    target: Path = options.export_dir / str(options.version)
    if target.exists():
        parser.error(f"{target} exists; choose another --version")
    try:
        images, labels = read(options.data, "train")
        test_images, test_labels = read(options.data, "t10k")
    except (OSError, EOFError, ValueError) as error:
        parser.error(f"--data {options.data}: {error}; give the folder of MNIST's four .gz files")
    model = train(options.model, images, labels, options.steps)
    wrong = model.predict(test_images, verbose=0).argmax(axis=1) != test_labels
    print(f"{options.model}, {options.steps} steps: {wrong.mean():.2%} of {len(wrong)} wrong")
    export(model, target)
    print(f"SavedModel: {target}")


def read(folder: Path, part: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Read one part of MNIST, `train` or `t10k`.

    Returns:
        Images, float32 [n, 784], 0-1, and labels, uint8 [n], 0-9.
    """
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / f"{part}-{kind}.gz").read_bytes()), np.uint8)
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    # A header of 16 bytes before the pixels, and one of 8 bytes before the labels.
    return pixels[16:].reshape(-1, 784).astype(np.float32) / np.float32(255), labels[8:]


def train(kind: str, images: NDArray[np.float32], labels: NDArray[np.uint8], steps: int) -> Any:
    """Train a keras model from images, float32 [batch, 784], 0-1, to ten probabilities."""
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    hidden = {
        "softmax": [],
        "cnn": [
            layers.Reshape((28, 28, 1)),
            layers.RandomTranslation(0.08, 0.08, fill_mode="constant"),  # while training
            layers.Conv2D(16, 5, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(64, activation="relu"),
        ],
    }
    model = tf.keras.Sequential(
        [tf.keras.Input((784,)), *hidden[kind], layers.Dense(10, activation="softmax")]
    )
    optimizer = tf.keras.optimizers.SGD(0.5) if kind == "softmax" else "adam"
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    examples = tf.data.Dataset.from_tensor_slices((images, labels))
    batches = examples.shuffle(len(labels), seed=0).repeat().batch(_BATCH)
    model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
    return model


def export(model: Any, target: Path) -> None:
    """Write the SavedModel, its two signatures, and the note on how pictures become its input."""
    archive = tf.keras.export.ExportArchive()
    archive.track(model)

    def predict(images: Any) -> dict[str, Any]:
        return {"scores": model(images, training=False)}

    def classify(inputs: Any) -> dict[str, Any]:
        features = {"image": tf.io.FixedLenFeature([784], tf.float32)}
        images = tf.io.parse_example(inputs, features)["image"]
        scores = model(images, training=False)
        return {"classes": tf.repeat([LABELS], tf.shape(scores)[0], axis=0), "scores": scores}

    images = tf.TensorSpec([None, 784], tf.float32, name="images")
    examples = tf.TensorSpec([None], tf.string, name="inputs")
    archive.add_endpoint("serving_default", predict, input_signature=[images])
    archive.add_endpoint("classify", classify, input_signature=[examples])
    archive.write_out(str(target), verbose=False)
    # Keras calls every signature a predict signature; the Classify API asks for its own kind.
    kinds = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(target))
    kinds.replace_method_name("classify", "tensorflow/serving/classify")
    kinds.save()
    Preprocessing(height=28, width=28, channels=1, value_range=(0, 1), labels=LABELS).write(target)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = parser.add_argument
    option("export_dir", type=Path, metavar="EXPORT_DIR", help="where the version is written")
    option("--version", type=int, default=1, help="number of the version (%(default)s)")
    option("--model", choices=("softmax", "cnn"), default="softmax", help="(%(default)s)")
    option("--data", type=Path, default=DIGITS, metavar="DIR", help="MNIST's files (%(default)s)")
    option("--steps", type=int, default=400, help="batches of 128 to train on (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
