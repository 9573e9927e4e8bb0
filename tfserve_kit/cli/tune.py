"""`tfkit tune`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from tfserve_kit.cli.result_files import force_option, require_writable
from tfserve_kit.deployment import DEFAULT_FILE
from tfserve_kit.errors import UsageError, did_you_mean
from tfserve_kit.serving.access import Access, reached_by

if TYPE_CHECKING:  # numpy comes with them
    from tfserve_kit.deployment.spec import Spec
    from tfserve_kit.tuning import Goal, Tuned

_count = click.IntRange(min=1)
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
    goal = _goal(asked["slo"], asked["rate"], asked["quantile"])
    server = {"engine": asked["engine"], "binary": asked["binary"]}
    spec = load_deployment(config, models, server=server, docker={"image": image})
    spec = reached_by(spec, access)
    if not models and config is None:
        config = Path(DEFAULT_FILE)
    from tfserve_kit.tuning import results

    if folder.is_dir():
        require_writable(*results.replaced(config, folder))
    with perf.live_progress() as progress:
        tuned = _search(_Asked(spec, templates, folder, asked), goal, progress)
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


def _goal(slo: str | None, rate: float | None, quantile: str) -> "Goal":
    """Return what is looked for.

    Raises:
        UsageError: the options contradict each other, or say nothing.
    """
    from tfserve_kit.perf import gate
    from tfserve_kit.tuning import HighestRate, LowestLatency

    if (slo is None) == (rate is None):
        raise UsageError("give either --slo or --rate", remedy="such as --slo p99=50ms")
    if rate is not None:
        gate.require_quantile(quantile)
        return LowestLatency(rate, quantile)
    limit = gate.parse_slo(slo or "")
    if limit.name in {"rate", "errors"} or not limit.below or limit.is_change:
        raise UsageError(f"{slo} limits no latency", remedy="write --slo p99=50ms")
    return HighestRate(limit)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the options say, and the deployment."""

    spec: "Spec"
    templates: Path | None
    folder: Path
    options: Mapping[str, Any]

    def model(self) -> str:
        """Return the model that gets the requests."""
        known, named = self.spec.models, self.options["measure"]
        if named is None and len(known) == 1:
            return next(iter(known))
        if named is None:
            raise UsageError(
                f"the deployment has {len(known)} models", remedy="give --measure MODEL"
            )
        if named not in known:
            raise UsageError(f"no model {named!r} is deployed", remedy=did_you_mean(named, known))
        return str(named)


def _batchable(spec: "Spec", model: str, signature: str) -> tuple["Spec", bool]:
    """Return the deployment, without batching where its models cannot be batched, and say so."""
    from tfserve_kit.deployment.lint import hindrances

    if not (found := hindrances(spec, model, signature)):
        return spec, True
    output.note(f"Batching is left out: {found[0].message}.")
    return spec.model_copy(update={"batching": None}), False


def _search(asked: _Asked, goal: "Goal", progress: output.TerminalProgress) -> "Tuned":
    from tfserve_kit.engines import registry
    from tfserve_kit.perf.payloads import Preparer
    from tfserve_kit.serving import launch
    from tfserve_kit.tuning import CandidateServer, Effort, Space, tune

    options, model = asked.options, asked.model()
    spec, batches = _batchable(asked.spec, model, options["signature"])
    engine, why = registry.choose(spec.server.engine, binary=spec.server.binary, docker=spec.docker)
    output.note(f"Engine {engine.name}: {why}.")
    requests = Preparer(
        model, options["signature"], options["source"], options["batch"],
        base_path=Path(spec.models[model].base_path),
    )  # fmt: skip
    space = Space(
        os.cpu_count() or 1, options["batch"], options["protocol"], goal.patience_s, batches
    )
    about = {
        "model": spec.models[model].base_path,
        "engine": engine.name,
        "cpus": space.cpus,
        **({} if batches else {"batching": False}),
        **{key: options[key] for key in ("signature", "source", "batch", "protocol", "arrivals")},
    }
    effort = Effort(asked.folder, options["trials"], options["rounds"], about, options["seed"])
    launch.prepare(spec, engine, progress=progress)
    with deferred() as interrupts:
        bed = CandidateServer(
            spec, engine, options["protocol"], requests, goal.quantile, options["duration_s"],
            options["arrivals"], asked.templates, progress, interrupts,
        )  # fmt: skip
        return tune(bed, goal, space, effort)
