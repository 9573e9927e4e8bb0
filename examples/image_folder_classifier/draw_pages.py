"""Draw pages of two kinds, as PNG files: `text` (words in columns), `figure` (tables, charts)."""

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_WIDTH, _HEIGHT = 160, 208  # pixels
_LETTERS = list("etaoinshrdlucmfwypvbgk")


def main() -> None:
    """Draw as many pages of each kind as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="DIR", help="gets one folder per kind")
    parser.add_argument("--each", type=int, default=120, help="pages per kind (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="other seeds, other pages (%(default)s)"
    )
    options = parser.parse_args()
    draw = np.random.default_rng(options.seed)
    for kind, paint in KINDS.items():
        (options.out / kind).mkdir(parents=True)
        for number in range(options.each):
            page(draw, paint).save(options.out / kind / f"{number:03}.png")


def page(draw: np.random.Generator, paint: Callable[..., None]) -> Image.Image:
    """Draw one page as a scanner would see it: tilted a little, of some shade, with noise."""
    paper = int(draw.integers(205, 256))
    image = Image.new("L", (_WIDTH, _HEIGHT), paper)
    paint(draw, ImageDraw.Draw(image), int(draw.integers(0, 90)))
    image = image.rotate(draw.uniform(-3, 3), Image.Resampling.BICUBIC, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0, 0.8)))
    noisy = np.asarray(image) + draw.normal(0, draw.uniform(1, 8), (_HEIGHT, _WIDTH))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def text(draw: np.random.Generator, on: ImageDraw.ImageDraw, ink: int) -> None:
    """Fill the page with paragraphs, in one or two columns."""
    columns, margin = int(draw.integers(1, 3)), int(draw.integers(8, 22))
    width = (_WIDTH - margin * (columns + 1)) // columns
    for column in range(columns):
        lines(draw, on, ink, (margin + column * (width + margin), margin, width, _HEIGHT - margin))


def lines(
    draw: np.random.Generator,
    on: ImageDraw.ImageDraw,
    ink: int,
    box: tuple[int, int, int, int],
) -> None:
    """Write lines of words into a box: left, top, width, bottom."""
    left, top, width, bottom = box
    for y in range(top, bottom - 8, int(draw.integers(9, 13))):
        if draw.random() < 0.12:  # between paragraphs
            continue
        x = left
        while x < left + width - 20:
            word = "".join(draw.choice(_LETTERS, draw.integers(2, 7)))
            on.text((x, y), word, fill=ink)
            x += int(on.textlength(word)) + 4


def figure(draw: np.random.Generator, on: ImageDraw.ImageDraw, ink: int) -> None:
    """Put one or two tables, bar charts or curves on the page, each with a line below it."""
    count, margin = int(draw.integers(1, 3)), int(draw.integers(8, 22))
    height = (_HEIGHT - margin) // count
    shapes = [table, bars, curves]
    for number in range(count):
        top = margin + number * height
        bottom = top + height - margin - 14
        shape = shapes[draw.integers(len(shapes))]
        shape(draw, on, ink, (margin, top, _WIDTH - margin, bottom))
        lines(draw, on, ink, (margin, bottom + 4, _WIDTH - 2 * margin, bottom + 14))


def table(
    draw: np.random.Generator, on: ImageDraw.ImageDraw, ink: int, box: tuple[int, int, int, int]
) -> None:
    """Rule a box (left, top, right, bottom) into rows and columns, with a word in most cells."""
    left, top, right, bottom = box
    rows = np.linspace(top, bottom, int(draw.integers(4, 9))).astype(int)
    columns = np.linspace(left, right, int(draw.integers(3, 6))).astype(int)
    for y in rows:
        on.line((left, y, right, y), fill=ink)
    for x in columns:
        on.line((x, top, x, bottom), fill=ink)
    for y in rows[:-1]:
        for x in columns[:-1]:
            if draw.random() < 0.7:
                on.text((x + 2, y), str(draw.integers(1000)), fill=ink)


def bars(
    draw: np.random.Generator, on: ImageDraw.ImageDraw, ink: int, box: tuple[int, int, int, int]
) -> None:
    """Draw a bar chart in a box: left, top, right, bottom."""
    left, top, right, bottom = box
    on.line((left, top, left, bottom, right, bottom), fill=ink)
    edges = np.linspace(left + 6, right, int(draw.integers(4, 9))).astype(int)
    for start, end in pairwise(edges.tolist()):
        shade = int(draw.integers(ink, 180))
        on.rectangle((start, int(draw.integers(top, bottom - 4)), end - 5, bottom), fill=shade)


def curves(
    draw: np.random.Generator, on: ImageDraw.ImageDraw, ink: int, box: tuple[int, int, int, int]
) -> None:
    """Draw one to three curves and their axes in a box: left, top, right, bottom."""
    left, top, right, bottom = box
    on.line((left, top, left, bottom, right, bottom), fill=ink)
    xs = np.linspace(left, right, 12)
    for _ in range(draw.integers(1, 4)):
        ys = np.cumsum(draw.normal(0, (bottom - top) / 6, len(xs))) + (top + bottom) / 2
        points = [(float(x), float(y)) for x, y in zip(xs, ys.clip(top, bottom), strict=True)]
        on.line(points, fill=ink, width=int(draw.integers(1, 3)))


KINDS = {"text": text, "figure": figure}


if __name__ == "__main__":
    main()
