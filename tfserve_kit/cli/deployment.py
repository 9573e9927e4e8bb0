"""From options to a deployment: `--config`, or `--model NAME=BASE` without a file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tfserve_kit import deployment
from tfserve_kit.errors import UsageError


def deployment_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is deployed."""
    for option in (
        click.option("--templates", type=click.Path(exists=True, file_okay=False, path_type=Path),
                     help="Folder whose templates replace tfkit's own."),
        click.option("--model", "models", multiple=True, metavar="NAME=BASE_PATH",
                     help="Serve this model, without a deployment file; may be repeated."),
        click.option("--config", type=click.Path(dir_okay=False, path_type=Path),
                     help="Deployment file; tfkit.toml if there is one."),
    ):  # fmt: skip
        function = option(function)
    return function


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what runs it."""
    for option in (
        click.option("--image", envvar="TFKIT_IMAGE", metavar="IMAGE",
                     help="Image for the Docker engine; tensorflow/serving if not given."),
        click.option("--binary", envvar="TFKIT_MODEL_SERVER", metavar="PATH",
                     help="tensorflow_model_server for the native engine."),
        click.option("--engine", metavar="auto|docker|native|embedded", help="What runs it."),
    ):  # fmt: skip
        function = option(function)
    return function


def load(
    config: Path | None, models: Sequence[str], **sections: Mapping[str, Any]
) -> deployment.Spec:
    """Return the deployment that the options describe.

    Args:
        config: the deployment file; the default one if None and no models are given.
        models: `NAME=BASE_PATH` texts, instead of a file.
        sections: keys that the command line overrides, by section such as `server`; None values
            do not count.

    Raises:
        UsageError: neither or both are given, or a model is misspelled.
        SpecError: the deployment is invalid.
    """
    overrides = {
        name: {key: value for key, value in given.items() if value is not None}
        for name, given in sections.items()
    }
    if models:
        if config is not None:
            raise UsageError("give --config or --model, not both")
        document = {"models": dict(map(_named_model, models)), **overrides}
        return deployment.build(document, source="command line", folder=Path.cwd())
    file = config or Path(deployment.DEFAULT_FILE)
    if not file.is_file():
        raise UsageError(
            f"there is no {file}", remedy="`tfkit init` writes one; or give --model NAME=BASE_PATH"
        )
    return deployment.load(file, overrides=overrides)


def _named_model(text: str) -> tuple[str, dict[str, str]]:
    name, equals, base_path = text.partition("=")
    if not (name and equals and base_path):
        raise UsageError(f"--model {text!r} is not NAME=BASE_PATH")
    return name, {"base_path": base_path}
