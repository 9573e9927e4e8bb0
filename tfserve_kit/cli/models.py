"""Commands about models on the disk, and what a server says of one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from tfserve_kit import processes, savedmodel, strict_json
from tfserve_kit.cli import exits, options, output
from tfserve_kit.cli.options import (
    ServerChoice,
    access_options,
    json_option,
    positive,
    server_options,
    version_options,
)
from tfserve_kit.cli.target import base_path_of, destination, server_of
from tfserve_kit.errors import (
    Problem,
    PushRefused,
    Severity,
    UsageError,
    listed,
)
from tfserve_kit.progress import Progress
from tfserve_kit.repository import (
    Gate,
    Pushed,
    Source,
    Version,
    VersionChoice,
    push,
    push_to_places,
    versions,
)
from tfserve_kit.repository.disk import translate_os_errors
from tfserve_kit.repository.inspection import Inspection, inspect
from tfserve_kit.repository.intake import Limits, parse_size
from tfserve_kit.repository.locate import find_version
from tfserve_kit.repository.manifest import verify
from tfserve_kit.repository.object_store import pin_line
from tfserve_kit.repository.versions import choose_versions
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.savedmodel.scan import Contents, Scan
from tfserve_kit.savedmodel.signatures import obstacles
from tfserve_kit.savedmodel.warmup import read_sizes
from tfserve_kit.serving.access import Access, ServedModel

if TYPE_CHECKING:  # they are slow to import, and not every command needs them
    from tfserve_kit.repository.push import Approve
    from tfserve_kit.repository.shells import Place
    from tfserve_kit.serving.delivery import Delivered
    from tfserve_kit.serving.swap import SwapReport, Traffic
    from tfserve_kit.serving.waiting import SwapTime


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

    @property
    def is_wanted(self) -> bool:
        """Whether a server is watched at all."""
        return self.wait or self.verify

    def traffic(self) -> "Traffic | None":
        """Return what is sent meanwhile; None where nothing is."""
        from tfserve_kit.serving.swap import Traffic

        if not self.verify:
            return None
        return Traffic(self.rate, files=self.inputs, swap_timeout_s=self.timeout_s)


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
@click.argument("source", metavar="SOURCE")
@click.option("--model", metavar="NAME", help="Model to push to: base path models/NAME.")
@click.option("--to", metavar="BASE_PATH",
              help="Base path or gs:// URL to push to, instead of models/NAME.")  # fmt: skip
@click.option("--via", "commands", multiple=True, metavar="COMMAND",
              help="Push through a command that runs a shell elsewhere, such as 'ssh gpu-1' or "
              "'kubectl exec -i writer --'; repeated: to all of them or none.")  # fmt: skip
@click.option("--at", "servers", multiple=True, metavar="URL",
              help="Server of each --via, in their order, for --wait and --verify; "
              "- for none.")  # fmt: skip
@click.option("--wave", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="How many --via switch at once.")  # fmt: skip
@click.option("--version", default="next", show_default=True, callback=_version,
              metavar="next|epoch|N", help="Number of the new version.")  # fmt: skip
@click.option("--source-version", type=int, metavar="N",
              help="Version to take from a folder of versions; default: the highest.")  # fmt: skip
@click.option("--sha256", metavar="HEX", help="Refuse a file with another checksum.")
@click.option("--max-size", "limits", callback=_limits, metavar="SIZE",
              help="Maximum size of an unpacked or downloaded model, such as 500M.")  # fmt: skip
@click.option("--download-timeout", "download_s", default=3600.0, show_default=True,
              type=positive, metavar="SECONDS",
              help="Maximum time for a whole download.")  # fmt: skip
@click.option("--tag", default="serve", show_default=True, help="Tag of the graph to load.")
@click.option("--signature", "signatures", multiple=True, metavar="NAME",
              help="Refuse a model without this signature; may be repeated.")  # fmt: skip
@click.option("--allow-breaking", is_flag=True,
              help="Accept signatures that break callers of the previous version.")  # fmt: skip
@click.option("--allow-op", "allow_ops", multiple=True, metavar="OP",
              help="Accept a refused operation, * for all; may be repeated.")  # fmt: skip
@_file_options("--smoke", "smoke_files", help="Before publishing, send this request to a "
               "temporary server: a picture, JSON, .npy or .npz; may be repeated.")  # fmt: skip
@click.option("--trust", is_flag=True, envvar="TFKIT_TRUST",
              help="Do not test the version before publishing it.")  # fmt: skip
@click.option("--require-memory", is_flag=True,
              help="Refuse a version for which the running server has no memory beside the one in "
              "service, instead of saying so.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait until a server has loaded the version.")
@click.option("--verify", is_flag=True,
              help="Send requests during the swap; fail if any is lost or wrong.")  # fmt: skip
@_file_options("--input", "inputs", help="Input of --verify; default: random numbers.")
@click.option("--rate", type=positive, default=50.0,
              show_default=True, metavar="PER_SECOND", help="Rate of --verify.")  # fmt: skip
@click.option("--rollback", is_flag=True,
              help="Roll back to the previous version if --wait or --verify fails.")  # fmt: skip
@options.url_option("Server to watch, repeated for a fleet; default: that of the base path.")
@click.option("--timeout", "timeout_s", type=positive,
              default=120.0, show_default=True, metavar="SECONDS",
              help="Maximum wait for the server, and for each smoke test.")  # fmt: skip
@access_options
@json_option
def push_model_command(
    source: str,
    model: str | None,
    to: str | None,
    commands: tuple[str, ...],
    servers: tuple[str, ...],
    wave: int,
    version: VersionChoice,
    source_version: int | None,
    sha256: str | None,
    limits: Limits,
    download_s: float,
    smoke_files: tuple[Path, ...],
    trust: bool,
    require_memory: bool,
    as_json: bool,
    tag: str,
    signatures: tuple[str, ...],
    allow_breaking: bool,
    allow_ops: tuple[str, ...],
    **watch: Any,
) -> int:
    """Add a model version to a base path, atomically.

    SOURCE is a SavedModel directory, a folder of versions, an archive (.zip, .tar, .tar.gz,
    .tar.zst), a .keras file, a model that MLflow saved with TensorFlow or Keras, or a URL of one
    of these. A running server picks the new version up
    by itself; --wait and --verify watch it do so.

    Where tensorflow is installed, the version is first tested in a temporary server: loaded, warmed
    up, and sent zeros to each signature.

    With --via the base path is on the other side of a command. The version is copied to all sides
    first, becomes visible in one wave after the other, and is taken back everywhere if --wait or
    --verify fails in one.
    """
    if to is None and model is None:
        raise UsageError(
            "no destination: neither --model nor --to is given",
            remedy="give --model NAME or --to BASE_PATH",
        )
    watching = _Watch(**watch)
    place = to or f"models/{model}"
    limits = replace(limits, max_download_s=download_s)
    with processes.bounded_memory(), output.TerminalProgress() as progress:
        tried = {"tag": tag, "timeout_s": watching.timeout_s, "progress": progress}
        given = Source(source, source_version, sha256, limits)
        conditions: dict[str, Any] = {
            "version": version,
            "gate": Gate(tag, signatures, allow_breaking=allow_breaking, allow_ops=allow_ops),
            "approve": _trial(smoke_files, signatures, is_trusted=trust, **tried),
            "progress": progress,
        }
        if commands or servers:
            if require_memory:
                raise UsageError(
                    "--require-memory with --via", remedy="it looks at servers of this machine only"
                )
            far = _Far(commands, servers, wave, place, model or PurePosixPath(place).name)
            pushing_far = partial(push_to_places, given, **conditions)
            return _show_far(*_deliver_far(pushing_far, far, watching, progress), as_json=as_json)
        base_path = _base_path(place)
        conditions["approve"] = _fitting(base_path, conditions["approve"], require_memory)
        pushing = partial(push, given, base_path, **conditions)
        done = _deliver(pushing, base_path, model, watching, progress)
    output.result("push", _push_data(*done), as_json=as_json, text=_push_text(*done))
    return _swap_code(done[2])


def _swap_code(report: "SwapReport | None") -> int:
    if report is None or report.passed:
        return exits.OK
    return exits.SERVER_FAILED if report.failure else exits.GATE_FAILED


@dataclass(frozen=True, slots=True)
class _Far:
    """Places behind commands, and what is pushed there."""

    commands: tuple[str, ...]
    servers: tuple[str, ...]
    wave: int
    base_path: str
    model: str


def _deliver_far(
    pushing: Callable[..., object], far: _Far, watch: _Watch, progress: Progress
) -> "tuple[Mapping[Place, Delivered], str]":
    """Push through commands, and watch the servers behind them where that was asked for."""
    from tfserve_kit.serving import delivery

    if watch.url is not None:
        raise UsageError("--url with --via", remedy="name the server of each --via with --at")
    servers = delivery.pair_places(
        far.commands,
        far.servers,
        far.base_path,
        lambda url: server_of(far.base_path, url, far.model, watch.access),
        is_watched=watch.is_wanted,
    )
    return delivery.push_in_waves(
        partial(pushing, list(servers)),
        servers,
        wave=far.wave,
        traffic=watch.traffic(),
        timeout_s=watch.timeout_s,
        progress=progress,
    )


def _show_far(done: "Mapping[Place, Delivered]", failure: str, *, as_json: bool) -> int:
    data = {
        "places": [{"via": place.command, **_push_data(*each)} for place, each in done.items()],
        "failure": failure,
    }
    lines = [f"{place.command}: {_push_text(*each)}" for place, each in done.items()]
    if failure:
        lines.append(f"Taken back: {failure}")
    output.result("push", data, as_json=as_json, text="\n".join(lines))
    return max(_swap_code(each[2]) for each in done.values())


def _base_path(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def _trial(
    files: Sequence[Path], signatures: Sequence[str], *, is_trusted: bool, **options: Any
) -> "Approve | None":
    """Return what tests the staged version, None where no test is wanted."""
    if is_trusted and not files:
        return None
    from tfserve_kit.serving.smoke import trial

    signature = signatures[0] if signatures else ""
    return partial(trial, files=files, signature=signature, is_trusted=is_trusted, **options)


def _fitting(base_path: Path | str, approve: "Approve | None", is_required: bool) -> "Approve":
    """Return what looks for memory beside the running server, and then approves as before."""
    from tfserve_kit.serving.delivery import check_memory

    def both(version_dir: Path) -> tuple[Problem, ...]:
        remarks = check_memory(version_dir, base_path, is_required=is_required)
        return (*remarks, *((approve and approve(version_dir)) or ()))

    return both


def _deliver(
    pushing: Callable[[], Pushed],
    base_path: Path | str,
    model: str | None,
    watch: _Watch,
    progress: Progress,
) -> "Delivered":
    """Push, and watch a server take the version up if that was asked for: wait, or prove it."""
    from tfserve_kit.serving import delivery

    if watch.rollback and not watch.is_wanted:
        raise UsageError(
            "--rollback needs --wait or --verify",
            remedy="add --verify, which proves the new version under traffic, or --wait",
        )
    return delivery.deliver(
        pushing,
        server_of(base_path, watch.url, model, watch.access) if watch.is_wanted else None,
        watch.traffic(),
        roll_back=watch.rollback,
        timeout_s=watch.timeout_s,
        progress=progress,
    )


def _push_data(
    pushed: Pushed, times: "Mapping[str, SwapTime]", report: "SwapReport | None"
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "version": pushed.version,
        "path": pushed.place,
        "atomic": pushed.atomic,
        "size_bytes": pushed.size_bytes,
        "remarks": [_problem_data(remark) for remark in pushed.remarks],
    }
    if took := {name: each.available_s for name, each in times.items()}:
        data |= {"available_s": max(took.values()), "replicas": took}
    if report is not None:
        data["swap"] = report.as_data()
    return data


def _push_text(pushed: Pushed, times: "Mapping[str, SwapTime]", report: "SwapReport | None") -> str:
    lines = [f"Pushed version {pushed.version}: {pushed.path} ({pushed.size_bytes:,} bytes)"]
    if not pushed.atomic:
        lines.append(f"Serve it by name, for a store cannot rename: {pin_line(pushed.version)}")
    if took := {name: each.available_s for name, each in times.items()}:
        lines.append(f"Version {pushed.version} serves, after {max(took.values()):.1f} s")
        if len(took) > 1:
            lines += [f"  {name} after {each:.1f} s" for name, each in took.items()]
    if report is not None:
        lines.append(report.as_text())
    return "\n".join(lines)


@click.command("versions")
@click.argument("base_path")
@json_option
def versions_command(base_path: str, as_json: bool) -> None:
    """List the versions in a base path.

    Shows whether each is complete. BASE_PATH is the folder that holds the version folders; a
    bare model name means models/NAME. It may be the URL of an object store (gs://...).
    """
    rows = (
        _remote_rows(base_path)
        if "://" in base_path
        else [_version_row(each) for each in choose_versions(base_path_of(Path(base_path)))]
    )
    text = output.table(
        ("VERSION", "STATE", "PATH"),
        [(row["version"], row["state"], row["path"]) for row in rows],
    )
    output.result("versions", rows, as_json=as_json, text=text)


def _remote_rows(url: str) -> list[dict[str, object]]:
    from tfserve_kit.repository import object_store

    return [
        {
            "version": number,
            "state": "complete" if is_complete else f"{savedmodel.GRAPH_FILE}: is missing",
            "path": shown,
        }
        for number, shown, is_complete in object_store.remote_versions(url)
    ]


def _version_row(version: Version) -> dict[str, object]:
    found = savedmodel.problems(version.path)
    return {
        "version": version.number,
        "state": "; ".join(map(str, found)) if found else "complete",
        "path": str(version.path),
    }


@click.command("verify")
@click.argument("base_path", type=click.Path(path_type=Path))
@click.option("--version", "numbers", type=int, multiple=True, metavar="N",
              help="Check only this version; may be repeated.")  # fmt: skip
@json_option
def verify_command(base_path: Path, numbers: tuple[int, ...], as_json: bool) -> int:
    """Check versions against what was pushed.

    Reads every byte, and compares it with the checksums stored with the version. BASE_PATH is the
    folder that holds the version folders; a bare model name means models/NAME.
    """
    with output.TerminalProgress() as progress:
        chosen = choose_versions(base_path_of(base_path), numbers)
        rows = [_verify_row(version, progress) for version in chosen]
    text = output.table(("VERSION", "STATE"), [(row["version"], _state(row)) for row in rows])
    output.result("verify", rows, as_json=as_json, text=text)
    damaged = any(row["problems"] for row in rows)
    return exits.PUSH_REFUSED if damaged else exits.OK


def _verify_row(version: Version, progress: Progress) -> dict[str, Any]:
    progress.step(f"reading version {version.number}")
    manifest, found = verify(version.path, progress)
    return {
        "version": version.number,
        "pushed_at": manifest.pushed_at if manifest else None,
        "source": manifest.source if manifest else None,
        "problems": [_problem_data(problem) for problem in found],
    }


def _state(row: Mapping[str, Any]) -> str:
    if row["problems"]:
        return "; ".join(str(Problem(**problem)) for problem in row["problems"])
    pushed = f"as pushed {row['pushed_at']} from {row['source']}"
    return pushed if row["pushed_at"] else "unknown: it has no manifest (tfkit did not push it)"


@click.command("rollback")
@click.argument("base_path", type=click.Path(path_type=Path))
@click.option("--to", type=int, metavar="N",
              help="Version to go back to; default: the second highest.")  # fmt: skip
@click.option("--restore", type=int, metavar="N",
              help="Bring a retired version back instead.")  # fmt: skip
@click.option("--wait/--no-wait", "waits", default=True, show_default=True,
              help="Wait until the servers have switched.")  # fmt: skip
@options.url_option("Server to wait for, repeated for a fleet; default: those that tfkit runs.",
                    envvar=None)  # fmt: skip
@click.option("--model", metavar="NAME",
              help="Name of the model at --url; default: the name of the folder.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=positive, default=120.0,
              show_default=True, metavar="SECONDS", help="Maximum wait.")  # fmt: skip
@click.option("--force", is_flag=True,
              help="Also retire versions that a server labels or pins.")  # fmt: skip
@access_options
@json_option
def rollback_command(
    base_path: Path,
    to: int | None,
    restore: int | None,
    waits: bool,
    url: str | None,
    model: str | None,
    timeout_s: float,
    force: bool,
    access: Access,
    as_json: bool,
) -> None:
    """Go back to an earlier version of a model.

    Takes the versions above it out of service by renaming them; nothing is deleted, and a server
    loads the earlier one before it lets go of the later one. Where a server's labels say what is
    served, use `tfkit promote` instead. BASE_PATH is the folder that holds the version folders; a
    bare model name means models/NAME.
    """
    from tfserve_kit.serving.rollback import bring_back, roll_back

    base_path = base_path_of(base_path)
    places = _places(base_path, waits, url, model, access)
    with output.TerminalProgress() as progress:
        if restore is None:
            version, retired, found = roll_back(
                base_path, to, places=places, access=access, timeout_s=timeout_s, is_forced=force,
                progress=progress,
            )  # fmt: skip
        elif to is not None:
            raise UsageError("give --to or --restore, not both")
        else:
            version, retired = restore, []
            found = bring_back(
                base_path, restore, places=places, access=access, timeout_s=timeout_s,
                progress=progress,
            )  # fmt: skip
    data = {
        "version": version,
        "retired": retired,
        "restored": [] if restore is None else [restore],
        "servers": [place.url for place in found],
    }
    did = f"retired {', '.join(map(str, retired))}" if retired else f"restored {version}"
    where = ", ".join(f"{place.model!r} at {place.url}" for place in found)
    text = f"Version {version}: {did}; " + (f"served as {where}" if where else "not waited")
    output.result("rollback", data, as_json=as_json, text=text)


def _places(
    base_path: Path, waits: bool, url: str | None, model: str | None, access: Access
) -> list[ServedModel] | None:
    """Return where to wait: nowhere, at the address given, or None for our own servers."""
    if not waits:
        return []
    if url is None:
        return None
    return [server_of(base_path.absolute(), url, model, access)]


@click.command("prune")
@click.argument("base_path", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(min=1), required=True, metavar="N",
              help="Number of highest versions to keep.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only show what would be deleted.")
@json_option
def prune_command(base_path: Path, keep: int, dry_run: bool, as_json: bool) -> None:
    """Delete the oldest versions of a model.

    What a running server serves stays, and so does what a server's deployment or tfkit.toml labels,
    pins or loads as one of the latest. Incomplete versions stay too; retired ones go once they are
    older than all that stay. BASE_PATH is the folder that holds the version folders; a bare model
    name means models/NAME.
    """
    from tfserve_kit import deployment
    from tfserve_kit.serving.rollback import claims

    base_path = base_path_of(base_path)
    file = Path(deployment.DEFAULT_FILE)
    with output.TerminalProgress() as progress:
        needed = claims(
            base_path, deployment.load(file) if file.is_file() else None, progress=progress
        )
    gone = versions.prune(base_path, keep, {claim.version for claim in needed}, dry_run=dry_run)
    did = "Would delete" if dry_run else "Deleted"
    numbers = ", ".join(map(str, gone)) or "no version"
    lines = [f"{did} {numbers} of {base_path}", *(f"  {claim}" for claim in needed)]
    data = {
        "deleted": gone,
        "dry_run": dry_run,
        "needed": [
            {"version": claim.version, "who": claim.who, "reason": claim.reason} for claim in needed
        ],
    }
    output.result("prune", data, as_json=as_json, text="\n".join(lines))


_TOP_OPS = 10
_COLUMNS = ("SIGNATURE", "BATCHES", "DIRECTION", "NAME", "TYPE", "TENSOR")


@click.command("inspect")
@click.argument("place", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="OTHER",
              help="Show what changes for callers compared with another version.")  # fmt: skip
@click.option("--ops", "all_ops", is_flag=True, help="Show all operations, not just the top ones.")
@click.option("--tag", default="serve", show_default=True, help="Tag of the graph to load.")
@click.option("--strict", is_flag=True, help="Fail if a push would be refused.")
@json_option
def inspect_command(
    place: Path, against: Path | None, all_ops: bool, tag: str, strict: bool, as_json: bool
) -> None:
    """Show what a model contains and what a push would report.

    Nothing of the model is run. MODEL is a SavedModel directory, a base path, whose highest version
    is meant, or the name of a model below models/.
    """
    with processes.bounded_memory(), translate_os_errors("inspect", place):
        found = inspect(
            find_version(place), Gate(tag=tag), against=against and find_version(against)
        )
    if strict and found.refusals:
        lines = listed(found.refusals)
        raise PushRefused(f"a push of {found.path} would be refused:{lines}")
    text = "\n\n".join(_sections(found, None if all_ops else _TOP_OPS))
    output.result("inspection", _inspect_data(found), as_json=as_json, text=text)


def _sections(found: Inspection, most_ops: int | None) -> list[str]:
    sections: list[str] = []
    if found.contents is not None and found.scan is not None:
        sections = _model_sections(found.contents, found.scan, most_ops)
    if found.problems:
        sections.append(output.findings(found.problems))
    if found.changes:
        changed = [
            ("breaks" if each.severity is Severity.ERROR else "fits", each.path, each.message)
            for each in found.changes
        ]
        sections.append(output.table(("CALLERS", "WHERE", "WHAT"), changed))
    return [str(found.path), *sections]


def _model_sections(contents: Contents, scan: Scan, most_ops: int | None) -> list[str]:
    counts = list(scan.operations.items())
    ops = output.table(("OPERATION", "NODES"), counts[:most_ops])
    if most_ops is not None and len(counts) > most_ops:
        ops += f"\n({len(counts) - most_ops} more with --ops)"
    signatures = [list(row.values()) for row in _signature_rows(contents)]
    hindered = [
        (name, why) for name, each in contents.signatures.items() for why in _hindered(each)
    ]
    whys = [output.table(("SIGNATURE", "CANNOT BE BATCHED, BECAUSE"), hindered)] if hindered else []
    facts = output.table(("WHAT", "VALUE"), _facts(contents, scan))
    return [facts, output.table(_COLUMNS, signatures), *whys, ops]


def _hindered(signature: Signature) -> list[str]:
    """Return why a server cannot put requests for a signature into one batch."""
    return list(obstacles(signature))


def _facts(contents: Contents, scan: Scan) -> list[tuple[str, object]]:
    return [
        ("tags", ", ".join(contents.tags)),
        ("written by", f"tensorflow {contents.tensorflow_version or '(does not say)'}"),
        ("parameters", f"{contents.parameters:,} ({contents.parameter_bytes:,} bytes)"),
        ("functions", scan.functions),
        ("assets", ", ".join(contents.assets) or "none"),
        ("warm-up requests", _yes_no(contents.warmup)),
        ("preprocessing note", _yes_no(contents.note)),
        ("fingerprint", _yes_no(contents.fingerprint)),
    ]


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _signature_rows(contents: Contents) -> list[dict[str, str]]:
    return [
        {
            "signature": signature.name,
            "batches": _yes_no(not _hindered(signature)),
            "direction": direction,
            "name": alias,
            "type": str(spec) + (", optional" if alias in optional else ""),
            "tensor": spec.name,
        }
        for signature in contents.signatures.values()
        for direction, specs, optional in (
            ("in", signature.inputs, signature.optional),
            ("out", signature.outputs, frozenset[str]()),
        )
        for alias, spec in specs.items()
    ]


def _finding(problem: Problem) -> dict[str, str]:
    return {
        "severity": problem.severity,
        "where": problem.path,
        "what": problem.message,
        "remedy": problem.remedy,
    }


def _problem_data(problem: Problem) -> dict[str, str]:
    return {"path": problem.path, "message": problem.message, "remedy": problem.remedy}


def _inspect_data(found: Inspection) -> dict[str, Any]:
    findings = [_finding(each) for each in found.problems]
    changed = [
        {"breaking": each.severity is Severity.ERROR, "where": each.path, "what": each.message}
        for each in found.changes
    ]
    data = {"path": str(found.path), "findings": findings, "changes": changed}
    if found.contents is None or found.scan is None:
        return data
    return data | _contents_data(found.contents, found.scan)


def _contents_data(contents: Contents, scan: Scan) -> dict[str, Any]:
    return {
        "tags": list(contents.tags),
        "tensorflow_version": contents.tensorflow_version,
        "signatures": {
            name: {
                "method_name": signature.method_name,
                "batchable": not (hindered := _hindered(signature)),
                **({"not_batchable_because": hindered} if hindered else {}),
                "inputs": _tensors(signature.inputs),
                "outputs": _tensors(signature.outputs),
                "optional": sorted(signature.optional),
            }
            for name, signature in contents.signatures.items()
        },
        "parameters": contents.parameters,
        "parameter_bytes": contents.parameter_bytes,
        "variables": {
            name: {
                "dtype": variable.dtype.name if variable.dtype else None,
                "shape": list(variable.shape),
                "size_bytes": variable.size_bytes,
            }
            for name, variable in contents.variables.items()
        },
        "assets": list(contents.assets),
        "warmup": contents.warmup,
        "note": contents.note,
        "fingerprint": contents.fingerprint,
        "functions": scan.functions,
        "operations": dict(scan.operations),
    }


def _tensors(specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    return {
        alias: {
            "dtype": spec.dtype.name if spec.dtype else None,
            "shape": None if spec.shape is None else list(spec.shape),
            "tensor": spec.name,
        }
        for alias, spec in specs.items()
    }


@click.command("metadata")
@server_options
@version_options
@click.option("--openapi", is_flag=True,
              help="Print the REST API of the model as OpenAPI 3.1 instead.")  # fmt: skip
@json_option
def metadata_command(
    server: ServerChoice,
    timeout_s: float,
    version: int | None,
    label: str | None,
    openapi: bool,
    as_json: bool,
) -> None:
    """Show the signatures of a model.

    That is each input and output with its type and shape.
    """
    where = destination(*server)
    target = where.target(version, label)
    with where.connect() as client:
        found = client.metadata(target, timeout_s=timeout_s)
    if openapi:
        from tfserve_kit.clients.openapi import document

        url = where.url if where.url.startswith("http") else ""
        described = document(target, found.version, found.signatures, url)
        text = strict_json.dumps(described, indent=2)
        output.result("openapi", described, as_json=as_json, text=text)
        return
    rows = [row for signature in found.signatures.values() for row in _metadata_rows(signature)]
    columns = ("signature", "direction", "name", "type", "tensor")
    who = "" if found.replica == where.url else f" at {found.replica}"
    text = f"{where.model} version {found.version}{who}\n" + output.table(
        [column.upper() for column in columns], rows
    )
    data = {
        "model": where.model,
        "version": found.version,
        "replica": found.replica,
        "tensors": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    output.result("metadata", data, as_json=as_json, text=text)


def _metadata_rows(signature: Signature) -> list[tuple[str, str, str, str, str]]:
    return [
        (signature.name, direction, alias, str(spec), spec.name)
        for direction, specs in (("in", signature.inputs), ("out", signature.outputs))
        for alias, spec in specs.items()
    ]


@click.command("warmup")
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--input", "inputs", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Picture, .json (body of a REST request), .npy or .npz; may be "
              "repeated.")  # fmt: skip
@click.option("--random", "at_random", is_flag=True,
              help="Use random numbers; the default without --input.")  # fmt: skip
@click.option("--batch-size", "batch_sizes", type=click.IntRange(min=1), multiple=True, metavar="N",
              help="Rows in a request; may be repeated; default: 1.")  # fmt: skip
@click.option("--batching-config", type=click.Path(path_type=Path), metavar="FILE",
              help="Take the batch sizes from the server's batching parameters.")  # fmt: skip
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE",
              help="Take the batch sizes from the deployment file's [batching].")  # fmt: skip
@click.option("--signature", "names", multiple=True, metavar="NAME",
              help="Signature to call; may be repeated; default: serving_default.")  # fmt: skip
@click.option("--all-signatures", is_flag=True, help="Call every signature.")
@click.option("--replace", is_flag=True, help="Replace existing warm-up requests.")
@click.option("--in-place", is_flag=True, help="Allow changing a version in a base path.")
@click.option("--check", is_flag=True, help="Only check the stored requests; write nothing.")
@json_option
def warmup_command(
    model: Path,
    inputs: tuple[Path, ...],
    at_random: bool,
    batch_sizes: tuple[int, ...],
    batching_config: Path | None,
    config: Path | None,
    names: tuple[str, ...],
    all_signatures: bool,
    replace: bool,
    in_place: bool,
    check: bool,
    as_json: bool,
) -> None:
    """Store warm-up requests with a model, for servers to replay.

    MODEL is a SavedModel directory about to be pushed. Without --input, the requests hold random
    numbers: floats from 0 to 1, integers from 0 to 9.
    """
    from tfserve_kit.serving import warmup

    if check:
        file, count = warmup.check(model)
        data = {"file": str(file.absolute()), "records": count}
        text = f"{file}: {_counted(count)}, valid" if count else f"{model} has no warm-up requests."
        output.result("warmup-check", data, as_json=as_json, text=text)
        return
    if at_random and inputs:
        raise UsageError("give --random or --input, not both")
    if names and all_signatures:
        raise UsageError("give --signature or --all-signatures, not both")
    if not in_place:
        warmup.refuse_version(model)
    file, signatures, rows, count = warmup.store(
        model,
        _sizes(batch_sizes, batching_config, config),
        names=None if all_signatures else names,
        files=inputs,
        replace=replace,
        tell=output.note,
    )
    data = {
        "file": str(file.absolute()),
        "signatures": signatures,
        "batch_sizes": rows,
        "records": count,
        "size_bytes": file.stat().st_size,
    }
    output.result("warmup", data, as_json=as_json, text=_warmup_text(data))


def _sizes(
    given: Sequence[int], batching_config: Path | None, config: Path | None
) -> tuple[int, ...]:
    """Return the batch sizes that the options ask for, each once."""
    if sum(map(bool, (given, batching_config, config))) > 1:
        raise UsageError("give one of --batch-size, --batching-config and --config")
    sizes = tuple(given) or (1,)
    if batching_config:
        sizes = read_sizes(batching_config)
    elif config:
        batching = options.load_deployment(config, ()).batching
        largest = (batching.max_batch_size,) if batching and batching.max_batch_size else ()
        sizes = (batching.allowed_batch_sizes if batching else ()) or largest
    if not sizes:
        raise UsageError(
            f"{batching_config or config} sets neither allowed_batch_sizes nor max_batch_size",
            remedy="give --batch-size",
        )
    return tuple(dict.fromkeys(sizes))


def _warmup_text(data: Mapping[str, Any]) -> str:
    sizes = ", ".join(map(str, data["batch_sizes"]))
    rows = f", batch sizes {sizes}" if sizes else ""
    return f"Wrote {data['file']}: {_counted(data['records'])}{rows} ({data['size_bytes']:,} bytes)"


def _counted(records: int) -> str:
    return f"{records} request" if records == 1 else f"{records} requests"
