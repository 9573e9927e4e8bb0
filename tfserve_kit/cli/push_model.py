"""`tfkit push-model`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from tfserve_kit import processes
from tfserve_kit.cli import exit_codes, output
from tfserve_kit.cli.options import access_options, json_option
from tfserve_kit.cli.target import server_of
from tfserve_kit.clients import Client, Target
from tfserve_kit.errors import ServerFailed, UsageError
from tfserve_kit.progress import Progress
from tfserve_kit.repository import Gate, Pushed, Source, VersionChoice, push
from tfserve_kit.repository.intake import Limits, parse_size
from tfserve_kit.repository.push import Approve
from tfserve_kit.repository.remote import pin_line
from tfserve_kit.serving.access import Access
from tfserve_kit.serving.swap import SwapReport, Traffic
from tfserve_kit.serving.swap.delivery import (
    Delivery,
    Destination,
    push_and_wait,
    push_under_traffic,
)


@dataclass(frozen=True, slots=True)
class _Watch:
    """How a server is watched while it takes the version up."""

    wait: bool
    verify: bool
    inputs: tuple[Path, ...]
    rate: float
    rollback: bool
    url: str | None
    timeout_s: float
    access: Access


def _version(ctx: click.Context, param: click.Parameter, value: str) -> VersionChoice:
    del ctx, param
    if value == "next":
        return "next"
    if value == "epoch":
        return "epoch"
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not next, epoch or a whole number") from None


def _limits(ctx: click.Context, param: click.Parameter, value: str | None) -> Limits:
    del ctx, param
    return Limits() if value is None else Limits(max_size_bytes=parse_size(value))


def _file_options(*names: str, help: str) -> Callable[..., Any]:  # noqa: A002 (click's own name)
    kind = click.Path(exists=True, path_type=Path)
    return click.option(*names, multiple=True, metavar="FILE", type=kind, help=help)


@click.command("push-model")
@click.argument("place", metavar="SOURCE")
@click.option("--model", metavar="NAME", help="Model to push to: base path models/NAME.")
@click.option("--to", "base_path", metavar="BASE_PATH",
              help="Base path to push to, instead of models/NAME, or a gs:// one.")  # fmt: skip
@click.option("--version", default="next", show_default=True, callback=_version,
              metavar="next|epoch|N", help="Number of the new version.")  # fmt: skip
@click.option("--source-version", type=int, metavar="N",
              help="Of a folder of versions, take this one; the highest if left out.")  # fmt: skip
@click.option("--sha256", metavar="HEX", help="Refuse a file or download with another checksum.")
@click.option("--max-size", "limits", callback=_limits, metavar="SIZE",
              help="Largest model that is unpacked or downloaded, such as 500M.")  # fmt: skip
@click.option("--download-timeout", "download_s", default=3600.0, show_default=True,
              type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Longest time for a download as a whole.")  # fmt: skip
@click.option("--tag", default="serve", show_default=True, help="The graph a server will load.")
@click.option("--signature", "signatures", multiple=True, metavar="NAME",
              help="Refuse a model without this signature; may be repeated.")  # fmt: skip
@click.option("--allow-breaking", is_flag=True,
              help="Accept signatures that break callers of the version before.")  # fmt: skip
@click.option("--allow-op", "allow_ops", multiple=True, metavar="OP",
              help="Accept an operation that is refused, * for all; may be repeated.")  # fmt: skip
@_file_options("--smoke", "smoke_files", help="Before it is seen, ask the version this in a "
               "throw-away server: a picture, JSON, .npy or .npz; may be repeated.")  # fmt: skip
@click.option("--trust", is_flag=True, envvar="TFKIT_TRUST",
              help="Do not try the version out before it is seen.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait until a server has taken the version up.")
@click.option("--verify", is_flag=True,
              help="Send requests meanwhile, and fail if one of them notices.")  # fmt: skip
@_file_options("--input", "inputs", help="What --verify sends; random numbers if left out.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=50.0,
              show_default=True, metavar="PER_SECOND", help="Requests of --verify.")  # fmt: skip
@click.option("--rollback", is_flag=True,
              help="Go back to the version before if --wait or --verify fails.")  # fmt: skip
@click.option("--url", envvar="TFKIT_URL", metavar="URL",
              help="Server to watch; if left out, the one tfkit runs on it.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True),
              default=120.0, show_default=True, metavar="SECONDS",
              help="Longest wait for the server, and for a smoke test.")  # fmt: skip
@access_options
@json_option
def command(
    place: str,
    model: str | None,
    base_path: str | None,
    version: VersionChoice,
    source_version: int | None,
    sha256: str | None,
    limits: Limits,
    download_s: float,
    smoke_files: tuple[Path, ...],
    trust: bool,
    as_json: bool,
    tag: str,
    signatures: tuple[str, ...],
    allow_breaking: bool,
    allow_ops: tuple[str, ...],
    **watch: Any,
) -> int | None:
    """Add a model version to a base path, atomically.

    SOURCE is a SavedModel directory, a folder of versions, an archive (.zip, .tar, .tar.gz,
    .tar.zst), a .keras file, or a URL of one of these. A running server picks the new version up
    by itself; --wait and --verify watch it do so.

    Where tensorflow is installed, the version is tried out in a throw-away server before it is
    seen: loaded, warmed up, and sent zeros to each signature.
    """
    if base_path is None and model is None:
        raise UsageError("no destination", remedy="give --model NAME or --to BASE_PATH")
    base_path = base_path or f"models/{model}"
    to = base_path if "://" in base_path else Path(base_path)
    watching = _Watch(**watch)
    with processes.bounded_memory(), output.TerminalProgress() as progress:
        todo = partial(
            push,
            Source(place, source_version, sha256, replace(limits, max_download_s=download_s)),
            to,
            version=version,
            gate=Gate(tag, signatures, allow_breaking=allow_breaking, allow_ops=allow_ops),
            approve=_approval(
                smoke_files,
                signatures,
                trust=trust,
                options={
                    "tag": tag,
                    "timeout_s": watching.timeout_s,
                    "progress": progress,
                },
            ),
            progress=progress,
        )
        delivery = _deliver(todo, watching, model, to, progress)
    output.result("push", _data(delivery), as_json=as_json, text=_text(delivery))
    return _exit_code(delivery.report)


def _approval(
    files: Sequence[Path], signatures: Sequence[str], *, trust: bool, options: Mapping[str, Any]
) -> Approve | None:
    """Return what tries the staged version out, None where nothing of it is wanted."""
    if trust and not files:
        return None
    from tfserve_kit.serving import smoke

    act = smoke.smoke if trust else smoke.trial
    return partial(act, files=files, signature=signatures[0] if signatures else "", **options)


def _deliver(
    todo: Callable[[], Pushed],
    watch: _Watch,
    model: str | None,
    place: Path | str,
    progress: Progress,
) -> Delivery:
    """Push, and watch a server take the version up if that was asked for."""
    if not (watch.wait or watch.verify):
        if watch.rollback:
            raise UsageError("--rollback needs --wait or --verify")
        return Delivery(todo())
    where = server_of(place, watch.url, model, watch.access)
    with where.connect(retries=0) as client:
        to = Destination(client, where.model, where.base_path)
        if not watch.verify:
            return push_and_wait(
                todo, to, roll_back=watch.rollback, timeout_s=watch.timeout_s, progress=progress
            )
        traffic = _traffic(client, where.model, where.base_path, watch)
        return push_under_traffic(todo, to, traffic, roll_back=watch.rollback, progress=progress)


def _traffic(client: Client, model: str, base_path: Path | None, watch: _Watch) -> Traffic:
    inputs = None
    if watch.inputs:
        from tfserve_kit.clients.classifier import choose_signature
        from tfserve_kit.clients.inputs import read_inputs
        from tfserve_kit.pictures.graph import PictureGraph
        from tfserve_kit.pictures.preprocessing import Preprocessing

        found = client.metadata(Target(model))
        signature = choose_signature(found.signatures, "")
        version_dir = base_path / str(found.version) if base_path else None
        note = Preprocessing.read(version_dir) if version_dir else Preprocessing()
        graph = PictureGraph(version_dir, signature.name)
        inputs = read_inputs(watch.inputs, signature, note, graph=graph)
    return Traffic(rate=watch.rate, inputs=inputs, swap_timeout_s=watch.timeout_s)


def _exit_code(report: SwapReport | None) -> int | None:
    if report is None or report.passed:
        return None
    return exit_codes.exit_code(ServerFailed("")) if report.failure else exit_codes.GATE_FAILED


def _data(delivery: Delivery) -> dict[str, Any]:
    pushed = delivery.pushed
    data: dict[str, Any] = {
        "version": pushed.version,
        "path": pushed.place,
        "atomic": pushed.atomic,
        "size_bytes": pushed.size_bytes,
        "remarks": [asdict(remark) for remark in pushed.remarks],
    }
    if delivery.time is not None:
        data["available_s"] = delivery.time.available_s
    if delivery.report is not None:
        data["swap"] = delivery.report.as_data()
    return data


def _text(delivery: Delivery) -> str:
    pushed = delivery.pushed
    lines = [f"Pushed version {pushed.version}: {pushed.path} ({pushed.size_bytes:,} bytes)"]
    if not pushed.atomic:
        lines.append(f"Serve it by name, for a store cannot rename: {pin_line(pushed.version)}")
    if delivery.time is not None:
        lines.append(f"Version {pushed.version} serves, after {delivery.time.available_s:.1f} s")
    if delivery.report is not None:
        lines.append(delivery.report.as_text())
    return "\n".join(lines)
