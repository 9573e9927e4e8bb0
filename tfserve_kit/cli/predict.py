"""`tfkit predict`."""

import sys
import warnings
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from tfserve_kit.cli import exit_codes, output
from tfserve_kit.cli.options import (
    base_path_option,
    json_option,
    server_options,
    signature_option,
    version_options,
)
from tfserve_kit.cli.picture_options import model_options, picture_options, preprocessing
from tfserve_kit.cli.predictions import Shown
from tfserve_kit.cli.target import destination
from tfserve_kit.clients.classifier import (
    Classifier,
    Outcome,
    choose_batch_rows,
    choose_signature,
    classify_all,
)
from tfserve_kit.errors import RequestError
from tfserve_kit.pictures.files import find
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.model import Asked
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.serving.access import Access


@click.command("predict")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...",
                type=click.Path(readable=False, allow_dash=True))  # fmt: skip
@server_options
@version_options
@signature_option
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="K",
              help="How many classes to show.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N",
              help="Pictures in each request; up to 16 if left out.")  # fmt: skip
@base_path_option
@picture_options
@model_options
@click.option("--max-pixels", type=click.IntRange(min=1), metavar="N",
              help="Refuse larger pictures; 89478485 if left out.")  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="Print a row per class, as CSV.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="Print each picture's result as JSON.")
@json_option
def predict_command(
    images: tuple[str, ...],
    url: str | None,
    model: str | None,
    protocol: str,
    timeout_s: float,
    access: Access,
    version: int | None,
    label: str | None,
    signature: str,
    top: int,
    batch_size: int | None,
    base_path: Path | None,
    max_pixels: int | None,
    softmax: bool,
    output_alias: str,
    picture_input: str,
    companions: dict[str, str],
    as_csv: bool,
    as_jsonl: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Classify pictures.

    IMAGE is a file, a folder, a quoted pattern such as 'photos/**/*.jpg', a URL, or - for standard
    input. Shows sorted scores with class index and label, and the time taken. How a picture becomes
    the model's input is taken from the options, the note stored with the version, the model's own
    graph and its signature, in this order. What none of them tells is assumed, and said on stderr.

    A picture that fails is named on stderr and the others go on; the exit code is then 6.
    """
    shown = Shown(as_json=as_json, as_jsonl=as_jsonl, as_csv=as_csv)
    where = destination(url, protocol, model, access)
    target = where.target(version, label, signature)
    options = preprocessing(**how)
    _settle_pillow(max_pixels)
    pictures = find(images, sys.stdin.buffer, timeout_s=timeout_s)
    with where.connect() as client:
        found = client.metadata(target, timeout_s=timeout_s)
        version_dir = _version_dir(base_path or where.base_path, found.version)
        chosen = choose_signature(found.signatures, signature)
        note = Preprocessing.read(version_dir) if version_dir else Preprocessing()
        asked = Asked(note, options, output_alias, softmax, picture_input, companions)
        graph = PictureGraph(version_dir, chosen.name)
        classifier = Classifier(client, target, chosen, asked, graph=graph, timeout_s=timeout_s)
        shown.explain(classifier)
        rows = choose_batch_rows(classifier, len(pictures), batch_size)
        outcomes = classify_all(classifier, pictures, batch_rows=rows, top=top)
        with closing(outcomes):
            shown.expect(len(pictures), many=len(pictures) > rows)
            return _show(outcomes, shown, (where.model, found.version))


def _show(outcomes: Iterable[Outcome], shown: Shown, answerer: tuple[str, int]) -> int:
    """Show what becomes of the pictures, and return the exit code."""
    try:
        for outcome in outcomes:
            shown.add(outcome, *answerer)
    except RequestError as error:
        if not shown.count:
            raise
        shown.finish()
        output.failure(error, as_json=False)  # the result has been printed
        return exit_codes.exit_code(error)
    except KeyboardInterrupt:
        shown.finish()
        raise
    shown.finish()
    return shown.exit_code


def _version_dir(base_path: Path | None, version: int) -> Path | None:
    return base_path / str(version) if base_path else None


def _settle_pillow(max_pixels: int | None) -> None:
    """Raise its limit, and let errors alone speak of a picture."""
    warnings.filterwarnings("ignore", module="PIL")
    if max_pixels is not None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = max_pixels
