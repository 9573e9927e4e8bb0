"""`tfkit build-image`."""

import re
import tempfile
from pathlib import Path

import click

from tfserve_kit.cli import options, output
from tfserve_kit.cli.options import json_option
from tfserve_kit.deployment import Spec
from tfserve_kit.engines import images
from tfserve_kit.engines.container import GRPC_PORT, REST_PORT, SERVING_IMAGE
from tfserve_kit.engines.images import PYTHON_IMAGE, Variant
from tfserve_kit.errors import UsageError


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
        context = images.render_context(
            spec, out or Path(scratch), variant, templates=templates, progress=progress
        )
        data: dict[str, object] = {"base": context.base, "models": dict(context.models)}
        if out:
            data["folder"], text = str(out.absolute()), f"Wrote {out}; build it: docker build {out}"
        else:
            tag = tag or _tag(spec)
            data |= {"tag": tag, "id": images.build(context.folder, tag, progress=progress)}
            text = f"Built {tag}\n  {_run(tag)}"
    output.result("image", data, as_json=as_json, text=text)


def _tag(spec: Spec | None) -> str:
    """Return the image's name: that of the server, of which Docker takes letters and digits."""
    name = spec.server.name if spec else "model-server"
    return "tfkit-" + re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _run(tag: str) -> str:
    ports = [f"-p {port}:{port}" for port in (GRPC_PORT, REST_PORT)]
    return f"Run it: docker run --rm {' '.join(ports)} {tag}"
