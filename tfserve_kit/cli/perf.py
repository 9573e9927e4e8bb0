"""`tfkit perf`: a measurement by itself, and the group of what can be done with kept runs."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfserve_kit import strict_json
from tfserve_kit.cli import exit_codes, output, result_files
from tfserve_kit.cli.options import json_option, server_options
from tfserve_kit.cli.perf_options import Asked, given_options, run_options
from tfserve_kit.cli.result_files import force_option, require_writable
from tfserve_kit.cli.target import Destination, destination
from tfserve_kit.clients import addresses
from tfserve_kit.engines import RunningServer
from tfserve_kit.errors import RequestError, UsageError
from tfserve_kit.progress import Progress
from tfserve_kit.serving.access import server_at

if TYPE_CHECKING:
    from tfserve_kit.clients.options import Options
    from tfserve_kit.perf.gate import Gate, Verdict
    from tfserve_kit.perf.measuring import Bench, Command
    from tfserve_kit.perf.metrics import Look, Usage, Watch
    from tfserve_kit.perf.payloads import Recorded
    from tfserve_kit.perf.preparing import Prepared
    from tfserve_kit.perf.report_html import Named
    from tfserve_kit.perf.sending.driving import Snapshot
    from tfserve_kit.perf.workload import Workload

RESTART, PUSH = "restart", "push"


def serving(url: str) -> RunningServer | None:
    """Return what is remembered of the server at an address; None if tfkit runs none there."""
    return server_at(addresses.read(url))


def disturbance(during: str, where: "Destination", version: int) -> "Command | None":
    """Return what one of the words runs; None for all that is none of them.

    Args:
        during: the value of `--during`.
        where: the server and the model that are measured.
        version: the version that requests without one go to.

    Raises:
        UsageError: tfkit does not run the server, or does not know where its models are.
    """
    from tfserve_kit.perf.measuring import Command

    if during not in {RESTART, PUSH}:
        return None
    server = serving(where.url)
    if server is None:
        raise UsageError(
            f"--during {during}, but tfkit does not run the server at {where.url}",
            remedy="give the shell command that does it: --during COMMAND",
        )
    if during == RESTART:
        return Command(RESTART, _tfkit("restart", server.server_name))
    return Command(PUSH, _push(where, server, version), _available)


def _push(where: "Destination", server: RunningServer, version: int) -> list[str]:
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


def prepared(asked: Asked, stop: threading.Event, progress: Progress) -> tuple["Bench", "Workload"]:
    """Return what all runs share, and the first run; one request goes ahead as a trial.

    Raises:
        TfkitError: there is nothing to send, or the server does not answer the trial.
    """
    from tfserve_kit.clients.options import Options
    from tfserve_kit.perf import sending
    from tfserve_kit.perf.measuring import Bench

    where = destination(asked.url, asked.protocol, asked.model, asked.access)
    where.require_no_version()
    options = Options(**where.access.options(where.url))
    work = _work(asked, where.url, options)
    if asked.replay:
        made, work = _recorded(asked.replay, asked, where, work)
    else:
        made = _made(asked, where)
        for text in made.assumed:
            progress.note(f"Note: {text}")
    drill = disturbance(asked.during, where, made.version)
    watch, about = _watch(asked, where.url, options), _about(asked, where, made)
    bench = Bench(made.payloads, sending.run, about, asked.during, watch, stop, progress, drill)
    return bench, work


def _made(asked: Asked, where: Destination) -> "Prepared":
    """Return requests of what `--input` says."""
    from tfserve_kit.perf import preparing

    wanted = preparing.Asked(
        where.model, asked.signature, asked.source, asked.batch, where.base_path, asked.timeout_s
    )
    return preparing.Preparer(wanted).prepare(where.url, where.access.options(where.url))


def _recorded(
    file: Path, asked: Asked, where: Destination, work: "Workload"
) -> tuple["Prepared", "Workload"]:
    """Return requests of what `--replay` says, and when to send them."""
    from tfserve_kit.clients import Target
    from tfserve_kit.clients.classifier import choose_signature
    from tfserve_kit.perf import expectations, payloads
    from tfserve_kit.perf.preparing import Prepared

    target = Target(where.model, signature=asked.signature)
    with where.connect() as client:
        found = client.metadata(target, timeout_s=asked.timeout_s)
        log = payloads.read_log(file, found.signatures, asked.signature)
        work = _paced(log, asked, work)
        calls = [(replace(target, signature=each.signature), each.inputs) for each in log]
        trial = client.predict(*calls[0], timeout_s=asked.timeout_s)
    called = [(choose_signature(found.signatures, each.signature), each.inputs) for each in log]
    expected = expectations.of_calls(called, trial.outputs)
    made = [
        payloads.predict_payload(work.protocol, where.url, *call, expects, work.options.headers)
        for call, expects in zip(calls, expected, strict=True)
    ]
    return Prepared(made, found.version, asked.signature), work


def _paced(log: "Sequence[Recorded]", asked: Asked, work: "Workload") -> "Workload":
    """Return a workload with the times of a log or, where it has none, with a rate's."""
    from tfserve_kit.perf import load

    times_s = [each.at_s for each in log if each.at_s is not None]
    asked.refuse_times(has_times=bool(times_s))
    if work.rate is None:
        due_ns = load.replay_ns(times_s, asked.speed or 1.0)[: asked.requests]
    else:
        count = asked.requests or len(log)
        ample_s = (2 * count + 20) / work.rate  # random arrivals may take longer than the mean
        due_ns = load.due_ns(load.steps([work.rate], ample_s), work.arrivals)[:count]
    return replace(work, due_ns=due_ns, duration_s=float(due_ns[-1]) / 1e9)


