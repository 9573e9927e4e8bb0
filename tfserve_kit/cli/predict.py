"""`tfkit predict`."""

from pathlib import Path
from typing import Any

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option, server_options
from tfserve_kit.cli.target import destination
from tfserve_kit.clients import Target, connect
from tfserve_kit.clients.classifier import Classified, Classifier, choose_signature
from tfserve_kit.clients.images import read_file
from tfserve_kit.clients.labels import read_labels
from tfserve_kit.errors import UsageError
from tfserve_kit.preprocessing import Preprocessing


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    del ctx, param
    if value is None:
        return None
    try:
        height, width = (int(part) for part in value.lower().split("x"))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not HEIGHTxWIDTH, such as 224x224") from None
    return height, width


def _numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    del ctx, param
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0,1") from None


@click.command("predict")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...",
                type=click.Path(path_type=Path))  # fmt: skip
@server_options
@click.option("--version", type=click.IntRange(min=0), help="Version; the newest if left out.")
@click.option("--label", help="Version label instead of a version.")
@click.option("--signature", default="", help="Signature; serving_default if left out.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="K",
              help="How many classes to show.")  # fmt: skip
@click.option("--labels", "labels_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Class names, one on each line.")  # fmt: skip
@click.option("--base-path", type=click.Path(path_type=Path), metavar="DIR",
              help="Base path of the model, to find its preprocessing note.")  # fmt: skip
@click.option("--size", callback=_size, metavar="HEIGHTxWIDTH", help="Size of the model's input.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="1 for grey, 3 for colour.")
@click.option("--range", "value_range", callback=_numbers, metavar="LOW,HIGH",
              help="What black and white become, such as 0,1 or -1,1 or 0,255.")  # fmt: skip
@click.option("--mean", callback=_numbers, metavar="M[,M,M]", help="Subtracted after scaling.")
@click.option("--std", callback=_numbers, metavar="S[,S,S]", help="Divided by after that.")
@json_option
def command(
    images: tuple[Path, ...],
    url: str | None,
    model: str | None,
    protocol: str,
    timeout_s: float,
    version: int | None,
    label: str | None,
    signature: str,
    top: int,
    labels_file: Path | None,
    base_path: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Classify pictures.

    Shows sorted scores with class index and label, and the time taken. How a picture becomes the
    model's input is taken from the model's signature and from the note stored with the version;
    options override both.
    """
    if version is not None and label is not None:
        raise UsageError("give --version or --label, not both")
    where = destination(url, protocol, model)
    target = Target(where.model, version, label, signature)
    options = _options(labels_file, **how)
    results = []
    with connect(where.url) as client:
        found = client.metadata(target, timeout_s=timeout_s)
        stored = _note(base_path or where.base_path, found.version)
        chosen = choose_signature(found.signatures, signature)
        note = stored.overridden_by(options)
        classifier = Classifier(client, target, chosen, note, timeout_s=timeout_s)
        for image in images:
            answer = classifier.classify(read_file(image), name=str(image), top=top)
            results.append(_data(image, where.model, answer, found.version))
            if not as_json:
                output.result("predict", None, as_json=False, text=_text(results[-1]))
    if as_json:
        output.result("predict", results, as_json=True, text="")


def _options(
    labels_file: Path | None,
    size: tuple[int, int] | None,
    channels: str | None,
    value_range: tuple[float, float] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Preprocessing:
    height, width = size or (None, None)
    return Preprocessing(
        height=height,
        width=width,
        channels=int(channels) if channels else None,
        value_range=value_range,
        mean=mean,
        std=std,
        labels=read_labels(labels_file) if labels_file else None,
    )


def _note(base_path: Path | None, version: int) -> Preprocessing:
    return Preprocessing.read(base_path / str(version)) if base_path else Preprocessing()


def _data(image: Path, model: str, answer: Classified, version: int) -> dict[str, Any]:
    return {
        "image": str(image),
        "model": model,
        "version": answer.version if answer.version is not None else version,
        "prepare_ms": round(answer.prepare_s * 1e3, 3),
        "request_ms": round(answer.request_s * 1e3, 3),
        "scores": [
            {"index": each.index, "label": each.label, "score": each.score}
            for each in answer.scores
        ],
    }


def _text(data: dict[str, Any]) -> str:
    head = (
        f"{data['image']}: {data['model']} version {data['version']}, "
        f"prepared in {data['prepare_ms']:.1f} ms, answered in {data['request_ms']:.1f} ms"
    )
    rows = [
        f"  {each['score']:9.4f}  {each['index']:5d}  {each['label'] or ''}".rstrip()
        for each in data["scores"]
    ]
    return "\n".join([head, *rows])
