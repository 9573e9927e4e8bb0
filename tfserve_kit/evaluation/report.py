"""What an evaluation amounts to: as numbers, data for JSON, text for a terminal, CSV, and a page.

The page is one HTML file that needs nothing else: no script, no font, no picture elsewhere.
"""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfserve_kit.errors import InvalidRequest
from tfserve_kit.evaluation.examples import Dataset, Failure, thumbnail
from tfserve_kit.evaluation.run import Evaluation, ExampleAnswer, SubjectResult
from tfserve_kit.evaluation.scores import (
    Calibration,
    ClassScores,
    Confusion,
    Interval,
    ModelComparison,
    calibration,
    compare,
    confusion_matrix,
    most_confused,
    per_class,
    top_k_error,
    wilson_interval,
    worst_mistakes,
)
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.safe_text import csv_cell, printable_html

# Models with more classes have no matrix that could be read.
_MOST_MATRIX_CLASSES = 40
_MOST_TEXT_CLASSES = 20
_WORST, _WORST_IN_TEXT = 24, 5
_CONFUSED, _CONFUSED_IN_TEXT = 20, 5
_NAMED = 5
_NEARLY_ALL = 0.9


@dataclass(frozen=True, slots=True)
class SubjectSummary:
    """How one subject fared.

    Attributes:
        name: what was asked, such as `version 3` or `label canary`.
        versions: the versions that answered; more than one if it changed during the run.
        answered: how many examples were.
        wrong: how many of them got another class.
        error_rate: share of the wrong, 0-1.
        interval: 95 % interval of the error rate.
        top_k: how many classes count for `top_k_error_rate`.
        top_k_error_rate: share of examples whose class is not among the k best.
        class_names: name of each class.
        classes: precision, recall and F1 of each class.
        matrix: counts, true by row and predicted by column; None for many classes.
        confused: the most frequent mistakes.
        calibration: None where scores are not probabilities.
        worst: the wrong answers with the highest scores.
        failures: examples whose requests failed.
    """

    name: str
    versions: tuple[int, ...]
    answered: int
    wrong: int
    error_rate: float
    interval: Interval
    top_k: int
    top_k_error_rate: float
    class_names: tuple[str, ...]
    classes: list[ClassScores]
    matrix: list[list[int]] | None
    confused: list[Confusion]
    calibration: Calibration | None
    worst: list[ExampleAnswer]
    failures: list[Failure]

    @property
    def title(self) -> str:
        """The name, with the version where that is not said by it."""
        said = ", ".join(f"version {version}" for version in self.versions)
        return said if self.name == said or not self.name else f"{self.name} ({said})"


@dataclass(frozen=True, slots=True)
class Report:
    """How one or two subjects fared on a set.

    Attributes:
        run: what was sent, and what came of it.
        summaries: one for each subject.
        comparison: the second against the first, None for one.
    """

    run: Evaluation
    summaries: list[SubjectSummary]
    comparison: ModelComparison | None

    @property
    def model(self) -> str:
        """The name of the model."""
        return self.run.outcomes[0].subject.target.model

    @property
    def failed(self) -> int:
        """How many requests for an example failed."""
        return sum(len(each.failures) for each in self.summaries)


def build(run: Evaluation, top_k: int) -> Report:
    """Return what a run amounts to.

    Args:
        run: with answers of every subject.
        top_k: how many classes count for the top-k error rate.
    """
    summaries = [summarize(outcome, top_k) for outcome in run.outcomes]
    comparison = _compare(run.outcomes) if len(run.outcomes) > 1 else None
    return Report(run, summaries, comparison)


def summarize(outcome: SubjectResult, top_k: int) -> SubjectSummary:
    """Return how one subject fared; it has at least one answer."""
    answers, classes = outcome.answers, outcome.classes
    true = np.array([answer.true for answer in answers], np.int64)
    predicted = np.array([answer.predicted for answer in answers], np.int64)
    ranks = np.array([answer.rank for answer in answers], np.int64)
    scores = np.array([answer.score for answer in answers], np.float64)  # None becomes NaN
    right, wrong = true == predicted, int(np.count_nonzero(true != predicted))
    shows_matrix = classes <= _MOST_MATRIX_CLASSES
    return SubjectSummary(
        name=outcome.subject.name,
        versions=outcome.versions,
        answered=len(answers),
        wrong=wrong,
        error_rate=wrong / len(answers),
        interval=wilson_interval(wrong, len(answers)),
        top_k=top_k,
        top_k_error_rate=top_k_error(ranks, top_k),
        class_names=tuple(outcome.subject.classes.name(index) for index in range(classes)),
        classes=per_class(true, predicted, classes),
        matrix=confusion_matrix(true, predicted, classes).tolist() if shows_matrix else None,
        confused=most_confused(true, predicted, _CONFUSED),
        calibration=calibration(scores, right) if outcome.are_probabilities else None,
        worst=[answers[i] for i in worst_mistakes(true, predicted, scores, _WORST)],
        failures=outcome.failures,
    )