def _about(asked: Asked, where: Destination, made: "Prepared") -> dict[str, Any]:
    about: dict[str, Any] = {"model": where.model, "version": made.version}
    if asked.replay:
        about |= {"replay": str(asked.replay), "speed": asked.speed or 1.0}
    else:
        about |= {"signature": made.signature, "batch": made.rows, "input": asked.source}
        about |= {"assumed": list(made.assumed)} if made.assumed else {}
    about["distinct_requests"] = len(made.payloads)
    if asked.warmup_s is not None or asked.ramp or asked.during or asked.replay:
        about["warmup_s"] = asked.warmup_s or 0.0
    return about


def _work(asked: Asked, url: str, options: "Options") -> "Workload":
    from tfserve_kit.perf.workload import Workload

    first, last = asked.ramp or (asked.rate, None)
    is_secure = url.lower().startswith("grpcs:")
    duration_s = asked.duration_s
    if asked.requests and first:
        duration_s = min(duration_s, (asked.requests + 1) / min(first, last or first))
    return Workload(
        url,
        "grpc" if url.startswith("grpc") else "rest",
        duration_s=duration_s,
        requests=asked.requests,
        concurrency=asked.concurrency[0],
        rate=first,
        end_rate=last,
        arrivals="poisson" if asked.arrivals == "poisson" else "constant",
        max_in_flight=asked.max_in_flight,
        connections=asked.connections,
        processes=asked.processes,
        timeout_s=asked.timeout_s,
        sender="grpcio" if asked.sender == "grpcio" or is_secure else "own",
        options=options,
    )


def _watch(asked: Asked, url: str, options: "Options") -> Callable[[], "Watch"] | None:
    """Return what makes a watch of the server's metrics and, if tfkit runs it, of its process."""
    from tfserve_kit.perf import metrics

    mine = serving(url)
    look = metrics.with_gpus(_look(mine.home)) if mine else None
    if asked.metrics_url:  # perhaps another server, which our headers are not for
        options = replace(options, headers={})
    read = metrics.reader(asked.metrics_url or (mine.endpoints.rest if mine else url), options)
    return lambda: metrics.Watch(read, look)


def _look(home: Path) -> "Look":
    """Return what looks at the server that has this folder, restarted or not."""
    from tfserve_kit.engines.records import Record, container_id
    from tfserve_kit.perf import metrics

    @cache
    def of(pid: int, container: str) -> "Look":
        return metrics.of_process(pid) if pid else metrics.of_container(container)

    def look() -> "Usage | None":
        record, container = Record.read(home), container_id(home)
        return of(record.pid if record else 0, container)() if record or container else None

    return look


# What is left out where the terminal is too narrow, after the title.
_LEAST = ("late", "ended", "in flight")
_PLAIN_MS = 10
_USUAL_COLUMNS = 80  # where a terminal does not say


