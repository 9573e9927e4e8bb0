"""Runs and comparisons as data and as text; latencies in milliseconds where people read them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tfserve_kit.perf import metrics
from tfserve_kit.perf.gate import CHANGE_CONFIDENCE, Comparison, Difference, Verdict
from tfserve_kit.perf.measuring import Measurement
from tfserve_kit.perf.samples import Run, latency_ns, service_ns, succeeded
from tfserve_kit.perf.sending.driving import Snapshot
from tfserve_kit.perf.stats import CONFIDENCE, Distribution, NamedRun, Summary, by_replica

_UNKNOWN = "-"
# What the live line leaves out where the terminal is too narrow, after the title.
_LEAST = ("late", "ended", "in flight")
_PLAIN_MS = 10


def as_data(summary: Summary, run: Run) -> dict[str, Any]:
    """Return everything a report holds, for JSON: times in seconds, None where unknown."""
    return {
        "loop": summary.loop,
        "requests": summary.requests,
        "errors": dict(summary.errors),
        "poisoned": dict(summary.poisoned),
        "unfinished": summary.latency.unfinished,
        "offered_rate": summary.offered_rate,
        "achieved_rate": summary.achieved_rate,
        "latency_s": _numbers(summary.latency),
        "latency_interval_s": {
            each.name: [each.low_s, each.high_s]
            for each in summary.latency.quantiles
            if each.low_s is not None
        },
        "confidence": CONFIDENCE,
        "service_s": _numbers(summary.service),
        "first_byte_s": _numbers(summary.first_byte),
        "warmup_latency_s": _numbers(summary.warmup),
        "steady": {"start_s": summary.steady.start_ns / 1e9, "how": summary.steady.how},
        "lag_p99_s": summary.lag_p99_s,
        "lag_max_s": summary.lag_max_s,
        "sent_bytes_per_s": summary.sent_bytes_per_s,
        "received_bytes_per_s": summary.received_bytes_per_s,
        "mean_parts_s": parts_s(run),
        "series": {"width_s": summary.width_s, "slices": [asdict(each) for each in summary.series]},
        "marks": [asdict(mark) for mark in run.marks],
        "notes": list(summary.notes),
        "invalid": summary.invalid,
        "remedy": summary.remedy,
        "settings": dict(run.settings),
        "environment": dict(run.environment),
        "server": dict(run.server),
        "answers": dict(run.answers),
        "replicas": [
            {
                "url": each.url,
                "requests": each.requests,
                "errors": dict(each.errors),
                "latency_s": _numbers(each.latency),
            }
            for each in by_replica(run)
        ],
    }


def parts_s(run: Run) -> dict[str, float]:
    """Return where the mean latency went, in seconds, see `metrics.split`; {} without answers.

    It is that of the whole run, because the server counts so.
    """
    good = succeeded(run.samples)
    if not len(good):
        return {}
    service_s = float(service_ns(good).mean()) / 1e9
    wait_s = float(latency_ns(good).mean()) / 1e9 - service_s
    return metrics.split(service_s, wait_s, run.server.get("difference") or {})


def as_text(summary: Summary, run: Run) -> str:
    """Return a report for a terminal."""
    lines = [f"INVALID: {summary.invalid}\n  Try: {summary.remedy}"] if summary.invalid else []
    rates = f"offered {rate(summary.offered_rate)}, achieved {rate(summary.achieved_rate)}"
    lines += [
        f"{summary.requests} requests, errors: {counted(summary.errors)}",
        f"{rates} ({summary.loop} loop); {summary.steady.how}",
        "",
        *_table(summary),
        *_too_few(summary.latency),
        "",
        *_replicas_text(run),
        *_details(summary, run),
        *(f"note: {note}" for note in (*summary.notes, *answers_notes(run))),
        "; ".join(f"{key} {value}" for key, value in run.environment.items()),
    ]
    return "\n".join(lines)


REPLICA_COLUMNS = ("replica", "requests", "errors", "p50 (ms)", "p99 (ms)")


def replica_rows(run: Run) -> list[list[str]]:
    """Return a row of REPLICA_COLUMNS for each server of a fleet; none for one server."""
    return [
        [each.url, f"{each.requests:,}", counted(each.errors),
         *(ms(each.latency.value_s(name)) for name in ("p50", "p99"))]
        for each in by_replica(run)
    ]  # fmt: skip


def _replicas_text(run: Run) -> Iterator[str]:
    rows = replica_rows(run)
    if not rows:
        return
    table = [list(REPLICA_COLUMNS), *rows]
    widths = [max(len(row[at]) for row in table) + 2 for at in range(len(REPLICA_COLUMNS))]
    for name, *cells in table:
        fitted = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield f"{name:<{widths[0]}}" + "".join(fitted)
    yield ""


def answers_text(run: Run) -> str:
    """Return how the answers of a run were checked, as a sentence."""
    found = run.answers
    if not found:
        return "answers: only their status was checked"
    against = ", ".join(found["held_against"])
    return (
        f"answers: {found['checked']:,} checked for {against}; {found['decoded']:,} of them "
        "decoded in full"
    )


def answers_notes(run: Run) -> Iterator[str]:
    """Yield what a reader must know of the answers of a run."""
    versions = run.answers.get("versions", {})
    if len(versions) > 1:
        counts = ", ".join(f"version {each}: {count:,}" for each, count in versions.items())
        yield f"the version changed during the run: {counts}"
    if unknown := run.answers.get("rows_unknown"):
        yield f"the request does not tell the rows of output {', '.join(unknown)}"


def as_markdown(summary: Summary, run: Run) -> str:
    """Return a report for a pull request."""
    header = ["", "mean", *(each.name for each in summary.latency.quantiles), "max"]
    rows = [
        ["latency (ms)", *_cells(summary.latency)],
        [f"{CONFIDENCE:.0%} interval", "", *_intervals(summary.latency), ""],
        ["service (ms)", *_cells(summary.service)],
    ]
    place = "; ".join(f"{key} {value}" for key, value in run.environment.items())
    lines = [f"> **INVALID**: {summary.invalid}\n" if summary.invalid else ""]
    rates = f"**{rate(summary.achieved_rate)}** achieved of {rate(summary.offered_rate)} offered"
    lines += [
        f"{rates}, {summary.requests} requests, errors: {counted(summary.errors)}\n",
        _markdown_table(header, rows),
        *(["\n" + _markdown_table(REPLICA_COLUMNS, found)] if (found := replica_rows(run)) else ()),
        *(f"\n- {note}" for note in (*summary.notes, answers_text(run), *answers_notes(run))),
        f"\n<sub>{_cell(summary.steady.how)}; {_cell(place)}</sub>",
    ]
    return "\n".join(line for line in lines if line)


def as_sweep(runs: Sequence[tuple[str, Summary]]) -> str:
    """Return several runs as a table for a terminal, a line each."""
    lines = [_row("", ["offered/s", "achieved/s", "p50 ms", "p99 ms", "errors", ""])]
    for name, summary in runs:
        found = [summary.offered_rate, summary.achieved_rate]
        cells = [_UNKNOWN if each is None else f"{each:,.1f}" for each in found]
        cells += [ms(summary.latency.value_s(which)) for which in ("p50", "p99")]
        cells += [f"{summary.error_share:.2%}", "INVALID" if summary.invalid else ""]
        lines.append(_row(name, cells))
    return "\n".join(lines)


def measurement(
    found: Measurement, slo: str | None, verdicts: Sequence[Verdict]
) -> tuple[dict[str, Any], str]:
    """Return runs, what a search found and verdicts, for JSON and for a terminal.

    Args:
        found: at least one run.
        slo: the limit of a search.
        verdicts: of gates; none if there are none.
    """
    data, text = runs_data(found.runs), _runs_text(found.runs)
    if found.max_rate is not None:
        text = _search_text(found, slo or "")
        data = {"max_rate": found.max_rate, "slo": slo, "held": list(found.held)} | data
    if verdicts:
        data["gates"] = verdicts_data(verdicts)
    return data, text + verdicts_text(verdicts)


def _search_text(found: Measurement, slo: str) -> str:
    tried = [
        (f"{each.name} {'held' if held else 'failed'}", each.summary)
        for each, held in zip(found.runs, found.held, strict=True)
    ]
    if not found.max_rate:
        last = found.runs[-1].summary
        why = f"; INVALID: {last.invalid} ({last.remedy})" if last.invalid else ""
        return f"{as_sweep(tried)}\n\nno rate that was tried met {slo}{why}"
    best = as_text(found.judged[-1].summary, found.judged[-1].run)
    head = f"{found.max_rate:g}/s is the highest rate with {slo}"
    return f"{as_sweep(tried)}\n\n{head}\n\n{best}"


def runs_data(runs: Sequence[NamedRun]) -> dict[str, Any]:
    """Return one run's numbers, or those of several under `runs`, each with its name."""
    found = [as_data(each.summary, each.run) for each in runs]
    if len(found) == 1:
        return found[0]
    return {"runs": [{"name": each.name} | data for each, data in zip(runs, found, strict=True)]}