def _compare(outcomes: Sequence[SubjectResult]) -> ModelComparison | None:
    first, second = ({each.index: each.is_right for each in o.answers} for o in outcomes)
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    return compare(
        np.array([first[index] for index in both]), np.array([second[index] for index in both])
    )


def missed_gates(
    report: Report, max_error_rate: float | None, max_worse: float | None
) -> list[str]:
    """Return a sentence for each limit that was missed.

    Args:
        report: what was measured.
        max_error_rate: the highest error rate, 0-1, of the last subject: with two of them the first
            is what is there already; None for any.
        max_worse: how much higher that of the second may be than that of the first, 0-1.
    """
    found, judged = [], report.summaries[-1]
    if max_error_rate is not None and judged.error_rate > max_error_rate:
        rates = f"{percent(judged.error_rate)}, is above {percent(max_error_rate)}"
        found.append(f"the error rate of {judged.title}, {rates}")
    if max_worse is not None and len(report.summaries) > 1:
        if report.comparison is None:
            found.append("no example was answered by both, so they cannot be compared")
        elif report.comparison.difference > max_worse:
            found.append(
                f"the error rate of {judged.title} is higher by "
                f"{points(report.comparison.difference)}, more than {points(max_worse)}"
            )
    return found


def percent(share: float) -> str:
    """Return a share as a percentage with as many decimals as it needs, two at most."""
    return f"{share * 100:.2f}".rstrip("0").rstrip(".") + "%"


def points(difference: float) -> str:
    """Return a difference of two shares in percentage points."""
    return percent(difference).removesuffix("%") + " points"


def as_data(report: Report) -> dict[str, Any]:
    """Return everything a report holds, for JSON."""
    compared = report.comparison
    return {
        "model": report.model,
        "source": report.run.source,
        "examples": report.run.examples,
        "assumed": list(report.run.assumed),
        "unusable": [asdict(each) for each in report.run.unusable],
        "results": [_summary_data(each) for each in report.summaries],
        "comparison": compared and {**asdict(compared), "verdict": compared.verdict},
    }


def _summary_data(summary: SubjectSummary) -> dict[str, Any]:
    data = asdict(summary)
    names = data.pop("class_names")
    for each in data["classes"]:
        each["label"] = names[each["index"]]
    return data


def as_text(report: Report, *, with_assumed: bool = True) -> str:
    """Return a report for people.

    Args:
        report: what was measured.
        with_assumed: with what was taken for granted; a terminal shows it when the run begins.
    """
    parts = [_summary_text(report, each) for each in report.summaries]
    if report.comparison is not None:
        parts.append(_comparison_text(report, report.comparison))
    if report.run.unusable:
        parts.append(_named("example could not be used", "examples could not be used",
                            report.run.unusable))  # fmt: skip
    if with_assumed and report.run.assumed:
        parts.append("\n".join(["Assumed:", *(f"  {_shown(text)}" for text in report.run.assumed)]))
    return "\n\n".join(parts)


def _summary_text(report: Report, summary: SubjectSummary) -> str:
    low, high = percent(summary.interval.low), percent(summary.interval.high)
    lines = [
        f"{report.model} {summary.title}, {summary.answered} examples of {report.run.source}",
        f"Inference error rate: {percent(summary.error_rate)}",
        f"{summary.wrong} of {summary.answered} wrong, 95% interval {low} to {high}",
    ]
    if summary.top_k < len(summary.classes):  # else it is 0 whatever the model says
        lines.append(f"Top-{summary.top_k} error rate: {percent(summary.top_k_error_rate)}")
    if summary.calibration is not None:
        error = percent(summary.calibration.expected_error)
        lines.append(f"Expected calibration error: {error}")
    if len(summary.versions) > 1:
        lines.append(f"The version changed during the run: {summary.title}")
    if summary.failures:
        lines.append(_named("request failed", "requests failed", summary.failures))
    return "\n".join(lines + _mistakes(summary) + _class_table(summary))


def _mistakes(summary: SubjectSummary) -> list[str]:
    names = [_shown(name) for name in summary.class_names]
    if not summary.wrong:
        return []
    confused = [
        f"{names[each.true]} as {names[each.predicted]} ({each.count})"
        for each in summary.confused[:_CONFUSED_IN_TEXT]
    ]
    worst = [
        f"  {number(each.score):>9}  {names[each.true]} as {names[each.predicted]}"
        f"  {_shown(each.name)}"
        for each in summary.worst[:_WORST_IN_TEXT]
    ]
    told = "Most often mistaken: " + ", ".join(confused)
    return [*_one_sided(summary), told, "Mistakes with the highest scores:", *worst]


def _one_sided(summary: SubjectSummary) -> list[str]:
    """Return a note where nearly all is taken for one class, as of a model that is fed wrongly."""
    most = max(summary.classes, key=lambda each: each.taken)
    if most.taken < _NEARLY_ALL * summary.answered or most.support > summary.answered / 2:
        return []
    name = _shown(summary.class_names[most.index])
    told = (
        f"Note: {most.taken} of {summary.answered} are taken for one class ({name}). If you "
        "expected better, check the order of the classes (--labels FILE) and the range of the "
        "pixels (--range)."
    )
    return [told]


