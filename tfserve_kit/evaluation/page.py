"""A report as one HTML file that needs nothing else: no script, no font, no picture elsewhere."""

import base64
from collections.abc import Mapping
from pathlib import Path

from tfserve_kit.errors import InvalidRequest
from tfserve_kit.evaluation.examples import Dataset
from tfserve_kit.evaluation.report import (
    MOST_MATRIX_CLASSES,
    Report,
    Summary,
    percent,
    points,
    share,
)
from tfserve_kit.evaluation.scores import ClassScores
from tfserve_kit.evaluation.subjects import thumbnail
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.printable import in_html

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_THUMBNAIL_PIXELS = 128
_MOST_NAMED = 10


def thumbnails(report: Report, dataset: Dataset, how: Preprocessing) -> dict[int, bytes]:
    """Return a small PNG of each of the worst mistakes, by index; the set is read again for them.

    Args:
        report: whose mistakes they are.
        dataset: the set that was evaluated.
        how: the size of the model's pictures.
    """
    wanted = sorted({answer.index for each in report.summaries for answer in each.worst})
    found = {}
    for example in dataset.examples(wanted):
        try:
            picture = thumbnail(example.load(), how, _THUMBNAIL_PIXELS)
        except (InvalidRequest, OSError):  # a file that went away, or changed, since
            continue
        if picture is not None:
            found[example.index] = picture
    return found


def render(report: Report, pictures: Mapping[int, bytes]) -> str:
    """Return the page; names of files and classes may hold anything, all are escaped.

    Args:
        report: what was measured.
        pictures: PNG by the index of the example.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        finalize=in_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "share": share}
    return environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        report=report,
        pictures={index: _data_uri(picture) for index, picture in pictures.items()},
        shade=_shade,
        listed=_listed,
        most_named=_MOST_NAMED,
    )


def _data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def _listed(summary: Summary) -> list[ClassScores]:
    """Return all classes, or the worst that have examples where they are many."""
    if len(summary.classes) <= MOST_MATRIX_CLASSES:
        return summary.classes
    present = [each for each in summary.classes if each.support]
    return sorted(present, key=lambda each: each.f1 or 0.0)[:MOST_MATRIX_CLASSES]


def _shade(count: int, of: int) -> float:
    """Return how dark a cell of the matrix is, 0-1; a single mistake must be seen at all."""
    return round(0.08 + 0.92 * count / of, 3) if count else 0.0
