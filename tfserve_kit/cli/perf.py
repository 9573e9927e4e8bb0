"""Measurements: `tfkit perf`, what can be done with kept runs, and the search of `tfkit tune`."""

import json
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tfserve_kit import strict_json
from tfserve_kit.cli import exits, output
from tfserve_kit.cli.exits import deferred
from tfserve_kit.cli.options import (
    access_options,
    deployment_options,
    engine_options,
    finite,
    json_option,
    load_deployment,
    positive,
    server_options,
    signature_option,
)
from tfserve_kit.cli.output import force_option, require_writable
from tfserve_kit.cli.target import destination, look_at
from tfserve_kit.clients import addresses
from tfserve_kit.engines import RunningServer
from tfserve_kit.errors import UsageError, file_error
from tfserve_kit.serving.access import Access, ServedModel, reached_by, replica_at, server_at

if TYPE_CHECKING:
    from tfserve_kit.clients.options import OptionNames
    from tfserve_kit.perf.capacity import CapacityPlan
    from tfserve_kit.perf.gate import Condition, Verdict
    from tfserve_kit.perf.measuring import Command, Measurement
    from tfserve_kit.perf.metrics import Watch
    from tfserve_kit.perf.sending.driving import Snapshot
    from tfserve_kit.perf.stats import NamedRun

_file = click.Path(path_type=Path)
_count = click.IntRange(min=1)


def _counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    del ctx, param
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise click.BadParameter(f"{value!r} is not a count above 0, nor a list such as 1,8,32")
    return counts


