"""`tfkit evaluate`."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

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
from tfserve_kit.cli.result_files import force_option, require_writable
from tfserve_kit.cli.target import Destination, destination
from tfserve_kit.clients import Client, Target
from tfserve_kit.errors import RequestError, UsageError
from tfserve_kit.evaluation.tables import SEPARATORS, Given
from tfserve_kit.pictures.model import Asked
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.safe_text import csv_cell
from tfserve_kit.serving.access import Access

if TYPE_CHECKING:  # numpy and Pillow come with them
    from tfserve_kit.evaluation.examples import Dataset
    from tfserve_kit.evaluation.report import Report
    from tfserve_kit.evaluation.run import Answer, Run, Subject


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
@model_options
@click.option("--first-class", type=click.IntRange(min=0), metavar="N",
              help="What numbers of classes in the data count from; 0 if left out.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1), metavar="SCORE",
              help="Of two classes, predict the second above this; 0.5 if left out.")  # fmt: skip
@click.option("--csv-header/--no-csv-header", default=None,
              help="Whether the first row of a CSV file names its columns.")  # fmt: skip
@click.option("--csv-columns", callback=_columns, metavar="[PATH,]LABEL",
              help="Columns of a CSV file, by name or number from 1.")  # fmt: skip
@click.option("--csv-separator", type=click.Choice(list(SEPARATORS)),
              help="What separates the columns of a CSV file.")  # fmt: skip
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
              help="Fail if --compare errs more often by more than this.")  # fmt: skip
@click.option("--report", "page_file", type=_file, metavar="FILE",
              help="Write a page with tables and the worst mistakes as HTML.")  # fmt: skip
@click.option("--predictions", "predictions_file", type=_file, metavar="FILE",
              help="Write true class, predicted class, score and path as CSV.")  # fmt: skip
@click.option("--each", "show_each", is_flag=True,
              help="Show label, score and path of each example, too.")  # fmt: skip
@force_option
@json_option
def evaluate_command(
    data: tuple[Path, ...],
    url: str | None,
    model: str | None,
    protocol: str,
    timeout_s: float,
    access: Access,
    version: int | None,
    label: str | None,
    signature: str,
    compare: str | None,
    text_encoding: str | None,
    first_class: int | None,
    threshold: float | None,
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
    csv_header: bool | None,
    csv_columns: tuple[str, ...] | None,
    csv_separator: str | None,
    softmax: bool,
    output_alias: str,
    picture_input: str,
    companions: dict[str, str],
    **how: Any,
) -> int:
    """Measure how good a model is on labelled examples.

    DATA is a folder with one folder of pictures per class; MNIST's two files, or the folder that
    holds them; a CSV file of path,label or label,pixel,pixel,... rows; or an .npz file with x and
    y. Pictures are prepared as predict does it.
    """
    from tfserve_kit.evaluation import examples, report
    from tfserve_kit.evaluation import run as runs

    if max_worse is not None and compare is None:
        raise UsageError("--max-worse needs a second version", remedy="add --compare")
    require_writable(page_file, predictions_file)
    separator = None if csv_separator is None else SEPARATORS[csv_separator]
    dataset = _opened(data, Given(csv_header, csv_columns, separator, text_encoding))
    where = destination(url, protocol, model, access)
    targets = [where.target(version, label, signature)]
    targets += [_second(where.model, compare, signature)] if compare else []
    place = replace(where, base_path=base_path or where.base_path)
    sending = runs.Sending(batch_size, concurrency, timeout_s)
    wanted = examples.choose(len(dataset), num_tests, seed)
    with where.connect() as client, output.TerminalProgress() as progress:
        asked = Asked(
            options=preprocessing(text_encoding=text_encoding, **how),
            output=output_alias,
            softmax=softmax,
            picture_input=picture_input,
            companions=companions,
        )
        subjects = [
            _subject(client, each, dataset, place, asked, (first_class, threshold), timeout_s)
            for each in targets
        ]
        progress.note(f"Input {subjects[0].model}")
        for text in runs.assumed(subjects):
            if text not in subjects[0].model.assumed:  # which has just been told
                progress.note(f"Assumed: {text}")
        progress.step(f"Evaluating {len(wanted)} examples")
        done = runs.evaluate(client, subjects, dataset, wanted, sending, progress)
    found = report.build(done, top)
    missed = report.missed_gates(found, max_error_rate, max_worse)
    if page_file:
        _write_page(page_file, found, done, dataset)
    if predictions_file:
        _write_predictions(predictions_file, done)
    shown, text = {**report.as_data(found), "missed_gates": missed}, report.as_text(found)
    if show_each:
        rows = _predictions(done)
        shown["predictions"] = rows
        lines = [f"{each['label']} {each['score']:.6g} {each['path']}" for each in rows]
        text = "\n".join([*lines, "", text])
    output.result("evaluation", shown, as_json=as_json, text=text)
    return _exit_code(found.failed, missed)


def _opened(data: Sequence[Path], form: Given) -> "Dataset":
    """Open the set, and say what was taken for granted to read it."""
    from tfserve_kit.evaluation.datasets import open_dataset

    dataset = open_dataset(data, form)
    for text in dataset.about.remarks:
        output.note(f"Assumed: {text}")
    return dataset


def _second(model: str, compare: str, signature: str) -> Target:
    if compare.isascii() and compare.isdigit():
        return Target(model, int(compare), signature=signature)
    return Target(model, label=compare, signature=signature)


def _subject(
    client: Client,
    target: Target,
    dataset: "Dataset",
    place: Destination,
    asked: Asked,
    judging: tuple[int | None, float | None],
    timeout_s: float,
) -> "Subject":
    from tfserve_kit.clients.classifier import choose_signature
    from tfserve_kit.evaluation import run
    from tfserve_kit.evaluation.classes import Classes
    from tfserve_kit.evaluation.run import Subject
    from tfserve_kit.pictures.graph import PictureGraph
    from tfserve_kit.pictures.model import PictureModel

    found = client.metadata(target, timeout_s=timeout_s)
    chosen = choose_signature(found.signatures, target.signature)
    version_dir = place.base_path / str(found.version) if place.base_path else None
    if version_dir:
        asked = replace(asked, note=Preprocessing.read(version_dir))
    model = PictureModel(chosen, asked, PictureGraph(version_dir, chosen.name), ready=dataset.ready)
    labels = asked.labels or run.ask(client, target, model, dataset, timeout_s)
    classes = Classes.of(dataset, labels, judging[0])
    classes.agree(dataset, model.classes, is_one_column=model.is_one_column)
    return Subject(
        f"label {target.label}" if target.label else f"version {found.version}",
        target,
        found.version,
        model,
        classes,
        judging[1],
    )


def _write_page(file: Path, found: "Report", done: "Run", dataset: "Dataset") -> None:
    from tfserve_kit.evaluation import report as page

    pictures = page.thumbnails(found, dataset, done.outcomes[0].subject.input.how)
    with _writing(file) as stream:
        stream.write(page.render(found, pictures))


def _write_predictions(file: Path, done: "Run") -> None:
    """Write a row for each example that was answered; with --compare, two more columns."""
    first, *others = ({each.index: each for each in o.answers} for o in done.outcomes)
    header = ["true", "predicted", "score", "path"]
    header += ["compared_predicted", "compared_score"] * len(others)
    with _writing(file) as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for answer in first.values():
            row = _prediction(answer, done, 0)
            true = done.outcomes[0].subject.classes.name(answer.true)
            also = [_prediction(o.get(answer.index), done, 1) for o in others]
            cells = [true, *row, answer.name, *(cell for each in also for cell in each)]
            writer.writerow(map(csv_cell, cells))


def _predictions(done: "Run") -> list[dict[str, Any]]:
    """Return what was predicted for each example that was answered, in the order of the data."""
    first = done.outcomes[0]
    return [
        {
            "label": first.subject.classes.name(each.predicted),
            "score": float(each.score),
            "path": each.name,
        }
        for each in first.answers
    ]


def _prediction(answer: "Answer | None", done: "Run", place: int) -> tuple[str, str]:
    if answer is None:
        return "", ""
    return done.outcomes[place].subject.classes.name(answer.predicted), f"{answer.score:.6g}"


@contextmanager
def _writing(file: Path) -> Iterator[IO[str]]:
    try:
        with file.open("w", newline="", encoding="utf-8") as stream:
            yield stream
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error


def _exit_code(failed: int, missed: Sequence[str]) -> int:
    for text in missed:
        output.note(f"Gate failed: {text}.")
    if failed:
        output.note(f"{failed} examples got no answer.")
        return exit_codes.exit_code(RequestError(""))
    return exit_codes.GATE_FAILED if missed else exit_codes.OK
