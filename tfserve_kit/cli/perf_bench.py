"""What `tfkit perf` needs before its clock starts: requests, a workload, an eye on the server."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfserve_kit.cli import perf_drills
from tfserve_kit.cli.perf_options import Asked
from tfserve_kit.cli.target import Destination, destination
from tfserve_kit.progress import Progress

if TYPE_CHECKING:  # numpy comes with them
    from tfserve_kit.clients.options import Options
    from tfserve_kit.perf.measuring import Bench
    from tfserve_kit.perf.metrics import Watch
    from tfserve_kit.perf.preparing import Prepared
    from tfserve_kit.perf.replay import Recorded
    from tfserve_kit.perf.usage import Look, Usage
    from tfserve_kit.perf.workload import Workload


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
    drill = perf_drills.command(asked.during, where, made.version)
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
    from tfserve_kit.perf import expectations, replay, requests
    from tfserve_kit.perf.preparing import Prepared

    target = Target(where.model, signature=asked.signature)
    with where.connect() as client:
        found = client.metadata(target, timeout_s=asked.timeout_s)
        log = replay.read(file, found.signatures, asked.signature)
        work = _paced(log, asked, work)
        calls = [(replace(target, signature=each.signature), each.inputs) for each in log]
        trial = client.predict(*calls[0], timeout_s=asked.timeout_s)
    called = [(choose_signature(found.signatures, each.signature), each.inputs) for each in log]
    expected = expectations.of_calls(called, trial.outputs)
    payloads = [
        requests.predict(work.protocol, where.url, *call, expects, work.options.headers)
        for call, expects in zip(calls, expected, strict=True)
    ]
    return Prepared(payloads, found.version, asked.signature), work


def _paced(log: "Sequence[Recorded]", asked: Asked, work: "Workload") -> "Workload":
    """Return a workload with the times of a log or, where it has none, with a rate's."""
    from tfserve_kit.perf import pacing

    times_s = [each.at_s for each in log if each.at_s is not None]
    asked.refuse_times(has_times=bool(times_s))
    if work.rate is None:
        due_ns = pacing.replay(times_s, asked.speed or 1.0)[: asked.requests]
    else:
        count = asked.requests or len(log)
        ample_s = (2 * count + 20) / work.rate  # random arrivals may take longer than the mean
        due_ns = pacing.due_ns(pacing.steps([work.rate], ample_s), work.arrivals)[:count]
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
    from tfserve_kit.perf import metrics, usage

    mine = perf_drills.serving(url)
    look = usage.with_gpus(_look(url)) if mine else None
    if asked.metrics_url:  # perhaps another server, which our headers are not for
        options = replace(options, headers={})
    read = metrics.reader(asked.metrics_url or (mine.endpoints.rest if mine else url), options)
    return lambda: metrics.Watch(read, look)


def _look(url: str) -> "Look":
    """Return what looks at the server that tfkit runs at an address, restarted or not."""
    from tfserve_kit.perf import usage

    @cache
    def of(pid: int, container_id: str) -> "Look":
        return usage.of_process(pid) if pid else usage.of_container(container_id)

    def look() -> "Usage | None":
        server = perf_drills.serving(url)
        return of(server.pid, server.container_id)() if server else None

    return look
