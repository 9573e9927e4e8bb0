"""Make `data/digits`: scikit-learn's handwritten digits as 28x28 images in MNIST's format.

The same versions of the libraries give the same bytes. Prints a Markdown table of checksums.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from idx import Digits, write_idx
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

_TEST_SIZE = 497
_SPLIT_SEED = 0
_JPEG_SIDE = 112


def main() -> None:
    """Write the four IDX files and the ten JPEGs, then print the checksum of each."""
    repository = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=repository / "data" / "digits", metavar="DIR")
    out: Path = parser.parse_args().out
    digits = split()
    files = [*write_sets(digits, out), *write_jpegs(digits, out / "jpeg")]
    print("| file | bytes | sha256 |\n| --- | ---: | --- |")
    for file in files:
        content = file.read_bytes()
        name, checksum = file.relative_to(out).as_posix(), hashlib.sha256(content).hexdigest()
        print(f"| `{name}` | {len(content)} | `{checksum}` |")


def split() -> Digits:
    """Return scikit-learn's digits as 28x28 images, a stratified part of them held out."""
    small_images, labels = load_digits(return_X_y=True)
    images = np.stack([enlarge(small.reshape(8, 8)) for small in small_images])
    train_images, test_images, train_labels, test_labels = train_test_split(
        images,
        labels.astype(np.uint8),
        test_size=_TEST_SIZE,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    return Digits(train_images, train_labels, test_images, test_labels)


def enlarge(small: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Resize one digit to 20x20 centred in 28x28, the proportions of MNIST.

    Args:
        small: float64 [8, 8], 0-16.

    Returns:
        uint8 [28, 28], 0-255.
    """
    # A margin of 2 before resizing, not of 4 after it, keeps strokes at the border soft.
    pixels = np.pad((small * 255 / 16).round().astype(np.uint8), 2)
    resized = Image.fromarray(pixels).resize((30, 30), Image.Resampling.BICUBIC)
    return np.asarray(resized)[1:-1, 1:-1]


def write_sets(digits: Digits, out: Path) -> list[Path]:
    """Write the training and held-out sets under MNIST's names and return the paths."""
    arrays = {
        "train-images-idx3-ubyte.gz": digits.train_images,
        "train-labels-idx1-ubyte.gz": digits.train_labels,
        "t10k-images-idx3-ubyte.gz": digits.test_images,
        "t10k-labels-idx1-ubyte.gz": digits.test_labels,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        write_idx(out / name, array)
    return [out / name for name in arrays]


def write_jpegs(digits: Digits, out: Path) -> list[Path]:
    """Write one typical held-out digit per class, enlarged to be seen, and return the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"digit-{label}.jpg" for label in range(10)]
    for label, path in enumerate(paths):
        digit = Image.fromarray(typical(digits.test_images[digits.test_labels == label]))
        enlarged = digit.resize((_JPEG_SIDE, _JPEG_SIDE), Image.Resampling.BICUBIC)
        enlarged.save(path, quality=95)
    return paths


def typical(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image nearest to the mean of all.

    Args:
        images: uint8 [n, 28, 28].

    Returns:
        uint8 [28, 28].
    """
    distances = np.square(images - images.mean(axis=0)).sum(axis=(1, 2))
    nearest: NDArray[np.uint8] = images[distances.argmin()]
    return nearest


if __name__ == "__main__":
    main()
