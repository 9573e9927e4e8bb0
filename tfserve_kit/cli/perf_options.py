"""What the options of `tfkit perf` accept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from tfserve_kit.cli.options import signature_option
from tfserve_kit.cli.result_files import force_option

_file = click.Path(path_type=Path)
_positive = click.FloatRange(min=0, min_open=True)
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
    if first <= 0 or last <= 0:
        raise click.BadParameter(f"{value!r} is not FROM:TO, such as 10:500")
    return first, last


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
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
    click.option("--speed", type=_positive, metavar="FACTOR",
                 help="Replay speed multiplier."),
)  # fmt: skip
_WHEN = (
    click.option("--duration", "duration_s", type=_positive, default=10.0, show_default=True,
                 metavar="SECONDS", help="How long to send."),
    click.option("--requests", type=_count, metavar="N", help="Maximum number of requests."),
    click.option("--warmup", "warmup_s", type=click.FloatRange(min=0), metavar="SECONDS",
                 help="Warm-up to exclude; detected if not given."),
    click.option("--concurrency", callback=_counts, default="8", show_default=True, metavar="N,...",
                 help="Requests in flight; several, such as 1,8,32, are run one by one."),
    click.option("--rate", type=_positive, metavar="PER_SECOND",
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


def given_options(context: click.Context) -> frozenset[str]:
    """Return the names of the options that were not left out."""
    left_out = {ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP}
    return frozenset(
        name for name in context.params if context.get_parameter_source(name) not in left_out
    )
