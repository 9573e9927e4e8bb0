"""Train a classifier on a folder of pictures, one sub-folder per class, and export it.

    train.py pictures --model-dir exported --base MobileNetV2

The SavedModel's folder is named after the time, in Unix seconds, and printed at the end. It takes
images, float32 [batch, height, width, 3], 0-255, and returns `scores`, float32 [batch, classes],
and `classes`, string [batch], the name of the best one. Needs tensorflow.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

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

_SMALL_SIDE, _USUAL_SIDE = 96, 224


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures: uint8 [n, side, side, 3], int64 [n], and the name of each class."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]


class Unusable(ValueError):
    """What was asked for cannot be used; the message says why and what to do."""


def main() -> None:
    """Read the pictures, train, export, and print where the SavedModel is."""
    parser = _parser()
    options = parser.parse_args()
    tf.keras.utils.set_random_seed(options.seed)
    try:
        files = find(options.image_dir)
        features, side = base_model(options.base, options.weights, options.image_size)
        pictures = read(files, side)
    except Unusable as error:
        parser.error(str(error))
    counts = zip(pictures.names, np.bincount(pictures.labels), strict=True)
    print(", ".join(f"{name}: {count} pictures" for name, count in counts))
    # Smaller and smaller steps: the last ones settle what the first ones found.
    learning_rate = tf.keras.optimizers.schedules.CosineDecay(options.learning_rate, options.steps)
    model = classifier(features, side, len(pictures.names), learning_rate)
    fit(model, pictures, options)
    print(f"SavedModel: {export(model, pictures.names, side, options.model_dir)}")


def find(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each class, by its name.

    Raises:
        Unusable: there are less than two classes, or one without files.
    """
    if not folder.is_dir():
        raise Unusable(f"{folder} is no folder; give one that holds a folder per class")
    kinds = sorted(each for each in folder.iterdir() if each.is_dir() and each.name[0] != ".")
    if len(kinds) < 2:
        names = ", ".join(each.name for each in kinds) or "none"
        raise Unusable(f"{folder} holds {len(kinds)} class folders ({names}); it takes two or more")
    files = {
        kind.name: sorted(f for f in kind.rglob("*") if f.is_file() and f.name[0] != ".")
        for kind in kinds
    }
    for name, found in files.items():
        if not found:
            raise Unusable(f"{folder / name} holds no pictures; add some or remove the folder")
    return files


def read(files: dict[str, list[Path]], side: int) -> Pictures:
    """Decode and resize all pictures; as `tfkit predict` does it, so that nothing differs later.

    Raises:
        Unusable: a file is no picture.
    """
    images = [_picture(path, side) for paths in files.values() for path in paths]
    labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files.values()])
    return Pictures(np.stack(images), labels, tuple(files))


def _picture(path: Path, side: int) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unusable(f"{path} cannot be read ({error}); repair or remove it") from error
    resized = tf.image.resize(pixels, (side, side), antialias=True)
    rounded: NDArray[np.uint8] = np.rint(resized).clip(0, 255).astype(np.uint8)
    return rounded


def base_model(base: str, weights: str, side: int | None) -> tuple[Any, int]:
    """Return the layers from images, 0-255, to features, and the side of their images, in pixels.

    Raises:
        Unusable: there is no such base, or it cannot be had.
    """
    layers = tf.keras.layers
    if base == "small-cnn":
        found = [layers.Rescaling(1 / 255)]
        for filters in (16, 32, 64):
            found += [layers.Conv2D(filters, 3, strides=2, use_bias=False)]
            found += [layers.BatchNormalization(momentum=0.9), layers.ReLU()]
        return tf.keras.Sequential([*found, layers.GlobalAveragePooling2D()]), side or _SMALL_SIDE
    try:
        if "/" in base or (base and Path(base).is_dir()):
            return _SavedModelFeatures(_fetched(base)), side or _USUAL_SIDE
        return _application(base, weights, side)
    except Unusable:
        raise
    except Exception as error:  # downloads fail with errors of many kinds, keras with Exception
        raise Unusable(
            f"--base {base} cannot be had ({error}); "
            "give --base small-cnn, or --weights none to train a base of keras from scratch"
        ) from error


def _application(name: str, weights: str, side: int | None) -> tuple[Any, int]:
    make = getattr(tf.keras.applications, name, None)
    if not name[:1].isupper() or make is None:
        raise Unusable(
            f"--base {name} is not known; give small-cnn, a model of keras.applications such as "
            "MobileNetV2, or the handle or folder of a SavedModel that gives features"
        )
    side = side or make(weights=None).input_shape[1]
    pretrained = None if weights == "none" else weights
    features = make(
        include_top=False, pooling="avg", weights=pretrained, input_shape=(side, side, 3)
    )
    features.trainable = pretrained is None
    preprocess = tf.keras.layers.Lambda(sys.modules[make.__module__].preprocess_input)
    return tf.keras.Sequential([preprocess, features]), side


def _fetched(handle: str) -> str:
    """Return the folder of a SavedModel from tfhub.dev, from Kaggle, or on this machine."""
    if Path(handle).is_dir():
        return handle
    try:
        if handle.startswith("https://"):
            import tensorflow_hub

            return str(tensorflow_hub.resolve(handle))
        import kagglehub

        return str(kagglehub.model_download(handle))
    except ImportError as error:
        raise Unusable(f"--base {handle} takes `pip install {error.name}`") from error


