"""`tfkit perf compare`."""

from pathlib import Path

import click

from tfserve_kit.cli import output, perf_results
from tfserve_kit.cli.options import json_option
from tfserve_kit.cli.result_files import force_option, require_writable

_file = click.Path(path_type=Path)


@click.command("compare")
@click.argument("before", type=_file)
@click.argument("after", type=_file)
@click.option("--gate", "gates", multiple=True, metavar="CONDITION",
              help="Fail unless it holds of the second run: p99<+5%, rate>-3%, p50<10ms. "
              "Repeatable.")  # fmt: skip
@click.option("--markdown", "markdown_file", type=_file, metavar="FILE",
              help="Write the comparison for a pull request.")  # fmt: skip
@force_option
@json_option
def compare_command(
    before: Path,
    after: Path,
    gates: tuple[str, ...],
    markdown_file: Path | None,
    as_json: bool,
) -> int:
    """Say whether a run is better or worse than another, or whether that cannot be told."""
    from tfserve_kit.perf import compare, gate, report, samples

    require_writable(markdown_file)
    conditions = [gate.parse(text) for text in gates]
    found = compare.compare(samples.read(before), samples.read(after))
    verdicts = [gate.judge(each, found.after, found.before) for each in conditions]
    if markdown_file:
        lines = [report.comparison_markdown(found), "", *(f"- {each}" for each in verdicts)]
        perf_results.write_text(markdown_file, "\n".join(lines).rstrip() + "\n")
    data = report.comparison_data(found) | {"gates": perf_results.as_data(verdicts)}
    text = report.comparison_text(found) + perf_results.shown(verdicts)
    output.result("perf-comparison", data, as_json=as_json, text=text)
    return perf_results.exit_code(verdicts)
