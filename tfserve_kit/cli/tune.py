"""`tfkit tune`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from tfserve_kit.cli import exit_codes, output, perf
from tfserve_kit.cli.interrupts import deferred
from tfserve_kit.cli.options import (
    access_options,
    deployment_options,
    engine_options,
    json_option,
    load_deployment,
    signature_option,
)
from tfserve_kit.cli.output import force_option, require_writable
from tfserve_kit.deployment import DEFAULT_FILE
from tfserve_kit.errors import UsageError
from tfserve_kit.serving.access import Access, reached_by

_count = click.IntRange(min=1)
_SENT = ("signature", "source", "batch", "protocol", "arrivals", "duration_s")
_positive = click.FloatRange(min=0, min_open=True)


@click.command("tune")
@deployment_options
@click.option("--slo", metavar="LIMIT",
              help="Look for the highest rate with this, such as p99=50ms.")  # fmt: skip
@click.option("--rate", type=_positive, metavar="PER_SECOND",
              help="Look for the lowest latency at this rate instead.")  # fmt: skip
@click.option("--quantile", default="p99", show_default=True, help="Latency quantile to minimise.")
@click.option("--trials", type=_count, default=20, show_default=True, metavar="N",
              help="Total number of candidates to try.")  # fmt: skip
@click.option("--duration", "duration_s", type=_positive, default=3.0, show_default=True,
              metavar="SECONDS", help="Minimum length of each run.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=0), default=6, show_default=True, metavar="N",
              help="Rounds of the proof; 0 for none.")  # fmt: skip
@click.option("--output", "folder", type=click.Path(file_okay=False, path_type=Path),
              default="tuned", show_default=True, metavar="DIR",
              help="Folder of the search and its results; rerun to resume.")  # fmt: skip
@click.option("--measure", metavar="MODEL", help="Model to send requests to, if there are several.")
@signature_option
@click.option("--input", "source", metavar="FILE", default="random", show_default=True,
              help="What to send, as for `tfkit perf`.")  # fmt: skip
@click.option("--batch", type=_count, default=1, show_default=True, help="Rows in each request.")
@click.option("--protocol", type=click.Choice(["grpc", "rest"]), default="grpc", show_default=True)
@click.option("--arrivals", type=click.Choice(["poisson", "constant"]), default="poisson",
              show_default=True, help="Spacing of requests.")  # fmt: skip
@engine_options
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Random seed.")  # fmt: skip
@access_options
@force_option
@json_option
def tune_command(
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    image: str | None,
    folder: Path,
    access: Access,
    as_json: bool,
    **asked: Any,
) -> int:
    """Find the batching parameters and thread flags that serve a model best.

    Starts a server for each candidate on free ports, measures it, and proves the best one against
    the server's default batching in paired runs. What proved better is written to --output:
    batching_config.txt, and tfkit.toml to serve with. Ctrl-C keeps what was found; run the same
    command to resume.
    """
    _require_optuna()
    from tfserve_kit.tuning import Effort, goals, results, tune_deployment

    goal = goals.chosen(asked["slo"], asked["rate"], asked["quantile"])
    server = {"engine": asked["engine"], "binary": asked["binary"]}
    spec = load_deployment(config, models, server=server, docker={"image": image})
    spec = reached_by(spec, access)
    if not models and config is None:
        config = Path(DEFAULT_FILE)
    if folder.is_dir():
        require_writable(*results.replaced(config, folder))
    effort = Effort(folder, asked["trials"], asked["rounds"], seed=asked["seed"])
    with perf.live_progress() as progress:
        tuned = tune_deployment(
            spec, goal, effort, model=asked["measure"], templates=templates,
            progress=progress, interruptible=deferred, **{key: asked[key] for key in _SENT},
        )  # fmt: skip
    text, data = results.as_text(tuned), results.as_data(tuned) | {"files": []}
    if tuned.is_better and tuned.winner is not None:
        files = results.write(tuned.winner.candidate, spec, config, folder)
        data["files"] = [str(file) for file in files]
        text += "".join(f"\nWrote {file}" for file in files)
    output.result("tune", data, as_json=as_json, text=text)
    if tuned.is_interrupted:
        output.note("Run the same command to resume")
    return exit_codes.INTERRUPTED if tuned.is_interrupted else exit_codes.OK


def _require_optuna() -> None:
    if find_spec("optuna") is None or find_spec("tomlkit") is None:
        raise UsageError("Optuna is not installed", remedy="`pip install 'tfserve-kit[tune]'`")