def _class_table(summary: SubjectSummary) -> list[str]:
    if len(summary.classes) > _MOST_TEXT_CLASSES:
        return []
    names = [_shown(name) for name in summary.class_names]
    width = max(5, *map(len, names))
    rows = [
        f"{names[each.index]:<{width}}{each.support:>10}{share(each.precision):>11}"
        f"{share(each.recall):>9}{share(each.f1):>9}"
        for each in summary.classes
    ]
    head = f"{'class':<{width}}{'examples':>10}{'precision':>11}{'recall':>9}{'F1':>9}"
    return ["", head, *rows]


def number(score: float | None) -> str:
    """Return a score, a dash where there is none."""
    return "-" if score is None else f"{score:.4f}"


def share(value: float | None) -> str:
    """Return a share of a table, a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def _shown(name: str) -> str:
    """Return a name without what would end a line or steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _comparison_text(report: Report, compared: ModelComparison) -> str:
    first, second = (each.title for each in report.summaries)
    low, high = points(compared.interval.low), points(compared.interval.high)
    change = "the same"
    if compared.difference:
        direction = "higher" if compared.difference > 0 else "lower"
        change = f"{direction} by {points(abs(compared.difference))}"
    return (
        f"{second} against {first}: {compared.verdict}\n"
        f"Error rate {change}, 95% interval {low} to {high}\n"
        f"On {compared.examples} examples only {first} was right {compared.only_first_right} "
        f"times, only {second} {compared.only_second_right} times (McNemar's exact test: "
        f"p = {compared.p_value:.3g})"
    )


def _named(singular: str, plural: str, failures: Sequence[Failure]) -> str:
    lines = [f"  {_shown(each.name)}: {_shown(each.reason)}" for each in failures[:_NAMED]]
    more = len(failures) - len(lines)
    lines += [f"  and {more} more"] if more else []
    noun = singular if len(failures) == 1 else plural
    return "\n".join([f"{len(failures)} {noun}:", *lines])


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
    for example in dataset.read(wanted):
        try:
            picture = thumbnail(example.load(), how, _THUMBNAIL_PIXELS)
        except (InvalidRequest, OSError):  # a file that went away, or changed, since
            continue
        if picture is not None:
            found[example.index] = picture
    return found


def page(report: Report, pictures: Mapping[int, bytes]) -> str:
    """Return the page; names of files and classes may hold anything, all are escaped.

    Args:
        report: what was measured.
        pictures: PNG by the index of the example.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        finalize=printable_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "share": share, "number": number}
    return environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        report=report,
        pictures={index: _data_uri(picture) for index, picture in pictures.items()},
        shade=_shade,
        listed=_listed,
        most_named=_MOST_NAMED,
    )


def _data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def _listed(summary: SubjectSummary) -> list[ClassScores]:
    """Return all classes, or the worst that have examples where they are many."""
    if len(summary.classes) <= _MOST_MATRIX_CLASSES:
        return summary.classes
    present = [each for each in summary.classes if each.support]
    return sorted(present, key=lambda each: each.f1 or 0.0)[:_MOST_MATRIX_CLASSES]


def _shade(count: int, of: int) -> float:
    """Return how dark a cell of the matrix is, 0-1; a single mistake must be seen at all."""
    return round(0.08 + 0.92 * count / of, 3) if count else 0.0


def predictions(run: Evaluation) -> list[dict[str, Any]]:
    """Return what was predicted for each example that was answered, in the order of the set."""
    first = run.outcomes[0]
    return [
        {
            "label": first.subject.classes.name(each.predicted),
            "score": each.score,
            "path": each.name,
        }
        for each in first.answers
    ]


def predictions_text(run: Evaluation) -> str:
    """Return the predictions as lines of label, score and path."""
    first = run.outcomes[0]
    return "\n".join(" ".join((*_predicted(first, each), each.name)) for each in first.answers)


def predictions_csv(run: Evaluation) -> str:
    """Return a row for each example that was answered, as CSV.

    With two subjects there are two more columns, empty where the second gave no answer.
    """
    first, *others = run.outcomes
    known = [{each.index: each for each in outcome.answers} for outcome in others]
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["true", "predicted", "score", "path",
                     *["compared_predicted", "compared_score"] * len(others)])  # fmt: skip
    for answer in first.answers:
        row = [first.subject.classes.name(answer.true), *_predicted(first, answer), answer.name]
        for outcome, answers in zip(others, known, strict=True):
            row += _predicted(outcome, answers.get(answer.index))
        writer.writerow(map(csv_cell, row))
    return lines.getvalue()


def _predicted(outcome: SubjectResult, answer: ExampleAnswer | None) -> tuple[str, str]:
    """Return the predicted class and its score; both empty without an answer."""
    if answer is None:
        return "", ""
    score = "" if answer.score is None else f"{answer.score:.6g}"
    return outcome.subject.classes.name(answer.predicted), score
