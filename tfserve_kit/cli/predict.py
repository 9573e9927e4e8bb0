"""Requests: `tfkit predict` classifies pictures, `tfkit request` calls any signature."""

import sys
import time
import warnings
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from tfserve_kit.cli import exits, output
from tfserve_kit.cli.options import (
    ServerChoice,
    base_path_option,
    json_option,
    server_options,
    signature_option,
    version_options,
)
from tfserve_kit.cli.output import force_option, require_writable
from tfserve_kit.cli.picture_options import picture_options
from tfserve_kit.cli.target import destination
from tfserve_kit.clients import Prediction
from tfserve_kit.clients.classifier import (
    Classified,
    Classifier,
    choose_batch_rows,
    classify_all,
    find_model,
)
from tfserve_kit.errors import RequestError, UsageError
from tfserve_kit.pictures.files import find
from tfserve_kit.pictures.inputs import body_of
from tfserve_kit.pictures.model import PictureOptions
from tfserve_kit.pictures.outputs import NAN_REMEDY
from tfserve_kit.safe_text import csv_cell
from tfserve_kit.savedmodel import choose_signature

_CSV_COLUMNS = ("image", "rank", "index", "label", "score")


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
@click.option("--max-pixels", type=click.IntRange(min=1), metavar="N",
              help="Refuse larger pictures; 89478485 if left out.")  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="Print a row per class, as CSV.")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="Print each picture's result as JSON.")
@json_option
def predict_command(
    images: tuple[str, ...],
    server: ServerChoice,
    timeout_s: float,
    version: int | None,
    label: str | None,
    signature: str,
    top: int,
    batch_size: int | None,
    base_path: Path | None,
    asked: PictureOptions,
    max_pixels: int | None,
    as_csv: bool,
    as_jsonl: bool,
    as_json: bool,
) -> int:
    """Classify pictures.

    IMAGE is a file, a folder, a quoted pattern such as 'photos/**/*.jpg', a URL, or - for standard
    input. Shows sorted scores with class index and label, and the time taken. How a picture becomes
    the model's input is taken from the options, the note stored with the version, the model's own
    graph and its signature, in this order. What none of them tells is assumed, and said on stderr.

    A picture that fails is named on stderr and the others go on; the exit code is then 6.
    """
    shown = _Shown(as_json=as_json, as_jsonl=as_jsonl, as_csv=as_csv)
    where = destination(*server)
    target = where.target(version, label, signature)
    _settle_pillow(max_pixels)
    pictures = find(images, sys.stdin.buffer, timeout_s=timeout_s)
    with where.connect() as client:
        versions = base_path or where.base_path
        found, answers = find_model(client, target, asked, base_path=versions, timeout_s=timeout_s)
        classifier = Classifier(client, target, found, timeout_s=timeout_s)
        shown.explain(classifier)
        rows = choose_batch_rows(classifier, len(pictures), batch_size)
        results = classify_all(classifier, pictures, batch_rows=rows, top=top)
        with closing(results):
            shown.expect(len(pictures), many=len(pictures) > rows)
            return _show(results, shown, (where.model, answers))


def _show(
    results: Iterable[tuple[str, Classified | RequestError]],
    shown: "_Shown",
    answerer: tuple[str, int],
) -> int:
    """Show what becomes of the pictures, and return the exit code."""
    try:
        for name, result in results:
            shown.add(name, result, *answerer)
    except RequestError as error:
        if not shown.count:
            raise
        shown.finish()
        output.failure(error, as_json=False)  # the result has been printed
        return exits.exit_code(error)
    except KeyboardInterrupt:
        shown.finish()
        raise
    shown.finish()
    return shown.exit_code


def _settle_pillow(max_pixels: int | None) -> None:
    """Raise its limit, and let errors alone speak of a picture."""
    warnings.filterwarnings("ignore", module="PIL")
    if max_pixels is not None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = max_pixels


