"""`tfkit perf`: a measurement by itself, and the group of what can be done with kept runs."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from tfserve_kit.cli import exit_codes, output, perf_live, perf_results, result_files
from tfserve_kit.cli.options import json_option, server_options
from tfserve_kit.cli.perf_bench import prepared
from tfserve_kit.cli.perf_compare import compare_command
from tfserve_kit.cli.perf_options import Asked, given_options, run_options
from tfserve_kit.cli.perf_report import report_command
from tfserve_kit.errors import UsageError

if TYPE_CHECKING:  # numpy comes with them
    from tfserve_kit.perf.gate import Gate
    from tfserve_kit.perf.measuring import Bench
    from tfserve_kit.perf.report_html import Named
    from tfserve_kit.perf.workload import Workload

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
    with perf_live.shown() as progress:
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
    from tfserve_kit.perf import intervals, search
    from tfserve_kit.perf.measuring import keeps

    runs: list[Named] = []
    q = float(slo.name[1:]) / 100 if slo.name[0] == "p" else 0.5
    enough = 2 * intervals.needed(q)  # a warm-up may take half of them

    def holds(rate: float) -> bool | None:
        if bench.stop is not None and bench.stop.is_set():
            return None
        duration_s = max(asked.duration_s, enough / rate)
        runs.extend(_measured(bench, [replace(work, rate=rate, duration_s=duration_s)]))
        return None if _are_useless(runs) else keeps(slo, runs[-1].summary)

    rate, trials = search.find_max(holds, start=asked.rate or _FIRST_RATE)
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
    perf_results.keep(runs, asked.outputs, asked.samples_file)
    perf_results.publish(runs, asked.page_file, asked.markdown_file)
    verdicts = perf_results.judged(best, gates)
    data, text = perf_results.data_of(runs), perf_results.text_of(runs)
    if found.rate is not None:
        text = _search_text(found, asked.slo or "")
        data = {"max_rate": found.rate, "slo": asked.slo, "held": found.held} | data
    if verdicts:
        data["gates"] = perf_results.as_data(verdicts)
    output.result("perf", data, as_json=as_json, text=text + perf_results.shown(verdicts))
    return perf_results.exit_code(verdicts, runs, nothing_held=found.rate == 0.0)


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
