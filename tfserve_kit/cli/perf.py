"""`tfkit perf`."""

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option, server_options
from tfserve_kit.cli.target import destination
from tfserve_kit.clients import Target, connect
from tfserve_kit.clients.classifier import choose_signature
from tfserve_kit.clients.images import image_input, prepare, read_file
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import environment, pacing, payloads, report, runner, samples, stats
from tfserve_kit.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature

_WARMUP_REQUESTS = 20


@click.command("perf")
@server_options
@click.option("--signature", default="", help="Signature; serving_default if left out.")
@click.option("--input", "image", type=click.Path(path_type=Path), metavar="IMAGE",
              help="Picture to send; random numbers if left out.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True,
              help="Rows in each request.")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(min=1), default=8, show_default=True,
              help="Senders: the requests in flight, at most.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="PER_SECOND",
              help="Send at this rate, whatever the server does.")  # fmt: skip
@click.option("--arrivals", type=click.Choice(["constant", "poisson"]), default="constant",
              show_default=True, help="Spacing of requests with --rate.")  # fmt: skip
@click.option("--duration", "duration_s", type=click.FloatRange(min=0, min_open=True), default=10.0,
              show_default=True, metavar="SECONDS", help="How long to send.")  # fmt: skip
@click.option("--samples", "samples_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Save every request's times as CSV.")  # fmt: skip
@json_option
def command(
    url: str | None,
    model: str | None,
    protocol: str,
    timeout_s: float,
    signature: str,
    image: Path | None,
    batch: int,
    concurrency: int,
    rate: float | None,
    arrivals: str,
    duration_s: float,
    samples_file: Path | None,
    as_json: bool,
) -> None:
    """Measure latency and throughput.

    Latency counts from the moment each request was due.
    """
    where = destination(url, protocol, model)
    target = Target(where.model, signature=signature)
    with connect(where.url) as client:
        found = client.metadata(target, timeout_s=timeout_s)
        chosen = choose_signature(found.signatures, signature)
        folder = where.base_path / str(found.version) if where.base_path else None
        inputs = _inputs(chosen, image, batch, folder)

        def send() -> None:
            client.predict(target, inputs, timeout_s=timeout_s)

        for _ in range(_WARMUP_REQUESTS):
            send()
        if rate is None:
            taken = runner.closed_loop(send, concurrency=concurrency, duration_s=duration_s)
        else:
            due = _due(arrivals, rate, duration_s)
            taken = runner.open_loop(send, due, concurrency=concurrency)
    if not taken:
        raise UsageError("no request was due", remedy="raise --rate or --duration")
    if samples_file:
        samples.write(taken, samples_file)
    summary, place = stats.summarize(taken), environment.describe()
    data = report.as_data(summary, place)
    output.result("perf", data, as_json=as_json, text=report.as_text(summary, place))


def _inputs(
    signature: Signature, image: Path | None, batch: int, folder: Path | None
) -> payloads.Inputs:
    if image is None:
        return payloads.random_inputs(signature, batch, seed=0)
    note = Preprocessing.read(folder) if folder else Preprocessing()
    wanted = image_input(signature, note)
    row = prepare(read_file(image), wanted, name=str(image))
    return {wanted.alias: np.stack([row] * batch)}


def _due(arrivals: str, rate: float, duration_s: float) -> Iterator[float]:
    if arrivals == "poisson":
        return pacing.poisson(rate, duration_s, seed=0)
    return pacing.constant(rate, duration_s)
