"""`tfkit perf report`."""

from dataclasses import replace
from pathlib import Path

import click

from tfserve_kit.cli import output, perf_results
from tfserve_kit.cli.options import json_option
from tfserve_kit.cli.result_files import force_option, require_writable

_file = click.Path(path_type=Path)


@click.command("report")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=_file)
@click.option("--warmup", "warmup_s", type=click.FloatRange(min=0), metavar="SECONDS",
              help="How much of the beginning is left out; as before if not given.")  # fmt: skip
@click.option("--gate", "gates", multiple=True, metavar="CONDITION",
              help="Fail unless it holds, such as p99<50ms. Repeatable.")  # fmt: skip
@click.option("--samples", "samples_file", type=_file, metavar="FILE",
              help="Save every request's times as CSV.")  # fmt: skip
@click.option("--report", "page_file", type=_file, metavar="FILE",
              help="Write a page with plots as HTML.")  # fmt: skip
@click.option("--markdown", "markdown_file", type=_file, metavar="FILE",
              help="Write a summary for a pull request.")  # fmt: skip
@force_option
@json_option
def report_command(
    files: tuple[Path, ...],
    warmup_s: float | None,
    gates: tuple[str, ...],
    samples_file: Path | None,
    page_file: Path | None,
    markdown_file: Path | None,
    as_json: bool,
) -> int:
    """Report runs that --output kept, side by side if there are several."""
    from tfserve_kit.perf import gate, samples, stats
    from tfserve_kit.perf.report_html import Named

    require_writable(samples_file, page_file, markdown_file)
    conditions = [gate.parse(text) for text in gates]
    runs = []
    for file in files:
        run = samples.read(file)
        if warmup_s is not None:
            run = replace(run, settings={**run.settings, "warmup_s": warmup_s})
        runs.append(Named(file.stem, run, stats.summarize(run)))
    perf_results.keep(runs, (), samples_file)
    perf_results.publish(runs, page_file, markdown_file)
    verdicts = perf_results.judged(runs, conditions)
    data = perf_results.data_of(runs)
    if verdicts:
        data["gates"] = perf_results.as_data(verdicts)
    text = perf_results.text_of(runs) + perf_results.shown(verdicts)
    output.result("perf", data, as_json=as_json, text=text)
    return perf_results.exit_code(verdicts)
