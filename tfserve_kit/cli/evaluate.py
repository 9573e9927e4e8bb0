"""`tfkit evaluate`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfserve_kit.cli import exits, output
from tfserve_kit.cli.options import (
    ServerChoice,
    base_path_option,
    finite,
    json_option,
    server_options,
    signature_option,
    version_options,
)
from tfserve_kit.cli.output import force_option, require_writable
from tfserve_kit.cli.picture_options import picture_options
from tfserve_kit.cli.target import destination
from tfserve_kit.clients import Target
from tfserve_kit.errors import UsageError, file_error

if TYPE_CHECKING:  # numpy and Pillow come with them
    from tfserve_kit.pictures.model import PictureOptions

_SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}


def _share(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    del ctx, param
    if value is None:
        return None
    try:
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a share, such as 0.1 or 10%") from None
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{value!r} is not between 0 and 1, or 0% and 100%")
    return share


def _columns(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    del ctx, param
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    if not all(names) or len(names) > 2:  # noqa: PLR2004 (path, label)
        raise click.BadParameter(f"{value!r} is not PATH,LABEL, such as image,breed or 1,3")
    return names


_file = click.Path(path_type=Path)


@click.command("evaluate")
@click.argument("data", nargs=-1, required=True, metavar="DATA...", type=_file)
@server_options
@version_options
@signature_option
@click.option("--compare", metavar="VERSION_OR_LABEL",
              help="Evaluate this version too, on the same examples.")  # fmt: skip
@picture_options
@click.option("--first-class", type=click.IntRange(min=0), metavar="N",
              help="Number of the first class in the data; 0 if left out.")  # fmt: skip
@click.option("--threshold", type=finite(min=0, max=1), metavar="SCORE",
              help="Of two classes, predict the second above this; 0.5 if left out.")  # fmt: skip
@click.option("--csv-header/--no-csv-header", default=None,
              help="Whether the first row of a CSV file names its columns.")  # fmt: skip
@click.option("--csv-columns", callback=_columns, metavar="[PATH,]LABEL",
              help="Columns of a CSV file, by name or number from 1.")  # fmt: skip
@click.option("--csv-separator", type=click.Choice(list(_SEPARATORS)),
              help="Column separator of a CSV file.")  # fmt: skip
@base_path_option
@click.option("--num-tests", type=click.IntRange(min=1), metavar="N",
              help="How many examples to use; all if left out.")  # fmt: skip
@click.option("--shuffle", "seed", type=click.IntRange(min=0), metavar="SEED",
              help="Draw the N examples at random; the first N if left out.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True,
              help="Examples in a request.")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(min=1), default=4, show_default=True,
              help="Requests in flight, at most.")  # fmt: skip
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="K",
              help="How many classes count for the top-K error rate.")  # fmt: skip
@click.option("--max-error-rate", callback=_share, metavar="SHARE",
              help="Fail if the error rate, of --compare if given, is higher.")  # fmt: skip
@click.option("--max-worse", callback=_share, metavar="SHARE",
              help="Fail if the error rate of --compare is higher by more than this.")  # fmt: skip
@click.option("--report", "page_file", type=_file, metavar="FILE",
              help="Write a page with tables and the worst mistakes as HTML.")  # fmt: skip
@click.option("--predictions", "predictions_file", type=_file, metavar="FILE",
              help="Write true class, predicted class, score and path as CSV.")  # fmt: skip
@click.option("--each", "show_each", is_flag=True,
              help="Also show label, score and path of each example.")  # fmt: skip
@force_option
@json_option
@click.pass_context
def evaluate_command(
    ctx: click.Context,
    data: tuple[Path, ...],
    server: ServerChoice,
    timeout_s: float,
    version: int | None,
    label: str | None,
    signature: str,
    compare: str | None,
    asked: "PictureOptions",
    first_class: int | None,
    threshold: float | None,
    csv_header: bool | None,
    csv_columns: tuple[str, ...] | None,
    csv_separator: str | None,
    base_path: Path | None,
    num_tests: int | None,
    seed: int | None,
    batch_size: int,
    concurrency: int,
    top: int,
    max_error_rate: float | None,
    max_worse: float | None,
    page_file: Path | None,
    predictions_file: Path | None,
    show_each: bool,
    as_json: bool,
) -> int:
    """Measure how good a model is on labelled examples.

    DATA is a folder with one folder of pictures per class; MNIST's two files, or the folder that
    holds them; a CSV file of path,label or label,pixel,pixel,... rows; or an .npz file with x and
    y. Pictures are prepared as predict does it.
    """
    from tfserve_kit.evaluation import report
    from tfserve_kit.evaluation.datasets import open_dataset
    from tfserve_kit.evaluation.run import EvaluationOptions, evaluate_versions
    from tfserve_kit.evaluation.tables import CsvOptions

    if max_worse is not None and compare is None:
        raise UsageError("--max-worse needs a second version", remedy="add --compare")
    require_writable(page_file, predictions_file)
    separator = None if csv_separator is None else _SEPARATORS[csv_separator]
    encoding = ctx.params["text_encoding"]  # of a CSV file as well as of labels
    dataset = open_dataset(data, CsvOptions(csv_header, csv_columns, separator, encoding))
    for text in dataset.remarks:
        output.note(f"Assumed: {text}")
    where = destination(*server)
    targets = [where.target(version, label, signature)]
    if compare:
        targets.append(_second(targets[0], compare))
    options = EvaluationOptions(
        batch_size=batch_size,
        concurrency=concurrency,
        timeout_s=timeout_s,
        asked=asked,
        base_path=base_path or where.base_path,
        first_class=first_class,
        threshold=threshold,
        count=num_tests,
        seed=seed,
    )
    with where.connect() as client, output.TerminalProgress() as progress:
        run = evaluate_versions(client, targets, dataset, options, progress)
    found = report.build(run, top)
    missed = report.missed_gates(found, max_error_rate, max_worse)
    shown = {**report.as_data(found), "missed_gates": missed}
    text = report.as_text(found, with_assumed=not output.is_one_terminal())
    if show_each:
        shown["predictions"] = report.predictions(run)
        text = report.predictions_text(run) + "\n\n" + text
    show = partial(output.result, "evaluation", shown, as_json=as_json, text=text)
    with output.in_any_case(show):
        if page_file:
            how = run.outcomes[0].subject.model.input.how
            _write(page_file, report.page(found, report.thumbnails(found, dataset, how)))
        if predictions_file:
            _write(predictions_file, report.predictions_csv(run))
    return _exit_code(found.failed, missed)


def _second(first: Target, compare: str) -> Target:
    """Return the version or label to compare with."""
    if compare.isascii() and compare.isdigit():
        return replace(first, version=int(compare), label=None)
    return replace(first, version=None, label=compare)


def _write(file: Path, text: str) -> None:
    try:
        with file.open("w", newline="", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise file_error(UsageError, "write", file, error) from error


def _exit_code(failed: int, missed: Sequence[str]) -> int:
    for text in missed:
        output.note(f"Gate failed: {text}.")
    if failed:
        output.note(f"{failed} examples got no answer.")
        return exits.REQUEST_FAILED
    return exits.GATE_FAILED if missed else exits.OK
