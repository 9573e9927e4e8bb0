"""Commands about the deployment file and what is rendered from it."""

import re
import shlex
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import click

from tfserve_kit.cli import exits, options, output
from tfserve_kit.cli.options import json_option
from tfserve_kit.cli.output import force_option, require_writable
from tfserve_kit.deployment import DEFAULT_FILE, Spec, build, monitoring, render
from tfserve_kit.deployment.lint import lint
from tfserve_kit.engines import images, manifests, services
from tfserve_kit.engines.container import GRPC_PORT, REST_PORT, SERVING_IMAGE
from tfserve_kit.engines.images import PYTHON_IMAGE, Variant
from tfserve_kit.errors import Severity, UsageError, did_you_mean, file_error

_HEADER = "# written by tfkit render, which replaces this file\n"  # `output` knows it by this


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@click.option("--model", default="my_model", show_default=True, help="Name of the first model.")
@click.option("--name", default="default", show_default=True, help="Name of the server.")
def init_command(file: Path, model: str, name: str) -> None:
    """Write a commented deployment file.

    FILE defaults to tfkit.toml; an existing file is not replaced.
    """
    if file.exists():
        raise UsageError(f"{file} exists already", remedy="give another file name")
    text = render.text("tfkit.toml", {"model": model, "name": name})
    build(tomllib.loads(text), source="--model and --name", folder=Path())
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise file_error(UsageError, "write", file, error) from error
    push = f"tfkit push-model SAVED_MODEL --model {shlex.quote(model)}"
    output.note(f"Wrote {file}. Next: {push}; tfkit serve")


@click.command("render")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@options.deployment_options
@click.option(
    "--target",
    type=click.Choice(["server", "kubernetes", "kserve", "monitoring"]),
    default="server",
    show_default=True,
    help="What reads the files: the server; Kubernetes or KServe, as a Kustomize base; or "
    "Prometheus, Alertmanager and Grafana.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Write the files to this folder instead of showing them.")  # fmt: skip
@force_option
@json_option
def render_command(
    names: tuple[str, ...],
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    target: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Show or write the server's configuration files, or those of what runs or watches it.

    All of them, or only those named.
    """
    engine = "kubernetes" if target in {"kubernetes", "kserve"} else None
    spec = options.load_deployment(config, models, server={"engine": engine})
    if engine:
        files = manifests.files(spec, target, templates=templates)
    else:
        rendered = _monitoring if target == "monitoring" else render.render
        files = rendered(spec, templates=templates)
    for name in names:
        if name not in files:
            raise UsageError(f"{name} is not rendered here", remedy=did_you_mean(name, files))
    chosen = {name: text for name, text in files.items() if name in names or not names}
    if out:
        _write(chosen, out)
    between = "---\n" if engine else "\n"  # objects in one stream, as `kubectl apply -f -` takes it
    objects = {name: text for name, text in chosen.items() if name != manifests.KUSTOMIZATION}
    shown = between.join(f"# {name}\n{text}" for name, text in (objects or chosen).items())
    output.result("render", chosen, as_json=as_json, text="" if out else shown.rstrip())


def _monitoring(spec: Spec, *, templates: Path | None) -> dict[str, str]:
    place = {"name": services.service_name(spec.server.name), "port": REST_PORT}
    files = monitoring.render(spec, templates=templates, discovery=place if spec.gateway else None)
    asked = spec.monitoring
    if asked and asked.slo_latency_ms * 1000 != (bound_us := monitoring.latency_bound_us(asked)):
        output.note(
            f"slo_latency_ms: alerts count from {bound_us / 1000:.4g} ms, the next bound of the "
            f"server's buckets above {asked.slo_latency_ms:g} ms."
        )
    return files


def _write(files: Mapping[str, str], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_writable(*(folder / name for name in files))
        for name, text in files.items():
            header = "" if name.endswith(".json") else _HEADER  # JSON has no comments
            (folder / name).write_text(header + text, "utf-8")
            output.note(f"Wrote {folder / name}")
    except OSError as error:
        raise file_error(UsageError, "write to", folder, error) from error


@click.command("lint")
@options.deployment_options
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@json_option
def lint_command(
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Report problems before the server starts.

    Fails if there are errors.
    """
    spec = options.load_deployment(config, models)
    render.render(spec, templates=templates)
    found = lint(spec)
    data = [asdict(each) for each in found]
    text = output.findings(found) or "Nothing found."
    output.result("findings", data, as_json=as_json, text=text)
    bad = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    failed = any(each.severity in bad for each in found)
    return exits.SPEC_INVALID if failed else exits.OK


@click.command("build-image")
@options.deployment_options
@click.option("--gpu", is_flag=True, help="Build on the official image with CUDA.")
@click.option("--embedded", is_flag=True,
              help="Install the embedded engine instead of using the official image.")  # fmt: skip
@click.option("--bare", is_flag=True, help="With --embedded: only the server, without a model.")
@click.option("--base", default="", metavar="IMAGE",
              help=f"Image to build on, instead of {SERVING_IMAGE}, or "
              f"{PYTHON_IMAGE} with --embedded.")  # fmt: skip
@click.option("--wheels", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="With --embedded: folder of wheels to install, instead of PyPI.")  # fmt: skip
@click.option("--tag", help="Name of the image; default: tfkit-NAME, after the server.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Write what `docker build` needs into a new folder; build nothing.")  # fmt: skip
@json_option
def build_image_command(
    config: Path | None,
    models: tuple[str, ...],
    templates: Path | None,
    gpu: bool,
    embedded: bool,
    bare: bool,
    base: str,
    wheels: Path | None,
    tag: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Build an image with the models inside.

    The image answers gRPC on port 8500 and REST on port 8501, as an unprivileged user. It holds
    the versions that the deployment would load now.
    """
    if bare and (models or config):
        raise UsageError("--bare leaves models out", remedy="give --bare, or --model or --config")
    spec = None if bare else options.load_deployment(config, models)
    variant = Variant(base, gpu=gpu, embedded=embedded, wheels=wheels)
    with output.TerminalProgress() as progress, tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        inside = images.render_context(
            spec, folder, variant, templates=templates, progress=progress
        )
        data: dict[str, object] = {"base": variant.image, "models": inside}
        if out:
            data["folder"], text = str(out.absolute()), f"Wrote {out}; build it: docker build {out}"
        else:
            tag = tag or _tag(spec)
            data |= {"tag": tag, "id": images.build(folder, tag, progress=progress)}
            text = f"Built {tag}\n  {_run(tag)}"
    output.result("image", data, as_json=as_json, text=text)


def _tag(spec: Spec | None) -> str:
    """Return the image's name: that of the server, of which Docker takes letters and digits."""
    name = spec.server.name if spec else "model-server"
    return "tfkit-" + re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _run(tag: str) -> str:
    ports = [f"-p {port}:{port}" for port in (GRPC_PORT, REST_PORT)]
    return f"Run it: docker run --rm {' '.join(ports)} {tag}"
