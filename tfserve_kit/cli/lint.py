"""`tfkit lint`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from tfserve_kit.cli import deployment, exit_codes, output
from tfserve_kit.cli.options import json_option
from tfserve_kit.deployment import render
from tfserve_kit.deployment.lint import Finding, Severity, lint
from tfserve_kit.errors import SpecError


@click.command("lint")
@deployment.deployment_options
@click.option("--strict", is_flag=True, help="Let warnings count as errors.")
@json_option
def command(
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Say what the server would stumble over, before it starts.

    Fails if there are errors.
    """
    spec = deployment.load(config, models)
    render.render(spec, templates=templates)
    found = lint(spec)
    data = [asdict(each) | {"severity": each.severity.value} for each in found]
    output.result("findings", data, as_json=as_json, text=_table(found) or "Nothing found.")
    bad = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    failed = any(each.severity in bad for each in found)
    return exit_codes.exit_code(SpecError("lint", [])) if failed else exit_codes.OK


def _table(found: Sequence[Finding]) -> str:
    rows = [(each.severity.value, each.path, each.message, each.remedy) for each in found]
    return output.table(("SEVERITY", "WHERE", "WHAT", "REMEDY"), rows) if rows else ""
