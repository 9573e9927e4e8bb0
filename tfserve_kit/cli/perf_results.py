"""Where the results of `tfkit perf` go: the terminal, files, and the exit code."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfserve_kit import strict_json
from tfserve_kit.cli import exit_codes, output
from tfserve_kit.errors import RequestError, UsageError

if TYPE_CHECKING:  # numpy comes with them
    from tfserve_kit.perf.gate import Gate, Verdict
    from tfserve_kit.perf.report_html import Named


def write_text(file: Path, text: str) -> None:
    """Write a result and say so.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    output.note(f"Wrote {file}")


def data_of(runs: Sequence["Named"]) -> dict[str, Any]:
    """Return one run's numbers, or those of several under `runs`, each with its name."""
    from tfserve_kit.perf import report

    found = [report.as_data(each.summary, each.run) for each in runs]
    if len(found) == 1:
        return found[0]
    return {"runs": [{"name": each.name} | data for each, data in zip(runs, found, strict=True)]}


def text_of(runs: Sequence["Named"]) -> str:
    """Return one run's report, or a line for each of several."""
    from tfserve_kit.perf import report

    if len(runs) == 1:
        return report.as_text(runs[0].summary, runs[0].run)
    return report.as_sweep([(each.name, each.summary) for each in runs])


def keep(runs: Sequence["Named"], outputs: Sequence[Path], samples_file: Path | None) -> None:
    """Write runs to files; several get a number each.

    Raises:
        UsageError: a file cannot be written.
    """
    from tfserve_kit.perf import samples

    for file in outputs:
        if file.suffix == ".json":
            write_text(file, strict_json.dumps(data_of(runs), ensure_ascii=False, indent=1))
            continue
        for number, each in enumerate(runs, start=1):
            samples.write(each.run, _numbered(file, number, len(runs)))
            output.note(f"Wrote {_numbered(file, number, len(runs))}")
    if samples_file:
        for number, each in enumerate(runs, start=1):
            samples.write_csv(each.run.samples, _numbered(samples_file, number, len(runs)))


def publish(runs: Sequence["Named"], page_file: Path | None, markdown_file: Path | None) -> None:
    """Write runs for readers.

    Raises:
        UsageError: a file cannot be written.
    """
    from tfserve_kit.perf import report, report_html

    if page_file:
        write_text(page_file, report_html.page(runs))
    if markdown_file:
        parts = [report.as_markdown(each.summary, each.run) for each in runs]
        heads = [f"### {each.name}\n\n" if len(runs) > 1 else "" for each in runs]
        text = "\n".join(head + part + "\n" for head, part in zip(heads, parts, strict=True))
        write_text(markdown_file, text)


def judged(runs: Sequence["Named"], gates: Sequence["Gate"]) -> list["Verdict"]:
    """Hold every gate against every run.

    Raises:
        UsageError: a gate compares two runs.
    """
    from tfserve_kit.perf.gate import judge

    return [judge(gate, each.summary) for each in runs for gate in gates]


def shown(verdicts: Sequence["Verdict"]) -> str:
    """Return verdicts for a terminal, after an empty line; nothing if there are none."""
    return "\n".join(["", *map(str, verdicts)]) if verdicts else ""


def as_data(verdicts: Sequence["Verdict"]) -> list[dict[str, Any]]:
    """Return verdicts for JSON."""
    return [
        {"gate": each.gate.text, "passed": each.passed, "value": each.value, "why": each.why}
        for each in verdicts
    ]


def exit_code(
    verdicts: Sequence["Verdict"], runs: Sequence["Named"] = (), *, nothing_held: bool = False
) -> int:
    """Return the exit code of a measurement.

    A search without result fails like a gate; without a single success nothing was measured.

    Args:
        verdicts: of the gates.
        runs: those that were measured just now.
        nothing_held: whether no rate held in a search.
    """
    if not all(each.passed for each in verdicts) or nothing_held:
        return exit_codes.GATE_FAILED
    if runs and not any(each.summary.latency.count for each in runs):
        return exit_codes.exit_code(RequestError("no request succeeded"))
    return exit_codes.OK


def _numbered(file: Path, number: int, count: int) -> Path:
    return file.with_stem(f"{file.stem}-{number}") if count > 1 else file
