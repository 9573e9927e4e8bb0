"""`tfkit perf`: a measurement by itself, and the group of what can be done with kept runs."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from tfserve_kit.cli import exit_codes, output, perf_results
from tfserve_kit.cli.options import json_option, server_options
from tfserve_kit.cli.perf_compare import compare_command
from tfserve_kit.cli.perf_options import Asked, run_options
from tfserve_kit.cli.perf_report import report_command
from tfserve_kit.cli.target import destination
from tfserve_kit.errors import UsageError

if TYPE_CHECKING:  # numpy comes with them
    from tfserve_kit.perf.gate import Gate
    from tfserve_kit.perf.measuring import Bench
    from tfserve_kit.perf.metrics import Watch
    from tfserve_kit.perf.report_html import Named
    from tfserve_kit.perf.workload import Workload

_FIRST_RATE = 10.0
_LIVE_EVERY_S = 0.5


@click.group("perf", invoke_without_command=True)
@server_options
@run_options
@json_option
@click.pass_context
def command(context: click.Context, /, as_json: bool, **options: Any) -> int:
    """Measure latency and throughput.

    Latency counts from the moment each request was due. Ctrl-C ends a run early and reports it.
    """
    if context.invoked_subcommand:
        return exit_codes.OK
    from tfserve_kit.perf import gate

    asked = Asked(**options)
    asked.refuse_contradictions()
    gates = [gate.parse(text) for text in asked.gates]
    slo = gate.parse(asked.slo.replace("=", "<")) if asked.slo else None
    files = (*asked.outputs, asked.samples_file, asked.page_file, asked.markdown_file)
    perf_results.require_folders(*files)
    stop = threading.Event()
    with output.TerminalProgress() as progress:
        bench, work = _prepared(asked, stop, _Live(progress))
        if slo:
            found = _find_max(bench, work, slo, asked)
        else:
            runs = list(_measured(bench, _works(work, asked)))
            found = _Found(None, runs, runs, [])
    code = _finish(found, gates, asked, as_json=as_json)
    return exit_codes.INTERRUPTED if stop.is_set() else code


def _prepared(asked: Asked, stop: threading.Event, live: "_Live") -> tuple["Bench", "Workload"]:
    """Return what all runs share, and the first run; one request goes ahead as a trial."""
    from tfserve_kit.clients import Target, connect
    from tfserve_kit.clients.classifier import choose_signature
    from tfserve_kit.perf import payloads, sending
    from tfserve_kit.perf.inputs import inputs_of
    from tfserve_kit.perf.measuring import Bench
    from tfserve_kit.preprocessing import Preprocessing

    where = destination(asked.url, asked.protocol, asked.model)
    target = Target(where.model, signature=asked.signature)
    with connect(where.url) as client:
        found = client.metadata(target, timeout_s=asked.timeout_s)
        chosen = choose_signature(found.signatures, asked.signature)
        folder = where.base_path / str(found.version) if where.base_path else None
        note = Preprocessing.read(folder) if folder else Preprocessing()
        inputs = inputs_of(asked.source, chosen, asked.batch, note)
        client.predict(target, inputs[0], timeout_s=asked.timeout_s)
    work = _work(asked, where.url)
    sent = payloads.encoded(work.protocol, where.url, target, inputs)
    about = {
        "model": where.model,
        "version": found.version,
        "signature": chosen.name,
        "batch": asked.batch,
        "input": asked.source,
        "distinct_requests": len(sent),
    }
    if asked.warmup_s is not None or asked.ramp or asked.during:
        about["warmup_s"] = asked.warmup_s or 0.0
    watch = _watch(asked, where.url)
    return Bench(sent, sending.run, about, asked.during, watch, stop, live), work


def _work(asked: Asked, url: str) -> "Workload":
    from tfserve_kit.perf.workload import Workload

    first, last = asked.ramp or (asked.rate, None)
    is_secure = url.startswith(("grpcs:", "https:"))
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
    )


def _works(work: "Workload", asked: Asked) -> list["Workload"]:
    return [replace(work, concurrency=each) for each in asked.concurrency]


def _watch(asked: Asked, url: str) -> Callable[[], "Watch"] | None:
    """Return what makes a watch of the server's metrics and, if tfkit runs it, of its process."""
    from tfserve_kit.engines.records import records
    from tfserve_kit.perf import metrics, usage

    mine = [
        each for each in records() if url.rstrip("/") in {each.endpoints.grpc, each.endpoints.rest}
    ]
    rest = asked.metrics_url or (mine[0].endpoints.rest if mine else url)
    look = None
    if mine:
        one = mine[0]
        look = usage.of_process(one.pid) if one.pid else usage.of_container(one.container_id)
    read = metrics.reader(rest)
    return lambda: metrics.Watch(read, look)


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

    def holds(rate: float) -> bool:
        if bench.stop is not None and bench.stop.is_set():
            return False
        duration_s = max(asked.duration_s, enough / rate)
        runs.extend(_measured(bench, [replace(work, rate=rate, duration_s=duration_s)]))
        return keeps(slo, runs[-1].summary)

    rate, trials = search.find_max(holds, start=asked.rate or _FIRST_RATE)
    real = trials[: len(runs)]
    if len(real) < len(trials):  # ended by Ctrl-C
        rate = search.highest(real)
    best = [run for run, trial in zip(runs, real, strict=True) if trial.rate == rate and trial.held]
    return _Found(rate, runs, best[-1:], [trial.held for trial in real])


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
    return perf_results.exit_code(verdicts, nothing_held=found.rate == 0.0)


def _search_text(found: "_Found", slo: str) -> str:
    from tfserve_kit.perf import report

    tried = [
        (f"{each.name} {'held' if held else 'failed'}", each.summary)
        for each, held in zip(found.runs, found.held, strict=True)
    ]
    if not found.rate:
        return f"{report.as_sweep(tried)}\n\nno rate that was tried kept {slo}"
    best = report.as_text(found.judged[-1].summary, found.judged[-1].run)
    return f"{report.as_sweep(tried)}\n\n{found.rate:g}/s is the highest rate with {slo}\n\n{best}"


@dataclass(frozen=True, slots=True)
class _Found:
    """Runs, those that gates are held against, and what a search found; see `_find_max`."""

    rate: float | None
    runs: list["Named"]
    judged: list["Named"]
    held: list[bool]


class _Live:
    """Shows how many requests have ended, and how many per second, while they are sent."""

    def __init__(self, progress: output.TerminalProgress) -> None:
        self._progress, self._title = progress, ""
        self._since_s, self._before = time.monotonic(), 0

    def step(self, text: str) -> None:
        """Show that a run has begun."""
        self._title, self._since_s, self._before = text, time.monotonic(), 0
        self._progress.step(text)

    def note(self, text: str) -> None:
        """Show a remark that stays."""
        self._progress.note(text)

    def advance(self, done: int, total: int) -> None:
        """Show how far the run is, where the line can change."""
        now_s = time.monotonic()
        if not sys.stderr.isatty() or now_s - self._since_s < _LIVE_EVERY_S:
            return
        rate = (done - self._before) / (now_s - self._since_s)
        self._since_s, self._before = now_s, done
        share = f" of {total:,}" if total > done else ""
        self._progress.step(f"{self._title}: {done:,}{share} ended, {rate:,.0f}/s")


command.add_command(report_command)
command.add_command(compare_command)