class _Shown:
    """Shows what became of each picture; errors on stderr, by the picture's name.

    Args:
        as_json: keep all and show them as one result, by `finish`.
        as_jsonl: show each as a result of its own, at once.
        as_csv: show a row for each class, at once; nothing of pictures that failed.

    Attributes:
        count: how many pictures were added.
        exit_code: that of the worst of them.

    Raises:
        UsageError: more than one form is asked for.
    """

    def __init__(self, *, as_json: bool, as_jsonl: bool, as_csv: bool) -> None:
        if as_json + as_jsonl + as_csv > 1:
            raise UsageError("give one of --json, --jsonl and --csv")
        self._kept: list[dict[str, Any]] = []
        self._as_json, self._as_csv = as_json, as_csv
        self._print = _line if as_jsonl else _csv if as_csv else _text
        self._progress = output.TerminalProgress()
        self._started_s = time.perf_counter()
        self._prepare_s = self._answer_s = 0.0
        self._expected = self._failed = self.count = 0
        self.exit_code = exits.OK
        self._how: dict[str, dict[str, str]] = {}
        self._classifier: Classifier | None = None
        self._said: set[str] = set()
        self._meanings: set[str] = set()

    def explain(self, classifier: Classifier) -> None:
        """Say what was decided about the model, and what of it was only assumed."""
        self._classifier = classifier
        output.note(f"Input {classifier.model}")
        self._explain_labels()

    def _explain_labels(self) -> None:
        """Say once what was taken for granted of the names of classes."""
        if self._classifier is None:
            return
        self._how, labels = self._classifier.how, self._classifier.labels
        if labels is None or not labels.source:
            return
        for text in labels.remarks:
            if text not in self._said:
                self._progress.note(f"Assumed: {text}")
        self._said.update(labels.remarks)

    def expect(self, pictures: int, *, many: bool) -> None:
        """Say how many pictures will come; with many, the progress is shown.

        Where the results themselves run down the terminal, they are progress enough.
        """
        self._expected, self._started_s = pictures, time.perf_counter()
        if self._as_csv:
            output.result("predict", None, as_json=False, text=",".join(_CSV_COLUMNS))
        if many and (self._as_json or not sys.stdout.isatty()):
            self._progress.step(f"classifying {pictures} pictures")

    def add(self, name: str, result: Classified | RequestError, model: str, version: int) -> None:
        """Show one picture.

        Args:
            name: of the picture.
            result: what became of it.
            model: which model was asked.
            version: the one that answered, where the answer does not say.
        """
        self._explain_labels()  # the first answer may have shown how many classes there are
        data = _data(name, result, model, version, self._how)
        if self._as_json:
            self._kept.append(data)
        else:
            self._print(data)
        self._add_up(name, result)
        self._progress.advance(self.count, self._expected)

    def _add_up(self, name: str, found: Classified | RequestError) -> None:
        self.count += 1
        if isinstance(found, RequestError):
            self._failed += 1
            self.exit_code = exits.exit_code(found)
            self._progress.fault(str(found))
        else:
            self._remark(name, found)
            self._prepare_s += found.prepare_s
            self._answer_s += found.request_s / found.batch_rows

    def _remark(self, name: str, found: Classified) -> None:
        """Say once what the scores are if they are not probabilities, and each time what is NaN."""
        if found.nan_scores:
            self._progress.note(
                f"Warning: {name}: {found.nan_scores} of its scores "
                f"{'is' if found.nan_scores == 1 else 'are'} NaN\n  Try: {NAN_REMEDY}"
            )
            return
        if found.meaning not in self._meanings and found.meaning == "logits or other scores":
            self._progress.note(
                "Note: the scores are not probabilities; if they are logits, --softmax converts "
                "them"
            )
        self._meanings.add(found.meaning)

    def finish(self) -> None:
        """Show what was kept, and where the time went."""
        with self._progress:
            pass  # takes its line off the terminal
        if self._as_json:
            output.result("predict", self._kept, as_json=True, text="")
        if self._expected > 1:
            took_s = time.perf_counter() - self._started_s
            output.note(
                f"{self.count} of {self._expected} pictures in {took_s:.2f} s "
                f"({self.count / took_s:.1f} per second): preparing {self._prepare_s:.2f} s, "
                f"answering {self._answer_s:.2f} s (overlapped); {self._failed} failed"
            )


def _data(
    name: str, found: Classified | RequestError, model: str, version: int,
    how: dict[str, dict[str, str]],
) -> dict[str, Any]:  # fmt: skip
    if isinstance(found, RequestError):
        error = {"error": type(found).__name__, "message": found.message, "remedy": found.remedy}
        return {"image": name, **error}
    return {
        "image": name,
        "model": model,
        "version": found.version if found.version is not None else version,
        "prepare_ms": round(found.prepare_s * 1e3, 3),
        "request_ms": round(found.request_s * 1e3, 3),
        "batch_rows": found.batch_rows,
        "replica": found.replica,
        "how": how,
        **found.said(),
    }


def _line(data: dict[str, Any]) -> None:
    output.result("prediction", data, as_json=True, text="")