class _SavedModelFeatures(tf.keras.layers.Layer):  # type: ignore[misc]  # its base has no types
    """A SavedModel that maps images, 0-1, to features, as it is: it is not trained further."""

    def __init__(self, folder: str) -> None:
        super().__init__(trainable=False)
        self.loaded = tf.saved_model.load(folder)

    def call(self, images: Any) -> Any:
        return self.loaded(images / 255.0)


def classifier(features: Any, side: int, classes: int, learning_rate: Any) -> Any:
    """Put a softmax on top of the features, and make it ready for training."""
    images = tf.keras.Input((side, side, 3), name="images")
    scores = tf.keras.layers.Dense(classes, activation="softmax", name="scores")(features(images))
    model = tf.keras.Model(images, scores)
    optimizer = tf.keras.optimizers.Adam(learning_rate)
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    return model


def fit(model: Any, pictures: Pictures, options: argparse.Namespace) -> None:
    """Train for some steps, then print how many of the pictures kept aside are right."""
    aside = _kept_aside(pictures.labels, options.validation_share, options.seed)
    images, labels = pictures.images, pictures.labels
    examples = tf.data.Dataset.from_tensor_slices((images[~aside], labels[~aside]))
    examples = examples.shuffle(len(images), seed=options.seed).repeat()
    if options.augment:
        examples = examples.map(_augmented)
    batches = examples.batch(options.batch_size).prefetch(2)
    callbacks = [_Scalars(options.logdir)] if options.logdir else []
    model.fit(batches, steps_per_epoch=options.steps, verbose=0, shuffle=False, callbacks=callbacks)
    if aside.any():
        _, accuracy = model.evaluate(images[aside], labels[aside], verbose=0)
        print(f"validation accuracy: {accuracy:.1%} of {aside.sum()} pictures")


def _kept_aside(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose a share of every class at random; one picture of each stays for training."""
    draw = np.random.default_rng(seed)
    aside = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        aside[members[: min(round(share * len(members)), len(members) - 1)]] = True
    return aside


def _augmented(image: Any, label: Any) -> tuple[Any, Any]:
    """Mirror, crop and brighten a picture at random."""
    side = image.shape[0]
    larger = tf.image.resize(tf.image.random_flip_left_right(image), [side * 10 // 9] * 2)
    cropped = tf.image.random_crop(larger, image.shape)
    return tf.clip_by_value(tf.image.random_brightness(cropped, 32.0), 0.0, 255.0), label


class _Scalars(tf.keras.callbacks.Callback):  # type: ignore[misc]  # its base has no types
    """Write loss and accuracy of every step for TensorBoard, which itself is not needed here."""

    def __init__(self, logdir: Path) -> None:
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(logdir))
        self.metadata = tf.compat.v1.SummaryMetadata()
        self.metadata.plugin_data.plugin_name = "scalars"

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        with self.writer.as_default(step=batch):
            for name, value in (logs or {}).items():
                tf.summary.write(name, float(value), metadata=self.metadata)


def export(model: Any, names: tuple[str, ...], side: int, model_dir: Path) -> Path:
    """Write the SavedModel and the note on how pictures become its input; return its folder."""
    seconds = int(time.time())
    while (model_dir / str(seconds)).exists():
        seconds += 1
    target = model_dir / str(seconds)
    archive = tf.keras.export.ExportArchive()
    archive.track(model)

    def serve(images: Any) -> dict[str, Any]:
        scores = model(images, training=False)
        return {"scores": scores, "classes": tf.gather(names, tf.argmax(scores, axis=1))}

    pictures = tf.TensorSpec([None, side, side, 3], tf.float32, name="images")
    archive.add_endpoint("serving_default", serve, input_signature=[pictures])
    archive.write_out(str(target), verbose=False)
    how = Preprocessing(side, side, 3, (0.0, 255.0), labels=names, antialias=True)
    how.write(target)
    return target


def _checked(
    convert: Callable[[str], float], fits: Callable[[float], bool], wanted: str
) -> Callable[[str], float]:
    def check(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = float("nan")
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return check


def _parser() -> argparse.ArgumentParser:
    count = _checked(int, lambda value: value >= 1, "a whole number of at least 1")
    rate = _checked(float, lambda value: 0 < value < float("inf"), "a number above 0, such as 1e-3")
    share = _checked(float, lambda value: 0 <= value < 1, "a share from 0 to below 1, such as 0.2")
    side = _checked(int, lambda value: value >= 32, "a whole number of at least 32 pixels")
    on_or_off = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = parser.add_argument
    option("image_dir", type=Path, metavar="IMAGE_DIR", help="holds a folder of pictures per class")
    option("--model-dir", type=Path, required=True, metavar="DIR", help="where to export to")
    option("--base", default="small-cnn", help="small-cnn, trained from scratch; a model of "
           "keras.applications; a Kaggle or tfhub.dev handle; a folder (%(default)s)")  # fmt: skip
    option("--weights", choices=("imagenet", "none"), default="imagenet", help="(%(default)s)")
    option("--image-size", type=side, metavar="PIXELS", help="side; left out: what the base wants")
    option(
        "--learning-rate",
        type=rate,
        default=1e-3,
        help="of Adam at first; falls to 0 (%(default)s)",
    )
    option("--steps", type=count, default=200, help="batches to train on (%(default)s)")
    option("--batch-size", type=count, default=32, help="pictures in each (%(default)s)")
    option("--validation-share", type=share, default=0.2, help="kept aside (%(default)s)")
    option("--augment", action=on_or_off, default=True, help="mirror, crop, brighten at random")
    option("--logdir", type=Path, metavar="DIR", help="write logs for TensorBoard")
    option("--seed", type=int, default=0, help="seed of all that is random (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