def _sender(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return what sends; `auto` is `own` wherever that can."""
    del ctx, param
    return "own" if value == "auto" else value


def _ramp(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    del ctx, param
    if value is None:
        return None
    try:
        first, last = (float(part) for part in value.split(":"))
    except ValueError:
        first = last = 0.0
    if not (0 < first < math.inf and 0 < last < math.inf):
        raise click.BadParameter(f"{value!r} is not FROM:TO, such as 10:500")
    return first, last


def _run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to send, how, and where the results go."""
    for option in reversed((*_WHAT, *_WHEN, *_HOW, *_RESULTS)):
        function = option(function)
    return function


_WHAT = (
    signature_option,
    click.option("--input", "source", metavar="FILE", default="random", show_default=True,
                 help="What to send: a picture, .json, .npy, .npz, a folder of these, or random."),
    click.option("--batch", type=_count, default=1, show_default=True,
                 help="Rows in each request."),
    click.option("--replay", type=_file, metavar="LOG",
                 help="Send recorded requests, when they came: JSON Lines with \"at\"; or, with "
                 "--rate, a TFRecord file of PredictionLog."),
    click.option("--speed", type=positive, metavar="FACTOR",
                 help="Replay speed multiplier."),
)  # fmt: skip
_WHEN = (
    click.option("--duration", "duration_s", type=positive, default=10.0, show_default=True,
                 metavar="SECONDS", help="How long to send."),
    click.option("--requests", type=_count, metavar="N", help="Maximum number of requests."),
    click.option("--warmup", "warmup_s", type=finite(min=0), metavar="SECONDS",
                 help="Warm-up to exclude; detected if not given."),
    click.option("--concurrency", callback=_counts, default="8", show_default=True, metavar="N,...",
                 help="Requests in flight; several, such as 1,8,32, are run one by one."),
    click.option("--rate", type=positive, metavar="PER_SECOND",
                 help="Send at this rate, whatever the server does."),
    click.option("--arrivals", type=click.Choice(["constant", "poisson"]), default="constant",
                 show_default=True, help="Spacing of requests with a rate."),
    click.option("--ramp", callback=_ramp, metavar="FROM:TO",
                 help="Send at a rate that changes linearly."),
    click.option("--find-max", is_flag=True,
                 help="Look for the highest rate that keeps --slo; --rate is tried first."),
    click.option("--slo", metavar="LIMIT", help="What --find-max keeps, such as p99=50ms."),
    click.option("--during", default="", metavar="push|restart|poison|overload|COMMAND",
                 help="After a third of the time, push the version in service again, restart the "
                 "server, or run a shell command; or make every 100th request invalid; or double "
                 "the rate in the middle third."),
)  # fmt: skip
_HOW = (
    click.option("--sender", type=click.Choice(["auto", "own", "grpcio"]), default="auto",
                 show_default=True, callback=_sender,
                 help="gRPC load generator; grpcio is slower but supports TLS."),
    click.option("--connections", type=_count, default=1, show_default=True,
                 help="Connections that requests are spread over."),
    click.option("--processes", type=_count, default=1, show_default=True,
                 help="Number of sending processes."),
    click.option("--max-in-flight", type=_count, default=1000, show_default=True,
                 help="Maximum requests in flight with a rate."),
    click.option("--metrics-url", metavar="URL",
                 help="REST address whose metrics are read; known for a server that tfkit runs."),
)  # fmt: skip
_RESULTS = (
    click.option("--gate", "gates", multiple=True, metavar="CONDITION",
                 help="Fail unless it is met: p99<50ms, rate>1000, errors<0.1%. Repeatable."),
    click.option("--output", "outputs", multiple=True, type=_file, metavar="FILE",
                 help="Save the whole run as .npz, or the summary as .json. Repeatable."),
    click.option("--samples", "samples_file", type=_file, metavar="FILE",
                 help="Save every request's times as CSV."),
    click.option("--report", "page_file", type=_file, metavar="FILE",
                 help="Write a page with plots as HTML."),
    click.option("--markdown", "markdown_file", type=_file, metavar="FILE",
                 help="Write a summary for a pull request."),
    force_option,
)  # fmt: skip


def _given_options(context: click.Context) -> frozenset[str]:
    """Return the names of the options that were not left out."""
    left_out = {ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP}
    return frozenset(
        name for name in context.params if context.get_parameter_source(name) not in left_out
    )


_RESTART, _PUSH = "restart", "push"
_USUAL_COLUMNS = 80  # where a terminal does not say


@click.group("perf", invoke_without_command=True)
@server_options
@_run_options
@json_option
@click.pass_context
def perf_command(context: click.Context, /, as_json: bool, **given: Any) -> int:
    """Measure latency and throughput.

    Latency counts from the moment each request was due. Ctrl-C ends a run early and reports it.
    """
    if context.invoked_subcommand:
        return exits.OK
    from tfserve_kit.perf import gate, report
    from tfserve_kit.perf.measuring import Bench, PerfOptions, Session

    names = {each.name for each in fields(PerfOptions)} & given.keys()
    options = PerfOptions(**{name: given[name] for name in names}, given=_given_options(context))
    options.require_consistent()
    gates = [gate.parse(text) for text in given["gates"]]
    outputs, files = given["outputs"], [given[f"{each}_file"] for each in _FILES]
    _require_suffixes(outputs)
    require_writable(*outputs, *files)
    stop = threading.Event()
    with _live_progress() as progress:
        where = destination(*given["server"])
        where.require_no_version()
        client = where.access.options(where.url)
        session = Session(options, where.url, where.model, where.base_path, client)
        for text in session.requests.assumed:
            progress.note(f"Note: {text}")
        bench = Bench(
            (), watch=_watch(where.url, given["metrics_url"], client), stop=stop,
            progress=progress,
            command=_disturbance(options.during, where, session.requests.version),
        )  # fmt: skip
        found = session.measure(bench)
    verdicts = [gate.judge(one, each.summary) for each in found.judged for one in gates]
    data, text = report.measurement(found, options.slo, verdicts)
    with output.in_any_case(partial(output.result, "perf", data, as_json=as_json, text=text)):
        _keep(found.runs, outputs, *files)
    return exits.INTERRUPTED if stop.is_set() else _exit_code(found, verdicts)


_FILES = ("samples", "page", "markdown")


def _require_suffixes(outputs: Sequence[Path]) -> None:
    for file in outputs:
        if file.suffix not in {".npz", ".json"}:
            raise UsageError(f"--output {file}", remedy="name it .npz or .json")


def _exit_code(found: "Measurement", verdicts: Sequence["Verdict"]) -> int:
    """Return the exit code of a measurement.

    A search without result fails like a gate; without a single success nothing was measured.
    """
    if found.max_rate == 0.0 or not all(each.passed for each in verdicts):
        return exits.GATE_FAILED
    return exits.OK if found.has_answers else exits.REQUEST_FAILED


def _judged(verdicts: Sequence["Verdict"]) -> int:
    return exits.OK if all(each.passed for each in verdicts) else exits.GATE_FAILED


def serving(url: str) -> RunningServer | None:
    """Return what is remembered of the server at an address; None if tfkit runs none there."""
    return server_at(addresses.read(url))


def _disturbance(during: str, where: "ServedModel", version: int) -> "Command | None":
    """Return what one of the words runs; None for any other.

    Args:
        during: the value of `--during`.
        where: the server and the model that are measured.
        version: the version that requests without one go to.

    Raises:
        UsageError: tfkit does not run the server, or does not know where its models are.
    """
    from tfserve_kit.perf.measuring import Command

    if during not in {_RESTART, _PUSH}:
        return None
    server = serving(where.url)
    if server is None:
        raise UsageError(
            f"--during {during}, but tfkit does not run the server at {where.url}",
            remedy="give the shell command that does it: --during COMMAND",
        )
    if during == _RESTART:
        return Command(_RESTART, _tfkit("restart", server.server_name))
    return Command(_PUSH, _push(where, server, version), _available)


def _push(where: "ServedModel", server: RunningServer, version: int) -> list[str]:
    """Return what pushes the version in service again; what is served needs no new leave."""
    source = where.base_path / str(version) if where.base_path else None
    if source is None or not source.is_dir():
        raise UsageError(
            f"--during push, but version {version} of {where.model!r} is in no folder "
            f"of this machine",
            remedy="give the shell command that pushes: --during COMMAND",
        )
    return _tfkit(
        "push-model", str(source), "--to", str(source.parent), "--allow-op", "*", "--wait",
        "--url", server.endpoints.grpc, "--model", where.model, "--json",
    )  # fmt: skip


def _tfkit(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tfserve_kit", *arguments]


def _available(printed: str) -> str:
    """Return what `tfkit push-model --wait --json` says by having printed this."""
    document = json.loads(printed)
    if document["kind"] != "push":
        return ""
    return f"version {document['data']['version']} is AVAILABLE"


def _watch(url: str, metrics_url: str | None, client: "OptionNames") -> Callable[[], "Watch"]:
    """Return what makes a watch of the server's metrics and, if tfkit runs it, of its process."""
    from tfserve_kit.clients.options import Options
    from tfserve_kit.perf import metrics

    address = addresses.read(url)
    if address.is_fleet and not metrics_url:
        return lambda: metrics.Watch(lambda: None, None)  # of which server?
    mine, options = serving(url), Options(**client)
    look = metrics.with_gpus(look_at(mine.home)) if mine else None
    if metrics_url:  # perhaps another server, which our headers are not for
        options = replace(options, headers={})
    own = replica_at(mine.endpoints, address).rest if mine else url
    read = metrics.reader(metrics_url or own, options)
    return lambda: metrics.Watch(read, look)


class _LiveProgress(output.TerminalProgress):
    """Shows on a terminal how a run stands, and elsewhere only that it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self._before: Snapshot | None = None

    def step(self, text: str) -> None:
        """Show that a run has begun."""
        self._before = None
        super().step(text)

    def snapshot(self, seen: "Snapshot") -> None:
        """Show how the run stands; a terminal that takes nothing holds up nobody else."""
        from tfserve_kit.perf import report

        text = report.live_line(self._text, seen, seen.rate_since(self._before), _columns())
        self._before = seen
        self.changing(text)


def _live_progress() -> output.TerminalProgress:
    """Return what shows the progress of runs: line by line, unless stderr is a terminal."""
    return _LiveProgress() if sys.stderr.isatty() else output.TerminalProgress()


def _columns() -> int:
    try:
        found = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        found = 0
    return found or _USUAL_COLUMNS


def _write_text(file: Path, text: str) -> None:
    """Write a result and say so.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise file_error(UsageError, "write", file, error) from error
    output.note(f"Wrote {file}")


def _keep(
    runs: Sequence["NamedRun"],
    outputs: Sequence[Path],
    samples_file: Path | None,
    page_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Write runs to files; where each has its own, several get a number.

    Raises:
        UsageError: a file cannot be written.
    """
    from tfserve_kit.perf import report, report_html, samples

    for file in outputs:
        if file.suffix == ".json":
            text = strict_json.dumps(report.runs_data(runs), ensure_ascii=False, indent=1)
            _write_text(file, text)
            continue
        for each, numbered in zip(runs, _numbered(file, len(runs)), strict=True):
            samples.write(each.run, numbered)
            output.note(f"Wrote {numbered}")
    if samples_file:
        for each, numbered in zip(runs, _numbered(samples_file, len(runs)), strict=True):
            samples.write_csv(each.run.samples, numbered)
    if page_file:
        _write_text(page_file, report_html.page(runs))
    if markdown_file:
        _write_text(markdown_file, report.runs_markdown(runs))


def _numbered(file: Path, count: int) -> list[Path]:
    if count == 1:
        return [file]
    return [file.with_stem(f"{file.stem}-{number}") for number in range(1, count + 1)]


@click.command("compare")
@click.argument("before", type=_file)
@click.argument("after", type=_file)
@click.option("--gate", "gates", multiple=True, metavar="CONDITION",
              help="Fail unless it is met of the second run: p99<+5%, rate>-3%, p50<10ms. "
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
    from tfserve_kit.perf import gate, report, samples

    require_writable(markdown_file)
    conditions = [gate.parse(text) for text in gates]
    found = gate.compare(samples.read(before), samples.read(after))
    verdicts = [gate.judge(each, found.after, found.before) for each in conditions]
    data = report.comparison_data(found) | {"gates": report.verdicts_data(verdicts)}
    text = report.comparison_text(found) + report.verdicts_text(verdicts)
    show = partial(output.result, "perf-comparison", data, as_json=as_json, text=text)
    with output.in_any_case(show):
        if markdown_file:
            lines = [report.comparison_markdown(found), "", *(f"- {each}" for each in verdicts)]
            _write_text(markdown_file, "\n".join(lines).rstrip() + "\n")
    return _judged(verdicts)


@click.command("report")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=_file)
@click.option("--warmup", "warmup_s", type=finite(min=0), metavar="SECONDS",
              help="Warm-up to exclude; as before if not given.")  # fmt: skip
@click.option("--gate", "gates", multiple=True, metavar="CONDITION",
              help="Fail unless it is met, such as p99<50ms. Repeatable.")  # fmt: skip
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
    from tfserve_kit.perf import gate, report, samples, stats
    from tfserve_kit.perf.measuring import Measurement
    from tfserve_kit.perf.stats import NamedRun

    require_writable(samples_file, page_file, markdown_file)
    conditions = [gate.parse(text) for text in gates]
    runs = []
    for file in files:
        run = samples.read(file)
        if warmup_s is not None:
            run = replace(run, settings={**run.settings, "warmup_s": warmup_s})
        runs.append(NamedRun(file.stem, run, stats.summarize(run)))
    verdicts = [gate.judge(one, each.summary) for each in runs for one in conditions]
    data, text = report.measurement(Measurement(runs, runs), None, verdicts)
    with output.in_any_case(partial(output.result, "perf", data, as_json=as_json, text=text)):
        _keep(runs, (), samples_file, page_file, markdown_file)
    return _judged(verdicts)


perf_command.add_command(report_command)
perf_command.add_command(compare_command)


def _limit(ctx: click.Context, param: click.Parameter, value: str | None) -> "Condition | None":
    """Return the limit that a latency such as `50ms` is for p99."""
    del ctx
    from tfserve_kit.perf import gate

    if value is None:
        return None
    found = gate.parse_slo(f"p99={value}" if param.name == "p99" else value)
    if found.name in {"mean", "max", "rate", "errors"} or not found.below or found.is_change:
        raise UsageError(f"{value} limits no quantile", remedy="write --slo p95=50ms")
    return found


@click.command("capacity")
@click.argument("files", nargs=-1, required=True, metavar="RUN...", type=_file)
@click.option("--rate", type=positive, required=True, metavar="PER_SECOND",
              help="Requests per second that all replicas get together.")  # fmt: skip
@click.option("--p99", callback=_limit, metavar="LATENCY",
              help="Limit on the 99th percentile, such as 50ms.")  # fmt: skip
@click.option("--slo", callback=_limit, metavar="LIMIT",
              help="Limit on another quantile instead, such as p95=50ms.")  # fmt: skip
@click.option("--replicas", type=_count, metavar="N",
              help="Look at so many replicas instead of searching.")  # fmt: skip
@click.option("--policy", type=click.Choice(["least-loaded", "round-robin"]),
              help="Who gets a request; both if not given.")  # fmt: skip
@click.option("--arrivals", type=click.Choice(["poisson", "recorded"]), default="poisson",
              show_default=True, help="Spacing of requests; recorded: that of the longest run "
              "with a rate.")  # fmt: skip
@click.option("--unavailable", type=click.IntRange(min=0), default=1, show_default=True,
              metavar="N", help="Replicas out of service at once during a rollout; 0 where new "
              "ones start first, as behind tfkit's gateway.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Random seed.")  # fmt: skip
@click.option("--plot", "page_file", type=_file, metavar="FILE",
              help="Write a page with a plot as HTML.")  # fmt: skip
@force_option
@json_option
def capacity_command(
    files: tuple[Path, ...],
    rate: float,
    p99: "Condition | None",
    slo: "Condition | None",
    page_file: Path | None,
    as_json: bool,
    **asked: Any,
) -> int:
    """Say how many replicas keep a limit on latency, from runs of one of them.

    Simulates fleets of the replica that `tfkit perf --output RUN.npz` measured: with all in
    service, with one dead, and during a rollout. Fails if no policy keeps the limit in all three.
    """
    from tfserve_kit.perf import capacity, report_html, samples, stats
    from tfserve_kit.perf.stats import NamedRun

    limit = p99 or slo
    if limit is None or (p99 and slo):
        raise UsageError("give either --p99 or --slo", remedy="such as --p99 50ms")
    require_writable(page_file)
    runs = []
    for file in files:
        run = samples.read(file)
        runs.append(NamedRun(str(file), run, stats.summarize(run)))
    need = capacity.Need(rate, limit, asked["arrivals"], asked["unavailable"], asked["seed"])
    policies = (asked["policy"],) if asked["policy"] else capacity.POLICIES
    with output.TerminalProgress() as progress:
        found = capacity.plan(
            runs, need, policies=policies, replicas=asked["replicas"], curves=bool(page_file),
            progress=progress,
        )  # fmt: skip
    data, text = capacity.as_data(found), _capacity_text(found)
    with output.in_any_case(partial(output.result, "capacity", data, as_json=as_json, text=text)):
        if page_file:
            _write_text(page_file, report_html.capacity_page(found))
    return exits.OK if found.kept else exits.GATE_FAILED


def _capacity_text(found: "CapacityPlan") -> str:
    from tfserve_kit.perf import capacity

    name = found.need.limit.name
    columns, checks = (
        [each.format(name).upper() for each in some]
        for some in (capacity.COLUMNS, capacity.CHECK_COLUMNS)
    )
    return "\n".join([
        "One replica", *(f"  {each}" for each in capacity.facts(found)), "",
        output.table(checks, capacity.check_rows(found)), "",
        output.table(columns, capacity.rows(found)), "",
        *capacity.conclusions(found), "",
        *(f"note: {each}" for each in capacity.notes(found)),
    ])  # fmt: skip


_SENT = ("signature", "source", "batch", "protocol", "arrivals", "duration_s")


@click.command("tune")
@deployment_options
@click.option("--slo", metavar="LIMIT",
              help="Look for the highest rate with this, such as p99=50ms.")  # fmt: skip
@click.option("--rate", type=positive, metavar="PER_SECOND",
              help="Look for the lowest latency at this rate instead.")  # fmt: skip
@click.option("--quantile", default="p99", show_default=True, help="Latency quantile to minimise.")
@click.option("--trials", type=_count, default=20, show_default=True, metavar="N",
              help="Total number of candidates to try.")  # fmt: skip
@click.option("--duration", "duration_s", type=positive, default=3.0, show_default=True,
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
    from tfserve_kit.deployment import DEFAULT_FILE
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
    with _live_progress() as progress:
        tuned = tune_deployment(
            spec, goal, effort, model=asked["measure"], templates=templates,
            progress=progress, interruptible=deferred, **{key: asked[key] for key in _SENT},
        )  # fmt: skip
    text, data = results.as_text(tuned), results.as_data(tuned)
    wrote: list[Path] = []

    def show() -> None:
        shown = text + "".join(f"\nWrote {file}" for file in wrote)
        named = data | {"files": [str(file) for file in wrote]}
        output.result("tune", named, as_json=as_json, text=shown)

    with output.in_any_case(show):
        if tuned.is_better and tuned.winner is not None:
            wrote += results.write(tuned.winner.candidate, spec, config, folder)
    if tuned.is_interrupted:
        output.note("Run the same command to resume")
    return exits.INTERRUPTED if tuned.is_interrupted else exits.OK


def _require_optuna() -> None:
    if find_spec("optuna") is None or find_spec("tomlkit") is None:
        raise UsageError("Optuna is not installed", remedy="`pip install 'tfserve-kit[tune]'`")