class LiveProgress(output.TerminalProgress):
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
        text = line(self._text, seen, rate(self._before, seen), _columns())
        self._before = seen
        self.changing(text)


def live_progress() -> output.TerminalProgress:
    """Return what shows the progress of runs: line by line, unless stderr is a terminal."""
    return LiveProgress() if sys.stderr.isatty() else output.TerminalProgress()


def _columns() -> int:
    try:
        found = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        found = 0
    return found or _USUAL_COLUMNS


def rate(before: "Snapshot | None", seen: "Snapshot") -> float | None:
    """Return how many requests ended per second between two snapshots; None for the first."""
    if before is None or seen.at_ns <= before.at_ns:
        return None
    return (seen.ended - before.ended) / ((seen.at_ns - before.at_ns) / 1e9)


def line(title: str, seen: "Snapshot", per_second: float | None, width: int) -> str:
    """Return how a run stands, in less than a terminal's width.

    Args:
        title: what is run.
        seen: the run; its latencies are those since the last line.
        per_second: requests that ended since then, per second.
        width: of the terminal, in characters.
    """
    errors = "1 error" if seen.failed == 1 else f"{seen.failed:,} errors"
    parts = {
        "time": f"{seen.at_ns / 1e9:.0f}{_of(seen.end_ns and seen.end_ns / 1e9)} s",
        "ended": f"{seen.ended:,}{_of(seen.total)} ended",
        "rate": "" if per_second is None else f"{per_second:,.0f}/s",
        "errors": errors,
        "p50": f"p50 {_ms(seen.quantile_s(0.5))}",
        "p99": f"p99 {_ms(seen.quantile_s(0.99))}",
        "in flight": f"{seen.in_flight:,} in flight",
        "late": "" if seen.late_ns is None else f"{_ms(seen.late_ns / 1e9)} late",
    }
    lines = [f"{title}: {_joined(parts)}", _joined(parts)]
    for name in _LEAST:
        parts[name] = ""
        lines.append(_joined(parts))
    return next((each for each in lines if len(each) < width), lines[-1][: width - 1])


def _joined(parts: Mapping[str, str]) -> str:
    return ", ".join(part for part in parts.values() if part)


def _of(total: float | None) -> str:
    return "" if total is None else f"/{total:,.0f}"