def _text(data: dict[str, Any]) -> None:
    if "error" in data:
        return
    many = f" with {data['batch_rows'] - 1} more" if data["batch_rows"] > 1 else ""
    head = (
        f"{data['image']}: {data['model']} version {data['version']}, "
        f"prepared in {data['prepare_ms']:.1f} ms, answered{many} in {data['request_ms']:.1f} ms"
    )
    rows = [_row(each) for each in [*data["scores"], *data.get("detections", ())]]
    if not rows:
        rows = ["  nothing detected"]
    output.result("predict", None, as_json=False, text="\n".join([head, *rows]))


def _row(each: dict[str, Any]) -> str:
    score = f"{each['score']:9.4f}" if each["score"] is not None else "        -"
    index = f"{each['index']:5d}" if each["index"] is not None else "    -"
    box = "  at " + ", ".join(f"{side:.4g}" for side in each["box"]) if "box" in each else ""
    return f"  {score}  {index}  {each['label'] or ''}{box}".rstrip()


def _csv(data: dict[str, Any]) -> None:
    if "error" in data:
        return
    import csv
    import io

    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    for rank, each in enumerate([*data["scores"], *data.get("detections", ())], start=1):
        score = "" if each["score"] is None else f"{each['score']:.9g}"  # what 32 bits hold
        index = "" if each["index"] is None else each["index"]
        writer.writerow(
            (csv_cell(data["image"]), rank, index, csv_cell(each["label"] or ""), score)
        )
    output.result("predict", None, as_json=False, text=lines.getvalue().rstrip("\n"))


@click.command("request")
@click.argument("inputs", nargs=-1, metavar="[FILE]...",
                type=click.Path(path_type=Path))  # fmt: skip
@server_options
@version_options
@signature_option
@base_path_option
@click.option("--output-filter", "wanted", multiple=True, metavar="NAME",
              help="Output to return; may be repeated; default: all.")  # fmt: skip
@click.option("--output", "file", type=click.Path(path_type=Path), metavar="FILE.npz",
              help="Write the outputs to a file for numpy.load.")  # fmt: skip
@force_option
@json_option
def request_command(
    inputs: tuple[Path, ...],
    server: ServerChoice,
    timeout_s: float,
    version: int | None,
    label: str | None,
    signature: str,
    base_path: Path | None,
    wanted: tuple[str, ...],
    file: Path | None,
    as_json: bool,
) -> None:
    """Call any signature with the contents of files and show its outputs.

    FILE is JSON (the body of a REST request: "instances", "inputs" or "examples"), .npy for a
    signature's one input, .npz with an array per input, or a picture; - is JSON or a picture on
    standard input. Files with the same input are joined, row after row. A signature without inputs
    takes no FILE.
    """
    from tfserve_kit.clients.files import read_inputs_for, require_few, values, write_npz

    require_writable(file)
    where = destination(*server)
    target = where.target(version, label, signature)
    with where.connect() as client:
        found = client.metadata(target, timeout_s=timeout_s)
        chosen = choose_signature(found.signatures, signature)
        folder = base_path or where.base_path
        version_dir = folder / str(found.version) if folder else None
        if not inputs and (needed := chosen.inputs.keys() - chosen.optional):
            text = f"signature {chosen.name!r} needs {', '.join(sorted(needed))}"
            raise UsageError(
                f"Missing argument 'FILE...': {text}",
                remedy=f"give a FILE.json with {body_of(chosen.inputs)}, .npy, .npz or a picture",
            )
        arrays = read_inputs_for(version_dir, inputs, chosen, tell=output.note)
        answer = client.predict(target, arrays, output_filter=wanted, timeout_s=timeout_s)
    version = answer.version if answer.version is not None else found.version
    head = {"model": where.model, "version": version, "signature": chosen.name}
    data = {**head, "request_ms": round(answer.duration_s * 1e3, 3), "replica": answer.replica}

    def show() -> None:
        outputs = answer.outputs if as_json else {}
        require_few(outputs)
        shown = {"outputs": {alias: values(array) for alias, array in outputs.items()}}
        text = _answered(data, answer, where.url)
        output.result("request", data | shown, as_json=as_json, text=text)

    with output.in_any_case(show):
        if file:
            write_npz(file, answer.outputs)
            output.note(f"Wrote {file}")


def _answered(data: dict[str, Any], answer: Prediction, url: str) -> str:
    from tfserve_kit.clients.files import describe

    who = "" if answer.replica == url else f" by {answer.replica}"
    head = (
        f"{data['model']} version {data['version']}, {data['signature']}, "
        f"answered{who} in {data['request_ms']:.1f} ms"
    )
    return head + "\n" + output.table(("OUTPUT", "TYPE", "VALUES"), describe(answer.outputs))