def _runs_text(runs: Sequence[NamedRun]) -> str:
    """Return one run's report, or a line for each of several."""
    if len(runs) == 1:
        return as_text(runs[0].summary, runs[0].run)
    return as_sweep([(each.name, each.summary) for each in runs])


def runs_markdown(runs: Sequence[NamedRun]) -> str:
    """Return runs for a pull request, each under its name if there are several."""
    parts = [as_markdown(each.summary, each.run) for each in runs]
    heads = [f"### {each.name}\n\n" if len(runs) > 1 else "" for each in runs]
    return "\n".join(head + part + "\n" for head, part in zip(heads, parts, strict=True))


def verdicts_text(verdicts: Sequence[Verdict]) -> str:
    """Return verdicts for a terminal, after an empty line; nothing if there are none."""
    return "\n".join(["", *map(str, verdicts)]) if verdicts else ""


def verdicts_data(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return verdicts for JSON."""
    return [
        {"gate": each.gate.text, "passed": each.passed, "value": each.value, "why": each.why}
        for each in verdicts
    ]


def live_line(title: str, seen: Snapshot, per_second: float | None, width: int) -> str:
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
        "p50": f"p50 {_short_ms(seen.quantile_s(0.5))}",
        "p99": f"p99 {_short_ms(seen.quantile_s(0.99))}",
        "in flight": f"{seen.in_flight:,} in flight",
        "late": "" if seen.late_ns is None else f"{_short_ms(seen.late_ns / 1e9)} late",
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


def _short_ms(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    value = value_s * 1e3
    return f"{value:.2f} ms" if value < _PLAIN_MS else f"{value:,.0f} ms"


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison for JSON; changes as shares of the first run."""
    return {
        "confidence": CHANGE_CONFIDENCE,
        "differences": [asdict(each) for each in comparison.differences],
        "notes": list(comparison.notes),
    }


def comparison_text(comparison: Comparison) -> str:
    """Return a comparison for a terminal."""
    columns = ["before", "after", "change", f"{CHANGE_CONFIDENCE:.0%} interval", ""]
    lines = [_row("", columns, 17)]
    lines += [_row(each.name, _difference(each), 17) for each in comparison.differences]
    return "\n".join([*lines, *(f"note: {note}" for note in comparison.notes)])


def comparison_markdown(comparison: Comparison) -> str:
    """Return a comparison for a pull request."""
    header = ["", "before", "after", "change", f"{CHANGE_CONFIDENCE:.0%} interval", "verdict"]
    rows = [[each.name, *_difference(each)] for each in comparison.differences]
    notes = [f"- {note}" for note in comparison.notes]
    return "\n".join([_markdown_table(header, rows), "", *notes]).rstrip()


def gpus_text(usage: Sequence[Mapping[str, float]]) -> str:
    """Return how busy GPUs were in the mean, and their memory; nothing where none were seen."""
    seen = [each for each in usage if "gpus_busy" in each]
    if not seen:
        return ""
    busy = sum(each["gpus_busy"] for each in seen) / len(seen)
    most = max(each["gpu_memory_bytes"] for each in seen)
    return f"{busy:.2f} busy, {most / 1e6:,.0f} MB at most"


def rate(value: float | None) -> str:
    """Return a rate with its unit."""
    return _UNKNOWN if value is None else f"{value:,.1f}/s"


def ms(value_s: float | None) -> str:
    """Return seconds as milliseconds, without the unit."""
    return _UNKNOWN if value_s is None else f"{value_s * 1e3:.3f}"


def counted(errors: Mapping[str, int]) -> str:
    """Return how many there were of each kind."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items())) or "none"


def _numbers(found: Distribution | None) -> dict[str, float | None]:
    if found is None or found.mean_s is None:
        return {}
    named = {each.name: each.value_s for each in found.quantiles}
    return {"mean": found.mean_s, **named, "max": found.max_s}


def _table(summary: Summary) -> Iterator[str]:
    latency = summary.latency
    yield _row("ms", ["mean", *(each.name for each in latency.quantiles), "max"])
    yield _row("latency (from due)", _cells(latency))
    for name, which in (("  from", 0), ("  to", 1)):
        ends = [ms((each.low_s, each.high_s)[which]) for each in latency.quantiles]
        yield _row(f"{name}, at {CONFIDENCE:.0%}", ["", *ends, ""])
    yield _row("service (from sent)", _cells(summary.service))
    if summary.first_byte:
        yield _row("first byte", _cells(summary.first_byte))
    if summary.warmup and summary.warmup.count:
        yield _row("warm-up latency", _cells(summary.warmup))


def _too_few(latency: Distribution) -> list[str]:
    count = latency.count + latency.unfinished
    short = [each for each in latency.quantiles if count < each.needs]
    if not short:
        return []
    needs = ", ".join(f"{each.name} {each.needs:,}" for each in short)
    return [f"{_UNKNOWN} too few of {count:,} requests to say; needed: {needs}"]


def _details(summary: Summary, run: Run) -> Iterator[str]:
    if len(parts := parts_s(run)) > 2:  # noqa: PLR2004 (more than sent and answered)
        yield "mean latency of the whole run: " + ", ".join(
            f"{name} {ms(s)} ms" for name, s in parts.items()
        )
    seen = run.server.get("difference") or {}
    if batches := seen.get("batches"):
        yield (
            f"batches: {batches['count']:,} of {batches['mean_rows']:.2f} rows, "
            f"{batches['padding_share']:.1%} padding"
        )
    if usage := run.server.get("usage"):
        busy = sum(each["processors"] for each in usage) / len(usage)
        most = max(each["memory_bytes"] for each in usage)
        yield f"server process: {busy:.2f} processors busy, {most / 1e6:,.0f} MB at most"
        if gpus := gpus_text(usage):
            yield f"GPUs of the machine: {gpus}"
    if summary.poisoned:
        yield f"invalid requests sent on purpose: {counted(summary.poisoned)}"
    for mark in run.marks:
        yield f"at {mark.at_ns / 1e9:.2f} s: {mark.what}"
    yield answers_text(run)
    lag = f"99th percentile {ms(summary.lag_p99_s)} ms, at most {ms(summary.lag_max_s)} ms"
    yield f"lag of the generator: {lag}"


def _cells(found: Distribution) -> list[str]:
    return [ms(found.mean_s), *(ms(each.value_s) for each in found.quantiles), ms(found.max_s)]


def _intervals(found: Distribution) -> list[str]:
    return [
        _UNKNOWN if each.low_s is None else f"{ms(each.low_s)} to {ms(each.high_s)}"
        for each in found.quantiles
    ]


def _difference(each: Difference) -> list[str]:
    values = [
        f"{value:,.1f}/s" if each.name == "rate" else f"{ms(value)} ms"
        for value in (each.before, each.after)
    ]
    unknown = each.low is None or each.high is None
    interval = "too short" if unknown else f"{each.low:+.1%} to {each.high:+.1%}"
    return [*values, f"{each.change:+.1%}", interval, each.outcome]


def _row(name: str, cells: Sequence[str], width: int = 11) -> str:
    return (f"{name:<20}" + "".join(f"{cell:>{width}}" for cell in cells)).rstrip()


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