def _ms(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    value = value_s * 1e3
    return f"{value:.2f} ms" if value < _PLAIN_MS else f"{value:,.0f} ms"


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


def verdicts_text(verdicts: Sequence["Verdict"]) -> str:
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
        write_text(markdown_file, "\n".join(lines).rstrip() + "\n")
    data = report.comparison_data(found) | {"gates": as_data(verdicts)}
    text = report.comparison_text(found) + verdicts_text(verdicts)
    output.result("perf-comparison", data, as_json=as_json, text=text)
    return exit_code(verdicts)


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
    keep(runs, (), samples_file)
    publish(runs, page_file, markdown_file)
    verdicts = judged(runs, conditions)
    data = data_of(runs)
    if verdicts:
        data["gates"] = as_data(verdicts)
    text = text_of(runs) + verdicts_text(verdicts)
    output.result("perf", data, as_json=as_json, text=text)
    return exit_code(verdicts)


_FIRST_RATE = 10.0


@click.group("perf", invoke_without_command=True)
@server_options
@run_options
@json_option
@click.pass_context
def perf_command(context: click.Context, /, as_json: bool, **options: Any) -> int:
    """Measure latency and throughput.

    Latency counts from the moment each request was due. Ctrl-C ends a run early and reports it.
    """
    if context.invoked_subcommand:
        return exit_codes.OK
    from tfserve_kit.perf import gate

    asked = Asked(**options, given=given_options(context))
    asked.refuse_contradictions()
    gates = [gate.parse(text) for text in asked.gates]
    slo = gate.parse(asked.slo.replace("=", "<")) if asked.slo else None
    files = (*asked.outputs, asked.samples_file, asked.page_file, asked.markdown_file)
    result_files.require_writable(*files)
    stop = threading.Event()
    with live_progress() as progress:
        bench, work = prepared(asked, stop, progress)
        if slo:
            found = _find_max(bench, work, slo, asked)
        else:
            runs = list(_measured(bench, _works(work, asked)))
            found = _Found(None, runs, runs, [])
    code = _finish(found, gates, asked, as_json=as_json)
    return exit_codes.INTERRUPTED if stop.is_set() else code


def _works(work: "Workload", asked: Asked) -> list["Workload"]:
    return [replace(work, concurrency=each) for each in asked.concurrency]


def _measured(bench: "Bench", works: Sequence["Workload"]) -> Iterator["Named"]:
    """Yield runs one by one, until one is ended by Ctrl-C."""
    from tfserve_kit.perf import stats
    from tfserve_kit.perf.report_html import Named

    for work in works:
        bench.progress.step(f"Sending, {work.name}")
        run = bench.measure(work)
        if not len(run.samples):
            raise UsageError("no request was due", remedy="raise --rate or --duration")
        yield Named(work.name, run, stats.summarize(run))
        if bench.stop is not None and bench.stop.is_set():
            return


def _find_max(bench: "Bench", work: "Workload", slo: "Gate", asked: Asked) -> "_Found":
    """Look for the highest rate that keeps a limit; Ctrl-C ends the search at what was found."""
    from tfserve_kit.perf import gate, stats
    from tfserve_kit.perf.measuring import keeps

    runs: list[Named] = []
    q = float(slo.name[1:]) / 100 if slo.name[0] == "p" else 0.5
    enough = 2 * stats.values_needed(q)  # a warm-up may take half of them

    def holds(rate: float) -> bool | None:
        if bench.stop is not None and bench.stop.is_set():
            return None
        duration_s = max(asked.duration_s, enough / rate)
        runs.extend(_measured(bench, [replace(work, rate=rate, duration_s=duration_s)]))
        return None if _are_useless(runs) else keeps(slo, runs[-1].summary)

    rate, trials = gate.find_max(holds, start=asked.rate or _FIRST_RATE)
    pairs = zip(runs, trials, strict=False)  # the last run may not count
    best = [run for run, trial in pairs if trial.held and trial.rate == rate]
    held = [trial.held for trial in trials] + [False] * (len(runs) - len(trials))
    return _Found(rate, runs, best[-1:], held)


def _are_useless(runs: Sequence["Named"]) -> bool:
    """Say whether it makes no sense to go on: a generator that lags twice lags at any rate."""
    return len(runs) > 1 and all(each.summary.invalid for each in runs[-2:])


def _finish(found: "_Found", gates: Sequence["Gate"], asked: Asked, *, as_json: bool) -> int:
    """Write and show everything, and return the exit code."""
    runs, best = found.runs, found.judged
    keep(runs, asked.outputs, asked.samples_file)
    publish(runs, asked.page_file, asked.markdown_file)
    verdicts = judged(best, gates)
    data, text = data_of(runs), text_of(runs)
    if found.rate is not None:
        text = _search_text(found, asked.slo or "")
        data = {"max_rate": found.rate, "slo": asked.slo, "held": found.held} | data
    if verdicts:
        data["gates"] = as_data(verdicts)
    output.result("perf", data, as_json=as_json, text=text + verdicts_text(verdicts))
    return exit_code(verdicts, runs, nothing_held=found.rate == 0.0)


def _search_text(found: "_Found", slo: str) -> str:
    from tfserve_kit.perf import report

    tried = [
        (f"{each.name} {'held' if held else 'failed'}", each.summary)
        for each, held in zip(found.runs, found.held, strict=True)
    ]
    if not found.rate:
        last = found.runs[-1].summary
        why = f"; INVALID: {last.invalid} ({last.remedy})" if last.invalid else ""
        return f"{report.as_sweep(tried)}\n\nno rate that was tried kept {slo}{why}"
    best = report.as_text(found.judged[-1].summary, found.judged[-1].run)
    return f"{report.as_sweep(tried)}\n\n{found.rate:g}/s is the highest rate with {slo}\n\n{best}"


@dataclass(frozen=True, slots=True)
class _Found:
    """Runs, those that gates are held against, and what a search found; see `_find_max`."""

    rate: float | None
    runs: list["Named"]
    judged: list["Named"]
    held: list[bool]


perf_command.add_command(report_command)
perf_command.add_command(compare_command)
